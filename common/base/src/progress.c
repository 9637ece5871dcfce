/* The progress line: decides when to draw; the text itself is a pure function of done, total and elapsed
 * time. */
#include "cw/progress.h"
#include "cw/clock.h"

#include <stdio.h>
#include <unistd.h>

enum { QUIET_US = 1000000, TTY_US = 100000, LINE_US = 5000000 };

const char *cw_bytes_text(uint64_t bytes, char *buf, size_t cap)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < CW_ARRAY_LEN(units)) v /= 1024, u++;
    snprintf(buf, cap, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}

void cw_progress_text(const cw_progress *p, int64_t elapsed_us, char *buf, size_t cap)
{
    char done[32], total[32];
    cw_bytes_text(p->done, done, sizeof done);
    if (p->total == 0) {
        snprintf(buf, cap, "%s  %s", p->label, done);
        return;
    }
    cw_bytes_text(p->total, total, sizeof total);
    double part = p->done >= p->total ? 1 : (double)p->done / (double)p->total;
    int n = snprintf(buf, cap, "%s  %s of %s  %d %%", p->label, done, total, (int)(part * 100));
    if (part > 0 && part < 1 && n > 0 && (size_t)n < cap) {
        double left = (double)elapsed_us / 1e6 * (1 - part) / part;
        if (left < 120)
            snprintf(buf + n, cap - (size_t)n, "  %.0f s left", left);
        else
            snprintf(buf + n, cap - (size_t)n, "  %.0f min left", left / 60);
    }
}

void cw_progress_begin(cw_progress *p, const char *label, uint64_t total)
{
    int64_t now = cw_now_us();
    *p = (cw_progress){
        .label = label, .total = total, .start_us = now, .last_us = now, .tty = isatty(STDERR_FILENO) != 0};
}

void cw_progress_update(cw_progress *p, uint64_t done)
{
    int64_t now = cw_now_us();
    p->done = done;
    if (now - p->start_us < QUIET_US || now - p->last_us < (p->tty ? TTY_US : LINE_US)) return;
    char text[200];
    cw_progress_text(p, now - p->start_us, text, sizeof text);
    fprintf(stderr, p->tty ? "\r\033[K%s" : "%s\n", text);
    p->last_us = now;
    p->shown = true;
}

void cw_progress_end(cw_progress *p)
{
    if (p->tty && p->shown) fprintf(stderr, "\r\033[K");
    p->shown = false;
}
