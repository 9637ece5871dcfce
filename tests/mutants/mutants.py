#!/usr/bin/env python3
"""Breaks the code on purpose and sees that a test notices.

  mutants.py [NAME...]     all mutants, or those named; exit status 1 when one survives

A mutant is a small change to a copy of the sources (build/mutants) that breaks a promise of docs/NUMERICS.md. Its tests
must fail with it, and must have passed without it. `deploy/test --mutants` runs this.
"""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build/mutants"
SRC = WORK / "src"
BUILD = WORK / "build"

# name: what it breaks, {file: [(old, new), ...]}, ctest's name pattern of the tests that must notice
MUTANTS = {
    "combine-order-reversed": ("rows of experts are combined in descending order of expert", {
        "common/model/src/experts_local.c": [(
            "for (int i = lower_bound(c, (uint32_t)row); i < c->n_entries && c->entries[i].row == (uint32_t)row; i++) {",
            "for (int i = lower_bound(c, (uint32_t)row + 1) - 1; i >= 0 && c->entries[i].row == (uint32_t)row; i--) {")],
    }, "test_model|golden_model_bits"),
    "accumulator-depends-on-m": ("a product of many rows rounds twice where a product of one rounds once", {
        "common/kernels/src/ref_matmul.c": [(
            "*acc = add_block(*acc, &sub, mm->a8,",
            "*acc = (row1 - row0 > 4 ? *acc : 0.0f) + add_block(row1 - row0 > 4 ? 0.0f : *acc, &sub, mm->a8,")],
    }, "test_kernels|test_matmul|golden_model_bits"),
    "rounding-only-on-the-wire": ("local experts hand over rows that were never rounded to f16", {
        "common/model/src/expert_ffn.c": [("!r->kn->row_to_f16(j->f16 + to * d, &j->e[to], y, d);",
                                           "!r->kn->row_to_f16(j->f16 + to * d, &j->e[to], y, d);\n"
                                           "        if (j->f32) memcpy(j->f32 + to * d, y, (size_t)d * sizeof *y);")],
        "common/model/src/experts_local.c": [("cw_reply_kind kind = cw_expert_reply_kind(cw_expert_set_shape(x->set, call->layer));",
                                              "cw_reply_kind kind = CW_REPLY_ROWS_F32;")],
        "common/model/src/pass_ffn.c": [("if (reply.kind != cw_expert_reply_kind(&p->e->shapes[layer]))", "if (0)")],
    }, "test_model|e2e_split"),
    "flush-to-zero-in-one-thread": ("one pool thread flushes subnormals to zero", {
        "common/par/src/pool.c": [("    cw_fp_setup();\n    while (", "    cw_fp_setup();\n    if (m->index == 1) __builtin_ia32_ldmxcsr(0x9fc0);\n    while (")],
    }, "test_pool|test_matmul|golden_model_bits"),
}


def copy_sources():
    """The tracked files as they are in the checkout; unchanged ones keep their times, so that builds are short."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    for name in filter(None, files):
        to = SRC / name
        data = (ROOT / name).read_bytes()
        if not to.exists() or to.read_bytes() != data:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            shutil.copymode(ROOT / name, to)


def build():
    log = WORK / "build.log"
    with open(log, "wb") as f:
        steps = ([["cmake", "-S", str(SRC), "-B", str(BUILD), "-G", "Ninja"]] if not BUILD.exists() else []) + [["ninja", "-C", str(BUILD)]]
        for step in steps:
            if subprocess.run(step, stdout=f, stderr=subprocess.STDOUT, check=False).returncode:
                sys.exit(f"the build failed; see {log}")


def tests_pass(pattern):
    """(whether all pass, names of those that failed); at least one must run."""
    r = subprocess.run(["ctest", "--test-dir", str(BUILD), "--no-tests=error", "-R", pattern, "-LE", "bench"],
                       capture_output=True, text=True, check=False)
    failed = [line.split(" - ")[1].split()[0] for line in r.stdout.splitlines() if line.strip().endswith(("(Failed)", "(Timeout)", "ABORTED)", "(SEGFAULT)")) and " - " in line]
    if r.returncode and not failed:
        sys.exit(f"ctest did not run: {r.stdout[-2000:]}{r.stderr}")
    return r.returncode == 0, failed


def mutate(edits):
    """Applies the edits to the copy; gives back what it takes to undo them."""
    undo = {}
    for name, changes in edits.items():
        path = SRC / name
        text = undo.setdefault(path, path.read_text())
        for old, new in changes:
            if text.count(old) != 1:
                sys.exit(f"{name}: the text to change occurs {text.count(old)} times: {old}")
            text = text.replace(old, new)
        path.write_text(text)
    return undo


def main():
    names = sys.argv[1:] or list(MUTANTS)
    unknown = [n for n in names if n not in MUTANTS]
    if unknown:
        sys.exit(f"no mutant {unknown[0]}; there are: {', '.join(MUTANTS)}")
    os.environ["CTEST_OUTPUT_ON_FAILURE"] = "0"
    copy_sources()
    survivors = 0
    for name in names:
        what, edits, pattern = MUTANTS[name]
        build()
        healthy, failed = tests_pass(pattern)
        if not healthy:
            sys.exit(f"{name}: {', '.join(failed)} fail without the mutant")
        undo = mutate(edits)
        try:
            build()
            alive, failed = tests_pass(pattern)
        finally:
            for path, text in undo.items():
                path.write_text(text)
        survivors += alive
        print(f"{'SURVIVED' if alive else 'caught'}  {name}: {what}" + ("" if alive else f" ({', '.join(failed)})"), flush=True)
    print(f"{len(names) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
