#!/usr/bin/env python3
"""Faults on purpose in a cluster of real processes, and what the user at the edge saw of them.

    chaos.py answers [--answers 200] [--seed S]     a fault every few seconds while edges answer; no answer fails or changes
    chaos.py gaps [--events 50] [--seed S]          one fault in the middle of each answer; the longest gap between tokens
    chaos.py coordinator [--lifetimes 5]            the coordinator dead for that many ticket lifetimes
    chaos.py moves [--events 10]                    workers join and are drained while edges answer
    chaos.py liar [--seconds 60]                    a worker flips a bit in 1 % of its rows; needs the faulty worker
    chaos.py overload [--seconds 30]                three times the edges that fill the workers
    chaos.py soak [--minutes 30]                    mixed faults; memory and descriptors of every process

Each prints one JSON object with its figures and ends with 1 when a promise was broken. Every fault goes through the
proxy of tests/proxy or is a signal; which, when and to whom follows from the seed. Reference texts are made by the same
questions to an edge that holds every expert itself.
"""
import argparse
import json
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

from cluster import BIN, STUDENT, TEACHER, eventually
from proxy import ProxiedCluster

TOPICS = ["a brave fox", "a poor king", "a clever girl", "an old miller", "a lazy cat", "a proud crow", "two brothers", "a small bear",
          "a kind queen", "a hungry wolf", "a lost lamb", "a golden bird"]
QUESTIONS = [f"Tell me a story about {t}." for t in TOPICS] + ["What is 347 + 285?", "Sort: 41, 7, 530, 88", "What is the capital of France?"]


class Talker:
    """A `causeway chat --json` that stays: one question after another, each piece of text with the time it came."""

    def __init__(self, directory, name, *args, seed=1, tokens=300):
        self.name = name
        self.err_path = directory / f"{name}.err"
        with open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(
                [str(a) for a in (BIN / "causeway", "chat", "--json", "--temp", "0.7", "--seed", seed, "-n", tokens, "--threads", "1", *args)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, bufsize=1)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.popen.stdout:
            self.lines.put((time.monotonic(), line))
        self.lines.put((time.monotonic(), None))

    def begin(self, question):
        self.popen.stdin.write(f"/new\n{question}\n")
        self.popen.stdin.flush()

    def finish(self, patience=60):
        """(text, times of pieces, summary); a failed answer has no summary."""
        text, times, end = "", [], time.monotonic() + patience
        while True:
            try:
                at, line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                return text, times, None
            if line is None:
                return text, times, None
            value = json.loads(line)
            if "summary" in value:
                return text, times, value["summary"]
            text += value.get("text", "")
            times.append(at)

    def ask(self, question):
        self.begin(question)
        return self.finish()

    def said(self):
        return self.err_path.read_text(errors="replace")

    def close(self):
        if self.popen.poll() is None:
            self.popen.stdin.close()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Bed:
    """Three workers that each hold everything, behind proxies with a delay, and the faults that can befall them."""

    def __init__(self, seed, delay="1ms", workers=("a", "b", "c"), ticket=None):
        self.rng = random.Random(seed)
        self.delay = delay
        self.names = list(workers)
        self.cluster = ProxiedCluster(seed=seed)
        self.coordinator_args = ["--ticket-lifetime", ticket] if ticket else []
        self.workers, self.talkers = {}, []
        self.n_extra = 0

    def __enter__(self):
        c = self.cluster
        c.start_coordinator(*self.coordinator_args)
        self.worker_join = c.join("worker", "--uses", "100")
        self.edge_join = c.join("edge")
        for n in self.names:
            self.start_worker(n)
        self.all_ready()
        return self

    def __exit__(self, kind, *rest):
        for t in self.talkers:
            t.close()
            if kind is not None:
                print(f"--- {t.name} ---\n{t.said()[-2000:]}", file=sys.stderr)
        self.cluster.__exit__(kind, *rest)

    def start_worker(self, name):
        self.workers[name] = self.cluster.start_worker(name, join=self.worker_join)
        self.cluster.net(f"{name} delay both {self.delay}")

    def status(self):
        return self.cluster.admin_json("status")

    def all_ready(self, seconds=30):
        eventually("every worker holds everything", lambda: self.status()["min_homes"] >= len(self.names), seconds)

    def talker(self, name, *args, **kwargs):
        t = Talker(self.cluster.dir, name, "--mode", "split", "--join", self.edge_join, "--state", self.cluster.dir / f"state-{name}",
                   "--name", name, *args, **kwargs)
        self.talkers.append(t)
        return t

    def reference(self, seed, tokens=300):
        t = Talker(self.cluster.dir, "reference", "--mode", "local", "-m", TEACHER, seed=seed, tokens=tokens)
        self.talkers.append(t)
        texts = {q: t.ask(q)[0] for q in QUESTIONS}
        t.close()
        return texts

    # --- faults: each returns what undoes it, called after a while ---

    def kill(self, name):
        self.workers[name].popen.kill()
        self.workers[name].popen.wait()
        return lambda: self.start_worker(name)

    def stop(self, name):
        p = self.workers[name].popen
        p.send_signal(signal.SIGSTOP)
        return lambda: p.send_signal(signal.SIGCONT)

    def blackhole(self, name):
        self.cluster.net(f"{name} blackhole both on")
        return lambda: self.cluster.net(f"{name} blackhole both off")

    def blackhole_replies(self, name):
        self.cluster.net(f"{name} blackhole down on")
        return lambda: self.cluster.net(f"{name} blackhole down off")

    def reset(self, name):
        self.cluster.net(f"{name} reset")
        return lambda: None

    def restart_coordinator(self, _):
        c = self.cluster
        c.coordinator.kill()
        c.start_coordinator(*self.coordinator_args)
        return lambda: None

    def drain(self, name):
        self.cluster.admin("drain", name)
        return lambda: self.cluster.admin("undrain", name, check=False)

    def join(self, _):
        self.n_extra += 1
        name = f"x{self.n_extra}"
        self.start_worker(name)

        def leave():
            self.workers.pop(name).stop(60)
        return leave


def gaps_of(times, since):
    """Longest gap between pieces at or after `since`, in ms; the gap that `since` falls into counts from `since`."""
    later = [t for t in times if t > since]
    points = [since, *later] if times and times[0] <= since else later
    return max((b - a for a, b in zip(points, points[1:])), default=0.0) * 1e3


def spread(values):
    v = sorted(values)
    pick = lambda q: round(v[min(len(v) - 1, int(q * len(v)))], 1)
    return {"n": len(v), "p50": pick(0.5), "p95": pick(0.95), "max": round(v[-1], 1)} if v else {"n": 0}


def edge_counters(talkers):
    """Sums of the counters that the last summaries showed."""
    total = {}
    for s in talkers:
        for k, v in (s or {}).items():
            if k in ("hedges", "hedge_wins", "resent", "compared", "mismatches", "busy", "calls", "late"):
                total[k] = total.get(k, 0) + v
    return total


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


def run_gaps(o):
    limits = {"kill": 250, "stop": 400, "blackhole": 400}
    figures, ok = {}, True
    with Bed(o.seed) as bed:
        want = bed.reference(o.seed)
        stories = [q for q in QUESTIONS if q.startswith("Tell")]
        edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        quiet = []
        for q in stories:
            edge.ask(q)
            _, times, _ = edge.ask(q)
            quiet.append(gaps_of(times, times[0]))
        figures["quiet_ms"] = spread(quiet)
        for kind in (bed.kill, bed.stop, bed.blackhole):
            gaps, wrong, tries = [], 0, 0
            while len(gaps) < o.events and tries < 3 * o.events:
                tries += 1
                q = bed.rng.choice(stories)
                edge.begin(q)
                time.sleep(bed.rng.uniform(0.15, 0.7))
                at = time.monotonic()
                undo = kind(bed.rng.choice(bed.names))
                text, times, summary = edge.finish()
                if summary is None or text != want[q]:
                    wrong += 1
                    print(kind.__name__, "failed" if summary is None else "changed", edge.said()[-300:], file=sys.stderr)
                elif times and times[0] < at < times[-1]:
                    gaps.append(gaps_of(times, at))
                undo()
                bed.all_ready(60)
                time.sleep(0.3)
            figures[kind.__name__] = {**spread(gaps), "limit": limits[kind.__name__], "wrong": wrong}
            print(json.dumps({kind.__name__: figures[kind.__name__]}), file=sys.stderr, flush=True)
            ok &= bool(gaps) and max(gaps) <= limits[kind.__name__] and not wrong and len(gaps) >= o.events
    return figures, ok


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


def run_moves(o):
    """Joins and drains under load: no pause above 250 ms."""
    with Bed(o.seed) as bed:
        want = bed.reference(o.seed)
        stories = [q for q in QUESTIONS if q.startswith("Tell")]
        edge = bed.talker("e0", "-m", TEACHER, seed=o.seed)
        edge.ask(stories[0])
        pauses, wrong = [], 0
        over = threading.Event()

        def ask_on():
            nonlocal wrong
            n = 0
            while not over.is_set():
                q = stories[n % len(stories)]
                n += 1
                text, times, summary = edge.ask(q)
                if summary is None or text != want[q]:
                    wrong += 1
                elif times:
                    pauses.append(gaps_of(times, times[0]))
        asking = threading.Thread(target=ask_on)
        asking.start()
        for i in range(o.events):
            undo = bed.join(None) if i % 2 == 0 else bed.drain(bed.rng.choice(bed.names))
            time.sleep(3)
            undo()
            time.sleep(2)
        over.set()
        asking.join()
        return {"events": o.events, "answers": len(pauses), "pause_ms": spread(pauses), "wrong": wrong}, not wrong and max(pauses) <= 250


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
    """All edges answer stories for so long; tokens of each, wrong answers, the last summaries."""
    stories = [q for q in QUESTIONS if q.startswith("Tell")]
    tokens, wrong, last = [0] * len(edges), [], [None] * len(edges)
    end = time.monotonic() + seconds

    def ask_on(i):
        n = i
        while time.monotonic() < end:
            q = stories[n % len(stories)]
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
    """Edges and workers share this machine's cores, so both ends are over-subscribed."""
    with Bed(o.seed, delay="0ms") as bed:
        want = bed.reference(o.seed)
        edges = [bed.talker(f"e{i}", "-m", TEACHER, seed=o.seed) for i in range(12)]
        for e in edges:
            e.ask(QUESTIONS[-1])
        figures, peak = {"tokens_per_s": {}}, 0.0
        wrong_all = []
        for n in (1, 2, 4, 12):
            tokens, wrong, last = answer_on(edges[:n], o.seconds / 3, want)
            wrong_all += wrong
            rate = sum(tokens) / (o.seconds / 3)
            figures["tokens_per_s"][n] = round(rate, 1)
            peak = max(peak, rate) if n < 12 else peak
        shares = [t / (sum(tokens) / len(tokens)) for t in tokens]
        counters = edge_counters(last)
        figures |= {"goodput_of_peak": round(rate / peak, 3), "least_share": round(min(shares), 3), "most_share": round(max(shares), 3),
                    "wrong": len(wrong_all), "counters": counters}
        for w in wrong_all[:5]:
            print(w, file=sys.stderr)
        hedged = counters.get("hedges", 0) / max(1, counters.get("calls", 0))
        figures["hedged"] = round(hedged, 4)
        return figures, not wrong_all and rate >= 0.9 * peak and hedged < 0.05 and min(shares) >= 0.9 and max(shares) <= 1.1


def rss_and_descriptors(pid):
    import pathlib
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    rss = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
    return rss, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def slope(points):
    """Least squares, per 10 minutes."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    below = sum((x - mx) ** 2 for x in xs)
    return 600 * sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / below if below else 0.0


def run_soak(o):
    """Faults that leave the processes alive, so that each has one memory curve; and one worker that is killed again and again."""
    with Bed(o.seed, workers=("a", "b", "c", "k")) as bed:
        rng = bed.rng
        want = bed.reference(o.seed)
        edges = [bed.talker("e0", "-m", TEACHER, seed=o.seed), bed.talker("e1", seed=o.seed)]
        wrong, n = [], [0, 0]
        over = threading.Event()

        def ask_on(i):
            while not over.is_set():
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
        n_faults = 0
        while time.monotonic() - start < 60 * o.minutes:
            kind, name = rng.choice([(bed.kill, "k"), (bed.stop, rng.choice("abc")), (bed.blackhole, rng.choice("abck")),
                                     (bed.reset, rng.choice("abck")), (bed.drain, rng.choice("abck"))])
            undo = kind(name)
            n_faults += 1
            time.sleep(rng.uniform(0.5, 2.0))
            undo()
            bed.all_ready(90)
            for process, pid in pids.items():
                curve[process].append((time.monotonic() - start, *rss_and_descriptors(pid)))
        over.set()
        for t in threads:
            t.join(90)
        figures, ok = {"minutes": o.minutes, "faults": n_faults, "answers": sum(n), "wrong": len(wrong)}, not wrong
        for w in wrong[:5]:
            print(w, file=sys.stderr)
        for name, points in curve.items():
            late = [p for p in points if p[0] >= 60 * o.minutes / 3]
            s = slope([(p[0], p[1]) for p in late])
            fds = [p[2] for p in late]
            figures[name] = {"mib_per_10_min": round(s, 2), "mib": round(late[-1][1], 1), "descriptors": [fds[0], fds[-1], max(fds)]}
            ok &= s < 1.0
        return figures, ok


RUNS = {"answers": run_answers, "gaps": run_gaps, "coordinator": run_coordinator, "moves": run_moves, "liar": run_liar, "overload": run_overload, "soak": run_soak}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=RUNS)
    p.add_argument("--answers", type=int, default=200)
    p.add_argument("--events", type=int, default=50)
    p.add_argument("--lifetimes", type=int, default=5)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    began = time.monotonic()
    figures, ok = RUNS[o.what](o)
    print(json.dumps({o.what: figures, "ok": ok, "seed": o.seed, "took_s": round(time.monotonic() - began)}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
