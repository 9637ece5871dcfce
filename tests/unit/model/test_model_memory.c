/*
 * Peak memory of loading: the packed weights and at most 64 MiB. Measured by the kernel (VmHWM) in a process
 * of its own, on a file of some 110 MB, so that a second copy of the weights could not hide.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "cw/engine.h"
#include "model_file.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static size_t peak_bytes(void)
{
    char line[256];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lu", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

static void write_model(const char *path)
{
    model_spec s = model_spec_llama();
    s.type = CW_TYPE_F16;
    s.d = 1024;
    s.ff = 8192;
    s.heads = 16;
    s.d_head = 64;
    size_t n;
    uint8_t *bytes = model_file_bytes(&s, &n);
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0;
    _exit(ok ? 0 : 1);
}

static void load_model(const char *path)
{
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    if (cw_gguf_open(path, &g, NULL) != CW_OK) _exit(1);
    size_t before = peak_bytes();
    if (cw_engine_open(g, &(cw_engine_options){.n_threads = 1}, &e, NULL) != CW_OK) _exit(2);
    size_t grown = peak_bytes() - before, held = cw_engine_weight_bytes(e);
    printf("held %zu MiB, peak %zu MiB\n", held >> 20, grown >> 20);
    fflush(stdout);
    _exit(held > 96u << 20 && grown >= held / 2 && grown <= held + (64u << 20) ? 0 : 3);
}

static int in_a_process(void (*work)(const char *), const char *path)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) work(path);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

static void loading_peaks_at_the_packed_size_and_a_little(void **state)
{
    (void)state;
    if (SANITIZED || peak_bytes() == 0) skip();
    char path[] = "/tmp/causeway-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    int wrote = in_a_process(write_model, path), loaded = wrote ? -1 : in_a_process(load_model, path);
    unlink(path);
    assert_int_equal(wrote, 0);
    assert_int_equal(loaded, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(loading_peaks_at_the_packed_size_and_a_little)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
