/* Sub-commands as clients of the admin socket; see admin_cli.h. */
#include "admin_cli.h"

#include <cjson/cJSON.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "cw/signal.h"

static double num(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static const char *str(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    return cJSON_IsString(v) ? v->valuestring : "";
}

static uint64_t big(const cJSON *o, const char *name)
{
    return (uint64_t)num(o, name);
}

static void print_status(const cJSON *r)
{
    char size[32];
    printf("model    %s, digest %.16s\n", str(r, "model"), str(r, "digest"));
    printf("control  %s, store %s\n", str(r, "control"), str(r, "store"));
    if (num(r, "epoch") > 0)
        printf("epoch    %.0f.%.0f%s\n", num(r, "term"), num(r, "epoch"),
               cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(r, "settling")) ? ", settling after a restart"
                                                                             : "");
    else
        printf("epoch    none yet\n");
    printf("workers  %.0f connected of %.0f known, %.0f ready\n", num(r, "live_workers"), num(r, "workers"),
           num(r, "ready_workers"));
    printf("edges    %.0f connected\n", num(r, "edges"));
    printf("experts  %.0f of %.0f have a home, each at least %.0f\n", num(r, "covered"), num(r, "experts"),
           num(r, "min_homes"));
    if (num(r, "missing_bytes") > 0)
        printf("missing  %s of worker memory\n", cw_bytes_text(big(r, "missing_bytes"), size, sizeof size));
    if (num(r, "leaving") > 0)
        printf("leaving  %.0f workers drained or told to stop; see workers\n", num(r, "leaving"));
    if (num(r, "fenced") > 0)
        printf("fenced   %.0f workers gave wrong rows and are kept out; see workers\n", num(r, "fenced"));
    if (str(r, "metrics")[0]) printf("metrics  http://%s/metrics\n", str(r, "metrics"));
    if (str(r, "trouble")[0]) printf("trouble  %s\n", str(r, "trouble"));
    const cJSON *c, *all = cJSON_GetObjectItemCaseSensitive(r, "counters");
    bool any = false;
    cJSON_ArrayForEach(c, all)
    {
        if (!cJSON_IsNumber(c) || c->valuedouble == 0) continue;
        printf(any ? "         " : "counters ");
        printf("%s %.0f\n", c->string, c->valuedouble);
        any = true;
    }
}

static void print_workers(const cJSON *r)
{
    const cJSON *w;
    char used[32], memory[32];
    if (!cJSON_GetArraySize(r))
        printf("no worker has joined yet\n");
    else
        printf("%-20s %-8s %-15s %-24s %10s %12s  %s\n", "NAME", "STATE", "EXPERTS", "MEMORY", "CALLS",
               "ROWS", "ADDRESS");
    cJSON_ArrayForEach(w, r)
    {
        char experts[32], mem[72];
        snprintf(experts, sizeof experts, "%.0f of %.0f", num(w, "experts"), num(w, "wanted"));
        snprintf(mem, sizeof mem, "%s of %s", cw_bytes_text(big(w, "used"), used, sizeof used),
                 cw_bytes_text(big(w, "memory"), memory, sizeof memory));
        printf("%-20s %-8s %-15s %-24s %10.0f %12.0f  %s\n", str(w, "name"), str(w, "state"), experts, mem,
               num(w, "calls"), num(w, "rows"), str(w, "address"));
        printf("    key %s\n", str(w, "key"));
        if (str(w, "why")[0]) printf("    fenced: %s\n", str(w, "why"));
        if (num(w, "still_needed") > 0)
            printf("    %.0f experts here (%s) have no other home yet\n", num(w, "still_needed"),
                   cw_bytes_text(big(w, "still_needed_bytes"), used, sizeof used));
        if (str(w, "trouble")[0]) printf("    trouble: %s\n", str(w, "trouble"));
    }
}

static void print_edges(const cJSON *r)
{
    const cJSON *e;
    if (!cJSON_GetArraySize(r))
        printf("no edge is connected\n");
    else
        printf("%-20s %-8s %6s %10s %10s %8s %8s  %s\n", "NAME", "MODE", "TOKEN", "TOKENS", "CALLS",
               "RETRIES", "HEDGES", "KEY");
    cJSON_ArrayForEach(e, r)
    {
        printf("%-20s %-8s %6.0f %10.0f %10.0f %8.0f %8.0f  %s\n", str(e, "name"), str(e, "mode"),
               num(e, "token"), num(e, "tokens"), num(e, "calls"), num(e, "retries"), num(e, "hedges"),
               str(e, "key"));
        if (num(e, "reports") > 0)
            printf("    reported %.0f wrong rows, %.0f times nobody was found\n", num(e, "reports"),
                   num(e, "unfounded"));
    }
}

static void print_tokens(const cJSON *r)
{
    const cJSON *t;
    if (!cJSON_GetArraySize(r))
        printf("there are no tokens\n");
    else
        printf("%4s %-7s %-8s %-10s %6s  %s\n", "ID", "ROLE", "STATE", "USES", "KEYS", "EXPIRES");
    cJSON_ArrayForEach(t, r)
    {
        char uses[32], when[32];
        time_t at = (time_t)(num(t, "expires_ms") / 1000);
        struct tm tm;
        gmtime_r(&at, &tm);
        strftime(when, sizeof when, "%Y-%m-%d %H:%M UTC", &tm);
        if (num(t, "uses_max") > 0)
            snprintf(uses, sizeof uses, "%.0f of %.0f", num(t, "uses"), num(t, "uses_max"));
        else
            snprintf(uses, sizeof uses, "%.0f", num(t, "uses"));
        printf("%4.0f %-7s %-8s %-10s %6.0f  %s\n", num(t, "id"), str(t, "role"), str(t, "state"), uses,
               num(t, "keys"), when);
    }
}

static void print_created(const cJSON *r)
{
    printf("%s\n", str(r, "join"));
}

static void print_token_revoked(const cJSON *r)
{
    printf("token %.0f and %.0f keys it admitted are revoked\n", num(r, "revoked"), num(r, "keys"));
}

static void print_revoked(const cJSON *r)
{
    if (num(r, "revoked") > 0)
        print_token_revoked(r);
    else
        printf("revoked %s\n", str(r, "key"));
}

static void print_draining(const cJSON *r)
{
    printf("draining %s; workers shows how far it is\n", str(r, "key"));
}

static void print_drained(const cJSON *r)
{
    (void)r;
    printf("drained: no edge is sent to it any more; stop it, or let it take part again with undrain\n");
}

static void print_undrained(const cJSON *r)
{
    printf("takes part again: %s\n", str(r, "key"));
}

static void print_unfenced(const cJSON *r)
{
    printf("may come in again: %s\n", str(r, "key"));
}

static void print_epoch(const cJSON *r)
{
    const cJSON *w;
    printf("epoch %.0f.%.0f\n", num(r, "term"), num(r, "number"));
    cJSON_ArrayForEach(w, cJSON_GetObjectItemCaseSensitive(r, "workers"))
        printf("%4.0f %-20s %8.0f experts  %s\n", num(w, "id"), str(w, "name"), num(w, "experts"),
               str(w, "address"));
}

static const struct {
    const char *command, *request;
    void (*print)(const cJSON *r);
} table[] = {
    {"status", "status", print_status},     {"workers", "workers", print_workers},
    {"edges", "edges", print_edges},        {"token create", "token_create", print_created},
    {"token list", "tokens", print_tokens}, {"token revoke", "token_revoke", print_token_revoked},
    {"revoke", "revoke", print_revoked},    {"epoch", "epoch", print_epoch},
    {"drain", "drain", print_drained},      {"undrain", "undrain", print_undrained},
    {"unfence", "unfence", print_unfenced},
};

/* One object a line: a list gives as many lines as it has entries. */
static void print_json(const cJSON *r)
{
    const cJSON *item;
    if (!cJSON_IsArray(r)) {
        char *s = cJSON_PrintUnformatted(r);
        printf("%s\n", s ? s : "null");
        cJSON_free(s);
        return;
    }
    cJSON_ArrayForEach(item, r) print_json(item);
}

static cw_status make_request(const char *name, const admin_options *o, char **out, cw_err *err)
{
    cJSON *q = cJSON_CreateObject();
    cw_status s = CW_OK;
    cJSON_AddStringToObject(q, "cmd", name);
    if (strcmp(name, "token_create") == 0) {
        cJSON_AddStringToObject(q, "role", o->role == 0 ? "worker" : "edge");
        if (o->uses >= 0) cJSON_AddNumberToObject(q, "uses", (double)o->uses);
        if (o->hours > 0) cJSON_AddNumberToObject(q, "hours", o->hours);
    } else if (strcmp(name, "token_revoke") == 0) {
        char *end;
        double id = strtod(o->arg, &end);
        if (*end || id < 1)
            s = CW_FAIL(err, CW_STATUS_INVALID, "\"%s\" is no token's number; token list shows them", o->arg);
        cJSON_AddNumberToObject(q, "id", id);
    } else if (o->arg) {
        cJSON_AddStringToObject(q, "who", o->arg);
    }
    *out = s == CW_OK ? cJSON_PrintUnformatted(q) : NULL;
    cJSON_Delete(q);
    if (s == CW_OK && !*out) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    return s;
}

/* ---- drain: asked for, then watched until the worker is empty */

static bool is_key(const cJSON *w, const char *key)
{
    return strcmp(str(w, "key"), key) == 0;
}

static cw_status watch_drain(const admin_options *o, const char *key, cw_err *err)
{
    cw_progress bar;
    uint64_t total = 0;
    cw_status s = CW_OK;
    for (;;) {
        cJSON *reply = NULL;
        const cJSON *w, *mine = NULL;
        s = admin_ask(o->state_dir, "{\"cmd\":\"workers\"}", &reply, err);
        if (s == CW_OK) {
            cJSON_ArrayForEach(w, reply) if (is_key(w, key)) mine = w;
            if (!mine)
                s = CW_FAIL(err, CW_STATUS_NOT_FOUND, "the worker was revoked meanwhile");
            else if (strcmp(str(mine, "state"), "draining") != 0 &&
                     strcmp(str(mine, "state"), "drained") != 0)
                s = CW_FAIL(err, CW_STATUS_STATE, "the drain was ended: the worker is %s",
                            str(mine, "state"));
        }
        bool done = s == CW_OK && strcmp(str(mine, "state"), "drained") == 0;
        if (s == CW_OK && !done) {
            uint64_t left = big(mine, "still_needed_bytes");
            if (!total && left) cw_progress_begin(&bar, "moving experts", total = left);
            if (total) cw_progress_update(&bar, left < total ? total - left : 0);
        }
        cJSON_Delete(reply);
        if (s != CW_OK || done) break;
        if (cw_signal_stopped()) {
            s = CW_FAIL(
                err, CW_STATUS_CANCELLED,
                "not waiting any longer; the drain goes on, `workers` shows it and `undrain` ends it");
            break;
        }
        (void)poll(&(struct pollfd){.fd = cw_signal_stop_fd(), .events = POLLIN}, 1, 200);
    }
    if (total) cw_progress_end(&bar);
    return s;
}

cw_status admin_command(const char *command, const admin_options *o, cw_err *err)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(table); i++) {
        if (strcmp(table[i].command, command) != 0) continue;
        char *request = NULL;
        cJSON *reply = NULL;
        CW_TRY(make_request(table[i].request, o, &request, err));
        cw_status s = admin_ask(o->state_dir, request, &reply, err);
        cJSON_free(request);
        if (s == CW_OK && !o->no_wait && strcmp(command, "drain") == 0)
            s = watch_drain(o, str(reply, "key"), err);
        if (s != CW_OK) {
            cJSON_Delete(reply);
            return s;
        }
        if (o->json)
            print_json(reply);
        else
            (o->no_wait && strcmp(command, "drain") == 0 ? print_draining : table[i].print)(reply);
        cJSON_Delete(reply);
        return CW_OK;
    }
    return CW_FAIL(err, CW_STATUS_INVALID, "there is no command %s", command);
}
