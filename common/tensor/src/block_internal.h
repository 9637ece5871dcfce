/* The half of the format table that block_iq.c holds. */
#pragma once
#include "cw/block.h"

/* NULL for types that are not of the IQ family with codebooks. */
const cw_format *cw_format_iq(uint32_t gguf_type);
