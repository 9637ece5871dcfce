/* The inside of the mainland: mainland.c (opening, closing, status), land_net.c (the network thread),
 * land_experts.c (the engine's side: submit and collect). */
#pragma once
#include <pthread.h>

#include "cw/mainland.h"
#include "cw/manifest.h"
#include "cw/member.h"
#include "cw/net.h"
#include "cw/queue.h"
#include "saved.h"

/* One submit on its way. The engine's thread owns it but between the push into `submitted` and `done`. */
typedef struct {
    cw_edge_request req; /* first member */
    cw_edge_entry *entries;
    uint16_t *f16;
    int8_t *e;
    float *f32;
    const atomic_bool *cancel;
    bool in_use;
    atomic_bool give_up; /* engine -> network thread */
    bool guest;          /* the engine's thread drives the network until it is done */
    bool taken;          /* whoever drives the network: with the machine */
    bool done;           /* under the lock */
} slot;

typedef struct {
    cw_experts base;
    cw_mainland *m;
} land_experts;

struct cw_mainland {
    cw_mainland_options o;
    char name[65];
    cw_member member;
    char *local_dir;
    cw_edge_config ec;
    cw_edge_layer *layers;
    saved_file saved;
    cw_net *net;
    cw_edge *edge;
    pthread_t thread;
    bool running;
    atomic_bool online; /* written by the network thread */
    atomic_bool wanted_again;
    land_experts experts;

    size_t max_entries;
    slot *slots;
    int n_slots, handed_out; /* handed_out: the slot whose reply the engine is looking at, or -1 */
    cw_queue *submitted;
    void (*tell_waiting)(void *ctx, const char *sentence); /* engine's thread */
    void *tell_ctx;

    /* Whoever drives the network only. */
    bool wanted;
    bool dirty; /* ticket or epoch is newer than the file */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Under the lock. */
    uint64_t asked, answered; /* snapshots */
    cw_edge_story story;      /* for the machine's next heartbeat */
    bool story_is_new;
    cw_edge_facts facts;
    cw_edge_worker_facts *workers;
    size_t n_workers, cap_workers;
    bool refused, ended;
    Cw__Pb__RefusalCode refused_code;
    char refused_text[CW_TEXT_MAX];
    cw_err end_err;
};

/* land_net.c */
void *land_thread(void *mainland);
cw_net_role land_role(cw_mainland *m);
/* A fresh snapshot in m->facts and m->workers; returns with the lock held. */
void land_refresh_locked(cw_mainland *m);

/* land_experts.c */
CW_MUST_USE cw_status land_slots_new(cw_mainland *m, cw_err *err);
void land_slots_free(cw_mainland *m);
