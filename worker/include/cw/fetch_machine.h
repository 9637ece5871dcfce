/*
 * Pulling the manifest and chunks: from the coordinator's store, and chunks also from other workers that have
 * them, over connections of their own that never carry calls of this worker. Pure, like cw/worker_machine.h;
 * its shell is a thread with a cw_net of its own.
 *
 * Links are opened for the first item and closed after half a minute without one. A chunk is asked for in
 * parts, at one source at a time; what has arrived of it stays when a link breaks, and the rest is asked for
 * on the next link or of another source. A worker that refuses, stalls or has not got the chunk costs a
 * retry elsewhere; the coordinator, who has everything, is asked as long as patience lasts. Whether bytes
 * are right is for the caller to check, who knows the hashes: cw_fetch_distrust.
 */
#pragma once
#include "cw/machine.h"

typedef struct cw_fetch cw_fetch;

enum { CW_FETCH_SOURCES = 33 }; /* the coordinator, number 0, and workers */

typedef struct {
    char name[CW_NAME_MAX + 1];
    char address[CW_ADDRESS_MAX]; /* "": there is no store */
    cw_key key;                   /* of the store: the coordinator's */
    uint8_t digest[CW_DIGEST_BYTES];
    uint8_t instance[CW_INSTANCE_BYTES];
    uint32_t arithmetic_id;
    uint64_t fingerprint;
    uint64_t seed;
    uint64_t manifest_max; /* bytes; a longer one is a failure */
    int64_t patience_us;   /* without a single part for that long, items fail [30 s] */
} cw_fetch_config;

/* A worker that has chunks. */
typedef struct {
    char name[CW_NAME_MAX + 1];
    char address[CW_ADDRESS_MAX];
    cw_key key;
    uint8_t ticket[1024];
    size_t ticket_len;
} cw_fetch_source;

/* The caller's, left alone until cw_fetch_take_done gives it back. */
typedef struct cw_fetch_item {
    bool manifest;
    uint32_t chunk;
    uint8_t *dst; /* a chunk: [len] by the caller. The manifest: allocated here, the caller frees it with
                     cw_free. */
    size_t len;
    uint64_t avoid; /* bits of sources that are not to be asked */
    void *owner;    /* the caller's own */
    bool ok;
    uint64_t from;          /* bits of the sources that its bytes came from */
    char text[CW_TEXT_MAX]; /* not ok: a sentence */
    struct cw_fetch_item *next;
    /* The machine's. */
    size_t asked, got;
    int source; /* -1: none now */
    uint64_t tried;
} cw_fetch_item;

CW_MUST_USE cw_status cw_fetch_new(const cw_fetch_config *c, cw_fetch **out, cw_err *err);
void cw_fetch_free(cw_fetch **f); /* items that are still there are forgotten */
void cw_fetch_event(cw_fetch *f, cw_event *ev, cw_outbox *out);
void cw_fetch_get(cw_fetch *f, cw_fetch_item *item, int64_t now_us, cw_outbox *out);
/* Items that have ended, in any order; NULL: none. */
CW_MUST_USE cw_fetch_item *cw_fetch_take_done(cw_fetch *f);
/* Known from now on, or known anew (a key is one source); the one heard of longest ago gives way. */
void cw_fetch_add_source(cw_fetch *f, const cw_fetch_source *s, int64_t now_us);
/* Workers among the bits gave wrong bytes: they are not asked for a while. */
void cw_fetch_distrust(cw_fetch *f, uint64_t bits, int64_t now_us, cw_outbox *out);
/* Bytes a second over all sources from now on; 0: any. */
void cw_fetch_set_rate(cw_fetch *f, uint64_t bytes_per_s);
/* The next line for the log; false: none. */
CW_MUST_USE bool cw_fetch_take_say(cw_fetch *f, char text[CW_TEXT_MAX]);
