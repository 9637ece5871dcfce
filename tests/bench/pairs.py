#!/usr/bin/env python3
"""Two commands against each other in interleaved pairs, for machines that are never quiet.

    pairs.py [--pairs 10] [--json] 'COMMAND A' 'COMMAND B'

A and B run in turn, and each pair gives a ratio for every test both know; printed are the median of the
ratios, their quartiles, and the medians of both. Understands `causeway bench --json` and `llama-bench -o json`
(or jsonl). Who goes first changes from pair to pair.
"""
import argparse
import json
import shlex
import statistics
import subprocess
import sys


def objects(text):
    """JSON objects: one array, or one object a line; other lines are passed over."""
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [o for o in found if isinstance(o, dict)]


def speeds(text):
    """{(test, threads): tokens a second}"""
    out = {}
    for o in objects(text):
        if o.get("bench") == "prefill":
            out[f"prefill {o['tokens']}", o["threads"]] = o["tokens_per_second"]["median"]
        elif o.get("bench") in ("decode", "prefill_all_logits"):
            name = "decode" if o["bench"] == "decode" else "all logits"
            out[f"{name}, batch {o['batch']}", o["threads"]] = o["tokens_per_second"]["median"]
        elif "avg_ts" in o and o.get("n_gen") and not o.get("n_prompt"):
            out["decode, batch 1", o["n_threads"]] = o["avg_ts"]
        elif "avg_ts" in o and o.get("n_prompt") and not o.get("n_gen"):
            out[f"prefill {o['n_prompt']}", o["n_threads"]] = o["avg_ts"]
    return out


def run(command):
    r = subprocess.run(shlex.split(command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if r.returncode != 0:
        sys.exit(f"{command}\nended with {r.returncode}:\n{r.stderr[-2000:]}")
    found = speeds(r.stdout)
    if not found:
        sys.exit(f"{command}\nprinted nothing that is understood; it needs --json (causeway) or -o json (llama-bench)")
    return found


def quartiles(v):
    return (v[0], v[0], v[0]) if len(v) == 1 else statistics.quantiles(v, n=4, method="inclusive")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("a")
    p.add_argument("b")
    p.add_argument("--pairs", type=int, default=10)
    p.add_argument("--json", action="store_true")
    o = p.parse_args()
    if o.pairs < 1:
        p.error("at least one pair")
    rounds = []
    for i in range(o.pairs):
        pair = {}
        for side in "ab" if i % 2 == 0 else "ba":
            pair[side] = run(getattr(o, side))
        rounds.append(pair)
        print(f"pair {i + 1} of {o.pairs}", file=sys.stderr)
    tests = [t for t in rounds[0]["a"] if t in rounds[0]["b"]]
    if not tests:
        sys.exit("the two have no test in common: the same -p, -n and -t are needed")
    for test in tests:
        a, b = ([r[side][test] for r in rounds] for side in "ab")
        q1, median, q3 = quartiles([x / y for x, y in zip(a, b)])
        row = {"test": test[0], "threads": test[1], "pairs": o.pairs, "a": statistics.median(a), "b": statistics.median(b),
               "a_over_b": median, "q1": q1, "q3": q3}
        if o.json:
            print(json.dumps(row))
        else:
            print(f"{row['test']:24} {row['threads']:2} threads   A {row['a']:9.2f}   B {row['b']:9.2f}   A/B {median:6.3f}   quartiles {q1:.3f} to {q3:.3f}")


if __name__ == "__main__":
    main()
