/* A worker machine with a coordinator and edges played by the test. */
#pragma once
#include "machine_rig.h"
#include "cw/worker_machine.h"

enum { LAYERS = 3, EXPERTS = 8, D = 64, PACKED = 1000 }; /* layer 0 dense, 1: A8 -> f16, 2: f32 -> f32 */

typedef struct {
    rig r;
    cw_worker *w;
    cw_signer *signer;
    cw_key coordinator, edge_a, edge_b;
    uint8_t cluster[CW_CLUSTER_BYTES], digest[CW_DIGEST_BYTES];
    cw_link co; /* the control link in use */
    uint64_t seq;
    cw_job *jobs[8]; /* given out and not computed */
    int n_jobs;
    int stopped; /* -1: not; else the code */
    char said[CW_TEXT_MAX], stop_text[CW_TEXT_MAX];
    int n_loads, n_unloads, n_revoked, n_enrolled, n_get_model;
    int n_sources, n_saves;
    cw_worker_act read; /* the last CW_WORKER_READ */
    bool load_fails, hold_loads;
    uint32_t held[64][2];
    int n_held;
} worker_rig;

void wr_config(worker_rig *x, cw_worker_config *c);
void wr_new(worker_rig *x, const cw_worker_config *c); /* c NULL: wr_config's */
void wr_free(worker_rig *x);
/* Role actions into the rig; loads are answered at once unless load_fails or hold_loads. */
void wr_acts(worker_rig *x);
/* Connect and say hello: out holds HELLO or ENROL. */
void wr_connect(worker_rig *x);
void wr_welcome(worker_rig *x, const cw_key *revoked, size_t n_revoked);
void wr_refusal(worker_rig *x, cw_link link, Cw__Pb__RefusalCode code, uint32_t retry_ms);
void wr_model(worker_rig *x);
/* Experts of a bit mask in a layer. */
void wr_assign(worker_rig *x, bool assign, uint32_t layer, uint8_t mask);
/* All of it: admitted, model known, every expert ready. */
void wr_boot(worker_rig *x, const cw_worker_config *c);
/* A signed epoch with no workers; free with cw_free. */
uint8_t *wr_epoch(worker_rig *x, uint64_t term, uint64_t number, size_t *n);
void wr_epoch_news(worker_rig *x, uint64_t term, uint64_t number);
void wr_hello(worker_rig *x, cw_link link, const cw_key *key, const Cw__Pb__Hello *h);
/* A hello an admitted edge would say; ticket memory is the rig's caller's to free. */
void wr_good_hello(worker_rig *x, Cw__Pb__Hello *h, const cw_key *key, int64_t not_after_ms,
                   uint8_t **ticket);
/* The same with a ticket for so many streams. */
void wr_hello_with(worker_rig *x, Cw__Pb__Hello *h, const cw_key *key, int64_t not_after_ms, uint32_t streams,
                   uint8_t **ticket);
void wr_edge(worker_rig *x, cw_link link, const cw_key *key); /* let in; asserts */
void wr_edge_with(worker_rig *x, cw_link link, const cw_key *key, uint32_t streams);

typedef struct {
    uint64_t id;
    uint32_t layer, n_rows, n_entries, budget_us;
    const cw_entry *entries;
    Cw__Pb__ReplyKind reply;
    Cw__Pb__CallClass klass;
    int8_t seed; /* of the row values */
    uint32_t stream;
} wr_call;
void wr_send_call(worker_rig *x, cw_link link, const wr_call *c);
/* Computes the oldest job with the fake arithmetic below; bad_expert < 0: all rows are fine. */
void wr_compute(worker_rig *x, int bad_expert);
/* What the fake gives for (layer, expert, first value of the row): value of element k. */
float wr_value(uint32_t layer, uint32_t expert, int8_t q0, int k);
