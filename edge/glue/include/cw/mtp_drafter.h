/*
 * A drafter that is the big model's own multi-token-prediction head (cw/mtp.h). It chooses with the sampler's
 * parameters and noise, as the big model does.
 */
#pragma once
#include "cw/drafter.h"
#include "cw/sampler.h"
#include "cw/speaker.h"

/*
 * Loads the head from `companion`, or where that is NULL from the model's own file, and follows the speaker's
 * session from then on; blocks. Free it before the speaker is closed. Errors name the file: NOT_FOUND (no
 * head), MISMATCH (another model's), and as cw_mtp_open.
 */
CW_MUST_USE cw_status cw_mtp_drafter_new(cw_speaker *main, const char *companion, const cw_sampler_params *p,
                                         cw_drafter **out, cw_err *err);
/* Packed weights held for it, bytes. */
size_t cw_mtp_drafter_bytes(const cw_drafter *d);
