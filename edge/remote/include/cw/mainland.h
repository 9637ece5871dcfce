/*
 * The mainland as the engine sees it: a cw_experts whose rows are computed by the cluster's workers.
 *
 * One network thread owns the sockets and the edge machine (cw/edge_machine.h). The engine's thread submits
 * and collects; between them are a bounded queue and a wake-up. After opening, submit and collect allocate
 * nothing in the engine's thread. Everything else here may be called from any thread.
 */
#pragma once
#include "cw/expert_ffn.h"
#include "cw/experts.h"
#include "cw/gguf.h"
#include "cw/model_config.h"

typedef struct cw_mainland cw_mainland;

typedef struct {
    /* How to get in: the join string, "@file", "-"; NULL: the environment, else what an earlier run stored.
     */
    const char *join;
    const char
        *state_dir; /* private directory of this edge: key, ticket, epoch. NULL: the default one for `name` */
    const char *name; /* NULL: the machine's host name */
    /* The model, of which the edge holds everything but routed experts. */
    const cw_gguf *gguf;
    const cw_model_config *config;
    const cw_expert_shape *shapes; /* [config->n_layers], copied */
    const cw_kernels *kernels;     /* for the fingerprint; NULL: the best */
    bool no_ipc;     /* workers on this machine by their addresses too, see cw_net_listen_local */
    int max_rows;    /* of one call of the engine */
    int max_tickets; /* submits before the first collect, 0: 4 */
    int wait_ms;     /* how long opening waits for a home of every expert, 0: 30 000 */
    bool gives_way;  /* a fallback goes on while the mainland is out of reach: calls fail then at once */
    int call_ms;     /* how long one layer may take before the answer fails, 0: 30 000 */
    int lost_ms;     /* how long an answer waits for experts that no worker has any more, 0: 10 000 */
    /* What is being waited for, in words; hashing the model file the first time reports bytes. From the
     * opening thread. */
    void (*say)(void *ctx, const char *text, uint64_t done, uint64_t total);
    void *say_ctx;
    const atomic_bool *cancel; /* NULL, or: gives up opening when it becomes true */
} cw_mainland_options;

/*
 * Enters the cluster (or uses the stored ticket and epoch while the coordinator is away) and waits until
 * every expert has a home whose link is up. Errors are sentences for the user: AUTH and REFUSED (join string,
 * token, revoked key), MISMATCH (the cluster serves another model), UNREACHABLE, TIMEOUT (what is missing),
 * CANCELLED.
 */
CW_MUST_USE cw_status cw_mainland_open(const cw_mainland_options *o, cw_mainland **out, cw_err *err);
/* Whether an earlier run in that directory (or the default one for `name`) was admitted, so that opening
 * needs no join string. Looks at files only; tells nothing of whether the cluster is there. */
bool cw_mainland_is_stored(const char *state_dir, const char *name);
/* Whether an earlier run entered a cluster from that state directory (either may be NULL), so that no join
 * string is needed. */
bool cw_mainland_is_stored(const char *state_dir, const char *name);
/* The experts object must not be in use any more. Says Bye; at most a second. */
void cw_mainland_close(cw_mainland **m);

/* For cw_engine_set_experts; owned by the mainland. Used by one thread at a time. */
cw_experts *cw_mainland_experts(cw_mainland *m);

/* Whether asking makes sense now: false from the moment the mainland was lost until its return has held
 * (cw/tide.h). Never blocks. */
bool cw_mainland_is_online(const cw_mainland *m);

/* Somebody would ask if it were there: its workers are looked for during the next minute (links that nobody
 * wants are closed, and then a return is not noticed). Never blocks. */
void cw_mainland_want(cw_mainland *m);

/* What an answer waits for longer than a second ("waiting for experts of layer 3: worker b is gone"),
 * whenever that changes. From the engine's thread, inside a collect. */
void cw_mainland_on_waiting(cw_mainland *m, void (*tell)(void *ctx, const char *sentence), void *ctx);

/* What the coordinator shows of this edge, with its next heartbeat: tokens since opening, those of the
 * fallback among them, and the mode ("split", "draft", "offline"; "": by whether workers are asked). Never
 * blocks on the network. */
void cw_mainland_tell(cw_mainland *m, uint64_t tokens, uint64_t fallback_tokens, const char *mode);

/* Messages to workers since opening. */
typedef struct {
    uint64_t calls, resent;      /* resent: because a link or a worker was lost */
    uint64_t hedges, hedge_wins; /* sent to a second worker because the first was late; that one was faster */
    uint64_t doubled;            /* sent to a second worker to compare */
    uint64_t compared, mismatches; /* rows that came twice; that differed */
    uint64_t busy, suspects;       /* calls put off; times a worker was found late or hanging */
    uint64_t late;                 /* replies nobody waited for any more */
} cw_mainland_counts;

typedef struct {
    bool admitted, covered;
    uint32_t n_workers, n_up;
    uint64_t epoch_term, epoch_number;
    cw_mainland_counts n;
    char model_name[257];
    char why[512];     /* not covered: a sentence */
    char waiting[512]; /* an answer waits for something: a sentence */
} cw_mainland_status;
void cw_mainland_get_status(cw_mainland *m, cw_mainland_status *out);

typedef struct {
    uint32_t id;
    char name[65], address[256];
    bool up;
    uint64_t calls, rows, bytes_out, bytes_in; /* out: from here to the worker */
    uint32_t rtt_us, service_us;
    uint32_t delay_us;       /* the link's part of a call, there and back; 0: not measured yet */
    uint64_t bytes_per_s;    /* what its link carries; 0: not measured */
    uint64_t service_sum_us; /* all of it: what the worker took for its answers, waiting not counted */
} cw_mainland_worker;
/* Up to max workers into list; the number there are. */
size_t cw_mainland_workers(cw_mainland *m, cw_mainland_worker *list, size_t max);
