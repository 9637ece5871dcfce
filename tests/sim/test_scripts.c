/*
 * The same stories in the simulator and on real sockets give the same events; see script.h.
 *
 *   test_scripts [--sim] [--print] [NUMBER...]    --sim: in the simulator alone; --print: what was seen
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "script.h"

static char in_sim[STORY_TEXT], on_sockets[STORY_TEXT];

/* The first line that differs, with the step it belongs to. */
static void print_difference(const char *a, const char *b)
{
    char step[128] = "";
    while (*a || *b) {
        size_t n = strcspn(a, "\n"), k = strcspn(b, "\n");
        if (n != k || memcmp(a, b, n) != 0) {
            printf("  in \"%s\"\n    simulator: %.*s\n    sockets:   %.*s\n", step, (int)n, a, (int)k, b);
            return;
        }
        if (strncmp(a, "    ", 4) != 0) snprintf(step, sizeof step, "%.*s", (int)(n > 2 ? n - 2 : 0), a + 2);
        a += n + (a[n] == '\n');
        b += k + (b[k] == '\n');
    }
}

static bool same(const script *s, bool sim_alone, bool print, const char *proxy)
{
    const char *why = script_in_simulator(s, print && sim_alone, in_sim);
    if (why || print) printf("%s, in the simulator: %s\n%s", s->name, why ? why : "as it should", in_sim);
    if (why || sim_alone) return !why;
    why = script_on_sockets(s, proxy, on_sockets);
    if (why || print) printf("%s, on sockets: %s\n%s", s->name, why ? why : "as it should", on_sockets);
    if (why) return false;
    if (strcmp(in_sim, on_sockets) == 0) return true;
    printf("%s: the two worlds differ\n", s->name);
    print_difference(in_sim, on_sockets);
    return false;
}

/* Stories mostly wait, so several run at once, each in a process with what it starts. */
enum { AT_ONCE = 4 };

static void begin(const script *s, int number, bool sim_alone, bool print, const char *proxy)
{
    fflush(stdout);
    pid_t pid = fork();
    CW_ASSERT(pid >= 0);
    if (pid) return;
    bool ok = same(s, sim_alone, print, proxy);
    printf("%s %d: %s\n", ok ? "ok    " : "FAILED", number, s->name);
    fflush(stdout);
    _exit(!ok);
}

static bool one_ended(void)
{
    int status = 0;
    return wait(&status) > 0 && status == 0;
}

int main(int argc, char **argv)
{
    bool sim_alone = false, print = false, chosen = false, run[32] = {false};
    char proxy[512];
    int failed = 0, n = 0, ended = 0;
    const char *slash = strrchr(argv[0], '/');
    snprintf(proxy, sizeof proxy, "%.*scw-proxy", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    for (int i = 1; i < argc; i++) {
        size_t k = strtoul(argv[i], NULL, 10);
        if (!strcmp(argv[i], "--sim"))
            sim_alone = true;
        else if (!strcmp(argv[i], "--print"))
            print = true;
        else if (k >= 1 && k <= n_scripts)
            run[k - 1] = chosen = true;
        else
            return fprintf(stderr, "usage: %s [--sim] [--print] [1-%zu ...]\n", argv[0], n_scripts), 2;
    }
    CW_ASSERT(n_scripts <= CW_ARRAY_LEN(run));
    cw_log_set_level(CW_LOG_ERROR);
    for (size_t i = 0; i < n_scripts; i++) {
        if (chosen && !run[i]) continue;
        if (n - ended >= AT_ONCE) failed += !one_ended(), ended++;
        begin(&scripts[i], (int)i + 1, sim_alone, print, proxy);
        n++;
    }
    for (; ended < n; ended++) failed += !one_ended();
    printf("%d passed, %d failed\n", n - failed, failed);
    return failed ? 1 : 0;
}
