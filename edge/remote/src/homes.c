/*
 * Epochs: which worker holds which expert. An epoch is taken when the coordinator signed it for this cluster
 * and model and it is newer than ours; lower ones are ignored, whoever brings them.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "cw/ticket.h"
#include "edge_internal.h"

static home *find(const cw_edge *e, const cw_key *key)
{
    for (size_t i = 0; i < e->n_homes; i++)
        if (cw_key_equal(&e->homes[i]->key, key)) return e->homes[i];
    return NULL;
}

static home *add(cw_edge *e, const cw_key *key)
{
    if (e->n_homes == e->cap_homes) {
        size_t cap = e->cap_homes ? 2 * e->cap_homes : 8;
        home **list = cw_realloc(e->homes, cap, sizeof *list);
        if (list) e->homes = list;
        double *finish = list ? cw_realloc(e->finish, cap, sizeof *finish) : NULL;
        if (finish) e->finish = finish;
        uint32_t *share = finish ? cw_realloc(e->share, cap, sizeof *share) : NULL;
        if (!share) return NULL;
        e->share = share;
        e->cap_homes = cap;
    }
    home *h = cw_calloc(1, sizeof *h);
    uint8_t *sets = cw_calloc(e->c.n_layers, e->set_bytes);
    if (!h || !sets) {
        cw_free(h);
        cw_free(sets);
        return NULL;
    }
    h->key = *key;
    h->sets = sets;
    h->heartbeat_us = 2000000;
    h->doubt = 1;
    h->index = (uint32_t)e->n_homes;
    /* Different workers, different jitter. */
    h->backoff = (cw_backoff){
        .first_us = 50000, .most_us = 1000000, .random = e->c.seed + 0x51ed270b * (e->n_homes + 1)};
    return e->homes[e->n_homes++] = h;
}

static void take_worker(cw_edge *e, const Cw__Pb__EpochWorker *w)
{
    cw_key key;
    memcpy(key.b, w->key.data, CW_KEY_BYTES);
    home *h = find(e, &key);
    if (!h && !(h = add(e, &key))) {
        edge_say(e, "out of memory for a worker of the epoch");
        return;
    }
    if (!h->was_in_epoch) { /* it has come, or come back: no pause from earlier attempts */
        h->retry_us = 0;
        cw_backoff_reset(&h->backoff);
    }
    h->id = w->id;
    h->speed = w->speed;
    h->in_epoch = true;
    h->gone_us = INT64_MAX;
    snprintf(h->name, sizeof h->name, "%s", w->name);
    if (strcmp(h->address, w->address)) {
        snprintf(h->address, sizeof h->address, "%s", w->address);
        h->retry_us = 0; /* moved: try there at once */
    }
    memset(h->sets, 0, (size_t)e->c.n_layers * e->set_bytes);
    for (size_t i = 0; i < w->n_sets; i++) {
        const Cw__Pb__LayerSet *s = w->sets[i];
        if (s->layer >= e->c.n_layers) continue;
        size_t n = s->experts.len < e->set_bytes ? s->experts.len : e->set_bytes;
        if (n) memcpy(h->sets + (size_t)s->layer * e->set_bytes, s->experts.data, n);
    }
}

/* Not by those who take part in anything: their index is a name that rows, ghosts and disputes know them by.
 */
static bool may_forget(const cw_edge *e)
{
    bool ghosts = false;
    for (size_t i = 0; i < e->n_homes; i++) ghosts = ghosts || e->homes[i]->ghosts;
    return !ghosts && !e->requests && !e->disputes && !e->homeless.head;
}

void homes_tick(cw_edge *e)
{
    size_t kept = 0;
    bool any = false;
    for (size_t i = 0; i < e->n_homes; i++) any = any || e->now_us - e->homes[i]->gone_us >= GONE_US;
    if (!any || !may_forget(e)) return;
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        bool gone = !h->in_epoch && h->state == HOME_CLOSED && !h->link && !h->queued.head && !h->sent.head &&
                    !home_barred(e, h) && e->now_us - h->gone_us >= GONE_US;
        if (gone) {
            cw_free(h->sets);
            cw_free(h);
        } else {
            h->index = (uint32_t)kept;
            e->homes[kept++] = h;
        }
    }
    e->n_homes = kept;
}

/* A verdict: where one who was in doubt is gone, the others are cleared. */
static void clear_doubt(cw_edge *e)
{
    bool gone = false;
    for (size_t i = 0; i < e->n_homes; i++)
        gone = gone || (!e->homes[i]->in_epoch && home_in_doubt(e, e->homes[i]));
    for (size_t i = 0; gone && i < e->n_homes; i++) e->homes[i]->doubt_until_us = 0;
}

bool homes_take_epoch(cw_edge *e, const void *data, size_t len)
{
    Cw__Pb__EpochBody *b = NULL;
    cw_err err = {0};
    if (!e->has_cluster) return false;
    if (cw_epoch_verify(&e->sign_key, data, len, &b, &err) != CW_OK) {
        edge_say(e, "an epoch was ignored: %.300s", err.text);
        return false;
    }
    bool ours = !memcmp(b->cluster_id.data, e->cluster_id, CW_CLUSTER_BYTES) &&
                !memcmp(b->model_digest.data, e->c.model_digest, CW_DIGEST_BYTES);
    bool newer = b->term != e->epoch_term ? b->term > e->epoch_term : b->number > e->epoch_number;
    bool take = ours && newer && edge_keep(&e->epoch, &e->epoch_len, data, len);
    if (take) {
        e->epoch_term = b->term;
        e->epoch_number = b->number;
        for (size_t i = 0; i < e->n_homes; i++)
            e->homes[i]->was_in_epoch = e->homes[i]->in_epoch, e->homes[i]->in_epoch = false;
        for (size_t i = 0; i < b->n_workers; i++) take_worker(e, b->workers[i]);
        for (size_t i = 0; i < e->n_homes; i++)
            if (!e->homes[i]->in_epoch && e->homes[i]->gone_us == INT64_MAX) e->homes[i]->gone_us = e->now_us;
        clear_doubt(e);
        edge_act(e, CW_EDGE_SAVE);
    }
    cw_epoch_free(&b);
    return take;
}

void homes_forget(cw_edge *e)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        if (e->homes[i]->in_epoch) e->homes[i]->gone_us = e->now_us;
        e->homes[i]->in_epoch = false;
    }
    e->epoch_term = e->epoch_number = 0;
    e->epoch_len = 0;
    e->ticket_len = 0;
}

bool home_holds(const cw_edge *e, const home *h, uint32_t layer, uint32_t expert)
{
    return h->in_epoch && h->sets[(size_t)layer * e->set_bytes + expert / 8] >> (expert % 8) & 1;
}

void home_lacks(cw_edge *e, home *h, uint32_t layer, uint32_t expert)
{
    if (layer < e->c.n_layers && expert < e->c.n_experts)
        h->sets[(size_t)layer * e->set_bytes + expert / 8] &= (uint8_t) ~(1 << (expert % 8));
}

/* Links of workers that left the epoch close when their last call is answered (make before break). */
/* Who is out of the epoch may have been fenced for wrong rows: nothing more is taken from it, and what it has
 * of ours goes elsewhere. One that merely leaves costs a few calls that are sent twice. */
void homes_prune(cw_edge *e, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        if (h->in_epoch || h->state == HOME_CLOSED) continue;
        links_close(e, h, "no longer in the epoch", 0, out);
        h->state = HOME_CLOSED;
    }
}

uint32_t homes_covered(const cw_edge *e, uint32_t *n_all, uint32_t *layer, uint32_t *expert)
{
    uint32_t n = 0;
    bool missing = false;
    *n_all = 0;
    for (uint32_t l = 0; l < e->c.n_layers; l++) {
        if (!e->layers[l].weight_bytes) continue;
        *n_all += e->c.n_experts;
        for (uint32_t byte = 0; byte < e->set_bytes; byte++) {
            uint8_t bits = 0;
            for (size_t i = 0; i < e->n_homes; i++)
                if (e->homes[i]->state == HOME_UP && e->homes[i]->in_epoch)
                    bits |= e->homes[i]->sets[(size_t)l * e->set_bytes + byte];
            uint32_t in_byte = e->c.n_experts - 8 * byte < 8 ? e->c.n_experts - 8 * byte : 8;
            for (uint32_t k = 0; k < in_byte; k++) {
                if (bits >> k & 1)
                    n++;
                else if (!missing)
                    missing = true, *layer = l, *expert = 8 * byte + k;
            }
        }
    }
    return n;
}
