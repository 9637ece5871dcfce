"""causeway bench: what it prints has the agreed shape and numbers that can be. How large they are is no test's business."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from cluster import BIN, PATIENCE, ROOT, STUDENT, TEACHER, Cluster

STATE = tempfile.TemporaryDirectory(prefix="causeway-bench-")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("CAUSEWAY_")}
ENV["XDG_STATE_HOME"] = STATE.name
PHASES = ["attention", "router", "experts", "ffn", "logits", "network", "other"]
SMALL = ("--memory-size", "16M", "-r", "2")  # memory's true speed is not asked for here


def bench(*args, env=ENV):
    return subprocess.run([str(BIN / "causeway"), "bench", *map(str, args)], stdin=subprocess.DEVNULL, text=True, capture_output=True,
                          timeout=120 * PATIENCE, env=env)


def objects(r):
    assert r.returncode == 0, r.stderr
    return [json.loads(line) for line in r.stdout.splitlines()]


class Local(unittest.TestCase):
    def check_stats(self, s, rounds):
        self.assertEqual(s["rounds"], rounds)
        self.assertGreater(s["min"], 0)
        self.assertLessEqual(s["min"], s["median"])
        self.assertLessEqual(s["median"], s["max"])

    def check_case(self, c, rounds=2):
        self.check_stats(c["tokens_per_second"], rounds)
        self.assertEqual(list(c["phases"]), PHASES)
        self.assertAlmostEqual(sum(p["share"] for p in c["phases"].values()), 1, delta=0.01)
        self.assertAlmostEqual(sum(p["weight_bytes_per_token"] for p in c["phases"].values()), c["weight_bytes_per_token"], delta=len(PHASES))
        self.assertGreater(c["gb_per_second"], 0)
        self.assertGreater(c["read_gb_per_second"], 0)
        self.assertGreater(c["read_share"], 0)

    def test_prefill_and_decode_of_the_demo_model(self):
        out = objects(bench("-p", "16", "-n", "4", "-t", "1", "--json", *SMALL))
        self.assertEqual([o["bench"] for o in out], ["prefill", "decode", "memory"])
        prefill, decode, memory = out
        for c in (prefill, decode):
            self.check_case(c)
            self.assertEqual((c["threads"], c["batch"], c["mode"], c["model"]), (1, 1, "local", "Causeway demo teacher"))
            self.assertEqual(c["phases"]["network"]["share"], 0)
            self.assertEqual(c["weight_bytes_per_token"], c["weight_bytes_per_token_here"])
        self.assertEqual((prefill["tokens"], decode["tokens"]), (16, 4))
        # 4 layers with 4 of 32 experts; a prompt shares what it reads.
        self.assertEqual(decode["experts_read_per_pass"], 16)
        self.assertGreater(prefill["experts_read_per_pass"], 16)
        self.assertLess(prefill["weight_bytes_per_token"], decode["weight_bytes_per_token"])
        self.assertEqual((memory["threads"], memory["bytes"]), (1, 16 << 20))
        self.check_stats(memory["gb_per_second"], 2)

    def test_decode_reads_what_the_file_says(self):
        """Bytes of a token against inspect's: all of a dense model but the embedding, of which a token is one row."""
        facts = json.loads(subprocess.run([BIN / "causeway", "inspect", "--json", STUDENT], capture_output=True, text=True, env=ENV, check=True).stdout)
        decode = objects(bench("-m", STUDENT, "-p", "0", "-n", "2", "-t", "1", "--json", *SMALL))[0]
        self.assertEqual(decode["phases"]["experts"]["weight_bytes_per_token"], 0)
        self.assertLess(decode["weight_bytes_per_token"], facts["edge_bytes"])
        self.assertGreater(decode["weight_bytes_per_token"], facts["edge_bytes"] / 2)

    def test_threads_and_batches_are_measured_each(self):
        out = objects(bench("-p", "0", "-n", "2", "-t", "1,2", "--batch", "1,4", "--json", *SMALL))
        seen = [(o["bench"], o["threads"], o.get("batch")) for o in out]
        self.assertEqual(seen, [(b, t, n) for t in (1, 2) for b, n in (("decode", 1), ("decode", 4), ("prefill_all_logits", 4), ("memory", None))])
        self.assertGreater(out[1]["of_prefill_all_logits"], 0)
        self.assertNotIn("of_prefill_all_logits", out[0])
        self.assertLess(out[1]["weight_bytes_per_token"], out[0]["weight_bytes_per_token"])

    def test_the_instruction_set_is_the_one_asked_for(self):
        out = objects(bench("-p", "4", "-n", "0", "-t", "1", "--isa", "scalar", "--json", *SMALL))
        self.assertEqual([(o["bench"], o.get("isa")) for o in out], [("prefill", "scalar"), ("memory", None)])

    def test_a_table_goes_to_stdout_and_progress_to_stderr(self):
        r = bench("-p", "8", "-n", "2", "-t", "1", *SMALL)
        self.assertEqual(r.returncode, 0, r.stderr)
        for word in ("prefill 8", "decode 2", "tok/s", "of read", "huge pages", "mode local"):
            self.assertIn(word, r.stdout)
        self.assertIn("round 2 of 2", r.stderr)
        self.assertEqual(bench("-p", "8", "-n", "0", "-t", "1", "-q", *SMALL).stderr, "")

    def test_memory_alone(self):
        out = objects(bench("--memory", "-t", "1,2", "--json", *SMALL))
        self.assertEqual([(o["bench"], o["threads"]) for o in out], [("memory", 1), ("memory", 2)])

    def test_kernels_of_every_instruction_set(self):
        out = objects(bench("--kernels", "-t", "1", "-r", "1", "--memory-size", "16M", "--isa", "scalar", "--json"))
        products = {(o["type"], o["m"]) for o in out if o["bench"] == "matmul"}
        self.assertTrue({("Q8_0", 1), ("Q8_0", 64), ("Q4_K", 1), ("F16", 64)} <= products)
        names = {o["name"] for o in out if o["bench"] == "kernel"}
        self.assertTrue({"rms_norm", "softmax_tile", "qk f16", "combine_f16"} <= names)
        self.assertEqual({o["isa"] for o in out}, {"scalar"})
        for o in out:
            self.assertGreater(o["gb_per_second" if o["bench"] == "kernel" else "gmac_per_second"], 0, o)

    def test_wrong_usage_is_2(self):
        for sentence, *args in (("--join", "--wire"), ("more than 256", "-t", "257"), ("0 sessions", "--batch", "0"), ("neither", "-p", "0", "-n", "0"),
                                ("is not a number", "-p", "x"), ("--rounds", "-r", "0")):
            r = bench(*args, *([] if "-r" in args else SMALL))
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn(sentence, r.stderr)
            self.assertEqual(r.stdout, "")

    def test_what_does_not_fit_is_1(self):
        r = bench("-p", "100", "-n", "0", "-t", "1", "--ctx", "64", *SMALL)
        self.assertEqual(r.returncode, 1)
        self.assertIn("do not fit", r.stderr)


class Pairs(unittest.TestCase):
    """tests/bench/pairs.py, which holds two programs against each other."""

    def pairs(self, *args):
        return subprocess.run([sys.executable, "-B", str(ROOT / "tests/bench/pairs.py"), *map(str, args)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, env=ENV, timeout=120 * PATIENCE)

    def test_ratios_of_what_both_measure(self):
        a = f"{BIN}/causeway bench --json -q -r 1 -p 8,12 -n 2 -t 1 --memory-size 16M"
        b = f"{BIN}/causeway bench --json -q -r 1 -p 12 -n 2 -t 1,2 --memory-size 16M"
        rows = objects(self.pairs("--pairs", 2, "--json", a, b))
        self.assertEqual([(r["test"], r["threads"], r["pairs"]) for r in rows], [("prefill 12", 1, 2), ("decode, batch 1", 1, 2)])
        for r in rows:
            self.assertLessEqual(r["q1"], r["a_over_b"])
            self.assertLessEqual(r["a_over_b"], r["q3"])

    def test_the_other_program_may_be_llama_bench(self):
        with tempfile.TemporaryDirectory() as d:
            lines = [{"n_prompt": 12, "n_gen": 0, "n_threads": 1, "avg_ts": 10.0}, {"n_prompt": 0, "n_gen": 2, "n_threads": 1, "avg_ts": 4.0}]
            array, rows = f"{d}/array.json", f"{d}/rows.jsonl"
            with open(array, "w") as f:
                json.dump([dict(o, avg_ts=2 * o["avg_ts"]) for o in lines], f, indent=1)
            with open(rows, "w") as f:
                f.write("a line of log\n" + "\n".join(map(json.dumps, lines)))
            out = objects(self.pairs("--pairs", 1, "--json", f"cat {array}", f"cat {rows}"))
            self.assertEqual([(r["test"], r["a"], r["b"], r["a_over_b"]) for r in out], [("prefill 12", 20, 10, 2), ("decode, batch 1", 8, 4, 2)])

    def test_nothing_in_common_is_said(self):
        r = self.pairs("--pairs", 1, "echo no", "echo no")
        self.assertEqual(r.returncode, 1)
        self.assertIn("nothing that is understood", r.stderr)


class WithACluster(unittest.TestCase):
    def test_split_and_wire(self):
        with Cluster() as c:
            c.start_worker("a")
            c.start_worker("b")
            r = c.edge("bench", "-m", TEACHER, "-p", "8", "-n", "3", "-t", "1", "--json", *SMALL)
            out = objects(r)
            self.assertEqual([o["bench"] for o in out], ["prefill", "decode", "memory"])
            decode = out[1]
            self.assertEqual(decode["mode"], "split")
            self.assertGreater(decode["phases"]["network"]["share"], 0)
            there = decode["phases"]["network"]["weight_bytes_per_token"]
            self.assertGreater(there, 0)
            self.assertEqual(decode["weight_bytes_per_token"] - decode["weight_bytes_per_token_here"], there)

            out = objects(c.edge("bench", "--wire", "-m", TEACHER, "-t", "1", "--batch", "1,8", "--json", "-q"))
            self.assertEqual([(o["rows"], o["experts_per_row"], o["busy_threads"] > 0) for o in out],
                             [(n, used, busy) for n, used in ((1, 1), (1, 4), (8, 4)) for busy in (False, True)])
            for o in out:
                self.assertGreater(o["p50_us"], 0)
                self.assertGreaterEqual(o["p99_us"], o["p50_us"])
                self.assertGreater(o["bytes_out_per_call"], o["rows"] * 128)
                self.assertEqual(o["own_core_ms_per_layer"] is None, o["busy_threads"] > 0)
            self.assertGreater(out[4]["bytes_in_per_call"], out[0]["bytes_in_per_call"])


if __name__ == "__main__":
    unittest.main()
