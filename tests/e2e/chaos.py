#!/usr/bin/env python3
"""Faults on purpose in a cluster of real processes, and what the user at the edge saw of them.

    chaos.py answers [--answers 200] [--seed S]     a fault every few seconds while edges answer; no answer fails or changes
    chaos.py gaps [--events 50] [--seed S]          one fault in the middle of each answer; the longest gap between tokens
    chaos.py coordinator [--lifetimes 5]            the coordinator dead for that many ticket lifetimes
    chaos.py moves [--events 10]                    workers join and are drained while edges answer
    chaos.py liar [--seconds 60]                    a worker flips a bit in 1 % of its rows; needs the faulty worker
    chaos.py overload [--seconds 60]                three times the edges that fill the workers
    chaos.py soak [--minutes 30]                    mixed faults; memory and descriptors of every process

Each prints one JSON object with its figures and ends with 1 when a promise was broken. Every fault goes through the
proxy of tests/proxy or is a signal; which, when and to whom follows from the seed. Reference texts are made by the same
questions to an edge that holds every expert itself.
"""
import argparse
import json
import os
import sys
import threading
import time

from bed import QUESTIONS, STORIES, Bed, edge_counters, gaps_of, rss_and_descriptors, slope, spread
from cluster import BIN, TEACHER, eventually


def run_answers(o):
    """Half of the edges have no fallback at all; nobody's answer may fail or change."""
    with Bed(o.seed) as bed:
        rng = bed.rng
        want = bed.reference(o.seed)
        edges = [bed.talker("e0", "-m", TEACHER, seed=o.seed), bed.talker("e1", seed=o.seed)]
        kinds = [bed.kill, bed.stop, bed.blackhole, bed.blackhole_replies, bed.reset, bed.restart_coordinator, bed.drain, bed.join]
        done, failed, changed, last = [0, 0], [], [], [None, None]
        over = threading.Event()

        def ask_on(i):
            while done[i] < o.answers // 2 and not over.is_set():
                q = QUESTIONS[(done[i] * 2 + i) % len(QUESTIONS)]
                text, _, summary = edges[i].ask(q)
                if summary is None:
                    failed.append((edges[i].name, q, edges[i].said()[-300:]))
                    if edges[i].popen.poll() is not None:
                        return
                elif text != want[q]:
                    changed.append((edges[i].name, q, text[-200:]))
                last[i] = summary or last[i]
                done[i] += 1
        threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(2)]
        for t in threads:
            t.start()
        n_faults = {}
        while any(t.is_alive() for t in threads):
            kind = rng.choice(kinds)
            undo = kind(rng.choice(bed.names))
            n_faults[kind.__name__] = n_faults.get(kind.__name__, 0) + 1
            time.sleep(rng.uniform(0.5, 2.5))
            undo()
            # The promise is for one fault at a time: the next comes when what was lost is back.
            eventually("the cluster is whole again", lambda: bed.status().get("min_homes", 0) >= 2, 60)
            time.sleep(rng.uniform(0.2, 1.0))
        for t in threads:
            t.join()
        figures = {"answers": sum(done), "failed": len(failed), "changed": len(changed), "faults": n_faults, "counters": edge_counters(last),
                   "fallback_tokens": sum(s["fallback_tokens"] for s in last if s)}
        for f in failed[:5] + changed[:5]:
            print(f, file=sys.stderr)
        return figures, not failed and not changed and sum(done) >= o.answers


def disturbed(counters):
    return sum(counters.get(k, 0) for k in ("resent", "hedges", "suspects"))


class Gaps:
    """One kind of fault again and again: in each answer one, to a worker that is computing for it."""

    def __init__(self, kind, limit):
        self.kind, self.limit = kind, limit
        self.gaps, self.wrong, self.idle, self.tries = [], 0, 0, 0

    def run(self, bed, edge, want, n):
        _, _, last = edge.ask(STORIES[0])
        end = len(self.gaps) + n
        while len(self.gaps) < end and self.tries < 5 * end:
            self.tries += 1
            q = bed.rng.choice(STORIES)
            edge.begin(q)
            time.sleep(bed.rng.uniform(0.15, 0.7))
            name = bed.in_use()
            at = time.monotonic()
            undo = getattr(bed, self.kind)(name) if name else lambda: None
            text, times, summary = edge.finish()
            if summary is None or text != want[q]:
                self.wrong += 1
                print(self.kind, "failed" if summary is None else "changed", edge.said()[-300:], file=sys.stderr)
            elif disturbed(summary) == disturbed(last):
                self.idle += 1
            elif times and times[0] < at < times[-1]:
                self.gaps.append(gaps_of(times, at))
            last = summary or last
            undo()
            bed.all_ready(90)
            time.sleep(0.3)

    def figures(self):
        return {**spread(self.gaps), "limit": self.limit, "idle": self.idle, "wrong": self.wrong}


def run_gaps(o):
    """Each fault befalls a worker that is computing for the answer: its link carries replies at that moment, and the edge must
    have sent something again or more than once; what met nobody's call is told as `idle` and does not count. A new cluster for
    every ten events: a worker that dies again and again is taken back later and later."""
    limits = {"kill": 250, "stop": 400, "blackhole": 400}
    kinds = [Gaps(k, limits[k]) for k in o.kinds or limits]
    quiet, want = [], None
    for first in range(0, o.events, 10):
        with Bed(o.seed + first) as bed:
            want = want or bed.reference(o.seed)
            edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
            for q in STORIES[:4]:
                edge.ask(q)
                _, times, _ = edge.ask(q)
                quiet.append(gaps_of(times, times[0]))
            for k in kinds:
                k.run(bed, edge, want, min(10, o.events - first))
                print(json.dumps({k.kind: k.figures()}), file=sys.stderr, flush=True)
    ok = all(len(k.gaps) >= o.events and max(k.gaps) <= k.limit and not k.wrong for k in kinds)
    return {"quiet_ms": spread(quiet), **{k.kind: k.figures() for k in kinds}}, ok


def run_coordinator(o):
    """Tickets live 10 s here; workers honour them beyond their end while the coordinator is away."""
    with Bed(o.seed, ticket="10s") as bed:
        want = bed.reference(o.seed)
        edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        assert edge.ask(QUESTIONS[0])[0] == want[QUESTIONS[0]]
        bed.cluster.coordinator.kill()
        end, n, wrong = time.monotonic() + 10 * o.lifetimes, 0, []
        while time.monotonic() < end:
            q = QUESTIONS[n % len(QUESTIONS)]
            text, _, summary = edge.ask(q)
            n += 1
            if summary is None or text != want[q]:
                wrong.append((q, edge.said()[-300:]))
                break
        # A new start of the same edge while it is down, from its stored ticket and epoch.
        edge.close()
        again = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        text, _, summary = again.ask(QUESTIONS[0])
        started = summary is not None and text == want[QUESTIONS[0]]
        bed.cluster.start_coordinator(*bed.coordinator_args)
        eventually("the workers are back without loading", lambda: bed.status()["min_homes"] >= 3, 20)
        for w in wrong:
            print(w, file=sys.stderr)
        return {"seconds": 10 * o.lifetimes, "answers": n, "wrong": len(wrong), "edge_started_meanwhile": started}, not wrong and started


class Moves:
    """What was loaded since the last look, and the least that somebody would have had to load. Every expert of the demo model
    takes the same memory, so experts are counted, and the bytes are the workers' own count."""

    def __init__(self, bed):
        self.bed, self.before = bed, {}
        self.loaded_bytes = self.least_bytes = 0
        self.look()

    def look(self):
        """(experts, bytes) loaded since the last time, by all who are here or have gone since."""
        now = {}
        for name in self.bed.workers:
            n = self.bed.numbers(name)
            now[name] = (n["causeway_worker_loaded_total"], n["causeway_worker_loaded_bytes_total"])
        was = self.before
        self.before = now
        return [sum(now[n][i] - was.get(n, (0, 0))[i] for n in now) for i in (0, 1)]

    def count(self, least):
        experts, loaded = self.look()
        if experts:
            self.expert_bytes = loaded / experts
        self.loaded_bytes += loaded
        self.least_bytes += least * self.expert_bytes
        return {"experts": int(experts), "least": least}


def lacking(sets, name):
    """Experts of that worker that have fewer than two homes without it."""
    others = [s for n, s in sets.items() if n != name]
    return sum(sum(x in s for s in others) < 2 for x in sets[name])


def run_moves(o):
    """Four workers that hold a part of the model each; others come and leave, some are drained and taken back, while an edge
    asks. Three of them have just room for two homes of everything, so the least is: of who comes, what it is to hold; of who
    goes, what would have fewer than two homes; of who is taken back, what it has to hold again."""
    with Bed(o.seed, workers=("a", "b", "c", "d"), part=o.part) as bed:
        want = bed.reference(o.seed)
        edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        edge.ask(STORIES[0])
        pauses, wrong, events = [], 0, []
        over = threading.Event()

        def ask_on():
            nonlocal wrong
            n = 0
            while not over.is_set():
                q = STORIES[n % len(STORIES)]
                n += 1
                text, times, summary = edge.ask(q)
                if summary is None or text != want[q]:
                    wrong += 1
                else:
                    pauses.extend((b, (b - a) * 1e3) for a, b in zip(times, times[1:]))
        asking = threading.Thread(target=ask_on)
        asking.start()
        moves = Moves(bed)

        def event(what, do, least):
            events.append((time.monotonic(), what, {}))
            do()
            eventually(f"{what}: everything is in its place", bed.settled, 90)
            time.sleep(2.2)  # metrics are a second old at most
            events[-1][2].update(moves.count(least()))
        for i in range(0, o.events, 2):
            if i % 4 == 0:
                event("join", lambda: bed.join(None), lambda: len(bed.epoch_sets()[name]) if (name := f"x{bed.n_extra}") else 0)
                name = f"x{bed.n_extra}"
                alone = lacking(bed.epoch_sets(), name)
                event("leave", lambda: bed.workers.pop(name).stop(90), lambda: alone)
            else:
                name = bed.rng.choice(bed.names)
                alone = lacking(bed.epoch_sets(), name)
                event("drain", lambda: bed.cluster.admin("drain", name, "--no-wait"), lambda: alone)
                held = bed.numbers(name)["causeway_worker_experts"]
                event("undrain", lambda: bed.cluster.admin("undrain", name), lambda: max(0, len(bed.epoch_sets()[name]) - int(held)))
        over.set()
        asking.join()
        longest = {}
        for k, (at, what, _) in enumerate(events):
            end = events[k + 1][0] if k + 1 < len(events) else float("inf")
            longest[what] = max([longest.get(what, 0), *(p for t, p in pauses if at <= t < end)])
        for t, p in pauses:
            if p > 100:
                k = max((k for k in range(len(events)) if events[k][0] <= t), default=0)
                print(f"{p:.0f} ms, {t - events[k][0]:.2f} s after {events[k][1]}", file=sys.stderr)
        ratio = moves.loaded_bytes / moves.least_bytes
        return {"events": len(events), "tokens": len(pauses), "pause_ms": spread([p for _, p in pauses]),
                "longest_ms": {k: round(v, 1) for k, v in longest.items()}, "moves": [[w, n] for _, w, n in events],
                "moved_bytes": int(moves.loaded_bytes), "least_bytes": int(moves.least_bytes), "ratio": round(ratio, 3),
                "wrong": wrong}, not wrong and max(p for _, p in pauses) <= 250 and ratio <= 1.2


def run_liar(o):
    """The faulty worker is fenced, and until then and afterwards nobody reads another text."""
    with Bed(o.seed) as bed:
        want = bed.reference(o.seed)
        edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        edge.ask(QUESTIONS[0])
        faulty = BIN.parent / "tests/causeway-worker-faulty"
        cluster = bed.cluster
        before = time.monotonic()
        cluster.start("worker-liar", [faulty, "--join", bed.worker_join, "--name", "liar", "--state", cluster.dir / "state-liar", "--threads", "1"])
        fenced_after, n, changed_before, changed_after, summary = None, 0, 0, 0, None
        end = before + o.seconds + 15
        while time.monotonic() < end:
            q = QUESTIONS[n % len(QUESTIONS)]
            text, _, summary = edge.ask(q)
            n += 1
            if fenced_after is None:
                changed_before += text != want[q]
                if any(json.loads(line).get("fenced") for line in cluster.admin("workers", "--json").stdout.splitlines()):
                    fenced_after = time.monotonic() - before
            else:
                changed_after += text != want[q]
        return ({"fenced_after_s": fenced_after and round(fenced_after, 1), "answers": n, "changed_before": changed_before,
                 "changed_after": changed_after, "counters": edge_counters([summary])},
                fenced_after is not None and fenced_after <= o.seconds and not changed_after)


def answer_on(edges, seconds, want):
    """All edges answer the same stories for so long, each as fast as it can; tokens of each, wrong answers, the last summaries.
    The same work for everybody, so that shares tell who was served how much and not who was asked for what."""
    tokens, wrong, last = [0] * len(edges), [], [None] * len(edges)
    end = time.monotonic() + seconds

    def ask_on(i):
        n = 0
        while time.monotonic() < end:
            q = STORIES[n % len(STORIES)]
            n += 1
            text, times, summary = edges[i].ask(q)
            if summary is None or text != want[q]:
                wrong.append((edges[i].name, q, edges[i].said()[-200:]))
                return
            tokens[i] += sum(t < end for t in times)
            last[i] = summary
    threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(len(edges))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return tokens, wrong, last


def run_overload(o):
    """The number of edges that gets most out of the workers, then three times as many. The workers compute with the scalar
    kernels, some ten times slower, and give way to edges and proxy, so that calls wait for them and not edges for a
    processor: elsewhere each edge has its own."""
    with Bed(o.seed, delay="0ms", workers=("a", "b"), worker_args=("--isa", "scalar")) as bed:
        for w in bed.workers.values():
            for thread in os.listdir(f"/proc/{w.popen.pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), 10)
        want = bed.reference(o.seed)
        edges, wrong, per_second = [], [], {}

        def level(n, seconds):
            while len(edges) < n:
                edges.append(bed.talker(f"e{len(edges)}", "-m", TEACHER, seed=o.seed))
                edges[-1].ask(QUESTIONS[-1])
            tokens, w, last = answer_on(edges[:n], seconds, want)
            wrong.extend(w)
            per_second[n] = round(sum(tokens) / seconds, 1)
            return tokens, last
        for n in o.levels:
            level(n, o.seconds / 4)
        fill = max(per_second, key=per_second.get)
        _, before = level(3 * fill, 1)
        tokens, last = level(3 * fill, o.seconds)
        shares = [t / (sum(tokens) / len(tokens)) for t in tokens]
        a, b = edge_counters(before), edge_counters(last)
        counters = {k: b[k] - a.get(k, 0) for k in b}
        hedged = counters["hedges"] / max(1, counters["calls"])
        goodput = per_second[3 * fill] / per_second[fill]
        for w in wrong[:5]:
            print(w, file=sys.stderr)
        figures = {"tokens_per_s": per_second, "fill": fill, "goodput_of_peak": round(goodput, 3), "least_share": round(min(shares), 3),
                   "most_share": round(max(shares), 3), "wrong": len(wrong), "counters": counters, "hedged": round(hedged, 4)}
        return figures, not wrong and goodput >= 0.9 and hedged < 0.05 and min(shares) >= 0.9 and max(shares) <= 1.1


def settled_descriptors(bed, pids):
    """Descriptors of each process when all is whole and nothing has changed for three seconds."""
    bed.all_ready(90)
    before, since = None, time.monotonic()
    end = since + 60
    while time.monotonic() < end:
        now = {name: rss_and_descriptors(pid)[1] for name, pid in pids.items()}
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > 3:
            break
        time.sleep(0.2)
    return before


def run_soak(o):
    """Faults that leave the processes alive, so that each has one memory curve; and one worker that is killed again and again."""
    with Bed(o.seed, workers=("a", "b", "c", "k")) as bed:
        rng = bed.rng
        want = bed.reference(o.seed)
        edges = [bed.talker("e0", "-m", TEACHER, seed=o.seed), bed.talker("e1", seed=o.seed)]
        wrong, n = [], [0, 0]
        over, rest = threading.Event(), threading.Event()

        def ask_on(i):
            while not over.is_set():
                if rest.is_set():
                    time.sleep(0.05)
                    continue
                q = QUESTIONS[n[i] % len(QUESTIONS)]
                text, _, summary = edges[i].ask(q)
                n[i] += 1
                if summary is None or text != want[q]:
                    wrong.append((edges[i].name, q, edges[i].said()[-200:]))
        threads = [threading.Thread(target=ask_on, args=(i,), daemon=True) for i in range(2)]
        for t in threads:
            t.start()
        pids = {"coordinator": bed.cluster.coordinator.popen.pid, **{f"worker {w}": bed.workers[w].popen.pid for w in "abc"},
                **{e.name: e.popen.pid for e in edges}}
        curve = {name: [] for name in pids}
        start = time.monotonic()
        n_faults, first = {}, None

        def descriptors():
            rest.set()
            d = settled_descriptors(bed, pids)
            rest.clear()
            return d
        while time.monotonic() - start < 60 * o.minutes:
            if first is None and time.monotonic() - start >= 60 * o.minutes / 3:
                first = descriptors()
            kind, name = rng.choice([(bed.kill, "k"), (bed.stop, rng.choice("abc")), (bed.blackhole, rng.choice("abck")),
                                     (bed.blackhole_replies, rng.choice("abck")), (bed.reset, rng.choice("abck")),
                                     (bed.drain, rng.choice("abck")), (bed.join, None)])
            undo = kind(name)
            n_faults[kind.__name__] = n_faults.get(kind.__name__, 0) + 1
            time.sleep(rng.uniform(0.5, 2.0))
            undo()
            bed.all_ready(90)
            for process, pid in pids.items():
                curve[process].append((time.monotonic() - start, *rss_and_descriptors(pid)))
                if o.log:
                    print(json.dumps([process, *(round(x, 2) for x in curve[process][-1])]), file=sys.stderr, flush=True)
        final = descriptors()
        over.set()
        for t in threads:
            t.join(90)
        figures, ok = {"minutes": o.minutes, "faults": n_faults, "answers": sum(n), "wrong": len(wrong)}, not wrong
        for w in wrong[:5]:
            print(w, file=sys.stderr)
        for name, points in curve.items():
            late = [p for p in points if p[0] >= 60 * o.minutes / 3]
            s = slope([(p[0], p[1]) for p in late])
            figures[name] = {"mib_per_10_min": round(s, 2), "mib": round(late[-1][1], 1), "descriptors": [first[name], final[name]],
                             "most_descriptors": max(p[2] for p in late)}
            ok &= s < 1.0 and first[name] == final[name]
        return figures, ok


RUNS = {"answers": run_answers, "gaps": run_gaps, "coordinator": run_coordinator, "moves": run_moves, "liar": run_liar, "overload": run_overload, "soak": run_soak}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=RUNS)
    p.add_argument("--answers", type=int, default=200)
    p.add_argument("--events", type=int, default=50)
    p.add_argument("--kinds", nargs="*", choices=["kill", "stop", "blackhole"], help="gaps: only these faults")
    p.add_argument("--levels", nargs="*", type=int, default=[2, 4, 8, 12], help="overload: edges among which the peak is looked for")
    p.add_argument("--part", type=float, default=0.71, help="moves: of the model that each worker's memory holds")
    p.add_argument("--lifetimes", type=int, default=5)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--log", action="store_true", help="soak: every sample of every process on stderr")
    o = p.parse_args()
    began = time.monotonic()
    figures, ok = RUNS[o.what](o)
    print(json.dumps({o.what: figures, "ok": ok, "seed": o.seed, "took_s": round(time.monotonic() - began)}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
