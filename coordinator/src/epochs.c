/*
 * Epochs: what everybody is told about who holds what. (term, number) only rises; the term is saved before
 * anything is published under it; the number goes on over terms. An epoch lists what is READY and not about
 * to be dropped.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

bool set_list_init(set_list *s, const cw_expert_bits *b)
{
    size_t set_bytes = (b->n_experts + 7) / 8;
    *s = (set_list){.sets = cw_calloc(b->n_layers, sizeof *s->sets),
                    .items = cw_calloc(b->n_layers, sizeof *s->items),
                    .bytes = cw_calloc(b->n_layers, set_bytes)};
    if (!s->sets || !s->items || !s->bytes) {
        set_list_free(s);
        return false;
    }
    for (uint32_t l = 0; l < b->n_layers; l++) {
        uint8_t *bytes = s->bytes + l * set_bytes;
        size_t used = 0; /* trailing zero bytes are not sent */
        for (uint32_t e = 0; e < b->n_experts; e++)
            if (cw_expert_bits_has(b, l, e)) {
                bytes[e / 8] |= (uint8_t)(1 << e % 8);
                used = e / 8 + 1;
            }
        if (!used) continue;
        cw__pb__layer_set__init(&s->items[s->n]);
        s->items[s->n].layer = l;
        s->items[s->n].experts = (ProtobufCBinaryData){used, bytes};
        s->sets[s->n] = &s->items[s->n];
        s->n++;
    }
    return true;
}

void set_list_free(set_list *s)
{
    cw_free(s->sets);
    cw_free(s->items);
    cw_free(s->bytes);
    *s = (set_list){0};
}

const char *sets_check(const cw_coordinator *c, size_t n, Cw__Pb__LayerSet *const *sets)
{
    for (size_t i = 0; i < n; i++) {
        if (sets[i]->layer >= c->cfg.n_layers) return "a layer the model does not have";
        const ProtobufCBinaryData *b = &sets[i]->experts;
        for (size_t k = 0; k < b->len; k++)
            for (int bit = 0; bit < 8; bit++)
                if ((b->data[k] >> bit & 1) &&
                    (k * 8 + (size_t)bit >= c->cfg.n_experts || !c->expert_bytes[sets[i]->layer]))
                    return "an expert the model does not have";
    }
    return NULL;
}

void sets_to_bits(size_t n, Cw__Pb__LayerSet *const *sets, cw_expert_bits *b)
{
    cw_expert_bits_clear(b);
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = 0; e < b->n_experts && e / 8 < sets[i]->experts.len; e++)
            if (sets[i]->experts.data[e / 8] >> e % 8 & 1) cw_expert_bits_put(b, sets[i]->layer, e, true);
}

/* Whether this worker belongs into an epoch made now. */
static bool in_epoch(const cw_coordinator *c, const member *m, int64_t now_us)
{
    const worker_state *w = m->worker;
    if (!w || !is_trusted(m) || w->hidden) return false;
    if (is_counted(m)) return true;
    if (c->settle_until) return w->is_published; /* nothing is taken away while settling */
    /* Its link to us may be all that broke, and edges notice a dead worker by themselves. A worker that is
       back and has not said yet what it holds stays as it was. */
    return w->is_published && (is_live(m) || now_us < after_ms(w->lost_us, c->cfg.times.lost_ms));
}

static void epoch_sets(const member *m, int64_t now_us, cw_expert_bits *out)
{
    const worker_state *w = m->worker;
    cw_expert_bits_copy(out, is_counted(m) ? &w->held : &w->published);
    if (is_counted(m)) cw_expert_bits_andnot(out, &w->leaving);
    holdings_believed(m, now_us, out);
}

/* How a new epoch would differ from the newest one. */
typedef enum { SAME, PROGRESS, URGENT } difference;

static difference compare(const cw_coordinator *c, int64_t now_us, cw_expert_bits *tmp)
{
    difference d = c->republish ? URGENT : SAME;
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        const worker_state *w = m->worker;
        if (!w) continue;
        bool in = in_epoch(c, m, now_us);
        if (in) {
            epoch_sets(m, now_us, tmp);
            in = !cw_expert_bits_empty(tmp);
        }
        if (w->is_published && !in) return URGENT;
        if (!in || !is_counted(m)) continue;
        if (w->is_published && cw_expert_bits_equal(tmp, &w->published) &&
            strcmp(w->address, w->published_address) == 0)
            continue;
        if (w->is_published && strcmp(w->address, w->published_address) != 0) return URGENT;
        /* A load that has ended is news at once. While a placement is still to come, nothing was asked yet,
           and a worker that goes on loading what an earlier coordinator asked for only makes progress. */
        bool placed = !c->settle_until && c->replan_us == INT64_MAX;
        if ((placed && cw_expert_bits_empty(&w->asked)) || !cw_expert_bits_empty(&w->leaving)) return URGENT;
        /* Less than was published: a home that is named and not there costs every edge a round trip. */
        cw_expert_bits_copy(tmp, &w->published);
        cw_expert_bits_andnot(tmp, &w->held);
        if (w->is_published && !cw_expert_bits_empty(tmp)) return URGENT;
        d = PROGRESS;
    }
    return d;
}

static size_t fill_worker(const member *m, const cw_expert_bits *tmp, Cw__Pb__EpochWorker *ew, set_list *sets)
{
    const worker_state *w = m->worker;
    cw__pb__epoch_worker__init(ew);
    if (!set_list_init(sets, tmp)) return 0;
    ew->id = m->row.id;
    ew->name = (char *)m->row.name;
    ew->address = (char *)w->published_address;
    ew->key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)m->row.key.b};
    ew->speed = w->speed;
    ew->n_sets = sets->n;
    ew->sets = sets->sets;
    return 1;
}

static bool is_subset(const cw_expert_bits *a, const cw_expert_bits *of)
{
    for (size_t i = 0; i < (size_t)a->n_layers * a->words; i++)
        if (a->bits[i] & ~of->bits[i]) return false;
    return true;
}

/* Signed(EpochBody) of what is there now, the published sets of the workers set to it. NULL: out of memory.
 */
static shared_bytes *build(cw_coordinator *c, uint64_t term, uint64_t number, int64_t now_us, int64_t wall_ms,
                           cw_expert_bits *tmp)
{
    Cw__Pb__EpochBody body = CW__PB__EPOCH_BODY__INIT;
    Cw__Pb__EpochWorker *items = cw_calloc(c->n_members, sizeof *items),
                        **ptrs = cw_calloc(c->n_members, sizeof *ptrs);
    set_list *sets = cw_calloc(c->n_members, sizeof *sets);
    uint8_t *bytes = NULL;
    shared_bytes *out = NULL;
    size_t len;
    cw_err err;
    if (!items || !ptrs || !sets) goto done;
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        worker_state *w = m->worker;
        if (!w) continue;
        bool in = in_epoch(c, m, now_us);
        if (in) epoch_sets(m, now_us, tmp);
        if (is_counted(m) && w->is_published && !is_subset(&w->published, &w->held)) holdings_lost(m, now_us);
        w->is_published = in && !cw_expert_bits_empty(tmp);
        cw_expert_bits_clear(&w->published);
        if (!w->is_published) continue;
        cw_expert_bits_copy(&w->published, tmp);
        if (is_counted(m)) memcpy(w->published_address, w->address, sizeof w->address);
        size_t k = body.n_workers;
        if (!fill_worker(m, tmp, &items[k], &sets[k])) goto done;
        ptrs[k] = &items[k];
        body.n_workers = k + 1;
    }
    body.workers = ptrs;
    body.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, c->cfg.cluster_id};
    body.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, c->cfg.model_digest};
    body.term = term;
    body.number = number;
    body.made_ms = (uint64_t)wall_ms;
    if (cw_epoch_sign(c->cfg.signer, &body, &bytes, &len, &err) != CW_OK) {
        CW_LOG_E("coordinator", "epoch not published: %s", err.text);
        goto done;
    }
    out = shared_bytes_new(len);
    if (out) memcpy(shared_bytes_data(out), bytes, len);
done:
    for (size_t i = 0; sets && i < c->n_members; i++) set_list_free(&sets[i]);
    cw_free(bytes);
    cw_free(sets);
    cw_free(ptrs);
    cw_free(items);
    return out;
}

static void publish(cw_coordinator *c, int64_t now_us, int64_t wall_ms, cw_expert_bits *tmp, cw_outbox *out)
{
    shared_bytes *e = build(c, c->term, c->number + 1, now_us, wall_ms, tmp);
    if (!e) {
        c->failed = true;
        return;
    }
    shared_bytes_release(c->epoch);
    c->epoch = e;
    c->number++;
    c->epoch_term = c->term;
    c->published_us = now_us;
    c->republish = false;
    save_epoch(c);
    count_add(COUNT_EPOCHS, 1);
    Cw__Pb__EpochNews news = CW__PB__EPOCH_NEWS__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_EPOCH_NEWS;
    env.epoch_news = &news;
    for (size_t i = 0; i < c->n_links; i++) {
        if (!c->links[i].who) continue;
        cw_frame f = shared_bytes_frame(e);
        cw_send(out, c->links[i].link, &env, &f, 1);
    }
    CW_LOG_I("coordinator", "epoch term=%llu number=%llu", (unsigned long long)c->epoch_term,
             (unsigned long long)c->number);
}

void epochs_step(cw_coordinator *c, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_expert_bits tmp;
    if (!cw_expert_bits_init(&tmp, c->cfg.n_layers, c->cfg.n_experts)) {
        c->failed = true;
        return;
    }
    difference d = compare(c, now_us, &tmp);
    const cw_coordinator_times *t = &c->cfg.times;
    int64_t at = after_ms(c->published_us, d == URGENT ? t->epoch_gap_ms : t->progress_ms);
    /* What is out there and newer than ours is overruled at once; Hellos have a limit of their own. */
    if (d != SAME && (now_us >= at || !c->number || c->republish))
        publish(c, now_us, wall_ms, &tmp, out);
    else if (d != SAME)
        cw_outbox_wake(out, at);
    cw_expert_bits_free(&tmp);
}

void epochs_saw(cw_coordinator *c, uint64_t term, uint64_t number, const char *who)
{
    uint64_t newest_term = c->epoch ? c->epoch_term : 0, newest = c->epoch ? c->number : 0;
    if (term < newest_term || (term == newest_term && number <= newest)) return;
    /* Far below what a saved term may be: our own starts count on from here. */
    if (term >= (uint64_t)1 << 61) {
        CW_LOG_E("coordinator", "worker \"%s\" reports an impossible term %llu, ignored", who,
                 (unsigned long long)term);
        return;
    }
    CW_LOG_W(
        "coordinator",
        "worker \"%s\" has seen epoch %llu.%llu, ours is %llu.%llu: an older state was restored, or a second "
        "coordinator ran; a new epoch overrules it",
        who, (unsigned long long)term, (unsigned long long)number, (unsigned long long)newest_term,
        (unsigned long long)newest);
    c->republish = true;
    if (term < c->term) return;
    c->term = term + 1;
    save_term(c);
}

static cw_status adopt_workers(cw_coordinator *c, const Cw__Pb__EpochBody *body, int64_t now_us, cw_err *err)
{
    for (size_t i = 0; i < body->n_workers; i++) {
        const Cw__Pb__EpochWorker *ew = body->workers[i];
        cw_key key;
        if (ew->key.len != CW_KEY_BYTES)
            return CW_FAIL(err, CW_STATUS_FORMAT, "the saved epoch names a worker without a key");
        memcpy(key.b, ew->key.data, CW_KEY_BYTES);
        member *m = member_find(c, &key);
        if (!m || !m->worker || !is_trusted(m)) { /* revoked since */
            c->republish = true;
            continue;
        }
        const char *bad = sets_check(c, ew->n_sets, ew->sets);
        if (bad) return CW_FAIL(err, CW_STATUS_FORMAT, "the saved epoch names %s", bad);
        worker_state *w = m->worker;
        sets_to_bits(ew->n_sets, ew->sets, &w->held);
        cw_expert_bits_copy(&w->wanted, &w->held);
        cw_expert_bits_copy(&w->published, &w->held);
        w->is_published = w->planned = true;
        snprintf(w->address, sizeof w->address, "%s", ew->address);
        snprintf(w->published_address, sizeof w->published_address, "%s", ew->address);
        w->speed = ew->speed;
        w->lost_us = now_us;
        c->settle_until = after_ms(now_us, c->cfg.times.settle_ms);
    }
    return CW_OK;
}

cw_status epochs_adopt(cw_coordinator *c, const cw_coordinator_state *state, int64_t now_us, cw_err *err)
{
    if (!state->epoch_bytes) return CW_OK;
    cw_status s = CW_OK;
    Cw__Pb__EpochBody *body = NULL;
    Cw__Pb__Signed *sig = cw__pb__signed__unpack(NULL, state->epoch_bytes, state->epoch);
    if (sig) body = cw__pb__epoch_body__unpack(NULL, sig->body.len, sig->body.data);
    if (!body)
        s = CW_FAIL(err, CW_STATUS_FORMAT, "the saved epoch cannot be read");
    else if (body->term > state->term)
        s = CW_FAIL(err, CW_STATUS_FORMAT, "the saved epoch is of term %llu, above the saved term %llu",
                    (unsigned long long)body->term, (unsigned long long)state->term);
    if (s == CW_OK) {
        c->number = body->number;
        bool same_model = body->model_digest.len == CW_DIGEST_BYTES &&
                          memcmp(body->model_digest.data, c->cfg.model_digest, CW_DIGEST_BYTES) == 0;
        if (same_model && (s = adopt_workers(c, body, now_us, err)) == CW_OK) {
            c->epoch = shared_bytes_new(state->epoch_bytes);
            if (!c->epoch)
                s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the saved epoch");
            else
                memcpy(shared_bytes_data(c->epoch), state->epoch, state->epoch_bytes);
            c->epoch_term = body->term;
        }
    }
    if (body) cw__pb__epoch_body__free_unpacked(body, NULL);
    if (sig) cw__pb__signed__free_unpacked(sig, NULL);
    return s;
}
