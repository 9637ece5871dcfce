"""What chaos.py breaks and who watches: clients that stay and ask, and a cluster of workers with what can befall them."""
import json
import pathlib
import queue
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

from cluster import BIN, TEACHER, eventually
from proxy import ProxiedCluster, free_port

TOPICS = ["a brave fox", "a poor king", "a clever girl", "an old miller", "a lazy cat", "a proud crow", "two brothers", "a small bear",
          "a kind queen", "a hungry wolf", "a lost lamb", "a golden bird"]
STORIES = [f"Tell me a story about {t}." for t in TOPICS]
QUESTIONS = STORIES + ["What is 347 + 285?", "Sort: 41, 7, 530, 88", "What is the capital of France?"]


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
    """Workers behind proxies with a delay, and the faults that can befall them. Each holds everything, or `part` of it."""

    def __init__(self, seed, delay="1ms", workers=("a", "b", "c"), ticket=None, part=None, worker_args=()):
        self.rng = random.Random(seed)
        self.delay = delay
        self.names = list(workers)
        self.cluster = ProxiedCluster(seed=seed)
        self.coordinator_args = ["--ticket-lifetime", ticket] if ticket else []
        self.workers, self.talkers = {}, []
        self.n_extra = 0
        self.part = part
        self.worker_args = list(worker_args)
        self.memory = None  # bytes of each worker; None: as much as there is
        self.metrics = {}  # ports

    def __enter__(self):
        c = self.cluster
        c.start_coordinator(*self.coordinator_args)
        self.worker_join = c.join("worker", "--uses", "100")
        self.edge_join = c.join("edge")
        if self.part:
            self.memory = int(self.part * self.model_bytes())
        for n in self.names:
            self.start_worker(n)
        eventually("every worker holds its part", self.settled) if self.part else self.all_ready()
        return self

    def __exit__(self, kind, *rest):
        for t in self.talkers:
            t.close()
            if kind is not None:
                print(f"--- {t.name} ---\n{t.said()[-2000:]}", file=sys.stderr)
        self.cluster.__exit__(kind, *rest)

    def start_worker(self, name):
        self.metrics[name] = free_port()
        extra = self.worker_args + (["--memory", self.memory] if self.memory else [])
        self.workers[name] = self.cluster.start_worker(name, "--metrics", f"127.0.0.1:{self.metrics[name]}", *extra, join=self.worker_join)
        self.cluster.net(f"{name} delay both {self.delay}")

    def model_bytes(self):
        """What all experts take in a worker's memory."""
        self.start_worker("whole")
        eventually("one worker holds everything", lambda: self.status()["min_homes"] >= 1, 30)
        used = eventually("it says so", lambda: self.listed()["whole"]["used"])
        self.workers.pop("whole").stop()
        return used

    def numbers(self, name):
        """A worker's metrics, those without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics[name]}/metrics", timeout=5) as r:
            lines = r.read().decode().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}

    def epoch_sets(self):
        """{worker: {(layer, expert)}} as the newest epoch has it."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.cluster.dir / "coordinator/admin.sock"))
            s.sendall(b'{"cmd":"epoch","sets":true}\n')
            with s.makefile() as f:
                epoch = json.loads(f.readline())["result"]
        sets = {}
        for w in epoch["workers"]:
            sets[w["name"]] = {(int(layer), 8 * i + k) for layer, bits in w["sets"].items()
                               for i, byte in enumerate(bytes.fromhex(bits)) for k in range(8) if byte >> k & 1}
        return sets

    def listed(self):
        return {w["name"]: w for w in map(json.loads, self.cluster.admin("workers", "--json").stdout.splitlines())}

    def settled(self):
        """Everybody who is there holds what it is to hold, and the epoch says so."""
        listed = self.listed()
        here = [listed[n] for n in self.workers if n in listed]
        if len(here) < len(self.workers):
            return False
        sets = self.epoch_sets()
        return all(w["state"] == "drained" or (w["state"] == "ready" and w["experts"] == w["wanted"] == len(sets.get(w["name"], ()))) for w in here)

    def in_use(self):
        """One of the workers whose links carry replies just now; None: nobody's does."""
        carried = lambda: {n: self.cluster.net.stats(n)["down"]["bytes"] for n in self.names}
        before = carried()
        time.sleep(0.01)
        now = carried()
        busy = [n for n in self.names if now[n] > before[n]]
        return self.rng.choice(busy) if busy else None

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


def rss_and_descriptors(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    rss = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
    return rss, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def slope(points):
    """Least squares, per 10 minutes."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    below = sum((x - mx) ** 2 for x in xs)
    return 600 * sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / below if below else 0.0
