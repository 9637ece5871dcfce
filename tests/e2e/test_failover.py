"""Two workers that each hold everything; one dies, hangs or comes back in the middle of an answer. The text is that of a local
run, and the user hardly sees it: gaps between pieces are measured at the client."""
import time
import unittest

from bed import QUESTIONS, Bed, gaps_of
from cluster import PATIENCE, eventually

STORY = QUESTIONS[0]


class InMidAnswer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.bed = Bed(seed=5, workers=("a", "b")).__enter__()
        cls.addClassCleanup(lambda: cls.bed.__exit__(None))
        cls.want = cls.bed.reference(5)[STORY]
        cls.edge = cls.bed.talker("e", seed=5)
        # Measured services, so that lateness means something.
        for _ in range(2):
            assert cls.edge.ask(STORY)[0] == cls.want

    def setUp(self):
        self.bed.all_ready(60)
        # One fault at a time: the edge has found the worker that came back.
        eventually("the edge is connected to both workers", lambda: sum(w["up"] for w in self.edge.ask("Hello")[2]["workers"]) == 2)

    def fault(self, fault, name, limit_ms):
        """One fault after the first pieces of an answer; what the summary told."""
        self.edge.begin(STORY)
        time.sleep(0.25 * PATIENCE)
        at = time.monotonic()
        undo = fault(name)
        text, times, summary = self.edge.finish()
        undo()
        self.assertEqual(text, self.want, self.edge.said()[-1000:])
        self.assertIsNotNone(summary)
        self.assertLess(at, times[-1], "the answer was over before the fault")
        self.assertEqual(summary["fallback_tokens"], 0)
        self.assertLess(gaps_of(times, at), limit_ms * PATIENCE)
        return summary

    def busiest(self):
        """The worker that did more of the last answer (nearness decides, and the other may idle), and its summary."""
        calls = lambda s: {w["name"]: w["calls"] for w in s["workers"]}
        first, last = self.edge.ask(STORY)[2], self.edge.ask(STORY)[2]
        return max(("a", "b"), key=lambda n: calls(last)[n] - calls(first)[n]), last

    def test_killed(self):
        name, before = self.busiest()
        after = self.fault(self.bed.kill, name, 250)
        self.assertGreaterEqual(after["resent"] + after["hedges"], before["resent"] + before["hedges"])

    def test_hanging(self):
        name, before = self.busiest()
        after = self.fault(self.bed.stop, name, 400)
        self.assertGreater(after["hedges"] + after["resent"], before["hedges"] + before["resent"])

    def test_black_hole(self):
        self.fault(self.bed.blackhole, "a", 400)

    def test_restarted(self):
        def restart(name):
            self.bed.kill(name)()
            return lambda: None
        self.fault(restart, "b", 250)
        self.bed.all_ready(60)
        text, _, summary = self.edge.ask(STORY)
        self.assertEqual(text, self.want)
        self.assertEqual(summary["mismatches"], 0)

    def test_hedges_are_few(self):
        summary = self.edge.ask(STORY)[2]
        self.assertLess(summary["hedges"], 0.05 * summary["calls"] + 5)
