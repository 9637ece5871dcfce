#!/usr/bin/env python3
"""Breaks the code on purpose and sees that a test notices.

  mutants.py [NAME...]     all mutants, or those named ("sim": all that the simulator must notice, "flight": of these what
                           only shows in a long flight); exit status 1 when one survives

A mutant is a small change to a copy of the sources (build/mutants) that breaks a promise of docs/NUMERICS.md or
docs/RESILIENCE.md. Its tests must fail with it, and must have passed without it; where the test is the simulator, one of
its first thousand seeds (of flights two hundred) must fail, and a table at the end says which and what was violated.
`deploy/test --mutants` runs this.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build/mutants"
SRC = WORK / "src"
BUILD = WORK / "build"
SEEDS = 1000
FLIGHT = ["--edges", "12", "--hours", "4"]
FLIGHT_SEEDS = 200

# name: what it breaks, {file: [(old, new), ...]}, ctest's name pattern of the tests that must notice
MUTANTS = {
    "combine-order-reversed": ("rows of experts are combined in descending order of expert", {
        "common/model/src/experts_local.c": [(
            "for (int i = lower_bound(c, (uint32_t)row); i < c->n_entries && c->entries[i].row == (uint32_t)row; i++) {",
            "for (int i = lower_bound(c, (uint32_t)row + 1) - 1; i >= 0 && c->entries[i].row == (uint32_t)row; i--) {")],
    }, "test_model|golden_model_bits"),
    "accumulator-depends-on-m": ("a product of many rows rounds twice where a product of one rounds once", {
        "common/kernels/src/ref_matmul.c": [(
            "*acc = add_block(*acc, &sub, mm->a8,",
            "*acc = (row1 - row0 > 4 ? *acc : 0.0f) + add_block(row1 - row0 > 4 ? 0.0f : *acc, &sub, mm->a8,")],
    }, "test_kernels|test_matmul|golden_model_bits"),
    "rounding-only-on-the-wire": ("local experts hand over rows that were never rounded to f16", {
        "common/model/src/expert_ffn.c": [("!r->kn->row_to_f16(j->f16 + to * d, &j->e[to], y, d);",
                                           "!r->kn->row_to_f16(j->f16 + to * d, &j->e[to], y, d);\n"
                                           "        if (j->f32) memcpy(j->f32 + to * d, y, (size_t)d * sizeof *y);")],
        "common/model/src/experts_local.c": [("cw_reply_kind kind = cw_expert_reply_kind(cw_expert_set_shape(x->set, call->layer));",
                                              "cw_reply_kind kind = CW_REPLY_ROWS_F32;")],
        "common/model/src/pass_ffn.c": [("if (reply.kind != cw_expert_reply_kind(&p->e->shapes[layer]))", "if (0)")],
    }, "test_model|e2e_split"),
    "flush-to-zero-in-one-thread": ("one pool thread flushes subnormals to zero", {
        "common/par/src/pool.c": [("    cw_fp_setup();\n    while (", "    cw_fp_setup();\n    if (m->index == 1) __builtin_ia32_ldmxcsr(0x9fc0);\n    while (")],
    }, "test_pool|test_matmul|golden_model_bits"),
    "head-ignores-rewinds": ("a prediction head's cache keeps rows that its session took back", {
        "common/model/src/mtp_line.c": [("    give_up(l, n_past > 0 && has_hidden(l, n_past - 1) ? n_past - 1 : n_past);\n", "")],
    }, "test_model_mtp"),
    "head-keeps-another-token": ("a prediction head's row stays that of a token which did not follow", {
        "common/model/src/mtp_line.c": [("l->own->tokens[l->own->n_past - 1] != tokens[ready(l)])", "l->own->n_past < 0)")],
    }, "test_model_mtp"),
    "turns-without-weights": ("a worker takes no account of what an edge's calls cost it", {
        "worker/src/turns.c": [("s->row_call[i]->peer->account->deficit -= packed * (1 / n + row);", "s->row_call[i]->peer->account->deficit -= 0 * packed * n * row;")],
    }, "test_worker"),
    "part-loss-is-no-loss": ("an expert that nobody has is asked for again after every word of the fallback", {
        "edge/remote/src/calls.c": [("            reach_lost(e, out);\n", "")],
    }, "test_edge_machine"),
}

# What the simulator (tests/sim) must notice.
SIM_MUTANTS = {
    "late-reply-of-another-call": ("a reply that nobody waits for is taken for the oldest call", {
        "edge/remote/src/calls.c": [("        if (p->id == id) return p;\n    return NULL;", "        if (p->id == id) return p;\n    return h->sent.head;")],
    }),
    "drop-before-ready": ("an expert leaves a worker as soon as another is to hold it", {
        "coordinator/src/mover.c": [
            ("if (!cw_expert_bits_has(&w->held, layer, e) || cw_expert_bits_has(&w->leaving, layer, e)) continue;",
             "if (!cw_expert_bits_has(&w->wanted, layer, e) || cw_expert_bits_has(&w->leaving, layer, e)) continue;"),
            ("if (!in_epoch || cw_expert_bits_has(&w->published, layer, e)) return true;", "(void)in_epoch;\n        return true;")],
    }),
    "call-id-twice": ("call ids begin again after a thousand", {
        "edge/remote/src/calls.c": [("p->id = ++e->next_call;", "p->id = ++e->next_call % 1000 + 1;")],
    }),
    "hedge-without-budget": ("every late call is hedged", {
        "edge/remote/src/late.c": [("if (!exempt && (is_prefill(p) || e->tokens < 1)) return false;", "if (!exempt && is_prefill(p)) return false;")],
    }),
    "term-ignored": ("the number alone says which epoch is newer", {
        "edge/remote/src/homes.c": [("bool newer = b->term != e->epoch_term ? b->term > e->epoch_term : b->number > e->epoch_number;", "bool newer = b->number > e->epoch_number;")],
        "worker/src/coordinator.c": [("bool newer = e->term != w->epoch_term ? e->term > w->epoch_term : e->number > w->epoch_number;", "bool newer = e->number > w->epoch_number;")],
    }),
    "publish-before-ready": ("an epoch names homes that are still loading", {
        "coordinator/src/epochs.c": [("cw_expert_bits_copy(out, is_counted(m) ? &w->held : &w->published);", "cw_expert_bits_copy(out, is_counted(m) ? &w->wanted : &w->published);")],
    }),
    "lost-calls-forgotten": ("calls on a cut link are not sent again", {
        "edge/remote/src/calls.c": [("    late_forget(h);\n    place_all(e, &all, out);", "    late_forget(h);\n    for (piece *p; (p = all.head);) list_remove(&all, p), piece_free(p);")],
    }),
    "ticket-of-another-key": ("a ticket is good on anybody's connection", {
        "worker/src/edges.c": [("if (!cw_key_equal(&t.edge, &p->key))", "if (!cw_key_equal(&t.edge, &t.edge))")],
    }),
    "cancelled-call-answered": ("a cancelled call is computed and answered", {
        "worker/src/calls.c": [("        if (c->v.id == id) {\n            call_unlink(w, c);\n            return;", "        if (c->v.id == id) {\n            (void)w;\n            return;")],
    }),
    "row-counted-twice": ("the second answer of a hedge counts too", {
        "edge/remote/src/rows.c": [("} else if (!(m->flags & ROW_DONE) && m->by != h->index) {", "} else if (r->n_left && m->by != h->index) {")],
    }),
    "expert-not-held": ("a worker takes calls for experts that it does not hold", {
        "worker/src/calls.c": [("if (!holdings_ready(w, v->layer, cw_entry_get(v->entries, i).expert)) return i;", "if (!w->n_ready) return i;")],
    }),
    "lower-epoch-taken": ("an edge goes back to an older epoch", {
        "edge/remote/src/homes.c": [("bool newer = b->term != e->epoch_term ? b->term > e->epoch_term : b->number > e->epoch_number;", "bool newer = b->term != e->epoch_term || b->number != e->epoch_number;")],
    }),
    "memory-not-counted": ("experts are assigned and loaded beyond a worker's memory", {
        "worker/src/holdings.c": [("if (w->memory_used + w->layers[l].packed_bytes > w->c.memory_bytes)", "if (0)")],
        "coordinator/src/placement.c": [("bool all = pw->memory >= s->total;", "bool all = true;")],
        "coordinator/src/mover.c": [("if (c->expert_bytes[l] > room) {", "if (0) {")],
    }),
    "epoch-not-saved": ("an epoch is published before it is on disk", {
        "coordinator/src/epochs.c": [("\n    save_epoch(c);", "")],
    }),
    "number-stands-still": ("a new epoch under an old number", {
        "coordinator/src/epochs.c": [("\n    c->number++;", "")],
    }),
    "seen-epochs-ignored": ("nobody notices that an old backup was restored", {
        "coordinator/src/epochs.c": [("if (term < newest_term || (term == newest_term && number <= newest)) return;", "if (c->n_members + newest + newest_term + term + number) return;")],
    }),
    "holdings-not-believed": ("what a worker was told counts, not what it says it holds", {
        "coordinator/src/mover.c": [("    sets_to_bits(h->n_ready, h->ready, &w->held);", "    cw_expert_bits_or(&w->held, &w->asked);")],
    }),
    "worker-misses-cuts": ("a worker that lost its coordinator never connects again", {
        "worker/src/coordinator.c": [("ev->kind == CW_EV_LINK_DOWN", "ev->kind == CW_EV_LINK_DOWN && 0")],
    }),
    "liars-go-free": ("wrong rows of an audit have no consequence", {
        "coordinator/src/audit.c": [("        if (!wrong) continue;", "        if (wrong + 1) continue;")],
    }),
}

# What only days of edges that sleep, wake and lose their links show (tests/sim/test_flight).
FLIGHT_MUTANTS = {
    "slow-answer-is-offline": ("only answers count as words of a worker: one that is slow makes the edge go offline", {
        "edge/remote/src/links.c": [("if (h->state == HOME_UP || env->body_case == CW__PB__ENVELOPE__BODY_WELCOME) e->heard_us = e->now_us;",
                                     "if (env->body_case == CW__PB__ENVELOPE__BODY_REPLY) e->heard_us = e->now_us;")],
    }),
    "silence-goes-on-in-sleep": ("the wait for a word is kept across a sleep", {
        "edge/remote/src/tide.c": [("bool slept = t->seen_us && v->now_us - t->seen_us > CW_TIDE_SLEPT_US;", "bool slept = t->seen_us > v->now_us;")],
    }),
    "deadline-runs-in-sleep": ("the time for an answer is kept across a sleep", {
        "edge/remote/src/edge.c": [("if (pause_us > CW_TIDE_SLEPT_US) after_sleep(e, pause_us);", "if (pause_us < 0) after_sleep(e, pause_us);")],
    }),
    "return-need-not-hold": ("a return is believed at once", {
        "edge/remote/src/tide.c": [("if (v->now_us - t->since_us < t->hold_us) {", "if (v->now_us < t->since_us) {")],
    }),
    "hold-stands-still": ("returns that do not last make the next one no slower", {
        "edge/remote/src/tide.c": [("t->hold_us = lasted || !t->hold_us ? CW_TIDE_HOLD_US : 2 * t->hold_us;", "t->hold_us = lasted ? CW_TIDE_HOLD_US : CW_TIDE_HOLD_US;")],
    }),
    "nobody-is-asked-while-away": ("links that came back to life are not pinged, so the return is not noticed", {
        "edge/remote/src/reach.c": [("if (e->tide.state != CW_TIDE_ONLINE) ask_around(e, out);", "if (e->tide.state == CW_TIDE_SUSPECT) ask_around(e, out);")],
    }),
    "answers-wait-for-the-tide": ("requests stay open when the mainland is lost, though a fallback is there", {
        "edge/remote/src/reach.c": [("if (!e->c.gives_way || cw_tide_is_up(&e->tide)) return;\n    while", "if (e->now_us) return;\n    while")],
    }),
    "ticket-never-renewed": ("an edge that never sleeps lets its ticket run out", {
        "edge/remote/src/coordinator.c": [("if (e->ticket_len && e->now_us >= e->co.renew_us) control_renew(e, out);", "if (e->ticket_len && e->now_us < 0) control_renew(e, out);")],
    }),
    "gone-edges-stay": ("the coordinator keeps edges whose links have ended for connected", {
        "coordinator/src/coordinator.c": [("    if (l->who) {\n        CW_LOG_I", "    if (l->who && l->who->worker) {\n        CW_LOG_I")],
    }),
}


def copy_sources():
    """The tracked files as they are in the checkout; unchanged ones keep their times, so that builds are short."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    files = [name for name in listed if name and (ROOT / name).exists()]
    wanted = set(files)
    for old in SRC.rglob("*"):
        if old.is_file() and str(old.relative_to(SRC)) not in wanted:
            old.unlink()
    for name in files:
        to = SRC / name
        data = (ROOT / name).read_bytes()
        if not to.exists() or to.read_bytes() != data:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            shutil.copymode(ROOT / name, to)


def build(targets=()):
    log = WORK / "build.log"
    with open(log, "wb") as f:
        steps = ([["cmake", "-S", str(SRC), "-B", str(BUILD), "-G", "Ninja"]] if not BUILD.exists() else []) + [["ninja", "-C", str(BUILD), *targets]]
        for step in steps:
            if subprocess.run(step, stdout=f, stderr=subprocess.STDOUT, check=False).returncode:
                sys.exit(f"the build failed; see {log}")


def tests_pass(pattern):
    """(whether all pass, names of those that failed); at least one must run."""
    r = subprocess.run(["ctest", "--test-dir", str(BUILD), "--no-tests=error", "-R", pattern, "-LE", "bench"],
                       capture_output=True, text=True, check=False)
    failed = [line.split(" - ")[1].split()[0] for line in r.stdout.splitlines() if line.strip().endswith(("(Failed)", "(Timeout)", "ABORTED)", "(SEGFAULT)")) and " - " in line]
    if r.returncode and not failed:
        sys.exit(f"ctest did not run: {r.stdout[-2000:]}{r.stderr}")
    return r.returncode == 0, failed


def mutate(edits):
    """Applies the edits to the copy; gives back what it takes to undo them."""
    undo = {}
    for name, changes in edits.items():
        path = SRC / name
        text = undo.setdefault(path, path.read_text())
        for old, new in changes:
            if text.count(old) != 1:
                sys.exit(f"{name}: the text to change occurs {text.count(old)} times: {old}")
            text = text.replace(old, new)
        path.write_text(text)
    return undo


def simulate(program="test_sim", options=(), seeds=SEEDS):
    """None: every seed held; else what the first failing one says."""
    r = subprocess.run([str(BUILD / "tests" / program), *options, "--seeds", f"1-{seeds}", "--jobs", str(os.cpu_count())],
                       capture_output=True, text=True, check=False, errors="replace")
    if r.returncode == 0:
        return None
    said = [line for line in r.stdout.splitlines() + r.stderr.splitlines() if "FAILED" in line or "assert" in line.lower() or "ended with" in line]
    return said[-1][:200] if said else f"exit status {r.returncode}"


def caught_by_tests(edits, pattern, name):
    build()
    healthy, failed = tests_pass(pattern)
    if not healthy:
        sys.exit(f"{name}: {', '.join(failed)} fail without the mutant")
    undo = mutate(edits)
    try:
        build()
        alive, failed = tests_pass(pattern)
    finally:
        for path, text in undo.items():
            path.write_text(text)
    return None if alive else ", ".join(failed)


def caught_by_simulator(name):
    flight = name in FLIGHT_MUTANTS
    undo = mutate((FLIGHT_MUTANTS if flight else SIM_MUTANTS)[name][1])
    try:
        build(["test_flight" if flight else "test_sim"])
        return simulate("test_flight", FLIGHT, FLIGHT_SEEDS) if flight else simulate()
    finally:
        for path, text in undo.items():
            path.write_text(text)


def main():
    known = {**MUTANTS, **SIM_MUTANTS, **FLIGHT_MUTANTS}
    groups = {"sim": [*SIM_MUTANTS, *FLIGHT_MUTANTS], "flight": list(FLIGHT_MUTANTS)}
    names = [n for arg in sys.argv[1:] or known for n in groups.get(arg, [arg])]
    unknown = [n for n in names if n not in known]
    if unknown:
        sys.exit(f"no mutant {unknown[0]}; there are: {', '.join([*groups, *known])}")
    os.environ["CTEST_OUTPUT_ON_FAILURE"] = "0"
    copy_sources()
    if any(n in SIM_MUTANTS for n in names):
        build(["test_sim"])
        why = simulate()
        if why:
            sys.exit(f"the simulation fails without a mutant: {why}")
    survivors, table, flights = 0, [], 0
    for name in names:
        what, edits = known[name][:2]
        why = caught_by_tests(edits, MUTANTS[name][2], name) if name in MUTANTS else caught_by_simulator(name)
        survivors += why is None
        print(f"{'SURVIVED' if why is None else 'caught'}  {name}: {what}" + ("" if why is None else f" ({why})"), flush=True)
        seed = re.match(r"seed (\d+) FAILED at [\d.]+ s: (.*)", why or "")
        if seed:
            table.append((name, int(seed[1]), seed[2]))
            flights = max(flights, int(seed[1]) if name in FLIGHT_MUTANTS else 0)
    if flights:
        build(["test_flight"])
        why = simulate("test_flight", FLIGHT, flights)
        if why:
            sys.exit(f"the flight fails without a mutant: {why}")
    if table:
        print("\n| mutant | seed | what was seen |\n|---|---|---|")
        for name, seed, why in table:
            print(f"| {name} | {seed} | {why} |")
    print(f"{len(names) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
