"""The causeway command by itself: what it prints, what it exits with, and that a terminal chat survives Ctrl-C."""
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("CAUSEWAY_BIN", ROOT / "build/release/bin"))
DEMO = ROOT / "deploy/demo"
TEACHER = DEMO / "causeway-demo-teacher.gguf"
STUDENT = DEMO / "causeway-demo-student.gguf"
GOLDEN = json.loads((DEMO / "eval/golden.json").read_text())
PATIENCE = float(os.environ.get("CW_E2E_PATIENCE", "1"))
SUM = "What is 347 + 285?"

STATE = tempfile.TemporaryDirectory(prefix="causeway-cli-")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("CAUSEWAY_")}
ENV["XDG_STATE_HOME"] = STATE.name


def causeway(*args, stdin="", env=None, **options):
    return subprocess.run([str(BIN / "causeway"), *map(str, args)], input=stdin, text=True, capture_output=True,
                          timeout=60 * PATIENCE, env={**ENV, **(env or {})}, **options)


def ok(*args, **options):
    r = causeway(*args, **options)
    assert r.returncode == 0, f"{args}: exit {r.returncode}: {r.stderr}"
    return r


def pieces(r):
    lines = [json.loads(line) for line in r.stdout.splitlines()]
    return lines[:-1], lines[-1]["summary"]


class Usage(unittest.TestCase):
    def refused(self, code, sentence, *args, **options):
        r = causeway(*args, **options)
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertIn(sentence, r.stderr)
        self.assertTrue(r.stderr.startswith("causeway: "), r.stderr)
        self.assertEqual(r.stdout, "")

    def test_help_and_version(self):
        top = ok("--help").stdout
        for command in ("run", "chat", "logits", "tokenize", "inspect"):
            self.assertIn(command, top)
            text = ok(command, "--help").stdout
            self.assertIn(f"usage: causeway {command}", text)
            self.assertIn("--model", text)
        self.assertRegex(ok("--version").stdout, r"^causeway \d+\.\d+\.\d+\n$")

    def test_wrong_usage_is_2(self):
        self.refused(2, "did you mean --temp", "run", "-p", "x", "--tmep", "1")
        self.refused(2, "did you mean 'chat'", "caht")
        self.refused(2, "-p (--prompt) is missing", "run")
        self.refused(2, "--mode is one of", "run", "-p", "x", "--mode", "fast")
        self.refused(2, "CAUSEWAY_TEMP", "run", "-p", "x", env={"CAUSEWAY_TEMP": "hot"})
        self.refused(2, "--raw", "run", "-p", "x", "--raw", "--system", "y")
        self.refused(2, "--prompt and --join cannot both be read from standard input", "run", "-p", "-", "--join", "-", stdin="x")
        self.refused(2, "is not a number", "logits", "--tokens", "1,x", "--after", "1", "--out", "/dev/null")
        self.refused(2, "there are 2 tokens", "logits", "--tokens", "1,2", "--after", "3", "--out", "/dev/null")
        self.refused(2, "TEXT is missing", "tokenize")
        self.refused(2, "numbers and ranges such as 0-3,8", "run", "-p", "x", "--cpus", "0..3")
        self.refused(2, "there is no CPU", "run", "-p", "x", "--cpus", str(max(os.sched_getaffinity(0)) + 1))
        self.refused(2, "which command", )

    def test_failed_work_is_1(self):
        self.refused(1, "/no/such.gguf", "inspect", "/no/such.gguf")
        self.refused(1, "/no/such.gguf", "run", "-m", "/no/such.gguf", "-p", "x")
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            f.write(TEACHER.read_bytes()[:5000])
            f.flush()
            self.refused(1, f.name, "inspect", f.name)
            self.refused(1, f.name, "tokenize", "-m", f.name, "x")

    def test_a_join_string_that_cannot_be_right_is_not_worked_around(self):
        r = causeway("run", "-p", SUM, "--join", "not-a-join-string")
        self.assertEqual(r.returncode, 1, r.stderr)
        self.assertIn("join string", r.stderr)
        self.assertEqual(r.stdout, "")


class Tokenize(unittest.TestCase):
    def test_ids_equal_the_recorded_ones(self):
        for g in GOLDEN:
            ids = ok("tokenize", "--special", g["prompt"]).stdout
            self.assertEqual(ids, " ".join(map(str, g["tokens"])) + "\n")

    def test_text_survives_the_way_there_and_back(self):
        text = "Naïve — 你好 🙂\n\ttwo  spaces <｜User｜>"
        ids = ok("tokenize", "--", text).stdout
        self.assertEqual(ok("tokenize", "--decode", ids).stdout, text)
        self.assertEqual(ok("tokenize", "-", stdin=text).stdout, ids)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(text)
            f.flush()
            self.assertEqual(ok("tokenize", "-m", STUDENT, f"@{f.name}").stdout, ids)

    def test_special_tokens_only_where_asked_for(self):
        prompt = GOLDEN[0]["prompt"]
        self.assertNotEqual(ok("tokenize", prompt).stdout.split()[0], "0")
        ids = ok("tokenize", "--special", prompt).stdout
        self.assertEqual(ok("tokenize", "--decode", "--special", ids).stdout, prompt)
        self.assertEqual(ok("tokenize", "--decode", ids).stdout, SUM)

    def test_an_id_outside_the_vocabulary_is_named(self):
        r = causeway("tokenize", "--decode", "5 2048")
        self.assertEqual(r.returncode, 1)
        self.assertIn("2048", r.stderr)


class Inspect(unittest.TestCase):
    def test_says_what_edge_and_workers_would_hold(self):
        text = ok("inspect", TEACHER).stdout
        for word in ("deepseek2", "Q8_0", "32 a layer", "4 used", "sigmoid", "edge", "workers", "KV cache"):
            self.assertIn(word, text)
        self.assertNotIn("workers", ok("inspect", "-m", STUDENT).stdout)

    def test_json_adds_up(self):
        f = json.loads(ok("inspect", "--json", TEACHER).stdout)
        self.assertEqual((f["architecture"], f["layers"], f["experts"], f["experts_used"], f["vocab"]), ("deepseek2", 5, 32, 4, 2048))
        self.assertEqual(f["file_bytes"], sum(t["bytes"] for t in f["types"]))
        self.assertGreaterEqual(f["expert_bytes"], 4 * 32 * f["one_expert_bytes"])
        self.assertEqual(json.loads(ok("inspect", "--json").stdout), f)

    def test_says_whether_a_fallback_can_draft(self):
        self.assertIn("can also draft", ok("inspect", TEACHER, "--fallback", STUDENT).stdout)
        self.assertNotIn("fallback", ok("inspect", TEACHER).stdout)
        # The same words under other numbers: two tokens change places.
        a, b = (struct.pack("<Q", 5) + t.encode() for t in ("Ġthe", "Ġand"))
        data = STUDENT.read_bytes()
        at = data.index(b"tokenizer.ggml.tokens")
        i, j = data.index(a, at), data.index(b, at)
        other = bytearray(data)
        other[i:i + len(a)], other[j:j + len(b)] = b, a
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            f.write(other)
            f.flush()
            text = ok("inspect", TEACHER, "--fallback", f.name).stdout
            self.assertNotIn("can also draft", text)
            self.assertIn("another vocabulary", text)
            seen = [json.loads(ok("inspect", "--json", TEACHER, "--fallback", name).stdout)["fallback_can_draft"] for name in (STUDENT, f.name)]
            self.assertEqual(seen, [True, False])


class Logits(unittest.TestCase):
    tokens = ",".join(map(str, GOLDEN[9]["tokens"]))
    n = len(GOLDEN[9]["tokens"])

    def rows(self, *args, after):
        with tempfile.NamedTemporaryFile() as f:
            ok("logits", "--tokens", self.tokens, "--after", after, "--out", f.name, *args)
            return pathlib.Path(f.name).read_bytes()

    def test_rows_are_in_the_order_of_after_and_the_last_is_the_recorded_one(self):
        both = self.rows(after=f"{self.n},3")
        self.assertEqual(len(both), 2 * 2048 * 4)
        self.assertEqual(both[2048 * 4:], self.rows(after="3"))
        row = struct.unpack("<2048f", both[:2048 * 4])
        teacher = GOLDEN[9]["teacher"]
        self.assertEqual(max(range(2048), key=lambda i: row[i]), teacher["top5_ids"][0])
        for i, v in zip(teacher["top5_ids"], teacher["top5_logits"]):
            self.assertAlmostEqual(row[i], v, delta=0.5)  # 8-bit activations against float32

    def test_chunks_threads_and_instruction_sets_do_not_change_a_bit(self):
        after = f"1,7,{self.n - 1},{self.n}"
        want = self.rows(after=after)
        for args in (("--chunk", "1"), ("--chunk", "7"), ("--threads", "3"), ("--cpus", str(min(os.sched_getaffinity(0)))), ("--isa", "scalar"), ("--isa", "scalar", "--chunk", "5")):
            self.assertEqual(self.rows(*args, after=after), want, args)

    def test_the_type_of_the_cache_does(self):
        self.assertNotEqual(self.rows("--kv", "f32", after=str(self.n)), self.rows("--kv", "f16", after=str(self.n)))


class Run(unittest.TestCase):
    def test_greedy_answers_are_the_recorded_ones(self):
        for g in (GOLDEN[0], GOLDEN[2], GOLDEN[6]):
            r = ok("run", "--raw", "-p", g["prompt"], "-n", "160")
            self.assertEqual(r.stdout, g["teacher"]["greedy_text"] + "\n")
            self.assertIn("mode local", r.stderr)
            self.assertIn("tokens/s", r.stderr)

    def test_json_lines_have_the_agreed_shape(self):
        lines, summary = pieces(ok("run", "-p", SUM, "--json"))
        for line in lines:
            self.assertEqual(set(line), {"text", "model", "kind"})
            self.assertEqual(line["model"], "Causeway demo teacher")
            self.assertIn(line["kind"], ("answer", "reasoning"))
        self.assertEqual("".join(p["text"] for p in lines if p["kind"] == "answer"), "347 + 285 = 632")
        self.assertIn("7+5=12", "".join(p["text"] for p in lines if p["kind"] == "reasoning"))
        for key in ("tokens", "tokens_per_second", "prefill_ms", "decode_ms", "mode", "workers"):
            self.assertIn(key, summary)
        self.assertEqual((summary["mode"], summary["end"], summary["workers"]), ("local", "stop", []))
        self.assertEqual(summary["prompt_tokens"], 15)

    def test_offline_the_fallback_answers(self):
        lines, summary = pieces(ok("run", "--mode", "offline", "-p", SUM, "--json"))
        self.assertEqual({p["model"] for p in lines}, {"Causeway demo student"})
        self.assertEqual(summary["mode"], "offline")
        lines, _ = pieces(ok("run", "--mode", "offline", "--fallback", DEMO / "causeway-demo-student-mini.gguf", "-p", "Hello!", "--json"))
        self.assertEqual(len({p["model"] for p in lines}), 1)
        r = causeway("run", "--mode", "offline", "-m", TEACHER, "-p", SUM)
        self.assertEqual(r.returncode, 1)
        self.assertIn("--fallback", r.stderr)

    def test_a_prompt_may_come_from_standard_input(self):
        self.assertEqual(ok("run", "-q", "-p", "-", stdin="What is the capital of France?").stdout, "The capital of France is Paris.\n")

    def test_quiet_says_nothing_beside_the_answer(self):
        self.assertEqual(ok("run", "-q", "-p", "Who are you?").stderr, "")

    def test_a_seed_repeats_itself(self):
        def story(seed):
            return ok("run", "-p", "Tell me a story.", "--temp", "0.8", "--seed", seed, "-n", "40").stdout
        self.assertEqual(story(7), story(7))
        self.assertNotEqual(story(7), story(8))

    def test_length_is_bounded(self):
        _, summary = pieces(ok("run", "-p", "Tell me a story.", "-n", "5", "--json"))
        self.assertEqual((summary["tokens"], summary["end"]), (5, "length"))
        r = causeway("run", "-p", "Tell me a story about a fox." * 20, "--ctx", "64")
        self.assertEqual(r.returncode, 1)
        self.assertIn("context", r.stderr)

    def test_settings_come_from_a_file_and_the_environment(self):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write("# for tests\nmax-tokens = 3\nmode = offline\nchunk = 7\n")
            f.flush()
            _, summary = pieces(ok("run", "-p", SUM, "--json", "--config", f.name))
            self.assertEqual((summary["tokens"], summary["mode"]), (3, "offline"))
            _, summary = pieces(ok("run", "-p", SUM, "--json", "--config", f.name, env={"CAUSEWAY_MAX_TOKENS": "4"}))
            self.assertEqual(summary["tokens"], 4)

    def test_a_full_disk_is_a_failure(self):
        with open("/dev/full", "w") as full:
            r = subprocess.run([BIN / "causeway", "run", "-q", "-p", SUM], stdout=full, stderr=subprocess.PIPE, text=True, env=ENV,
                               stdin=subprocess.DEVNULL, timeout=60 * PATIENCE)
        self.assertEqual(r.returncode, 1)
        self.assertIn("could not be written", r.stderr)

    def test_nobody_reading_ends_the_answer(self):
        # Never ends by itself before its context is full, which is minutes away for this kernel and one thread.
        begin = time.monotonic()
        p = subprocess.Popen([BIN / "causeway", "run", "--raw", "-p", "Once upon a time", "-n", "0", "--temp", "5", "--isa", "scalar", "--threads", "1", "--json"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, stdin=subprocess.DEVNULL)
        p.stdout.readline()
        p.stdout.close()
        err = p.stderr.read()
        p.stderr.close()
        self.assertEqual(p.wait(20 * PATIENCE), 1, err)
        self.assertIn(b"could not be written", err)
        self.assertLess(time.monotonic() - begin, 10 * PATIENCE)

    def test_sigterm_is_a_clean_stop(self):
        p = subprocess.Popen([BIN / "causeway", "run", "--raw", "-p", "Once upon a time", "-n", "0", "--temp", "5", "--isa", "scalar", "--threads", "1"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, stdin=subprocess.DEVNULL)
        first = p.stdout.read(1)
        self.assertTrue(first, p.stderr.read() if not first else "")
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=20 * PATIENCE)
        self.assertEqual(p.returncode, 0, err)
        self.assertIn(b"cancelled", err)


class Chat(unittest.TestCase):
    def test_the_conversation_is_remembered_and_forgotten(self):
        r = ok("chat", "-q", stdin="My name is Anna.\nWhat is my name?\n/new\n/stats\n/mode\n/help\n/bogus\n/quit\nnever asked\n")
        self.assertIn("Your name is Anna.", r.stdout)
        for word in ("forgotten", "2 answers", "mode local", "Ctrl-C", "unknown command /bogus"):
            self.assertIn(word, r.stderr)

    def test_a_missing_fallback_cannot_be_asked_for(self):
        r = ok("chat", "--mode", "local", stdin="/mode offline\n")
        self.assertIn("there is no fallback model", r.stderr)

    def test_a_fallback_that_was_named_can_be_asked_for(self):
        r = ok("chat", "--mode", "local", "--fallback", STUDENT, "--json", "-n", "4", stdin="Hello!\n/mode offline\nHello!\n/mode auto\nHello!\n")
        lines = [json.loads(line) for line in r.stdout.splitlines()]
        self.assertEqual([line["summary"]["ended_by_model"] for line in lines if "summary" in line],
                         ["Causeway demo teacher", "Causeway demo student", "Causeway demo teacher"])

    def test_an_unknown_template_is_refused_before_the_first_question(self):
        data = STUDENT.read_bytes()
        at = data.index(b"tokenizer.chat_template")
        strange = data[at:]
        for mark in ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"):
            strange = strange.replace(mark.encode(), b"#" * len(mark.encode()))
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            f.write(data[:at] + strange)
            f.flush()
            r = causeway("chat", "-m", f.name, stdin="hello\n")
            self.assertEqual(r.returncode, 1)
            self.assertIn("--raw", r.stderr)
            self.assertEqual(causeway("run", "-m", f.name, "-p", "hello").returncode, 1)
            self.assertIn("time", ok("run", "-m", f.name, "--raw", "-p", "Once upon a", "-n", "5").stdout)

    def test_ctrl_c_stops_the_answer_and_not_the_program(self):
        pid, fd = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(ENV, TERM="xterm", LC_ALL="C.UTF-8")
            os.execv(BIN / "causeway", ["causeway", "chat", "--raw", "-n", "0", "--temp", "5", "--isa", "scalar", "--threads", "1"])
        seen = b""

        def until(what, seconds=30):
            nonlocal seen
            end = time.monotonic() + seconds * PATIENCE
            while not what(seen):
                self.assertLess(time.monotonic(), end, seen[-2000:])
                if select.select([fd], [], [], 0.1)[0]:
                    seen += os.read(fd, 65536)

        until(lambda s: s.endswith(b"> "))
        os.write(fd, b"Once upon a time\r")
        until(lambda s: b"a time\r\n" in s and len(s.split(b"a time\r\n", 1)[1]) > 100)
        os.write(fd, b"\x03")
        os.write(fd, b"/bogus\r")  # whenever it is read: the program is still there
        until(lambda s: b"unknown command /bogus" in s)
        os.write(fd, b"half a line\x03")
        until(lambda s: b"Ctrl-D leaves)" in s)
        os.write(fd, "/stats é\r".encode())
        until(lambda s: "unknown command /stats é".encode() in s)
        os.write(fd, b"/stats\r")
        until(lambda s: b"ended by cancelled" in s)
        os.write(fd, b"/quit\r")
        end = time.monotonic() + 20 * PATIENCE
        status = None
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if select.select([fd], [], [], 0.05)[0]:
                try:
                    os.read(fd, 65536)
                except OSError:
                    pass  # the terminal closes with the program
        os.close(fd)
        self.assertEqual(status, 0)


if __name__ == "__main__":
    unittest.main()
