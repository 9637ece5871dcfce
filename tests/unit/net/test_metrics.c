/* The metrics port: what it gives, to whom, and what it does not mind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cw/counters.h"
#include "cw/metrics.h"

static int connect_to(const char *bound)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(strrchr(bound, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval t = {.tv_sec = 10};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* Everything up to the end of the connection. */
static size_t talk(const char *bound, const char *request, size_t n, char *out, size_t cap)
{
    int fd = connect_to(bound);
    (void)!write(fd, request, n);
    size_t got = 0;
    for (ssize_t k; got < cap - 1 && (k = recv(fd, out + got, cap - 1 - got, 0)) > 0;) got += (size_t)k;
    out[got] = 0;
    close(fd);
    return got;
}

static void counters_and_what_was_published_are_served(void **state)
{
    (void)state;
    static char out[65536];
    char bound[CW_METRICS_ADDRESS];
    cw_metrics *m = NULL;
    cw_err err;
    cw_counter_add(cw_counter_get(CW_COUNTER, "test_things_total", "kind=\"a\"", "things"), 3);
    cw_counter_add(cw_counter_get(CW_GAUGE, "test_between", "", "other"), 1);
    cw_counter_add(cw_counter_get(CW_COUNTER, "test_things_total", "kind=\"b\"", "things"), 4);
    if (cw_metrics_start("127.0.0.1:0", bound, &m, &err) != CW_OK) fail_msg("%s", err.text);
    cw_metrics_text t = {0};
    cw_metrics_head(&t, "test_up", "gauge", "up");
    cw_metrics_line2(&t, "test_up", "worker", "a \"b\"\\\n", "id", "7", 1);
    cw_metrics_publish(m, &t);
    const char *get = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    size_t n = talk(bound, get, strlen(get), out, sizeof out);
    const char *body = strstr(out, "\r\n\r\n");
    assert_non_null(body);
    assert_non_null(strstr(out, "HTTP/1.1 200 OK\r\n"));
    char length[64];
    snprintf(length, sizeof length, "Content-Length: %zu\r\n", n - (size_t)(body + 4 - out));
    assert_non_null(strstr(out, length));
    /* lines of one name stand together under one head */
    assert_non_null(strstr(body, "# TYPE test_things_total counter\ntest_things_total{kind=\"a\"} "
                                 "3\ntest_things_total{kind=\"b\"} 4\n"));
    assert_non_null(strstr(body, "# TYPE test_between gauge\ntest_between 1\n"));
    assert_non_null(strstr(body, "test_up{worker=\"a \\\"b\\\"\\\\\\n\",id=\"7\"} 1\n"));
    cw_metrics_stop(&m);
    assert_null(m);
}

static void nothing_but_loopback_and_get_is_accepted(void **state)
{
    (void)state;
    char bound[CW_METRICS_ADDRESS], out[4096];
    cw_metrics *m = NULL;
    cw_err err;
    static const char *bad[] = {"0.0.0.0:0",  "10.1.2.3:0",      "[::]:0",       "[fe80::1]:0", "127.0.0.1",
                                "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:1x", ":9100",       "",
                                "host:9100",  "127.0.0.1:-1",    "[::1:9100"};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++)
        assert_int_equal(cw_metrics_start(bad[i], bound, &m, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_metrics_start("localhost:0", bound, &m, &err), CW_OK);
    static const struct {
        const char *request, *answer;
    } t[] = {{"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"},
             {"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"},
             {"GET /metricsandmore HTTP/1.1\r\n\r\n", "HTTP/1.1 404"},
             {"GET /metrics?x=1 HTTP/1.1\r\n\r\n", "HTTP/1.1 200"},
             {"\r\n\r\n", "HTTP/1.1 405"}};
    for (size_t i = 0; i < CW_ARRAY_LEN(t); i++) {
        talk(bound, t[i].request, strlen(t[i].request), out, sizeof out);
        assert_memory_equal(out, t[i].answer, strlen(t[i].answer));
    }
    static char endless[20000];
    memset(endless, 'x', sizeof endless);
    assert_int_equal(talk(bound, endless, sizeof endless, out, sizeof out), 0);
    int idle[4]; /* a few that say nothing do not keep others out, nor the stop */
    for (int i = 0; i < 4; i++) idle[i] = connect_to(bound);
    const char *get = "GET /metrics HTTP/1.0\r\n\r\n";
    assert_true(talk(bound, get, strlen(get), out, sizeof out) > 0);
    cw_metrics_stop(&m);
    for (int i = 0; i < 4; i++) close(idle[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_and_what_was_published_are_served),
        cmocka_unit_test(nothing_but_loopback_and_get_is_accepted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
