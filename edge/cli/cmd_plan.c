/* causeway plan: what every mode would give on a link, and whether the model fits. */
#include "cw/json.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "plan_measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_WORKERS = 4096,
    HEDGE_US = 75000, /* as measured: p99 of what a worker takes, which stalls have lengthened */
    NEAR_US = 500,    /* a round trip that is no distance */
};

/* A number with K, M, G or T behind it, in units of `step`. false: it is none. */
static bool parse_amount(const char **text, double step, double *out)
{
    char *end;
    double v = strtod(*text, &end);
    if (end == *text || !(v > 0) || v > 1e15) return false;
    static const char units[] = "KMGT";
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (unit) {
        v *= pow(step, (double)(unit - units + 1));
        end++;
    }
    *out = v;
    *text = end;
    return v < 1e18;
}

static cw_status read_memories(const char *text, uint64_t *list, size_t *n, cw_err *err)
{
    *n = 0;
    while (text && *text) {
        double v;
        if (*n == MAX_WORKERS || !parse_amount(&text, 1024, &v) || (*text && *text++ != ','))
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "--memory takes sizes with commas between, such as 64G,64G,32G");
        list[(*n)++] = (uint64_t)v;
    }
    return CW_OK;
}

/* What a row costs more than planned: the slope through the pass of one row that misses the others by least,
 * all of the same weight. */
static double row_miss(const cli_measured *m, const cw_plan *p)
{
    double sum = 0, square = 0;
    for (int i = 1; i < CLI_MEASURED; i++) {
        double part = (cli_measured_rows[i] - 1) / m->pass_us[i];
        sum += (m->pass_us[i] - cw_plan_pass_us(p, cli_measured_rows[i])) / m->pass_us[i] * part;
        square += part * part;
    }
    return sum / square / p->model.n_moe_layers * p->workers.n / p->model.n_used;
}

/* What the pass of one row took beyond round trip, bytes and the edge is what calls cost. */
static void fit_first(const cli_measured *m, cw_plan *p)
{
    double rest = p->workers.call_us + (m->pass_us[0] - cw_plan_pass_us(p, 1)) / p->model.n_moe_layers;
    p->workers.call_us = rest > 0 ? rest : 0;
    /* A round trip that is longer than the passes that hold it was measured at a bad moment. */
    if (rest < 0) p->link.rtt_us = p->link.rtt_us + rest > 0 ? p->link.rtt_us + rest : 0;
    /* So was this machine's own part, where it is longer than a whole pass. */
    double more = cw_plan_pass_us(p, 1) - m->pass_us[0];
    if (more > 0) p->machine.edge_us = fmax(p->machine.edge_us - more, p->machine.edge_us / 20);
}

/* More rows tell what a row costs. */
static void fit_workers(const cli_measured *m, cw_plan *p)
{
    const cw_plan_link told = p->link;
    p->link = (cw_plan_link){.rtt_us = m->link.link.rtt_us, .bytes_per_s = m->link.link.bytes_per_s};
    p->workers.n = m->link.workers.n;
    const cw_plan start = *p;
    fit_first(m, p);
    p->workers.row_us += row_miss(m, p);
    if (p->workers.row_us < 0 && p->link.bytes_per_s > 0) {
        /* Rows that are faster than the bandwidth: it was measured on links that nothing filled. */
        *p = start;
        p->link.bytes_per_s = 0;
        fit_first(m, p);
        p->workers.row_us += row_miss(m, p);
    }
    if (p->workers.row_us < 0) p->workers.row_us = 0;
    fit_first(m, p); /* one row is a row too */
    p->link.stall_share = told.stall_share, p->link.stall_us = told.stall_us;
    p->link.hedge_us = told.hedge_us;
}

static cw_status make_plan(const cli_options *o, const cli_measured *m, size_t n_memories, cw_plan *p,
                           cw_err *err)
{
    *p = (cw_plan){.model = m->model};
    const char *text = o->bandwidth;
    double bits = 0;
    if (text && (!parse_amount(&text, 1000, &bits) || *text))
        return CW_FAIL(err, CW_STATUS_INVALID, "--bandwidth takes bits a second, such as 100M or 1G");
    p->link = (cw_plan_link){.rtt_us = (double)o->rtt,
                             .bytes_per_s = bits / 8,
                             .stall_share = o->stall_share,
                             .stall_us = (double)o->stall,
                             .hedge_us = o->replicas ? HEDGE_US : 0};
    double bytes = (double)m->facts.one_expert_bytes, read_us = bytes / (double)o->worker_speed * 1e6;
    p->workers = (cw_plan_workers){.n = o->n_workers ? (int)o->n_workers
                                        : n_memories ? (int)n_memories
                                                     : 2,
                                   .call_us = (double)o->call,
                                   .expert_us = read_us,
                                   .row_us = read_us / 3};
    p->machine = (cw_plan_machine){.edge_us = m->edge_us,
                                   .edge_row_us = m->edge_row_us,
                                   .fallback_us = m->fallback_us,
                                   .local_us = m->local_us,
                                   .can_draft = m->can_draft,
                                   .answer = (double)o->answer,
                                   .acceptance = o->accept};
    if (m->joined) fit_workers(m, p);
    if (o->rtt) {
        /* A ping does not see what programs at both ends take to wake up; near workers' round trip is that.
         */
        if (m->joined && p->link.rtt_us < NEAR_US) p->workers.call_us += p->link.rtt_us;
        p->link.rtt_us = (double)o->rtt;
    }
    if (bits > 0) p->link.bytes_per_s = bits / 8;
    return CW_OK;
}

static void print_text(const cw_plan *p, const cw_plan_line *l, const cli_measured *m, const cw_fit *fit)
{
    char a[32], b[32];
    printf("%s over a link of %.2f ms round trip", m->facts.config.name, p->link.rtt_us / 1e3);
    if (p->link.bytes_per_s > 0) printf(" and %.4g Mbit/s", p->link.bytes_per_s * 8 / 1e6);
    if (p->link.stall_share > 0)
        printf(", %.3g %% of messages stalled for %.0f ms", p->link.stall_share * 100,
               p->link.stall_us / 1e3);
    printf(", %d worker%s; %s\n", p->workers.n, p->workers.n == 1 ? "" : "s",
           m->joined ? "measured through the cluster" : "workers' speed assumed, this machine's measured");
    printf("%d layers with %d experts of which %d are used; pass here %.2f ms, a row more %.2f ms",
           p->model.n_moe_layers, p->model.n_experts, p->model.n_used, p->machine.edge_us / 1e3,
           p->machine.edge_row_us / 1e3);
    if (p->machine.fallback_us > 0) printf("; a token of the fallback %.2f ms", p->machine.fallback_us / 1e3);
    printf("\n\n%-10s %10s %12s %12s  %s\n", "mode", "tokens/s", "out a token", "in a token", "why");
    cw_plan_mode best = cw_plan_choose(l);
    for (int i = 0; i < CW_PLAN_N_MODES; i++) {
        char name[24];
        snprintf(name, sizeof name, "%s", cw_plan_mode_name(i));
        if (l[i].n_draft) snprintf(name, sizeof name, "%s %d", cw_plan_mode_name(i), l[i].n_draft);
        if (!l[i].possible) {
            printf("%-10s %10s %12s %12s  %s\n", name, "-", "-", "-", l[i].why);
            continue;
        }
        printf("%-10s %10.2f %12s %12s  %s%s\n", name, 1e6 / l[i].token_us,
               cw_bytes_text((uint64_t)l[i].bytes_out, a, sizeof a),
               cw_bytes_text((uint64_t)l[i].bytes_in, b, sizeof b), l[i].why,
               i == (int)best ? "  <- best" : "");
    }
    if (fit)
        printf("\nmemory      %s lent, %s needed for one home of every expert: %s\n            %s\n",
               cw_bytes_text(fit->have_bytes, a, sizeof a), cw_bytes_text(fit->need_bytes, b, sizeof b),
               fit->fits ? "it fits" : "it does not fit", fit->why);
}

/* Every length of drafts, and what the passes through the cluster took. */
static void json_drafts(cw_json *j, const cw_plan *p, const cli_measured *m)
{
    cw_json_key(j, "drafts");
    cw_json_array(j);
    for (int n = 1; p->machine.can_draft && n <= CW_PLAN_DRAFT_MAX; n++) {
        cw_json_object(j);
        cw_json_kint(j, "draft", n);
        cw_json_kfixed(j, "round_us", cw_plan_round_us(p, n), 1);
        cw_json_kfixed(j, "tokens_per_second", 1e6 / cw_plan_token_us(p, n), 3);
        cw_json_end(j);
    }
    cw_json_end(j);
    cw_json_key(j, "passes");
    cw_json_array(j);
    for (int i = 0; m->joined && i < CLI_MEASURED; i++) {
        cw_json_object(j);
        cw_json_kint(j, "rows", cli_measured_rows[i]);
        cw_json_kfixed(j, "us", m->pass_us[i], 1);
        cw_json_end(j);
    }
    cw_json_end(j);
}

static void json_modes(cw_json *j, const cw_plan_line *l)
{
    cw_json_key(j, "modes");
    cw_json_array(j);
    for (int i = 0; i < CW_PLAN_N_MODES; i++) {
        cw_json_object(j);
        cw_json_kstr(j, "mode", cw_plan_mode_name(i));
        cw_json_kbool(j, "possible", l[i].possible);
        if (l[i].possible) {
            cw_json_kfixed(j, "tokens_per_second", 1e6 / l[i].token_us, 3);
            cw_json_kfixed(j, "bytes_out", l[i].bytes_out, 0);
            cw_json_kfixed(j, "bytes_in", l[i].bytes_in, 0);
            if (l[i].n_draft) cw_json_kint(j, "draft", l[i].n_draft);
        }
        cw_json_kstr(j, "why", l[i].why);
        cw_json_end(j);
    }
    cw_json_end(j);
}

static void print_json(const cw_plan *p, const cw_plan_line *l, const cli_measured *m, const cw_fit *fit)
{
    cw_json j;
    cw_json_to_file(&j, stdout);
    cw_json_object(&j);
    cw_json_kstr(&j, "model", m->facts.config.name);
    cw_json_kstr(&j, "best", cw_plan_mode_name(cw_plan_choose(l)));
    cw_json_kbool(&j, "measured_through_cluster", m->joined);
    cw_json_kfixed(&j, "rtt_ms", p->link.rtt_us / 1e3, 3);
    cw_json_kfixed(&j, "bytes_per_s", p->link.bytes_per_s, 0);
    cw_json_kint(&j, "workers", p->workers.n);
    cw_json_kfixed(&j, "call_us", p->workers.call_us, 1);
    cw_json_kfixed(&j, "expert_us", p->workers.expert_us, 1);
    cw_json_kfixed(&j, "row_us", p->workers.row_us, 1);
    cw_json_kfixed(&j, "edge_us", p->machine.edge_us, 1);
    cw_json_kfixed(&j, "edge_row_us", p->machine.edge_row_us, 1);
    cw_json_kfixed(&j, "fallback_us", p->machine.fallback_us, 1);
    cw_json_kbool(&j, "can_draft", p->machine.can_draft);
    cw_json_kfixed(&j, "acceptance", p->machine.acceptance, 4);
    json_modes(&j, l);
    json_drafts(&j, p, m);
    if (fit) {
        cw_json_key(&j, "memory");
        cw_json_object(&j);
        cw_json_kbool(&j, "fits", fit->fits);
        cw_json_kuint(&j, "have_bytes", fit->have_bytes);
        cw_json_kuint(&j, "need_bytes", fit->need_bytes);
        cw_json_kfixed(&j, "homes", fit->homes, 3);
        cw_json_kbool(&j, "survives_one", fit->survives_one);
        cw_json_kstr(&j, "why", fit->why);
        cw_json_end(&j);
    }
    cw_json_end(&j);
    (void)cw_json_done(&j);
}

static cw_status plan(const cli_options *o, const char *path, const char *fallback, cw_err *err)
{
    static uint64_t memories[MAX_WORKERS];
    size_t n = 0;
    cli_measured m;
    cw_plan p;
    cw_plan_line lines[CW_PLAN_N_MODES];
    cw_fit fit;
    CW_TRY(read_memories(o->memories, memories, &n, err));
    CW_TRY(cli_plan_measure(o, path, fallback, &m, err));
    CW_TRY(make_plan(o, &m, n, &p, err));
    cw_plan_all(&p, lines);
    cw_fit_model fm = {.layers = (uint64_t)m.model.n_moe_layers,
                       .experts = (uint64_t)m.model.n_experts,
                       .expert_bytes = m.facts.one_expert_bytes};
    cw_plan_fit(&fm, memories, n, &fit);
    (o->json ? print_json : print_text)(&p, lines, &m, n ? &fit : NULL);
    if (fflush(stdout) != 0 || ferror(stdout))
        return CW_FAIL(err, CW_STATUS_IO, "standard output could not be written");
    return CW_OK;
}

int cli_plan(const cli_options *o, const cw_parsed *parsed)
{
    (void)parsed;
    cw_err err = {0};
    char *path = NULL, *fallback = NULL;
    cw_status s = cli_model_path(o, &path, &err);
    if (s == CW_OK) s = cli_fallback_path(o, &fallback, &err);
    if (s == CW_OK) s = plan(o, path, fallback, &err);
    cw_free(path);
    cw_free(fallback);
    return s == CW_OK ? 0 : cli_fail(&err);
}
