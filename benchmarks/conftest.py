"""The fixture `paired`, which times ours and theirs in turn, and the table at the end of a run."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from rsfast import _cpu

RESULTS = Path(__file__).parent / "results"
ROWS: list[dict[str, Any]] = []


def record(what: str, against: str, ratio: float, target: float, detail: str) -> None:
    """Add a row to the table. A ratio is to reach its target from below, or, where the target is a share of a time
    (certify), not to exceed it; `detail` says what was measured."""
    ROWS.append({"what": what, "against": against, "ratio": ratio, "target": target, "detail": detail})


@pytest.fixture
def paired(benchmark: Any) -> Callable[..., float]:
    """Return a function that times `theirs` and `ours` in turn, round by round, and returns the ratio of their medians.

    Machines drift; a pair taken within one round drifts together.
    """

    def run(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15) -> float:
        seconds: list[float] = []

        def setup() -> None:
            began = time.perf_counter()
            theirs()
            seconds.append(time.perf_counter() - began)

        ours()
        theirs()
        benchmark.pedantic(ours, setup=setup, rounds=rounds)
        return median(seconds) / benchmark.stats.stats.median

    return run


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    about = (
        f"{processor()}, {torch.get_num_threads()} threads, {_cpu.isa()}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; each ratio from one run, medians of alternating rounds"
    )
    lines = [f"{about}.", "", "| what | against | measured | to reach | detail |", "|---|---|---|---|---|"]
    for row in ROWS:
        lines.append("| {what} | {against} | {ratio:.3g} | {target:g} | {detail} |".format(**row))
    terminalreporter.write_line("\n" + "\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_{_cpu.isa()}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"cpu_{_cpu.isa()}.json").write_text(json.dumps({"about": about, "rows": ROWS}, indent=1) + "\n")
