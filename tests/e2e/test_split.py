"""Split over any number of workers, of any instruction set, gives the bytes of a local run; and a worker may die meanwhile."""
import json
import pathlib
import signal
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from cluster import BIN, PATIENCE, PROMPT, ROOT, TEACHER, Cluster, ask_local, eventually

DATA = ROOT / "tests/golden/data"


def instruction_sets():
    """What causeway-worker --isa can be here, the plainest first."""
    flags = set()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags.update(line.split(":", 1)[1].split())
    sets = ["scalar"]
    if {"avx2", "fma", "f16c"} <= flags:
        sets.append("avx2")
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= flags:
        sets.append("avx512")
        if {"amx_tile", "amx_int8"} <= flags:
            sets.append("amx")
    return sets


ISA = instruction_sets()


def isa(i):
    return ISA[i % len(ISA)]


class Logits(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory(prefix="causeway-split-")
        self.addCleanup(tmp.cleanup)
        self.dir = pathlib.Path(tmp.name)

    def local(self, model, tokens, after, *extra):
        out = self.dir / "local.f32"
        r = subprocess.run([str(a) for a in (BIN / "causeway", "logits", "-m", model, "--tokens", tokens, "--after", after, "--out", out, *extra)],
                           capture_output=True, text=True, timeout=120 * PATIENCE)
        self.assertEqual(r.returncode, 0, r.stderr)
        return out.read_bytes()

    def split(self, cluster, tokens, after, *extra, join=None):
        out = self.dir / "split.f32"
        r = cluster.edge("logits", "-m", cluster.model, "--tokens", tokens, "--after", after, "--out", out, *extra, join=join, timeout=120)
        self.assertEqual(r.returncode, 0, r.stderr)
        return out.read_bytes()

    def tokens(self, n, vocab, seed):
        x, ids = seed, []
        for _ in range(n):
            x = (x * 1103515245 + 12345) % (1 << 31)
            ids.append(str(x // 65536 % vocab))
        return ",".join(ids)

    def start(self, cluster, workers):
        """Workers one after the other into one cluster, so that each count is tried with the ones before it."""
        started = []
        for i, extra in enumerate(workers):
            started.append(cluster.start_worker(f"w{i}", "--isa", isa(i), *extra))
        return started

    def ready(self, cluster, n):
        eventually(f"{n} workers are ready", lambda: sum(w["state"] == "ready" for w in json_lines(cluster.admin("workers", "--json").stdout)) == n)

    def test_any_number_of_workers_of_any_instruction_set(self):
        tokens, after = self.tokens(150, 1024, 7), "1,2,64,65,150"
        want = self.local(TEACHER, tokens, after)
        with Cluster() as c:
            join = c.join("edge")
            have = 0
            for n in (1, 2, 3, 5):
                for i in range(have, n):
                    c.start_worker(f"w{i}", "--isa", isa(i + n))
                have = n
                self.ready(c, n)
                self.assertEqual(self.split(c, tokens, after, join=join), want, f"{n} workers")
            self.assertEqual(self.split(c, tokens, after, "--chunk", "1", join=join), want, "one token at a time")
            self.assertEqual(self.split(c, tokens, after, "--chunk", "31", join=join), want, "odd chunks")

    def test_workers_that_hold_only_a_part(self):
        tokens, after = self.tokens(120, 1024, 11), "1,60,120"
        want = self.local(TEACHER, tokens, after)
        with Cluster() as c:
            for i in range(3):
                c.start_worker(f"w{i}", "--isa", isa(i), "--memory", "6M")
            self.assertEqual(self.split(c, tokens, after), want)

    def test_a_pool_of_threads_and_a_local_copy(self):
        tokens, after = self.tokens(120, 1024, 13), "1,60,120"
        want = self.local(TEACHER, tokens, after)
        with Cluster() as c:
            c.start_worker("pool", "--threads", "3", "--model", TEACHER)
            c.start_worker("alone", "--isa", "scalar")
            self.ready(c, 2)
            self.assertEqual(self.split(c, tokens, after), want)

    def test_every_kind_of_weights(self):
        for name in ("v3", "v2-lite", "v3-splitkv", "quant-q4_k", "quant-q8_0", "quant-iq4_nl"):
            model = DATA / f"{name}.gguf"
            facts = DATA / f"{name}.json"
            tokens = self.tokens(70, 512, 3)
            if facts.exists():
                tokens = ",".join(map(str, json.loads(facts.read_text())["tokens"]))
            with self.subTest(name), Cluster(model=model) as c:
                want = self.local(model, tokens, "1,33,70")
                c.start_worker("a", "--isa", isa(1))
                c.start_worker("b", "--isa", isa(0))
                self.assertEqual(self.split(c, tokens, "1,33,70"), want)

    def test_the_reference_logits_in_split(self):
        facts = json.loads((DATA / "v3.json").read_text())
        rows = [n for n in facts["row_is_logits_after_n_tokens"] if n <= 192]
        golden = (DATA / "v3.logits.f32").read_bytes()[:4 * 512 * len(rows)]
        with Cluster(model=DATA / "v3.gguf") as c:
            c.start_worker("a")
            got = self.split(c, ",".join(map(str, facts["tokens"])), ",".join(map(str, rows)))
        n = len(golden) // 4
        self.assertEqual(len(got), len(golden))
        worst = max(abs(a - b) for a, b in zip(struct.unpack(f"<{n}f", got), struct.unpack(f"<{n}f", golden)))
        self.assertLess(worst, 2e-4)


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.strip()]


class AWorkerDies(unittest.TestCase):
    def answer_and_kill(self, c, victims, **how):
        """An answer whose first piece is the signal to kill workers; the completed process's output."""
        edge = subprocess.Popen([str(a) for a in (BIN / "causeway", "run", "--join", c.join("edge"), "--mode", "split", "-m", TEACHER, "-p", PROMPT,
                                                  "--temp", "0", "-n", "200", "--json", "--state", c.dir / "edge")],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(60 * PATIENCE, edge.kill)
        watchdog.start()
        try:
            first = edge.stdout.readline()
            for v in victims:
                how.get("kill", lambda p: p.popen.kill())(v)
            # Not communicate(): it reads past what readline() has buffered. The few lines of stderr fit into its pipe.
            out, err = edge.stdout.read(), edge.stderr.read()
            edge.wait()
        finally:
            watchdog.cancel()
            edge.kill()
            edge.wait()
            edge.stdout.close()
            edge.stderr.close()
        return edge.returncode, first + out, err

    def test_and_the_answer_is_the_same(self):
        local, _ = ask_local(n=200)
        with Cluster() as c:
            a, _b = c.start_worker("a"), c.start_worker("b")
            eventually("both are ready", lambda: sum(w["state"] == "ready" for w in json_lines(c.admin("workers", "--json").stdout)) == 2)
            code, out, err = self.answer_and_kill(c, [a])
            self.assertEqual(code, 0, err)
            self.assertEqual("".join(line.get("text", "") for line in json_lines(out)), local)

    def test_a_worker_that_is_stopped_in_order_loses_nothing(self):
        local, _ = ask_local(n=200)
        with Cluster() as c:
            a, _b = c.start_worker("a"), c.start_worker("b")
            eventually("both are ready", lambda: sum(w["state"] == "ready" for w in json_lines(c.admin("workers", "--json").stdout)) == 2)
            code, out, err = self.answer_and_kill(c, [a], kill=lambda p: p.popen.terminate())
            self.assertEqual(code, 0, err)
            self.assertEqual("".join(line.get("text", "") for line in json_lines(out)), local)
            self.assertEqual(a.wait(), 0, a.said())


def cpu_ms(pid):
    """CPU time of all threads of a process so far, from the scheduler's own nanoseconds."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass  # a thread that has just ended
    return total / 1e6


@unittest.skipUnless(pathlib.Path("/proc/self/schedstat").exists(), "this kernel keeps no such account")
class TheEdgeWaits(unittest.TestCase):
    def test_and_burns_nothing_while_its_calls_are_held(self):
        local, _ = ask_local(n=200)
        with Cluster() as c:
            w = c.start_worker("a")
            eventually("it is ready", lambda: any(x["state"] == "ready" for x in json_lines(c.admin("workers", "--json").stdout)))
            edge = c.start("edge", [BIN / "causeway", "run", "--join", c.join("edge"), "--mode", "split", "-m", TEACHER, "-p", PROMPT,
                                    "--temp", "0", "-n", "200", "--json", "--threads", "2", "--state", c.dir / "edge"])
            eventually("the first piece", lambda: "text" in edge.out() or not edge.running())
            w.popen.send_signal(signal.SIGSTOP)
            try:
                # What was on its way when the worker stopped is worked off first.
                time.sleep(0.05)
                self.assertTrue(edge.running(), edge.said())
                before, start = cpu_ms(edge.popen.pid), time.monotonic()
                time.sleep(1)
                self.assertTrue(edge.running(), edge.said())
                burnt, seconds = cpu_ms(edge.popen.pid) - before, time.monotonic() - start
            finally:
                w.popen.send_signal(signal.SIGCONT)
            print(f"{burnt:.2f} ms of CPU time in {seconds:.2f} s of waiting")
            # 3 to 6 on a machine with other work; a thread that spins would show 1000.
            self.assertLess(burnt, 10 * PATIENCE * seconds)
            self.assertEqual(edge.wait(), 0, edge.said())
            self.assertEqual("".join(line.get("text", "") for line in json_lines(edge.out())), local)


class TheTokenLoop(unittest.TestCase):
    def test_allocates_nothing_on_the_engines_thread(self):
        with Cluster() as c:
            c.start_worker("a")
            c.start_worker("b")
            r = subprocess.run([str(a) for a in (BIN.parent / "tests/split_guard", TEACHER, c.join("edge"), c.dir / "edge")],
                               capture_output=True, text=True, timeout=60 * PATIENCE)
            self.assertEqual(r.returncode, 0, r.stderr)
            seen = json.loads(r.stdout)
            self.assertEqual(seen["allocations"], 0)
            self.assertGreater(seen["tokens"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
