/*
 * --session FILE: a conversation that outlives the program. FILE holds the messages and is written after
 * every question and every answer; FILE.kv holds the KV cache of the model that answers (FILE.fallback.kv
 * where only the fallback is loaded), written after answers while it is small and when the program ends.
 * FILE.lock keeps a second program out. The key is in the edge's state directory. One thread; blocks on the
 * disk.
 */
#pragma once
#include "cw/conversation.h"
#include "cw/fs.h"
#include "cw/kept_kv.h"
#include "setup.h"

typedef struct {
    char *path, *kv_path;
    cw_seal_key *key;
    cw_lock *lock;
    cw_speaker *speaker; /* whose cache is kept */
    uint8_t fingerprint[CW_FINGERPRINT_BYTES];
    bool quiet;
} cli_keep;

/* Reads what FILE holds into *c (empty; it stays so for a new file) and the cache into the speaker's session.
 * A damaged FILE is an error; a KV file that cannot be used is a sentence on stderr. Without --session
 * nothing happens, and the other functions do nothing. */
CW_MUST_USE cw_status cli_keep_open(cli_keep *k, const cli_options *o, cli_setup *s, cw_conversation *c,
                                    cw_err *err);
/* The conversation as it is now is on the disk. */
CW_MUST_USE cw_status cli_keep_conversation(cli_keep *k, const cw_conversation *c, cw_err *err);
/* The cache too, when that is quick. A failure is a sentence: the text is safe. */
void cli_keep_cache(cli_keep *k, bool at_exit);
/* The cache belongs to nothing any more. */
void cli_keep_forget_cache(cli_keep *k);
void cli_keep_close(cli_keep *k);
