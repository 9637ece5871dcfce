"""A bad network between real processes: tests/proxy/proxy.h says what it can do.

    with Proxy() as net:
        port = net.add("w0", "127.0.0.1:6001")      # connect to 127.0.0.1:port instead
        net("w0 delay both 10ms")                   # any line of the control protocol; "* ..." means every route
        net.stats("w0")["down"]["added_us"]

Where it goes: a worker behind it is started with `--listen tcp://127.0.0.1:6001 --advertise tcp://127.0.0.1:PORT`; a join
string that names the proxy's port puts it before the coordinator (`through`). ProxiedCluster does both.
"""
import base64
import hashlib
import json
import os
import pathlib
import socket
import subprocess

from cluster import BIN, Cluster

PROGRAM = pathlib.Path(os.environ.get("CW_PROXY", BIN.parent / "tests/cw-proxy"))


class Proxy:
    """One process with any number of routes; it ends with this object, or when the test process dies."""

    def __init__(self, seed=1):
        self.popen = subprocess.Popen([str(PROGRAM), "--seed", str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __call__(self, line):
        """One command; what follows "ok"."""
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        if not answer.startswith("ok"):
            raise AssertionError(f"proxy: {line!r}: {answer.strip() or 'it has ended'}")
        return answer[2:].strip()

    def add(self, name, target, port=0):
        """A route to "HOST:PORT"; the port it listens on."""
        return int(self(f"add {name} {target} {port}"))

    def stats(self, name):
        return json.loads(self(f"{name} stats"))

    def close(self):
        if self.popen.poll() is None:
            self.popen.stdin.close()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        self.popen.stdout.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def through(join, port):
    """The same join string with 127.0.0.1:port as the coordinator's address (format: common/crypto/src/join.c)."""
    prefix = join[:join.index("-", 4) + 1]
    data = base64.urlsafe_b64decode(join[len(prefix):] + "==")
    address = f"tcp://127.0.0.1:{port}".encode()
    payload = data[:1] + bytes([len(address)]) + address + data[2 + data[1]:-5]
    check = hashlib.blake2b(prefix.encode() + payload, digest_size=32, key=b"causeway join 1").digest()[:5]
    return prefix + base64.urlsafe_b64encode(payload + check).decode().rstrip("=")


class ProxiedCluster(Cluster):
    """A cluster whose connections go through a proxy, self.net. Its routes: "edges" and "workers" (they to the
    coordinator), "store" (workers to its store), and the name of each worker (edges, and other workers, to it)."""

    def __init__(self, *args, seed=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.net = Proxy(seed)
        control = f"127.0.0.1:{self.port}"
        self.control_port = {"edge": self.net.add("edges", control), "worker": self.net.add("workers", control)}
        self.store_port = self.net.add("store", f"127.0.0.1:{self.port + 1}")
        self.worker_port = {}

    def __exit__(self, *args):
        super().__exit__(*args)
        self.net.close()

    def start_coordinator(self, *extra):
        return super().start_coordinator("--store-advertise", f"tcp://127.0.0.1:{self.store_port}", *extra)

    def join(self, role, *extra):
        return through(super().join(role, *extra), self.control_port[role])

    def start_worker(self, name, *extra, **kwargs):
        port = free_port()
        if name in self.worker_port:  # it comes back, behind the same address
            self.net(f"{name} target 127.0.0.1:{port}")
        else:
            self.worker_port[name] = self.net.add(name, f"127.0.0.1:{port}")
        return super().start_worker(name, "--no-ipc", "--listen", f"tcp://127.0.0.1:{port}", "--advertise",
                                    f"tcp://127.0.0.1:{self.worker_port[name]}", *extra, **kwargs)
