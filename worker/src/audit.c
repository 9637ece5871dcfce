/*
 * Audits: the coordinator names an expert and a seed; this worker makes rows from the seed, computes them as
 * it computes calls, and answers with a hash of each row. The coordinator, who has the model, does the same
 * and so learns whether this machine computes rightly, without trusting an edge.
 *
 * Rows go through the ordinary compute path in small jobs, when nothing else is queued, or after a while
 * between the calls. At most AUDITS_MAX wait; more are answered at once, without hashes.
 */
#include <stdio.h>
#include <string.h>

#include "cw/known_answer.h"
#include "cw/mem.h"
#include "worker_internal.h"

/* Inputs and outputs of the one audit job that is out at a time. */
struct audit_rows {
    bool out;
    audit *whose; /* NULL: it was forgotten while the job was out */
    float *x;     /* [AUDIT_ROWS, d_model] */
    float *s;     /* [AUDIT_ROWS, d_model / 32] */
    int8_t *q;    /* [AUDIT_ROWS, d_model] */
    float *y;     /* [AUDIT_ROWS, d_model] f32 or f16 */
    int8_t e[AUDIT_ROWS];
};

static audit_rows *rows_new(size_t d)
{
    audit_rows *r = cw_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->x = cw_calloc(AUDIT_ROWS * d, sizeof *r->x);
    r->s = cw_calloc(AUDIT_ROWS * (d / 32 + 1), sizeof *r->s);
    r->q = cw_calloc(AUDIT_ROWS, d);
    r->y = cw_calloc(AUDIT_ROWS * d, sizeof *r->y);
    return r;
}

static void rows_free(audit_rows *r)
{
    if (!r) return;
    cw_free(r->x);
    cw_free(r->s);
    cw_free(r->q);
    cw_free(r->y);
    cw_free(r);
}

static void answer(cw_worker *w, uint64_t id, uint64_t *hashes, size_t n, const char *text, cw_outbox *out)
{
    Cw__Pb__AuditResult m = CW__PB__AUDIT_RESULT__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.id = id, m.n_row_hashes = n, m.row_hashes = hashes, m.text = (char *)(uintptr_t)text;
    env.body_case = CW__PB__ENVELOPE__BODY_AUDIT_RESULT, env.audit_result = &m;
    cw_send(out, w->co.link, &env, NULL, 0);
}

static void take_first(cw_worker *w)
{
    if (w->audit_rows->whose == w->audits[0]) w->audit_rows->whose = NULL;
    cw_free(w->audits[0]);
    memmove(w->audits, w->audits + 1, --w->n_audits * sizeof *w->audits);
}

void audit_ask(cw_worker *w, const Cw__Pb__Audit *m, cw_outbox *out)
{
    audit *a = NULL;
    const char *why = NULL;
    if (w->stopping)
        why = "this worker is stopping";
    else if (!holdings_ready(w, m->layer, m->expert))
        why = "this worker does not hold the expert";
    else if (w->n_audits == AUDITS_MAX)
        why = "as many audits as are allowed are waiting already";
    else if ((!w->audit_rows && !(w->audit_rows = rows_new(w->d_model))) || !w->audit_rows->x ||
             !w->audit_rows->s || !w->audit_rows->q || !w->audit_rows->y || !(a = cw_calloc(1, sizeof *a)))
        why = "out of memory";
    if (why) {
        answer(w, m->id, NULL, 0, why, out);
        return;
    }
    *a = (audit){.id = m->id,
                 .seed = m->seed,
                 .layer = m->layer,
                 .expert = m->expert,
                 .n_rows = m->n_rows,
                 .asked_us = w->now_us};
    w->audits[w->n_audits++] = a;
}

bool audit_fill(cw_worker *w, job_slot *s)
{
    audit *a = w->n_audits ? w->audits[0] : NULL;
    audit_rows *r = w->audit_rows;
    if (!a || r->out || !holdings_ready(w, a->layer, a->expert)) return false;
    if (w->n_entries && w->now_us - a->asked_us < AUDIT_WAIT_US) return false;
    const cw_worker_layer *l = &w->layers[a->layer];
    bool a8 = l->act == CW__PB__ACT_KIND__ACT_A8, f16 = l->rows == CW__PB__REPLY_KIND__ROWS_F16;
    size_t d = w->d_model;
    cw_job *job = &s->job;
    uint32_t n = a->n_rows - a->n_done;
    if (n > AUDIT_ROWS) n = AUDIT_ROWS;
    if (n > w->c.job_rows_max) n = w->c.job_rows_max;
    for (uint32_t i = 0; i < n; i++) {
        float *x = r->x + i * d, *scale = r->s + i * (d / 32);
        int8_t *q = r->q + i * d;
        cw_audit_row(a->seed, a->n_done + i, (int)d, a8 ? q : NULL, a8 ? scale : NULL, a8 ? NULL : x);
        s->row_call[i] = NULL;
        job->rows[i] = (cw_job_row){.q = a8 ? q : NULL,
                                    .s = a8 ? (const uint8_t *)scale : NULL,
                                    .x = a8 ? NULL : (const uint8_t *)x,
                                    .out = (uint8_t *)r->y + i * d * (f16 ? 2 : 4),
                                    .e = f16 ? &r->e[i] : NULL};
    }
    job->n_rows = n;
    job->experts[job->n_experts++] = (cw_job_expert){.layer = a->layer, .expert = a->expert, .n = n};
    s->work = s->alone = (work){(double)l->packed_bytes, (double)l->packed_bytes * n};
    s->is_audit = r->out = true;
    r->whose = a;
    a->asked_us = w->now_us; /* the next piece waits for its moment again */
    return true;
}

void audit_back(cw_worker *w, job_slot *s, cw_outbox *out)
{
    const cw_job *job = &s->job;
    audit *a = w->audit_rows->whose;
    w->audit_rows->out = false;
    if (!a) return;
    for (uint32_t i = 0; i < job->n_rows; i++) {
        const cw_job_row *r = &job->rows[i];
        a->hashes[a->n_done++] =
            cw_audit_hash(r->out, (size_t)w->d_model * (r->e ? 2 : 4), r->e ? *r->e : 0, r->bad);
    }
    if (a->n_done < a->n_rows) return;
    answer(w, a->id, a->hashes, a->n_rows, "", out);
    take_first(w);
}

void audit_tick(cw_worker *w, cw_outbox *out)
{
    while (w->n_audits && (w->stopping || !holdings_ready(w, w->audits[0]->layer, w->audits[0]->expert))) {
        if (w->co.state == CO_ADMITTED)
            answer(w, w->audits[0]->id, NULL, 0, "this worker does not hold the expert any more", out);
        take_first(w);
    }
}

void audit_forget(cw_worker *w)
{
    while (w->n_audits) take_first(w);
}

void audit_free(cw_worker *w)
{
    audit_forget(w);
    rows_free(w->audit_rows);
    w->audit_rows = NULL;
}
