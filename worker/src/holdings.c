/*
 * What this worker is to hold, what it holds, and telling the coordinator. Assign and Drop change what is
 * wanted; loads follow in (layer, expert) order, a few ahead, as far as the memory limit reaches. An expert
 * is READY only after the loader has checked it.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

static size_t bit_of(uint32_t layer, uint32_t expert)
{
    return (size_t)layer * CW_WIRE_MAX_EXPERTS + expert;
}

static bool is_wanted(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    size_t b = bit_of(layer, expert);
    return w->wanted[b / 8] >> (b % 8) & 1;
}

static uint8_t *state_of(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    return &w->state[(size_t)layer * w->n_experts + expert];
}

bool holdings_ready(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    return w->model_ready && layer < w->n_layers && expert < w->n_experts &&
           *state_of(w, layer, expert) == X_READY;
}

static uint32_t *counter_of(cw_worker *w, uint8_t state)
{
    switch (state) {
    case X_LOADING: return &w->n_loading;
    case X_READY: return &w->n_ready;
    case X_NO_ROOM: return &w->n_no_room;
    case X_FAILED: return &w->n_failed;
    case X_UNLOADING: return &w->n_unloading;
    default: return NULL;
    }
}

static bool takes_memory(uint8_t state)
{
    return state == X_LOADING || state == X_READY || state == X_UNLOADING;
}

/* Moves one expert to `to` and keeps every count in step. */
static void set_state(cw_worker *w, uint32_t layer, uint32_t expert, uint8_t to)
{
    uint8_t *s = state_of(w, layer, expert), from = *s;
    uint32_t *n;
    if ((n = counter_of(w, from))) --*n;
    if ((n = counter_of(w, to))) ++*n;
    if (takes_memory(from)) w->memory_used -= w->layers[layer].packed_bytes;
    if (takes_memory(to)) w->memory_used += w->layers[layer].packed_bytes;
    *s = to;
    w->holdings_dirty = true;
}

static bool exists(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    return layer < w->n_layers && expert < w->n_experts && w->layers[layer].packed_bytes;
}

static void want(cw_worker *w, uint32_t layer, uint32_t expert)
{
    if (is_wanted(w, layer, expert)) return;
    size_t b = bit_of(layer, expert);
    w->wanted[b / 8] |= (uint8_t)(1 << (b % 8));
    w->n_wanted++;
    if (!w->model_ready || !exists(w, layer, expert)) return;
    if (*state_of(w, layer, expert) == X_NONE) w->n_missing++;
}

static void unwant(cw_worker *w, uint32_t layer, uint32_t expert, cw_outbox *out)
{
    if (!is_wanted(w, layer, expert)) return;
    size_t b = bit_of(layer, expert);
    w->wanted[b / 8] &= (uint8_t) ~(1 << (b % 8));
    w->n_wanted--;
    if (!w->model_ready || !exists(w, layer, expert)) return;
    uint8_t s = *state_of(w, layer, expert);
    if (s == X_NONE) w->n_missing--;
    if (s == X_NO_ROOM || s == X_FAILED) set_state(w, layer, expert, X_NONE);
    if (s == X_READY) {
        set_state(w, layer, expert, X_UNLOADING);
        calls_drop_expert(w, layer, expert, out);
    }
    /* LOADING goes when it has come; UNLOADING is on its way already. */
}

/* Experts that had no room or failed are tried again: memory may have become free, or the operator asked
 * anew. */
static void forgive(cw_worker *w, uint8_t state)
{
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (uint32_t e = 0; e < w->n_experts; e++)
            if (*state_of(w, l, e) == state) {
                set_state(w, l, e, X_NONE);
                w->n_missing++;
            }
}

void holdings_change(cw_worker *w, bool assign, uint64_t seq, Cw__Pb__LayerSet **sets, size_t n,
                     cw_outbox *out)
{
    if (seq > w->seq_seen) w->seq_seen = seq;
    saved_dirty(w);
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = 0; e < 8 * sets[i]->experts.len; e++) {
            if (!(sets[i]->experts.data[e / 8] >> (e % 8) & 1)) continue;
            if (assign)
                want(w, sets[i]->layer, e);
            else
                unwant(w, sets[i]->layer, e, out);
        }
    w->trouble[0] = 0;
    w->holdings_dirty = true;
    if (!w->model_ready) return;
    if (w->n_no_room) forgive(w, X_NO_ROOM);
    if (assign && w->n_failed) forgive(w, X_FAILED);
}

void holdings_forget_missing(cw_worker *w, cw_outbox *out)
{
    for (uint32_t l = 0; l < CW_WIRE_MAX_LAYERS; l++)
        for (uint32_t e = 0; e < CW_WIRE_MAX_EXPERTS; e++) {
            if (!is_wanted(w, l, e)) continue;
            if (!w->model_ready || !exists(w, l, e) || *state_of(w, l, e) != X_READY) unwant(w, l, e, out);
        }
}

void holdings_model(cw_worker *w, cw_outbox *out)
{
    (void)out;
    uint32_t strange = 0;
    for (uint32_t l = 0; l < CW_WIRE_MAX_LAYERS; l++)
        for (uint32_t e = 0; e < CW_WIRE_MAX_EXPERTS; e++) {
            if (!is_wanted(w, l, e)) continue;
            if (exists(w, l, e))
                w->n_missing++;
            else
                strange++;
        }
    if (strange) worker_say(w, "the coordinator asked for %u experts that the model does not have", strange);
    w->holdings_dirty = true;
}

static void load_next(cw_worker *w)
{
    size_t total = (size_t)w->n_layers * w->n_experts;
    for (size_t seen = 0; seen < total && w->n_missing && w->n_loading < LOADS_AT_ONCE; seen++, w->scan++) {
        if (w->scan >= total) w->scan = 0;
        uint32_t l = (uint32_t)(w->scan / w->n_experts), e = (uint32_t)(w->scan % w->n_experts);
        if (w->state[w->scan] != X_NONE || !exists(w, l, e) || !is_wanted(w, l, e)) continue;
        w->n_missing--;
        if (w->memory_used + w->layers[l].packed_bytes > w->c.memory_bytes) {
            set_state(w, l, e, X_NO_ROOM);
            continue;
        }
        set_state(w, l, e, X_LOADING);
        cw_worker_act *a = worker_act(w, CW_WORKER_LOAD);
        a->layer = l;
        a->expert = e;
    }
}

static void unload_next(cw_worker *w)
{
    for (uint32_t l = 0; l < w->n_layers && w->n_unloading; l++)
        for (uint32_t e = 0; e < w->n_experts; e++) {
            if (*state_of(w, l, e) != X_UNLOADING || turns_in_job(w, l, e)) continue;
            set_state(w, l, e, X_NONE);
            if (is_wanted(w, l, e)) w->n_missing++;
            cw_worker_act *a = worker_act(w, CW_WORKER_UNLOAD);
            a->layer = l;
            a->expert = e;
        }
}

void holdings_loaded(cw_worker *w, uint32_t layer, uint32_t expert, bool ok, const char *text, cw_outbox *out)
{
    (void)out;
    CW_ASSERT(exists(w, layer, expert) && *state_of(w, layer, expert) == X_LOADING);
    if (!ok) {
        bool first = !w->n_failed, news = !w->load_backoff.next_us; /* not at every attempt */
        set_state(w, layer, expert, is_wanted(w, layer, expert) ? X_FAILED : X_NONE);
        snprintf(w->trouble, sizeof w->trouble, "%.400s", text);
        if (first && news)
            worker_say(w, "expert %u of layer %u could not be loaded: %.300s", expert, layer, text);
        if (first) w->load_retry_us = w->now_us + cw_backoff_take(&w->load_backoff);
        return;
    }
    if (!w->n_failed) cw_backoff_reset(&w->load_backoff);
    w->loaded++;
    w->loaded_bytes += w->layers[layer].packed_bytes;
    set_state(w, layer, expert, is_wanted(w, layer, expert) ? X_READY : X_UNLOADING);
}

static bool is_settled(const cw_worker *w)
{
    return w->model_ready && !w->n_missing && !w->n_loading && !w->n_unloading;
}

static const char *bytes_text(uint64_t b, char *buf, size_t cap)
{
    double mib = (double)b / 1048576.0;
    if (mib >= 1024)
        snprintf(buf, cap, "%.1f GiB", mib / 1024);
    else
        snprintf(buf, cap, "%.1f MiB", mib);
    return buf;
}

/* The sentence an operator sees when loading has come to rest. */
static void tell_rest(cw_worker *w)
{
    uint64_t need = 0;
    uint32_t all = 0;
    for (uint32_t l = 0; l < w->n_layers; l++)
        if (w->layers[l].packed_bytes) {
            need += w->layers[l].packed_bytes * w->n_experts;
            all += w->n_experts;
        }
    char a[32], b[32], c[32];
    bytes_text(w->c.memory_bytes, a, sizeof a);
    bytes_text(need, b, sizeof b);
    bytes_text(w->memory_used, c, sizeof c);
    if (w->n_no_room)
        snprintf(w->trouble, sizeof w->trouble,
                 "the memory limit of %s has no room for %u of the %u experts asked for", a, w->n_no_room,
                 w->n_wanted);
    if (w->said_ready == w->n_ready + 1) return;
    w->said_ready = w->n_ready + 1;
    if (w->n_ready < all && need > w->c.memory_bytes)
        worker_say(w, "%s of memory is the limit here, all experts need %s: serving %u of %u experts (%s)", a,
                   b, w->n_ready, all, c);
    else
        worker_say(w, "serving %u of %u experts (%s)", w->n_ready, all, c);
}

void holdings_tick(cw_worker *w, cw_outbox *out)
{
    if (!w->model_ready || w->stopping) return;
    if (w->n_unloading) unload_next(w);
    if (w->n_failed && w->now_us >= w->load_retry_us) {
        forgive(w, X_FAILED);
        w->trouble[0] = 0;
    }
    load_next(w);
    if (!w->holdings_dirty) return;
    if (is_settled(w)) {
        if (!w->n_failed && (w->seq_seen || w->took_up)) tell_rest(w);
        w->seq_done = w->seq_seen;
    }
    if (w->co.state == CO_ADMITTED && (is_settled(w) || w->now_us - w->holdings_sent_us >= HOLDINGS_EVERY_US))
        holdings_send(w, out);
}

bool cw_worker_loading(const cw_worker *w, uint64_t *done, uint64_t *total)
{
    *done = *total = 0;
    if (!w->model_ready || (!w->n_missing && !w->n_loading)) return false;
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (uint32_t e = 0; e < w->n_experts; e++) {
            uint8_t s = *state_of(w, l, e);
            bool ready = s == X_READY, coming = s == X_LOADING || (s == X_NONE && is_wanted(w, l, e));
            if (ready) *done += w->layers[l].packed_bytes;
            if (ready || coming) *total += w->layers[l].packed_bytes;
        }
    return true;
}

/* Bits of the READY experts of a layer into bytes; how many bytes are needed. */
static size_t ready_bits(const cw_worker *w, uint32_t layer, uint8_t *bytes)
{
    size_t len = 0;
    for (uint32_t e = 0; e < w->n_experts; e++)
        if (*state_of(w, layer, e) == X_READY) {
            bytes[e / 8] |= (uint8_t)(1 << (e % 8));
            len = e / 8 + 1;
        }
    return len;
}

void holdings_send(cw_worker *w, cw_outbox *out)
{
    size_t bytes_per = (w->n_experts + 7) / 8;
    uint8_t *bits = cw_calloc(w->n_layers, bytes_per);
    Cw__Pb__LayerSet *sets = cw_calloc(w->n_layers, sizeof *sets);
    Cw__Pb__LayerSet **list = cw_calloc(w->n_layers, sizeof *list);
    Cw__Pb__Holdings h = CW__PB__HOLDINGS__INIT;
    if (bits && sets && list) {
        for (uint32_t l = 0; l < w->n_layers; l++) {
            uint8_t *b = bits + l * bytes_per;
            size_t len = ready_bits(w, l, b);
            if (!len) continue;
            cw__pb__layer_set__init(&sets[l]);
            sets[l].layer = l;
            sets[l].experts = (ProtobufCBinaryData){len, b};
            list[h.n_ready++] = &sets[l];
        }
        h.ready = list;
        h.seq = w->seq_done;
        h.memory_used = w->memory_used;
        h.memory_free = w->c.memory_bytes > w->memory_used ? w->c.memory_bytes - w->memory_used : 0;
        h.trouble = w->trouble;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        env.body_case = CW__PB__ENVELOPE__BODY_HOLDINGS, env.holdings = &h;
        cw_send(out, w->co.link, &env, NULL, 0);
        w->holdings_sent_us = w->now_us;
        w->holdings_dirty = false;
    } /* else: out of memory; dirty stays set and the next tick tries again */
    cw_free(bits);
    cw_free(sets);
    cw_free(list);
}
