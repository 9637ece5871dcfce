/* See cw/bench_others.h. Reads /proc, text of the kernel's own; other systems get "not told". */
#include "cw/bench_others.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STATE_LISTEN = 0x0a };

/* The inode of the listening socket; 0: there is none. */
static unsigned long inode_of(const char *table, uint16_t port)
{
    FILE *f = fopen(table, "r");
    char line[512];
    unsigned long found = 0;
    while (f && !found && fgets(line, sizeof line, f)) {
        unsigned local, state;
        unsigned long inode;
        /* sl: local:port remote:port state tx:rx timer:when retransmits uid timeout inode */
        if (sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*x:%*x %*x:%*x %*x %*u %*d %lu",
                   &local, &state, &inode) == 3 &&
            state == STATE_LISTEN && local == port)
            found = inode;
    }
    if (f) fclose(f);
    return found;
}

static bool holds(const char *pid, const char *socket)
{
    char dir[64], path[400], to[64];
    snprintf(dir, sizeof dir, "/proc/%.20s/fd", pid);
    DIR *d = opendir(dir);
    bool found = false;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        ssize_t n = readlink(path, to, sizeof to - 1);
        if (n <= 0) continue;
        to[n] = 0;
        found = strcmp(to, socket) == 0;
    }
    if (d) closedir(d);
    return found;
}

int cw_bench_listener_pid(uint16_t port)
{
    unsigned long inode = inode_of("/proc/net/tcp", port);
    if (!inode) inode = inode_of("/proc/net/tcp6", port);
    if (!inode) return 0;
    char socket[64];
    snprintf(socket, sizeof socket, "socket:[%lu]", inode);
    DIR *d = opendir("/proc");
    int pid = 0;
    for (struct dirent *e; d && !pid && (e = readdir(d));)
        if (isdigit((unsigned char)e->d_name[0]) && holds(e->d_name, socket)) pid = atoi(e->d_name);
    if (d) closedir(d);
    return pid;
}

int64_t cw_bench_process_ns(int pid)
{
    char dir[64], path[400];
    snprintf(dir, sizeof dir, "/proc/%d/task", pid);
    DIR *d = opendir(dir);
    int64_t sum = 0;
    bool told = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        int64_t ns;
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        snprintf(path, sizeof path, "%s/%s/schedstat", dir, e->d_name);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%" SCNd64, &ns) == 1) sum += ns, told = true;
        if (f) fclose(f);
    }
    if (d) closedir(d);
    return told ? sum : -1;
}
