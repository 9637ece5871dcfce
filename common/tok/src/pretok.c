/*
 * Pre-tokenizers: the regular expressions that cut a text into words before byte-pair merging. The patterns
 * are facts about the models (they stand in the published tokenizer.json files); a word that is cut elsewhere
 * gives other ids. Where a model has several, they apply in turn, each to every piece the one before left,
 * matched or not.
 *
 * Every pattern here is linear in the length of the text, by construction: repeated single classes, no nested
 * repetition, and no repetition that is scanned again from each place it could begin at. A match limit in
 * proportion to the text stands behind that.
 */
#include "tok_internal.h"

/* The white space of Unicode's White_Space property, as the published patterns mean \s; PCRE2's own \s also
 * takes U+180E, which lost that property. For use inside a class. */
#define WS                                                                                                   \
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define SPACE        "[" WS "]"
#define NOT_SPACE    "[^" WS "]"
#define TRAILING     SPACE "*[\\r\\n]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

/* Cased letters as DeepSeek LLM's pattern lists them: the Unicode of its day, without what came later. */
/* clang-format off */
#define CASED \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}" \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}" \
    "\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}" \
    "\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}" \
    "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}" \
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}" \
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}" \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}" \
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}" \
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}" \
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}" \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}" \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}" \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}" \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}" \
    "\\x{1E900}-\\x{1E943}"
/* clang-format on */

#define CJK_WIDE "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"

#define GPT2                                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACE "+(?!" NOT_SPACE           \
    ")|" SPACE "+"
#define LLAMA3_LIKE(digits)                                                                                  \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" TRAILING

static const char *const deepseek_v3[] = {
    "\\p{N}{1,3}",
    "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" TRAILING,
    NULL,
};
static const char *const deepseek_llm[] = {
    "[\\r\\n]",
    SPACE "?[" CASED "]+",
    SPACE "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
    /* white space at a piece's end. The published \s+$ is tried again at each space of a run; this is not */
    "(?<!" SPACE ")" SPACE "++\\z",
    CJK_WIDE,
    "\\p{N}",
    NULL,
};
static const char *const deepseek_coder[] = {
    "[\\r\\n]", SPACE "?\\p{L}+", SPACE "?\\p{P}+", CJK_WIDE, "\\p{N}", NULL,
};
static const char *const qwen2[] = {LLAMA3_LIKE("\\p{N}"), NULL};
static const char *const llama3[] = {LLAMA3_LIKE("\\p{N}{1,3}"), NULL};
static const char *const gpt2[] = {GPT2, NULL};
static const char *const smollm[] = {"\\p{N}", GPT2, NULL};
/* The published classes are intersections with "not Han"; as a complement of the other categories each is one
 * class. */
#define KIMI_REST               "\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}"
#define KIMI_UPPER              "[^\\p{Ll}" KIMI_REST "]"
#define KIMI_LOWER              "[^\\p{Lu}\\p{Lt}" KIMI_REST "]"
#define KIMI_WORD(upper, lower) "[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER upper KIMI_LOWER lower CONTRACTIONS "?"
static const char *const kimi_k2[] = {
    "[\\p{sc:Han}]+|" KIMI_WORD("*", "+") "|" KIMI_WORD("+", "*") "|\\p{N}{1,3}| ?[^" WS
                                                                  "\\p{L}\\p{N}]+[\\r\\n]*|" TRAILING,
    NULL,
};
static const char *const general[] = {"[\\p{P}$+<=>\\^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]", NULL};

/* Names as files give them; those that mean the same patterns stand together. */
static const pretok_kind kinds[] = {
    {.name = "deepseek-v3", .patterns = deepseek_v3},
    {.name = "hunyuan-dense", .patterns = deepseek_v3},
    {.name = "joyai-llm", .patterns = deepseek_v3},
    {.name = "deepseek-llm", .patterns = deepseek_llm},
    {.name = "deepseek-coder", .patterns = deepseek_coder},
    {.name = "qwen2", .patterns = qwen2, .nfc = true},
    {.name = "deepseek-r1-qwen", .patterns = qwen2, .nfc = true},
    {.name = "llama-bpe", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "falcon-h1", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "pixtral", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "midm-2.0", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "lfm2", .patterns = llama3, .ignore_merges = true, .add_bos = true},
    {.name = "dbrx", .patterns = llama3},
    {.name = "smaug-bpe", .patterns = llama3},
    {.name = "gpt-2", .patterns = gpt2},
    {.name = "phi-2", .patterns = gpt2},
    {.name = "mpt", .patterns = gpt2},
    {.name = "olmo", .patterns = gpt2},
    {.name = "smollm", .patterns = smollm},
    {.name = "starcoder", .patterns = smollm},
    {.name = "refact", .patterns = smollm},
    {.name = "command-r", .patterns = smollm},
    {.name = "kimi-k2", .patterns = kimi_k2},
    {.name = "default", .patterns = general},
};

const pretok_kind *pretok_find(const char *name)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}

cw_status pretok_compile(cw_tok *t, const pretok_kind *kind, bool no_jit, cw_err *err)
{
    for (int i = 0; kind->patterns[i]; i++) {
        CW_ASSERT(i < TOK_MAX_PATTERNS);
        int code;
        PCRE2_SIZE where;
        t->code[i] = pcre2_compile((PCRE2_SPTR)kind->patterns[i], PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_UCP, &code, &where, NULL);
        if (!t->code[i]) {
            PCRE2_UCHAR text[128] = "";
            pcre2_get_error_message(code, text, sizeof text);
            return CW_FAIL(err, CW_STATUS_UNSUPPORTED,
                           "pattern %d of the pre-tokenizer %s does not compile with this PCRE2 (at %zu: %s)",
                           i, kind->name, (size_t)where, (const char *)text);
        }
        t->n_code = i + 1;
        /* Where the system forbids or lacks the JIT the interpreter runs instead: the same result, slower. */
        if (!no_jit) (void)pcre2_jit_compile(t->code[i], PCRE2_JIT_COMPLETE);
    }
    return CW_OK;
}

static cw_status push(tok_work *w, tok_spans *s, uint32_t begin, uint32_t end)
{
    if (begin == end) return CW_OK;
    if (s->n == s->cap) CW_TRY(tok_reserve((void **)&s->v, &s->cap, s->n + 1, sizeof *s->v, w->err));
    s->v[s->n++] = (tok_span){begin, end};
    return CW_OK;
}

static int match(tok_work *w, const pcre2_code *code, const char *text, size_t len, size_t at)
{
    int rc = pcre2_match(code, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK, w->md, w->mc);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->md, w->mc);
    return rc;
}

/* Cuts one piece: matches and what lies between them become pieces. */
static cw_status cut(tok_work *w, const pcre2_code *code, const char *text, tok_span piece, tok_spans *out)
{
    const char *p = text + piece.begin;
    size_t len = piece.end - piece.begin, at = 0;
    while (at < len) {
        int rc = match(w, code, p, len, at);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0) {
            PCRE2_UCHAR msg[128] = "";
            pcre2_get_error_message(rc, msg, sizeof msg);
            return CW_FAIL(w->err, CW_STATUS_LIMIT, "the text cannot be cut into words: %s",
                           (const char *)msg);
        }
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(w->md);
        CW_ASSERT(o[0] >= at && o[1] > o[0] && o[1] <= len); /* no pattern here matches nothing */
        CW_TRY(push(w, out, piece.begin + (uint32_t)at, piece.begin + (uint32_t)o[0]));
        CW_TRY(push(w, out, piece.begin + (uint32_t)o[0], piece.begin + (uint32_t)o[1]));
        at = o[1];
    }
    return push(w, out, piece.begin + (uint32_t)at, piece.end);
}

static cw_status prepare(tok_work *w, size_t len)
{
    if (!w->md) w->md = pcre2_match_data_create(1, NULL);
    if (!w->mc) w->mc = pcre2_match_context_create(NULL);
    if (!w->md || !w->mc) return TOK_NO_MEMORY(w->err);
    /* One match may look at the whole text a few times; more means a pattern that is not linear. */
    pcre2_set_match_limit(w->mc, (uint32_t)(len < (1u << 24) ? len * 64 + 100000 : UINT32_MAX));
    pcre2_set_heap_limit(w->mc, 64 * 1024); /* KiB */
    return CW_OK;
}

cw_status pretok_split(tok_work *w, const char *text, size_t len, const tok_spans **out)
{
    CW_TRY(prepare(w, len));
    tok_spans *from = &w->spans[0], *to = &w->spans[1];
    from->n = 0;
    CW_TRY(push(w, from, 0, (uint32_t)len));
    for (int i = 0; i < w->t->n_code; i++) {
        to->n = 0;
        for (size_t k = 0; k < from->n; k++) CW_TRY(cut(w, w->t->code[i], text, from->v[k], to));
        tok_spans *swap = from;
        from = to;
        to = swap;
    }
    *out = from;
    return CW_OK;
}
