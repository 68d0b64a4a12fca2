"""Sections for the tests of the GPU gate: they write rows, hang, crash, or leave a case half done. See test_gpu_gate.py."""

import atexit
import os
import sys
import time
from pathlib import Path

from benchmarks.report import Row


def note(job, text):
    """Append to a file what happened, as other processes see it."""
    with Path(job.folder, "happened.txt").open("a") as file:
        file.write(f"{text}\n")


def one(job, case, then=lambda: None):
    def rows():
        note(job, f"{job.name}: {case}")
        yield Row(case, seconds=1e-3)
        then()
        yield Row(f"{case}, more", seconds=2e-3)

    job.run(case, rows)


def good(job):
    for case in ("a", "b"):
        one(job, case)


def hangs(job):
    one(job, "a")
    one(job, "b", lambda: time.sleep(60))
    one(job, "c")


def aborts(job):
    one(job, "a")
    one(job, "b", os.abort)
    one(job, "c")


def raises(job):
    def fail():
        raise RuntimeError("wrong | bits\nsecond line")

    one(job, "a", fail)
    one(job, "b")


def faults(job):
    """A device error: the case fails, and what follows in the same process would fail, too."""
    one(job, "a", lambda: 1 / 0)
    if not Path(job.folder, "new process").exists():
        Path(job.folder, "new process").touch()
        from benchmarks.gpu_sections import DEVICE_FAULT

        sys.exit(DEVICE_FAULT)
    one(job, "b")


def slow(job):
    for case in "abcdefgh":
        one(job, case, lambda: time.sleep(0.5))


def not_there(job):
    raise ImportError("no such library")


def fails_once(job):
    def fail():
        if not Path(job.folder, "mended").exists():
            raise RuntimeError("not yet")

    one(job, "a", fail)
    one(job, "b")


def lingers(job):
    one(job, "a")
    atexit.register(time.sleep, 60)


def crashes_at_its_end(job):
    one(job, "a")
    atexit.register(os.abort)
