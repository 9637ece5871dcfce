#!/usr/bin/env python3
"""Offline and back with real processes: the link between an edge and everybody else is cut at a random point of an answer
(black hole, or reset and refused) and restored a random time later. The answer goes on; afterwards the big model's session
is, by digest of tokens, KV rows and logits, that of a process that was never offline and read the same tokens.

    test_tide.py [--answers 100] [--seed S]     prints one JSON object, ends with 1 when a promise was broken

As a unit test (ctest e2e_tide) it does a few answers and allows the times of a busy machine. Every edge is a new process with a
warm link; it is read slowly while the fallback speaks, or that would have said everything long before the link is back.
"""
import argparse
import json
import os
import pathlib
import pty
import queue
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

from bed import spread
from cluster import BIN, Cluster, PATIENCE, PROMPT, TEACHER, eventually
from proxy import ProxiedCluster

MAIN, FALLBACK = "Causeway demo teacher", "Causeway demo student"
HEROES = ["a brave fox", "a poor king", "a clever girl", "an old miller", "a lazy cat", "a proud crow", "a kind queen", "a hungry wolf"]
STORY_TOKENS = 160
SLOW_READER = 0.1  # between two pieces of the fallback, until the link has been whole for a while
WORKERS = ("a", "b")
# From the cut to the next token, and from the moment the edge knew to the next token (95 of 100), in ms.
LIMITS = {"blackhole": 1600, "reset": 200, "detected": 150}


class Edge:
    """A chat in JSON; every line of both outputs with the time it came."""

    def __init__(self, cluster, join, n, *args):
        state = cluster.dir / f"edge-{n}"
        command = [BIN / "causeway", "chat", "--json", "--digest", "--no-ipc", "--join", join, "--state", state, "--name", f"edge-{n}",
                   "--threads", "1", "--temp", "0.8", "-n", STORY_TOKENS, *args]
        # A socket with the smallest buffer, so that little is said ahead of the reader.
        here, there = socket.socketpair()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.popen = subprocess.Popen([str(a) for a in command], stdin=subprocess.PIPE, stdout=there, stderr=subprocess.PIPE, text=True, bufsize=1)
        there.close()
        self.out = os.fdopen(here.detach(), "rb", buffering=0)
        self.lines, self.notes, self.is_back, self.slow_until = queue.Queue(), [], False, float("inf")
        self.verdicts = []
        self.threads = [threading.Thread(target=self._read_out, daemon=True), threading.Thread(target=self._read_err, daemon=True)]
        for t in self.threads:
            t.start()

    def _read_out(self):
        for line in self.out:
            at = time.monotonic()
            self.lines.put((at, line))
            if FALLBACK.encode() in line and b'"text"' in line:
                while time.monotonic() < min(at + SLOW_READER, self.slow_until) and not self.is_back:
                    time.sleep(0.005)
        self.lines.put((time.monotonic(), None))

    def _read_err(self):
        for line in self.popen.stderr:
            self.notes.append((time.monotonic(), line.rstrip()))
            self.is_back |= "is back" in line

    def say(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def answer(self, patience=60):
        """([(time, model, text)], summary) up to the next summary; None for a process that ended or fell silent. What was withdrawn
        is as a piece with a negative number of bytes for a text."""
        pieces, end = [], time.monotonic() + patience * PATIENCE
        while True:
            try:
                at, line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                return pieces, None
            if line is None:
                return pieces, None
            value = json.loads(line)
            if "summary" in value:
                return pieces, value["summary"]
            if "verified" in value:
                self.verdicts.append(value["verified"])
            elif "withdrawn" in value:
                pieces.append((at, MAIN, -sum(value["withdrawn"].values())))
            else:
                pieces.append((at, value["model"], value["text"]))

    def ask(self, question):
        self.say(question)
        return self.answer()

    def noted(self, word, since):
        return next((at for at, line in self.notes if at >= since and word in line), None)

    def said(self):
        return "\n".join(line for _, line in self.notes)[-1500:]

    def close(self):
        self.popen.stdin.close()
        try:
            self.popen.wait(20 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for t in self.threads:
            t.join(5)
        self.popen.stderr.close()
        self.out.close()


def text_of(pieces):
    data = b""
    for _, _, text in pieces:
        data = data[:text] if isinstance(text, int) else data + text.encode()
    return data.decode()


def digest_of(tokens, path):
    """The digest of a session that was never anywhere but here and reads these tokens."""
    path.write_text(",".join(map(str, tokens)))
    r = subprocess.run([str(BIN / "causeway"), "logits", "-m", str(TEACHER), "--tokens", f"@{path}", "--digest", "--threads", "1"],
                       capture_output=True, text=True, timeout=60 * PATIENCE)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)["digest"]


class Tide:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.n = 0
        self.broken = []  # sentences
        self.gaps = {"blackhole": [], "reset": []}
        self.after_detection, self.returns = [], []
        self.counts = {"answers": 0, "changed_model": 0, "came_back": 0, "came_back_later": 0, "before_detection": 0, "states_compared": 0, "verdicts": 0,
                       "otherwise": 0}

    def run(self, n_answers):
        with ProxiedCluster(seed=self.rng.randrange(1 << 30)) as c:
            self.cluster = c
            worker = c.join("worker", "--uses", "20")
            self.join = c.join("edge")
            for w in WORKERS:
                c.start_worker(w, join=worker)
                c.net(f"{w} delay both 1ms")
            eventually("both workers hold everything", lambda: c.admin_json("status").get("min_homes", 0) >= len(WORKERS), 30)
            for _ in range(n_answers):
                self.one()
                if self.n % 10 == 0:
                    print(f"{self.n} of {n_answers}: {json.dumps(self.figures())}", file=sys.stderr, flush=True)

    def cut(self, kind):
        for r in ("edges", *WORKERS):
            if kind == "reset":
                self.cluster.net(f"{r} refuse on")
            self.cluster.net(f"{r} reset" if kind == "reset" else f"{r} blackhole both on")

    def restore(self, kind):
        for r in ("edges", *WORKERS):
            self.cluster.net(f"{r} refuse off" if kind == "reset" else f"{r} blackhole both off")

    def one(self):
        rng, self.n = self.rng, self.n + 1
        mode = rng.choice([("--mode", "split"), ("--mode", "split", "--warm", "never"), ("--mode", "auto"), ("--mode", "draft", "--draft", "4"),
                           ("--mode", "split", "--verify-offline"), ("--mode", "split", "--verify-offline", "--redo-offline", "always")])
        edge = Edge(self.cluster, self.join, self.n, *mode, "--seed", rng.randrange(1 << 20))
        try:
            self.interrupt(edge, " ".join(mode[1:]))
        except AssertionError as e:
            self.broken.append(f"answer {self.n}, {' '.join(mode)}: {e}; it said:\n{edge.said()}")
        finally:
            edge.close()

    def interrupt(self, edge, mode):
        rng = self.rng
        question = f"Tell me a story about {rng.choice(HEROES)}."
        edge.ask("Hello!")  # links are made with the first question
        edge.say("/new")
        begin = time.monotonic()
        whole, summary = edge.ask(question)
        assert summary, "the first answer failed"
        assert not summary["fallback_tokens"], "the first answer was not the big model's alone"
        lasted = time.monotonic() - begin
        edge.say("/new")
        kind = list(self.gaps)[self.n % 2]
        edge.say(question)
        time.sleep(rng.uniform(0, 0.9) * min(lasted, 3))
        cut_at = time.monotonic()
        self.cut(kind)
        away = rng.uniform(0.05, 2.5)
        edge.slow_until = cut_at + away + 4
        back = threading.Timer(away, self.restore, [kind])
        back.start()
        pieces, summary = edge.answer()
        back.join()
        assert summary, f"{kind}: no answer"
        self.counts["answers"] += 1
        self.look_at_times(edge, kind, cut_at, away, pieces)
        self.look_at_text(whole, pieces, summary)
        self.look_at_verdicts(edge.verdicts, mode, whole, pieces, summary)
        if summary["ended_by_model"] != MAIN:
            self.counts["came_back_later"] += 1

            def again():
                nonlocal summary
                _, summary = edge.ask(PROMPT)
                assert summary, "no answer after the return"
                return summary["ended_by_model"] == MAIN
            eventually("the big model answers again", again, 20)
        elif summary["changes_of_model"]:
            self.counts["came_back"] += 1
        self.counts["states_compared"] += 1
        state = summary["state"]
        assert state["digest"] == digest_of(state["tokens"], self.cluster.dir / "tokens"), f"{kind}, {mode}: another state after the return"

    def look_at_times(self, edge, kind, cut_at, away, pieces):
        """Up to the first of the fallback's pieces, or where the link was back before it was missed, the longest silence."""
        detected = edge.noted("is out of reach", cut_at)
        first = next((at for at, model, _ in pieces if model == FALLBACK), None)
        if first:
            self.counts["changed_model"] += 1
            self.after_detection.append(max(0.0, first - detected) * 1e3 if detected else 0.0)
            back = edge.noted("is back", cut_at)
            if back:
                self.returns.append((back - cut_at - away) * 1e3)
            gap = first - cut_at
        else:
            self.counts["before_detection"] += 1
            later = [cut_at] + [at for at, _, _ in pieces if at > cut_at]
            if len(later) == 1:
                return  # the answer had ended
            gap = max(b - a for a, b in zip(later, later[1:]))
        self.gaps[kind].append(gap * 1e3)

    def look_at_verdicts(self, verdicts, mode, whole, pieces, summary):
        """Who writes anew wherever it would have written otherwise writes, in the end, what it writes without a cut."""
        if "--verify-offline" not in mode or summary["ended_by_model"] != MAIN or not summary["changes_of_model"]:
            assert not verdicts or "--verify-offline" in mode, "a verdict that nobody asked for"
            return
        assert verdicts, "came back without a verdict"
        self.counts["verdicts"] += len(verdicts)
        self.counts["otherwise"] += sum(v["same"] < v["tokens"] for v in verdicts)
        if "always" in mode or all(v["same"] == v["tokens"] for v in verdicts):
            assert text_of(pieces) == text_of(whole), f"another text than without a cut after {verdicts}: {text_of(pieces)!r}, {text_of(whole)!r}"

    def look_at_text(self, whole, pieces, summary):
        """Nobody is switched silently: the big model's first part is what it said without a cut, and counts agree with names."""
        own = text_of(whole)
        first = next((i for i, p in enumerate(pieces) if p[1] == FALLBACK), None)
        before = text_of(pieces[:first])
        assert own.startswith(before), f"before the cut: {before[-80:]!r}"
        assert {m for _, m, _ in pieces} <= {MAIN, FALLBACK}
        assert (first is not None) == (summary["fallback_tokens"] + summary.get("withdrawn_tokens", 0) > 0), "the fallback's tokens are not named"
        if first is None:
            assert text_of(pieces) == own, "another text although nobody else spoke"

    def figures(self):
        return {**self.counts, "next_token_ms": {k: spread(v) for k, v in self.gaps.items()}, "after_detection_ms": spread(self.after_detection),
                "back_after_restore_ms": spread(self.returns)}

    def late(self, slack=1.0):
        """Promises of time that were broken."""
        worst = [(k, max(v)) for k, v in self.gaps.items() if v and max(v) > LIMITS[k] * slack]
        p95 = spread(self.after_detection).get("p95", 0)
        return worst + ([("detected", p95)] if p95 > LIMITS["detected"] * slack else [])


class Cuts(unittest.TestCase):
    def test_an_answer_survives_them_and_the_state_is_as_if_there_had_been_none(self):
        seed = int(os.environ.get("CW_SEED", random.randrange(1 << 30)))
        tide = Tide(seed)
        tide.run(3)
        what = f"seed {seed}: {json.dumps(tide.figures())}"
        print(what)
        self.assertEqual(tide.broken, [], what)
        self.assertGreater(tide.counts["changed_model"], 0, what)
        self.assertEqual(tide.late(slack=3), [], what)


class Asked(unittest.TestCase):
    def test_a_chat_on_a_terminal_asks_whether_to_write_on_from_there(self):
        with Cluster() as c:
            worker = c.start_worker("a")
            join = c.join("edge")
            pid, fd = pty.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.environ.update(XDG_STATE_HOME=str(c.dir / "edge"), TERM="xterm", LC_ALL="C.UTF-8")
                # Hot enough never to end by itself and never to agree, and slow enough to be still at it later.
                os.execv(BIN / "causeway", ["causeway", "chat", "--mode", "split", "--join", join, "--verify-offline", "--raw", "-n", "0", "--temp", "5",
                                            "--isa", "scalar", "--threads", "1"])
            seen = b""

            def until(what, seconds=30):
                nonlocal seen
                end = time.monotonic() + seconds * PATIENCE
                while not what(seen):
                    self.assertLess(time.monotonic(), end, seen[-2000:])
                    if select.select([fd], [], [], 0.1)[0]:
                        seen += os.read(fd, 65536)

            try:
                until(lambda s: s.endswith(b"> "))
                os.write(fd, b"Once upon a time\r")
                until(lambda s: b"a time\r\n" in s and len(s.split(b"a time\r\n", 1)[1]) > 100)
                worker.popen.send_signal(signal.SIGSTOP)
                until(lambda s: b"goes on\r\n" in s)
                worker.popen.send_signal(signal.SIGCONT)
                until(lambda s: b"write on from there instead? [y/N] " in s)
                os.write(fd, b"y\r")
                until(lambda s: len(s.split(b"[y/N] ", 1)[1]) > 100)
                os.write(fd, b"\x03")
                os.write(fd, b"/history\r")
                until(lambda s: s.endswith(b"> ") and f"[{MAIN}]".encode() in s)
                self.assertRegex(seen.decode(errors="replace"), f'behind ".+", where {FALLBACK} wrote ".*", {MAIN} would have (written ".*"|ended)')
                os.write(fd, b"/quit\r")
            finally:
                worker.popen.send_signal(signal.SIGCONT)
                os.close(fd)
                os.waitpid(pid, 0)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--answers", type=int, default=100)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    o = p.parse_args()
    tide = Tide(o.seed)
    print(f"seed {o.seed}", file=sys.stderr)
    tide.run(o.answers)
    for b in tide.broken[:5]:
        print(b, file=sys.stderr)
    late = tide.late()
    print(json.dumps({"seed": o.seed, **tide.figures(), "broken": len(tide.broken), "late": late}))
    return bool(tide.broken or late or tide.counts["answers"] < o.answers)


if __name__ == "__main__":
    sys.exit(main())
