/* The coordinator's state in SQLite; see state_db.h. Schema version in PRAGMA user_version. */
#include "state_db.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cw/fs.h"
#include "cw/keys.h"
#include "cw/mem.h"

/* 2: keys have flags, note and seen_ms. */
enum { SCHEMA_VERSION = 2, FLAG_DRAINED = 1, FLAG_FENCED = 2, BUSY_MS = 3000 };

#define KEY_COLUMNS_2                                                                                        \
    " flags INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '', seen_ms INTEGER NOT NULL DEFAULT 0"
static const char schema[] =
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    "CREATE TABLE tokens(id INTEGER PRIMARY KEY, role INTEGER NOT NULL, hash BLOB NOT NULL, uses_max INTEGER "
    "NOT NULL,"
    " uses INTEGER NOT NULL, max_live INTEGER NOT NULL, created_ms INTEGER NOT NULL, expires_ms INTEGER NOT "
    "NULL,"
    " revoked INTEGER NOT NULL);"
    "CREATE TABLE keys(key BLOB PRIMARY KEY, role INTEGER NOT NULL, name TEXT NOT NULL, id INTEGER NOT NULL,"
    " token_id INTEGER NOT NULL, admitted_ms INTEGER NOT NULL, revoked INTEGER NOT NULL," KEY_COLUMNS_2 ");";

/* What each later schema adds to the one before. */
static const char *const upgrades[SCHEMA_VERSION] = {
    [1] = "ALTER TABLE keys ADD COLUMN flags INTEGER NOT NULL DEFAULT 0;"
          "ALTER TABLE keys ADD COLUMN note TEXT NOT NULL DEFAULT '';"
          "ALTER TABLE keys ADD COLUMN seen_ms INTEGER NOT NULL DEFAULT 0;",
};

enum { PUT_META, PUT_TOKEN, PUT_KEY, DELETE_KEY, N_STATEMENTS };
static const char *const statements[N_STATEMENTS] = {
    [PUT_META] = "INSERT INTO meta(name, value) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET value = ?2",
    [PUT_TOKEN] = "INSERT INTO tokens VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT(id) DO UPDATE "
                  "SET uses = ?5, revoked = ?9",
    [PUT_KEY] = "INSERT INTO keys VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT(key) DO UPDATE "
                "SET name = ?3, revoked = ?7, flags = ?8, note = ?9, seen_ms = ?10",
    [DELETE_KEY] = "DELETE FROM keys WHERE key = ?1",
};

struct cw_state {
    char *path;
    cw_lock *lock;
    sqlite3 *db;
    sqlite3_stmt *put[N_STATEMENTS];
    uint8_t cluster[CW_CLUSTER_BYTES];
    cw_token_row *tokens;
    cw_key_row *keys;
    uint8_t *epoch;
};

/* The database's own words, with what a user can do about them. */
static cw_status db_fail(const cw_state *s, cw_err *err)
{
    int code = s->db ? sqlite3_extended_errcode(s->db) & 0xff : SQLITE_NOMEM;
    const char *what = s->db ? sqlite3_errmsg(s->db) : "out of memory";
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_MISMATCH)
        return CW_FAIL(
            err, CW_STATUS_FORMAT,
            "%s is damaged (%s): restore a copy, or move it away and let workers and edges join again with "
            "new join strings",
            s->path, what);
    if (code == SQLITE_FULL) return CW_FAIL(err, CW_STATUS_IO, "no space left to save %s", s->path);
    if (code == SQLITE_NOMEM) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %s", s->path);
    return CW_FAIL(err, CW_STATUS_IO, "%s: %s", s->path, what);
}

static cw_status exec(cw_state *s, const char *sql, cw_err *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? CW_OK : db_fail(s, err);
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

static cw_status damaged(const cw_state *s, const char *what, cw_err *err)
{
    return CW_FAIL(
        err, CW_STATUS_FORMAT,
        "%s is damaged (%s): restore a copy, or move it away and let workers and edges join again with "
        "new join strings",
        s->path, what);
}

static cw_status check_intact(cw_state *s, cw_err *err)
{
    sqlite3_stmt *q = NULL;
    cw_status st = CW_OK;
    if (sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &q, NULL) != SQLITE_OK ||
        sqlite3_step(q) != SQLITE_ROW)
        st = db_fail(s, err);
    else if (strcmp((const char *)sqlite3_column_text(q, 0), "ok") != 0)
        st = damaged(s, (const char *)sqlite3_column_text(q, 0), err);
    sqlite3_finalize(q);
    return st;
}

static cw_status get_version(cw_state *s, int *version, cw_err *err)
{
    sqlite3_stmt *q = NULL;
    cw_status st = CW_OK;
    if (sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &q, NULL) != SQLITE_OK ||
        sqlite3_step(q) != SQLITE_ROW)
        st = db_fail(s, err);
    else
        *version = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    return st;
}

static cw_status put_meta_blob(cw_state *s, const char *name, const void *data, size_t n, cw_err *err)
{
    sqlite3_stmt *q = s->put[PUT_META];
    sqlite3_bind_text(q, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_blob64(q, 2, data, n, SQLITE_STATIC);
    int rc = sqlite3_step(q);
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? CW_OK : db_fail(s, err);
}

static cw_status put_meta_int(cw_state *s, const char *name, uint64_t v, cw_err *err)
{
    sqlite3_stmt *q = s->put[PUT_META];
    sqlite3_bind_text(q, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 2, (sqlite3_int64)v);
    int rc = sqlite3_step(q);
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? CW_OK : db_fail(s, err);
}

static cw_status prepare(cw_state *s, cw_err *err)
{
    for (int i = 0; i < N_STATEMENTS; i++)
        if (sqlite3_prepare_v2(s->db, statements[i], -1, &s->put[i], NULL) != SQLITE_OK)
            return db_fail(s, err);
    return CW_OK;
}

/* Schema, prepared statements and the cluster's name, which is made with the state. */
static cw_status make_schema(cw_state *s, cw_err *err)
{
    char pragma[64];
    snprintf(pragma, sizeof pragma, "PRAGMA user_version = %d", SCHEMA_VERSION);
    CW_TRY(exec(s, "BEGIN IMMEDIATE", err));
    CW_TRY(exec(s, schema, err));
    CW_TRY(exec(s, pragma, err));
    CW_TRY(prepare(s, err));
    cw_random(s->cluster, sizeof s->cluster);
    CW_TRY(put_meta_blob(s, "cluster", s->cluster, sizeof s->cluster, err));
    return exec(s, "COMMIT", err);
}

static cw_status upgrade(cw_state *s, int version, cw_err *err)
{
    char pragma[64];
    snprintf(pragma, sizeof pragma, "PRAGMA user_version = %d", SCHEMA_VERSION);
    CW_TRY(exec(s, "BEGIN IMMEDIATE", err));
    for (; version < SCHEMA_VERSION; version++) CW_TRY(exec(s, upgrades[version], err));
    CW_TRY(exec(s, pragma, err));
    return exec(s, "COMMIT", err);
}

static cw_status load_cluster(cw_state *s, cw_err *err)
{
    sqlite3_stmt *q = NULL;
    cw_status st = CW_OK;
    if (sqlite3_prepare_v2(s->db, "SELECT value FROM meta WHERE name = 'cluster'", -1, &q, NULL) != SQLITE_OK)
        st = db_fail(s, err);
    else if (sqlite3_step(q) != SQLITE_ROW || sqlite3_column_bytes(q, 0) != CW_CLUSTER_BYTES)
        st = damaged(s, "the cluster's id is missing", err);
    else
        memcpy(s->cluster, sqlite3_column_blob(q, 0), CW_CLUSTER_BYTES);
    sqlite3_finalize(q);
    return st;
}

static cw_status open_db(cw_state *s, cw_err *err)
{
    mode_t old = umask(077);
    int rc = sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    umask(old);
    if (rc != SQLITE_OK) return db_fail(s, err);
    /* An operator's copy or look at the file may hold it for a moment. */
    (void)sqlite3_busy_timeout(s->db, BUSY_MS);
    int version = 0;
    CW_TRY(get_version(s, &version, err));
    if (version > SCHEMA_VERSION)
        return CW_FAIL(
            err, CW_STATUS_FORMAT,
            "%s was written by a later version of causeway (schema %d, this one knows %d): update it",
            s->path, version, SCHEMA_VERSION);
    CW_TRY(check_intact(s, err));
    CW_TRY(exec(s, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON", err));
    if (version == 0) return make_schema(s, err);
    if (version < SCHEMA_VERSION) CW_TRY(upgrade(s, version, err));
    CW_TRY(load_cluster(s, err));
    return prepare(s, err);
}

cw_status cw_state_open(const char *dir, cw_state **out, cw_err *err)
{
    CW_TRY(cw_fs_private_dir(dir, err));
    cw_status st = CW_OK;
    char *lock_path = cw_fs_join(dir, "lock");
    cw_state *s = cw_calloc(1, sizeof *s);
    if (s) s->path = cw_fs_join(dir, "state.db");
    if (!lock_path || !s || !s->path) {
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the state");
        goto fail;
    }
    st = cw_fs_lock(lock_path, &s->lock, err);
    if (st == CW_STATUS_BUSY)
        cw_err_prefix(err, "another coordinator runs with this state, give each its own with --state");
    if (st == CW_OK) st = open_db(s, err);
    if (st != CW_OK) goto fail;
    cw_free(lock_path);
    *out = s;
    return CW_OK;
fail:
    cw_free(lock_path);
    cw_state_close(&s);
    return st;
}

static void forget_loaded(cw_state *s)
{
    cw_free(s->tokens);
    cw_free(s->keys);
    cw_free(s->epoch);
    s->tokens = NULL;
    s->keys = NULL;
    s->epoch = NULL;
}

void cw_state_close(cw_state **ps)
{
    cw_state *s = ps ? *ps : NULL;
    if (!s) return;
    for (int i = 0; i < N_STATEMENTS; i++) sqlite3_finalize(s->put[i]);
    if (s->db) sqlite3_close(s->db);
    forget_loaded(s);
    cw_fs_unlock(&s->lock);
    cw_free(s->path);
    cw_free(s);
    *ps = NULL;
}

const uint8_t *cw_state_cluster(const cw_state *s)
{
    return s->cluster;
}

/* ---- loading
 * ------------------------------------------------------------------------------------------------ */

/* Calls row() for each result, which may refuse it (then the file is damaged). */
static cw_status each(cw_state *s, const char *sql, bool (*row)(sqlite3_stmt *q, void *ctx), void *ctx,
                      cw_err *err)
{
    sqlite3_stmt *q = NULL;
    if (sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) != SQLITE_OK) return db_fail(s, err);
    cw_status st = CW_OK;
    int rc;
    while (st == CW_OK && (rc = sqlite3_step(q)) != SQLITE_DONE) {
        if (rc != SQLITE_ROW)
            st = db_fail(s, err);
        else if (!row(q, ctx))
            st = damaged(s, "a row makes no sense", err);
    }
    sqlite3_finalize(q);
    return st;
}

typedef struct {
    cw_state *s;
    size_t n, cap;
    cw_coordinator_state *out;
} loading;

static bool get_blob(sqlite3_stmt *q, int column, void *dst, size_t n)
{
    const void *p = sqlite3_column_blob(q, column);
    if ((size_t)sqlite3_column_bytes(q, column) != n || !p) return false;
    memcpy(dst, p, n);
    return true;
}

static bool more(void **items, loading *l, size_t item)
{
    if (l->n < l->cap) return true;
    l->cap = l->cap ? 2 * l->cap : 64;
    void *p = cw_realloc(*items, l->cap, item);
    if (p) *items = p;
    return p != NULL;
}

static bool load_token(sqlite3_stmt *q, void *ctx)
{
    loading *l = ctx;
    if (!more((void **)&l->s->tokens, l, sizeof *l->s->tokens)) return false;
    cw_token_row *t = &l->s->tokens[l->n];
    *t = (cw_token_row){.id = (uint32_t)sqlite3_column_int64(q, 0),
                        .role = (Cw__Pb__Role)sqlite3_column_int(q, 1),
                        .uses_max = (uint32_t)sqlite3_column_int64(q, 3),
                        .uses = (uint32_t)sqlite3_column_int64(q, 4),
                        .max_live = (uint32_t)sqlite3_column_int64(q, 5),
                        .created_ms = sqlite3_column_int64(q, 6),
                        .expires_ms = sqlite3_column_int64(q, 7),
                        .revoked = sqlite3_column_int(q, 8) != 0};
    if (!get_blob(q, 2, t->hash, sizeof t->hash)) return false;
    l->n++;
    return true;
}

static bool load_key(sqlite3_stmt *q, void *ctx)
{
    loading *l = ctx;
    if (!more((void **)&l->s->keys, l, sizeof *l->s->keys)) return false;
    cw_key_row *k = &l->s->keys[l->n];
    *k = (cw_key_row){.role = (Cw__Pb__Role)sqlite3_column_int(q, 1),
                      .id = (uint32_t)sqlite3_column_int64(q, 3),
                      .token_id = (uint32_t)sqlite3_column_int64(q, 4),
                      .admitted_ms = sqlite3_column_int64(q, 5),
                      .revoked = sqlite3_column_int(q, 6) != 0,
                      .drained = (sqlite3_column_int(q, 7) & FLAG_DRAINED) != 0,
                      .fenced = (sqlite3_column_int(q, 7) & FLAG_FENCED) != 0,
                      .seen_ms = sqlite3_column_int64(q, 9)};
    const char *name = (const char *)sqlite3_column_text(q, 2),
               *note = (const char *)sqlite3_column_text(q, 8);
    if (!name || strlen(name) > CW_NAME_MAX || !note || !get_blob(q, 0, k->key.b, CW_KEY_BYTES)) return false;
    snprintf(k->name, sizeof k->name, "%s", name);
    snprintf(k->note, sizeof k->note, "%s", note);
    l->n++;
    return true;
}

static bool load_meta(sqlite3_stmt *q, void *ctx)
{
    loading *l = ctx;
    const char *name = (const char *)sqlite3_column_text(q, 0);
    if (!name) return false;
    if (strcmp(name, "term") == 0) l->out->term = (uint64_t)sqlite3_column_int64(q, 1);
    if (strcmp(name, "serial") == 0) l->out->serial = (uint64_t)sqlite3_column_int64(q, 1);
    if (strcmp(name, "epoch") != 0) return true;
    size_t n = (size_t)sqlite3_column_bytes(q, 1);
    if (!n || n > CW_EPOCH_MAX || !(l->s->epoch = cw_calloc(n, 1))) return false;
    l->out->epoch_bytes = n;
    return get_blob(q, 1, l->s->epoch, n);
}

cw_status cw_state_load(cw_state *s, cw_coordinator_state *out, cw_err *err)
{
    forget_loaded(s);
    cw_coordinator_state st = {0};
    loading tokens = {.s = s}, keys = {.s = s}, meta = {.s = s, .out = &st};
    CW_TRY(each(s,
                "SELECT id, role, hash, uses_max, uses, max_live, created_ms, expires_ms, revoked FROM "
                "tokens ORDER BY id",
                load_token, &tokens, err));
    CW_TRY(each(
        s,
        "SELECT key, role, name, id, token_id, admitted_ms, revoked, flags, note, seen_ms FROM keys ORDER BY "
        "rowid",
        load_key, &keys, err));
    CW_TRY(each(s, "SELECT name, value FROM meta", load_meta, &meta, err));
    st.tokens = s->tokens;
    st.n_tokens = tokens.n;
    st.keys = s->keys;
    st.n_keys = keys.n;
    st.epoch = s->epoch;
    *out = st;
    return CW_OK;
}

/* ---- saving
 * ------------------------------------------------------------------------------------------------- */

static cw_status save_token_row(cw_state *s, const cw_token_row *t, cw_err *err)
{
    sqlite3_stmt *q = s->put[PUT_TOKEN];
    sqlite3_bind_int64(q, 1, t->id);
    sqlite3_bind_int(q, 2, (int)t->role);
    sqlite3_bind_blob(q, 3, t->hash, sizeof t->hash, SQLITE_STATIC);
    sqlite3_bind_int64(q, 4, t->uses_max);
    sqlite3_bind_int64(q, 5, t->uses);
    sqlite3_bind_int64(q, 6, t->max_live);
    sqlite3_bind_int64(q, 7, t->created_ms);
    sqlite3_bind_int64(q, 8, t->expires_ms);
    sqlite3_bind_int(q, 9, t->revoked);
    int rc = sqlite3_step(q);
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? CW_OK : db_fail(s, err);
}

static cw_status save_key_row(cw_state *s, const cw_key_row *k, cw_err *err)
{
    sqlite3_stmt *q = s->put[k->forgotten ? DELETE_KEY : PUT_KEY];
    sqlite3_bind_blob(q, 1, k->key.b, CW_KEY_BYTES, SQLITE_STATIC);
    if (k->forgotten) {
        int gone = sqlite3_step(q);
        sqlite3_reset(q);
        return gone == SQLITE_DONE ? CW_OK : db_fail(s, err);
    }
    sqlite3_bind_int(q, 2, (int)k->role);
    sqlite3_bind_text(q, 3, k->name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 4, k->id);
    sqlite3_bind_int64(q, 5, k->token_id);
    sqlite3_bind_int64(q, 6, k->admitted_ms);
    sqlite3_bind_int(q, 7, k->revoked);
    sqlite3_bind_int(q, 8, (k->drained ? FLAG_DRAINED : 0) | (k->fenced ? FLAG_FENCED : 0));
    sqlite3_bind_text(q, 9, k->note, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 10, k->seen_ms);
    int rc = sqlite3_step(q);
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? CW_OK : db_fail(s, err);
}

static cw_status save_row(cw_state *s, const cw_row *r, cw_err *err)
{
    switch (r->kind) {
    case CW_ROW_TOKEN: return save_token_row(s, &r->token, err);
    case CW_ROW_KEY: return save_key_row(s, &r->key, err);
    case CW_ROW_TERM: return put_meta_int(s, "term", r->term, err);
    case CW_ROW_SERIAL: return put_meta_int(s, "serial", r->serial, err);
    case CW_ROW_EPOCH: return put_meta_blob(s, "epoch", r->epoch.data, r->epoch.len, err);
    }
    CW_ASSERT(false);
    return CW_STATUS_INVALID;
}

cw_status cw_state_save(cw_state *s, const cw_row *rows, size_t n, cw_err *err)
{
    if (!n) return CW_OK;
    CW_TRY(exec(s, "BEGIN IMMEDIATE", err));
    for (size_t i = 0; i < n; i++) {
        cw_status st = save_row(s, &rows[i], err);
        if (st != CW_OK) {
            (void)sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
            return st;
        }
    }
    return exec(s, "COMMIT", err);
}
