/*
 * Logging: one line an event on stderr, "time level module: event key=value ...".
 * Any thread may log. Never prompts, tokens or keys.
 */
#pragma once
#include "cw/status.h"

typedef enum { CW_LOG_ERROR, CW_LOG_WARN, CW_LOG_INFO, CW_LOG_DEBUG } cw_log_level;

/* Lines above `level` are dropped. Default: WARN. */
void cw_log_set_level(cw_log_level level);
cw_log_level cw_log_get_level(void);
/* "error", "warn", "info", "debug" -> level. */
CW_MUST_USE bool cw_log_level_parse(const char *text, cw_log_level *out);
/* Lines go to `sink` instead of stderr (tests); NULL restores stderr. The line ends without newline. */
void cw_log_set_sink(void (*sink)(void *ctx, cw_log_level level, const char *line), void *ctx);

void cw_log_line(cw_log_level level, const char *module, const char *fmt, ...) CW_PRINTF(3, 4);

#define CW_LOG_E(module, ...) cw_log_line(CW_LOG_ERROR, module, __VA_ARGS__)
#define CW_LOG_W(module, ...) cw_log_line(CW_LOG_WARN, module, __VA_ARGS__)
#define CW_LOG_I(module, ...) cw_log_line(CW_LOG_INFO, module, __VA_ARGS__)
#define CW_LOG_D(module, ...) cw_log_line(CW_LOG_DEBUG, module, __VA_ARGS__)
