/* Files, locks, state directories; counters, signals and the progress line, which are too small for files of
 * their own. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/counters.h"
#include "cw/fs.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "cw/signal.h"

static char dir[] = "/tmp/cw-fs-XXXXXX";

static const char *at(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    char cmd[300];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

static void written_files_are_whole_and_keep_their_mode(void **state)
{
    (void)state;
    cw_err err;
    assert_int_equal(cw_fs_write(at("a"), "hello\n", 6, 0600, &err), CW_OK);
    assert_int_equal(cw_fs_write(at("a"), "again\n", 6, 0640, &err), CW_OK);
    struct stat st;
    assert_int_equal(stat(at("a"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    char *text;
    size_t n;
    assert_int_equal(cw_fs_read(at("a"), 6, &text, &n, &err), CW_OK);
    assert_int_equal(n, 6);
    assert_string_equal(text, "again\n");
    cw_free(text);
    assert_int_equal(cw_fs_read(at("a"), 5, &text, &n, &err), CW_STATUS_LIMIT);
    assert_int_equal(cw_fs_read(at("none"), 5, &text, &n, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "none"));
    assert_int_equal(cw_fs_write(at("no/such/dir"), "x", 1, 0600, &err), CW_STATUS_NOT_FOUND);
}

static void values_may_come_from_files(void **state)
{
    (void)state;
    cw_err err;
    char *text, arg[300];
    assert_int_equal(cw_fs_write(at("secret"), "cw1-abc \n\n", 10, 0600, &err), CW_OK);
    snprintf(arg, sizeof arg, "@%s", at("secret"));
    assert_int_equal(cw_fs_read_arg(arg, 100, &text, &err), CW_OK);
    assert_string_equal(text, "cw1-abc");
    cw_free(text);
    assert_int_equal(cw_fs_read_arg("plain", 100, &text, &err), CW_OK);
    assert_string_equal(text, "plain");
    cw_free(text);
    assert_int_equal(cw_fs_read_arg("plain", 4, &text, &err), CW_STATUS_LIMIT);
}

static void private_directories_stay_private(void **state)
{
    (void)state;
    cw_err err;
    assert_int_equal(cw_fs_private_dir(at("p/q/r"), &err), CW_OK);
    struct stat st;
    assert_int_equal(stat(at("p/q/r"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(cw_fs_private_dir(at("p/q/r"), &err), CW_OK);
    assert_int_equal(chmod(at("p/q/r"), 0755), 0);
    assert_int_equal(cw_fs_private_dir(at("p/q/r"), &err), CW_STATUS_AUTH);
    assert_non_null(strstr(err.text, "chmod 700"));
}

static void a_lock_names_its_holder(void **state)
{
    (void)state;
    cw_err err;
    cw_lock *a = NULL, *b = NULL;
    assert_int_equal(cw_fs_lock(at("lock"), &a, &err), CW_OK);
    assert_int_equal(cw_fs_lock(at("lock"), &b, &err), CW_STATUS_BUSY);
    char pid[24];
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    assert_non_null(strstr(err.text, pid));
    cw_fs_unlock(&a);
    assert_null(a);
    assert_int_equal(cw_fs_lock(at("lock"), &b, &err), CW_OK);
    cw_fs_unlock(&b);
}

static void state_directory_follows_the_environment(void **state)
{
    (void)state;
    cw_err err;
    char *p;
    setenv("XDG_STATE_HOME", "/x/state", 1);
    assert_int_equal(cw_fs_state_dir("worker", &p, &err), CW_OK);
    assert_string_equal(p, "/x/state/causeway/worker");
    cw_free(p);
    unsetenv("XDG_STATE_HOME");
    setenv("HOME", "/home/a", 1);
    assert_int_equal(cw_fs_state_dir(NULL, &p, &err), CW_OK);
    assert_string_equal(p, "/home/a/.local/state/causeway");
    cw_free(p);
}

static void count_one(void *ctx, cw_counter *c)
{
    if (strcmp(c->name, "t_total") == 0) *(int64_t *)ctx += cw_counter_read(c);
}

static void counters_are_shared_by_name_and_labels(void **state)
{
    (void)state;
    cw_counter *a = cw_counter_get(CW_COUNTER, "t_total", "w=\"1\"", "test"),
               *b = cw_counter_get(CW_COUNTER, "t_total", "w=\"2\"", "test");
    assert_ptr_not_equal(a, b);
    assert_ptr_equal(a, cw_counter_get(CW_COUNTER, "t_total", "w=\"1\"", "test"));
    cw_counter_add(a, 3);
    cw_counter_add(b, 4);
    int64_t sum = 0;
    cw_counters_each(count_one, &sum);
    assert_int_equal(sum, 7);
}

static void signals_become_data(void **state)
{
    (void)state;
    pid_t child = fork(); /* the handlers stay out of the test process */
    if (child == 0) {
        cw_err err;
        signal(SIGINT, SIG_DFL); /* whatever started this test */
        if (cw_signal_install(&err) != CW_OK) _exit(1);
        cw_signal_set_interrupt(true);
        raise(SIGINT);
        if (cw_signal_stopped() || !cw_signal_interrupted()) _exit(2);
        cw_signal_clear_interrupt();
        if (cw_signal_interrupted()) _exit(3);
        struct pollfd p = {.fd = cw_signal_stop_fd(), .events = POLLIN};
        if (poll(&p, 1, 0) != 0) _exit(4);
        raise(SIGTERM);
        if (!cw_signal_stopped() || poll(&p, 1, 0) != 1) _exit(5);
        cw_signal_clear_interrupt();
        if (!atomic_load(cw_signal_interrupt_flag())) _exit(6);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void progress_tells_how_long(void **state)
{
    (void)state;
    char text[200];
    cw_progress p = {.label = "loading", .total = 24u << 20, .done = 12u << 20};
    cw_progress_text(&p, 3000000, text, sizeof text);
    assert_string_equal(text, "loading  12.0 MiB of 24.0 MiB  50 %  3 s left");
    p.done = p.total;
    cw_progress_text(&p, 3000000, text, sizeof text);
    assert_string_equal(text, "loading  24.0 MiB of 24.0 MiB  100 %");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_files_are_whole_and_keep_their_mode),
        cmocka_unit_test(values_may_come_from_files),
        cmocka_unit_test(private_directories_stay_private),
        cmocka_unit_test(a_lock_names_its_holder),
        cmocka_unit_test(state_directory_follows_the_environment),
        cmocka_unit_test(counters_are_shared_by_name_and_labels),
        cmocka_unit_test(signals_become_data),
        cmocka_unit_test(progress_tells_how_long),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
