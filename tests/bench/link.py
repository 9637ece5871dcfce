#!/usr/bin/env python3
"""Every mode over a grid of links, with real processes behind the delay proxy: the table of docs/LINK.md.

    link.py [--runs 5] [--delays 0,1,5,20,50] [--rates 0,100,10] [--stalls] [--tokens 48] [--seconds N]

Two workers that hold everything, each behind a route of its own; a delay is the round trip, half of it each way; a rate
is the edge's link in Mbit/s, half of it on each route. In every cell the modes answer the same question in turn, then the
next one; the governed ones get a question beforehand. Printed: medians of tokens a second, what `causeway plan` predicts
(machine and call measured once on the bare link), and how late the proxy itself was. --seconds ends it early: rows that
were not reached are not printed. Ends with 1 when a text differs between modes.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from chaos import Bed, QUESTIONS, Talker  # noqa: E402
from cluster import BIN  # noqa: E402

MODES = {"split": ["--mode", "split"], "draft 4": ["--mode", "draft", "--draft", "4"], "draft 8": ["--mode", "draft", "--draft", "8"],
         "draft": ["--mode", "draft"], "auto": ["--mode", "auto"]}
GOVERNED = ("draft", "auto")


class Grid:
    def __init__(self, options, bed):
        self.o, self.bed = options, bed
        self.talkers = {}
        for i, (mode, args) in enumerate(MODES.items()):
            name = f"edge{i}"
            t = Talker(bed.cluster.dir, name, *args, "--join", bed.edge_join, "--state", bed.cluster.dir / f"state-{name}", "--name", name,
                       "--wait", "30s", seed=1, tokens=options.tokens)
            bed.talkers.append(t)
            self.talkers[mode] = t
        self.base = None

    def plan(self, *args):
        r = subprocess.run([str(a) for a in (BIN / "causeway", "plan", "--json", "-q", "--threads", "1", *args)], capture_output=True, text=True,
                           check=True)
        return json.loads(r.stdout)

    def set_link(self, delay, rate, stall):
        net = self.bed.cluster.net
        for w in self.bed.names:
            net(f"{w} delay both {int(delay * 500)}us")
            net(f"{w} rate both {f'{rate / len(self.bed.names):g}mbit' if rate else 'off'}")
            net(f"{w} stall both {'1 200ms' if stall else '0 0'}")

    def cell(self, delay, rate, stall):
        self.set_link(delay, rate, stall)
        speeds = {m: [] for m in MODES}
        last, same = {}, True
        for m in GOVERNED:
            self.talkers[m].ask(QUESTIONS[0])
        for run in range(self.o.runs):
            texts = set()
            for m in MODES if run % 2 == 0 else reversed(MODES):
                text, _, summary = self.talkers[m].ask(QUESTIONS[1 + run % 12])
                if summary is None:
                    raise AssertionError(f"{m} did not answer: {self.talkers[m].said()[-500:]}")
                texts.add(text)
                speeds[m].append(summary["tokens_per_second"])
                last[m] = summary
            same = same and len(texts) == 1
        governor = last["auto"].get("governor", {})
        accept = last["draft"]["governor"]["acceptance"]
        args = ["--accept", f"{accept:.4f}", "--workers", len(self.bed.names)]
        args += ["--bandwidth", f"{rate}M"] if rate else []
        args += ["--stall-share", "0.01", "--stall", "200ms"] if stall else []
        if self.base is None:  # round trip and call of the bare link, the proxy's own time included
            p = self.plan("--join", self.bed.edge_join, "--state", self.bed.cluster.dir / "state-plan", "--name", "planner")
            self.base = p["call_us"] + p["rtt_ms"] * 1e3
        p = self.plan(*args, "--rtt", f"{int(delay * 1000)}us", "--call", f"{int(self.base)}us")
        predicted = {x["mode"]: x for x in p["modes"]}
        late = max(self.bed.cluster.net.stats(w)[d].get("late_p50_us", self.bed.cluster.net.stats(w)[d].get("late_us", 0)) or 0
                   for w in self.bed.names for d in ("up", "down"))
        return speeds, governor, predicted, accept, same, late


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--delays", default="0,1,5,20,50")
    p.add_argument("--rates", default="0,100,10")
    p.add_argument("--stalls", action="store_true", help="also 1 %% of messages stalled by 200 ms, unlimited rate")
    p.add_argument("--seconds", type=float, default=0)
    o = p.parse_args()
    cells = [(float(d), float(r), False) for r in o.rates.split(",") for d in o.delays.split(",")]
    if o.stalls:
        cells += [(float(d), 0.0, True) for d in o.delays.split(",")]
    began, ok = time.monotonic(), True
    with Bed(1, delay="0ms", workers=("a", "b")) as bed:
        grid = Grid(o, bed)
        print("| link | " + " | ".join(MODES) + " | auto chose | auto / best fixed | a | plan: split, draft | plan / measured | proxy late |")
        print("|---" * (len(MODES) + 7) + "|")
        for delay, rate, stall in cells:
            if o.seconds and time.monotonic() - began > o.seconds:
                break
            speeds, governor, predicted, accept, same, late = grid.cell(delay, rate, stall)
            ok = ok and same
            v = {m: statistics.median(s) for m, s in speeds.items()}
            best = max(v[m] for m in MODES if m not in GOVERNED)
            ps, pd = (predicted[m].get("tokens_per_second", 0) for m in ("split", "draft"))
            link = f"{delay:g} ms, {f'{rate:g} Mbit/s' if rate else 'unlimited'}{', stalls' if stall else ''}"
            print(f"| {link} | " + " | ".join(f"{v[m]:.1f}" for m in MODES) +
                  f" | {governor.get('draft', '-')} | {v['auto'] / best:.2f} | {accept:.2f} | {ps:.1f}, {pd:.1f} ({predicted['draft'].get('draft')}) | "
                  f"{ps / v['split']:.2f}, {pd / max(v['draft'], v['draft 4'], v['draft 8']):.2f} | {late:.0f} us |{'' if same else ' TEXTS DIFFER'}", flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
