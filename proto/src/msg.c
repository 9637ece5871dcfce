/*
 * Decoding with bounded memory, encoding, ownership of frames.
 *
 * protobuf-c allocates as the bytes tell it to, so it is given an allocator with a budget: a header of n
 * bytes may cost at most 8 n + 256 KiB in all. The costly honest case is a layer set with few experts: 7
 * bytes of wire cost about 150 of memory, but there are at most CW_WIRE_MAX_LAYERS of them; what grows with n
 * is bit sets, at less than 4 n.
 */
#include "cw/msg.h"

#include <string.h>

#include "check.h"
#include "cw/recycled.h"
#include "cw/mem.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "raw frames are little-endian and used in place");

typedef struct {
    size_t left;
    bool exhausted;
} budget;

static void *budget_alloc(void *ctx, size_t size)
{
    budget *b = ctx;
    if (size > b->left) {
        b->exhausted = true;
        return NULL;
    }
    b->left -= size;
    return cw_block_take(size); /* protobuf-c fills what it takes */
}

static void budget_free(void *ctx, void *p)
{
    (void)ctx;
    cw_block_give(p);
}

static void strip_unknown(ProtobufCMessage *m);

static void strip_field(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    const char *base = (const char *)m;
    if (f->type != PROTOBUF_C_TYPE_MESSAGE) return;
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        size_t n = *(const size_t *)(const void *)(base + f->quantifier_offset);
        ProtobufCMessage **items = *(ProtobufCMessage * *const *)(const void *)(base + f->offset);
        for (size_t i = 0; i < n; i++) strip_unknown(items[i]);
        return;
    }
    /* Of a oneof only the member that its case names is there. */
    bool oneof = f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
    if (oneof && *(const uint32_t *)(const void *)(base + f->quantifier_offset) != f->id) return;
    ProtobufCMessage *sub = *(ProtobufCMessage *const *)(const void *)(base + f->offset);
    if (sub) strip_unknown(sub);
}

/* A later version's fields mean nothing here, and protobuf-c keeps even ones that it would not read back
 * (number 0). */
static void strip_unknown(ProtobufCMessage *m)
{
    for (unsigned i = 0; i < m->n_unknown_fields; i++) cw_block_give(m->unknown_fields[i].data);
    cw_block_give(m->unknown_fields);
    m->unknown_fields = NULL;
    m->n_unknown_fields = 0;
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) strip_field(m, &m->descriptor->fields[i]);
}

static Cw__Pb__Envelope *unpack(const void *header, size_t len, bool *exhausted)
{
    budget b = {.left = 8 * len + (256 << 10)};
    ProtobufCAllocator alloc = {.alloc = budget_alloc, .free = budget_free, .allocator_data = &b};
    Cw__Pb__Envelope *env = cw__pb__envelope__unpack(&alloc, len, header);
    *exhausted = b.exhausted;
    if (env) strip_unknown(&env->base);
    return env;
}

static void free_env(Cw__Pb__Envelope *env)
{
    ProtobufCAllocator alloc = {.alloc = budget_alloc, .free = budget_free, .allocator_data = NULL};
    if (env) cw__pb__envelope__free_unpacked(env, &alloc);
}

const char *cw_msg_kind_name(cw_msg_kind kind)
{
    const cw_msg_rule *r = cw_msg_rule_get(kind);
    return r ? r->name : "unknown";
}

cw_status cw_msg_decode(const void *header, size_t header_len, size_t header_max, const cw_frame *frames,
                        uint32_t n_frames, cw_msg **out, cw_err *err)
{
    if (header_len > header_max)
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a header of %zu bytes, at most %zu are allowed here",
                       header_len, header_max);
    if (n_frames > CW_MSG_MAX_FRAMES)
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "%u frames after the header, at most %d are allowed",
                       n_frames, CW_MSG_MAX_FRAMES);
    for (uint32_t i = 0; i < n_frames; i++)
        if (frames[i].len > CW_DATA_FRAME_MAX)
            return CW_FAIL(err, CW_STATUS_PROTOCOL, "a frame of %zu bytes, at most %d are allowed",
                           frames[i].len, CW_DATA_FRAME_MAX);

    bool exhausted;
    Cw__Pb__Envelope *env = unpack(header, header_len, &exhausted);
    if (!env)
        return CW_FAIL(err, CW_STATUS_PROTOCOL,
                       exhausted ? "a header that would need too much memory"
                                 : "a header that is not a valid protobuf envelope");
    cw_status s = CW_OK;
    const cw_msg_rule *rule = cw_msg_rule_get(env->body_case);
    if (!rule)
        s = CW_FAIL(err, CW_STATUS_PROTOCOL, "a message of unknown kind %d", (int)env->body_case);
    else if (n_frames < rule->frames_min || n_frames > rule->frames_max)
        s = CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s with %u raw frames", rule->name, n_frames);
    else if (rule->check)
        s = rule->check(env, err);
    if (s == CW_OK &&
        (env->body_case == CW__PB__ENVELOPE__BODY_MANIFEST_PART ||
         env->body_case == CW__PB__ENVELOPE__BODY_CHUNK_PART) &&
        frames[0].len > CW_STORE_PART_MAX)
        s = CW_FAIL(err, CW_STATUS_PROTOCOL, "a store part of %zu bytes", frames[0].len);
    cw_msg *m = s == CW_OK ? cw_block_zeroed(sizeof *m) : NULL;
    if (s == CW_OK && !m) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a message");
    if (s != CW_OK) {
        free_env(env);
        return s;
    }
    m->env = env;
    m->n_frames = n_frames;
    if (n_frames) memcpy(m->frames, frames, n_frames * sizeof *frames);
    *out = m;
    return CW_OK;
}

static void release_frames(const cw_frame *frames, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (frames[i].release) frames[i].release(frames[i].owner);
}

void cw_msg_free(cw_msg **m)
{
    if (!m || !*m) return;
    release_frames((*m)->frames, (*m)->n_frames);
    free_env((*m)->env);
    cw_block_give(*m);
    *m = NULL;
}

size_t cw_msg_header_bytes(const Cw__Pb__Envelope *env)
{
    return cw__pb__envelope__get_packed_size(env);
}

void cw_msg_header_pack(const Cw__Pb__Envelope *env, uint8_t *dst)
{
    cw__pb__envelope__pack(env, dst);
}

cw_msg *cw_msg_new(const Cw__Pb__Envelope *env, const cw_frame *frames, uint32_t n_frames)
{
    CW_ASSERT(n_frames <= CW_MSG_MAX_FRAMES);
    uint8_t small[512];
    size_t len = cw_msg_header_bytes(env);
    uint8_t *buf = len <= sizeof small ? small : cw_block_take(len);
    cw_msg *m = buf ? cw_block_zeroed(sizeof *m) : NULL;
    if (m) {
        bool exhausted;
        cw_msg_header_pack(env, buf);
        m->env = unpack(buf, len, &exhausted);
        m->n_frames = n_frames;
        if (n_frames) memcpy(m->frames, frames, n_frames * sizeof *frames);
        if (!m->env) {
            cw_block_give(m);
            m = NULL;
        }
    }
    if (!m) release_frames(frames, n_frames);
    if (buf != small) cw_block_give(buf);
    return m;
}

cw_frame cw_frame_new(size_t len, uint8_t **bytes)
{
    *bytes = cw_block_take(len);
    return (cw_frame){.data = *bytes, .len = len, .owner = *bytes, .release = *bytes ? cw_block_give : NULL};
}

cw_frame cw_frame_copy(const void *data, size_t len)
{
    uint8_t *p;
    cw_frame f = cw_frame_new(len, &p);
    if (p && len) memcpy(p, data, len);
    return f;
}

size_t cw_msg_total_bytes(const cw_msg *m)
{
    size_t n = cw_msg_header_bytes(m->env);
    for (uint32_t i = 0; i < m->n_frames; i++) n += m->frames[i].len;
    return n;
}
