#include "governed.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "setup.h"

#include <math.h>
#include <string.h>

enum {
    GUESSED_RTT_US = 500,  /* nothing was measured yet */
    GUESSED_CALL_US = 120, /* of a call beside all else */
    OTHER_US = 1500,       /* by which the round trip of another link differs */
};
static const double memory_bytes_us = 8e3; /* a core reads 8 GB/s: for shapes, not for figures */
static const double guessed_acceptance[CW_N_GUESSERS] = {0.75, 0.85};
static const double head_part = 0.3; /* of a head's weights, that one row reads: few of its experts */

cw_plan_model cli_plan_model(const cw_model_config *c, const cw_expert_shape *shapes)
{
    int moe = c->n_experts ? c->n_layers - c->n_dense : 0;
    cw_plan_model m = {
        .n_moe_layers = moe, .n_experts = c->n_experts, .n_used = c->n_used, .d_model = c->d_model};
    if (moe && shapes) m.rows_f32 = cw_expert_reply_kind(&shapes[c->n_dense]) != CW_REPLY_ROWS_F16;
    return m;
}

bool cli_plan_link(cw_mainland *land, cw_plan *p)
{
    static cw_mainland_worker list[CLI_MAX_WORKERS];
    size_t n = cw_mainland_workers(land, list, CLI_MAX_WORKERS);
    if (n > CLI_MAX_WORKERS) n = CLI_MAX_WORKERS;
    double rtt = 0, bytes = 0;
    int up = 0, measured = 0;
    for (size_t i = 0; i < n; i++) {
        if (!list[i].up) continue;
        up++;
        double delay = list[i].delay_us ? list[i].delay_us : list[i].rtt_us;
        if (delay > rtt) rtt = delay; /* a layer waits for the farthest */
        if (list[i].bytes_per_s) bytes += (double)list[i].bytes_per_s, measured++;
    }
    p->workers.n = up ? up : 1;
    p->link.rtt_us = rtt > 0 ? rtt : GUESSED_RTT_US;
    p->link.bytes_per_s = measured && measured == up ? bytes : 0;
    return rtt > 0;
}

/* What is known of a guesser before it guessed. */
static void add_guesser(cli_governed *v, cw_guesser who, const cw_plan *common, double guess_us, int max,
                        bool may_rest)
{
    cw_plan p = *common;
    p.machine.fallback_us = guess_us;
    p.machine.acceptance = guessed_acceptance[who];
    p.machine.draft_waits = who == CW_BY_HEAD;
    cw_guessers_add(&v->who, who, &p, max, may_rest);
}

void cli_governed_begin(cli_governed *v, cw_speaker *main, cw_speaker *fallback, const cw_drafter *head,
                        cw_mainland *land, int max, bool may_rest)
{
    memset(v, 0, sizeof *v);
    const cw_model_config *c = cw_engine_config(cw_speaker_engine(main));
    cw_plan p = {.model = cli_plan_model(c, cw_engine_expert_shapes(cw_speaker_engine(main)))};
    double expert_bytes = 3.0 * c->d_model * c->d_expert * 0.7;
    p.workers = (cw_plan_workers){.n = 1,
                                  .call_us = GUESSED_CALL_US,
                                  .expert_us = expert_bytes / memory_bytes_us,
                                  .row_us = expert_bytes / memory_bytes_us / 3};
    double edge = (double)cw_engine_weight_bytes(cw_speaker_engine(main)) / memory_bytes_us;
    p.machine = (cw_plan_machine){.edge_us = edge, .edge_row_us = edge / 4, .can_draft = true};
    (void)cli_plan_link(land, &p);
    cw_guessers_init(&v->who);
    if (fallback)
        add_guesser(v, CW_BY_FALLBACK, &p,
                    (double)cw_engine_weight_bytes(cw_speaker_engine(fallback)) / memory_bytes_us + 50, max,
                    may_rest);
    if (head)
        add_guesser(v, CW_BY_HEAD, &p, head_part * (double)cw_mtp_drafter_bytes(head) / memory_bytes_us + 50,
                    max < head->max ? max : head->max, may_rest);
    v->on = true;
}

const cw_governor *cli_governed_governor(const cli_governed *v)
{
    return v->on ? cw_guessers_governor(&v->who) : NULL;
}

void cli_governed_look(cli_governed *v, cw_mainland *land)
{
    v->n_rounds[0] = v->n_rounds[1] = v->n_by_head = 0;
    if (!v->on || cw_guessers_governor(&v->who)->n_rounds == 0) return;
    const cw_plan *before = &v->who.plan[v->who.now];
    cw_plan now = *before;
    if (!cli_plan_link(land, &now)) return;
    double rtt = now.link.rtt_us / before->link.rtt_us, more = fabs(now.link.rtt_us - before->link.rtt_us);
    /* A fraction of a millisecond is the machine's mood, and found by the rounds themselves. */
    bool other = more > OTHER_US && (rtt > 1.3 || rtt < 1 / 1.3);
    if (!other && now.workers.n == before->workers.n) return;
    cw_guessers_link(&v->who, &now.link, &now.workers);
}

int cli_governed_length(void *ctx)
{
    cli_governed *v = ctx;
    v->asked_us = cw_now_us();
    return cw_guessers_length(&v->who);
}

bool cli_governed_by_head(void *ctx)
{
    return ((const cli_governed *)ctx)->who.now == CW_BY_HEAD;
}

void cli_governed_tell(void *ctx, int n_drafted, int n_accepted, int64_t pass_us)
{
    cli_governed *v = ctx;
    int64_t us =
        cw_now_us() - v->asked_us; /* from asking how many guesses: the wait for them, and the pass */
    v->n_rounds[n_drafted > 0]++;
    v->n_by_head += n_drafted > 0 && v->who.now == CW_BY_HEAD;
    cw_guessers_tell(&v->who, n_drafted, n_accepted, us - pass_us, pass_us);
}
