"""Real processes for the end-to-end tests: a coordinator, workers, edges, each with its own state directory.

Everything waits by polling with a deadline. Programs come from $CAUSEWAY_BIN; the demo set is the model.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("CAUSEWAY_BIN", ROOT / "build/release/bin"))
DEMO = ROOT / "deploy/demo"
TEACHER = DEMO / "causeway-demo-teacher.gguf"
STUDENT = DEMO / "causeway-demo-student.gguf"
PROMPT = "What is 347 + 285?"
# Sanitizer builds are several times slower.
PATIENCE = float(os.environ.get("CW_E2E_PATIENCE", "1"))


def eventually(what, check, seconds=20):
    """The first true value of check(); fails naming `what` after the deadline."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Process:
    """A program with its output in files, so that a test can look at what it has said so far."""

    def __init__(self, cluster, name, args, env=None):
        self.name = name
        self.out_path = cluster.dir / f"{name}.out"
        self.err_path = cluster.dir / f"{name}.err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL, env={**cluster.env(), **(env or {})},
                                          stdout=out, stderr=err)

    def out(self):
        return self.out_path.read_text(errors="replace")

    def err(self):
        return self.err_path.read_text(errors="replace")

    def said(self):
        return self.out() + self.err()

    def running(self):
        return self.popen.poll() is None

    def wait(self, seconds=30):
        try:
            return self.popen.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds} s; it said:\n{self.said()}") from None

    def stop(self, seconds=10):
        """SIGTERM is a clean stop; returns the exit status."""
        if self.running():
            self.popen.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def rss_bytes(self):
        text = pathlib.Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024

    def kill(self):
        if self.running():
            self.popen.kill()
            self.popen.wait()


class Cluster:
    """A coordinator on free loopback ports and whatever is started through it; a context manager."""

    def __init__(self, model=TEACHER):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="causeway-e2e-"))
        self.model = model
        self.processes = []
        self.port = self._free_ports()
        self.coordinator = None

    @staticmethod
    def _free_ports():
        """A port for control with the next one free too (the store)."""
        import random
        import socket
        for _ in range(200):
            port = random.randrange(20000, 32000)
            try:
                with socket.socket() as a, socket.socket() as b:
                    a.bind(("127.0.0.1", port))
                    b.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue
        raise AssertionError("no free pair of ports")

    def __enter__(self):
        self.start_coordinator()
        return self

    def __exit__(self, kind, *_):
        for p in self.processes:
            p.kill()
        if kind is not None:
            for p in self.processes:
                print(f"--- {p.name} ---\n{p.said()[-3000:]}")
        shutil.rmtree(self.dir, ignore_errors=True)

    def env(self):
        """Workers' socket files go with the cluster; an edge that is not told of that directory comes over TCP."""
        return {**os.environ, "XDG_RUNTIME_DIR": str(self.dir)}

    def start(self, name, args, env=None):
        p = Process(self, name, args, env)
        self.processes.append(p)
        return p

    def start_coordinator(self, *extra):
        self.coordinator = self.start(
            f"coordinator{len(self.processes)}",
            [BIN / "causeway-coordinator", "--model", self.model, "--listen", f"tcp://127.0.0.1:{self.port}",
             "--state", self.dir / "coordinator", *extra])
        eventually("the coordinator answers status", lambda: not self.coordinator.running() or self.admin("status", check=False).returncode == 0)
        assert self.coordinator.running(), self.coordinator.said()
        return self.coordinator

    def admin(self, *args, check=True):
        r = subprocess.run([str(BIN / "causeway-coordinator"), *args, "--state", str(self.dir / "coordinator")],
                           capture_output=True, text=True, timeout=30 * PATIENCE)
        if check:
            assert r.returncode == 0, r.stderr
        return r

    def admin_json(self, *args):
        return json.loads(self.admin(*args, "--json").stdout)

    def join(self, role, *extra):
        return self.admin_json("token", "create", "--role", role, *extra)["join"]

    def start_worker(self, name, *extra, join=None, env=None):
        return self.start(f"worker-{name}", [BIN / "causeway-worker", "--join", join or self.join("worker"), "--name", name,
                                             "--state", self.dir / f"state-{name}", "--threads", "1", *extra], env)

    def edge(self, command, *args, state="edge", join=None, timeout=60, env=None):
        """Runs `causeway COMMAND ...` in split mode to its end; the completed process."""
        command_line = [BIN / "causeway", command, "--join", join or self.join("edge"), *args]
        return subprocess.run([str(a) for a in command_line], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              timeout=timeout * PATIENCE, env={**self.env(), "XDG_STATE_HOME": str(self.dir / state), **(env or {})})

    def ask(self, prompt=PROMPT, state="edge", join=None, n=80):
        """An answer through the workers: (text, summary)."""
        return parse_answer(self.edge("run", "-m", self.model, "--mode", "split", "-p", prompt, "-n", str(n), "--temp", "0", "--json",
                                      state=state, join=join))


def parse_answer(r):
    assert r.returncode == 0, r.stderr
    lines = [json.loads(line) for line in r.stdout.splitlines() if line.strip()]
    text = "".join(line["text"] for line in lines if "text" in line)
    return text, lines[-1]["summary"]


def ask_local(prompt=PROMPT, n=80, model=TEACHER):
    return parse_answer(subprocess.run(
        [str(BIN / "causeway"), "run", "-m", str(model), "--mode", "local", "-p", prompt, "-n", str(n), "--temp", "0", "--json"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60 * PATIENCE))
