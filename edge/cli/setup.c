#include "setup.h"
#include "cw/clock.h"
#include "cw/demo_path.h"
#include "cw/mem.h"
#include "cw/mtp.h"
#include "cw/progress.h"
#include "cw/shadow.h"
#include "cw/signal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LOOK_US = 50000, LOOKS = 3, WANT_US = 1000000 };
enum { WAIT_SPLIT_MS = 30000, WAIT_AUTO_MS = 5000, EXPANDED_ROWS = 1024 };

cw_status cli_model_path(const cli_options *o, char **out, cw_err *err)
{
    if (!o->model) return cw_demo_path(CW_DEMO_MODEL, out, err);
    *out = cw_strdup(o->model);
    return *out ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

cw_status cli_fallback_path(const cli_options *o, char **out, cw_err *err)
{
    if (!o->fallback && !o->model) return cw_demo_path(CW_DEMO_FALLBACK, out, err);
    *out = NULL;
    if (!o->fallback) return CW_OK;
    *out = cw_strdup(o->fallback);
    return *out ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

cw_status cli_head_path(const cli_options *o, char **out, cw_err *err)
{
    if (!o->mtp && !o->model) return cw_demo_path(CW_DEMO_HEAD, out, err);
    *out = NULL;
    if (!o->mtp) return CW_OK;
    *out = cw_strdup(o->mtp);
    return *out ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

cw_status cli_model_options(const cli_options *o, cw_model_options *out, cw_err *err)
{
    *out = (cw_model_options){0};
    if (!o->groups) return CW_OK;
    char rest;
    if (sscanf(o->groups, "%d/%d%c", &out->n_groups, &out->n_groups_used, &rest) != 2 || out->n_groups < 1 ||
        out->n_groups_used < 1)
        return CW_FAIL(err, CW_STATUS_INVALID, "--expert-groups takes two numbers such as 8/4, not '%.40s'",
                       o->groups);
    return CW_OK;
}

static cw_status pick_kernels(const cli_options *o, const cw_kernels **out, cw_err *err)
{
    *out = o->isa == 0 ? cw_kernels_best() : cw_kernels_get((cw_isa)(o->isa - 1));
    if (*out) return CW_OK;
    return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this machine has no %s; leave out --isa",
                   cw_isa_name((cw_isa)(o->isa - 1)));
}

cw_status cli_engine_options(const cli_options *o, cw_engine_role role, cw_pool *pool, cw_engine_options *out,
                             cw_err *err)
{
    *out = (cw_engine_options){
        .role = role, .pool = pool, .n_threads = (int)o->threads, .max_rows = (int)o->chunk};
    /* The keys of a pass are made once for all its rows. */
    if (!out->max_rows && o->prefill_form == CW_PREFILL_EXPANDED) out->max_rows = EXPANDED_ROWS;
    CW_TRY(pick_kernels(o, &out->kernels, err));
    return cli_model_options(o, &out->model, err);
}

cw_session_options cli_session_options(const cli_options *o)
{
    return (cw_session_options){
        .n_ctx = (int)o->ctx, .kv_type = (cw_kv_type)o->kv, .prefill = (cw_prefill)o->prefill_form};
}

/* What is being waited for: a progress bar where bytes are known, else a line when the sentence changes. */
typedef struct {
    cw_progress bar;
    char last[160];
} waiting;

static void say_waiting(void *ctx, const char *text, uint64_t done, uint64_t total)
{
    waiting *w = ctx;
    if (strncmp(w->last, text, sizeof w->last - 1) != 0) {
        cw_progress_end(&w->bar);
        snprintf(w->last, sizeof w->last, "%s", text);
        cw_progress_begin(&w->bar, w->last, total);
        if (total == 0) fprintf(stderr, "causeway: %s\n", text);
    }
    w->bar.total = total;
    if (total) cw_progress_update(&w->bar, done);
}

cw_status cli_join(const cli_options *o, const cw_gguf *g, cw_engine *e, int wait_ms, bool gives_way,
                   cw_mainland **out, cw_err *err)
{
    const cw_model_config *c = cw_engine_config(e);
    if (c->n_experts == 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s has no experts to put on a cluster; use --mode local",
                       c->name);
    waiting w = {.last = ""};
    cw_mainland_options mo = {
        .join = o->join,
        .state_dir = o->state,
        .name = o->name,
        .gguf = g,
        .config = c,
        .shapes = cw_engine_expert_shapes(e),
        .kernels = cw_engine_kernels(e),
        .no_ipc = o->no_ipc,
        .max_rows = cw_engine_max_rows(e),
        .gives_way = gives_way,
        .wait_ms = o->wait > 0 ? (int)(o->wait / 1000) : wait_ms,
        .lost_ms = o->wait > 0 ? (int)(o->wait / 1000) : 0,
        .say = o->quiet ? NULL : say_waiting,
        .say_ctx = &w,
        .cancel = cw_signal_interrupt_flag(),
    };
    cw_mainland *land = NULL;
    cw_status s = cw_mainland_open(&mo, &land, err);
    cw_progress_end(&w.bar);
    if (s != CW_OK) return s;
    cw_engine_set_experts(e, cw_mainland_experts(land));
    *out = land;
    return CW_OK;
}

static cw_status open_speaker(const cli_options *o, cw_pool *pool, const char *path, cw_engine_role role,
                              cw_speaker **out, cw_err *err)
{
    cw_speaker_options so = {.path = path, .progress = !o->quiet};
    CW_TRY(cli_engine_options(o, role, pool, &so.engine, err));
    so.session = cli_session_options(o);
    return cw_speaker_open(&so, out, err);
}

/* Bytes of memory that could be taken without swapping; 0 when the system does not say. */
static uint64_t memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return 0;
    char line[128];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    fclose(f);
    return (uint64_t)kib * 1024;
}

cw_status cli_check_fits(const cli_options *o, const char *path, cw_err *err)
{
    cw_gguf *g = NULL;
    cw_model_facts facts;
    cw_model_options mo;
    CW_TRY(cli_model_options(o, &mo, err));
    CW_TRY(cw_gguf_open(path, &g, err));
    cw_status s = cw_model_describe(g, &mo, &facts, err);
    cw_gguf_close(&g);
    if (s != CW_OK) return s;
    uint64_t need = facts.edge_bytes + facts.expert_bytes, have = memory_available();
    char a[32], b[32];
    if (have && need > have)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "%s needs %s of memory and %s are free", path,
                       cw_bytes_text(need, a, sizeof a), cw_bytes_text(have, b, sizeof b));
    return CW_OK;
}

static cw_status open_split(const cli_options *o, cli_setup *s, int wait_ms, cw_err *err)
{
    s->mode = CLI_MODE_SPLIT;
    CW_TRY(open_speaker(o, s->pool, s->model_path, CW_ENGINE_EDGE, &s->main, err));
    cw_status st = cli_join(o, cw_speaker_file(s->main), cw_speaker_engine(s->main), wait_ms,
                            s->fallback_path != NULL, &s->land, err);
    if (st != CW_OK) cw_speaker_close(&s->main);
    return st;
}

static cw_status open_fallback(const cli_options *o, cli_setup *s, cw_err *err)
{
    if (!s->fallback_path) return CW_OK;
    CW_TRY(cw_pool_new((int)o->threads, &s->fallback_pool, err));
    cw_status st = open_speaker(o, s->fallback_pool, s->fallback_path, CW_ENGINE_LOCAL, &s->fallback, err);
    return st == CW_OK ? st : cw_err_prefix(err, "fallback");
}

/* A head in a large model's own file takes memory like a layer with all its experts, so it is loaded when it
 * is asked for, in one way or the other; the demo model's is small. */
static bool wants_head(const cli_options *o)
{
    return o->drafter == CLI_DRAFTER_MTP || (o->drafter == CLI_DRAFTER_AUTO && (o->mtp || !o->model));
}

static cw_status open_head(const cli_options *o, cli_setup *s, cw_err *err)
{
    if (!wants_head(o)) return CW_OK;
    char *path = NULL;
    cw_sampler_params p = cli_sampler_params(o);
    cw_status st = cli_head_path(o, &path, err);
    /* An installation may leave the demo's companion out. */
    if (st == CW_STATUS_NOT_FOUND && o->drafter == CLI_DRAFTER_AUTO && !o->mtp) return CW_OK;
    if (st == CW_OK) st = cw_mtp_drafter_new(s->main, path, &p, &s->head, err);
    cw_free(path);
    return st == CW_OK ? st : cw_err_prefix(err, "prediction head");
}

/* Nothing can get out of reach here, so a fallback is loaded only where it was asked for. */
static cw_status open_local(const cli_options *o, cli_setup *s, cw_err *err)
{
    s->mode = CLI_MODE_LOCAL;
    CW_TRY(open_speaker(o, s->pool, s->model_path, CW_ENGINE_LOCAL, &s->main, err));
    return o->fallback ? open_fallback(o, s, err) : CW_OK;
}

/* The first that works: the cluster when there is a way to it, all experts here, the fallback alone. */
static cw_status open_auto(const cli_options *o, cli_setup *s, cw_err *err)
{
    cw_err no_split = {0}, no_local = {0};
    if (o->join || cw_mainland_is_stored(o->state, o->name)) {
        if (open_split(o, s, WAIT_AUTO_MS, &no_split) == CW_OK) {
            snprintf(s->why, sizeof s->why, "the cluster answers");
            CW_TRY(open_fallback(o, s, err));
            return open_head(o, s, err);
        }
        if (cw_signal_interrupted()) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
        /* A join string that cannot be right is for the user to mend, not to work around. */
        if (no_split.code == CW_STATUS_FORMAT || no_split.code == CW_STATUS_INVALID ||
            no_split.code == CW_STATUS_NOT_FOUND) {
            *err = no_split;
            return err->code;
        }
    } else {
        snprintf(no_split.text, sizeof no_split.text, "no cluster was named with --join");
    }
    cw_status st = cli_check_fits(o, s->model_path, &no_local);
    if (st == CW_OK) {
        snprintf(s->why, sizeof s->why, "%s; every expert is here", no_split.text);
        return open_local(o, s, err);
    }
    if (st != CW_STATUS_NO_MEMORY || !s->fallback_path) {
        *err = no_local;
        return st;
    }
    s->mode = CLI_MODE_OFFLINE;
    snprintf(s->why, sizeof s->why, "%.300s; %.300s", no_split.text, no_local.text);
    return open_fallback(o, s, err);
}

static cw_status open_offline(const cli_options *o, cli_setup *s, cw_err *err)
{
    s->mode = CLI_MODE_OFFLINE;
    if (!s->fallback_path)
        return CW_FAIL(err, CW_STATUS_INVALID, "--mode offline needs a model that answers: --fallback FILE");
    return open_fallback(o, s, err);
}

static cw_status open_draft(const cli_options *o, cli_setup *s, cw_err *err)
{
    if (!s->fallback_path && !wants_head(o))
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "--mode draft needs a small model that guesses, --fallback FILE, or the model's own "
                       "prediction head, --mtp FILE or --drafter mtp");
    if (o->drafter == CLI_DRAFTER_MTP && o->draft > CW_MTP_MAX)
        return CW_FAIL(err, CW_STATUS_INVALID, "--draft %lld: a prediction head guesses at most %d tokens",
                       (long long)o->draft, CW_MTP_MAX);
    CW_TRY(open_split(o, s, WAIT_SPLIT_MS, err));
    s->mode = CLI_MODE_DRAFT;
    CW_TRY(open_fallback(o, s, err));
    return open_head(o, s, err);
}

static cw_status open_mode(const cli_options *o, cli_setup *s, cw_err *err)
{
    CW_TRY(cw_pool_new((int)o->threads, &s->pool, err));
    cw_pool_settle(s->pool);
    CW_TRY(cli_fallback_path(o, &s->fallback_path, err));
    if (o->mode == CLI_MODE_OFFLINE) return open_offline(o, s, err);
    CW_TRY(cli_model_path(o, &s->model_path, err));
    switch ((cli_mode)o->mode) {
    case CLI_MODE_SPLIT: CW_TRY(open_split(o, s, WAIT_SPLIT_MS, err)); return open_fallback(o, s, err);
    case CLI_MODE_DRAFT: return open_draft(o, s, err);
    case CLI_MODE_LOCAL: return open_local(o, s, err);
    case CLI_MODE_OFFLINE:
    case CLI_MODE_AUTO: break;
    }
    return open_auto(o, s, err);
}

cw_status cli_setup_open(const cli_options *o, cli_setup *out, cw_err *err)
{
    memset(out, 0, sizeof *out);
    cw_status st = open_mode(o, out, err);
    if (st != CW_OK) {
        cli_setup_close(out);
        return st;
    }
    if (!o->quiet) {
        const cw_speaker *who = out->main ? out->main : out->fallback;
        fprintf(stderr, "causeway: mode %s with %s%s%s%s\n", cli_mode_name(out->mode), cw_speaker_name(who),
                *out->why ? " (" : "", out->why, *out->why ? ")" : "");
        if (out->land && out->fallback && o->warm == CLI_WARM_NEVER)
            fprintf(stderr,
                    "causeway: %s does not follow the conversation (--warm never): it reads all of it first "
                    "when it must go on\n",
                    cw_speaker_name(out->fallback));
    }
    return CW_OK;
}

void cli_setup_close(cli_setup *s)
{
    cw_drafter_free(&s->head);
    cw_speaker_close(&s->main);
    cw_speaker_close(&s->fallback);
    cw_mainland_close(&s->land);
    cw_pool_free(&s->pool);
    cw_pool_free(&s->fallback_pool);
    cw_free(s->model_path);
    cw_free(s->fallback_path);
    s->model_path = s->fallback_path = NULL;
}

size_t cli_setup_workers(const cli_setup *s, cli_worker_line *lines)
{
    static cw_mainland_worker list[CLI_MAX_WORKERS];
    if (!s->land) return 0;
    size_t n = cw_mainland_workers(s->land, list, CLI_MAX_WORKERS);
    if (n > CLI_MAX_WORKERS) n = CLI_MAX_WORKERS;
    for (size_t i = 0; i < n; i++) {
        lines[i] = (cli_worker_line){.calls = list[i].calls,
                                     .rows = list[i].rows,
                                     .bytes_out = list[i].bytes_out,
                                     .bytes_in = list[i].bytes_in,
                                     .up = list[i].up};
        snprintf(lines[i].name, sizeof lines[i].name, "%s", list[i].name);
    }
    return n;
}

/*
 * Asked before every token of the fallback. Experts may be out of reach although the mainland is not, because
 * the only worker that had them is gone: so each must have a worker again, three times in a row.
 */
static bool is_back(void *ctx)
{
    cli_setup *s = ctx;
    int64_t now = cw_now_us();
    if (!cw_mainland_is_online(s->land)) {
        s->n_covered = 0;
        if (now - s->wanted_us > WANT_US) {
            cw_mainland_want(s->land);
            s->wanted_us = now;
        }
        return false;
    }
    if (now - s->looked_us < LOOK_US) return false;
    cw_mainland_status st;
    cw_mainland_get_status(s->land, &st);
    s->looked_us = now;
    s->n_covered = st.covered ? s->n_covered + 1 : 0;
    if (s->n_covered < LOOKS) return false;
    s->n_covered = 0;
    return true;
}

const cw_mainland_counts *cli_setup_counts(const cli_setup *s)
{
    static cw_mainland_status st;
    if (!s->land) return NULL;
    cw_mainland_get_status(s->land, &st);
    return &st.n;
}

static bool fallback_can_draft(const cli_options *o, const cli_setup *s)
{
    return o->drafter != CLI_DRAFTER_MTP && s->fallback &&
           cw_tok_same_vocab(cw_speaker_tok(s->main), cw_speaker_tok(s->fallback));
}

cli_mode cli_setup_mode(const cli_setup *s)
{
    const cli_governed *v = &s->governed;
    if (!v->on || s->mode != CLI_MODE_SPLIT) return s->mode;
    return v->n_rounds[1] > v->n_rounds[0] ? CLI_MODE_DRAFT : CLI_MODE_SPLIT;
}

/* Who drafts, and how much. false: nobody. */
static bool choose_draft(const cli_options *o, cli_setup *s)
{
    bool by_fallback = s->main && fallback_can_draft(o, s), chosen = o->mode == CLI_MODE_AUTO;
    if (s->mode != CLI_MODE_DRAFT && !(chosen && s->mode == CLI_MODE_SPLIT && (by_fallback || s->head)))
        return false;
    s->draft = (cw_talk_draft){.max = o->draft ? (int)o->draft : CW_SHADOW_GUESS_MAX};
    if (!by_fallback && !s->head) return true; /* cw_talk_new says why nobody can */
    if (!by_fallback && s->draft.max > s->head->max) s->draft.max = s->head->max;
    /* A number given is a number meant, in mode draft; in mode auto it is the most. */
    if (s->mode == CLI_MODE_DRAFT && o->draft) {
        if (!by_fallback) s->draft.drafter = s->head;
        return true;
    }
    cli_governed_begin(&s->governed, s->main, by_fallback ? s->fallback : NULL, s->head, s->land,
                       s->draft.max, s->mode != CLI_MODE_DRAFT);
    s->draft.length = cli_governed_length;
    s->draft.tell = cli_governed_tell;
    s->draft.ctx = &s->governed;
    s->draft.drafter = s->head;
    if (s->head && by_fallback) s->draft.use_drafter = cli_governed_by_head;
    return true;
}

cw_talk_options cli_talk_options(const cli_options *o, cli_setup *s)
{
    bool drafts = choose_draft(o, s);
    return (cw_talk_options){
        .main = s->main,
        .fallback = s->fallback,
        .experts = s->land && o->warm == CLI_WARM_AUTO ? cw_mainland_experts(s->land) : NULL,
        .draft = drafts ? &s->draft : NULL,
        .is_back = s->land ? is_back : NULL,
        .is_back_ctx = s,
        .sampler = cli_sampler_params(o),
        .max_tokens = (int)o->max_tokens,
        .cancel = cw_signal_interrupt_flag(),
    };
}

cw_sampler_params cli_sampler_params(const cli_options *o)
{
    return (cw_sampler_params){
        .temperature = (float)o->temp,
        .top_k = (int)o->top_k,
        .top_p = (float)o->top_p,
        .min_p = (float)o->min_p,
        .repeat_penalty = (float)o->repeat_penalty,
        .repeat_last_n = (int)o->repeat_last,
        .seed = (uint64_t)o->seed,
    };
}
