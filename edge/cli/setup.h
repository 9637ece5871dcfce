/*
 * From options to something that answers: which models are loaded, where the experts are, and why. Says on
 * stderr which mode was chosen. One thread.
 */
#pragma once
#include "cli.h"
#include "governed.h"
#include "cw/mainland.h"
#include "cw/talk.h"
#include "printer.h"

enum { CLI_MAX_WORKERS = 256 };

typedef struct {
    cli_mode mode;                 /* never AUTO once open */
    char why[640];                 /* one sentence: how it came to that mode */
    cw_pool *pool, *fallback_pool; /* the fallback follows the conversation while the big model computes */
    cw_speaker *main, *fallback;
    cw_drafter *head; /* the main model's prediction head, where it is to draft */
    cw_mainland *land;
    char *model_path, *fallback_path;
    cw_talk_draft draft;
    int64_t wanted_us; /* when the mainland was last asked for while it was away */
    int64_t looked_us; /* when it was last looked whether experts can be reached again */
    int n_covered;     /* times in a row that all of them could */
    cli_governed governed;
} cli_setup;

/* Loads what the mode needs. Errors are sentences for the user. */
CW_MUST_USE cw_status cli_setup_open(const cli_options *o, cli_setup *out, cw_err *err);
void cli_setup_close(cli_setup *s);
/* Up to CLI_MAX_WORKERS lines; the number written. */
size_t cli_setup_workers(const cli_setup *s, cli_worker_line *lines);
/* What went to workers so far, or NULL without any; until the next call. */
const cw_mainland_counts *cli_setup_counts(const cli_setup *s);
cw_sampler_params cli_sampler_params(const cli_options *o);
/* The mode of the last answer: split or draft, where that is chosen from pass to pass. */
cli_mode cli_setup_mode(const cli_setup *s);
/* Talk options for these speakers and this mode; the sink is the caller's. The setup outlives the talk. */
cw_talk_options cli_talk_options(const cli_options *o, cli_setup *s);

/* Pieces that cli_logits and cli_inspect use too. */

/* The file named with -m, or the demo model. Caller frees. */
CW_MUST_USE cw_status cli_model_path(const cli_options *o, char **out, cw_err *err);
/* The demo model brings its student; any other model only what --fallback names. NULL: none. Caller frees. */
CW_MUST_USE cw_status cli_fallback_path(const cli_options *o, char **out, cw_err *err);
/* What --mtp names, or the demo model's. NULL: what the model's own file holds. Caller frees. */
CW_MUST_USE cw_status cli_head_path(const cli_options *o, char **out, cw_err *err);
/* Does everything fit here? The sentence says why not. */
CW_MUST_USE cw_status cli_check_fits(const cli_options *o, const char *path, cw_err *err);
/* --expert-groups. */
CW_MUST_USE cw_status cli_model_options(const cli_options *o, cw_model_options *out, cw_err *err);
/* --isa, --threads, --chunk; `pool` may be NULL. */
CW_MUST_USE cw_status cli_engine_options(const cli_options *o, cw_engine_role role, cw_pool *pool,
                                         cw_engine_options *out, cw_err *err);
/* --ctx, --kv, --prefill. */
cw_session_options cli_session_options(const cli_options *o);
/* Enters the cluster with --join for an edge engine and gives it the cluster's experts. gives_way: there is a
 * fallback to go on when the cluster is lost. */
CW_MUST_USE cw_status cli_join(const cli_options *o, const cw_gguf *g, cw_engine *e, int wait_ms,
                               bool gives_way, cw_mainland **out, cw_err *err);
