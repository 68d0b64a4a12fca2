"""Races of ours against theirs, what pytest-benchmark records of them, and the table at the end of a run.

The plugin times one benchmark after the other, and between two of them a machine drifts. Here both contenders of a group are
timed in one race, in turn. Each then replays its rounds to the plugin, whose clock is `replayed`.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from benchmarks.race import HostClock, take_turns
from rsfast.ops import _cpu

RESULTS = Path(__file__).parent / "results"
ROWS: list[dict[str, Any]] = []
READINGS: list[float] = []
Seconds = dict[str, list[float]]  # of each round, of "ours" and of "theirs"


def replayed() -> float:
    """Return the next reading of the plugin's clock, which takes two a round."""
    return READINGS.pop()


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, **options: Any) -> Seconds:
    """Time both in turn, round by round, and return the seconds of each round; a pair within one round drifts together.

    A single round is a check: nothing is warmed up for it.
    """
    contenders = {"theirs": [theirs], "ours": [ours]}
    if rounds == 1:
        options["warm_up"] = {}
    return take_turns(HostClock(), contenders, rounds=rounds, budget=math.inf, **options)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments) of a new process: what PyTorch's temporaries cost depends on the state of the heap."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def record(
    what: str, against: str, ratio: float, target: float | None, detail: str, at_most: bool = False
) -> dict[str, Any]:
    """Add a row to the table: a ratio, the target, if any, that it is to reach or not to exceed, and what was measured."""
    row = {"what": what, "against": against, "ratio": ratio, "target": target, "at_most": at_most, "detail": detail}
    ROWS.append(row)
    return row


@cache
def run_once(fresh: bool, contest: Callable[..., Seconds], *arguments: Any) -> Seconds:
    """Return contest(*arguments), the same for both benchmarks of its group."""
    return in_fresh_process(contest, *arguments) if fresh else contest(*arguments)


@pytest.fixture(params=("ours", "theirs"))
def compare(request: Any, benchmark: Any) -> Callable[..., None]:
    """Return a function that makes of a contest a group of two benchmarks and a row of the table.

    ``contest(rounds, *arguments)`` checks the result, then returns the seconds of each round; it runs in a fresh process.
    With --benchmark-disable a single round runs, in this process, for the sake of the check. `detail` is of our median.
    """

    def compare(
        contest: Callable[..., Seconds], *arguments: Any, rounds: int = 15, detail: Callable[[float], str], **row: Any
    ) -> None:
        seconds = run_once(benchmark.enabled, contest, rounds if benchmark.enabled else 1, *arguments)
        READINGS[:] = [reading for each in seconds[request.param] for reading in (each, 0.0)]
        benchmark.group = f"{row['what']}, against {row['against']}"
        benchmark.pedantic(lambda: None, rounds=len(seconds[request.param]))
        if benchmark.enabled and request.param == "ours":
            ours, theirs = median(seconds["ours"]), median(seconds["theirs"])
            ratio = ours / theirs if row.get("at_most") else theirs / ours
            benchmark.extra_info.update(record(ratio=ratio, detail=detail(ours), **row))

    return compare


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--write-table", action="store_true", help="write the table of ratios to benchmarks/results, too")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put first what users ask first: how certify compares with the loop that they have."""
    items.sort(key=lambda item: item.path.name != "bench_certify.py")
    for item in items:
        if "compare" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=replayed))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info |= {"threads": torch.get_num_threads(), "isa": _cpu.isa(), "torch": torch.__version__}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Put the whole table into the JSON: some of its rows are no times, or of more than one process."""
    output_json["table"] = ROWS


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    if not ROWS:
        return
    cpu = config.hook.pytest_benchmark_generate_machine_info(config=config)["cpu"].get("brand_raw", "unknown CPU")
    about = (
        f"{cpu}, {torch.get_num_threads()} threads, {_cpu.isa()}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; each ratio from one run, medians of alternating rounds"
    )
    lines = [f"# Ratios on a CPU with {_cpu.isa()}", "", "`make bench` writes this page.", "", f"{about}.", ""]
    lines += ["| what | against | times | target | measured |", "|---|---|---|---|---|"]
    for row in ROWS:
        target = f"at {'most' if row['at_most'] else 'least'} {row['target']:g}" if row["target"] is not None else ""
        lines.append(f"| {row['what']} | {row['against']} | {row['ratio']:.3g} | {target} | {row['detail']} |")
    terminalreporter.write_line("\n" + "\n".join(lines))
    if config.getoption("write_table"):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"cpu_{_cpu.isa()}.md").write_text("\n".join(lines) + "\n")
