#!/usr/bin/env python3
"""What an answer is worth in each mode: the demo's held-out tasks (deploy/demo/eval), asked of real processes.

    quality.py [--prompts 320] [--seed S --temp T] [--json]

A coordinator and two workers that hold half of the experts each; one edge for each of split, draft (4 guesses a pass) and auto,
one process that holds every expert (local), one without a mainland (offline), and one that has only ever seen the fallback
(fallback). Every text of split, draft and auto must be local's, every text of offline the fallback's; ends with 1 otherwise. An
answer is right when what follows the reasoning is, to the letter, what the reference has there (the model card's rule).
"""
import argparse
import collections
import json
import pathlib
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from cluster import BIN, DEMO, STUDENT, TEACHER, Cluster, eventually  # noqa: E402

BEGIN = "<｜begin▁of▁sentence｜>"
LONGEST = 160
SAME_AS = {"split": "local", "draft": "local", "auto": "local", "offline": "fallback"}


class Edge:
    """`causeway chat --raw --json`, one prompt after the other, each for itself."""

    def __init__(self, cluster, name, *args):
        self.err = open(cluster.dir / f"quality-{name}.err", "w+")
        self.popen = subprocess.Popen([str(a) for a in (BIN / "causeway", "chat", "--raw", "--json", "-n", LONGEST, "--threads", "1", *args)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.err, text=True)

    def ask(self, prompt):
        """(all pieces as one text with their kinds, the answer behind the reasoning, models that wrote)"""
        self.popen.stdin.write(f"/new\n{prompt}\n")
        self.popen.stdin.flush()
        text, answer, models = [], "", set()
        for line in self.popen.stdout:
            value = json.loads(line)
            if "summary" in value:
                return text, answer.strip(), models
            text.append((value["kind"], value["text"]))
            models.add(value["model"])
            if value["kind"] == "answer":
                answer += value["text"]
        self.err.seek(0)
        raise AssertionError(f"an answer failed: {self.err.read()[-500:]}")

    def close(self):
        self.popen.stdin.close()
        self.popen.wait(20)
        self.popen.stdout.close()
        self.err.close()


def joined(pieces):
    """Drafting hands the same text out in other pieces."""
    out = []
    for kind, text in pieces:
        if out and out[-1][0] == kind:
            out[-1][1] += text
        else:
            out.append([kind, text])
    return out


def expert_bytes():
    r = subprocess.run([str(BIN / "causeway"), "inspect", "--json", str(TEACHER)], capture_output=True, text=True, check=True)
    return json.loads(r.stdout.splitlines()[0])["expert_bytes"]


def run(o, cluster, items):
    half = str(int(expert_bytes() / 2 * 1.15))
    for w in ("a", "b"):
        cluster.start_worker(w, "--memory", half)
    eventually("every expert is on a worker", lambda: cluster.admin_json("status")["covered"] == 128, 60)
    join = cluster.join("edge")
    sampling = ["--temp", o.temp, "--seed", o.seed]
    split = lambda mode, *more: ("--mode", mode, "--join", join, "--state", cluster.dir / f"state-{mode}", "--name", mode, *more, *sampling)
    modes = {"local": ("--mode", "local", *sampling), "split": split("split"), "draft": split("draft", "--draft", "4"), "auto": split("auto"),
             "offline": ("--mode", "offline", *sampling), "fallback": ("--mode", "local", "-m", STUDENT, *sampling)}
    answers = {}

    def ask_all(mode):
        edge = Edge(cluster, mode, *modes[mode])
        answers[mode] = [edge.ask(i["prompt"].removeprefix(BEGIN)) for i in items]
        edge.close()

    for pair in (("local", "fallback"), ("split", "offline"), ("draft", "auto")):
        threads = [threading.Thread(target=ask_all, args=(m,)) for m in pair]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert all(m in answers for m in pair), f"{pair}: an edge failed"
    return answers


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=320)
    p.add_argument("--temp", default="0")
    p.add_argument("--seed", default="1")
    p.add_argument("--json", action="store_true")
    o = p.parse_args()
    items = [json.loads(line) for line in open(DEMO / "eval/prompts.jsonl")][:o.prompts]
    final = lambda text: text.split("</think>")[-1].strip()
    with Cluster() as c:
        answers = run(o, c, items)
    figures = {}
    for mode, got in answers.items():
        right = collections.Counter(i["task"] for i, (_, answer, _) in zip(items, got) if answer == final(i["reference"]))
        figures[mode] = {"right": sum(right.values()), "of": len(items), "by_task": dict(sorted(right.items())),
                         "models": sorted(set().union(*(m for _, _, m in got)))}
        if mode in SAME_AS:
            figures[mode]["other_texts_than_" + SAME_AS[mode]] = sum(joined(a[0]) != joined(b[0]) for a, b in zip(got, answers[SAME_AS[mode]]))
    if o.json:
        print(json.dumps(figures))
    else:
        for mode, f in figures.items():
            other = next((f"{v} of {f['of']} texts are not those of {SAME_AS[mode]}" for k, v in f.items() if k.startswith("other")), "")
            print(f"{mode:9} {f['right'] / f['of']:6.1%}  {f['right']:3} of {f['of']}  {', '.join(f['models']):24}  {other}")
    return any(v for f in figures.values() for k, v in f.items() if k.startswith("other"))


if __name__ == "__main__":
    sys.exit(main())
