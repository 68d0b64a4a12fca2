"""The GPU gate's report: rows, what has been finished, and what the numbers depend on, in a file that every row updates.

The file is the gate's only state: the process of a section adds to it, and a later call goes on from it. Torch is not
imported here, so the process that starts all others needs no GPU and cannot be stopped by a fault of one.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("driver", "torch", "triton", "nvcc", "python")  # of what the numbers depend on
MEASURED, PASSED, FAILED, ABSENT = "measured", "passed", "FAILED", "not measured"


@dataclass
class Row:
    """A line of the table: one case on one backend, or why there is no result."""

    what: str
    backend: str = ""
    mode: str = ""
    status: str = MEASURED
    seconds: float | None = None  # a call of ours, median
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    bytes: int | None = None  # the fewest that must be read and written
    of_floor: float | None = None  # the larger of the floors, as a part of our time
    predicted: float | None = None  # seconds, from the disassembly
    times: dict[str, float] = field(default_factory=dict)  # a competitor's seconds over ours
    targets: dict[str, float] = field(default_factory=dict)  # the least of `times`, or of "floor"
    note: str = ""
    section: str = ""
    case: str = ""  # of the section

    @property
    def missed(self) -> dict[str, float]:
        """The targets that are not reached."""
        found = self.times | ({} if self.of_floor is None else {"floor": self.of_floor})
        return {name: least for name, least in self.targets.items() if found.get(name, least) < least}


def show(value: float | None, units: str = "s") -> str:
    """Return a value with three digits and a unit: seconds ("s") or bytes ("B")."""
    if value is None:
        return ""
    scales = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")), "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}[units]
    scale, name = next((pair for pair in scales if value >= pair[0]), scales[-1])
    return f"{value / scale:.3g} {name}"


COLUMNS = (
    *("what", "backend", "timed", "result", "median", "20 to 80 %", "bytes", "of floor"),
    *("predicted", "of predicted", "times as fast", "missed", "note"),
)


def cells(row: Row) -> list[str]:
    """Return the row as the table shows it."""
    spread = "" if row.low is None else f"{show(row.low)} to {show(row.high)}"
    part = "" if row.of_floor is None else f"{row.of_floor:.2g}"
    ratio = f"{row.seconds / row.predicted:.3g}" if row.seconds and row.predicted else ""
    times = ", ".join(f"{name} {value:.3g}" for name, value in row.times.items())
    missed = ", ".join(f"{name} {least:g}" for name, least in row.missed.items())
    shown = [row.what, row.backend, row.mode, row.status, show(row.seconds), spread, show(row.bytes, "B"), part]
    shown += [show(row.predicted), ratio, times, missed, row.note]
    return [cell.replace("|", "/").replace("\n", " ") for cell in shown]


def short(row: Row) -> str:
    """Return the row on one short line of a terminal."""
    what, backend, mode, status, median, _, _, part, _, ratio, times, missed, note = cells(row)
    named = (("of floor", part), ("of predicted", ratio), ("times", times), ("missed", missed), ("", note[:100]))
    parts = [" ".join((name, text)).strip() for name, text in named if text]
    head = " ".join(text for text in (what, backend, mode, status if status != MEASURED else "", median) if text)
    return "; ".join((head, *parts))


class Report:
    """The rows and the sections so far, in report.json and report.md of a folder.

    One process at a time writes: that of the running section, and between sections that of the gate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "report.json"
        self.about: dict[str, Any] = {}
        self.sections: dict[str, dict[str, Any]] = {}
        self.rows: list[Row] = []
        self.load()

    def load(self) -> None:
        """Read what other processes wrote."""
        if self.file.exists():
            state = json.loads(self.file.read_text())
            self.about, self.sections = state["about"], state["sections"]
            self.rows = [Row(**row) for row in state["rows"]]

    def begin_anew(self, about: dict[str, Any]) -> str:
        """Begin an empty report. Rename the one that is there, of other sources or another device; return its new name."""
        kept = ""
        if self.file.exists():
            number = next(n for n in range(1, 1000) if not (self.folder / f"before_{n}.json").exists())
            kept = f"before_{number}.md"
            for suffix in (".json", ".md"):
                os.replace(self.file.with_suffix(suffix), self.folder / f"before_{number}{suffix}")
        self.about, self.sections, self.rows = about, {}, []
        self.write()
        return kept

    def section(self, name: str) -> dict[str, Any]:
        """Return what is known of a section: its state, its finished cases, and the one that is running."""
        empty = {"state": "", "seconds": 0.0, "finished": [], "current": None, "clocks": [], "note": "", "ended": 0.0}
        return self.sections.setdefault(name, empty)

    def add(self, row: Row) -> None:
        """Keep a row, and print it."""
        self.rows.append(row)
        self.write()
        print(short(row), flush=True)

    def begin(self, section: str, what: str) -> bool:
        """Note that a case begins, and drop rows of an earlier try; return False if it is finished already."""
        known = self.section(section)
        if what in known["finished"]:
            return False
        self.rows = [row for row in self.rows if (row.section, row.case) != (section, what)]
        known["current"] = [what, time.time()]
        self.write()
        return True

    def finish(self, section: str, what: str) -> None:
        """Note that a case is finished, well or not."""
        known = self.section(section)
        known["current"] = None
        known["finished"].append(what)
        self.write()

    def forget_failures(self) -> None:
        """Let the cases that failed, and the sections that were given up, run again."""
        for row in self.failures:
            finished = self.section(row.section)["finished"]
            if row.case in finished:
                finished.remove(row.case)
            self.section(row.section)["state"] = ""
        self.rows = [row for row in self.rows if row.status != FAILED]
        self.write()

    def forget(self, section: str) -> None:
        """Let a whole section run again."""
        self.sections.pop(section, None)
        self.rows = [row for row in self.rows if row.section != section]

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.status == FAILED]

    def markdown(self) -> str:
        """Return the report for people."""
        about = self.about
        versions = ", ".join(f"{name} {about.get(name)}" for name in VERSIONS)
        lines = [f"# Measured on {about.get('device')}", "", "`python -m benchmarks.gpu_gate` writes this page.", ""]
        lines += ["Dry run on the CPU with tiny sizes: no claim of speed.", ""] if about.get("dry_run") else []
        lines += [
            f"{about.get('device')}, {versions}, commit {about.get('commit')}, sources {about.get('sources')}, "
            f"seed {about.get('seed')}, {about.get('date')}.",
            "Medians of alternating rounds in one process for each section; torch's settings (TF32 too) as they ship.",
            "",
            "| section | state | seconds | cases | clocks before and after |",
            "|---|---|---|---|---|",
        ]
        for name, each in self.sections.items():
            clocks = "; ".join(each["clocks"])
            state = "; ".join(filter(None, (each["state"] or "not finished", each["note"])))
            lines.append(f"| {name} | {state} | {each['seconds']:.0f} | {len(each['finished'])} | {clocks} |")
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Write both files. A reader finds each of them complete, also after a crash."""
        state = {"about": self.about, "sections": self.sections, "rows": [asdict(row) for row in self.rows]}
        for file, text in ((self.file, json.dumps(state, indent=1) + "\n"), (self.file.with_suffix(".md"), self.markdown())):
            part = file.with_suffix(f"{file.suffix}.part")
            part.write_text(text)
            os.replace(part, file)
