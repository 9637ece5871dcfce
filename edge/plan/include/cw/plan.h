/*
 * What an answer costs in each mode: seconds and bytes a token, from facts about the model, the link, the
 * workers and this machine. Pure functions; no clock, no network. `causeway plan` prints them, the governor
 * (cw/governor.h) begins with them.
 *
 * The model of time. A pass of m rows goes through the layers one after the other; each layer with experts is
 * one round trip, on which rows go out and expert rows come back:
 *
 *     layer(m) = rtt + stalls + bytes / bandwidth + call + experts_read(m) * expert + m * k * row
 *     pass(m)  = edge + (m - 1) * edge_row + moe_layers * layer(m)
 *
 * A row chooses k of E experts, m rows together E(1-(1-k/E)^m) different ones, so verifying a draft reads
 * more weights than a token alone. W workers share a layer; the slowest takes longer than its part, and that
 * is counted as if rows were thrown at random (`uneven` below).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CW_PLAN_DRAFT_MAX = 32 };

typedef struct {
    int n_moe_layers, n_experts, n_used, d_model;
    bool rows_f32; /* experts of floats: rows travel as f32 both ways */
} cw_plan_model;

typedef struct {
    double rtt_us;
    double bytes_per_s; /* of this machine's way to all workers together; 0: no limit */
    double stall_share; /* of messages that are held up, and for how long */
    double stall_us;
    double hedge_us; /* after that, or three round trips, a replica is asked instead; 0: there is none */
} cw_plan_link;

typedef struct {
    int n;            /* that share the experts of a layer, at least 1 */
    double call_us;   /* what a layer's call costs beside the rest: both ends' system calls, encryption */
    double expert_us; /* to read the weights of one expert */
    double row_us;    /* to compute one row of one expert, beside reading */
} cw_plan_workers;

/* Times of this machine; 0: unknown or not possible. */
typedef struct {
    double edge_us, edge_row_us; /* a pass of one row without experts; each further row */
    double fallback_us;          /* a token of the small model */
    double local_us;             /* a token with every expert here */
    bool can_draft;              /* the small model shares the vocabulary */
    double answer;               /* tokens of a usual one, whose end cuts the last run short; 0: endless */
    double acceptance;           /* of a drafted token when all before it were right, 0..1 */
    bool draft_waits;            /* guesses are made between passes, nothing hides their time */
} cw_plan_machine;

typedef struct {
    cw_plan_model model;
    cw_plan_link link;
    cw_plan_workers workers;
    cw_plan_machine machine;
} cw_plan;

/* Different experts that m rows choose in one layer. */
double cw_plan_experts_read(const cw_plan_model *m, double rows);
/* Bytes out and back of one pass of `rows` rows. */
void cw_plan_bytes(const cw_plan *p, int rows, double *out, double *in);
/* Microseconds of one layer with experts, and of a whole pass. */
double cw_plan_layer_us(const cw_plan *p, int rows);
double cw_plan_pass_us(const cw_plan *p, int rows);
/* Tokens that a pass behind n drafted tokens yields: 1 + a + ... + a^n. */
double cw_plan_yield(double acceptance, int n);
/*
 * Microseconds of a round: the pass and what of the drafting is not hidden behind it. The next run is drafted
 * while this one is verified; when a guess was wrong it is drafted anew with nothing to hide behind.
 */
double cw_plan_round_us(const cw_plan *p, int n_draft);
/* Microseconds of a token of an answer drafted like that. */
double cw_plan_token_us(const cw_plan *p, int n_draft);
/* The n of 1..max with the most tokens a second; 0: none is better than no draft. */
int cw_plan_best_draft(const cw_plan *p, int max);

typedef enum { CW_PLAN_SPLIT, CW_PLAN_DRAFT, CW_PLAN_LOCAL, CW_PLAN_OFFLINE, CW_PLAN_N_MODES } cw_plan_mode;
const char *cw_plan_mode_name(cw_plan_mode m);

typedef struct {
    bool possible;
    double token_us;
    double bytes_out, bytes_in; /* a token */
    int n_draft;                /* of mode draft */
    char why[160];              /* what bounds it, or why it is not possible */
} cw_plan_line;

/* One line for each mode; draft with the best n, also where split is better. */
void cw_plan_all(const cw_plan *p, cw_plan_line lines[CW_PLAN_N_MODES]);
/* The fastest of those in which the big model answers (split, draft, local); offline only where none is
 * possible, for its text is another. */
cw_plan_mode cw_plan_choose(const cw_plan_line lines[CW_PLAN_N_MODES]);

/* --- does it fit? --- */

typedef struct {
    uint64_t layers, experts, expert_bytes; /* MoE layers, experts of one layer, bytes of one */
    uint64_t edge_bytes;
} cw_fit_model;

typedef struct {
    bool fits;
    uint64_t have_bytes, need_bytes; /* of experts; what the workers lend, what one home of each needs */
    uint64_t held;                   /* experts that find a home */
    double homes;                    /* of an expert on average */
    bool survives_one;               /* any one worker may go and every expert still has a home */
    char why[200];
} cw_fit;

/* Experts over workers of these memories, as many homes as fit; an expert has at most one home a worker. */
void cw_plan_fit(const cw_fit_model *m, const uint64_t *memory, size_t n_workers, cw_fit *out);
