/* The admin socket, both ends; see admin.h. */
#include "admin.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cw/clock.h"
#include "cw/fs.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/signal.h"

enum { LINE_MAX_BYTES = 8 << 20, REQUEST_MAX_BYTES = 64 << 10, CLIENT_TIMEOUT_S = 10, MAX_CLIENTS = 16 };
static const char socket_name[] = "admin.sock";

/* ---- addresses
 * ---------------------------------------------------------------------------------------------- */

/* A unix address holds about 100 bytes; a longer directory is reached through its descriptor. `*dir_fd` -1:
 * not needed. */
static cw_status make_address(const char *dir, struct sockaddr_un *a, int *dir_fd, cw_err *err)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    *dir_fd = -1;
    if (strlen(dir) + sizeof socket_name + 1 <= sizeof a->sun_path) {
        snprintf(a->sun_path, sizeof a->sun_path, "%s/%s", dir, socket_name);
        return CW_OK;
    }
    *dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir_fd < 0) return CW_FAIL(err, CW_STATUS_IO, "%s: %s", dir, strerror(errno));
    snprintf(a->sun_path, sizeof a->sun_path, "/proc/self/fd/%d/%s", *dir_fd, socket_name);
    return CW_OK;
}

/* ---- the server
 * --------------------------------------------------------------------------------------------- */

typedef struct {
    int fd;
    char *buf;
    size_t n, cap;
    char *out; /* a reply on its way, or NULL */
    size_t n_out, sent;
    int64_t until_us;
} client;

struct admin_server {
    admin_hooks hooks;
    pthread_t thread;
    int listen_fd, quit[2];
    char *path;
    client clients[MAX_CLIENTS];
    pthread_mutex_t lock;
    pthread_cond_t answered;
    cJSON *request; /* waits for the machine's thread, or is with it */
    char *reply;
    bool ended;
};

static void client_close(client *c)
{
    close(c->fd);
    cw_free(c->buf);
    cw_free(c->out);
    *c = (client){.fd = -1};
}

static void write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return; /* it went away, or has not read for seconds; nothing to be done for it */
        p += k;
        n -= (size_t)k;
    }
}

/* Hands the request over and waits for the answer, heap. */
static char *ask_machine(admin_server *a, cJSON *request)
{
    char *reply = NULL;
    pthread_mutex_lock(&a->lock);
    a->request = request;
    a->reply = NULL;
    pthread_mutex_unlock(&a->lock);
    a->hooks.wake(a->hooks.ctx);
    pthread_mutex_lock(&a->lock);
    while (a->request && !a->ended) pthread_cond_wait(&a->answered, &a->lock);
    a->request = NULL;
    reply = a->reply;
    a->reply = NULL;
    pthread_mutex_unlock(&a->lock);
    return reply;
}

/* The reply of one request into the client's buffer. False: out of memory. */
static bool serve_line(admin_server *a, client *c, const char *line)
{
    cJSON *request = cJSON_Parse(line);
    char *reply = cJSON_IsObject(request)
                      ? ask_machine(a, request)
                      : cw_strdup("{\"ok\":false,\"error\":\"a request is one JSON object a line\"}");
    cJSON_Delete(request);
    static const char failed[] = "{\"ok\":false,\"error\":\"the coordinator is stopping or out of memory\"}";
    const char *text = reply ? reply : failed;
    size_t n = strlen(text);
    c->out = cw_realloc(NULL, n + 1, 1);
    if (c->out) {
        memcpy(c->out, text, n);
        c->out[n] = '\n';
        c->n_out = n + 1;
        c->sent = 0;
        c->until_us = cw_now_us() + (int64_t)CLIENT_TIMEOUT_S * 1000000;
    }
    cw_free(reply);
    return c->out != NULL;
}

/* As much of the reply as it takes now; it is given some seconds for the rest and delays nobody. */
static bool client_write(client *c)
{
    ssize_t k = send(c->fd, c->out + c->sent, c->n_out - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (k < 0) return errno == EINTR || errno == EAGAIN;
    c->sent += (size_t)k;
    if (c->sent < c->n_out) return true;
    cw_free(c->out);
    c->out = NULL;
    return true;
}

/* The requests that are there, one after the other, each when the reply before it is out. */
static bool client_lines(admin_server *a, client *c)
{
    char *end;
    while (!c->out && (end = memchr(c->buf, '\n', c->n))) {
        *end = 0;
        if (!serve_line(a, c, c->buf)) return false;
        size_t used = (size_t)(end - c->buf) + 1;
        memmove(c->buf, c->buf + used, c->n - used + 1);
        c->n -= used;
        if (!client_write(c)) return false;
    }
    return true;
}

/* False: the client is done with. */
static bool client_read(admin_server *a, client *c)
{
    if (c->cap - c->n < 1024) {
        size_t cap = c->cap ? 2 * c->cap : 4096;
        char *p = cap <= REQUEST_MAX_BYTES ? cw_realloc(c->buf, cap, 1) : NULL;
        if (!p) return false;
        c->buf = p;
        c->cap = cap;
    }
    ssize_t k = recv(c->fd, c->buf + c->n, c->cap - c->n - 1, MSG_DONTWAIT);
    if (k <= 0) return k < 0 && (errno == EINTR || errno == EAGAIN);
    c->n += (size_t)k;
    c->buf[c->n] = 0;
    return client_lines(a, c);
}

static bool client_serve(admin_server *a, client *c)
{
    if (!c->out) return client_read(a, c);
    return client_write(c) && (c->out || client_lines(a, c));
}

static void accept_client(admin_server *a)
{
    int fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (a->clients[i].fd < 0) {
            a->clients[i].fd = fd;
            return;
        }
    close(fd);
}

static void *serve(void *arg)
{
    admin_server *a = arg;
    bool told = false;
    for (;;) {
        struct pollfd fds[3 + MAX_CLIENTS] = {{.fd = a->quit[0], .events = POLLIN},
                                              {.fd = a->listen_fd, .events = POLLIN},
                                              {.fd = told ? -1 : cw_signal_stop_fd(), .events = POLLIN}};
        bool waiting = false;
        for (int i = 0; i < MAX_CLIENTS; i++) {
            const client *c = &a->clients[i];
            fds[3 + i] = (struct pollfd){.fd = c->fd, .events = c->out ? POLLOUT : POLLIN};
            waiting |= c->fd >= 0 && c->out;
        }
        if (poll(fds, CW_ARRAY_LEN(fds), waiting ? 1000 : -1) < 0) continue;
        if (fds[0].revents) return NULL;
        if (fds[2].revents) {
            told = true;
            a->hooks.stopped(a->hooks.ctx);
        }
        for (int i = 0; i < MAX_CLIENTS; i++) {
            client *c = &a->clients[i];
            bool late = c->fd >= 0 && c->out && cw_now_us() > c->until_us;
            if (late || (fds[3 + i].revents && !client_serve(a, c))) client_close(c);
        }
        if (fds[1].revents) accept_client(a);
    }
}

static cw_status listen_at(admin_server *a, const char *dir, cw_err *err)
{
    struct sockaddr_un address;
    int dir_fd;
    CW_TRY(make_address(dir, &address, &dir_fd, err));
    (void)unlink(
        address.sun_path); /* left by a process that died; the directory's lock says that it is ours now */
    a->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t old = umask(0177);
    bool ok = a->listen_fd >= 0 && bind(a->listen_fd, (struct sockaddr *)&address, sizeof address) == 0 &&
              listen(a->listen_fd, MAX_CLIENTS) == 0;
    int e = errno;
    umask(old);
    if (dir_fd >= 0) close(dir_fd);
    return ok ? CW_OK
              : CW_FAIL(err, CW_STATUS_IO, "cannot open the admin socket %s/%s: %s", dir, socket_name,
                        strerror(e));
}

cw_status admin_server_start(const char *dir, const admin_hooks *hooks, admin_server **out, cw_err *err)
{
    cw_status s = CW_OK;
    admin_server *a = cw_calloc(1, sizeof *a);
    if (!a) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the admin socket");
    a->hooks = *hooks;
    a->listen_fd = a->quit[0] = a->quit[1] = -1;
    for (int i = 0; i < MAX_CLIENTS; i++) a->clients[i].fd = -1;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->answered, NULL);
    a->ended = true; /* no thread yet */
    a->path = cw_fs_join(dir, socket_name);
    if (!a->path) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the admin socket");
    if (s == CW_OK && pipe2(a->quit, O_CLOEXEC) != 0)
        s = CW_FAIL(err, CW_STATUS_IO, "cannot make a pipe: %s", strerror(errno));
    if (s == CW_OK) s = listen_at(a, dir, err);
    if (s == CW_OK) {
        a->ended = false;
        if (pthread_create(&a->thread, NULL, serve, a) != 0) {
            a->ended = true;
            s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "cannot start the admin thread");
        }
    }
    if (s != CW_OK) {
        admin_server_stop(&a);
        return s;
    }
    *out = a;
    return CW_OK;
}

void admin_server_stop(admin_server **pa)
{
    admin_server *a = pa ? *pa : NULL;
    if (!a) return;
    pthread_mutex_lock(&a->lock);
    bool running = !a->ended;
    a->ended = true;
    pthread_cond_broadcast(&a->answered);
    pthread_mutex_unlock(&a->lock);
    if (running) {
        while (write(a->quit[1], "q", 1) < 0 && errno == EINTR) {
        }
        pthread_join(a->thread, NULL);
        (void)unlink(a->path);
    }
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (a->clients[i].fd >= 0) client_close(&a->clients[i]);
    int fds[] = {a->listen_fd, a->quit[0], a->quit[1]};
    for (size_t i = 0; i < CW_ARRAY_LEN(fds); i++)
        if (fds[i] >= 0) close(fds[i]);
    pthread_cond_destroy(&a->answered);
    pthread_mutex_destroy(&a->lock);
    cw_free(a->reply);
    cw_free(a->path);
    cw_free(a);
    *pa = NULL;
}

const cJSON *admin_take(admin_server *a)
{
    pthread_mutex_lock(&a->lock);
    const cJSON *r = a->request;
    pthread_mutex_unlock(&a->lock);
    return r;
}

void admin_answer(admin_server *a, const char *reply)
{
    char *copy = reply ? cw_strdup(reply) : NULL;
    pthread_mutex_lock(&a->lock);
    a->reply = copy;
    a->request = NULL;
    pthread_cond_broadcast(&a->answered);
    pthread_mutex_unlock(&a->lock);
}

/* ---- the client
 * --------------------------------------------------------------------------------------------- */

static cw_status connect_to(const char *dir, int *out, cw_err *err)
{
    struct sockaddr_un address;
    int dir_fd;
    CW_TRY(make_address(dir, &address, &dir_fd, err));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    int e = errno;
    if (dir_fd >= 0) close(dir_fd);
    if (!ok) {
        if (fd >= 0) close(fd);
        if (e == ENOENT || e == ECONNREFUSED || e == ENOTDIR)
            return CW_FAIL(err, CW_STATUS_UNREACHABLE,
                           "no coordinator runs with the state directory %s: start one, or name its "
                           "directory with --state",
                           dir);
        return CW_FAIL(err, CW_STATUS_IO, "cannot reach the coordinator of %s: %s", dir, strerror(e));
    }
    struct timeval t = {.tv_sec = CLIENT_TIMEOUT_S};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    *out = fd;
    return CW_OK;
}

static cw_status read_line(int fd, char **out, cw_err *err)
{
    char *buf = NULL;
    size_t n = 0, cap = 0;
    for (;;) {
        if (cap - n < 2) {
            cap = cap ? 2 * cap : 16384;
            char *p = cap <= LINE_MAX_BYTES ? cw_realloc(buf, cap, 1) : NULL;
            if (!p) {
                cw_free(buf);
                return CW_FAIL(err, CW_STATUS_LIMIT, "the coordinator's answer is too long");
            }
            buf = p;
        }
        ssize_t k = recv(fd, buf + n, cap - n - 1, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            cw_free(buf);
            return k < 0 && errno == EAGAIN
                       ? CW_FAIL(err, CW_STATUS_TIMEOUT, "the coordinator does not answer")
                       : CW_FAIL(err, CW_STATUS_UNREACHABLE, "the coordinator ended without an answer");
        }
        n += (size_t)k;
        buf[n] = 0;
        if (buf[n - 1] == '\n') break;
    }
    *out = buf;
    return CW_OK;
}

cw_status admin_ask(const char *dir, const char *request, cJSON **reply, cw_err *err)
{
    int fd = -1;
    char *line = NULL;
    CW_TRY(connect_to(dir, &fd, err));
    write_all(fd, request, strlen(request));
    write_all(fd, "\n", 1);
    cw_status s = read_line(fd, &line, err);
    close(fd);
    if (s != CW_OK) return s;
    cJSON *all = cJSON_Parse(line);
    cw_free(line);
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(all, "error");
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(all, "ok")))
        *reply = cJSON_DetachItemFromObjectCaseSensitive(all, "result");
    else if (cJSON_IsString(error))
        s = CW_FAIL(err, CW_STATUS_REFUSED, "%s", error->valuestring);
    else
        s = CW_FAIL(err, CW_STATUS_FORMAT, "the coordinator's answer cannot be read");
    cJSON_Delete(all);
    return s;
}
