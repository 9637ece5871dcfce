/*
 * The simulator's kernel: processes, a clock and a network that exist only in memory, for the real machines
 * of a whole cluster in one thread.
 *
 * The network behaves as libzmq over TCP does, and no better: messages of one connection arrive in order; at
 * a cut any suffix in flight is lost, in each direction its own; a hole in one direction holds messages back
 * and kills the connection when it outlasts the heartbeats; a full queue ends the connection; a new
 * connection is a new link on both sides; a process that was paused wakes with its old queues, and learns
 * afterwards that its peers have left. Every message is encoded, decoded and checked, and every connection
 * held to the legal sequences (cw/gate.h), as in the net room.
 *
 * Everything that happens follows from the seed.
 */
#pragma once
#include "cw/gate.h"
#include "cw/machine.h"

enum { SIM_MAX_PROCS = 1100 };
#define SIM_MS INT64_C(1000)
#define SIM_S  INT64_C(1000000)
enum { SIM_HEARTBEATS_US = 6000000, SIM_CONNECT_US = 2000000, SIM_QUEUE_MESSAGES = 256 };

typedef struct sim sim;

sim *sim_new(uint64_t seed, bool trace);
void sim_free(sim *s);
/* Every message takes between these, if nothing is slow; [100 us, 1 ms]. */
void sim_set_latency(sim *s, int64_t least_us, int64_t most_us);
/* Cuts and deaths lose nothing that is on its way, and are noticed at once: for scripts, where a run is to be
 * compared with another world's. */
void sim_set_calm(sim *s);
int64_t sim_now(const sim *s);
/* This process's own clock, which its machine is told: behind sim_now by what it slept through. */
int64_t sim_clock(const sim *s, int proc);
int64_t sim_wall(const sim *s, int proc); /* this process's wall clock */
uint64_t sim_random(sim *s);
uint32_t sim_below(sim *s, uint32_t n); /* n > 0 */
bool sim_chance(sim *s, uint32_t percent);

/* ---- processes
 * ---------------------------------------------------------------------------------------------- */

/* `event` is the machine's; `after` carries out what the machine asks of its own process, and may fill the
 * outbox too. Both are given the context of the present incarnation. */
typedef struct {
    char name[16];
    cw_side side;
    cw_key key;
    void (*event)(void *ctx, cw_event *ev, cw_outbox *out);
    void (*after)(void *ctx, cw_outbox *out);
    bool hostile; /* others may blame it */
} sim_proc;

int sim_add(sim *s, const sim_proc *p);
/* Begins an incarnation that listens at `address` (NULL: nowhere; a second one is the store). */
void sim_start(sim *s, int proc, void *ctx, const char *address, cw_port port);
/* Ends it: connections break, timers are forgotten. The context is the caller's to free. */
void sim_kill(sim *s, int proc);
bool sim_is_up(const sim *s, int proc);
bool sim_is_paused(const sim *s, int proc);
/* From within event or after: what is in the outbox is thrown away and the process dies at once. */
void sim_die_now(sim *s, int proc);
/* `fn` in the process, after `delay`, unless it has died; paused processes do it when they wake. */
void sim_after(sim *s, int proc, int64_t delay_us, void (*fn)(void *ctx, void *arg, cw_outbox *out),
               void *arg);
/* The same outside of any process. */
void sim_at(sim *s, int64_t at_us, void (*fn)(void *ctx, void *arg), void *ctx, void *arg);

/* ---- faults
 * ------------------------------------------------------------------------------------------------- */

/* Cuts all connections between two processes. */
void sim_cut(sim *s, int a, int b);
/* Nothing from a reaches b for so long; longer ones replace shorter ones. */
void sim_hole(sim *s, int from, int to, int64_t us);
void sim_pause(sim *s, int proc, int64_t us);
/* A pause of the whole computer. Its clock goes on meanwhile (CLOCK_BOOTTIME), or stands still. */
void sim_sleep(sim *s, int proc, int64_t us, bool clock_stops);
/* Ends a pause or sleep now. */
void sim_wake(sim *s, int proc);
/* What leaves (out) or would reach (in) `proc` does not arrive, for `us`: holes to everybody at once. */
void sim_dark(sim *s, int proc, bool out, bool in, int64_t us);
/* Its network is gone and it knows: all its connections are cut, and new ones fail at once, for `us`; 0: cut
 * only. */
void sim_unplug(sim *s, int proc, int64_t us);
/* Everything that leaves `proc` takes `extra_us` longer and `us_per_kb` a KiB, for `us`. */
void sim_slow(sim *s, int proc, int64_t extra_us, int64_t us_per_kb, int64_t us);
void sim_jump_wall(sim *s, int proc, int64_t ms);
/* Queues of what `proc` sends hold only so many messages, for `us`. */
void sim_narrow(sim *s, int proc, uint32_t messages, int64_t us);

/* ---- running
 * ------------------------------------------------------------------------------------------------ */

/* Who sees everything. Any of them may be NULL. */
typedef struct {
    void *ctx;
    /* After everything that happened in a process. */
    void (*step)(void *ctx, int proc);
    /* A message leaves a process, or is about to be given to one. `conn` is never used twice. */
    void (*sent)(void *ctx, int from, int to, uint32_t conn, const cw_msg *m);
    void (*arrives)(void *ctx, int from, int to, uint32_t conn, const cw_msg *m);
    /* A process is about to hear that its connection to `peer` has ended; or closes it itself. */
    void (*ends)(void *ctx, int proc, int peer, uint32_t conn);
} sim_watcher;

/* Until `until_us`, or a failure. */
bool sim_run(sim *s, int64_t until_us, const sim_watcher *w);
/* The first one counts. */
void sim_fail(sim *s, const char *fmt, ...) CW_PRINTF(2, 3);
const char *sim_failure(const sim *s); /* NULL: none */
void sim_trace(sim *s, const char *fmt, ...) CW_PRINTF(2, 3);
/* The last lines of the trace. */
void sim_print_trace(const sim *s);
/* Of the simulator's own queues, which stay as large as they once were. */
size_t sim_own_bytes(const sim *s);
uint64_t sim_events(const sim *s), sim_messages(const sim *s), sim_lost(const sim *s);
