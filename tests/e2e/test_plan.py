"""`causeway plan`: what it predicts from a link that is told, from a cluster that is measured, and whether a model fits."""
import json
import os
import subprocess
import tempfile
import unittest

from cluster import BIN, Cluster, PATIENCE, TEACHER, eventually, parse_answer

LAYERS = 4  # of the demo model, with experts


def run(*args, env=None):
    return subprocess.run([str(a) for a in (BIN / "causeway", "plan", "-q", *args)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=90 * PATIENCE, env=env)


def plan(*args, env=None):
    """(the whole object, its modes by name)"""
    r = run("--json", *args, env=env)
    assert r.returncode == 0, r.stderr
    value = json.loads(r.stdout)
    return value, {m["mode"]: m for m in value["modes"]}


class Told(unittest.TestCase):
    def test_round_trips_bound_a_far_link_and_a_draft_shares_them(self):
        value, modes = plan("--rtt", "50ms", "--accept", "0.9")
        split, draft = modes["split"], modes["draft"]
        self.assertFalse(value["measured_through_cluster"])
        most = 1000 / (LAYERS * 50)
        self.assertLess(split["tokens_per_second"], most)
        self.assertGreater(split["tokens_per_second"], most / (1.2 if PATIENCE == 1 else 5))
        self.assertIn("round trips", split["why"])
        self.assertGreater(draft["tokens_per_second"], 3 * split["tokens_per_second"])
        self.assertGreater(draft["draft"], 4)
        self.assertGreater(draft["bytes_in"], split["bytes_in"])  # wrong guesses are carried too
        self.assertTrue(modes["offline"]["possible"] and modes["local"]["possible"])

    def test_a_thin_link_is_bound_by_its_bytes(self):
        _, fast = plan("--rtt", "1ms", "--accept", "0.3")
        _, thin = plan("--rtt", "1ms", "--bandwidth", "1M", "--accept", "0.3")
        split = thin["split"]
        self.assertIn("bandwidth", split["why"])
        carried = 1e6 / 8 / (split["bytes_out"] + split["bytes_in"])
        self.assertLess(split["tokens_per_second"], carried)
        self.assertGreater(split["tokens_per_second"], carried / 2)
        self.assertLess(thin["draft"]["tokens_per_second"], split["tokens_per_second"])  # guesses that are mostly wrong
        self.assertEqual(fast["split"]["bytes_in"], split["bytes_in"])

    def test_it_says_whether_the_model_fits(self):
        value, _ = plan("--rtt", "1ms", "--memory", "64G,64G,32G")
        memory = value["memory"]
        self.assertEqual((value["workers"], memory["fits"], memory["survives_one"], memory["homes"]), (3, True, True, 3))
        self.assertEqual(memory["have_bytes"], 160 << 30)
        half = memory["need_bytes"] // 2 // (1 << 20)
        memory = plan("--rtt", "1ms", "--memory", f"{half}M,{half + 2}M")[0]["memory"]
        self.assertEqual((memory["fits"], memory["survives_one"]), (True, False))
        memory = plan("--rtt", "1ms", "--memory", f"{half}M")[0]["memory"]
        self.assertFalse(memory["fits"])
        self.assertIn("more are needed", memory["why"])
        text = run("--rtt", "20ms", "--bandwidth", "100M", "--memory", "64G,64G,32G")
        self.assertEqual(text.returncode, 0, text.stderr)
        for word in ("split", "draft", "local", "offline", "20.00 ms", "100 Mbit/s", "it fits", "any worker may go", "<- best"):
            self.assertIn(word, text.stdout)

    def test_what_is_no_amount_is_refused_by_name(self):
        for args, word in ((("--bandwidth", "much"), "--bandwidth"), (("--memory", "64G;64G"), "--memory"), (("--memory", "-1G"), "--memory")):
            r = run("--rtt", "1ms", *args)
            self.assertNotEqual(r.returncode, 0)
            self.assertIn(word, r.stderr)


class Measured(unittest.TestCase):
    def test_a_cluster_is_measured_and_another_link_imagined(self):
        with Cluster() as c:
            env = {**c.env(), "XDG_STATE_HOME": str(c.dir / "edge")}
            for name in ("a", "b"):
                c.start_worker(name)
            eventually("both hold everything", lambda: c.admin_json("status").get("min_homes") == 2, 30)
            join = c.join("edge")
            value, modes = plan("--join", join, "--accept", "0.9", env=env)
            self.assertTrue(value["measured_through_cluster"])
            self.assertEqual(value["workers"], 2)
            passes = [p["us"] for p in value["passes"]]
            self.assertEqual([p["rows"] for p in value["passes"]], [1, 5, 9, 17, 33])
            self.assertLess(passes[0], passes[-1])
            split = modes["split"]["tokens_per_second"]
            self.assertAlmostEqual(split * passes[0] / 1e6, 1, delta=0.05)  # the model of a pass goes through what was measured
            _, summary = parse_answer(c.edge("run", "-m", TEACHER, "--mode", "split", "-p", "Tell me a story about a brave fox.", "-n", "100",
                                             "--json", join=join))
            rows = summary["tokens"] + summary["prompt_tokens"]
            carried = sum(w["bytes_out"] + w["bytes_in"] for w in summary["workers"]) / rows  # without what sockets and encryption add
            predicted = modes["split"]["bytes_out"] + modes["split"]["bytes_in"]
            self.assertTrue(0.7 < carried / predicted < 1.05, f"{predicted} bytes a token predicted, {carried} carried")
            # The same workers at the end of a long thin line.
            _, far = plan("--join", join, "--rtt", "50ms", "--bandwidth", "10M", "--accept", "0.9", env=env)
            most = 1000 / (LAYERS * 50)
            self.assertTrue(most / 1.3 < far["split"]["tokens_per_second"] < most, far["split"])
            self.assertGreater(far["draft"]["tokens_per_second"], 2 * far["split"]["tokens_per_second"])

    def test_nobody_there_is_an_error_in_words(self):
        with tempfile.TemporaryDirectory() as state:
            r = run("--join", "cw-nonsense", env={**os.environ, "XDG_STATE_HOME": state})
        self.assertNotEqual(r.returncode, 0)
        self.assertTrue(r.stderr.strip())


if __name__ == "__main__":
    unittest.main()
