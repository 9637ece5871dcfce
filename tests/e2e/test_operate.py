"""What an operator does: look, drain, stop, restart, restore, revoke, and be told who computes wrongly."""
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest
import urllib.error
import urllib.request

from cluster import BIN, PATIENCE, TEACHER, Cluster, ask_local, eventually

FAULTY = BIN.parent / "tests/causeway-worker-faulty"


def workers(c):
    return {w["name"]: w for w in map(json.loads, c.admin("workers", "--json").stdout.splitlines())}


def ready(c, n):
    eventually(f"{n} workers are ready", lambda: sum(w["state"] == "ready" for w in workers(c).values()) == n)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def numbers(port):
    """The metrics page as {name or name{labels}: value}; every line must be one that Prometheus takes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5 * PATIENCE) as r:
        assert r.headers["Content-Type"].startswith("text/plain; version=0.0.4"), r.headers
        text = r.read().decode()
    out, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed, f"{name} twice"
            typed.add(name)
        if line.startswith("#"):
            continue
        m = re.fullmatch(r'([a-z_]+)(\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? (-?[0-9.e+]+)', line)
        assert m and m[1] in typed, line
        assert (m[1] + (m[2] or "")) not in out, line
        out[m[1] + (m[2] or "")] = float(m[3])
    return out


class AnswersGoOn:
    """Asks again and again beside what the test does; every answer must be the local one."""

    def __init__(self, c, n=24):
        self.c, self.n, self.wrong, self.count, self.stop = c, n, [], 0, False
        self.want, _ = ask_local(n=n)
        self.join = c.join("edge")
        c.ask(join=self.join, n=n)
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop:
            try:
                text, _ = self.c.ask(join=self.join, n=self.n)
                self.count += 1
                if text != self.want:
                    self.wrong.append(text)
            except Exception as e:
                self.wrong.append(repr(e))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


class Drains(unittest.TestCase):
    def test_a_drain_empties_a_worker_while_answers_go_on_and_undrain_brings_it_back(self):
        with Cluster() as c:
            for name in "abc":
                c.start_worker(name, "--memory", "9M")
            ready(c, 3)
            with AnswersGoOn(c) as answers:
                r = c.admin("drain", "a")
                self.assertIn("drained", r.stdout)
                self.assertEqual(workers(c)["a"]["state"], "drained")
                self.assertEqual(c.admin_json("status")["covered"], 128)
                self.assertNotIn("a", [w["name"] for w in c.admin_json("epoch")["workers"]])
                c.admin("undrain", "a")
                eventually("it takes part again", lambda: "a" in [w["name"] for w in c.admin_json("epoch")["workers"]], 40)
            self.assertEqual(answers.wrong, [])
            self.assertGreater(answers.count, 0)

    def test_a_drain_that_cannot_fit_names_the_missing_bytes_and_changes_nothing(self):
        with Cluster() as c:
            for name in "ab":
                c.start_worker(name, "--memory", "9M")
            ready(c, 2)
            r = c.admin("drain", "a", check=False)
            self.assertEqual(r.returncode, 1)
            self.assertRegex(r.stderr, r"worker a cannot be drained: the others lack [0-9.]+ MiB \(\d+ bytes\)")
            self.assertEqual(workers(c)["a"]["state"], "ready")
            self.assertRegex(c.admin("drain", "nobody", check=False).stderr, "no worker is called nobody")

    def test_sigterm_gives_the_experts_away_first_and_a_second_one_does_not_wait(self):
        with Cluster() as c:
            procs = {name: c.start_worker(name, "--memory", "9M") for name in "abc"}
            ready(c, 3)
            with AnswersGoOn(c) as answers:
                procs["a"].popen.send_signal(signal.SIGTERM)
                eventually("it says that it is leaving", lambda: "leaving" in procs["a"].err())
                self.assertEqual(procs["a"].wait(30), 0, procs["a"].said())
                self.assertIn("released: nothing here is needed any more", procs["a"].err())
                self.assertEqual(c.admin_json("status")["covered"], 128)
            self.assertEqual(answers.wrong, [])
            # Now nobody has room for the rest: what can move moves, and nobody waits for what cannot.
            began = time.monotonic()
            self.assertEqual(procs["b"].stop(20), 0)
            self.assertLess(time.monotonic() - began, 15 * PATIENCE)
            # A coordinator that is stopped itself answers nobody: twice means at once.
            c.coordinator.popen.send_signal(signal.SIGSTOP)
            procs["c"].popen.send_signal(signal.SIGTERM)
            eventually("it waits", lambda: "leaving" in procs["c"].err())
            self.assertTrue(procs["c"].running())
            procs["c"].popen.send_signal(signal.SIGTERM)
            self.assertEqual(procs["c"].wait(5), 0)
            c.coordinator.popen.send_signal(signal.SIGCONT)


class Restarts(unittest.TestCase):
    def test_a_coordinator_that_died_adopts_its_epoch_and_workers_load_nothing_again(self):
        with Cluster() as c:
            procs = [c.start_worker(name, "--memory", "9M", "--disk", "0") for name in "ab"]
            ready(c, 2)
            # First homes are loaded before replicas: each has its half then, and more once the replicas are there.
            served = lambda p: [int(n) for n in re.findall(r"serving (\d+) of", p.err())]
            eventually("both hold replicas too", lambda: all(served(p) and served(p)[-1] > 64 for p in procs))
            eventually("the epoch names them", lambda: sum(w["experts"] for w in c.admin_json("epoch")["workers"]) == sum(served(p)[-1] for p in procs))
            before = c.admin_json("epoch")
            loads = [len(served(p)) for p in procs]
            with AnswersGoOn(c) as answers:
                for _ in range(2):
                    c.coordinator.kill()
                    c.start_coordinator()
                    eventually("both are back", lambda: sum(w["state"] == "ready" for w in workers(c).values()) == 2)
            self.assertEqual(answers.wrong, [])
            after = c.admin_json("epoch")
            self.assertGreaterEqual((after["term"], after["number"]), (before["term"], before["number"]))
            homes = lambda e: {w["name"]: w["experts"] for w in e["workers"]}
            self.assertEqual(homes(after), homes(before))
            for p, n in zip(procs, loads):
                self.assertEqual(len(served(p)), n, p.err())
            status = c.admin_json("status")
            self.assertEqual(status["covered"], 128)
            self.assertEqual(status["counters"]["causeway_assigned_experts_total"], 0)

    def test_an_older_copy_of_the_state_cannot_bring_an_older_epoch_back(self):
        with Cluster() as c:
            a = c.start_worker("a", "--memory", "9M")
            eventually("it is ready", lambda: workers(c).get("a", {}).get("state") == "ready")
            self.assertEqual(c.coordinator.stop(), 0)
            copy = c.dir / "copy"
            shutil.copytree(c.dir / "coordinator", copy)
            c.start_coordinator()
            c.start_worker("b", "--memory", "9M", join=c.join("worker"))
            ready(c, 2)
            eventually("the epoch names both", lambda: len(c.admin_json("epoch")["workers"]) == 2)
            newest = c.admin_json("epoch")
            c.coordinator.kill()
            shutil.rmtree(c.dir / "coordinator")
            shutil.move(copy, c.dir / "coordinator")
            c.start_coordinator()
            eventually("the copy overrules what it has not seen", lambda: (lambda e: (e["term"], e["number"]) > (newest["term"], newest["number"]))(
                c.admin_json("epoch")))
            self.assertIn("an older state was restored", c.coordinator.err())
            self.assertTrue(a.running())

    def test_sigterm_of_the_coordinator_is_not_delayed_by_an_admin_client_that_does_not_read(self):
        with Cluster() as c:
            clients = []
            for _ in range(4):
                s = socket.socket(socket.AF_UNIX)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                s.connect(str(c.dir / "coordinator/admin.sock"))
                s.setblocking(False)
                try:
                    for _ in range(2000):
                        s.send(b'{"cmd":"status"}\n' * 20)
                except BlockingIOError:
                    pass
                clients.append(s)
            self.assertTrue(c.admin_json("status")["experts"])  # others are still served
            began = time.monotonic()
            self.assertEqual(c.coordinator.stop(), 0)
            self.assertLess(time.monotonic() - began, 3 * PATIENCE)
            for s in clients:
                s.close()


class Numbers(unittest.TestCase):
    def test_status_and_metrics_tell_the_same_and_only_on_loopback(self):
        with Cluster() as c:
            c.coordinator.stop()
            cp, wp = free_port(), free_port()
            c.start_coordinator("--metrics", f"127.0.0.1:{cp}")
            c.start_worker("a", "--metrics", f"127.0.0.1:{wp}")
            eventually("it is ready", lambda: workers(c).get("a", {}).get("state") == "ready")
            c.ask(n=8)
            eventually("the coordinator counts", lambda: numbers(cp).get("causeway_experts_covered") == 128)
            m = eventually("audits happen", lambda: (lambda n: n if n.get("causeway_audits_total", 0) > 0 else None)(numbers(cp)))
            self.assertEqual(m['causeway_worker_up{worker="a",id="1"}'], 1)
            self.assertEqual(m["causeway_workers_live"], 1)
            self.assertEqual(m["causeway_fenced_total"], 0)
            status = c.admin_json("status")
            self.assertGreaterEqual(status["counters"]["causeway_audits_total"], m["causeway_audits_total"])
            self.assertIn("causeway_audits_total", c.admin("status").stdout)
            eventually("the worker counts", lambda: numbers(wp).get("causeway_worker_rows_total", 0) > 0)
            self.assertEqual(numbers(wp)["causeway_worker_experts"], 128)
            for path, code in (("/", 404), ("/metricsx", 404)):
                with self.assertRaises(urllib.error.HTTPError) as e:
                    urllib.request.urlopen(f"http://127.0.0.1:{cp}{path}", timeout=5)
                self.assertEqual(e.exception.code, code)
            for bad in ("0.0.0.0:9100", "10.0.0.1:9100", "9100", "[::]:9100", "localhost:99999"):
                r = subprocess.run([str(BIN / "causeway-coordinator"), "--model", str(TEACHER), "--state", str(c.dir / "other"), "--metrics", bad],
                                   capture_output=True, text=True, timeout=30 * PATIENCE)
                self.assertEqual(r.returncode, 1)
                self.assertRegex(r.stderr, r"--metrics takes a loopback address")

    def test_slow_and_silly_clients_of_the_metrics_port_harm_nobody(self):
        with Cluster() as c:
            c.coordinator.stop()
            port = free_port()
            c.start_coordinator("--metrics", f"127.0.0.1:{port}")
            idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
            for s in idle[:4]:
                s.send(b"GET /metr")
            for junk in (b"\0" * 5000, b"POST /metrics HTTP/1.1\r\n\r\n", b"GET /metrics"):
                with socket.create_connection(("127.0.0.1", port)) as s:
                    try:
                        s.sendall(junk)
                    except OSError:
                        pass
            eventually("the slow ones are let go and others served", lambda: self.try_numbers(port), 20)
            for s in idle:
                s.close()
            self.assertEqual(c.coordinator.stop(), 0)

    @staticmethod
    def try_numbers(port):
        try:
            return numbers(port)
        except OSError:
            return None


class WhoIsWrong(unittest.TestCase):
    def test_a_worker_that_errs_in_one_row_of_a_hundred_is_fenced_and_named(self):
        with Cluster() as c:
            c.start_worker("honest")
            ready(c, 1)
            began = time.monotonic()
            bad = c.start("worker-liar", [FAULTY, "--join", c.join("worker"), "--name", "liar", "--state", c.dir / "state-liar", "--threads", "1"])
            eventually("it is fenced", lambda: workers(c).get("liar", {}).get("state") == "fenced", 60)
            self.assertLess(time.monotonic() - began, 60 * PATIENCE)
            self.assertRegex(workers(c)["liar"]["why"], r"it computed \d+ of \d+ rows wrong for expert \d+ of layer \d+")
            self.assertEqual(workers(c)["honest"]["state"], "ready")
            self.assertRegex(c.coordinator.err(), r'fenced worker="liar"')
            self.assertEqual(c.admin_json("status")["counters"]["causeway_fenced_total"], 1)
            self.assertEqual(bad.wait(20), 1)
            self.assertRegex(bad.err(), r"refused this worker: this worker is fenced: it computed \d+ of \d+ rows wrong")
            want, _ = ask_local()
            for _ in range(3):
                text, summary = c.ask()
                self.assertEqual(text, want)
                self.assertEqual([w["name"] for w in summary["workers"] if w["calls"]], ["honest"])
            # The machine is mended: the same key, with the program that computes rightly.
            c.admin("unfence", "liar")
            c.start(
                "worker-mended", [BIN / "causeway-worker", "--name", "liar", "--state", c.dir / "state-liar", "--threads", "1"])
            ready(c, 2)
            time_of_audits = lambda: workers(c)["liar"]["audits"]
            first = time_of_audits()
            eventually("it is audited again and stays", lambda: time_of_audits() >= first + 2, 30)
            self.assertEqual(workers(c)["liar"]["state"], "ready")


class Revoking(unittest.TestCase):
    def test_revoke_takes_a_name_a_key_a_token_or_a_join_string(self):
        with Cluster() as c:
            procs = {}
            joins = {n: c.join("worker", "--uses", "1") for n in ("n1", "n2", "n3", "n4", "stays")}
            for n, j in joins.items():
                procs[n] = c.start_worker(n, join=j)
            eventually("all are in", lambda: len(workers(c)) == 5 and all(w["state"] == "ready" for w in workers(c).values()), 40)
            tokens = [json.loads(line) for line in c.admin("token", "list", "--json").stdout.splitlines()]
            newest = sorted(t["id"] for t in tokens if t["role"] == "worker")[-5:]
            c.admin("revoke", "n1")
            c.admin("revoke", workers(c)["n2"]["key"])
            c.admin("revoke", str(newest[2]))
            c.admin("revoke", joins["n4"])
            for n in ("n1", "n2", "n3", "n4"):
                self.assertEqual(procs[n].wait(), 1, procs[n].said())
            self.assertEqual(list(workers(c)), ["stays"])
            self.assertRegex(c.admin("revoke", "n9", check=False).stderr, "no worker or edge is called n9")


if __name__ == "__main__":
    unittest.main()
