/* The machine's counters, named in one place; all are registered at the start, so that nothing is missing
 * from `status` and the metrics because it has not happened yet. */
#include "coordinator_internal.h"
#include "cw/counters.h"

static const struct {
    const char *name, *help;
} names[N_COUNTS] = {
    [COUNT_ADMITTED] = {"causeway_admitted_total", "peers let in"},
    [COUNT_REFUSED] = {"causeway_refused_total", "peers refused in words"},
    [COUNT_CUT] = {"causeway_cut_total", "peers cut off for breaking the protocol"},
    [COUNT_TICKETS] = {"causeway_tickets_total", "tickets signed"},
    [COUNT_EPOCHS] = {"causeway_epochs_total", "epochs published"},
    [COUNT_ASSIGNED] = {"causeway_assigned_experts_total", "experts that workers were told to load"},
    [COUNT_ASSIGNED_BYTES] = {"causeway_assigned_bytes_total", "their bytes in workers' memory"},
    [COUNT_DROPPED] = {"causeway_dropped_experts_total", "experts that workers were told to give back"},
    [COUNT_LOST] = {"causeway_worker_links_lost_total",
                    "connections to workers that ended without a goodbye"},
    [COUNT_RELEASED] = {"causeway_released_total", "workers that left after others had taken over"},
    [COUNT_AUDITS] = {"causeway_audits_total", "answers of workers compared with the reference"},
    [COUNT_AUDITS_WRONG] = {"causeway_audits_wrong_total", "of these, answers with a wrong row"},
    [COUNT_AUDIT_DOUBTS] = {"causeway_audit_doubts_total",
                            "audits whose reference could not be had or was alone against agreeing workers"},
    [COUNT_REPORTS] = {"causeway_mismatch_reports_total", "mismatches that edges reported"},
    [COUNT_UNFOUNDED] = {"causeway_mismatch_unfounded_total", "reports after which nobody was found wrong"},
    [COUNT_FENCED] = {"causeway_fenced_total", "workers fenced for wrong rows"},
    [COUNT_FORGOTTEN] = {"causeway_forgotten_total", "edges forgotten because nobody had seen them for long"},
};

static cw_counter *counters[N_COUNTS];

void count_names(void)
{
    for (int i = 0; i < N_COUNTS; i++)
        counters[i] = cw_counter_get(CW_COUNTER, names[i].name, "", names[i].help);
}

void count_add(count_what what, uint64_t n)
{
    cw_counter_add(counters[what], (int64_t)n);
}
