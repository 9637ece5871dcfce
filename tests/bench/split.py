#!/usr/bin/env python3
"""Split against local on one machine, in interleaved pairs: the same cores, the same model, the same bits.

    split.py -m MODEL [--pairs 10] [--halves] [-p 512] [-n 32] [-t 2] [--pause 6] [--wire] [--free] [--worker-arg=ARG ...] [--json]

Starts a coordinator and two workers of one thread (each with a copy of all experts, or with --halves each with its own
half), then runs `causeway bench` with the experts in the process and with the experts on the workers in turn, and prints
the median of the ratios with quartiles. Everybody is bound to CPUs (--cpus): each worker to one, `causeway bench` to
both, in the process as well; with --free nobody is. Before every run there is a pause: a virtual machine that gives freed
memory back to its host goes on with that for seconds, which would be counted against the run after the one with the larger
process, always the same. --wire adds `causeway bench --wire` at the end. Nothing else may run meanwhile.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from cluster import BIN, TEACHER, Cluster, eventually  # noqa: E402
from pairs import quartiles, speeds  # noqa: E402


class Bench(Cluster):
    def __init__(self, model, keep):
        super().__init__(model)
        self.kept = keep is not None
        if keep:
            os.rmdir(self.dir)
            self.dir = keep.resolve()
            self.dir.mkdir(parents=True, exist_ok=True)

    def __exit__(self, kind, *rest):
        for p in self.processes:
            p.kill()
        if self.kept:
            return
        super().__exit__(kind, *rest)


def bench(o, cluster, *extra):
    command = [BIN / "causeway", "bench", "--json", "-q", "-m", o.model, "--memory-size", "64M", *extra]
    r = subprocess.run([str(a) for a in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                       env={**cluster.env(), "XDG_STATE_HOME": str(cluster.dir / "edge")})
    if r.returncode != 0:
        sys.exit(f"{command}\nended with {r.returncode}:\n{r.stderr[-2000:]}")
    return r.stdout


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def cpu_ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def start(o, c):
    """Two workers, and the cluster as it is when every expert is ready everywhere it is to be."""
    memory = []
    if o.halves:
        total = expert_bytes(o.model)
        # The coordinator keeps 2 % of a worker's memory free, at least the largest expert.
        memory = ["--memory", str(int(total / 2 * 1.05))]
    bound = lambda i: [] if o.free else ["--cpus", i]
    workers = [c.start_worker(f"w{i}", "--model", o.model, "--disk", "0", *bound(i), *memory, *o.worker_arg) for i in range(2)]
    # Another half of the experts has nowhere to go; replicas that still come would change what is measured.
    held = lambda: [w["experts"] for w in lines(c.admin("workers", "--json").stdout)]
    status = lambda: c.admin_json("status")
    last, same = None, 0

    def settled():
        nonlocal last, same
        s = status()
        now = (s["covered"], *held())
        same = same + 1 if now == last else 0
        last = now
        return s["experts"] == s["covered"] and len(held()) == 2 and (all(h == s["experts"] for h in held()) if not o.halves else same > 100)

    eventually("the experts are on the workers", settled, 300)
    return workers, status()["experts"], held()


def expert_bytes(model):
    r = subprocess.run([str(BIN / "causeway"), "inspect", "--json", str(model)], capture_output=True, text=True, check=True)
    return lines(r.stdout)[0]["expert_bytes"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", type=pathlib.Path, default=TEACHER)
    p.add_argument("--pairs", type=int, default=10)
    p.add_argument("--halves", action="store_true")
    p.add_argument("-p", "--prefill", default="512")
    p.add_argument("-n", "--generate", default="32")
    p.add_argument("-t", "--threads", default="2")
    p.add_argument("-b", "--batch", default="1")
    p.add_argument("--pause", type=float, default=6, help="seconds before every run (default 6)")
    p.add_argument("--wire", action="store_true")
    p.add_argument("--free", action="store_true")
    p.add_argument("--worker-arg", action="append", default=[])
    p.add_argument("--bench-arg", action="append", default=[])
    p.add_argument("--state", type=pathlib.Path, help="keep the cluster's files here, so that the next run need not hash the model again")
    p.add_argument("--json", action="store_true")
    o = p.parse_args()
    o.model = o.model.resolve()
    with Bench(o.model, o.state) as c:
        workers, experts, held = start(o, c)
        print(f"{experts} experts, the workers hold {held[0]} and {held[1]}", file=sys.stderr)
        join = c.join("edge")
        work = ["-p", o.prefill, "-n", o.generate, "-t", o.threads, "-b", o.batch, "-r", "1", *([] if o.free else ["--cpus", "0,1"])]
        rounds = []
        for i in range(o.pairs):
            pair = {}
            for side in ("split", "local") if i % 2 == 0 else ("local", "split"):
                time.sleep(o.pause)
                pair[side] = speeds(bench(o, c, *work, *(["--join", join, *o.bench_arg] if side == "split" else [])))
            rounds.append(pair)
            print(f"pair {i + 1} of {o.pairs}: " + ", ".join(f"{t[0]} {pair['split'][t]:.2f}/{pair['local'][t]:.2f}" for t in pair["split"]), file=sys.stderr)
        for test in rounds[0]["split"] if rounds else []:
            a, b = ([r[side][test] for r in rounds] for side in ("split", "local"))
            q1, median, q3 = quartiles([x / y for x, y in zip(a, b)])
            row = {"test": test[0], "threads": test[1], "pairs": o.pairs, "halves": o.halves, "held": held, "experts": experts,
                   "split": statistics.median(a), "local": statistics.median(b), "split_over_local": median, "q1": q1, "q3": q3}
            print(json.dumps(row) if o.json else
                  f"{test[0]:20} split {row['split']:9.2f}   local {row['local']:9.2f}   split/local {median:6.3f}   quartiles {q1:.3f} to {q3:.3f}")
        if o.wire:
            time.sleep(o.pause)
            print(bench(o, c, "--wire", "--join", join, "-t", o.threads, *([] if o.free else ["--cpus", "0,1"]), *o.bench_arg), end="")


if __name__ == "__main__":
    main()
