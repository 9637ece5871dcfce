/*
 * Members of a story, and the teller. The words:
 *
 *   ready              all workers that run hold what they are to hold, everybody knows the newest epoch,
 * edges reach every expert ask EDGE N         N requests, each for all experts of a layer, one after the
 * other; all answered start|kill WHO     a process stop WORKER        SIGTERM, until it has ended gone WORKER
 * the coordinator has taken it out of the epoch pause WHO MS       it stands still cut edges|workers WHO
 * their connections to it are reset hole from|to WHO MS        nothing that it sends, or is sent to it,
 * arrives drain|undrain WORKER, empty WORKER (it holds nothing any more), revoke EDGE (it has heard of it)
 */
#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"

enum { WHAT_UP = 250, WHAT_DOWN = 251, EPOCH_NEWS = CW__PB__ENVELOPE__BODY_EPOCH_NEWS };
static const int64_t quiet_us = 600000, patience_us = 40000000, look_us = 20000;

/* ---- members ---- */

static void quick(cw_coordinator_config *cfg)
{
    cw_coordinator_times *t = &cfg->times;
    t->gather_ms = 100;
    t->settle_ms = 2000;
    t->lost_ms = 300;
    t->replace_ms = 600;
    t->progress_ms = 100;
    t->drop_grace_ms = 200;
    t->audit_ms = 0;
    t->epoch_gap_ms = 50;
    t->release_ms = 1500; /* edges have let go of it before it goes */
}

static int peer_of_key(const member *m, const cw_key *key)
{
    for (int i = 0; i < MEMBERS; i++)
        if (cw_key_equal(&m->keys[i], key)) return i;
    return -1;
}

static void note(member *m, int peer, uint8_t what)
{
    unsigned n = atomic_load(&m->n_log);
    CW_ASSERT(n < LOG_ENTRIES && peer >= 0);
    m->log[n].peer = (uint8_t)peer;
    m->log[n].what = what;
    atomic_store(&m->n_log, n + 1);
}

static bool is_timely(cw_msg_kind kind)
{
    switch (kind) {
    case CW__PB__ENVELOPE__BODY_PING:
    case CW__PB__ENVELOPE__BODY_PONG:
    case CW__PB__ENVELOPE__BODY_WORKER_LOAD:
    case CW__PB__ENVELOPE__BODY_EDGE_STATS:
    case CW__PB__ENVELOPE__BODY_CANCEL: return true;
    default: return false;
    }
}

static void log_event(member *m, const cw_event *ev)
{
    size_t k = 0;
    while (k < MEMBER_LINKS && m->links[k].link != ev->link) k++;
    if (ev->kind == CW_EV_LINK_UP) {
        for (k = 0; k < MEMBER_LINKS && m->links[k].link;) k++;
        CW_ASSERT(k < MEMBER_LINKS);
        m->links[k].link = ev->link;
        m->links[k].peer = peer_of_key(m, &ev->key);
        note(m, m->links[k].peer, WHAT_UP);
    } else if (ev->kind == CW_EV_LINK_DOWN && k < MEMBER_LINKS) { /* else it never came up */
        note(m, m->links[k].peer, WHAT_DOWN);
        m->links[k].link = 0;
    } else if (ev->kind == CW_EV_MESSAGE && !is_timely(ev->msg->env->body_case)) {
        note(m, peer_of_key(m, &ev->key), (uint8_t)ev->msg->env->body_case);
    }
}

static bool is_worker(const member *m)
{
    return m->id >= MEMBER_WORKER && m->id < MEMBER_EDGE;
}

/* What the teller wants of it. */
static void do_wants(member *m, cw_outbox *out)
{
    unsigned k;
    if (m->id == MEMBER_COORDINATOR) {
        node_coordinator *c = &m->n.c;
        int64_t now = host_now(c->h), wall = host_wall(c->h);
        if ((k = atomic_exchange(&m->drain, 0)))
            CW_ASSERT(cw_coordinator_drain(c->m, &m->keys[MEMBER_WORKER + k - 1], true, now, wall, out,
                                           NULL) == CW_OK);
        if ((k = atomic_exchange(&m->undrain, 0)))
            CW_ASSERT(cw_coordinator_drain(c->m, &m->keys[MEMBER_WORKER + k - 1], false, now, wall, out,
                                           NULL) == CW_OK);
        if ((k = atomic_exchange(&m->revoke_edge, 0)))
            CW_ASSERT(cw_coordinator_key_revoke(c->m, &m->keys[MEMBER_EDGE + k - 1], now, wall, out, NULL) ==
                      CW_OK);
    } else if (is_worker(m)) {
        if (atomic_exchange(&m->stop, 0)) node_worker_stop(&m->n.w, NULL, out);
    } else if (atomic_load(&m->asked) < atomic_load(&m->ask) && !node_edge_open(&m->n.e)) {
        unsigned n = atomic_fetch_add(&m->asked, 1);
        CW_ASSERT(node_edge_ask_all(&m->n.e, 1 + n % (LAYERS - 1), out));
    }
}

static void publish(member *m)
{
    if (m->id == MEMBER_COORDINATOR) {
        cw_coordinator_status st;
        cw_coordinator_get_status(m->n.c.m, &st);
        atomic_store(&m->term, st.term);
        atomic_store(&m->number, st.number);
        atomic_store(&m->n_live, st.n_live_workers);
        atomic_store(&m->n_live_ready, st.n_ready_workers);
        atomic_store(&m->settling, st.settling);
    } else if (is_worker(m)) {
        cw_worker_facts f;
        cw_worker_get_facts(m->n.w.m, &f);
        atomic_store(&m->term, f.epoch_term);
        atomic_store(&m->number, f.epoch_number);
        atomic_store(&m->n_ready, f.n_ready);
        atomic_store(&m->admitted, f.admitted);
    } else {
        cw_edge_facts f;
        cw_edge_get_facts(m->n.e.m, &f);
        atomic_store(&m->term, f.epoch_term);
        atomic_store(&m->number, f.epoch_number);
        atomic_store(&m->admitted, f.admitted);
        atomic_store(&m->n_workers, f.n_workers);
        atomic_store(&m->refused, m->n.e.refused);
        atomic_store(&m->done, (unsigned)m->n.e.done);
        atomic_store(&m->failed, (unsigned)m->n.e.failed);
    }
}

void member_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    member *m = ctx;
    log_event(m, ev);
    if (m->id == MEMBER_COORDINATOR)
        node_coordinator_event(&m->n.c, ev, out);
    else if (is_worker(m))
        node_worker_event(&m->n.w, ev, out);
    else
        node_edge_event(&m->n.e, ev, out);
    do_wants(m, out);
}

void member_after(void *ctx, cw_outbox *out)
{
    member *m = ctx;
    if (m->id == MEMBER_COORDINATOR)
        node_coordinator_after(&m->n.c, out);
    else if (is_worker(m))
        node_worker_after(&m->n.w, out);
    else
        node_edge_after(&m->n.e, out);
    publish(m);
    if (is_worker(m)) atomic_store(&m->stopped, m->n.w.stopped);
}

static void on_end(node_edge *e, node_request *q, const char *wrong)
{
    member *m = (member *)(void *)e;
    (void)q;
    if (wrong) atomic_fetch_add(&m->wrong, 1);
}

void member_start(member *m, host *h)
{
    memset(m->links, 0, sizeof m->links);
    if (m->id == MEMBER_COORDINATOR) {
        m->n.c.h = h;
        CW_ASSERT(node_coordinator_start(&m->n.c));
    } else if (is_worker(m)) {
        m->n.w.h = h;
        node_worker_start(&m->n.w);
    } else {
        m->n.e.h = h;
        node_edge_start(&m->n.e);
        /* What the last incarnation was asked and did not answer is forgotten. */
        atomic_store(&m->asked, atomic_load(&m->ask));
    }
    publish(m);
}

void script_cast(const script *s, member *members, cw_key keys[MEMBERS], cw_signer *signer)
{
    for (int i = 0; i < MEMBERS; i++) {
        member *m = &members[i];
        int index = i >= MEMBER_EDGE ? i - MEMBER_EDGE : i - MEMBER_WORKER;
        m->id = i;
        m->keys = keys;
        m->key = keys[i];
        m->place.coordinator_key = keys[MEMBER_COORDINATOR];
        memset(m->place.token[0], 0x11, CW_TOKEN_BYTES);
        memset(m->place.token[1], 0x22, CW_TOKEN_BYTES);
        if (i == MEMBER_COORDINATOR) {
            snprintf(m->name, sizeof m->name, "c");
            m->n.c.place = &m->place;
            m->n.c.signer = signer;
            m->n.c.seed = 1;
            m->n.c.configure = quick;
        } else if (is_worker(m)) {
            snprintf(m->name, sizeof m->name, "w%d", index);
            m->n.w.place = &m->place;
            m->n.w.index = index;
            m->n.w.memory = (uint64_t)MODEL_BYTES * s->memory_percent / 100;
            m->n.w.drain_ms = 5000;
            m->n.w.jobs_in_flight = 1;
            m->n.w.slow_factor = 1;
            m->n.w.load_us = 20000;
        } else {
            snprintf(m->name, sizeof m->name, "e%d", index);
            m->n.e.place = &m->place;
            m->n.e.index = index;
            m->n.e.homeless_us = m->n.e.deadline_us = 60000000;
            m->n.e.on_end = on_end;
        }
    }
}

/* ---- the teller ---- */

typedef struct {
    const script *s;
    const world_ops *ops;
    world *w;
    member *m;
    unsigned seen[MEMBERS]; /* of each log, already told */
    char *told;
    size_t n_told;
    char why[400];
} teller;

static int who(const teller *t, const char *name)
{
    for (int i = 0; i < MEMBERS; i++)
        if (strcmp(t->m[i].name, name) == 0) return i;
    return -1;
}

static bool knows_newest(const teller *t, int i)
{
    const member *c = &t->m[MEMBER_COORDINATOR];
    return atomic_load(&t->m[i].term) == atomic_load(&c->term) &&
           atomic_load(&t->m[i].number) == atomic_load(&c->number);
}

static bool is_ready(const teller *t)
{
    const member *c = &t->m[MEMBER_COORDINATOR];
    unsigned n = 0;
    for (int i = MEMBER_WORKER; i < MEMBER_EDGE; i++) {
        if (!t->m[i].up) continue;
        n++;
        if (!atomic_load(&t->m[i].admitted) || !knows_newest(t, i)) return false;
    }
    for (int i = MEMBER_EDGE; i < MEMBERS; i++)
        if (t->m[i].up && (!atomic_load(&t->m[i].admitted) || !knows_newest(t, i))) return false;
    return atomic_load(&c->number) && !atomic_load(&c->settling) && atomic_load(&c->n_live) == n &&
           atomic_load(&c->n_live_ready) == n;
}

static unsigned n_logged(const teller *t)
{
    unsigned n = 0;
    for (int i = 0; i < MEMBERS; i++) n += atomic_load(&t->m[i].n_log);
    return n;
}

/* Until nothing has happened for a while. */
static bool quiet(teller *t)
{
    unsigned before = n_logged(t);
    for (int64_t us = 0, all = 0; us < quiet_us; us += look_us, all += look_us) {
        if (!t->ops->pass(t->w, look_us)) return false;
        if (n_logged(t) != before) us = 0;
        before = n_logged(t);
        if (all > patience_us) return false;
    }
    return true;
}

enum { COND_NOW, COND_READY, COND_ANSWERED, COND_ENDED, COND_EMPTY, COND_GONE, COND_REFUSED };

static bool holds(const teller *t, int cond, int id, unsigned n)
{
    const member *m = &t->m[id];
    unsigned up = 0;
    switch (cond) {
    case COND_READY: return is_ready(t);
    case COND_ANSWERED: return atomic_load(&m->done) + atomic_load(&m->failed) >= n;
    case COND_ENDED: return atomic_load(&m->stopped);
    case COND_EMPTY: return !atomic_load(&m->n_ready);
    case COND_GONE:
        for (int i = MEMBER_WORKER; i < MEMBER_EDGE; i++) up += t->m[i].up;
        for (int i = MEMBER_EDGE; i < MEMBERS; i++)
            if (t->m[i].up && (atomic_load(&t->m[i].n_workers) != up || !knows_newest(t, i))) return false;
        return true;
    case COND_REFUSED: return atomic_load(&m->refused);
    default: return true;
    }
}

/* Does what a step says; what to wait for then. */
static int begin_step(teller *t, const char *step, int *id, unsigned *n)
{
    char word[16] = "", a[16] = "", b[16] = "", c[16] = "";
    int words = sscanf(step, "%15s %15s %15s %15s", word, a, b, c);
    bool of_links = strcmp(word, "cut") == 0 || strcmp(word, "hole") == 0;
    *id = words > 1 ? who(t, of_links ? b : a) : MEMBER_COORDINATOR;
    CW_ASSERT(*id >= 0);
    member *m = &t->m[*id], *co = &t->m[MEMBER_COORDINATOR];
    unsigned index = (unsigned)(is_worker(m) ? *id - MEMBER_WORKER : *id - MEMBER_EDGE) + 1;
    *n = (unsigned)atoi(b);
    if (strcmp(word, "ready") == 0) return COND_READY;
    if (strcmp(word, "ask") == 0) {
        *n += atomic_load(&m->ask);
        atomic_store(&m->ask, *n);
        return COND_ANSWERED;
    }
    if (strcmp(word, "start") == 0) return m->up = true, t->ops->start(t->w, *id), COND_NOW;
    if (strcmp(word, "kill") == 0) return m->up = false, t->ops->kill(t->w, *id), COND_NOW;
    if (strcmp(word, "stop") == 0) return m->up = false, atomic_store(&m->stop, 1), COND_ENDED;
    if (strcmp(word, "pause") == 0) return t->ops->pause(t->w, *id, *n * INT64_C(1000)), COND_NOW;
    if (strcmp(word, "cut") == 0) return t->ops->cut(t->w, *id, a[0] == 'w'), COND_NOW;
    if (strcmp(word, "hole") == 0)
        return t->ops->hole(t->w, *id, a[0] == 't', atoi(c) * INT64_C(1000)), COND_NOW;
    if (strcmp(word, "drain") == 0) return atomic_store(&co->drain, index), COND_NOW;
    if (strcmp(word, "undrain") == 0) return atomic_store(&co->undrain, index), COND_NOW;
    if (strcmp(word, "empty") == 0) return COND_EMPTY;
    if (strcmp(word, "gone") == 0) return COND_GONE;
    CW_ASSERT(strcmp(word, "revoke") == 0);
    m->up = false; /* not to be waited for any more */
    atomic_store(&co->revoke_edge, index);
    return COND_REFUSED;
}

static void say(teller *t, const char *text)
{
    size_t n = strlen(text);
    CW_ASSERT(t->n_told + n < STORY_TEXT);
    memcpy(t->told + t->n_told, text, n + 1);
    t->n_told += n;
}

/* What `m` was told of `peer` since the last step; `news`: of epochs alone. */
static void tell_pair(teller *t, const member *m, int peer, bool news)
{
    unsigned n = atomic_load(&m->n_log);
    int last = -1;
    for (unsigned i = t->seen[m->id]; i < n; i++) {
        int what = m->log[i].what;
        if (m->log[i].peer != peer || (what == EPOCH_NEWS) != news || what == last) continue;
        if (last < 0) {
            char head[64];
            snprintf(head, sizeof head, "    %s of %s:", m->name, t->m[peer].name);
            say(t, head);
        }
        last = what;
        say(t, " ");
        say(t, what == WHAT_UP ? "up" : what == WHAT_DOWN ? "down" : cw_msg_kind_name((cw_msg_kind)what));
    }
    if (last >= 0) say(t, "\n");
}

static void tell_step(teller *t, const char *step)
{
    say(t, "  ");
    say(t, step);
    say(t, "\n");
    for (int i = 0; i < MEMBERS; i++) {
        for (int peer = 0; peer < MEMBERS; peer++)
            for (int news = 0; news < 2; news++) tell_pair(t, &t->m[i], peer, news);
        t->seen[i] = atomic_load(&t->m[i].n_log);
    }
}

static bool play(teller *t, const char *step)
{
    int id;
    unsigned n;
    int cond = begin_step(t, step, &id, &n);
    for (int64_t us = 0; !holds(t, cond, id, n); us += look_us) {
        if (us > patience_us) {
            snprintf(t->why, sizeof t->why, "\"%s\" did not come true: wanted %u, has %u", step, n,
                     atomic_load(&t->m[id].done));
            return false;
        }
        if (!t->ops->pass(t->w, look_us)) return false;
    }
    if (!quiet(t)) return false;
    for (int i = MEMBER_EDGE; i < MEMBERS; i++) {
        if (!atomic_load(&t->m[i].wrong) && !atomic_load(&t->m[i].failed)) continue;
        snprintf(t->why, sizeof t->why, "after \"%s\" %s has %u failed answers and %u wrong ones", step,
                 t->m[i].name, atomic_load(&t->m[i].failed), atomic_load(&t->m[i].wrong));
        return false;
    }
    return true;
}

const char *script_tell(const script *s, const world_ops *ops, world *w, char told[STORY_TEXT])
{
    static char why[800];
    teller t = {.s = s, .ops = ops, .w = w, .m = ops->members(w), .told = told};
    told[0] = 0;
    for (int i = 0; i < MEMBERS; i++) {
        bool begins = i == MEMBER_COORDINATOR ||
                      (i < MEMBER_EDGE ? i - MEMBER_WORKER < s->workers : i - MEMBER_EDGE < s->edges);
        if (!begins) continue;
        t.m[i].up = true;
        ops->start(w, i);
    }
    for (const char *const *step = s->steps; *step; step++) {
        if (strncmp(*step, "start ", 6) ==
            0) { /* how soon others notice is chance: told with the next step */
            int id;
            unsigned n;
            (void)begin_step(&t, *step, &id, &n);
            say(&t, "  ");
            say(&t, *step);
            say(&t, "\n");
            continue;
        }
        bool ok = play(&t, *step);
        tell_step(&t, *step);
        if (ok) continue;
        snprintf(why, sizeof why, "%s%s", t.why, ops->failure(w) ? ops->failure(w) : "");
        return why[0] ? why : "nothing came to rest";
    }
    return NULL;
}
