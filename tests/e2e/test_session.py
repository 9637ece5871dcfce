"""--session: a conversation that goes on after the program ended, cleanly or not."""
import json
import os
import signal
import subprocess
import tempfile
import unittest

from cluster import BIN, PATIENCE, TEACHER


class Chat:
    def __init__(self, directory, *args):
        self.popen = subprocess.Popen(
            [str(a) for a in (BIN / "causeway", "chat", "-m", TEACHER, "--mode", "local", "--threads", "1", "--json", "--state", f"{directory}/state",
                              "--session", f"{directory}/talk", *args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def send(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def answer(self):
        text = ""
        for line in self.popen.stdout:
            value = json.loads(line)
            if "summary" in value:
                return text, value["summary"]
            text += value.get("text", "")
        raise AssertionError(self.popen.stderr.read())

    def ask(self, question):
        self.send(question)
        return self.answer()

    def kill(self):
        self.popen.send_signal(signal.SIGKILL)
        self.popen.communicate()

    def leave(self):
        _, err = self.popen.communicate(timeout=30 * PATIENCE)
        return self.popen.returncode, err


class Session(unittest.TestCase):
    def test_nothing_is_lost_by_a_kill(self):
        with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as e:
            whole = Chat(e)
            want = [whole.ask("What is 347 + 285?"), whole.ask("Who are you?"), whole.ask("Tell me a story about a brave fox.")]
            self.assertEqual(whole.leave()[0], 0)

            chat = Chat(d)
            self.assertEqual(chat.ask("What is 347 + 285?")[0], want[0][0])
            chat.send("Who are you?")
            self.assertTrue(chat.popen.stdout.readline())  # in the middle of the answer
            chat.kill()

            chat = Chat(d)
            chat.send("/redo")
            text, summary = chat.answer()
            self.assertEqual(text, want[1][0])
            self.assertEqual(summary["reused_tokens"], want[1][1]["reused_tokens"])
            code, err = chat.leave()
            self.assertEqual(code, 0, err)
            self.assertIn("2 messages" if "2 messages" in err else "3 messages", err)
            self.assertIn("/redo answers it", err)

            chat = Chat(d)
            text, summary = chat.ask("Tell me a story about a brave fox.")
            self.assertEqual(text, want[2][0])
            self.assertEqual(summary["reused_tokens"], want[2][1]["reused_tokens"])
            self.assertEqual(chat.leave()[0], 0)

            # Nothing of it can be read without the key, by name or content.
            for name in ("talk", "talk.kv"):
                with open(f"{d}/{name}", "rb") as f:
                    self.assertNotIn(b"347", f.read())
                self.assertEqual(os.stat(f"{d}/{name}").st_mode & 0o777, 0o600)

    def test_damaged_files(self):
        with tempfile.TemporaryDirectory() as d:
            chat = Chat(d)
            first = chat.ask("What is 347 + 285?")[0]
            self.assertEqual(chat.leave()[0], 0)
            with open(f"{d}/talk.kv", "r+b") as f:
                f.truncate(1000)
            chat = Chat(d)
            chat.send("/history")
            chat.ask("Who are you?")
            code, err = chat.leave()
            self.assertEqual(code, 0, err)
            self.assertIn("the text is read again", err)
            self.assertIn(first.splitlines()[-1], err)
            with open(f"{d}/talk", "r+b") as f:
                f.seek(50)
                f.write(b"\0\0\0\0")
            code, err = Chat(d).leave()
            self.assertEqual(code, 1)
            self.assertIn("move it away", err)

    def test_one_program_at_a_time_and_new_forgets(self):
        with tempfile.TemporaryDirectory() as d:
            chat = Chat(d)
            chat.ask("What is 347 + 285?")
            code, err = Chat(d).leave()
            self.assertEqual(code, 1)
            self.assertIn("another program", err)
            chat.send("/new")
            self.assertEqual(chat.leave()[0], 0)
            chat = Chat(d)
            self.assertEqual(chat.ask("Who are you?")[1]["reused_tokens"], 0)
            self.assertEqual(chat.leave()[0], 0)


if __name__ == "__main__":
    unittest.main()
