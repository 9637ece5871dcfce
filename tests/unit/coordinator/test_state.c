/* The state on disk: round trip, the lock, what a damaged file says, what nobody else may read. */
#include "rig.h"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state_db.h"

static char dir[] = "/tmp/cw-state-XXXXXX";
static char path[64];

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/s", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    char cmd[100];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

static cw_state *open_state(void)
{
    cw_state *s = NULL;
    cw_err err;
    if (cw_state_open(path, &s, &err) != CW_OK) fail_msg("%s", err.text);
    return s;
}

static void what_is_saved_comes_back(void **state)
{
    (void)state;
    cw_state *s = open_state();
    uint8_t cluster[CW_CLUSTER_BYTES], epoch[3000];
    memcpy(cluster, cw_state_cluster(s), sizeof cluster);
    for (size_t i = 0; i < sizeof epoch; i++) epoch[i] = (uint8_t)(i * 7);
    cw_row rows[7] = {
        {.kind = CW_ROW_TERM, .term = 9},
        {.kind = CW_ROW_SERIAL, .serial = 3000},
        {.kind = CW_ROW_TOKEN,
         .token = {.id = 2,
                   .role = CW__PB__ROLE__ROLE_EDGE,
                   .uses_max = 5,
                   .uses = 1,
                   .max_live = 7,
                   .created_ms = 11,
                   .expires_ms = 1800000000000}},
        {.kind = CW_ROW_KEY,
         .key = {.key = rig_key(2),
                 .role = CW__PB__ROLE__ROLE_WORKER,
                 .name = "zoë",
                 .id = 2,
                 .token_id = 2,
                 .admitted_ms = 5}},
        {.kind = CW_ROW_KEY,
         .key = {.key = rig_key(1), .role = CW__PB__ROLE__ROLE_EDGE, .name = "e", .token_id = 2}},
        {.kind = CW_ROW_EPOCH, .term = 9, .number = 4, .epoch = {.data = epoch, .len = sizeof epoch}},
        {.kind = CW_ROW_TOKEN, .token = {.id = 1, .role = CW__PB__ROLE__ROLE_WORKER, .revoked = true}}};
    memset(rows[2].token.hash, 0xab, sizeof rows[2].token.hash);
    cw_err err;
    assert_int_equal(cw_state_save(s, rows, 7, &err), CW_OK);
    rows[2].token.uses = 4;
    rows[3].key.revoked = true;
    snprintf(rows[3].key.name, sizeof rows[3].key.name, "renamed");
    assert_int_equal(cw_state_save(s, &rows[2], 2, &err), CW_OK);
    assert_int_equal(cw_state_save(s, NULL, 0, &err), CW_OK);
    cw_state_close(&s);

    s = open_state();
    cw_coordinator_state got;
    assert_int_equal(cw_state_load(s, &got, &err), CW_OK);
    assert_memory_equal(cw_state_cluster(s), cluster, sizeof cluster);
    assert_int_equal(got.term, 9);
    assert_int_equal(got.serial, 3000);
    assert_int_equal(got.n_tokens, 2);
    assert_true(got.tokens[0].id == 1 && got.tokens[0].revoked);
    assert_memory_equal(&got.tokens[1], &rows[2].token, sizeof rows[2].token);
    assert_int_equal(got.n_keys, 2);
    assert_memory_equal(&got.keys[0].key, &rows[3].key.key, sizeof(cw_key));
    assert_string_equal(got.keys[0].name, "renamed");
    assert_true(got.keys[0].revoked && got.keys[0].id == 2 && got.keys[0].token_id == 2 &&
                got.keys[0].admitted_ms == 5);
    assert_string_equal(got.keys[1].name, "e");
    assert_int_equal(got.epoch_bytes, sizeof epoch);
    assert_memory_equal(got.epoch, epoch, sizeof epoch);
    cw_state_close(&s);
}

static void run_sql(const char *sql)
{
    char p[100];
    sqlite3 *db = NULL;
    char *error = NULL;
    snprintf(p, sizeof p, "%s/state.db", path);
    assert_int_equal(sqlite3_open(p, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK) fail_msg("%s", error);
    sqlite3_close(db);
}

static void marks_of_keys_come_back_and_forgotten_keys_do_not(void **state)
{
    (void)state;
    cw_state *s = open_state();
    cw_err err;
    cw_row rows[3] = {{.kind = CW_ROW_KEY,
                       .key = {.key = rig_key(41),
                               .role = CW__PB__ROLE__ROLE_WORKER,
                               .id = 9,
                               .drained = true,
                               .seen_ms = 77}},
                      {.kind = CW_ROW_KEY,
                       .key = {.key = rig_key(42),
                               .role = CW__PB__ROLE__ROLE_WORKER,
                               .id = 10,
                               .fenced = true,
                               .note = "why"}},
                      {.kind = CW_ROW_KEY, .key = {.key = rig_key(43), .role = CW__PB__ROLE__ROLE_EDGE}}};
    assert_int_equal(cw_state_save(s, rows, 3, &err), CW_OK);
    rows[2].key.forgotten = true;
    assert_int_equal(cw_state_save(s, &rows[2], 1, &err), CW_OK);
    cw_state_close(&s);
    s = open_state();
    cw_coordinator_state got;
    int seen = 0;
    assert_int_equal(cw_state_load(s, &got, &err), CW_OK);
    for (size_t i = 0; i < got.n_keys; i++) {
        const cw_key_row *k = &got.keys[i];
        if (k->id == 9) seen += k->drained && !k->fenced && k->seen_ms == 77 && !k->note[0];
        if (k->id == 10) seen += !k->drained && k->fenced && strcmp(k->note, "why") == 0;
        assert_false(cw_key_equal(&k->key, &rows[2].key.key));
    }
    assert_int_equal(seen, 2);
    cw_state_close(&s);
}

/* The columns and the version as the first release wrote them. */
static void a_state_of_the_first_schema_is_brought_up(void **state)
{
    (void)state;
    cw_state *s = open_state();
    cw_err err;
    cw_row row = {.kind = CW_ROW_KEY,
                  .key = {.key = rig_key(44), .role = CW__PB__ROLE__ROLE_WORKER, .id = 11, .name = "old"}};
    assert_int_equal(cw_state_save(s, &row, 1, &err), CW_OK);
    cw_state_close(&s);
    run_sql("ALTER TABLE keys DROP COLUMN flags; ALTER TABLE keys DROP COLUMN note; ALTER TABLE keys DROP "
            "COLUMN seen_ms;"
            "PRAGMA user_version = 1");
    s = open_state();
    cw_coordinator_state got;
    bool found = false;
    assert_int_equal(cw_state_load(s, &got, &err), CW_OK);
    for (size_t i = 0; i < got.n_keys; i++)
        found |= got.keys[i].id == 11 && !got.keys[i].fenced && !got.keys[i].drained &&
                 !strcmp(got.keys[i].name, "old");
    assert_true(found);
    row.key.fenced = true;
    assert_int_equal(cw_state_save(s, &row, 1, &err), CW_OK);
    cw_state_close(&s);
}

static void *commit_soon(void *db)
{
    usleep(200000); /* not a wait for a condition: how long the lock is held */
    (void)sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    return NULL;
}

static void a_lock_that_somebody_holds_for_a_moment_is_waited_for(void **state)
{
    (void)state;
    cw_state *s = open_state();
    char p[100];
    sqlite3 *other = NULL;
    snprintf(p, sizeof p, "%s/state.db", path);
    assert_int_equal(sqlite3_open(p, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, commit_soon, other), 0);
    cw_row row = {.kind = CW_ROW_TERM, .term = 5};
    cw_err err;
    if (cw_state_save(s, &row, 1, &err) != CW_OK) fail_msg("%s", err.text);
    pthread_join(t, NULL);
    sqlite3_close(other);
    cw_state_close(&s);
}

static void a_second_coordinator_is_turned_away(void **state)
{
    (void)state;
    cw_state *s = open_state(), *second = NULL;
    cw_err err;
    assert_int_equal(cw_state_open(path, &second, &err), CW_STATUS_BUSY);
    assert_non_null(strstr(err.text, "--state"));
    cw_state_close(&s);
    s = open_state();
    cw_state_close(&s);
}

static void only_the_owner_can_read_it(void **state)
{
    (void)state;
    cw_state *s = open_state();
    static const char *files[] = {"", "/state.db", "/lock"};
    for (size_t i = 0; i < CW_ARRAY_LEN(files); i++) {
        char p[100];
        struct stat st;
        snprintf(p, sizeof p, "%s%s", path, files[i]);
        assert_int_equal(stat(p, &st), 0);
        assert_int_equal(st.st_mode & 077, 0);
    }
    cw_state_close(&s);
}

/* Overwrites part of the database; `n` 0 cuts it at `at`. */
static void damage(off_t at, size_t n)
{
    char p[100], junk[4096];
    snprintf(p, sizeof p, "%s/state.db", path);
    memset(junk, 0x5a, sizeof junk);
    int fd = open(p, O_WRONLY);
    assert_true(fd >= 0);
    if (n)
        assert_int_equal(pwrite(fd, junk, n, at), (ssize_t)n);
    else
        assert_int_equal(ftruncate(fd, at), 0);
    close(fd);
}

static void a_damaged_file_is_a_sentence(void **state)
{
    (void)state;
    static const struct {
        off_t at;
        size_t n;
    } cases[] = {{0, 100}, {4096, 4000}, {8192, 4000}, {5000, 0}};
    for (size_t i = 0; i < CW_ARRAY_LEN(cases); i++) {
        char cmd[100];
        snprintf(cmd, sizeof cmd, "rm -rf '%s'", path);
        assert_int_equal(system(cmd), 0);
        cw_state *s = open_state();
        cw_err err;
        cw_row row = {.kind = CW_ROW_TERM, .term = 3};
        assert_int_equal(cw_state_save(s, &row, 1, &err), CW_OK);
        cw_state_close(&s);
        damage(cases[i].at, cases[i].n);
        s = NULL;
        assert_int_equal(cw_state_open(path, &s, &err), CW_STATUS_FORMAT);
        assert_null(s);
        assert_non_null(strstr(err.text, "state.db is damaged"));
        assert_non_null(strstr(err.text, "restore a copy"));
    }
    char cmd[100];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", path);
    assert_int_equal(system(cmd), 0);
}

static void a_later_schema_is_not_touched(void **state)
{
    (void)state;
    cw_state *s = open_state();
    cw_state_close(&s);
    char p[100];
    snprintf(p, sizeof p, "%s/state.db", path);
    int fd = open(p, O_WRONLY); /* PRAGMA user_version is a big-endian number at byte 60 of the file */
    assert_int_equal(pwrite(fd, "\0\0\0\x63", 4, 60), 4);
    close(fd);
    cw_err err;
    assert_int_equal(cw_state_open(path, &s, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "later version"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_saved_comes_back),
        cmocka_unit_test(marks_of_keys_come_back_and_forgotten_keys_do_not),
        cmocka_unit_test(a_state_of_the_first_schema_is_brought_up),
        cmocka_unit_test(a_lock_that_somebody_holds_for_a_moment_is_waited_for),
        cmocka_unit_test(a_second_coordinator_is_turned_away),
        cmocka_unit_test(only_the_owner_can_read_it),
        cmocka_unit_test(a_damaged_file_is_a_sentence),
        cmocka_unit_test(a_later_schema_is_not_touched),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
