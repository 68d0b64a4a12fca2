"""How ours and theirs are timed, and the table at the end of a run."""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rsfast.ops import _cpu

RESULTS = Path(__file__).parent / "results"
ROWS: list[dict[str, Any]] = []


def record(what: str, against: str, ratio: float, target: float, detail: str, at_most: bool = False) -> None:
    """Add a row to the table: a ratio of times, the target that it is to reach or not to exceed, and what was measured."""
    row = {"what": what, "against": against, "ratio": ratio, "target": target, "at_most": at_most, "detail": detail}
    ROWS.append(row)


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15) -> tuple[float, float]:
    """Time both in turn, round by round; return the ratio theirs / ours of the medians, and the median of ours in seconds.

    Machines drift; a pair taken within one round drifts together.
    """
    ours()
    theirs()
    pairs = []
    for _ in range(rounds):
        began = time.perf_counter()
        theirs()
        between = time.perf_counter()
        ours()
        pairs.append((between - began, time.perf_counter() - between))
    their_median, our_median = (median(column) for column in zip(*pairs, strict=True))
    return their_median / our_median, our_median


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments) of a new process: what PyTorch's temporaries cost depends on the state of the heap."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put first what users ask first: how certify compares with the loop that they have."""
    items.sort(key=lambda item: item.path.name != "bench_certify.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    about = (
        f"{processor()}, {torch.get_num_threads()} threads, {_cpu.isa()}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; each ratio from one run, medians of alternating rounds"
    )
    lines = [f"{about}.", "", "| what | against | times | target | measured |", "|---|---|---|---|---|"]
    for row in ROWS:
        bound = "at most" if row["at_most"] else "at least"
        lines.append(
            f"| {row['what']} | {row['against']} | {row['ratio']:.3g} | {bound} {row['target']:g} | {row['detail']} |"
        )
    terminalreporter.write_line("\n" + "\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_{_cpu.isa()}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"cpu_{_cpu.isa()}.json").write_text(json.dumps({"about": about, "rows": ROWS}, indent=1) + "\n")
