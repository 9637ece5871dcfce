/*
 * Messages: one protobuf header frame and up to three raw frames.
 *
 * This room turns bytes from a peer into a checked message and back. It knows limits, frame layouts and legal
 * sequences; it knows nothing of sockets, and no cryptography. Everything from a peer is hostile: sizes are
 * checked before anything is allocated, the memory of a decoded header is bounded, and after cw_msg_decode
 * every length, enum and count in it is in range, so the roles may index without a second look. What depends
 * on a model (layer and expert numbers, row width) is checked by cw_call_view_get and cw_reply_view_get
 * against cw_model_limits. Any thread; no shared state.
 */
#pragma once
#include "cw/key.h"
#include "cw/status.h"
#include "causeway.pb-c.h"

enum {
    CW_PROTO_MIN = 1,
    CW_PROTO_MAX = 1,
    CW_MSG_MAX_FRAMES = 3, /* raw frames after the header */
    CW_DIGEST_BYTES = 32,  /* BLAKE2b-256 */
    CW_CLUSTER_BYTES = 16,
    CW_INSTANCE_BYTES = 16,
    CW_NAME_MAX = 64, /* bytes of a worker's or edge's name */
    CW_ADDRESS_MAX = 256,
    CW_TEXT_MAX = 512, /* bytes of a sentence in a refusal or failure */
    CW_WIRE_MAX_LAYERS = 1024,
    CW_WIRE_MAX_EXPERTS = 4096, /* of one layer */
    CW_MAX_WORKERS = 4096,
    CW_HELLO_MAX = 4096,         /* header bytes of a Hello or Enrol */
    CW_HEADER_MAX = 1 << 20,     /* header bytes of anything else */
    CW_DATA_FRAME_MAX = 4 << 20, /* any raw frame; calls aim at CW_CALL_TARGET_BYTES */
    CW_CALL_TARGET_BYTES = 256 << 10,
    CW_EPOCH_MAX = 4 << 20,      /* a signed epoch */
    CW_STORE_PART_MAX = 1 << 20, /* bytes of one manifest or chunk part */
    CW_MAX_SOURCES = 16,         /* chunk sources in one Assign */
    CW_AUDIT_ROWS_MAX = 256,     /* of one Audit */
    CW_CAN_GIVE_CHUNKS = 1,      /* bit of Hello.capabilities: a worker that serves chunks to others */
    CW_ENTRY_BYTES = 8,          /* u16 row, u16 expert, f32 weight */
};

/* Bytes with an owner. release(owner) is called once, by whoever holds the message last, on any thread. */
typedef struct {
    const uint8_t *data;
    size_t len;
    void *owner;
    void (*release)(void *owner); /* NULL: borrowed or static */
} cw_frame;

/* A message in memory. Owned by one holder at a time; cw_msg_free releases header and frames. */
typedef struct {
    Cw__Pb__Envelope *env;
    uint32_t n_frames;
    cw_frame frames[CW_MSG_MAX_FRAMES];
} cw_msg;

typedef Cw__Pb__Envelope__BodyCase cw_msg_kind;

const char *cw_msg_kind_name(cw_msg_kind kind); /* "hello", ...; never NULL */

/*
 * Decodes and checks. `header_max` is CW_HELLO_MAX for peers that are not admitted, else CW_HEADER_MAX. On
 * success the message owns `frames` (copied structs, their release called by cw_msg_free); on failure the
 * caller still owns them. CW_STATUS_PROTOCOL with a sentence for anything a correct peer would not send.
 */
CW_MUST_USE cw_status cw_msg_decode(const void *header, size_t header_len, size_t header_max,
                                    const cw_frame *frames, uint32_t n_frames, cw_msg **out, cw_err *err);
void cw_msg_free(cw_msg **m);

/* Bytes of the packed header; pack writes exactly that many. */
size_t cw_msg_header_bytes(const Cw__Pb__Envelope *env);
void cw_msg_header_pack(const Cw__Pb__Envelope *env, uint8_t *dst);

/*
 * A message to send, made by copying `env` (packed and unpacked again: the result shares nothing with it) and
 * taking the frames over. NULL when out of memory (frames released then too).
 */
CW_MUST_USE cw_msg *cw_msg_new(const Cw__Pb__Envelope *env, const cw_frame *frames, uint32_t n_frames);
/* An owned copy of bytes as a frame; data NULL with len > 0 means out of memory. */
CW_MUST_USE cw_frame cw_frame_copy(const void *data, size_t len);
/* An owned frame of `len` uninitialised bytes to fill; `*bytes` is its memory. len 0 is valid. */
CW_MUST_USE cw_frame cw_frame_new(size_t len, uint8_t **bytes);
size_t cw_msg_total_bytes(const cw_msg *m);

/* What a receiver that holds a model checks calls and replies against. */
typedef struct {
    uint32_t n_layers;  /* blocks, dense ones included */
    uint32_t n_experts; /* of a layer */
    uint32_t d_model;
    uint32_t max_rows; /* of one call */
    uint32_t max_entries;
} cw_model_limits;

typedef struct {
    uint16_t row, expert;
    float weight;
} cw_entry;

/* A checked call; pointers are into the message. Values in frames are little-endian; a big-endian host is
 * refused at build. */
typedef struct {
    uint64_t id;
    uint32_t layer, n_rows, n_entries, budget_us;
    Cw__Pb__ActKind act;
    Cw__Pb__ReplyKind reply;
    Cw__Pb__CallClass klass;
    const uint8_t *entries; /* n_entries x CW_ENTRY_BYTES; read with cw_entry_get */
    const int8_t *q;        /* [n_rows, d_model], no value is -128, or NULL */
    const uint8_t *s; /* [n_rows, d_model / 32] f32 bytes (maybe unaligned), all finite and >= 0, or NULL */
    const uint8_t *x; /* [n_rows, d_model] f32 bytes (maybe unaligned), all finite, or NULL */
} cw_call_view;

CW_MUST_USE cw_status cw_call_view_get(const cw_msg *m, const cw_model_limits *lim, cw_call_view *out,
                                       cw_err *err);
cw_entry cw_entry_get(const uint8_t *entries, uint32_t i);
void cw_entry_put(uint8_t *entries, uint32_t i, cw_entry e);

typedef struct {
    uint64_t id;
    Cw__Pb__ReplyKind kind;
    uint32_t n, queue_us, service_us, queue_rows;
    const uint8_t *rows; /* f16 or f32 bytes, n rows of d_model (maybe unaligned) */
    const int8_t *exps;  /* ROWS_F16: [n] */
} cw_reply_view;

/* `n` is what the call asked for: n_entries, or n_rows for COMBINED_F32. f16 rows must be finite. */
CW_MUST_USE cw_status cw_reply_view_get(const cw_msg *m, const cw_model_limits *lim, Cw__Pb__ReplyKind kind,
                                        uint32_t n, cw_reply_view *out, cw_err *err);

/*
 * Legal sequences (docs/WIRE.md has the table in words). A receiver asks this for every message before acting
 * on it.
 */
typedef enum { CW_SIDE_COORDINATOR, CW_SIDE_WORKER, CW_SIDE_EDGE } cw_side;
typedef enum { CW_PEER_NEW, CW_PEER_ADMITTED } cw_peer_state;
CW_MUST_USE bool cw_msg_legal(cw_side receiver, cw_side sender, Cw__Pb__Purpose purpose, cw_peer_state state,
                              cw_msg_kind kind);
