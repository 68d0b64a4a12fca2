"""Predict what the GPU gate should measure, from the machine code that ships.

    python -m benchmarks.disassembly [BINARY]

For every case of benchmarks/gpu_cases.py it runs threads on the host (benchmarks/sass.py), with the parameters and the grid
of the launch, and counts what is issued: the prologue, loops as often as they are run, and idle threads. Of perturb it runs
the first thread of each warp, of CUDA's accumulate all threads of a block, whose Tally must be the CPU's. Of Triton's
accumulate it knows the bytes alone. It writes predictions_sm90.json and .md under benchmarks/results. BINARY holds the CUDA
kernels' machine code for sm_90: rsfast.ops._cuda. Triton's kernels are compiled here. Needed is a cuobjdump: the CUDA
toolkit's, or the one in Triton's package.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import HEADS, ON_GPU, Accumulate, Perturb
from benchmarks.gpu_device import find_tool
from benchmarks.launches import (
    MULTIPROCESSORS,
    Launch,
    accumulate_call,
    accumulate_launch,
    call_of,
    cuda_launch,
    extension,
    philox_launch,
    triton_launch,
)
from benchmarks.sass import Instruction
from rsfast import Tally, Votes, ops
from rsfast.heads import Head

RESULTS = Path(__file__).parent / "results"

# The kinds of instructions, and the clocks for which one of a warp keeps the pipes of its multiprocessor busy: 32 over the
# lanes of CUDA's table of arithmetic throughput at compute capability 9.0 (C++ Programming Guide). The 128 lanes of "fma"
# are two halves: floats take either, integers one, "imad". The table does not say what a product of 64 bits (IMAD.WIDE)
# takes. Here it is two turns of that half: with one, Philox words would take 0.36 ps each on an H200, with two 0.58; 0.71
# were measured (results/gpu_nvidia_h200.md). A load or store moves 128 bytes of a warp a clock.
ISSUE = 32 / 128
COSTS: tuple[tuple[str, str, dict[str, float]], ...] = (
    (r"(FFMA|FMUL|FADD)\b.*", "fma", {"fma": 0.25}),
    (r"IMAD\.(WIDE|HI)\b.*", "wide", {"fma": 0.5, "imad": 1}),
    (r"(IMAD|HFMA2)\b.*", "imad", {"fma": 0.25, "imad": 0.5}),
    (r"(MUFU|I2F|F2I|F2F)\b.*", "mufu", {"mufu": 2}),
    (r"(LDG?|LDSM?|STG|STS|REDG|ATOMG)\b.*\.128\b.*", "memory", {"memory": 4}),
    (r"(LDG?|LDSM?|STG|STS|REDG|ATOMG)\b.*\.64\b.*", "memory", {"memory": 2}),
    (r"(LDG?|LDSM?|STG|STS|REDG|ATOMG)\b.*", "memory", {"memory": 1}),
    # The constants' port, the uniform pipe and control flow: slots to issue, and nothing else that is known.
    (r"(LDC|S2R|S2UR|R2UR|CS2R|B2R|BRA|EXIT|BSSY|BSYNC|BREAK|YIELD|BAR|CALL|RET|WARPSYNC|U[A-Z0-9]+)\b.*", "other", {}),
    (r".*", "alu", {"alu": 0.5}),
)
KINDS = ("issue", "fma", "imad", "wide", "alu", "mufu", "memory")  # that the table shows; "issue" is all of them

CLOCK = 1.98e9  # of an H100 SXM and an H200 at their highest
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, by NVIDIA's data sheets

# An H200 took 1.31 to 1.44 times the bound, 1.41 in the middle, for the six cases of CUDA's perturb that are larger than
# 64 MB (results/gpu_nvidia_h200.md, counted in the machine code of its commit), and copied 4.22 TB/s. Its clock was not
# recorded, so how much of that is the clock and how much are stalls is not known.
OVER_BOUND, COPIED = 1.41, 4.22e12


def kind_of(name: str) -> tuple[str, Mapping[str, float]]:
    """Return the kind of an instruction and the clocks that it takes of pipes."""
    return next((kind, clocks) for pattern, kind, clocks in COSTS if re.fullmatch(pattern, name))


@dataclass(frozen=True)
class Work:
    """What all threads of a launch issue, by kind, and the clocks that this takes one multiprocessor, by pipe."""

    instructions: Mapping[str, float]
    clocks: Mapping[str, float]
    blocks: int

    def limit(self) -> tuple[float, str]:
        """Return the seconds of the busiest multiprocessor if its busiest pipe never waits, and the pipe's name."""
        share = -(-self.blocks // MULTIPROCESSORS) / self.blocks
        pipe = max(self.clocks, key=lambda pipe: self.clocks[pipe])
        return self.clocks[pipe] * share / CLOCK, pipe


def work_of(issued: Mapping[Instruction, int], blocks: int) -> Work:
    instructions: dict[str, float] = defaultdict(float)
    clocks: dict[str, float] = defaultdict(float)
    for instruction, warps in issued.items():
        kind, costs = kind_of(instruction.name)
        instructions["issue"] += 32 * warps
        instructions[kind] += 32 * warps
        for pipe, cost in {"issue": ISSUE, **costs}.items():
            clocks[pipe] += cost * warps
    return Work(instructions, clocks, blocks)


def predicted(nbytes: int, elements: int, work: Work | None, over_bound: float | None = OVER_BOUND) -> dict[str, Any]:
    """Return the prediction of a case: bounds from below, and what an H200 may be expected to take.

    `seconds` and `limit` are an H200's bound, `seconds_h100` an H100's. `expected_seconds` adds what was measured, where the
    work is known and there is an `over_bound`.
    """
    busy, pipe = work.limit() if work else (0.0, "")
    bounds = {device: max((busy, pipe), (nbytes / rate, "bytes")) for device, rate in BANDWIDTH.items()}
    instructions = {} if work is None else {kind: round(work.instructions.get(kind, 0) / elements, 2) for kind in KINDS}
    figures = {"seconds": bounds["H200"][0], "seconds_h100": bounds["H100"][0]}
    if work and over_bound:
        figures["expected_seconds"] = max(over_bound * busy, nbytes / COPIED)
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return {**rounded, "limit": bounds["H200"][1], "instructions": instructions}


def perturb_work(case: Perturb, launch_of: Callable[[Any], Launch]) -> Work:
    launch = launch_of(call_of(case))
    return work_of(launch.issued(), sum(number for _, number in launch.blocks))


def tally_of(case: Accumulate, heads: Sequence[Head]) -> Tally:
    tracked = torch.arange(2 * len(heads)).view(1, -1, 2) % case.classes if case.histograms and heads else None
    return Tally(1, case.classes, (Votes(), *heads), tracked_classes=tracked)


@cache
def block_issues(case: Accumulate, heads: tuple[Head, ...], y: int, binary: Path) -> Counter[Instruction]:
    """Return what block (0, y) of a launch with these heads issues. What it adds must be what backend="cpu" adds."""
    logits = 3 * torch.randn(case.batch, case.classes, generator=torch.Generator().manual_seed(1))
    found, expected = tally_of(case, heads), tally_of(case, heads)
    block = accumulate_launch(accumulate_call(logits, found), binary).block((0, y, 0))
    if y == 0:  # only this block of a tile counts votes
        ops.accumulate(logits[: int(found.n)], expected, backend="cpu")
    for name in ("n", "counts", "sums", "squares", "bin_counts", "bin_sums"):
        if not torch.equal(getattr(found, name), getattr(expected, name)):
            raise AssertionError(f"{case.what}: {name} is not what the CPU makes of the rows")
    return block.issued()


def accumulate_work(case: Accumulate, binary: Path) -> Work:
    """Return the work of a launch, as if every tile were the first, and every head the middle one of its kind."""
    kinds: dict[type[Head], list[Head]] = defaultdict(list)
    for head in HEADS[case.heads][1:]:
        kinds[type(head)].append(head)
    soft = [head for heads in kinds.values() for head in heads]
    logits = torch.empty(case.batch, case.classes)
    tiles, groups, _ = accumulate_launch(accumulate_call(logits, tally_of(case, soft)), binary).grid
    plain = replace(case, heads="votes", histograms=False)  # the first block of a tile counts votes, the others only read
    parts: list[tuple[tuple[Head, ...], int, int]]
    parts = [((), 0, tiles * (1 - len(soft))), ((), 1, tiles * (groups - 1))]
    parts += [((heads[len(heads) // 2],), 0, tiles * len(heads)) for heads in kinds.values()]
    total: Counter[Instruction] = Counter()
    for heads, y, times in parts:
        for instruction, warps in block_issues(case if heads else plain, heads, y, binary).items():
            total[instruction] += times * warps
    return work_of(total, tiles * groups)


def predictions(
    backend: str, launch_of: Callable[[Any], Launch], work_of_accumulate: Callable[[Accumulate], Work | None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the prediction of every case of perturb and accumulate."""
    for case in (*ON_GPU.perturb, *ON_GPU.noises):
        print(backend, case.what, file=sys.stderr, flush=True)
        yield case.what, predicted(case.nbytes, case.elements, perturb_work(case, launch_of))
    for logits in ON_GPU.accumulate:
        print(backend, logits.what, file=sys.stderr, flush=True)
        yield logits.what, predicted(logits.nbytes, logits.elements, work_of_accumulate(logits), None)


def table(found: Mapping[str, Mapping[str, Any]], nbytes: Mapping[str, int]) -> Iterator[str]:
    yield f"| case | {' | '.join(KINDS)} | limit | us | us, H100 | GB/s | us expected |"
    yield f"|---|{'---|' * (len(KINDS) + 5)}"
    for what, case in found.items():
        cells = [f"{case['instructions'][kind]:.2f}" if case["instructions"] else "" for kind in KINDS]
        names = ("seconds", "seconds_h100", "expected_seconds")
        times = [f"{1e6 * case[name]:.4g}" if name in case else "" for name in names]
        rate = f"{nbytes[what] / case['seconds'] / 1e9:.0f}"
        yield f"| {' | '.join([what, *cells, case['limit'], *times[:2], rate, times[2]])} |"


def report(found: Mapping[str, Mapping[str, Any]], words: str, nvcc: str) -> str:
    """Return the predictions in Markdown; `words` is the line of `philox_words`."""
    nbytes = {case.what: case.nbytes for case in (*ON_GPU.perturb, *ON_GPU.noises)}
    nbytes |= {case.what: case.nbytes for case in ON_GPU.accumulate}
    lines = [
        "# What the kernels for sm_90 should take",
        "",
        f"Machine code of nvcc {nvcc} and Triton {importlib.metadata.version('triton')}, written by",
        "`python -m benchmarks.disassembly`. Nothing here was measured on these kernels.",
        "",
        "The first columns are instructions an element by kind (prologue, loops and idle threads counted).",
        f"*us* is a bound from below for an H200: {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9} GHz whose busiest pipe",
        "never waits, whole blocks a multiprocessor, or the bytes at "
        f"{BANDWIDTH['H200'] / 1e12} TB/s ({BANDWIDTH['H100'] / 1e12} on an H100).",
        f"*expected* is {OVER_BOUND} times the busiest pipe's time, or the bytes at {COPIED / 1e12} TB/s: what an H200",
        "needed for an earlier version of these kernels, at a clock that was not recorded. Neither",
        "counts a launch, about 2 us in a CUDA graph.",
        "",
        "accumulate of CUDA is followed for a block without heads and one with a head of each kind, the middle",
        "one, which stands for all of that kind. An element is a logit, and all heads are counted for it. A warp",
        "issues an instruction as often as the thread that comes by most often. What atomics wait for in L2, and",
        "what threads wait for at barriers and for one another's results, is left out: the smaller the batch, the",
        "farther below the truth is the bound. accumulate of Triton has the bytes alone.",
        "certify is not predicted: the network's forward is unknown, and all else runs beside it.",
        "",
        words,
    ]
    for backend, predictions in found.items():
        lines += ["", f"## {backend}", "", *table(predictions, nbytes)]
    return "\n".join(lines) + "\n"


def philox_words(binary: Path) -> str:
    """Return what a word should take in the kernel that makes Philox words and nothing else."""
    rounds = 24
    launch = philox_launch(rounds, binary)
    blocks = launch.grid[0]
    seconds, pipe = work_of(launch.issued(), blocks).limit()
    return f"Philox words alone: {1e12 * seconds / (4 * rounds * launch.threads * blocks):.3f} ps a word, limit {pipe}."


def nvcc_of(binary: Path) -> str:
    """Return the version of the compiler that made a binary, as its comments say."""
    found = re.search(rb"Cuda compilation tools, release ([\d.]+)", binary.read_bytes())
    return found[1].decode() if found else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disassembly", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("binary", nargs="?", type=Path, default=extension(), help="rsfast.ops._cuda if none is given")
    binary = parser.parse_args().binary
    if binary is None or find_tool("cuobjdump") is None:
        raise SystemExit(
            "needed are cuobjdump (CUDA toolkit, or pip install triton), and rsfast.ops._cuda or another BINARY"
        )
    found = {
        "cuda": dict(
            predictions("cuda", lambda call: cuda_launch(call, binary), lambda case: accumulate_work(case, binary))
        ),
        "triton": dict(predictions("triton", triton_launch, lambda case: None)),
    }
    (RESULTS / "predictions_sm90.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "predictions_sm90.md").write_text(report(found, philox_words(binary), nvcc_of(binary)))


if __name__ == "__main__":
    main()
