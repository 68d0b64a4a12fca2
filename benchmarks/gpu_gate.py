"""The GPU gate: build, check, test and measure on a machine with an NVIDIA GPU, in calls of ten minutes.

    python -m benchmarks.gpu_gate --out build/gate          # the first call
    python -m benchmarks.gpu_gate --out build/gate          # goes on where the first stopped; and so on
    python -m benchmarks.gpu_gate --out build/gate --retry  # runs again what failed

A call begins no section that does not fit into --budget seconds, and ends by then. The folder holds report.json and
report.md, which every row updates, the logs of tools, and the caches of compilers; keep it from call to call. A second call
repeats nothing that is finished for the same sources, device and seed. The last lines say what is left for the next one.

The sections are in gpu_sections.py, each a process of its own with limits on its time. A case is timed only if its result
is right: equal bit for bit to backend="cpu" on the same fresh random arguments, in an output that was full of NaN before.
The contenders of a case take turns, round by round, so that they drift together; times are medians, between two device
events. "eager" is a plain call; "graph" replays it as a CUDA graph, without what launches cost on the host.

The exit status is 0 if nothing failed and nothing is left, 1 if something failed, 2 if there is no GPU or a package is
missing, and 3 if nothing failed but something is left. A missing tool is reported and is no failure, nor is a target
that is not reached.

--dry-run does the same on the CPU with tiny sizes: it shows that this program works, and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import gpu_sections
from benchmarks.gpu_sections import Section
from benchmarks.report import FAILED, ROOT, VERSIONS, Report, Row, short

BUDGET = 570.0
RESERVE = 5.0  # seconds of the budget that are kept for the report
EXIT = 15.0  # seconds that a process may take to end when it is done
TRIES = 5  # processes of a section: each that is lost costs a case
DEVICE_FAULT = "the device has a fault"  # the case that met it has a row that says so
PRINTED = 6000  # characters of the table at the end: a terminal that keeps little keeps all of it


class Interrupted(BaseException):
    """SIGTERM or SIGINT: the report is written, and then the gate ends."""


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of all sections: compilers' caches in `folder`, and a home where there is none."""
    found = dict(os.environ)
    for name, place in (
        ("TRITON_CACHE_DIR", "triton"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("CUDA_CACHE_PATH", "cuda"),
    ):
        found.setdefault(name, str(folder / "cache" / place))
    if not os.access(os.path.expanduser("~"), os.W_OK):
        found["HOME"] = str(folder / "cache")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # torch.compile asks for the user's name
        found.setdefault("LOGNAME", "gate")
    found["PYTHONUNBUFFERED"] = "1"
    return found


def describe(env: dict[str, str], dry_run: bool) -> dict[str, Any]:
    """Return what the numbers depend on, asked for in a process of its own; without "device" if there is no GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu_device", *(["--dry-run"] if dry_run else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    except subprocess.SubprocessError as error:
        print(f"The device cannot be asked: {error}", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def end(process: subprocess.Popen[bytes]) -> str:
    """End a section and all that it started; return what to add if that cannot be."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    except ProcessLookupError:
        process.wait()
    except subprocess.TimeoutExpired:  # it waits within the driver
        return ", and its process cannot be ended"
    return ""


class Runner:
    """Runs sections, each to its end if its limits and the budget allow that."""

    def __init__(self, report: Report, env: dict[str, str], deadline: float) -> None:
        self.report, self.env, self.deadline = report, env, deadline

    def run(self, section: Section) -> None:
        """Run a section. A case that ends the process, or takes too long, is reported; a new process runs the others."""
        until = min(self.deadline, time.monotonic() + section.limit)
        for _ in range(TRIES):
            why = self.process(section, until)
            known, late = self.report.section(section.name), time.monotonic() >= until
            if known["state"]:  # it is done, in whatever way its process ended then
                known["note"] = why
                self.report.write()
                return
            case, known["current"] = known["current"], None
            self.report.write()
            if late and until == self.deadline:  # the budget's end, not the section's: the next call goes on
                return
            if case and not late:
                self.fail(section, case[0], why)
                self.report.finish(section.name, case[0])
            elif why != DEVICE_FAULT:
                self.fail(section, section.name, why)
                break
        self.report.section(section.name)["state"] = "given up"
        self.report.write()

    def fail(self, section: Section, case: str, why: str) -> None:
        self.report.add(Row(case, section.backend, status=FAILED, note=why, section=section.name, case=case))

    def process(self, section: Section, until: float) -> str:
        """Run one process of a section; return why it did not end well, or "" if it did."""
        arguments = [
            str(self.report.folder),
            section.name,
            section.function,
            *([section.backend] if section.backend else []),
        ]
        command = [sys.executable, "-m", "benchmarks.gpu_sections", *arguments]
        began = time.monotonic()
        # A group, to end all that it starts; not a session, which would outlive a gate that is killed, and use the GPU.
        process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp)
        why = stuck = ""
        try:
            while process.poll() is None and not (why := self.too_long(section, until)):
                time.sleep(0.1)
        finally:
            stuck = end(process)
            self.report.load()
            self.report.section(section.name)["seconds"] += time.monotonic() - began
            self.report.write()
        if why:
            return why + stuck
        code = process.returncode
        if code == gpu_sections.DEVICE_FAULT:
            return DEVICE_FAULT
        return f"its process ended with {signal.Signals(-code).name if code < 0 else f'status {code}'}" if code else ""

    def too_long(self, section: Section, until: float) -> str:
        """Return why the running process must end now, or ""."""
        self.report.load()
        known = self.report.section(section.name)
        if known["state"] and time.time() - known["ended"] > EXIT:
            return f"done, but its process did not end within {EXIT:g} s"
        current = known["current"]
        if current and time.time() - current[1] > section.case_limit:
            return f"took longer than {section.case_limit:g} s"
        return f"the section took longer than {section.limit:g} s" if time.monotonic() >= until else ""


def is_built() -> bool:
    """Return whether the extensions are there; all builds have that of the CPU, and a new machine has none."""
    return (ROOT / "rsfast" / "ops" / "_cpu.abi3.so").exists()


def resume(report: Report, about: dict[str, Any], seed: int | None, retry: bool) -> str:
    """Go on with the report of an earlier call if it is of the same sources, device and seed; else begin a new one.

    What was built is not in the folder, which may have come from another machine. Return what happened, in words.
    """
    known = report.about
    about["seed"] = known.get("seed", secrets.randbits(32)) if seed is None else seed
    other = [name for name in ("sources", "device", "seed", "dry_run") if known.get(name) != about[name]]
    if other:
        kept = report.begin_anew(about)
        told = f"a new report; the one that was here, of other {' and '.join(other)}, is {kept}" if kept else "a new report"
    else:
        told = f"goes on with {len(report.rows)} rows"
        if retry:
            report.forget_failures()
        if not is_built():
            report.forget("build")
            told += ", and builds: the extensions are not on this machine"
    report.about = about
    report.write()
    return told


def conclude(report: Report, sections: Sequence[Section], shown: int) -> int:
    """Print the rows from number `shown` on, what failed and what is left; return the exit status."""
    lines, used = [short(row) for row in report.rows], 0
    for first in range(len(lines), shown, -1):
        used += len(lines[first - 1]) + 1
        if used > PRINTED:
            shown = first
            print(f"\n(rows before these: {report.file.with_suffix('.md')})")
            break
    print("", *lines[shown:], sep="\n")
    left = [each.name for each in sections if not report.section(each.name)["state"]]
    given_up = [name for name, each in report.sections.items() if each["state"] == "given up"]
    print(f"\nReport: {report.file.with_suffix('.md')} and .json, {len(report.rows)} rows")
    slow = [f"{row.what} {row.backend} {row.mode}: {', '.join(row.missed)}" for row in report.rows if row.missed]
    failed = [short(row)[:200] for row in report.failures]
    for title, names in (
        ("Targets not reached", slow),
        ("FAILED, for --retry", failed),
        ("Given up, for --retry", given_up),
    ):
        if names:
            print(f"{title}:", *names[:20], *(["..."] if len(names) > 20 else []), sep="\n  ")
    print(f"Left for the next call: {', '.join(left) or 'nothing'}", flush=True)
    return 1 if report.failures else 3 if left else 0


def main(argv: Sequence[str] | None = None, sections: Sequence[Section] | None = None) -> int:
    """Run the command line, of other sections if any are given, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_gate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gate", help="folder of the report (build/gate)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of this call (%(default)s)")
    parser.add_argument("--retry", action="store_true", help="run again what failed in earlier calls")
    parser.add_argument("--skip-build", action="store_true", help="measure what is built already")
    parser.add_argument("--seed", type=int, help="of all that is drawn; a report names its own")
    parser.add_argument("--commit", help="what to report where the tree is a copy that git does not know")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes: shows that this program works")
    options = parser.parse_args(argv)
    deadline = time.monotonic() + options.budget - RESERVE
    folder = options.out.resolve()
    env = environment(folder)
    about = describe(env, options.dry_run)
    if missing := about.pop("missing", None):
        print(f"Install, or bring along on PYTHONPATH: {', '.join(missing)}", file=sys.stderr)
        return 2
    if not about.get("device"):
        print("There is no GPU that torch can use here; --dry-run works without.", file=sys.stderr)
        return 2
    if options.commit and about["commit"] == "unknown":
        about["commit"] = f"{options.commit} (as told)"
    about |= {"dry_run": options.dry_run, "skip_build": options.skip_build}

    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder)
    told = resume(report, about, options.seed, options.retry)
    versions = ", ".join(f"{name} {about.get(name)}" for name in VERSIONS)
    print(f"{about['device']}, {versions}, commit {about['commit']}; {told}", flush=True)
    runner, shown = Runner(report, env, deadline), len(report.rows)
    sections = (gpu_sections.DRY_RUN if options.dry_run else gpu_sections.ON_GPU) if sections is None else sections
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for section in sections:
            if not report.section(section.name)["state"] and deadline - time.monotonic() >= section.least:
                print(f"\n{section.name}", flush=True)
                runner.run(section)
    except Interrupted as stopped:
        print(f"\nStopped by {signal.Signals(stopped.args[0]).name}")
        conclude(report, sections, shown)
        return 128 + int(stopped.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return conclude(report, sections, shown)


if __name__ == "__main__":
    sys.exit(main())
