"""The sections of `gpu_gate` in their order, and how one of them runs: as cases, in a process of its own.

    python -m benchmarks.gpu_sections FOLDER SECTION MODULE:FUNCTION [BACKEND]

A fault of a GPU lasts as long as the process in which it happened, and a kernel that never ends cannot be stopped from
within. So the function of a section names a case before it begins it and writes a row as soon as it has one. Whatever ends
the process, the gate knows in which case, starts the section again, and the other cases still run.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_device import clocks
from benchmarks.report import FAILED, Report, Row

DEVICE_FAULT = 17  # the exit status after an error that a new process may not have


@dataclass(frozen=True)
class Section:
    """What one process does, and how many seconds it gets."""

    name: str
    function: str  # module:function, which takes a Job
    backend: str = ""
    limit: float = 60  # for the section
    case_limit: float = 60  # for one case of it
    least: float = 20  # the section is not begun if less is left


CHECKS, MEASURE = "benchmarks.gpu_checks", "benchmarks.gpu_measure"
CERTIFY, TOOLS = "benchmarks.gpu_certify", "benchmarks.gpu_tools"
ON_GPU = (
    Section("build", f"{TOOLS}:build", limit=240, case_limit=240, least=60),
    Section("checksums cuda", f"{CHECKS}:checksums", "cuda", limit=90),
    Section("checksums triton", f"{CHECKS}:checksums", "triton", limit=90),
    Section("sanitizer cuda", f"{TOOLS}:sanitizer", "cuda", limit=240, case_limit=120, least=60),
    Section("tests cuda", f"{TOOLS}:tests", "cuda", limit=300, case_limit=200, least=90),
    Section("kernels cuda", f"{MEASURE}:kernels", "cuda", limit=240, case_limit=45, least=40),
    Section("kernels triton", f"{MEASURE}:kernels", "triton", limit=240, case_limit=45, least=40),
    Section("certify cuda", f"{CERTIFY}:engine", "cuda", limit=240, least=40),
    Section("ncu", f"{TOOLS}:ncu", limit=180, case_limit=75, least=40),
    Section("sanitizer triton", f"{TOOLS}:sanitizer", "triton", limit=400, case_limit=180, least=60),
    Section("tests triton", f"{TOOLS}:tests", "triton", limit=500, case_limit=300, least=90),
    Section("certify triton", f"{CERTIFY}:engine", "triton", limit=240, least=40),
    Section("compiled", f"{CERTIFY}:compiled", "cuda", limit=400, case_limit=180, least=60),
)
DRY_RUN = (
    Section("build", f"{TOOLS}:build"),
    Section("checksums cpu", f"{CHECKS}:checksums", "cpu"),
    Section("sanitizer cpu", f"{TOOLS}:sanitizer", "cpu"),
    Section("tests cpu", f"{TOOLS}:tests", "cpu", limit=120, case_limit=120),
    Section("kernels cpu", f"{MEASURE}:kernels", "cpu", limit=120),
    Section("certify cpu", f"{CERTIFY}:engine", "cpu", limit=120),
    Section("ncu", f"{TOOLS}:ncu"),
)


class Job:
    """A section in its process: its cases become rows of the report."""

    def __init__(self, report: Report, name: str, backend: str = "") -> None:
        self.report, self.name, self.backend = report, name, backend
        self.dry = bool(report.about.get("dry_run"))
        self.folder = report.folder

    def generator(self, what: str) -> random.Random:
        """Return what a case draws its arguments from: the same in whichever call it runs."""
        return random.Random(f"{self.report.about.get('seed')} {what}")

    def add(self, case: str, row: Row) -> None:
        row.section, row.case = self.name, case
        row.backend = row.backend or self.backend
        if self.dry:
            row.targets = {}  # a dry run makes no claim
        self.report.add(row)

    def run(self, what: str, rows: Callable[[], Iterable[Row]]) -> None:
        """Run one case unless it is finished. An error becomes a row, so that the next case still runs."""
        if not self.report.begin(self.name, what):
            return
        try:
            for row in rows():
                self.add(what, row)
        except Exception as error:
            traceback.print_exc()
            self.add(what, Row(what, status=FAILED, note=f"{type(error).__name__}: {error}".splitlines()[0][:300]))
        self.report.finish(self.name, what)
        self.check_device()

    def check_device(self) -> None:
        """End the process if the GPU's context is lost: all that follows in it would fail."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        try:
            torch.cuda.synchronize()
        except Exception:
            traceback.print_exc()
            sys.exit(DEVICE_FAULT)


def main(folder: str, name: str, function: str, backend: str = "") -> None:
    report = Report(Path(folder))
    job = Job(report, name, backend)
    known = report.section(name)
    known["clocks"] = [*known["clocks"], clocks()]
    module, attribute = function.split(":")
    getattr(import_module(module), attribute)(job)
    known["clocks"].append(clocks())
    known["state"], known["ended"] = "done", time.time()
    report.write()


if __name__ == "__main__":
    main(*sys.argv[1:])
