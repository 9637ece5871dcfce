"""The bad network itself (tests/proxy): each fault does what it says and nothing else; then a cluster behind it."""
import errno
import os
import select
import socket
import struct
import threading
import time
import unittest

from cluster import PATIENCE, ask_local, eventually
from proxy import Proxy, ProxiedCluster

SLACK_S = 0.05 * PATIENCE  # this process is scheduled beside others


class Echo:
    """A server that sends back what it gets, and remembers its connections."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.connections = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                c, _ = self.listener.accept()
            except OSError:
                return
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections.append(c)
            threading.Thread(target=self._echo, args=(c,), daemon=True).start()

    @staticmethod
    def _echo(c):
        try:
            while data := c.recv(65536):
                c.sendall(data)
            c.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.close()
        for c in self.connections:
            c.close()


class TheProxy(unittest.TestCase):
    def setUp(self):
        self.server = Echo()
        self.addCleanup(self.server.close)
        self.net = Proxy()
        self.addCleanup(self.net.close)
        self.port = self.net.add("r", self.server.address)

    def connect(self):
        c = socket.create_connection(("127.0.0.1", self.port), timeout=10 * PATIENCE)
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.addCleanup(c.close)
        return c

    def echo(self, c, data=b"x"):
        """Seconds until all of it is back."""
        begin = time.monotonic()
        writer = threading.Thread(target=c.sendall, args=(data,))
        writer.start()
        back = b""
        while len(back) < len(data):
            part = c.recv(1 << 20)
            if not part:
                raise AssertionError("the connection ended")
            back += part
        writer.join()
        self.assertEqual(back, data)
        return time.monotonic() - begin

    def assert_silent(self, c, seconds=0.3):
        self.assertEqual(select.select([c], [], [], seconds)[0], [], "something came through")

    def assert_reset(self, c):
        with self.assertRaises(ConnectionResetError):
            while c.recv(65536):
                pass

    def test_forwards_every_byte_both_ways(self):
        c = self.connect()
        self.echo(c, os.urandom(3 << 20))
        c.shutdown(socket.SHUT_WR)
        self.assertEqual(c.recv(1), b"")
        stats = self.net.stats("r")
        self.assertEqual((stats["up"]["bytes"], stats["down"]["bytes"], stats["accepted"]), (3 << 20, 3 << 20, 1))
        eventually("the connection is forgotten", lambda: self.net.stats("r")["open"] == 0)

    def test_delays_each_direction_by_its_own_time_and_says_so(self):
        c = self.connect()
        self.net("r delay up 20ms")
        self.net("r delay down 5ms")
        for _ in range(20):
            took = self.echo(c)
            self.assertGreaterEqual(took, 0.025)
        self.assertLess(min(self.echo(c) for _ in range(5)), 0.025 + SLACK_S)
        stats = self.net.stats("r")
        self.assertGreaterEqual(stats["up"]["added_us"], 20000)
        self.assertGreaterEqual(stats["down"]["added_us"], 5000)
        self.assertLess(stats["up"]["late_p50_us"], 1000 * PATIENCE)
        self.net("r delay both 0")
        self.assertLess(min(self.echo(c) for _ in range(20)), 0.005 * PATIENCE)

    def test_many_messages_on_a_long_link_overlap(self):
        c = self.connect()
        self.net("r delay both 100ms")
        begin = time.monotonic()
        for _ in range(10):
            c.sendall(b"y")
            time.sleep(0.005)
        got = b""
        while len(got) < 10:
            got += c.recv(10)
        self.assertLess(time.monotonic() - begin, 0.25 + SLACK_S)

    def test_limits_the_rate(self):
        c = self.connect()
        self.net("r rate up 8mbit")
        took = self.echo(c, os.urandom(300000))
        self.assertGreater(took, 0.29)
        self.assertLess(took, 0.35 + 4 * SLACK_S)
        self.net("r rate up off")
        self.assertLess(self.echo(c, os.urandom(300000)), 0.2 * PATIENCE)

    def test_stalls_now_and_then(self):
        c = self.connect()
        self.net("r stall down 30 30ms")
        took = [self.echo(c) for _ in range(60)]
        stalls = self.net.stats("r")["down"]["stalls"]
        self.assertGreater(stalls, 5)
        self.assertLess(stalls, 40)
        self.assertEqual(sum(t >= 0.03 for t in took) >= stalls, True)

    def test_half_open_loses_nothing(self):
        c = self.connect()
        self.echo(c)
        self.net("r halfopen up on")
        c.sendall(b"late")
        self.assert_silent(c)
        new = self.connect()  # and what is sent on a new connection waits too
        new.sendall(b"new")
        self.assert_silent(new)
        self.net("r halfopen up off")
        self.assertEqual(c.recv(10), b"late")
        self.assertEqual(new.recv(10), b"new")

    def test_a_black_hole_swallows_one_direction_and_resets_afterwards(self):
        c, idle = self.connect(), self.connect()
        self.echo(c)
        self.echo(idle)
        self.net("r blackhole down on")
        c.sendall(b"lost")
        eventually("the server has had it", lambda: self.net.stats("r")["down"]["swallowed"] == 4)
        self.assert_silent(c)
        self.net("r blackhole down off")
        self.assert_reset(c)
        self.echo(idle)  # it has lost nothing

    def test_a_black_hole_hides_the_end_of_the_peer(self):
        c = self.connect()
        self.echo(c)
        self.net("r blackhole both on")
        eventually("connected", lambda: self.server.connections)
        reset = struct.pack("ii", 1, 0)
        self.server.connections[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        self.server.connections[0].shutdown(socket.SHUT_RDWR)
        self.server.connections[0].close()
        self.assert_silent(c)
        new = self.connect()
        new.sendall(b"hello")
        self.assert_silent(new)
        self.net("r clear")
        self.assert_reset(c)
        self.assert_reset(new)
        self.echo(self.connect())

    def test_resets_what_is_there_and_nothing_later(self):
        c = self.connect()
        self.echo(c)
        self.net("r reset")
        self.assert_reset(c)
        self.echo(self.connect())

    def test_refuses_new_connections_and_keeps_the_old(self):
        c = self.connect()
        self.echo(c)
        self.net("r refuse on")
        with self.assertRaises(ConnectionRefusedError):
            self.connect()
        self.echo(c)
        self.net("r refuse off")
        self.echo(self.connect())

    def test_passes_ends_and_resets_on(self):
        c = self.connect()
        self.echo(c)
        eventually("connected", lambda: self.server.connections)
        self.server.connections[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.connections[0].shutdown(socket.SHUT_RD)  # wakes the echoing thread
        self.server.connections[0].close()
        self.assertIn(self._end_of(c), (b"", errno.ECONNRESET))
        self.net("r target 127.0.0.1:1")  # nobody there
        with self.assertRaises(ConnectionResetError):
            self.connect().recv(1)

    @staticmethod
    def _end_of(c):
        try:
            return c.recv(1)
        except OSError as e:
            return e.errno

    def test_refuses_what_it_does_not_understand(self):
        for line in ("r", "r delay up", "r delay sideways 1ms", "r delay up 1h", "r rate up -5", "q reset", "add r 127.0.0.1:9", "nothing",
                     "r stall up 101 1ms", "add x 127.0.0.1:99999"):
            with self.assertRaisesRegex(AssertionError, "error", msg=line):
                self.net(line)
        self.echo(self.connect())

    def test_faults_of_one_route_leave_the_others_alone(self):
        other = self.net.add("o", self.server.address)
        self.net("r blackhole both on")
        with socket.create_connection(("127.0.0.1", other), timeout=10 * PATIENCE) as c:
            self.echo(c)


class AClusterBehindIt(unittest.TestCase):
    def test_answers_the_same_through_a_long_link_and_after_cuts(self):
        local, _ = ask_local(n=40)
        with ProxiedCluster() as c:
            for name in ("a", "b"):
                c.start_worker(name)
            c.net("a delay both 1ms")
            c.net("edges delay both 5ms")
            self.assertEqual(c.ask(n=40)[0], local)
            for route in ("a", "b", "edges", "workers", "store"):
                stats = c.net.stats(route)
                self.assertGreater(min(stats[d]["bytes"] for d in ("up", "down")), 500, route)
            c.net("* reset")
            self.assertEqual(c.ask(n=40)[0], local)


if __name__ == "__main__":
    unittest.main(verbosity=2)
