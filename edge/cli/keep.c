#include "keep.h"
#include "cw/mem.h"
#include "cw/member.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Written after each answer up to this size: a fraction of a second. */
enum { QUICK_BYTES = 64 << 20 };

static cw_status no_memory(cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

static cw_status open_key(cli_keep *k, const cli_options *o, cw_err *err)
{
    char *dir = NULL;
    CW_TRY(cw_member_dir(CW_JOIN_EDGE, o->state, o->name, &dir, err));
    char *path = cw_fs_join(dir, "session.key");
    cw_status s = path ? cw_seal_key_open(path, &k->key, err) : no_memory(err);
    cw_free(path);
    cw_free(dir);
    return s;
}

static cw_status open_lock(cli_keep *k, cw_err *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s.lock", k->path) < 0) return no_memory(err);
    cw_status s = cw_fs_lock(path, &k->lock, err);
    if (s == CW_STATUS_BUSY)
        s = CW_FAIL(err, s, "another program is in the conversation of %s: end it, or name another file",
                    k->path);
    free(path);
    return s;
}

static cw_status read_conversation(cli_keep *k, cw_conversation *c, cw_err *err)
{
    cw_status s = cw_conversation_read(k->path, k->key, c, err);
    if (s == CW_OK || s == CW_STATUS_NOT_FOUND) return CW_OK;
    cw_err why = *err;
    return CW_FAIL(
        err, s,
        "%s. Restore the file or the --state and --name it was made with; or move it away to start "
        "a new conversation",
        why.text);
}

static void read_cache(cli_keep *k, const cw_conversation *c)
{
    cw_err err = {0};
    if (c->n == 0) return;
    cw_status s = cw_kept_kv_read(k->speaker, k->fingerprint, k->kv_path, k->key, &err);
    int n;
    cw_session_tokens(cw_speaker_session(k->speaker), &n);
    if (s == CW_OK && !k->quiet)
        fprintf(stderr, "causeway: %s: %zu messages, %d tokens in the cache\n", k->path, c->n, n);
    else if (s == CW_STATUS_NOT_FOUND && !k->quiet)
        fprintf(stderr, "causeway: %s: %zu messages, no cache; the text is read again\n", k->path, c->n);
    else if (s != CW_OK && s != CW_STATUS_NOT_FOUND)
        fprintf(stderr, "causeway: %s; the text is read again\n", err.text);
}

cw_status cli_keep_open(cli_keep *k, const cli_options *o, cli_setup *s, cw_conversation *c, cw_err *err)
{
    *k = (cli_keep){.quiet = o->quiet};
    if (!o->session) return CW_OK;
    k->speaker = s->main ? s->main : s->fallback;
    k->path = cw_strdup(o->session);
    if (!k->path) return no_memory(err);
    if (asprintf(&k->kv_path, "%s%s.kv", k->path, s->main ? "" : ".fallback") < 0) {
        k->kv_path = NULL;
        return no_memory(err);
    }
    CW_TRY(open_key(k, o, err));
    CW_TRY(open_lock(k, err));
    CW_TRY(read_conversation(k, c, err));
    if (c->n && o->system &&
        (strcmp(c->messages[0].role, "system") != 0 || strcmp(c->messages[0].content, o->system) != 0))
        return CW_FAIL(
            err, CW_STATUS_INVALID,
            "--system is how a conversation begins, and that of %s began otherwise: leave it out, or "
            "name another file",
            k->path);
    CW_TRY(cw_speaker_fingerprint(k->speaker, k->fingerprint, err));
    read_cache(k, c);
    return CW_OK;
}

cw_status cli_keep_conversation(cli_keep *k, const cw_conversation *c, cw_err *err)
{
    return k->path ? cw_conversation_write(c, k->path, k->key, err) : CW_OK;
}

void cli_keep_cache(cli_keep *k, bool at_exit)
{
    cw_err err = {0};
    if (!k->path || (!at_exit && cw_kept_kv_bytes(k->speaker) > QUICK_BYTES)) return;
    if (cw_kept_kv_write(k->speaker, k->fingerprint, k->kv_path, k->key, &err) != CW_OK)
        fprintf(stderr, "causeway: %s; the conversation itself is kept\n", err.text);
}

void cli_keep_forget_cache(cli_keep *k)
{
    if (!k->path) return;
    unlink(k->kv_path);
    cw_session_rewind(cw_speaker_session(k->speaker), 0); /* or the next writing would keep it after all */
}

void cli_keep_close(cli_keep *k)
{
    cw_fs_unlock(&k->lock);
    cw_seal_key_free(&k->key);
    cw_free(k->path);
    free(k->kv_path);
    *k = (cli_keep){0};
}
