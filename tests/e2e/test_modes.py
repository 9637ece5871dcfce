"""How the edge chooses its mode, and what it does when the cluster goes away in the middle of an answer."""
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

from cluster import BIN, DEMO, Cluster, PATIENCE, PROMPT, STUDENT, TEACHER, ask_local, eventually, parse_answer

HEAD = DEMO / "causeway-demo-teacher-mtp.gguf"
MODEL = "Causeway demo teacher"
FALLBACK = "Causeway demo student"


class Edge:
    """`causeway run` of one cluster, with and without a join string."""

    def __init__(self, cluster):
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("CAUSEWAY_")}
        self.env["XDG_STATE_HOME"] = str(cluster.dir / "edge-state")

    def run(self, *args, **options):
        return subprocess.run([str(BIN / "causeway"), "run", *map(str, args)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=90 * PATIENCE, env=self.env, **options)

    def start(self, *args):
        return subprocess.Popen([str(BIN / "causeway"), "run", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                stdin=subprocess.DEVNULL, env=self.env)


class Auto(unittest.TestCase):
    def test_the_cluster_is_remembered_and_missed(self):
        local, _ = ask_local()
        with Cluster() as c:
            edge = Edge(c)
            c.start_worker("a")
            eventually("every expert is on the worker", lambda: c.admin_json("status")["covered"] == 128)
            text, summary = parse_answer(edge.run("-p", PROMPT, "--json", "--join", c.join("edge"), "--wait", "30s"))
            self.assertEqual(text, local)
            self.assertIn(summary["mode"], ("split", "draft"))  # as the governor found best
            # Known by its key from now on: no join string.
            r = edge.run("-p", PROMPT, "--json", "--wait", "30s")
            text, summary = parse_answer(r)
            self.assertEqual(text, local, r.stderr)
            self.assertIn(summary["mode"], ("split", "draft"), r.stderr)
            self.assertGreater(summary["governor"]["rounds"], 0)
            # With its ticket it starts while the coordinator is down.
            c.coordinator.stop()
            r = edge.run("-p", PROMPT, "--json", "--wait", "30s")
            text, summary = parse_answer(r)
            self.assertEqual(text, local, r.stderr)
            self.assertIn(summary["mode"], ("split", "draft"), r.stderr)
            self.assertGreater(summary["governor"]["rounds"], 0)
            # Nobody there: everything is computed here, and it says why.
            for p in c.processes:
                p.stop()
            r = edge.run("-p", PROMPT, "--json", "--wait", "1s")
            text, summary = parse_answer(r)
            self.assertEqual((text, summary["mode"]), (local, "local"), r.stderr)
            self.assertRegex(r.stderr, r"mode local with .* \(.+; every expert is here\)")
            # Asked for split it fails, with a sentence.
            r = edge.run("-p", PROMPT, "--mode", "split", "--wait", "1s")
            self.assertEqual(r.returncode, 1, r.stderr)
            self.assertRegex(r.stderr, r"causeway: \S.*")

    def test_split_without_any_cluster_says_what_is_missing(self):
        with Cluster() as c:
            r = Edge(c).run("-p", PROMPT, "--mode", "split")
            self.assertEqual(r.returncode, 1)
            self.assertIn("--join", r.stderr)

    def test_a_string_for_workers_is_refused_by_the_edge(self):
        with Cluster() as c:
            for mode in ("auto", "split"):
                r = Edge(c).run("-p", PROMPT, "--mode", mode, "--join", c.join("worker"))
                self.assertEqual(r.returncode, 1)
                self.assertIn("worker", r.stderr)
                self.assertEqual(r.stdout, "")

    def test_the_join_string_may_come_by_four_ways(self):
        with Cluster() as c, tempfile.NamedTemporaryFile("w") as f:
            c.start_worker("a")
            join = c.join("edge")
            f.write(join + "\n")
            f.flush()
            common = [str(BIN / "causeway"), "run", "-q", "--mode", "split", "-p", PROMPT]
            for i, (args, stdin, env) in enumerate([(["--join", join], "", {}), (["--join", f"@{f.name}"], "", {}),
                                                    (["--join", "-"], join, {}), ([], "", {"CAUSEWAY_JOIN": join})]):
                r = subprocess.run(common + args, input=stdin, capture_output=True, text=True, timeout=90 * PATIENCE,
                                   env={**os.environ, "XDG_STATE_HOME": str(c.dir / f"edge-{i}"), **env})
                self.assertEqual(r.returncode, 0, r.stderr)
                self.assertIn("632", r.stdout)


class PredictionHead(unittest.TestCase):
    def test_the_head_drafts_and_the_text_is_the_same(self):
        local, _ = ask_local()
        with Cluster() as c:
            c.start_worker("a")
            eventually("every expert is on the worker", lambda: c.admin_json("status")["covered"] == 128)
            edge = Edge(c)
            common = ("-p", PROMPT, "--json", "--wait", "30s")
            join = ("--join", c.join("edge"))
            plain, summary = parse_answer(edge.run(*common, *join, "--mode", "split"))
            self.assertEqual((plain, summary["drafted"]), (local, 0))
            for n in (1, 2):
                r = edge.run(*common, "--mode", "draft", "--drafter", "mtp", "--draft", str(n))
                text, summary = parse_answer(r)
                self.assertEqual((text, summary["mode"]), (local, "draft"), r.stderr)
                self.assertGreater(summary["accepted"], summary["drafted"] / 2)
                self.assertLess(summary["passes"], summary["tokens"])
            # A companion and no fallback at all; the length is governed.
            for mode in ("draft", "auto"):
                text, summary = parse_answer(edge.run(*common, "-m", TEACHER, "--mtp", HEAD, "--mode", mode))
                self.assertEqual(text, local)
                self.assertGreater(summary["governor"]["rounds"], 0)
                if mode == "draft":
                    self.assertGreater(summary["governor"]["rounds_by_head"], 0)
                    self.assertGreater(summary["accepted"], 0)
            # Nobody who could, or the wrong one, is said.
            for args, words in (((), "--mtp FILE"), (("--drafter", "mtp"), "no multi-token-prediction block"),
                                (("--mtp", STUDENT), "llama"), (("--drafter", "mtp", "--mtp", HEAD, "--draft", "3"), "at most 2")):
                r = edge.run("-p", PROMPT, "-m", TEACHER, "--mode", "draft", "--wait", "30s", *args)
                self.assertEqual(r.returncode, 1, args)
                self.assertIn(words, r.stderr)

    def test_inspect_holds_a_head_against_the_model(self):
        def inspect(*args):
            r = subprocess.run([str(BIN / "causeway"), "inspect", "--json", *map(str, args)], capture_output=True, text=True, timeout=60 * PATIENCE)
            self.assertEqual(r.returncode, 0, r.stderr)
            return json.loads(r.stdout)

        self.assertNotIn("prediction_head", inspect(TEACHER))
        head = inspect(TEACHER, "--mtp", HEAD)["prediction_head"]
        self.assertTrue(head["usable"])
        self.assertEqual(head["block"], 5)
        self.assertFalse(inspect(TEACHER, "--mtp", STUDENT)["prediction_head"]["usable"])


class TheTideComesIn(unittest.TestCase):
    def test_the_fallback_goes_on_in_mid_sentence(self):
        with Cluster() as c:
            worker = c.start_worker("a")
            edge = Edge(c)
            # Hot enough never to end by itself.
            p = edge.start("-m", TEACHER, "--fallback", STUDENT, "--mode", "split", "--join", c.join("edge"), "--raw", "-p", "Once upon a time",
                           "-n", "1500", "--temp", "5", "--json")
            lines = [json.loads(p.stdout.readline()) for _ in range(30)]
            worker.popen.send_signal(signal.SIGKILL)
            gone = time.monotonic()
            # Not communicate(): it reads past what readline() has buffered.
            out, err = p.stdout.read(), p.stderr.read()
            self.assertEqual(p.wait(), 0, err)
            lines += [json.loads(line) for line in out.splitlines()]
            summary = lines.pop()["summary"]
            names = [line["model"] for line in lines]
            self.assertEqual(set(names[:30]), {MODEL})
            self.assertEqual(set(names), {MODEL, FALLBACK}, err)
            first = names.index(FALLBACK)
            self.assertEqual(set(names[first:]), {FALLBACK})
            self.assertIn(f"{FALLBACK} goes on", err)
            self.assertEqual((summary["tokens"], summary["ended_by_model"]), (1500, FALLBACK))
            self.assertGreater(summary["fallback_tokens"], 0)
            self.assertLess(time.monotonic() - gone, 45 * PATIENCE)

    def test_experts_that_nobody_has_any_more_are_waited_for_once(self):
        """The other worker is there and answers: that alone is not the big model's return."""
        facts = subprocess.run([str(BIN / "causeway"), "inspect", "--json", str(TEACHER)], capture_output=True, text=True, check=True)
        half = str(int(json.loads(facts.stdout)["expert_bytes"] * 0.575))
        with Cluster() as c:
            c.start_worker("a", "--memory", half)
            worker = c.start_worker("b", "--memory", half)
            eventually("every expert is on a worker", lambda: c.admin_json("status")["covered"] == 128)
            p = Edge(c).start("-m", TEACHER, "--fallback", STUDENT, "--mode", "split", "--join", c.join("edge"), "--raw", "-p", "Once upon a time",
                              "-n", "800", "--temp", "5", "--json", "--wait", f"{int(3 * PATIENCE)}s")
            for _ in range(30):
                p.stdout.readline()
            worker.kill()
            out, err = p.stdout.read(), p.stderr.read()
            self.assertEqual(p.wait(), 0, err)
            summary = json.loads(out.splitlines()[-1])["summary"]
            self.assertEqual((summary["changes_of_model"], summary["tokens"], summary["ended_by_model"]), (1, 800, FALLBACK), err)
            self.assertEqual(err.count("out of reach"), 1, err)

    def test_a_chat_waits_for_lost_experts_once_and_goes_back_to_them(self):
        with Cluster() as c:
            worker = c.start_worker("a")
            p = subprocess.Popen([str(a) for a in (BIN / "causeway", "chat", "-m", TEACHER, "--fallback", STUDENT, "--mode", "split", "--join", c.join("edge"),
                                                   "-n", "5", "--json")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=Edge(c).env)

            def ask():
                begin = time.monotonic()
                p.stdin.write("Hello!\n")
                p.stdin.flush()
                for line in p.stdout:
                    summary = json.loads(line).get("summary")
                    if summary:
                        return summary, time.monotonic() - begin
                raise AssertionError(p.stderr.read())

            def listed(mode, **least):
                for line in c.admin("edges", "--json").stdout.splitlines():
                    e = json.loads(line)
                    if e["mode"] == mode and all(e[k] >= n for k, n in least.items()):
                        return True
                return False

            self.assertEqual(ask()[0]["ended_by_model"], MODEL)
            eventually("the coordinator lists the answer's tokens", lambda: listed("split", tokens=5))
            worker.kill()
            lost, _ = ask()
            self.assertEqual((lost["ended_by_model"], lost["fallback_tokens"]), (FALLBACK, lost["tokens"]))
            for _ in range(2):
                known, seconds = ask()
                self.assertEqual((known["ended_by_model"], known["mode"]), (FALLBACK, "offline"))
                self.assertLess(seconds, 2 * PATIENCE)
            eventually("the coordinator lists who wrote", lambda: listed("offline", tokens=20, fallback_tokens=15))
            c.start_worker("b")
            eventually("the experts answer again", lambda: ask()[0]["ended_by_model"] == MODEL, seconds=40)
            _, err = p.communicate(timeout=30 * PATIENCE)
            self.assertEqual(p.returncode, 0, err)
            self.assertIn(f"{MODEL} can be reached again", err)
            self.assertIn(f"{FALLBACK} answers", err)

    def test_without_a_fallback_the_answer_fails_with_a_sentence(self):
        with Cluster() as c:
            worker = c.start_worker("a")
            p = Edge(c).start("-m", TEACHER, "--mode", "split", "--join", c.join("edge"), "--raw", "-p", "Once upon a time", "-n", "1500", "--temp", "5")
            self.assertTrue(p.stdout.read(100))
            worker.popen.send_signal(signal.SIGKILL)
            _, err = p.communicate(timeout=60 * PATIENCE)
            self.assertEqual(p.returncode, 1, err)
            self.assertRegex(err, r"causeway: \S.*")


if __name__ == "__main__":
    unittest.main()
