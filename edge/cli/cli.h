/*
 * The causeway command: its options and its sub-commands. Every command is a function from options to an exit
 * code and runs in main's thread; signals are installed before it is called.
 */
#pragma once
#include "cw/option.h"

typedef enum { CLI_MODE_AUTO, CLI_MODE_SPLIT, CLI_MODE_OFFLINE, CLI_MODE_LOCAL, CLI_MODE_DRAFT } cli_mode;
typedef enum { CLI_WARM_AUTO, CLI_WARM_NEVER } cli_warm;
typedef enum { CLI_DRAFTER_AUTO, CLI_DRAFTER_FALLBACK, CLI_DRAFTER_MTP } cli_drafter;
typedef enum { CLI_REDO_ASK, CLI_REDO_ALWAYS, CLI_REDO_NEVER } cli_redo;
/* "auto", "split", ... */
const char *cli_mode_name(cli_mode m);

/* One struct for all commands; a row of options.c fills each field. */
typedef struct {
    /* model */
    const char *model, *fallback, *mtp;
    int isa;          /* 0: best, else cw_isa + 1 */
    int kv;           /* cw_kv_type */
    int prefill_form; /* cw_prefill */
    int64_t ctx, threads, chunk;
    const char *groups, *cpus;
    /* mainland */
    const char *join, *state, *name;
    int mode, warm, drafter;
    int64_t wait, draft;
    bool no_ipc;
    /* answer */
    const char *prompt, *system, *session;
    bool raw, json, quiet, digest, verify_offline;
    int redo_offline; /* cli_redo */
    int64_t max_tokens, top_k, seed, repeat_last;
    double temp, top_p, min_p, repeat_penalty;
    /* logits */
    const char *tokens, *after, *out;
    /* perplexity */
    const char *file;
    /* tokenize */
    bool special, decode;
    /* bench */
    const char *prompts, *thread_list, *batch;
    int64_t generate, depth, rounds;
    bool memory, kernels, wire;
    uint64_t memory_size;
    /* plan */
    const char *bandwidth, *memories;
    int64_t rtt, stall, call, n_workers, answer;
    bool replicas;
    double accept, stall_share;
    uint64_t worker_speed;
} cli_options;

extern const cw_program cli_program;

int cli_run(const cli_options *o, const cw_parsed *p);
int cli_chat(const cli_options *o, const cw_parsed *p);
int cli_logits(const cli_options *o, const cw_parsed *p);
int cli_tokenize(const cli_options *o, const cw_parsed *p);
int cli_inspect(const cli_options *o, const cw_parsed *p);
int cli_perplexity(const cli_options *o, const cw_parsed *p);
int cli_plan(const cli_options *o, const cw_parsed *p);
int cli_bench(const cli_options *o, const cw_parsed *p);

/* "causeway: sentence" on stderr; returns 1, or 2 for wrong usage. */
int cli_fail(const cw_err *err);
int cli_usage(const char *sentence);
