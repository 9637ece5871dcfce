/*
 * Pulling the manifest and chunks from the coordinator's store, over a connection of its own that never
 * carries calls. Pure, like cw/worker_machine.h; its shell is a thread with a cw_net of its own. Links are
 * opened for the first item and closed after half a minute without one; parts lost with a link are asked for
 * again on the next.
 */
#pragma once
#include "cw/machine.h"

typedef struct cw_fetch cw_fetch;

typedef struct {
    char name[CW_NAME_MAX + 1];
    char address[CW_ADDRESS_MAX];
    cw_key key; /* of the store: the coordinator's */
    uint8_t instance[CW_INSTANCE_BYTES];
    uint32_t arithmetic_id;
    uint64_t fingerprint;
    uint64_t seed;
    uint64_t manifest_max; /* bytes; a longer one is a failure */
    int64_t patience_us;   /* without a single part for that long, items fail [30 s] */
} cw_fetch_config;

/* The caller's, left alone until cw_fetch_take_done gives it back. */
typedef struct cw_fetch_item {
    bool manifest;
    uint32_t chunk;
    uint8_t *dst; /* a chunk: [len] by the caller. The manifest: allocated here, the caller frees it with
                     cw_free. */
    size_t len;
    bool ok;
    char text[CW_TEXT_MAX]; /* not ok: a sentence */
    struct cw_fetch_item *next;
    size_t asked, got; /* the machine's */
} cw_fetch_item;

CW_MUST_USE cw_status cw_fetch_new(const cw_fetch_config *c, cw_fetch **out, cw_err *err);
void cw_fetch_free(cw_fetch **f); /* items that are still there are forgotten */
void cw_fetch_event(cw_fetch *f, cw_event *ev, cw_outbox *out);
void cw_fetch_get(cw_fetch *f, cw_fetch_item *item, int64_t now_us, cw_outbox *out);
/* Items that have ended, in any order; NULL: none. */
CW_MUST_USE cw_fetch_item *cw_fetch_take_done(cw_fetch *f);
