/*
 * Trust but compare, the coordinator's part. Rows are the same to the bit wherever they are computed, and the
 * coordinator has the model: it asks workers for rows of a seed, has the same rows computed with the
 * reference by its shell, and fences whoever differs. What edges report decides only who is asked, never who
 * is fenced.
 *
 * Rounds: in the background each worker is asked for some rows of an expert it holds every few seconds, all
 * that hold the expert together, so that one reference serves them all, and it is busy with that for a tenth
 * of the time at most; after a report the named workers are asked for many rows of the named expert. Reports
 * never put the background off, or an edge could keep a worker from being audited by reporting others, and an
 * edge whose reports find nobody is heard less and less often. This finds faults and casual cheating; a
 * worker that computes audits rightly and calls wrongly is not found by it.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

enum {
    ROWS_AT_EASE = 64, /* of a round in the background */
    ROWS_REPORTED = 128,
    ROUNDS_REPORTED = 8, /* 1024 rows: one wrong in a hundred is missed once in 30,000 times */
    PATIENCE_US = 20 * 1000000,
    REPORT_GAP_US = 5 * 1000000,
    REPORT_BURST = 4,
    UNFOUNDED_MOST = 6, /* doublings of the gap */
    DODGES_MOST = 6,
    DODGES_ASIDE = 8,           /* in a row, */
    DODGING_US = 600 * 1000000, /* over so long */
    ASIDE_US = 600 * 1000000,
    SHARE = 9, /* the reference rests nine times as long as it worked */
};

static uint64_t draw(cw_coordinator *c)
{
    uint64_t v = c->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return v ^ v >> 31;
}

static member *worker_of(const cw_coordinator *c, uint32_t id)
{
    for (size_t i = 0; id && i < c->n_members; i++)
        if (c->members[i]->worker && c->members[i]->row.id == id) return c->members[i];
    return NULL;
}

static bool can_be_asked(const member *m, uint32_t layer, uint32_t expert)
{
    return m && is_counted(m) && cw_expert_bits_has(&m->worker->held, layer, expert);
}

/* ---- asking */

static audit_round *free_round(cw_coordinator *c)
{
    for (size_t i = 0; i < AUDIT_ROUNDS; i++)
        if (c->audits[i].state == AUDIT_NONE) return &c->audits[i];
    return NULL;
}

static audit_round *begin(cw_coordinator *c, audit_round *r, uint32_t layer, uint32_t expert, uint32_t n_rows,
                          int64_t now_us)
{
    *r = (audit_round){.state = AUDIT_ASKED,
                       .id = ++c->audit_id,
                       .layer = layer,
                       .expert = expert,
                       .n_rows = n_rows,
                       .seed = draw(c),
                       .asked_us = now_us};
    return r;
}

static void ask(audit_round *r, member *m, cw_outbox *out)
{
    if (r->n == AUDIT_WORKERS) return;
    for (uint32_t i = 0; i < r->n; i++) /* a report may name one twice, who would then agree with itself */
        if (r->who[i].worker == m->row.id) return;
    Cw__Pb__Audit a = CW__PB__AUDIT__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    a.id = r->id, a.layer = r->layer, a.expert = r->expert, a.seed = r->seed, a.n_rows = r->n_rows;
    env.body_case = CW__PB__ENVELOPE__BODY_AUDIT, env.audit = &a;
    cw_send(out, m->link, &env, NULL, 0);
    m->worker->audited_us = r->asked_us;
    r->who[r->n++] = (audit_answer){.worker = m->row.id};
}

/* One of the experts it holds, each with the same chance; false: none. */
static bool pick_expert(cw_coordinator *c, const cw_expert_bits *held, uint32_t *layer, uint32_t *expert)
{
    uint32_t n = cw_expert_bits_count(held);
    if (!n) return false;
    uint32_t k = (uint32_t)(draw(c) % n);
    for (uint32_t l = 0; l < held->n_layers; l++)
        for (uint32_t e = 0; e < held->n_experts; e++)
            if (cw_expert_bits_has(held, l, e) && k-- == 0) return *layer = l, *expert = e, true;
    return false;
}

static bool is_being_asked(const cw_coordinator *c, const member *m)
{
    for (size_t i = 0; i < AUDIT_ROUNDS; i++) {
        const audit_round *r = &c->audits[i];
        for (uint32_t k = 0; r->state == AUDIT_ASKED && k < r->n; k++)
            if (r->who[k].worker == m->row.id && !r->who[k].came) return true;
    }
    return false;
}

/* Who gives nothing to compare is asked less and less often, so that it does not keep others from being
 * asked. */
static int64_t due_us(const cw_coordinator *c, const member *m)
{
    uint32_t doublings = m->worker->n_dodged < DODGES_MOST ? m->worker->n_dodged : DODGES_MOST;
    return m->worker->audited_us + ((int64_t)c->cfg.times.audit_ms * 1000 << doublings);
}

static member *longest_unasked(const cw_coordinator *c, int64_t now_us)
{
    member *first = NULL;
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (!is_counted(m) || now_us < due_us(c, m) || cw_expert_bits_empty(&m->worker->held) ||
            is_being_asked(c, m))
            continue;
        if (!first || m->worker->audited_us < first->worker->audited_us) first = m;
    }
    return first;
}

/* The worker that was asked the longest time ago, and whoever holds the same expert and is about due too. */
static void ask_at_ease(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    int64_t gap_us = (int64_t)c->cfg.times.audit_ms * 1000;
    uint32_t layer, expert;
    for (audit_round *r; gap_us && now_us >= c->audit_rest_us && (r = free_round(c));) {
        member *first = longest_unasked(c, now_us);
        if (!first || !pick_expert(c, &first->worker->held, &layer, &expert)) return;
        begin(c, r, layer, expert, ROWS_AT_EASE, now_us);
        ask(r, first, out);
        for (size_t i = 0; i < c->n_members; i++) {
            member *m = c->members[i];
            if (m != first && can_be_asked(m, layer, expert) &&
                now_us - m->worker->audited_us >= gap_us / 2 && !is_being_asked(c, m))
                ask(r, m, out);
        }
    }
}

/* The next report that waits, or another round of the same. */
static void ask_reported(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    mismatch_report *p = &c->reports[0];
    audit_round *r;
    if (!c->n_reports || c->report_round || !(r = free_round(c))) return;
    begin(c, r, p->layer, p->expert, ROWS_REPORTED, now_us);
    for (size_t i = 0; i < CW_ARRAY_LEN(p->workers); i++) {
        member *m = worker_of(c, p->workers[i]);
        if (can_be_asked(m, p->layer, p->expert)) ask(r, m, out);
    }
    c->report_round = r->id;
    p->rounds++;
    if (!r->n) r->asked_us -= PATIENCE_US; /* nobody is there to be asked: over at once */
}

void on_mismatch(cw_coordinator *c, member *m, const Cw__Pb__Mismatch *x, int64_t now_us)
{
    uint32_t doublings = m->edge.unfounded < UNFOUNDED_MOST ? m->edge.unfounded : UNFOUNDED_MOST;
    count_add(COUNT_REPORTS, 1);
    m->edge.reports++;
    if (!bucket_take(&m->edge.report_at, now_us, (int64_t)REPORT_GAP_US << doublings, REPORT_BURST) ||
        c->n_reports == MISMATCH_REPORTS)
        return;
    if (x->layer >= c->cfg.n_layers || x->expert >= c->cfg.n_experts || !worker_of(c, x->worker_a) ||
        !worker_of(c, x->worker_b)) {
        m->edge.unfounded++;
        return;
    }
    for (size_t i = 0; i < c->n_reports; i++) {
        const mismatch_report *p = &c->reports[i];
        if (p->layer == x->layer && p->expert == x->expert && p->workers[0] == x->worker_a &&
            p->workers[1] == x->worker_b)
            return; /* on its way */
    }
    CW_LOG_W("coordinator", "edge \"%s\" reports a mismatch: workers %u and %u, layer %u, expert %u",
             m->row.name, x->worker_a, x->worker_b, x->layer, x->expert);
    c->reports[c->n_reports++] = (mismatch_report){.edge = m->row.key,
                                                   .layer = x->layer,
                                                   .expert = x->expert,
                                                   .workers = {x->worker_a, x->worker_b, x->third}};
}

/* ---- answers */

static audit_round *round_of(cw_coordinator *c, uint64_t id, audit_state state)
{
    for (size_t i = 0; i < AUDIT_ROUNDS; i++)
        if (c->audits[i].state == state && c->audits[i].id == id) return &c->audits[i];
    return NULL;
}

void on_audit_result(cw_coordinator *c, member *m, const Cw__Pb__AuditResult *x)
{
    audit_round *r = round_of(c, x->id, AUDIT_ASKED);
    for (uint32_t i = 0; r && i < r->n; i++) {
        audit_answer *a = &r->who[i];
        if (a->worker != m->row.id || a->came) continue;
        a->came = true;
        if (!x->n_row_hashes) return; /* busy, or the expert was dropped meanwhile */
        a->n = x->n_row_hashes < r->n_rows ? (uint32_t)x->n_row_hashes : r->n_rows;
        memcpy(a->hashes, x->row_hashes, a->n * sizeof *a->hashes);
        if (x->n_row_hashes != r->n_rows) a->n = 0, a->wrong_shape = true;
        return;
    }
}

static void finish(cw_coordinator *c, audit_round *r, bool found)
{
    if (r->id == c->report_round) {
        mismatch_report *p = &c->reports[0];
        c->report_round = 0;
        if (found || p->rounds >= ROUNDS_REPORTED || !r->n) {
            member *edge = member_find(c, &p->edge);
            if (!found) count_add(COUNT_UNFOUNDED, 1);
            if (!found && edge) edge->edge.unfounded++;
            if (!found)
                CW_LOG_I("coordinator", "nobody was found wrong after %u rounds of a report", p->rounds);
            memmove(p, p + 1, --c->n_reports * sizeof *p);
        }
    }
    r->state = AUDIT_NONE;
}

static bool is_somebody_aside(const cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (c->members[i]->worker && c->members[i]->worker->aside) return true;
    return false;
}

/*
 * Nothing is proven of a worker that gives nothing to compare, but nothing is known of its rows either. So it
 * is set aside: others get its experts, and it gets no calls. It is still asked while it holds something, and
 * taken back when it answers; after a while anyhow, on probation. One at a time, and only where the others
 * have room, so that workers that are all too slow to answer do not go one after the other.
 */
static void dodged(cw_coordinator *c, member *m, int64_t now_us)
{
    if (!m || !is_live(m)) return;
    worker_state *w = m->worker;
    if (!w->n_dodged++) w->dodging_us = now_us;
    if (w->n_dodged < DODGES_ASIDE || now_us - w->dodging_us < DODGING_US || is_departing(m)) return;
    bool first = !w->dodging_told;
    w->dodging_told = true;
    bool aside = !is_somebody_aside(c) && can_do_without(c, m);
    if (aside || first)
        CW_LOG_W(
            "coordinator",
            "worker \"%s\" has answered %u audits in a row with nothing: it is overloaded or older, or does "
            "not want to be compared; %s",
            m->row.name, w->n_dodged,
            aside ? "it is set aside until it answers" : "the others cannot do without it");
    if (!aside) return;
    w->aside = true;
    w->aside_until_us = now_us + ASIDE_US;
    replan_now(c, now_us);
}

static void take_back(cw_coordinator *c, member *m, const char *why, int64_t now_us)
{
    if (!m->worker->aside) return;
    m->worker->aside = false;
    CW_LOG_I("coordinator", "worker \"%s\" takes part again: %s", m->row.name, why);
    replan_now(c, now_us);
}

static void end_of_asides(cw_coordinator *c, int64_t now_us)
{
    for (size_t i = 0; i < c->n_members; i++) {
        worker_state *w = c->members[i]->worker;
        if (!w || !w->aside || now_us < w->aside_until_us) continue;
        w->n_dodged = DODGES_ASIDE - 2;
        take_back(c, c->members[i], "it was set aside for long enough, and has two more audits to answer",
                  now_us);
    }
}

/* All have answered, or the time is over: the reference is wanted, if anybody gave something to compare. */
static void close_asking(cw_coordinator *c, audit_round *r, int64_t now_us)
{
    uint32_t came = 0, useful = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        came += r->who[i].came || !worker_of(c, r->who[i].worker) || !worker_of(c, r->who[i].worker)->link;
        useful += r->who[i].n > 0 || r->who[i].wrong_shape;
    }
    if (came < r->n && now_us < r->asked_us + PATIENCE_US) return;
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->who[i].n) dodged(c, worker_of(c, r->who[i].worker), now_us);
    if (useful)
        r->state = AUDIT_WAITS;
    else
        finish(c, r, false);
}

void audit_step(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    for (size_t i = 0; i < AUDIT_ROUNDS; i++)
        if (c->audits[i].state == AUDIT_ASKED) close_asking(c, &c->audits[i], now_us);
    end_of_asides(c, now_us);
    if (c->settle_until) return;
    ask_reported(c, now_us, out);
    ask_at_ease(c, now_us, out);
}

bool cw_coordinator_take_audit(cw_coordinator *c, cw_coordinator_audit *out)
{
    for (size_t i = 0; i < AUDIT_ROUNDS; i++) {
        audit_round *r = &c->audits[i];
        if (r->state != AUDIT_WAITS) continue;
        r->state = AUDIT_COMPUTED;
        *out = (cw_coordinator_audit){
            .id = r->id, .layer = r->layer, .expert = r->expert, .n_rows = r->n_rows, .seed = r->seed};
        return true;
    }
    return false;
}

/* ---- judgement */

static uint32_t wrong_rows(const audit_round *r, const audit_answer *a, const uint64_t *right)
{
    uint32_t n = a->wrong_shape ? r->n_rows : 0;
    for (uint32_t i = 0; i < a->n; i++) n += a->hashes[i] != right[i];
    return n;
}

/* Several workers that agree with each other and with nobody else: rather the reference is at fault. */
static bool is_alone(const audit_round *r, const uint64_t *right)
{
    const audit_answer *first = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        const audit_answer *a = &r->who[i];
        if (!a->n) continue;
        if (!wrong_rows(r, a, right) ||
            (first && memcmp(first->hashes, a->hashes, a->n * sizeof *a->hashes) != 0))
            return false;
        first = a;
        n++;
    }
    return n > 1;
}

static void fence(cw_coordinator *c, member *m, const audit_round *r, uint32_t n_wrong_rows, int64_t now_us,
                  cw_outbox *out)
{
    char text[CW_TEXT_MAX];
    m->row.fenced = true;
    snprintf(m->row.note, sizeof m->row.note, "it computed %u of %u rows wrong for expert %u of layer %u",
             n_wrong_rows, r->n_rows, r->expert, r->layer);
    save_key(c, &m->row);
    count_add(COUNT_FENCED, 1);
    CW_LOG_E("coordinator", "fenced worker=\"%s\" id=%u why=\"%s\"", m->row.name, m->row.id, m->row.note);
    snprintf(text, sizeof text, "this worker is fenced: %s", m->row.note);
    part_with(c, m, now_us, text, out);
    c->republish = true; /* no edge may ask it again: at once */
}

void cw_coordinator_audited(cw_coordinator *c, uint64_t id, const uint64_t *hashes, int64_t took_us,
                            int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    audit_round *r = round_of(c, id, AUDIT_COMPUTED);
    if (!r) return;
    bool found = false, doubt = !hashes || is_alone(r, hashes);
    if (id != c->report_round)
        c->audit_rest_us = (c->audit_rest_us > now_us ? c->audit_rest_us : now_us) + SHARE * took_us;
    if (doubt) {
        count_add(COUNT_AUDIT_DOUBTS, 1);
        if (hashes)
            CW_LOG_E("coordinator",
                     "%u workers agree on rows of expert %u of layer %u that the reference here computes "
                     "differently: this "
                     "machine or its model file is at fault, nobody is fenced",
                     r->n, r->expert, r->layer);
    }
    for (uint32_t i = 0; !doubt && i < r->n; i++) {
        const audit_answer *a = &r->who[i];
        member *m = worker_of(c, a->worker);
        if (!m || (!a->n && !a->wrong_shape)) continue;
        uint32_t wrong = wrong_rows(r, a, hashes);
        count_add(COUNT_AUDITS, 1);
        m->worker->n_audits++;
        m->worker->n_dodged = 0;
        m->worker->dodging_told = false;
        if (!wrong) take_back(c, m, "it answered an audit", now_us);
        if (!wrong) continue;
        count_add(COUNT_AUDITS_WRONG, 1);
        found = true;
        if (is_trusted(m)) fence(c, m, r, wrong, now_us, out);
    }
    finish(c, r, found);
    if (found) {
        mover_step(c, now_us, out);
        epochs_step(c, now_us, wall_ms, out);
    }
    if (c->failed) out->failed = true;
}
