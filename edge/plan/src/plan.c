/* The arithmetic of cw/plan.h. Sizes on the wire follow docs/WIRE.md: frames of a CALL and of a REPLY. */
#include "cw/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    ENTRY_BYTES = 8,
    /* Header, tag and nonce of every frame, and the protocol header: an estimate from the formats, not
       measured. */
    CALL_OVERHEAD = 230,
    REPLY_OVERHEAD = 190,
};

const char *cw_plan_mode_name(cw_plan_mode m)
{
    static const char *const names[] = {"split", "draft", "local", "offline"};
    return names[m];
}

double cw_plan_experts_read(const cw_plan_model *m, double rows)
{
    if (m->n_experts <= 0) return 0;
    double e = m->n_experts;
    return e * (1 - pow(1 - (double)m->n_used / e, rows));
}

static int n_workers(const cw_plan *p)
{
    return p->workers.n > 1 ? p->workers.n : 1;
}

/* Workers that at least one of a row's experts is asked of. */
static double touched(const cw_plan *p, int picks)
{
    double w = n_workers(p);
    return w * (1 - pow(1 - 1 / w, picks));
}

void cw_plan_bytes(const cw_plan *p, int rows, double *out, double *in)
{
    const cw_plan_model *m = &p->model;
    double d = m->d_model, picks = (double)rows * m->n_used;
    double row_out = m->rows_f32 ? 4 * d : d + d / 8, row_in = m->rows_f32 ? 4 * d : 2 * d + 1;
    double calls = touched(p, rows * m->n_used), copies = (double)rows * touched(p, m->n_used);
    *out = m->n_moe_layers * (calls * CALL_OVERHEAD + copies * row_out + picks * ENTRY_BYTES);
    *in = m->n_moe_layers * (calls * REPLY_OVERHEAD + picks * row_in);
}

/* How much longer the busiest of W workers has than the mean, `things` thrown at random: the mean of the
 * largest of W nearly normal numbers is about sqrt(2 ln W) deviations above. */
static double uneven(double things, double w)
{
    if (w <= 1 || things <= 0) return 1;
    double factor = 1 + sqrt(2 * log(w) * (1 - 1 / w) * w / things) * 0.6;
    return factor < w ? factor : w;
}

double cw_plan_layer_us(const cw_plan *p, int rows)
{
    const cw_plan_link *l = &p->link;
    const cw_plan_workers *k = &p->workers;
    double w = n_workers(p), out, in;
    cw_plan_bytes(p, rows, &out, &in);
    double us = l->rtt_us + k->call_us;
    if (l->bytes_per_s > 0 && p->model.n_moe_layers > 0)
        us += (out + in) / p->model.n_moe_layers / l->bytes_per_s * 1e6;
    /* The layer waits for whichever message is held up; two at once are rare and counted as one. */
    double held_us = l->stall_us;
    if (l->hedge_us > 0) held_us = fmin(held_us, fmax(l->hedge_us, 3 * l->rtt_us));
    if (l->stall_share > 0)
        us += held_us * (1 - pow(1 - l->stall_share, 2 * touched(p, rows * p->model.n_used)));
    double experts = cw_plan_experts_read(&p->model, rows), picks = (double)rows * p->model.n_used;
    us += experts / w * uneven(experts, w) * k->expert_us + picks / w * uneven(picks, w) * k->row_us;
    return us;
}

double cw_plan_pass_us(const cw_plan *p, int rows)
{
    return p->machine.edge_us + (rows - 1) * p->machine.edge_row_us +
           p->model.n_moe_layers * cw_plan_layer_us(p, rows);
}

double cw_plan_yield(double a, int n)
{
    return a >= 1 ? n + 1 : (1 - pow(a, n + 1)) / (1 - a);
}

double cw_plan_round_us(const cw_plan *p, int n)
{
    double pass = cw_plan_pass_us(p, 1 + n);
    if (n == 0) return pass;
    double draft = n * p->machine.fallback_us;
    if (p->machine.draft_waits) return pass + draft;
    double away = p->model.n_moe_layers * cw_plan_layer_us(p, 1 + n);
    double all_right = pow(p->machine.acceptance, n);
    return pass + (1 - all_right) * draft + all_right * fmax(0, draft - away);
}

double cw_plan_token_us(const cw_plan *p, int n)
{
    double yield = cw_plan_yield(p->machine.acceptance, n), length = p->machine.answer;
    double round = cw_plan_round_us(p, n);
    if (length <= 0) return round / yield;
    double rounds = length / yield + (1 - 1 / yield) / 2; /* of the last run half is needed */
    return round * (rounds > 1 ? rounds : 1) / length;
}

static int fastest_draft(const cw_plan *p, int max)
{
    int best = 1;
    for (int n = 2; n <= max; n++)
        if (cw_plan_token_us(p, n) < cw_plan_token_us(p, best)) best = n;
    return best;
}

int cw_plan_best_draft(const cw_plan *p, int max)
{
    if (!p->machine.can_draft || p->machine.fallback_us <= 0 || max < 1) return 0;
    int best = fastest_draft(p, max);
    return cw_plan_token_us(p, best) < cw_plan_pass_us(p, 1) ? best : 0;
}

/* What most of a pass's time is. */
static void why_split(const cw_plan *p, char *why, size_t cap)
{
    double layers = p->model.n_moe_layers, pass = cw_plan_pass_us(p, 1), out, in;
    cw_plan_bytes(p, 1, &out, &in);
    double trips = layers * p->link.rtt_us;
    double bytes = p->link.bytes_per_s > 0 ? (out + in) / p->link.bytes_per_s * 1e6 : 0;
    double edge = p->machine.edge_us, rest = pass - trips - bytes - edge;
    if (trips >= bytes && trips >= edge && trips >= rest)
        snprintf(why, cap, "%.0f round trips are %.0f %% of a token's time", layers, 100 * trips / pass);
    else if (bytes >= edge && bytes >= rest)
        snprintf(why, cap, "bandwidth: carrying the rows is %.0f %% of a token's time", 100 * bytes / pass);
    else if (edge >= rest)
        snprintf(why, cap, "this machine's own part is %.0f %% of a token's time", 100 * edge / pass);
    else
        snprintf(why, cap, "%s are %.0f %% of a token's time",
                 p->link.stall_share > 0 ? "workers and stalls" : "the workers and their calls",
                 100 * rest / pass);
}

static void plan_split(const cw_plan *p, cw_plan_line *l)
{
    l->possible = p->model.n_moe_layers > 0 && p->machine.edge_us > 0;
    if (!l->possible) {
        snprintf(l->why, sizeof l->why, "the model has no experts to put on workers");
        return;
    }
    l->token_us = cw_plan_pass_us(p, 1);
    cw_plan_bytes(p, 1, &l->bytes_out, &l->bytes_in);
    why_split(p, l->why, sizeof l->why);
}

static void plan_draft(const cw_plan *p, const cw_plan_line *split, cw_plan_line *l)
{
    const cw_plan_machine *m = &p->machine;
    if (!split->possible)
        snprintf(l->why, sizeof l->why, "%s", split->why);
    else if (m->fallback_us <= 0)
        snprintf(l->why, sizeof l->why, "there is no fallback model to guess");
    else if (!m->can_draft)
        snprintf(l->why, sizeof l->why, "the fallback's vocabulary is another: it can only be the fallback");
    else
        l->possible = true;
    if (!l->possible) return;
    int n = fastest_draft(p, CW_PLAN_DRAFT_MAX);
    double yield = cw_plan_yield(m->acceptance, n);
    l->n_draft = n;
    l->token_us = cw_plan_token_us(p, n);
    cw_plan_bytes(p, 1 + n, &l->bytes_out, &l->bytes_in);
    l->bytes_out /= yield;
    l->bytes_in /= yield;
    double ratio = split->token_us / l->token_us;
    snprintf(l->why, sizeof l->why,
             "%.1f tokens a pass of %d guesses, which takes %.1fx the time of one row and reads %.1fx the "
             "experts: %.2fx split",
             yield, n, cw_plan_round_us(p, n) / split->token_us,
             cw_plan_experts_read(&p->model, 1 + n) / cw_plan_experts_read(&p->model, 1), ratio);
}

void cw_plan_all(const cw_plan *p, cw_plan_line lines[CW_PLAN_N_MODES])
{
    memset(lines, 0, CW_PLAN_N_MODES * sizeof *lines);
    plan_split(p, &lines[CW_PLAN_SPLIT]);
    plan_draft(p, &lines[CW_PLAN_SPLIT], &lines[CW_PLAN_DRAFT]);
    cw_plan_line *local = &lines[CW_PLAN_LOCAL], *offline = &lines[CW_PLAN_OFFLINE];
    local->possible = p->machine.local_us > 0;
    local->token_us = p->machine.local_us;
    snprintf(local->why, sizeof local->why, "%s",
             local->possible ? "every expert is here: no network"
                             : "the experts do not fit into this machine's memory");
    offline->possible = p->machine.fallback_us > 0;
    offline->token_us = p->machine.fallback_us;
    snprintf(offline->why, sizeof offline->why, "%s",
             offline->possible ? "the fallback alone: another, smaller model's text"
                               : "there is no fallback model");
}

cw_plan_mode cw_plan_choose(const cw_plan_line lines[CW_PLAN_N_MODES])
{
    static const cw_plan_mode big[] = {CW_PLAN_LOCAL, CW_PLAN_SPLIT, CW_PLAN_DRAFT};
    cw_plan_mode best = CW_PLAN_OFFLINE;
    for (size_t i = 0; i < sizeof big / sizeof *big; i++)
        if (lines[big[i]].possible &&
            (best == CW_PLAN_OFFLINE || lines[big[i]].token_us < lines[best].token_us))
            best = big[i];
    return best;
}
