"""Where weights come from: the coordinator, other workers, the disk; and what happens when these break, lie or are full."""
import json
import os
import pathlib
import re
import shutil
import signal
import time
import unittest

from cluster import BIN, PROMPT, TEACHER, Cluster, ask_local, eventually


def chunks_of(c, name):
    return sorted(p for p in (c.dir / f"state-{name}" / "chunks").glob("??/*") if p.is_file())


def ready(c, name, n=128):
    """Until the coordinator has heard that the worker holds everything."""
    eventually(f"worker {name} holds {n} experts",
               lambda: any(w["name"] == name and w["state"] == "ready" and w["experts"] == n for w in map(json.loads, c.admin("workers", "--json").stdout.splitlines())))


class WeightsComeFromWhoeverHasThem(unittest.TestCase):
    def test_a_second_worker_takes_chunks_from_the_first(self):
        local, _ = ask_local()
        with Cluster() as c:
            c.start_worker("a")
            ready(c, "a")
            b = c.start_worker("b")
            ready(c, "b")
            self.assertEqual(len(chunks_of(c, "a")), len(chunks_of(c, "b")))
            self.assertEqual(c.ask()[0], local)
            self.assertTrue(b.running())

    def test_a_worker_whose_copies_are_damaged_is_named_and_the_weights_are_right_all_the_same(self):
        """The first worker gives wrong bytes (its cache was changed on disk): the second finds out by the hash, asks the
        coordinator instead, and says who it was."""
        local, _ = ask_local()
        with Cluster() as c:
            a = c.start_worker("a")
            ready(c, "a")
            for p in chunks_of(c, "a"):
                data = bytearray(p.read_bytes())
                data[len(data) // 2] ^= 1
                p.write_bytes(data)
            b = c.start_worker("b")
            ready(c, "b")
            self.assertRegex(b.err(), r'worker "a" at tcp://127\.0\.0\.1:\d+ sent bytes that are not the chunk')
            self.assertEqual(c.ask()[0], local)
            self.assertTrue(a.running())

    def test_a_worker_that_stops_giving_costs_a_retry_elsewhere(self):
        local, _ = ask_local()
        with Cluster() as c:
            a = c.start_worker("a")
            ready(c, "a")
            a.popen.send_signal(signal.SIGSTOP)
            try:
                b = c.start_worker("b")
                ready(c, "b")
            finally:
                a.popen.send_signal(signal.SIGCONT)
            self.assertRegex(b.err(), r'worker "a" at .* gives no chunks .*asking elsewhere')
            self.assertEqual(c.ask()[0], local)

    def test_a_broken_store_link_is_opened_again_and_goes_on(self):
        local, _ = ask_local()
        with Cluster() as c:
            c.coordinator.stop()
            c.start_coordinator("--store-rate", "2M")
            w = c.start_worker("a")
            eventually("some chunks are there", lambda: len(chunks_of(c, "a")) > 20)
            c.coordinator.kill()
            time.sleep(0.5)
            c.start_coordinator()
            ready(c, "a")
            self.assertTrue(w.running())
            self.assertEqual(c.ask()[0], local)

    def test_stopping_in_the_middle_of_loading_is_a_clean_stop(self):
        with Cluster() as c:
            c.coordinator.stop()
            c.start_coordinator("--store-rate", "1M")
            w = c.start_worker("a")
            eventually("some chunks are there", lambda: len(chunks_of(c, "a")) > 5)
            start = time.monotonic()
            w.popen.send_signal(signal.SIGINT)
            w.popen.send_signal(signal.SIGINT)
            self.assertEqual(w.wait(10), 0)
            self.assertLess(time.monotonic() - start, 5)


class DisksAreNotEndless(unittest.TestCase):
    def test_without_a_disk_and_with_a_small_one_everything_is_served(self):
        local, _ = ask_local()
        with Cluster() as c:
            c.start_worker("none", "--disk", "0")
            c.start_worker("small", "--disk", "2M")
            ready(c, "none")
            ready(c, "small")
            self.assertEqual(chunks_of(c, "none"), [])
            self.assertLessEqual(sum(p.stat().st_size for p in chunks_of(c, "small")), 2 << 20)
            self.assertEqual(c.ask()[0], local)

    def test_a_cache_that_cannot_be_written_is_said_once_and_does_not_matter(self):
        local, _ = ask_local()
        with Cluster() as c:
            w = c.start_worker("a", "--memory", "1M")  # makes the state directory
            eventually("it is in", lambda: "in the cluster" in w.said())
            w.kill()
            shutil.rmtree(c.dir / "state-a/chunks", ignore_errors=True)
            (c.dir / "state-a/chunks").write_text("in the way")
            w = c.start_worker("a")
            ready(c, "a")
            self.assertEqual(len(re.findall("no chunk cache", w.err())), 1)
            self.assertEqual(c.ask()[0], local)

    def test_a_short_model_file_is_a_sentence_and_never_wrong_rows(self):
        local, _ = ask_local()
        with Cluster() as c:
            copy = c.dir / "model.gguf"
            shutil.copy(TEACHER, copy)
            c.start_worker("good", "--disk", "0")
            ready(c, "good")
            w = c.start_worker("short", "--model", copy, "--memory", "1M")
            eventually("it serves", lambda: "serving" in w.said())
            w.kill()
            os.truncate(copy, copy.stat().st_size * 2 // 3)
            w = c.start_worker("short", "--model", copy)
            eventually("it says what is wrong", lambda: not w.running() or re.search("could not be loaded|short|ends|truncated|changed", w.err()))
            self.assertRegex(w.err(), "short|ends|beyond|truncated|changed|another model|bytes")
            self.assertEqual(c.ask()[0], local)


def mapped_files(pid):
    """Of a process: {(device, inode): path} of every file that is in its address space now."""
    files = {}
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        _, _, _, device, inode, *path = line.split(None, 5)
        if inode != "0":
            files[device, int(inode)] = path[0] if path else ""
    return files


class WeightsAreServedFromMemory(unittest.TestCase):
    def test_neither_worker_nor_edge_maps_a_file_of_weights_and_a_model_file_may_vanish_in_mid_answer(self):
        local, _ = ask_local(n=200)
        with Cluster() as c:
            copies = {role: c.dir / f"{role}.gguf" for role in ("worker", "edge")}
            for copy in copies.values():
                shutil.copy(TEACHER, copy)
            # One has the model file, one a cache of chunks on disk; each must be asked, so neither holds all.
            workers = [c.start_worker("file", "--model", copies["worker"], "--memory", "8M"), c.start_worker("chunks", "--memory", "8M")]
            eventually("all is held", lambda: sum(w["experts"] for w in map(json.loads, c.admin("workers", "--json").stdout.splitlines())
                                                  if w["state"] == "ready") >= 128)
            self.assertTrue(chunks_of(c, "chunks"))
            edge = c.start("edge", [BIN / "causeway", "run", "--join", c.join("edge"), "--mode", "split", "-m", copies["edge"], "-p", PROMPT,
                                    "--temp", "0", "-n", "200", "--json", "--state", c.dir / "edge"])
            eventually("the first piece", lambda: '"text"' in edge.out() or not edge.running())
            edge.popen.send_signal(signal.SIGSTOP)
            try:
                self.assertTrue(edge.running(), edge.said())
                for p in (edge, *workers):
                    files = mapped_files(p.popen.pid)
                    program = pathlib.Path(f"/proc/{p.popen.pid}/exe").stat().st_ino
                    self.assertIn(program, [inode for _, inode in files], f"{p.name}: what is mapped can be seen")
                    weights = [f for f in files.values() if f.endswith(".gguf") or "/chunks/" in f]
                    weights += [f for (_, inode), f in files.items() if inode in [x.stat().st_ino for x in copies.values()]]
                    self.assertEqual(weights, [], p.name)
                for copy in copies.values():
                    os.truncate(copy, 0)
            finally:
                edge.popen.send_signal(signal.SIGCONT)
            self.assertEqual(edge.wait(), 0, edge.said())
            pieces = [json.loads(line) for line in edge.out().splitlines() if line.strip()]
            self.assertEqual("".join(x.get("text", "") for x in pieces), local)
            self.assertTrue(all(w["calls"] > 0 for w in pieces[-1]["summary"]["workers"]), pieces[-1])
            self.assertTrue(all(w.running() for w in workers))


class TheCoordinatorMayBeAway(unittest.TestCase):
    def test_a_worker_that_is_started_again_meanwhile_serves_from_its_own_disk(self):
        local, _ = ask_local()
        with Cluster() as c:
            w = c.start_worker("a")
            ready(c, "a")
            edge = c.join("edge")
            self.assertEqual(c.ask(join=edge)[0], local)
            eventually("the state is saved", lambda: (c.dir / "state-a/saved").exists())
            time.sleep(1.2)  # what changed last goes to disk within a second
            c.coordinator.kill()
            w.kill()
            w = c.start("worker-a-again",
                        [BIN / "causeway-worker", "--name", "a", "--state", c.dir / "state-a", "--threads", "1"])
            eventually("it serves again", lambda: "serving 128 of 128" in w.said())
            self.assertIn("out of reach", w.said())
            self.assertEqual(c.ask(join=edge)[0], local)
            c.start_coordinator()
            ready(c, "a")
            self.assertEqual(c.ask(join=edge)[0], local)
            self.assertTrue(w.running())


if __name__ == "__main__":
    unittest.main()
