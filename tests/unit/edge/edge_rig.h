/* An edge machine with a coordinator and workers played by the test. */
#pragma once
#include "machine_rig.h"
#include "cw/edge_machine.h"

enum {
    LAYERS = 3,
    EXPERTS = 8,
    D = 64,
    WORKERS = 4,
    ROWS_MAX = 600
}; /* layer 0 dense, 1: A8 -> f16, 2: f32 -> f32 */

typedef struct {
    rig r;
    cw_edge *e;
    cw_signer *signer;
    cw_key coordinator, key, worker[WORKERS];
    uint8_t cluster[CW_CLUSTER_BYTES], digest[CW_DIGEST_BYTES];
    cw_link co, link[WORKERS];     /* as opened last */
    uint8_t sets[WORKERS][LAYERS]; /* what the next epoch says */
    float speed[WORKERS];
    int lies[WORKERS];          /* replies with one bit turned, from now on; negative: all, always the same */
    uint32_t queue_us[WORKERS]; /* told in replies */
    uint32_t service_us;        /* [100] */
    bool same_host;             /* of links that come up */
    int n_workers;
    int64_t ticket_ms;              /* life of the next ticket */
    Cw__Pb__CallClass next_class;   /* of the next request */
    uint32_t next_stream, first_id; /* first_id: the epoch's id of worker[0], [1] */
    /* role actions seen */
    int n_done, n_saved, n_enrolled, refused;
    cw_edge_request *done;
    char said[CW_TEXT_MAX], refused_text[CW_TEXT_MAX];
    /* memory of one request */
    cw_edge_request req;
    cw_edge_entry entries[ROWS_MAX * 4];
    int8_t q[ROWS_MAX * D];
    float s[ROWS_MAX * D / 32], x[ROWS_MAX * D];
    uint16_t f16[ROWS_MAX * 4 * D];
    int8_t exp[ROWS_MAX * 4];
    float f32[ROWS_MAX * 4 * D];
} edge_rig;

void er_config(edge_rig *x, cw_edge_config *c);
edge_rig *er_new(const cw_edge_config *c);
void er_free(edge_rig *x);
void er_acts(edge_rig *x);
void er_connect(edge_rig *x);
uint8_t *er_epoch(edge_rig *x, uint64_t term, uint64_t number, size_t *n);
uint8_t *er_ticket(edge_rig *x, size_t *n);
void er_welcome(edge_rig *x, uint64_t term, uint64_t number); /* number 0: without an epoch */
void er_epoch_news(edge_rig *x, uint64_t term, uint64_t number);
/* Takes OPEN actions to workers, and brings those links up. */
void er_workers_up(edge_rig *x);
void er_worker_welcome(edge_rig *x, int w);
/* Coordinator and n workers that hold everything; all links up. */
edge_rig *er_boot(int n_workers, const cw_edge_config *c);
/* A request of n_rows rows; row i asks for the experts in mask. */
void er_submit(edge_rig *x, uint32_t layer, uint32_t n_rows, uint8_t mask);
/* The nth unanswered call to worker w in the outbox, or NULL. */
cw_action *er_call(edge_rig *x, int w, int nth);
/* Answers that call (its action is consumed); id 0: the call's own. */
void er_reply(edge_rig *x, int w, cw_action *call);
void er_fail(edge_rig *x, int w, uint64_t id, Cw__Pb__FailCode code, uint32_t layer, uint32_t expert,
             const uint8_t *epoch, size_t n);
/* Answers calls of all workers until there are none. */
void er_answer_all(edge_rig *x);
float er_value(uint32_t layer, uint32_t expert, int8_t q0, int k);
/* Whether all of the request's rows are what the fake gives. */
void er_check_rows(edge_rig *x);
