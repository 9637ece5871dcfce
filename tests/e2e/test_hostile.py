"""A hostile client costs itself the connection and nobody else anything."""
import json
import os
import pathlib
import re
import subprocess
import threading
import unittest

from cluster import BIN, Cluster, PATIENCE, ask_local, eventually

HOSTILE = pathlib.Path(os.environ.get("CW_HOSTILE_PEER", BIN.parent / "tests/hostile_peer"))
GROWTH_MAX = 64 << 20
SANITIZED = bool(os.environ.get("CW_SANITIZED"))


class OneBadClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.c = Cluster().__enter__()
        cls.addClassCleanup(cls.c.__exit__, None, None, None)
        cls.worker = cls.c.start_worker("a")
        cls.local, _ = ask_local()
        cls.c.ask()

    def attack(self, mode):
        """Runs one attack beside an honest edge; its report."""
        rss = []
        done = threading.Event()

        def watch():
            while not done.wait(0.02):
                rss.append(self.worker.rss_bytes())

        before = self.worker.rss_bytes()
        watcher = threading.Thread(target=watch)
        watcher.start()
        hostile = subprocess.Popen([str(HOSTILE), mode, self.c.join("edge")], stdout=subprocess.PIPE, text=True)
        try:
            answers = [self.c.ask(state=f"honest-{mode}")[0]]
            out, _ = hostile.communicate(timeout=60 * PATIENCE)
            answers.append(self.c.ask(state=f"honest-{mode}")[0])
        finally:
            hostile.kill()
            done.set()
            watcher.join()
        self.assertEqual(answers, [self.local, self.local])
        self.assertTrue(self.worker.running(), self.worker.said())
        if not SANITIZED:  # a sanitizer's allocator keeps what was freed
            self.assertLess(max(rss) - before, GROWTH_MAX)
        report = json.loads(out)
        self.assertNotIn("error", report)
        self.assertTrue(report["defended"], report)
        return report

    def test_an_endless_multipart_message(self):
        self.attack("endless")

    def test_an_oversized_frame(self):
        self.attack("oversize")

    def test_a_thousand_half_open_handshakes(self):
        self.attack("half-open")

    def test_bad_calls(self):
        for mode in ("min-int8", "nan-scale", "expert", "short", "order", "garbage", "unintroduced"):
            with self.subTest(mode):
                self.attack(mode)

    def test_a_ticket_copied_to_another_key(self):
        report = self.attack("copied-ticket")
        self.assertRegex(report["text"], r"(?i)ticket.*key|key.*ticket")


class AWorkerWithoutItsGatekeeperStops(unittest.TestCase):
    def test_zap_handler_gone(self):
        with Cluster() as c:
            w = c.start_worker("a", "--fault-zap", "1500")
            self.assertEqual(w.wait(), 1, w.said())
            self.assertRegex(w.err(), r"(?i)zap|authentication")


if __name__ == "__main__":
    unittest.main(verbosity=2)
