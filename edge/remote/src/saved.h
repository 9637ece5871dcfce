/* What an edge keeps of its cluster between runs, so that it can start while the coordinator is down: the
 * coordinator's signing key, the cluster's id, the ticket and the newest epoch. Ticket and epoch are signed;
 * the file adds no trust. */
#pragma once
#include "cw/edge_machine.h"

typedef struct {
    char *bytes; /* owns what the config borrows */
} saved_file;

/* Fills the saved fields of `c` from DIR/cluster when it is there, whole, and for this coordinator and model.
 */
void saved_load(const char *dir, cw_edge_config *c, saved_file *f);
void saved_free(saved_file *f);
CW_MUST_USE cw_status saved_store(const char *dir, const cw_edge_config *c, const cw_edge_saved *s,
                                  cw_err *err);
