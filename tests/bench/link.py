#!/usr/bin/env python3
"""Every mode over a grid of links, with real processes behind the delay proxy: the figures of docs/LINK.md.

    link.py --json FILE [--runs 5] [--delays 0,1,5,20,50] [--rates 0,100,10] [--stalls] [--gain] [--tokens 80] [--seconds N]
    link.py --json FILE --report [--svg FILE]      tables, and the plot, of what FILE holds

Two workers that hold everything, each behind a route of its own; a delay is the round trip, half of it each way; a rate
is the edge's link in Mbit/s, half of it on each route; stalls hold up one read in a hundred by 200 ms. In every cell the
modes answer the same question in turn, then the next one, in turning order; the governed ones get two questions beforehand.
The texts of the modes must be equal. `causeway plan` is asked twice: with the workers measured on the bare link and the
cell's link told (the round trip with what the proxy was late), and with everything measured through the cell's link; both
are told how often guesses were right and how long the answers were.

--gain adds, at 20 ms, greedy answers to the demo's held-out tasks and to questions for stories.
FILE gathers cells as they are done; a cell that is there with as many runs and tokens is not measured again, and none is
begun that would not end within --seconds: so a grid can be measured in slices. Ends with 1 when a text differs.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import link_report  # noqa: E402
from bed import STORIES, Bed, Talker  # noqa: E402
from cluster import BIN, DEMO  # noqa: E402
from link_report import FIXED, GOVERNED, MODES  # noqa: E402

ARGUMENTS = {"split": ["--mode", "split"], "draft": ["--mode", "draft"], "auto": ["--mode", "auto"]}
ARGUMENTS |= {f"draft {n}": ["--mode", "draft", "--draft", str(n)] for n in FIXED}
WARM = 2


def tasks(n):
    """Held-out prompts of one turn without a system message, as a user would type them; every so many, so that all kinds are there."""
    found = []
    for line in open(DEMO / "eval/prompts.jsonl"):
        head, _, rest = json.loads(line)["prompt"].partition("<｜User｜>")
        if head == "<｜begin▁of▁sentence｜>" and rest.count("<｜") == 1:
            found.append(rest.removesuffix("<｜Assistant｜>"))
    return found[::max(1, len(found) // n)][:n]


class Grid:
    """One cluster and an edge for every mode, which live through all cells."""

    def __init__(self, options, bed):
        self.o, self.bed, self.sets = options, bed, {}

    def talkers(self, tokens, temperature):
        key = (tokens, temperature)
        if key not in self.sets:
            self.sets[key] = {}
            for i, mode in enumerate(MODES):
                name = f"edge{len(self.bed.talkers)}"
                t = Talker(self.bed.cluster.dir, name, *ARGUMENTS[mode], "--join", self.bed.edge_join, "--state",
                           self.bed.cluster.dir / f"state-{name}", "--name", name, "--wait", "30s", "--temp", temperature, seed=1, tokens=tokens)
                self.bed.talkers.append(t)
                self.sets[key][mode] = t
        return self.sets[key]

    def plan(self, *args):
        command = [BIN / "causeway", "plan", "--json", "-q", "--threads", "1", "--join", self.bed.edge_join, "--state",
                   self.bed.cluster.dir / "state-plan", "--name", "planner", *args]
        r = subprocess.run([str(a) for a in command], capture_output=True, text=True)
        if r.returncode:
            raise AssertionError(f"causeway plan ended with {r.returncode}: {r.stderr[-500:]}")
        p = json.loads(r.stdout)
        predicted = {m["mode"]: m for m in p["modes"] if m["possible"]}
        drafts = {f"draft {d['draft']}": d["tokens_per_second"] for d in p["drafts"] if d["draft"] in FIXED}
        best = predicted["draft"]
        return {"split": predicted["split"]["tokens_per_second"], "draft": best["tokens_per_second"], "n": best["draft"], **drafts,
                "bytes": {m: predicted[m]["bytes_out"] + predicted[m]["bytes_in"] for m in ("split", "draft")},
                "rtt_ms": p["rtt_ms"], "call_us": p["call_us"], "row_us": p["row_us"], "fallback_us": p["fallback_us"],
                "bytes_per_s": p["bytes_per_s"], "passes": {str(x["rows"]): x["us"] for x in p["passes"]}}

    def set_link(self, delay, rate, stall):
        net = self.bed.cluster.net
        for w in self.bed.names:
            net(f"{w} delay both {int(delay * 500)}us")
            net(f"{w} rate both {f'{rate / len(self.bed.names):g}mbit' if rate else 'off'}")
            net(f"{w} stall both {'1 200ms' if stall else '0 0'}")

    def wire(self):
        """Bytes so far between edges and workers, as TCP carried them."""
        return sum(s[d]["bytes"] for s in map(self.bed.cluster.net.stats, self.bed.names) for d in ("up", "down"))

    def ask(self, mode, talker, questions):
        """One run: the answers' sum."""
        total, texts = {"tokens": 0, "passes": 0, "drafted": 0, "accepted": 0, "wrong_passes": 0, "decode_ms": 0.0}, []
        for q in questions:
            text, _, summary = talker.ask(q)
            if summary is None:
                raise AssertionError(f"{mode} did not answer: {talker.said()[-500:]}")
            texts.append(text)
            total = {k: total[k] + summary[k] for k in total}
        total["governor"] = summary.get("governor")
        return total, texts

    def cell(self, kind, delay, rate, stall, runs, tokens):
        talkers = self.talkers(tokens, 0.7 if kind == "grid" else 0)
        asked = [[q] for q in STORIES] if kind != "tasks" else [tasks(20)]
        self.set_link(delay, rate, stall)
        for m in GOVERNED:
            for i in range(WARM):
                talkers[m].ask(STORIES[i])
        results, same, wire = {m: [] for m in MODES}, True, 0
        for run in range(runs):
            said = []
            for m in MODES[run % len(MODES):] + MODES[:run % len(MODES)]:
                before = self.wire()
                total, texts = self.ask(m, talkers[m], asked[(WARM + run) % len(asked)])
                total["wire_bytes"] = self.wire() - before
                results[m].append(total)
                said.append(texts)
            same = same and all(t == said[0] for t in said)
        stats = [self.bed.cluster.net.stats(w)[d] for w in self.bed.names for d in ("up", "down")]
        late = sum(s["late_p50_us"] for s in stats) / len(self.bed.names)  # there and back
        drafted = [r for m in MODES if m != "split" for r in results[m]]
        right, wrong = sum(r["accepted"] for r in drafted), sum(r["wrong_passes"] for r in drafted)
        accept = ["--accept", f"{right / max(1, right + wrong):.4f}"]
        accept += ["--answer", round(sum(r["tokens"] for r in results["split"]) / runs / len(asked[0]))]
        stalls = ["--stall-share", "0.01", "--stall", "200ms", "--replicas"] if stall else []
        measured = self.plan(*accept, *stalls) if not stall else None
        self.set_link(0, 0, False)
        told = self.plan(*accept, *stalls, *(["--bandwidth", f"{rate:g}M"] if rate else []),
                         *(["--rtt", f"{int(delay * 1000 + late)}us"] if delay else []))
        told["answer"] = int(accept[-1])
        return {"runs": runs, "tokens": tokens, "modes": results, "same": same, "accept": right / max(1, right + wrong), "late_us": late,
                "plan": {"told": told, "measured": measured}}


def seconds_of(kind, delay, rate, stall, runs, tokens):
    """About how long a cell takes: split, and nearly as long again for the others."""
    one = 0.0015 + 0.004 * delay + (0.12 / rate if rate else 0) + (0.02 if stall else 0)
    return 8 + 1.75 * runs * tokens * one * (7 if kind == "tasks" else 1)


def read(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {"cells": {}}


def cells_of(o):
    cells = [("grid", float(d), float(r), False) for r in o.rates.split(",") if r for d in o.delays.split(",")]
    if o.stalls:
        cells += [("grid", float(d), 0.0, True) for d in o.delays.split(",")]
    if o.gain:
        cells += [("tasks", 20.0, 0.0, False), ("stories", 20.0, 0.0, False)]
    return cells


def measure(o, data):
    began = time.monotonic()
    with Bed(1, delay="0ms", workers=("a", "b")) as bed:
        grid = Grid(o, bed)
        for cell in cells_of(o):
            name = link_report.name_of(*cell)
            runs = max(2, o.runs - 2) if cell[0] == "tasks" else o.runs
            old = data["cells"].get(name)
            if old and old["runs"] >= runs and old["tokens"] == o.tokens:
                continue
            if o.seconds and time.monotonic() - began + seconds_of(*cell, runs, o.tokens) > o.seconds:
                print(f"not begun: {name}", file=sys.stderr)
                continue
            at = time.monotonic()
            data["cells"][name] = grid.cell(*cell, runs, o.tokens)
            o.json.write_text(json.dumps(data, indent=0))
            print(f"{name}: {time.monotonic() - at:.0f} s", file=sys.stderr, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=pathlib.Path, required=True, metavar="FILE")
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--tokens", type=int, default=80)
    p.add_argument("--delays", default="0,1,5,20,50")
    p.add_argument("--rates", default="0,100,10")
    p.add_argument("--stalls", action="store_true", help="also 1 %% of reads stalled by 200 ms, unlimited rate")
    p.add_argument("--gain", action="store_true", help="also held-out tasks and stories, greedy, at 20 ms")
    p.add_argument("--seconds", type=float, default=0)
    p.add_argument("--report", action="store_true", help="measure nothing")
    p.add_argument("--svg", type=pathlib.Path, metavar="FILE")
    o = p.parse_args()
    data = read(o.json)
    if not o.report:
        measure(o, data)
    print(link_report.tables(data))
    if o.svg:
        o.svg.write_text(link_report.svg(data))
    sys.exit(0 if all(c["same"] for c in data["cells"].values()) else 1)


if __name__ == "__main__":
    main()
