/*
 * The store port: the manifest and the chunks of the model file, for admitted workers. Pure but for the reads
 * its owner lends it; the shell gives it a net and a thread of its own, so that weights never wait behind
 * control and never in front.
 *
 * Every worker may have STORE_PENDING_MAX requests open and gets at most `rate` bytes a second; what is over
 * waits here, as a request, not as bytes. One thread.
 */
#pragma once
#include "cw/machine.h"

enum { STORE_PENDING_MAX = 32 };

typedef struct store_server store_server;

typedef struct {
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    uint8_t model_digest[CW_DIGEST_BYTES];
    uint32_t heartbeat_ms;
    uint64_t rate; /* bytes a second and worker; 0: no limit */
    const uint8_t *manifest;
    size_t manifest_bytes;
    void *ctx;
    bool (*is_worker)(void *ctx, const cw_key *key); /* admitted and not revoked, now */
    cw_status (*chunk_bytes)(void *ctx, uint32_t chunk, uint64_t *out, cw_err *err);
    cw_status (*read)(void *ctx, uint32_t chunk, uint64_t offset, size_t n, void *dst,
                      cw_err *err); /* may block on the disk */
} store_config;

CW_MUST_USE cw_status store_server_new(const store_config *c, store_server **out, cw_err *err);
void store_server_free(store_server **s);
void store_server_event(store_server *s, cw_event *ev, cw_outbox *out);
