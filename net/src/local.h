/*
 * The same-host endpoint: a socket file in a private directory (0700) of the user, for processes of that user
 * on one machine. Nothing is encrypted there, for nobody but the user (and root, who reads our memory anyhow)
 * can reach the file; but both ends still prove their CURVE keys, so that who may do what is decided as
 * everywhere else.
 *
 * The proof, three messages before the first of the application:
 *   opener    "cw-local-2" | its public key, 32 | nonce, 32
 *   listener  nonce, 32 | MAC, 32
 *   opener    MAC, 32
 * A MAC is cw_keys_mac of who it is from, both keys and both nonces: only the holders of these keys can make
 * it. A file is found by the listener's key, not by an address that somebody tells: no peer can make us open
 * a path.
 */
#pragma once
#include "cw/keys.h"
#include "cw/msg.h"

enum {
    NET_LOCAL_NONCE = 32,
    NET_LOCAL_FIRST = 10 + CW_KEY_BYTES + NET_LOCAL_NONCE,
    NET_LOCAL_SECOND = NET_LOCAL_NONCE + CW_MAC_BYTES,
    NET_LOCAL_THIRD = CW_MAC_BYTES,
};

/* What one end remembers between the messages. */
typedef struct {
    cw_key opener, listener;
    uint8_t opener_nonce[NET_LOCAL_NONCE], listener_nonce[NET_LOCAL_NONCE];
} net_proof;

void net_proof_first(net_proof *p, const cw_keys *opener, const cw_key *listener,
                     uint8_t out[NET_LOCAL_FIRST]);
/* Listener: reads the first message and answers it. false: not one, or a key that is none. */
CW_MUST_USE bool net_proof_second(net_proof *p, const cw_keys *listener, const void *first, size_t n,
                                  uint8_t out[NET_LOCAL_SECOND]);
/* Opener: false when the listener has not proven its key. */
CW_MUST_USE bool net_proof_third(net_proof *p, const cw_keys *opener, const void *second, size_t n,
                                 uint8_t out[NET_LOCAL_THIRD]);
/* Listener: whether the opener has proven its key. */
CW_MUST_USE bool net_proof_check(const net_proof *p, const cw_keys *listener, const void *third, size_t n);

/* DIR/KEY of a listener; false when that is too long for a socket's name. */
CW_MUST_USE bool net_local_path(const char *dir, const cw_key *key, char out[CW_ADDRESS_MAX]);
/* Whether a listener's file is there, ours, in a directory that is ours and closed to others. */
CW_MUST_USE bool net_local_is_there(const char *dir, const cw_key *key, char out[CW_ADDRESS_MAX]);
/* Whether the process behind a connection is of our user. */
CW_MUST_USE bool net_local_peer_is_ours(int fd);
