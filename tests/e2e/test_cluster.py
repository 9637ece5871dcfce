"""What a user meets when a cluster is set up right, and when it is set up wrong: every failure is a sentence."""
import json
import re
import subprocess
import unittest

from cluster import BIN, Cluster, PROMPT, STUDENT, TEACHER, ask_local, eventually


def change_one_character(join):
    i = len(join) // 2
    return join[:i] + ("A" if join[i] != "A" else "B") + join[i + 1:]


class TheDemoModelAnswersThroughWorkers(unittest.TestCase):
    def test_split_says_what_local_says_and_both_workers_serve(self):
        local, _ = ask_local()
        self.assertIn("632", local)
        with Cluster() as c:
            # The demo's experts need about 13 MB packed: neither worker can hold all of them.
            a, b = c.start_worker("a", "--memory", "9M"), c.start_worker("b", "--memory", "9M")
            text, summary = c.ask()
            self.assertEqual(text, local)
            self.assertEqual(summary["mode"], "split")
            self.assertEqual({w["name"] for w in summary["workers"] if w["calls"]}, {"a", "b"})
            for p in (a, b):
                eventually(f"{p.name} says that it takes less than everything", lambda: re.search(r"serving \d+ of 128 experts", p.said()))
            for p in (a, b, c.coordinator):
                self.assertEqual(p.stop(), 0, p.said())

    def test_a_worker_pulls_its_experts_or_reads_its_own_copy(self):
        local, _ = ask_local()
        with Cluster() as c:
            c.start_worker("own-copy", "--model", TEACHER)
            text, summary = c.ask()
            self.assertEqual(text, local)
            self.assertEqual([w["name"] for w in summary["workers"]], ["own-copy"])

    def test_starting_again_with_the_same_join_string_changes_nothing(self):
        with Cluster() as c:
            once = c.join("worker", "--uses", "1")
            edge = c.join("edge", "--uses", "1")
            w = c.start_worker("a", join=once)
            first, _ = c.ask(join=edge)
            self.assertEqual(w.stop(), 0)
            c.start_worker("a", join=once)
            again, _ = c.ask(join=edge)
            self.assertEqual(first, again)


class WrongSetUpsAreAnsweredInWords(unittest.TestCase):
    def setUp(self):
        self.c = Cluster().__enter__()
        self.addCleanup(self.c.__exit__, None, None, None)

    def refused_worker(self, pattern, *extra, **kw):
        """A worker that must end by itself with exit status 1 and a sentence."""
        w = self.c.start_worker("refused", *extra, **kw)
        self.assertEqual(w.wait(), 1, w.said())
        self.assertRegex(w.err(), pattern)
        return w

    def refused_edge(self, pattern, *args, code=1, **kw):
        r = self.c.edge("run", "-m", TEACHER, "--mode", "split", "-p", PROMPT, "-n", "4", *args, **kw)
        self.assertEqual(r.returncode, code, r.stderr + r.stdout)
        self.assertRegex(r.stderr, pattern)

    def test_a_typo_is_told_from_a_refusal(self):
        typo = r"(?i)typ|checksum|copied|complete"
        self.refused_worker(typo, join=change_one_character(self.c.join("worker")))
        self.refused_edge(typo, join=change_one_character(self.c.join("edge")))

    def test_a_join_string_of_the_other_role_is_named(self):
        self.refused_worker(r"(?i)edge", join=self.c.join("edge"))

    def test_a_join_string_of_another_cluster_is_refused(self):
        with Cluster() as other:
            foreign = other.join("worker")
        # Its coordinator is gone: the worker keeps trying and says whom it cannot reach.
        w = self.c.start_worker("lost", join=foreign)
        eventually("the worker says whom it cannot reach", lambda: re.search(r"no connection to the coordinator at tcp://", w.said()))
        self.assertTrue(w.running())
        self.assertEqual(w.stop(), 0)

    def test_a_join_string_of_a_cluster_that_was_replaced_is_refused(self):
        with Cluster() as old:
            stale = old.join("worker")
        new = Cluster()
        new.port = old.port
        with new:
            w = new.start_worker("stale", join=stale)
            eventually("the worker says that the key is another", lambda: re.search(r"key is not the one in the join string", w.said()))

    def test_a_used_up_token_is_named(self):
        once = self.c.join("worker", "--uses", "1")
        w = self.c.start_worker("first", join=once)
        eventually("the first worker is in", lambda: "first" in self.c.admin("workers").stdout)
        self.refused_worker(r"(?i)used|uses", join=once)
        self.assertTrue(w.running())

    def test_a_revoked_token_revokes_what_it_admitted(self):
        join = self.c.join("edge")
        self.c.start_worker("a")
        self.c.ask(join=join, n=4)
        tokens = [json.loads(line) for line in self.c.admin("token", "list", "--json").stdout.splitlines()]
        edge_token = max(t["id"] for t in tokens if t["role"] == "edge")
        self.c.admin("token", "revoke", str(edge_token))
        self.refused_edge(r"(?i)revoked", join=join)

    def test_a_revoked_worker_ends_with_a_sentence(self):
        self.c.start_worker("stays")
        w = self.c.start_worker("goes", join=self.c.join("worker"))
        eventually("it is in", lambda: "goes" in self.c.admin("workers").stdout)
        tokens = [json.loads(line) for line in self.c.admin("token", "list", "--json").stdout.splitlines()]
        self.c.admin("token", "revoke", str(max(t["id"] for t in tokens if t["role"] == "worker")))
        self.assertEqual(w.wait(), 1, w.said())
        self.assertRegex(w.err(), r"(?i)refused this worker.*revoked")
        _, summary = self.c.ask()
        self.assertEqual([s["name"] for s in summary["workers"] if s["calls"]], ["stays"])

    def test_a_worker_with_another_model_is_told_both_digests(self):
        w = self.c.start_worker("other", "--model", STUDENT)
        self.assertEqual(w.wait(), 1, w.said())
        self.assertRegex(w.err(), r"(?i)model")
        self.assertGreaterEqual(len(re.findall(r"\b[0-9a-f]{8,}", w.err())), 2, w.err())

    def test_an_edge_with_another_model_is_told(self):
        """The same tokenizer and shape, other weights: one byte of the last tensor differs."""
        self.c.start_worker("a")
        changed = self.c.dir / "changed.gguf"
        data = bytearray(TEACHER.read_bytes())
        data[-1000] ^= 1
        changed.write_bytes(data)
        r = self.c.edge("run", "-m", changed, "--mode", "split", "-p", PROMPT, "-n", "4")
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr, r"(?i)another model|other model|digest")
        dense = self.c.edge("run", "-m", STUDENT, "--mode", "split", "-p", PROMPT, "-n", "4", state="dense")
        self.assertEqual(dense.returncode, 1)
        self.assertIn("has no experts to put on a cluster", dense.stderr)

    def test_one_name_is_one_worker(self):
        first = self.c.start_worker("same")
        eventually("the first holds the name", lambda: "same" in self.c.admin("workers").stdout)
        second = self.c.start("second", [BIN / "causeway-worker", "--join", self.c.join("worker"), "--name", "same", "--state", self.c.dir / "state-same"])
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.err(), r"--name")
        self.assertTrue(first.running())

    def test_a_worker_waits_while_the_coordinator_restarts(self):
        w = self.c.start_worker("a")
        before, _ = self.c.ask()
        self.c.coordinator.kill()
        join = None
        eventually("the worker notices", lambda: re.search(r"(?i)coordinator", w.err()))
        self.c.start_coordinator()
        after, _ = self.c.ask(join=join)
        self.assertEqual(before, after)
        self.assertTrue(w.running())

    def test_a_stored_ticket_is_enough_while_the_coordinator_is_away(self):
        self.c.start_worker("a")
        join = self.c.join("edge")
        before, _ = self.c.ask(join=join)
        self.c.coordinator.kill()
        after, _ = self.c.ask(join=join)
        self.assertEqual(before, after)

    def test_no_workers_is_said_and_not_waited_for_in_silence(self):
        self.refused_edge(r"the coordinator knows no worker that is ready yet", "--wait", "3s")


class ProgramsKeepTheirContract(unittest.TestCase):
    def run_program(self, *args):
        return subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)

    def test_help_version_and_unknown_options(self):
        for program in ("causeway", "causeway-coordinator", "causeway-worker"):
            h = self.run_program(BIN / program, "--help")
            self.assertEqual(h.returncode, 0)
            self.assertIn("usage", h.stdout.lower())
            v = self.run_program(BIN / program, "--version")
            self.assertEqual(v.returncode, 0)
            self.assertRegex(v.stdout, r"\d+\.\d+\.\d+")
            u = self.run_program(BIN / program, "--no-such-option")
            self.assertEqual(u.returncode, 2)
            self.assertIn("no-such-option", u.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
