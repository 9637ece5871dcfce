#!/usr/bin/env python3
"""Who guesses: the fallback or the model's own prediction head, on links of a given delay, with real processes.

    drafters.py [--delays 0,5,20] [--prompts 12] [--stories 3] [--runs 1] [--seconds N]

Two workers that hold everything behind the delay proxy; a delay is the round trip, half of it each way. Every drafter
answers the same held-out prompts (deploy/demo/eval) greedily, in turn, then stories. Printed: tokens a second over all
answers of a kind (tokens by decoding time), guesses that were right, tokens a pass. Ends with 1 when a text differs.
"""
import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from chaos import Bed, TOPICS, Talker  # noqa: E402
from cluster import DEMO  # noqa: E402

DRAFTERS = {
    "split": ["--mode", "split"],
    "fallback 1": ["--mode", "draft", "--drafter", "fallback", "--draft", "1"],
    "fallback 2": ["--mode", "draft", "--drafter", "fallback", "--draft", "2"],
    "fallback 8": ["--mode", "draft", "--drafter", "fallback", "--draft", "8"],
    "fallback, governed": ["--mode", "draft", "--drafter", "fallback"],
    "head 1": ["--mode", "draft", "--drafter", "mtp", "--draft", "1"],
    "head 2": ["--mode", "draft", "--drafter", "mtp", "--draft", "2"],
    "head, governed": ["--mode", "draft", "--drafter", "mtp"],
    "auto": ["--mode", "auto"],
}


def held_out(n):
    """Single questions of the evaluation set, evenly spread over its tasks."""
    found = []
    for line in open(DEMO / "eval/prompts.jsonl", encoding="utf-8"):
        prompt = json.loads(line)["prompt"]
        before, user, rest = prompt.partition("<｜User｜>")
        question, end, after = rest.partition("<｜Assistant｜>")
        if user and end and not after.strip() and "<｜User｜>" not in question and "\n" not in question:
            found.append(question)
    return found[:: max(1, len(found) // n)][:n]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--delays", default="0,5,20")
    p.add_argument("--prompts", type=int, default=12)
    p.add_argument("--stories", type=int, default=3)
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("--seconds", type=float, default=0)
    o = p.parse_args()
    kinds = {"tasks": held_out(o.prompts), "stories": [f"Tell me a story about {t}." for t in TOPICS[:o.stories]]}
    began, same = time.monotonic(), True
    with Bed(1, delay="0ms", workers=("a", "b")) as bed:
        talkers = {}
        for i, (name, args) in enumerate(DRAFTERS.items()):
            edge = f"edge{i}"
            talkers[name] = Talker(bed.cluster.dir, edge, *args, "--temp", "0", "--join", bed.edge_join, "--state",
                                   bed.cluster.dir / f"state-{edge}", "--name", edge, "--wait", "30s", tokens=120)
            bed.talkers.append(talkers[name])
        print("| delay | kind | drafter | tokens/s | to split | right | tokens a pass | passes by the head |\n|" + "---|" * 8)
        for delay in (float(d) for d in o.delays.split(",")):
            for w in bed.names:
                bed.cluster.net(f"{w} delay both {int(delay * 500)}us")
            for t in talkers.values():
                t.ask("What is 347 + 285?")
            for kind, questions in kinds.items():
                sums = {d: dict(tokens=0, decode_ms=0, drafted=0, accepted=0, passes=0, by_head=0) for d in DRAFTERS}
                for run in range(o.runs):
                    for i, q in enumerate(questions):
                        texts = set()
                        for d in DRAFTERS if (i + run) % 2 == 0 else reversed(DRAFTERS):
                            text, _, s = talkers[d].ask(q)
                            if s is None:
                                raise AssertionError(f"{d} did not answer: {talkers[d].said()[-500:]}")
                            texts.add(text)
                            for key in ("tokens", "decode_ms", "drafted", "accepted", "passes"):
                                sums[d][key] += s[key]
                            sums[d]["by_head"] += s.get("governor", {}).get("rounds_by_head", s["passes"] if d.startswith("head") else 0)
                        if len(texts) != 1:
                            same = False
                            print(f"TEXTS DIFFER: {q}")
                        if o.seconds and time.monotonic() - began > o.seconds:
                            return sys.exit(0 if same else 1)
                speed = {d: s["tokens"] / s["decode_ms"] * 1e3 for d, s in sums.items()}
                for d, s in sums.items():
                    right = f"{s['accepted'] / s['drafted']:.3f}" if s["drafted"] else "-"
                    print(f"| {delay:g} ms | {kind} | {d} | {speed[d]:.1f} | {speed[d] / speed['split']:.2f} | {right} | "
                          f"{s['tokens'] / max(1, s['passes']):.2f} | {s['by_head'] / max(1, s['passes']):.2f} |", flush=True)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
