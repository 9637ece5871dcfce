/*
 * One error scheme for the whole project.
 *
 * A function that can fail because of the outside world (a file, a peer, the user, memory) returns cw_status, is
 * CW_MUST_USE, takes `cw_err *err` last and leaves its outputs untouched on failure. The text in cw_err is a
 * sentence a user can act on. A bug of our own is CW_ASSERT, always on. Only main() exits.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CW_MUST_USE       __attribute__((warn_unused_result))
#define CW_PRINTF(f, a)   __attribute__((format(printf, f, a)))
#define CW_ARRAY_LEN(a)   (sizeof(a) / sizeof((a)[0]))

/* code, name, what it means in general */
#define CW_STATUS_MAP(X)                                                                                          \
    X(OK, "ok", "no error")                                                                                      \
    X(INVALID, "invalid", "an argument or option is not acceptable")                                             \
    X(IO, "io", "reading or writing failed")                                                                     \
    X(FORMAT, "format", "data is malformed")                                                                     \
    X(UNSUPPORTED, "unsupported", "this is well formed, but not something this version can do")                  \
    X(NOT_FOUND, "not_found", "no such thing")                                                                   \
    X(NO_MEMORY, "no_memory", "out of memory")                                                                   \
    X(LIMIT, "limit", "a limit would be exceeded")                                                               \
    X(TIMEOUT, "timeout", "no answer in time")                                                                   \
    X(CANCELLED, "cancelled", "stopped on request")                                                              \
    X(BUSY, "busy", "try again later")                                                                           \
    X(REFUSED, "refused", "the peer refused, in words")                                                          \
    X(PROTOCOL, "protocol", "the peer broke the protocol")                                                       \
    X(AUTH, "auth", "a key, token or signature is not valid")                                                    \
    X(UNREACHABLE, "unreachable", "the peer cannot be reached")                                                  \
    X(MISMATCH, "mismatch", "two things that must agree do not")                                                 \
    X(NOT_HERE, "not_here", "the worker does not hold that expert")                                              \
    X(STATE, "state", "not possible in the present state")                                                       \
    X(NUMERIC, "numeric", "a result is not finite")

typedef enum {
#define X(code, name, text) CW_STATUS_##code,
    CW_STATUS_MAP(X)
#undef X
        CW_STATUS_COUNT
} cw_status;

#define CW_OK CW_STATUS_OK

typedef struct {
    cw_status code;
    const char *file; /* static string */
    int line;
    char text[480]; /* a sentence for the user, without a final newline */
} cw_err;

/* "format", ...; never NULL. */
const char *cw_status_name(cw_status s);

/* Fills *err (may be NULL) and returns `code`, so that `return CW_FAIL(err, CW_STATUS_IO, "...")` reads well. */
cw_status cw_err_set(cw_err *err, cw_status code, const char *file, int line, const char *fmt, ...) CW_PRINTF(5, 6);
/*
 * Makes a text from outside fit for terminals, logs and JSON, in place: control characters (in UTF-8 also U+0080..9F)
 * and bytes that are not UTF-8 become '?'. The two functions above and below do it to every sentence.
 */
void cw_text_printable(char *text);
/* Puts "PREFIX: " before the text that is there already; returns err->code. */
cw_status cw_err_prefix(cw_err *err, const char *fmt, ...) CW_PRINTF(2, 3);

#define CW_FAIL(err, code, ...) cw_err_set((err), (code), __FILE__, __LINE__, __VA_ARGS__)

/* Return at once with the callee's status. Only for functions that own nothing yet. */
#define CW_TRY(expr)                                                                                              \
    do {                                                                                                         \
        cw_status cw_try_s_ = (expr);                                                                            \
        if (cw_try_s_ != CW_OK) return cw_try_s_;                                                                \
    } while (0)

/* Jump to the function's one `fail:` label with `s` set. */
#define CW_TRY_GOTO(s, expr)                                                                                      \
    do {                                                                                                         \
        (s) = (expr);                                                                                            \
        if ((s) != CW_OK) goto fail;                                                                             \
    } while (0)

_Noreturn void cw_assert_failed(const char *what, const char *file, int line);
#define CW_ASSERT(cond) ((cond) ? (void)0 : cw_assert_failed(#cond, __FILE__, __LINE__))
