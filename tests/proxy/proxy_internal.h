/* The proxy from the inside: stream.c (one direction of a connection), proxy.c (routes, connections, the
 * loop), command.c. */
#pragma once
#include "proxy.h"

enum { READ_MAX = 65536, SAMPLES = 4096, NAME_MAX_BYTES = 32 };
enum { QUEUE_BYTES = 4 << 20 }; /* waiting in one direction of a connection; more stays in the kernel */

typedef struct route route;
typedef struct conn conn;

/* One direction of a route: what is asked for, and what was done. Times in nanoseconds. */
typedef struct {
    int64_t delay, stall;
    double rate; /* bytes a second; 0: any */
    double stall_chance;
    bool half, hole;
    int64_t free_at, stalled_until; /* when the last byte has left a thin link; end of a stall */
    uint64_t bytes, chunks, stalls, swallowed;
    double added_sum, late_sum;
    int64_t added_max, late_max;
    int32_t late_us[SAMPLES]; /* of the last chunks */
} link_shape;

typedef enum { CHUNK_DATA, CHUNK_END, CHUNK_RESET } chunk_kind;

typedef struct chunk {
    struct chunk *next;
    int64_t read_at, due;
    chunk_kind kind;
    uint32_t len, off;
    uint8_t data[];
} chunk;

/* One direction of one connection. */
typedef struct {
    chunk *head, *tail;
    size_t bytes;
    int64_t last_due;
    bool ended;   /* its reader has seen the end */
    bool blocked; /* its writer waits until the socket takes more */
    bool lost;    /* a hole has swallowed something of it */
} stream;

/* What epoll points to. */
typedef struct {
    enum { END_CONN, END_LISTEN, END_TIMER, END_INPUT } kind;
    int side; /* 0: the client's socket, 1: the target's */
    conn *c;
    route *r;
} endpoint;

struct conn {
    conn *next;
    route *r;
    int fd[2];
    uint32_t interest[2];
    endpoint end[2];
    stream s[2];              /* up, down */
    bool connecting, waiting; /* waiting: for the end of a fault, to connect to the target */
    bool dead;
};

struct route {
    route *next;
    char name[NAME_MAX_BYTES];
    uint32_t target_ip; /* network order */
    uint16_t target_port, port;
    int listener, guard; /* listener -1: refuses */
    endpoint end;
    link_shape dir[2];
    uint64_t accepted, resets;
};

struct proxy {
    int epoll, timer;
    int64_t armed, now;
    uint64_t random;
    route *routes;
    conn *conns;
    endpoint timer_end, input_end;
    bool quit;
    uint8_t scratch[READ_MAX];
};

int64_t proxy_now(void);

/* stream.c. Each false: the connection is to be reset. */
bool stream_read(proxy *p, conn *c, int dir);
bool stream_write(proxy *p, conn *c, int dir);
void stream_break(proxy *p, conn *c, int dir);
void stream_drop(stream *s);
bool stream_wants_read(const conn *c, int dir);

/* proxy.c */
route *proxy_route(proxy *p, const char *name);
route *route_add(proxy *p, const char *name, uint32_t ip, uint16_t port, uint16_t listen_port); /* errno */
bool route_refuse(proxy *p, route *r, bool on);
void route_reset(proxy *p, route *r, bool only_lost);
void route_faults_changed(proxy *p, route *r); /* halfopen or blackhole went on or off */
