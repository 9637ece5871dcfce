/* causeway tokenize: text to ids and back, with the vocabulary inside a model file. */
#include "cw/fs.h"
#include "cw/mem.h"
#include "lists.h"
#include "setup.h"

#include <stdio.h>
#include <string.h>

enum { TEXT_LIMIT = 256 << 20 };

/* Standard input and files are taken whole, final newline included: it is text like any other. */
static cw_status read_text(const char *arg, char **text, size_t *n, cw_err *err)
{
    if (strcmp(arg, "-") == 0) return cw_fs_read_stdin(TEXT_LIMIT, text, n, err);
    if (arg[0] == '@') return cw_fs_read(arg + 1, TEXT_LIMIT, text, n, err);
    *n = strlen(arg);
    *text = cw_strdup(arg);
    return *text ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

static cw_status encode(const cli_options *o, const cw_tok *t, const char *arg, cw_err *err)
{
    char *text = NULL;
    size_t n, n_ids = 0;
    int32_t *ids = NULL;
    CW_TRY(read_text(arg, &text, &n, err));
    cw_status s = cw_tok_encode(t, text, n, o->special ? CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL : 0, &ids,
                                &n_ids, err);
    for (size_t i = 0; i < n_ids; i++) printf(i ? " %d" : "%d", ids[i]);
    if (s == CW_OK) putchar('\n');
    cw_free(ids);
    cw_free(text);
    return s;
}

static cw_status decode(const cli_options *o, const cw_tok *t, const char *arg, cw_err *err)
{
    int32_t *ids = NULL;
    size_t n, len = 0;
    char *text = NULL;
    CW_TRY(cli_list_read(arg, "token ids", &ids, &n, err));
    cw_status s = cw_tok_decode(t, ids, n, o->special ? CW_TOK_KEEP_SPECIAL : 0, &text, &len, err);
    if (s == CW_OK) fwrite(text, 1, len, stdout);
    cw_free(text);
    cw_free(ids);
    return s;
}

int cli_tokenize(const cli_options *o, const cw_parsed *p)
{
    cw_err err = {0};
    char *path = NULL;
    cw_gguf *g = NULL;
    cw_tok *t = NULL;
    cw_status s = cli_model_path(o, &path, &err);
    if (s == CW_OK) s = cw_gguf_open(path, &g, &err);
    if (s == CW_OK) s = cw_tok_new(g, &t, &err);
    cw_gguf_close(&g);
    cw_free(path);
    if (s == CW_OK) s = o->decode ? decode(o, t, p->args[0], &err) : encode(o, t, p->args[0], &err);
    cw_tok_free(&t);
    if (s == CW_OK && fflush(stdout) != 0)
        s = CW_FAIL(&err, CW_STATUS_IO, "standard output could not be written");
    return s == CW_OK ? 0 : cli_fail(&err);
}
