/*
 * A conversation as it is kept: messages, and of every answer which model wrote which part. Its file form is
 * what --session writes; the bytes are checked as if anybody had written them. One thread.
 */
#pragma once
#include "cw/chat.h"
#include "cw/sealed.h"

typedef struct {
    char *model;
    size_t begin; /* byte of the message; the first part begins at 0 */
} cw_written_part;

typedef struct {
    cw_chat_message *messages; /* [n] contents are ours; roles are static strings */
    struct {
        cw_written_part *parts;
        size_t n;
    } * authors; /* [n] no parts: the user or the command line wrote it */
    size_t n, cap;
} cw_conversation;

/* Copies. `role` is "system", "user" or "assistant". */
CW_MUST_USE cw_status cw_conversation_add(cw_conversation *c, const char *role, const char *text, size_t len,
                                          cw_err *err);
/* The last message's part from byte `begin` on is by `model`; parts come in order. */
CW_MUST_USE cw_status cw_conversation_written_by(cw_conversation *c, const char *model, size_t begin,
                                                 cw_err *err);
/* Forgets the last message. */
void cw_conversation_drop(cw_conversation *c);
/* Forgets everything. */
void cw_conversation_clear(cw_conversation *c);
/* A question without an answer is its last message. */
bool cw_conversation_is_open(const cw_conversation *c);
/* What was said, end to end; heap, NULL when memory is out. */
char *cw_conversation_text(const cw_conversation *c);

/* The file form in memory; heap. */
CW_MUST_USE cw_status cw_conversation_pack(const cw_conversation *c, void **data, size_t *n, cw_err *err);
/* FORMAT or UNSUPPORTED; *out must be empty. */
CW_MUST_USE cw_status cw_conversation_unpack(const void *data, size_t n, cw_conversation *out, cw_err *err);

/* The sealed file. Writing is durable: whole on the disk, or the old one. */
CW_MUST_USE cw_status cw_conversation_write(const cw_conversation *c, const char *path,
                                            const cw_seal_key *key, cw_err *err);
/* NOT_FOUND: none yet. */
CW_MUST_USE cw_status cw_conversation_read(const char *path, const cw_seal_key *key, cw_conversation *out,
                                           cw_err *err);
