/* The worker's own numbers for Prometheus, in the thread that owns the machine. */
#include "shell_internal.h"

void metrics_write(cw_metrics *m, const cw_worker *w, cw_net *net)
{
    cw_worker_facts f;
    cw_worker_get_facts(w, &f);
    const struct {
        const char *name, *type, *help;
        double v;
    } rows[] = {
        {"causeway_worker_calls_total", "counter", "calls answered", (double)f.calls},
        {"causeway_worker_rows_total", "counter", "rows computed", (double)f.rows},
        {"causeway_worker_bytes_in_total", "counter", "bytes of calls", (double)f.bytes_in},
        {"causeway_worker_bytes_out_total", "counter", "bytes of replies", (double)f.bytes_out},
        {"causeway_worker_experts", "gauge", "experts held and checked", f.n_ready},
        {"causeway_worker_experts_wanted", "gauge", "experts the coordinator asked for", f.n_wanted},
        {"causeway_worker_memory_used_bytes", "gauge", "of the experts held", (double)f.memory_used},
        {"causeway_worker_loaded_total", "counter", "experts brought into memory", (double)f.loaded},
        {"causeway_worker_loaded_bytes_total", "counter", "of the experts brought into memory",
         (double)f.loaded_bytes},
        {"causeway_worker_edges", "gauge", "edges connected", f.n_edges},
        {"causeway_worker_queued_calls", "gauge", "calls that wait", f.queued_calls},
        {"causeway_worker_queued_rows", "gauge", "rows that wait", f.queued_entries},
        {"causeway_worker_queue_bytes", "gauge", "bytes of calls that wait, with their replies",
         (double)f.queue_bytes},
        {"causeway_worker_queue_seconds", "gauge", "until what waits is computed", (double)f.queue_us / 1e6},
        {"causeway_worker_admitted", "gauge", "1 while connected to the coordinator", f.admitted},
        {"causeway_worker_stopping", "gauge", "1 from SIGTERM on", f.stopping},
        {"causeway_epoch_term", "gauge", "term of the newest epoch seen", (double)f.epoch_term},
        {"causeway_epoch_number", "gauge", "number of the newest epoch seen", (double)f.epoch_number},
    };
    cw_metrics_text t = {0};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++)
        cw_metrics_one(&t, rows[i].name, rows[i].type, rows[i].help, rows[i].v);
    cw_metrics_net(&t, net, "data");
    cw_metrics_publish(m, &t);
}
