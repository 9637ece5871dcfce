/* DIR/cluster: "CWEDGE1\n", coordinator key[32], model digest[32], sign key[32], cluster id[16], u32 ticket
 * bytes, u32 epoch bytes, ticket, epoch; little-endian. See saved.h. */
#include "saved.h"

#include <string.h>

#include "cw/bytes.h"
#include "cw/fs.h"
#include "cw/mem.h"

static const char magic[8] = {'C', 'W', 'E', 'D', 'G', 'E', '1', '\n'};
enum { HEAD = 8 + 32 + 32 + 32 + 16 + 4 + 4, TICKET_MAX = 1024 };

void saved_load(const char *dir, cw_edge_config *c, saved_file *f)
{
    size_t n = 0;
    char *path = cw_fs_join(dir, "cluster");
    f->bytes = NULL;
    if (!path || cw_fs_read(path, HEAD + TICKET_MAX + CW_EPOCH_MAX, &f->bytes, &n, NULL) != CW_OK)
        f->bytes = NULL;
    cw_free(path);
    const uint8_t *p = (const uint8_t *)f->bytes;
    if (!p || n < HEAD || memcmp(p, magic, 8) || memcmp(p + 8, c->coordinator_key.b, 32) ||
        memcmp(p + 40, c->model_digest, 32))
        return;
    size_t ticket = cw_load_u32(p + HEAD - 8), epoch = cw_load_u32(p + HEAD - 4);
    if (ticket > TICKET_MAX || epoch > CW_EPOCH_MAX || n != HEAD + ticket + epoch) return;
    c->has_saved = true;
    memcpy(c->sign_key.b, p + 72, 32);
    memcpy(c->cluster_id, p + 104, CW_CLUSTER_BYTES);
    c->saved_ticket = p + HEAD;
    c->saved_ticket_len = ticket;
    c->saved_epoch = p + HEAD + ticket;
    c->saved_epoch_len = epoch;
}

void saved_free(saved_file *f)
{
    cw_free(f->bytes);
    f->bytes = NULL;
}

cw_status saved_store(const char *dir, const cw_edge_config *c, const cw_edge_saved *s, cw_err *err)
{
    size_t n = HEAD + s->ticket_len + s->epoch_len;
    uint8_t *p = cw_calloc(n, 1);
    char *path = cw_fs_join(dir, "cluster");
    cw_status st = p && path ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    if (st == CW_OK) {
        memcpy(p, magic, 8);
        memcpy(p + 8, c->coordinator_key.b, 32);
        memcpy(p + 40, c->model_digest, 32);
        memcpy(p + 72, s->sign_key.b, 32);
        memcpy(p + 104, s->cluster_id, CW_CLUSTER_BYTES);
        cw_store_u32(p + HEAD - 8, (uint32_t)s->ticket_len);
        cw_store_u32(p + HEAD - 4, (uint32_t)s->epoch_len);
        if (s->ticket_len) memcpy(p + HEAD, s->ticket, s->ticket_len);
        if (s->epoch_len) memcpy(p + HEAD + s->ticket_len, s->epoch, s->epoch_len);
        st = cw_fs_write(path, p, n, 0600, err);
    }
    cw_free(path);
    cw_free(p);
    return st;
}
