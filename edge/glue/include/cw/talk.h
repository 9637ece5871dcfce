/*
 * Answers a conversation token by token: prompt -> prefill -> sample -> text, with the fallback going on in
 * mid-sentence when the big model's experts are out of reach, and the big model taking over again when they
 * are back. The fallback may also draft: it guesses a run of tokens that the big model verifies in one pass;
 * the text is the same as without, for every length of the runs. Every piece of text carries the model that
 * wrote it.
 *
 * Knows nothing of networks and terminals: experts are in the speaker's engine, text goes to a sink. One
 * thread. The token loop allocates nothing; a change of speaker does.
 */
#pragma once
#include "cw/detok.h"
#include "cw/drafter.h"
#include "cw/sampler.h"
#include "cw/speaker.h"

typedef struct {
    /* Valid UTF-8, never empty; borrowed during the call. */
    void (*piece)(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len);
    /* The speaker changes: a sentence for the user. */
    void (*notice)(void *ctx, const char *sentence);
    /* The last so many bytes of the pieces of each kind are not part of the answer any more. Called only
     * where `verdict` was told to write anew. */
    void (*withdraw)(void *ctx, size_t reasoning_bytes, size_t answer_bytes);
    void *ctx;
} cw_talk_sink;

/*
 * What the main model, back again, makes of what the fallback wrote in its place. At every position of the
 * missed part it chooses, from that text so far, by the same sampler, seed and position, as it would have
 * chosen had it written it. "Otherwise" is the first choice that is not the token that is there: what
 * drafting would not have accepted, so everything before is what it would have written by itself. Where the
 * vocabularies differ the same text may be cut into tokens in many ways (and noise belongs to tokens): there
 * only a choice whose text is not what follows counts.
 */
typedef struct {
    const char *by, *of; /* the main model, the fallback */
    int n_tokens;        /* of the missed part; the end of a finished answer counts as one */
    int n_same;          /* of these, before the first that is otherwise; n_tokens: there is none */
    const char *kept;    /* the answer up to there; borrowed during the call */
    const char *wrote;   /* what follows */
    const char *would;   /* one token of the main model's; perhaps not valid UTF-8 */
    size_t n_kept, n_wrote, n_would;
    bool would_end; /* it would have ended the answer there; n_would is 0 */
    bool can_redo;  /* the answer can be cut there */
} cw_talk_verdict;

/* How long the drafted runs are. Asked before every pass of the big model, from the answering thread. */
typedef struct {
    int max; /* of one run, 1 .. CW_SHADOW_GUESS_MAX */
    /* 0: this pass without a draft. NULL: always max. */
    int (*length)(void *ctx);
    /* A pass verified n_drafted tokens, of which n_accepted were right, and took so long. May be NULL. */
    void (*tell)(void *ctx, int n_drafted, int n_accepted, int64_t pass_us);
    void *ctx;
    /* Guesses for the main model's session without the fallback; borrowed, NULL: none. */
    cw_drafter *drafter;
    /* Whether `drafter` guesses for this pass, or else the fallback (which must share the vocabulary); asked
     * after `length`, where that gave more than 0. NULL: `drafter` where there is one. */
    bool (*use_drafter)(void *ctx);
} cw_talk_draft;

typedef struct {
    cw_speaker *main;     /* NULL: only the fallback speaks */
    cw_speaker *fallback; /* NULL: there is none; at least one of the two */
    /* The main engine's experts where they are on a network: their waiting is when the fallback follows the
     * conversation, to be warm when it must go on. NULL: it does not follow, it reads when its turn comes.
     * Following and drafting need a fallback whose engine shares no pool with the main one's. */
    cw_experts *experts;
    const cw_talk_draft *draft; /* NULL: no drafting; else with a drafter, or a fallback of the same
                                 * vocabulary; copied */
    /* Asked between tokens while the fallback speaks in the main model's place: can that be reached again?
     * NULL: it is not asked before the next answer. */
    bool (*is_back)(void *ctx);
    void *is_back_ctx;
    /*
     * What the main model reads of the fallback's when it comes back is compared with its own choices, and
     * the result told. true, where n_same < n_tokens and can_redo: the answer is cut there and written on by
     * the main model. NULL: nothing is compared.
     */
    bool (*verdict)(void *ctx, const cw_talk_verdict *v);
    void *verdict_ctx;
    cw_sampler_params sampler;
    int max_tokens;            /* of one answer; 0: until the context is full */
    const atomic_bool *cancel; /* ends the answer; may be NULL */
    cw_talk_sink sink;
} cw_talk_options;

typedef struct {
    const cw_chat_message *messages; /* the conversation, or */
    size_t n_messages;
    const char *raw; /* text taken as it is, special tokens parsed */
} cw_talk_prompt;

typedef enum {
    CW_TALK_STOP,      /* the model ended its answer */
    CW_TALK_LENGTH,    /* max_tokens */
    CW_TALK_CONTEXT,   /* no room for another token */
    CW_TALK_CANCELLED, /* on request */
} cw_talk_end;
const char *cw_talk_end_name(cw_talk_end e);

typedef struct {
    cw_talk_end end;
    const char *model; /* who spoke last */
    int n_prompt;      /* tokens of the prompt */
    int n_reused;      /* of these, already in the KV cache */
    int n_tokens;      /* generated, the end token not counted */
    int n_fallback;    /* of these, by the fallback after the main model was lost */
    int n_changes;     /* of the speaker */
    int n_compared;    /* tokens of the fallback's, as the main model reads them (verdict) */
    int n_otherwise;   /* verdicts with a place where it would have written otherwise */
    int n_redone;      /* of these, answers that were cut there */
    int n_withdrawn;   /* tokens that were written anew; not counted in n_tokens and n_fallback */
    int n_passes;      /* of the main model while decoding */
    int n_drafted, n_accepted;
    int n_wrong; /* passes in which a guess was wrong: accepted / (accepted + wrong) is how often one is right
                  */
    int64_t prefill_us, decode_us;
} cw_talk_stats;

typedef struct cw_talk cw_talk;

/* Speakers are borrowed. INVALID names a sampler parameter out of range, or says why the fallback cannot
 * draft. */
CW_MUST_USE cw_status cw_talk_new(const cw_talk_options *opt, cw_talk **out, cw_err *err);
void cw_talk_free(cw_talk **t);

/* Only the fallback speaks from now on, or the main model again. STATE when that speaker is missing. */
CW_MUST_USE cw_status cw_talk_use_fallback(cw_talk *t, bool on, cw_err *err);

/* The fallback begins the answers from now on, as if the main model had been lost before the first token, or
 * that does again. STATE when there is no fallback. */
CW_MUST_USE cw_status cw_talk_begin_away(cw_talk *t, bool away, cw_err *err);

/*
 * One answer; blocks. A cancelled answer is CW_OK with that end. UNSUPPORTED: no chat template (names --raw);
 * LIMIT: the prompt does not fit the context; what the experts return, when no fallback could go on. `stats`
 * is filled in any case.
 */
CW_MUST_USE cw_status cw_talk_answer(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats,
                                     cw_err *err);

/*
 * The last answer once more, when the fallback wrote it to its end while the main model was away: that reads
 * it now, the verdict is told, and where it says so the answer is cut and written on (stats->n_redone;
 * cw_talk_text is the whole answer again). `prompt` as it was asked; blocks. Without anything to read nothing
 * happens. Errors as cw_talk_answer; before a cut the answer is what it was.
 */
CW_MUST_USE cw_status cw_talk_take_back(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats,
                                        cw_err *err);

/*
 * The state that the last answer left in the session of whoever spoke last: its tokens and KV rows, and the
 * logits after its last token, [its vocabulary]. Borrowed until the next answer. false: nothing was
 * answered, or that speaker goes on following the conversation on a thread of its own.
 */
bool cw_talk_state(const cw_talk *t, const cw_session **session, const float **logits);

/* Text of the last answer, reasoning and its marks included; borrowed until the next. */
const char *cw_talk_text(const cw_talk *t, size_t *len);
/* Part i of that text: who wrote it and its first byte. false: there is no such part. */
bool cw_talk_part(const cw_talk *t, int i, const char **model, size_t *begin);
