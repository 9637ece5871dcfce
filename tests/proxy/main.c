/*
 * cw-proxy [--seed N]: proxy.h's control protocol on standard input, an answer a line on standard
 * output. It ends with its input, so it never outlives the test that started it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "proxy.h"

typedef struct {
    proxy *p;
    char line[256];
    size_t n;
} input;

static void on_input(void *ctx)
{
    input *in = ctx;
    char answer[2048];
    ssize_t n = read(STDIN_FILENO, in->line + in->n, sizeof in->line - 1 - in->n);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 || in->n + (size_t)n == sizeof in->line - 1) {
        proxy_quit(in->p);
        return;
    }
    in->n += (size_t)n;
    for (;;) {
        char *end = memchr(in->line, '\n', in->n);
        if (!end) return;
        *end = 0;
        proxy_command(in->p, in->line, answer, sizeof answer);
        printf("%s\n", answer);
        fflush(stdout);
        size_t used = (size_t)(end + 1 - in->line);
        memmove(in->line, in->line + used, in->n - used);
        in->n -= used;
    }
}

int main(int argc, char **argv)
{
    unsigned long long seed = 1;
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        seed = strtoull(argv[2], NULL, 10);
    } else if (argc != 1) {
        fprintf(stderr, "usage: %s [--seed N] <commands, see tests/proxy/proxy.h\n", argv[0]);
        return 2;
    }
    /* A network is not slower because the processors are busy: ahead of what it is tested with, if allowed.
     */
    (void)setpriority(PRIO_PROCESS, 0, -15);
    input in = {.p = proxy_new(seed)};
    bool ok = in.p && proxy_run(in.p, STDIN_FILENO, on_input, &in);
    if (!ok) fprintf(stderr, "cw-proxy: %s\n", strerror(errno));
    proxy_free(&in.p);
    return ok ? 0 : 1;
}
