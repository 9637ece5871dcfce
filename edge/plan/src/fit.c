/* Does a model fit the memories that workers lend? Counting in whole experts, all of one size. */
#include <stdio.h>
#include <string.h>

#include "cw/plan.h"

static uint64_t homes_of(const cw_fit_model *m, uint64_t experts, const uint64_t *memory, size_t n)
{
    uint64_t homes = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t room = memory[i] / m->expert_bytes;
        homes += room < experts ? room : experts;
    }
    return homes;
}

void cw_plan_fit(const cw_fit_model *m, const uint64_t *memory, size_t n, cw_fit *out)
{
    memset(out, 0, sizeof *out);
    uint64_t experts = m->layers * m->experts;
    if (experts == 0 || m->expert_bytes == 0) {
        snprintf(out->why, sizeof out->why, "the model has no experts");
        return;
    }
    out->need_bytes = experts * m->expert_bytes;
    for (size_t i = 0; i < n; i++) out->have_bytes += memory[i];
    uint64_t homes = homes_of(m, experts, memory, n);
    out->fits = homes >= experts;
    out->held = homes < experts ? homes : experts;
    out->homes = (double)homes / (double)experts;
    /* Two homes of everything, on different workers: any one may go. */
    out->survives_one = n > 1 && homes >= 2 * experts;
    if (!out->fits)
        snprintf(out->why, sizeof out->why, "%.0f %% of the experts find a home; %llu MiB more are needed",
                 100 * out->homes, (unsigned long long)(((experts - homes) * m->expert_bytes >> 20) + 1));
    else if (out->survives_one)
        snprintf(out->why, sizeof out->why,
                 "%.1f homes for each expert: any worker may go and nothing is lost", out->homes);
    else
        snprintf(
            out->why, sizeof out->why,
            "one home for each expert and a second for %.0f %%: when a worker goes, answers wait until its "
            "experts are loaded elsewhere",
            100 * (out->homes - 1));
}
