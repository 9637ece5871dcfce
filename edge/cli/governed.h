/*
 * The governor at work: it is asked and told by cw_talk_draft's callbacks, knows the clock, and is given what
 * is known of model, machine and link when an answer begins. The answering thread alone.
 */
#pragma once
#include "cw/guessers.h"
#include "cw/mainland.h"
#include "cw/mtp_drafter.h"
#include "cw/talk.h"

typedef struct {
    bool on;
    cw_guessers who;
    int64_t asked_us;
    uint64_t n_rounds[2]; /* without and with guesses, of this answer */
    uint64_t n_by_head;   /* of these */
} cli_governed;

/*
 * Draft lengths up to `max` by measurement, and by whom: fallback or head, one of which may be NULL.
 * may_rest: where no draft pays there is none.
 */
void cli_governed_begin(cli_governed *v, cw_speaker *main, cw_speaker *fallback, const cw_drafter *head,
                        cw_mainland *land, int max, bool may_rest);
/* The governor of whoever guesses now; NULL: none is on. */
const cw_governor *cli_governed_governor(const cli_governed *v);
/* Before an answer: looks at the link anew. */
void cli_governed_look(cli_governed *v, cw_mainland *land);
/* For cw_talk_draft; ctx is the cli_governed. */
int cli_governed_length(void *ctx);
bool cli_governed_by_head(void *ctx);
void cli_governed_tell(void *ctx, int n_drafted, int n_accepted, int64_t pass_us);

/* What is known of the model's shape without running it. */
cw_plan_model cli_plan_model(const cw_model_config *c, const cw_expert_shape *shapes);
/* The workers' and the link's part, from what an open mainland has measured; false: nothing yet. */
bool cli_plan_link(cw_mainland *land, cw_plan *p);
