/* Field checks of a decoded header, one row a message kind; used by msg.c. */
#pragma once
#include "cw/msg.h"

/* Name, check and number of raw frames for one kind. */
typedef struct {
    const char *name;
    uint32_t frames_min, frames_max;
    cw_status (*check)(const Cw__Pb__Envelope *env, cw_err *err); /* NULL: nothing beyond the wire format */
} cw_msg_rule;

/* NULL for kinds that do not exist. */
const cw_msg_rule *cw_msg_rule_get(cw_msg_kind kind);
