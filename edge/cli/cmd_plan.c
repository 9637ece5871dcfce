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
    CALL_US = 120
}; /* of a call's system calls and encryption, both ends, on loopback */

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
                             .stall_us = (double)o->stall};
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
                                   .acceptance = o->accept};
    if (!m->joined) return CW_OK;
    /* What real passes took beyond round trip, bytes and the edge is the workers' part: one row gives what
     * a call costs, five rows what a row does. */
    p->link.rtt_us = m->link.link.rtt_us;
    if (!bits) p->link.bytes_per_s = m->link.link.bytes_per_s;
    p->workers.n = m->link.workers.n;
    p->workers.call_us = 0;
    int layers = p->model.n_moe_layers;
    double rest = (m->one_us - cw_plan_pass_us(p, 1)) / layers;
    if (rest > 0) p->workers.call_us = rest;
    double more = (m->five_us - cw_plan_pass_us(p, 5)) / layers / 4;
    p->workers.row_us += more * p->workers.n / p->model.n_used;
    if (p->workers.row_us < 0) p->workers.row_us = 0;
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
    if (o->join && o->rtt) return cli_usage("--join measures the link, --rtt tells it: give one of them");
    cw_err err = {0};
    char *path = NULL, *fallback = NULL;
    cw_status s = cli_model_path(o, &path, &err);
    if (s == CW_OK) s = cli_fallback_path(o, &fallback, &err);
    if (s == CW_OK) s = plan(o, path, fallback, &err);
    cw_free(path);
    cw_free(fallback);
    return s == CW_OK ? 0 : cli_fail(&err);
}
