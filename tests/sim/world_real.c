/*
 * Real processes on real ZeroMQ sockets as a world for scripts; see script.h. Every member is a process of
 * its own, forked without exec, whose node lives in shared memory; connections go through the proxy program,
 * which is told by a pipe. A death is SIGKILL, standing still is SIGSTOP.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cw/clock.h"
#include "cw/mem.h"
#include "cw/net.h"
#include "script.h"

enum { MAX_TIMERS = 256, ROUTES = 2 + SCRIPT_WORKERS };

/* Shared: the members, and the first thing that went wrong in any process. */
typedef struct {
    member m[MEMBERS];
    atomic_bool failed;
    char failure[400];
} stage;

struct world {
    stage *st;
    cw_key keys[MEMBERS];
    cw_keys *pairs[MEMBERS];
    cw_signer *signer;
    pid_t pid[MEMBERS], proxy;
    int to_proxy, from_proxy;
    uint16_t port[1 + SCRIPT_WORKERS]; /* where the coordinator and workers listen */
    char answer[2048];
    int64_t hole_until, pause_until;
    int paused;
    char hole_end[64];
};

/* ---- in a member's process ---- */

typedef struct {
    int64_t at;
    void (*fn)(void *ctx, void *arg, cw_outbox *out);
    void *arg;
} timer;

typedef struct {
    host base;
    stage *st;
    member *m;
    uint64_t random;
    timer timers[MAX_TIMERS];
    size_t n_timers;
} real_host;

static int64_t real_now(host *h)
{
    (void)h;
    return cw_now_us();
}

static int64_t real_wall(host *h)
{
    (void)h;
    return cw_wall_ms();
}

static uint64_t real_random(host *h)
{
    uint64_t z = ((real_host *)h)->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void real_after(host *h, int64_t delay_us, void (*fn)(void *ctx, void *arg, cw_outbox *out), void *arg)
{
    real_host *r = (real_host *)h;
    CW_ASSERT(r->n_timers < MAX_TIMERS);
    r->timers[r->n_timers++] = (timer){cw_now_us() + delay_us, fn, arg};
}

static void real_die(host *h)
{
    member *m = ((real_host *)h)->m;
    if (m->id >= MEMBER_WORKER && m->id < MEMBER_EDGE) atomic_store(&m->stopped, true);
    _exit(0);
}

static void real_say(host *h, const char *text)
{
    if (getenv("CW_SCRIPT_TRACE")) fprintf(stderr, "%.6f %s\n", (double)cw_now_us() / 1e6, text);
    (void)h;
}

static void real_fail(host *h, const char *text)
{
    stage *st = ((real_host *)h)->st;
    if (!atomic_exchange(&st->failed, true)) snprintf(st->failure, sizeof st->failure, "%s", text);
}

static void run_timers(real_host *r, cw_outbox *out)
{
    for (size_t i = 0; i < r->n_timers;) {
        timer t = r->timers[i];
        if (t.at > cw_now_us()) {
            i++;
            continue;
        }
        r->timers[i] = r->timers[--r->n_timers];
        t.fn(r->m, t.arg, out);
        member_after(r->m, out);
        i = 0;
    }
    for (size_t i = 0; i < r->n_timers; i++) cw_outbox_wake(out, r->timers[i].at);
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    real_host *r = ctx;
    member_event(r->m, ev, out);
    member_after(r->m, out);
    run_timers(r, out);
}

static void live(world *w, int id)
{
    static const host_ops ops = {real_now, real_wall, real_random, real_after, real_die, real_say, real_fail};
    static real_host r;
    member *m = &w->st->m[id];
    r = (real_host){
        .base = {.ops = &ops}, .st = w->st, .m = m, .random = (uint64_t)cw_now_us() * 31 + (uint64_t)id};
    bool worker = id >= MEMBER_WORKER && id < MEMBER_EDGE;
    cw_net_role role = {.ctx = &r, .on_event = on_event};
    cw_net_config cfg = {.self = id == MEMBER_COORDINATOR ? CW_SIDE_COORDINATOR
                                 : worker                 ? CW_SIDE_WORKER
                                                          : CW_SIDE_EDGE,
                         .keys = w->pairs[id]};
    cw_net *net = NULL;
    cw_err err;
    char at[CW_ADDRESS_MAX];
    /* The machine of an earlier process went with it. */
    if (id == MEMBER_COORDINATOR)
        m->n.c.m = NULL;
    else if (worker)
        m->n.w.m = NULL;
    else
        m->n.e.m = NULL;
    cw_status st = cw_net_new(&cfg, &role, &net, &err);
    if (st == CW_OK && id < MEMBER_EDGE) {
        snprintf(at, sizeof at, "tcp://127.0.0.1:%u", w->port[id]);
        st = cw_net_listen(net, worker ? CW_PORT_DATA : CW_PORT_CONTROL, at, NULL, &err);
    }
    if (st == CW_OK) {
        member_start(m, &r.base);
        st = cw_net_run(net, &err);
    }
    if (st != CW_OK) real_fail(&r.base, err.text);
    _exit(1);
}

/* ---- the teller's ---- */

static void tell_proxy(world *w, const char *fmt, ...) CW_PRINTF(2, 3);
static void tell_proxy(world *w, const char *fmt, ...)
{
    char line[256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    CW_ASSERT(write(w->to_proxy, line, (size_t)n) == n);
    size_t got = 0;
    do {
        ssize_t k = read(w->from_proxy, w->answer + got, sizeof w->answer - 1 - got);
        CW_ASSERT(k > 0);
        got += (size_t)k;
    } while (w->answer[got - 1] != '\n');
    w->answer[got] = 0;
    if (strncmp(w->answer, "ok", 2) != 0) {
        fprintf(stderr, "proxy: %.200s -> %s", line, w->answer);
        abort();
    }
}

static bool start_proxy(world *w, const char *program)
{
    int in[2], out[2];
    if (pipe(in) != 0 || pipe(out) != 0) return false;
    w->proxy = fork();
    if (w->proxy == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        close(out[0]);
        execl(program, program, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    w->to_proxy = in[1];
    w->from_proxy = out[0];
    return w->proxy > 0;
}

/* Below the ports that connections are given, so that none of those takes it before we listen. */
static uint16_t free_port(void)
{
    for (;;) {
        uint8_t random[2];
        cw_random(random, sizeof random);
        uint16_t port = (uint16_t)(12000 + (random[0] << 8 | random[1]) % 7000);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        CW_ASSERT(fd >= 0);
        bool ok = bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
        close(fd);
        if (ok) return port;
    }
}

static unsigned add_route(world *w, const char *name, uint16_t port)
{
    tell_proxy(w, "add %s 127.0.0.1:%u\n", name, port);
    return (unsigned)atoi(w->answer + 3);
}

static void lay_cables(world *w)
{
    for (int i = 0; i < 1 + SCRIPT_WORKERS; i++) w->port[i] = free_port();
    unsigned edges = add_route(w, "edges", w->port[0]), workers = add_route(w, "workers", w->port[0]);
    for (int i = 0; i < MEMBERS; i++) {
        member *m = &w->st->m[i];
        bool worker = i >= MEMBER_WORKER && i < MEMBER_EDGE;
        snprintf(m->place.control, sizeof m->place.control, "tcp://127.0.0.1:%u", worker ? workers : edges);
        snprintf(m->place.store, sizeof m->place.store, "tcp://127.0.0.1:9");
        if (worker)
            snprintf(m->n.w.address, sizeof m->n.w.address, "tcp://127.0.0.1:%u",
                     add_route(w, m->name, w->port[i]));
    }
}

static member *real_members(world *w)
{
    return w->st->m;
}

static void bury(world *w, int id)
{
    if (w->pid[id] <= 0) return;
    (void)waitpid(w->pid[id], NULL, 0);
    w->pid[id] = 0;
}

static void real_start(world *w, int id)
{
    bury(w, id); /* one that stopped by itself */
    atomic_store(&w->st->m[id].stopped, false);
    fflush(NULL);
    w->pid[id] = fork();
    CW_ASSERT(w->pid[id] >= 0);
    if (w->pid[id] == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        live(w, id);
    }
}

static void real_kill(world *w, int id)
{
    if (w->pid[id] > 0) kill(w->pid[id], SIGKILL);
    bury(w, id);
}

static void real_pause(world *w, int id, int64_t us)
{
    kill(w->pid[id], SIGSTOP);
    w->paused = id;
    w->pause_until = cw_now_us() + us;
}

static void real_cut(world *w, int id, bool workers)
{
    const char *route = id != MEMBER_COORDINATOR ? w->st->m[id].name : workers ? "workers" : "edges";
    tell_proxy(w, "%s reset\n", route);
}

static void real_hole(world *w, int id, bool towards, int64_t us)
{
    const char *way = towards ? "up" : "down";
    tell_proxy(w, "%s halfopen %s on\n", w->st->m[id].name, way);
    snprintf(w->hole_end, sizeof w->hole_end, "%s halfopen %s off\n", w->st->m[id].name, way);
    w->hole_until = cw_now_us() + us;
}

static bool real_pass(world *w, int64_t us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
    if (w->hole_until && cw_now_us() >= w->hole_until) {
        tell_proxy(w, "%s", w->hole_end);
        w->hole_until = 0;
    }
    if (w->pause_until && cw_now_us() >= w->pause_until) {
        kill(w->pid[w->paused], SIGCONT);
        w->pause_until = 0;
    }
    for (int i = 0; i < MEMBERS; i++) {
        int status;
        if (w->pid[i] <= 0 || waitpid(w->pid[i], &status, WNOHANG) != w->pid[i]) continue;
        w->pid[i] = 0;
        if (atomic_load(&w->st->m[i].stopped)) continue;
        if (!atomic_exchange(&w->st->failed, true))
            snprintf(w->st->failure, sizeof w->st->failure, "%s ended with status %d", w->st->m[i].name,
                     status);
    }
    return !atomic_load(&w->st->failed);
}

static const char *real_failure(world *w)
{
    return atomic_load(&w->st->failed) ? w->st->failure : NULL;
}

const char *script_on_sockets(const script *s, const char *proxy, char told[STORY_TEXT])
{
    static const world_ops ops = {real_members, real_start, real_kill, real_pause,
                                  real_cut,     real_hole,  real_pass, real_failure};
    static char why[400];
    world w = {0};
    w.st = mmap(NULL, sizeof *w.st, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CW_ASSERT(w.st != MAP_FAILED && cw_crypto_init(NULL) == CW_OK && cw_signer_new(&w.signer, NULL) == CW_OK);
    for (int i = 0; i < MEMBERS; i++) {
        CW_ASSERT(cw_keys_new(&w.pairs[i], NULL) == CW_OK);
        w.keys[i] = *cw_keys_public(w.pairs[i]);
    }
    script_cast(s, w.st->m, w.keys, w.signer);
    if (!start_proxy(&w, proxy)) return "the proxy does not start";
    lay_cables(&w);
    const char *trouble = script_tell(s, &ops, &w, told);
    if (trouble) snprintf(why, sizeof why, "%s", trouble);
    for (int i = 0; i < MEMBERS; i++) real_kill(&w, i);
    close(w.to_proxy);
    close(w.from_proxy);
    (void)waitpid(w.proxy, NULL, 0);
    for (int i = 0; i < MEMBERS; i++) cw_keys_free(&w.pairs[i]);
    cw_signer_free(&w.signer);
    munmap(w.st, sizeof *w.st);
    return trouble ? why : NULL;
}
