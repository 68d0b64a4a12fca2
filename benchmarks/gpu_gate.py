"""One command for a machine with an NVIDIA GPU: build, test, check the kernels' bits, then time them.

    python -m benchmarks.gpu_gate [--dry-run] [--skip-build] [--skip-tests] [--out DIR] [--seed SEED] [--commit COMMIT]

It writes gpu_<device>.json and .md, and prints the latter last. The exit status is 1 if the build, a test or a check failed
or no backend could run, and 2 if there is no GPU. A target that is not reached is told, and is no failure.

A case is timed only if the result is right: equal bit for bit to backend="cpu" on the same fresh random arguments, in an
output that was full of NaN before. The contenders of a case take turns, round by round, so that they drift together; times
are medians over the rounds, between two device events. A turn is a pass over several sets of inputs and outputs, more than
the cache holds. "eager" is a plain call; "graph" replays the pass as a CUDA graph, without what launches cost on the host.

--dry-run does the same on the CPU with tiny sizes, backend "cpu" against "reference", and the host's clock: it shows that
this program works, and nothing about speed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import os
import random
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rsfast
from benchmarks.cases import GRID, IMAGES, NOISE, SIGMA, TIMES_OF_GAUSSIAN, noises, torch_accumulate, torch_perturb
from benchmarks.networks import cifar_resnet110, resnet50
from benchmarks.race import Calls, Clock, EventClock, HostClock, Timing, race
from benchmarks.report import COLUMNS, ROOT, Row, line, surroundings
from rsfast import Tally, Votes, ops
from rsfast.loop2019 import Loop2019

RESULTS = ROOT / "benchmarks" / "results"
PREDICTIONS = RESULTS / "predictions_sm90.json"  # {"perturb float32 contiguous": {"ps_per_element": 1.2}, ...}
BUILD = [sys.executable, "setup.py", "build_ext", "--inplace"]
TESTS = [sys.executable, "-m", "pytest", "-m", "not noise", *(("-n", "8") if find_spec("xdist") else ())]
LIMIT = 280  # seconds for both, so that 200 are left to measure in eight minutes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TIMED = (("float32", False), ("bfloat16", False), ("bfloat16", True))  # dtype, channels_last; others are only checked

Network = tuple[str, Callable[[], nn.Module], tuple[int, ...], int, int, int]  # name, maker, shape, classes, n, batch


@dataclass(frozen=True)
class Plan:
    """What is measured, on what, and for how long."""

    device: torch.device
    backends: tuple[str, ...]
    oracle: str  # the backend whose bits are right
    copied: int  # bytes of a copy
    images: tuple[tuple[str, int, tuple[int, ...]], ...]  # name, batch, shape
    noisy: tuple[str, int, tuple[int, ...]]  # the images for every noise but Gaussian
    logits: tuple[tuple[int, int, float], ...]  # classes, batch, target
    networks: tuple[Network, ...]
    rounds: int
    budget: float  # seconds a race, after which it ends early, though not before LEAST_ROUNDS


CIFAR, IMAGENET = IMAGES["CIFAR"][1:], IMAGES["ImageNet"][1:]
OTHER_NOISES = [  # but those that an FFT shapes: its last bits depend on the device
    name for name, noise in noises(IMAGENET).items() if noise != NOISE and not noise.parameters(IMAGENET).shaper
]

ON_GPU = Plan(
    device=torch.device("cuda", 0),
    backends=("cuda", "triton"),
    oracle="cpu",
    copied=1 << 30,
    images=(("CIFAR", 1000, CIFAR), ("CIFAR", 32768, CIFAR), ("ImageNet", 64, IMAGENET), ("ImageNet", 512, IMAGENET)),
    noisy=("ImageNet", 64, IMAGENET),
    logits=((10, 1000, 20), (1000, 256, 30)),
    networks=(
        ("ResNet-110 (CIFAR)", cifar_resnet110, CIFAR, 10, 10_000, 1000),
        ("ResNet-50", resnet50, IMAGENET, 1000, 10_000, 250),
    ),
    rounds=50,
    budget=3.0,
)
DRY_RUN = Plan(
    device=torch.device("cpu"),
    backends=("cpu",),
    oracle="reference",
    copied=1 << 16,
    images=(("CIFAR", 3, (3, 8, 8)), ("ImageNet", 2, (3, 10, 10))),
    noisy=("ImageNet", 2, (3, 10, 10)),
    logits=((10, 4, 20), (30, 3, 30)),
    networks=(
        ("ResNet-110 (CIFAR)", cifar_resnet110, (3, 8, 8), 10, 10, 5),
        ("ResNet-50", resnet50, (3, 32, 32), 1000, 10, 5),
    ),
    rounds=3,
    budget=0.0,
)


# Right or wrong


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor of floats as integers."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def difference(found: Any, expected: Any) -> str:
    """Return how two tensors differ in their bits, or two Tallies in their integers; "" if they do not."""
    if isinstance(expected, Tally):
        names = ("n", "counts", "sums", "squares", "bin_counts", "bin_sums")
        return ", ".join(
            name for name in names if not torch.equal(getattr(found, name).cpu(), getattr(expected, name).cpu())
        )
    if (found.dtype, found.shape, found.stride()) != (expected.dtype, expected.shape, expected.stride()):
        return f"{found.dtype} {list(found.shape)} of strides {found.stride()}"
    wrong = bits(found) != bits(expected.to(found.device))
    count = int(wrong.sum())
    place = int(wrong.flatten().to(torch.uint8).argmax())
    return f"{count} elements, such as {place}; {int(found.isnan().sum())} are NaN" if count else ""


class Gate:
    """Checks, measures, and keeps the report."""

    def __init__(self, plan: Plan, out: Path, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.dry = plan.device.type != "cuda"
        self.clock: Clock = HostClock() if self.dry else EventClock(plan.device)
        self.rows: list[Row] = []
        self.about = {"dry_run": self.dry, "clock": self.clock.name, "seed": seed, **surroundings(plan.device)}
        self.checks = {"equal": 0, "failed": 0}
        self.failed: list[str] = []  # steps, for the exit status
        self.backends: list[str] = []
        self.bandwidth = math.nan
        self.second_a_word: float | None = None
        self._predictions = json.loads(PREDICTIONS.read_text()) if PREDICTIONS.exists() else {}
        slug = "dry_run" if self.dry else re.sub(r"[^a-z0-9]+", "_", self.about["device"].lower()).strip("_")
        self.path = out / f"gpu_{slug}"

    def add(self, row: Row) -> None:
        """Keep a row, and print it. In a dry run it makes no claim."""
        if self.dry:
            row = replace(row, what=f"dry run: {row.what}", target=None)
        if row.status == "FAILED":
            self.failed.append(row.what)
        self.rows.append(row)
        print(line(row), flush=True)

    @contextmanager
    def attempt(self, what: str, backend: str = "") -> Iterator[None]:
        """Turn an error into a row, so that the next case still runs."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self.add(Row(what, backend=backend, status="FAILED", note=note))

    def verified(
        self, what: str, expected: torch.Tensor | Tally, compute: Callable[[str], torch.Tensor | Tally]
    ) -> list[str]:
        """Return the backends whose compute(backend) is `expected`; the others get a row that says FAILED."""
        right = []
        for backend in self.backends:
            with self.attempt(what, backend):
                if found := difference(compute(backend), expected):
                    raise ArithmeticError(f"differs from backend={self.plan.oracle!r}: {found}")
                right.append(backend)
        self.checks["equal"] += len(right)
        self.checks["failed"] += len(self.backends) - len(right)
        return right

    def race(self, contenders: dict[str, Calls], mode: str = "eager") -> dict[str, Timing]:
        return race(self.clock, contenders, rounds=self.plan.rounds, budget=self.plan.budget, mode=mode)

    def floor(self, nbytes: int, words: int = 0) -> tuple[str, float]:
        """Return the larger floor's name and seconds. Rates are of large sizes: no allowance for launches."""
        floors = {"floor: bytes": nbytes / self.bandwidth}
        if words and self.second_a_word is not None:
            floors["floor: Philox words"] = words * self.second_a_word
        name = max(floors, key=lambda name: floors[name])
        return name, floors[name]

    def predicted(self, key: str, elements: int) -> float | None:
        """Return the seconds that the disassembly promises, or None."""
        return self._predictions[key]["ps_per_element"] * 1e-12 * elements if key in self._predictions else None

    def write(self) -> str:
        """Write the report as it stands, and return it in Markdown."""
        about = self.about
        versions = ", ".join(f"{name} {about[name]}" for name in ("driver", "torch", "triton", "cuda", "nvcc", "python"))
        lines = [
            f"# Ratios on {about['device']}",
            "",
            f"{about['device']}, {versions}, commit {about['commit']}{' (tree dirty)' if about['dirty'] else ''}, "
            f"{about['date']}.",
            f"Build: {about.get('build')}. Tests: {about.get('tests')}. Checks: {self.checks['equal']} equal bit for bit to "
            f"backend={self.plan.oracle!r}, {self.checks['failed']} failed; seed {self.seed}.",
            f"Medians of alternating rounds in one process, {self.clock.name}; settings of torch (TF32 too) as it ships.",
        ]
        if self.dry:
            lines.insert(2, "Dry run on the CPU with tiny sizes: no claim of speed.\n")
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(line, self.rows)]
        rows = [{**asdict(row), "reached": row.reached, "dry_run": self.dry} for row in self.rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.with_suffix(".json").write_text(
            json.dumps({"about": about, "checks": self.checks, "rows": rows}, indent=1) + "\n"
        )
        self.path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        return "\n".join(lines)


# Steps


def build(limit: float) -> tuple[bool, str]:
    """Build both extensions in place; return whether it worked, and what to report."""
    began = time.perf_counter()
    try:
        code = subprocess.run(BUILD, env={**os.environ, "RSFAST_CUDA": "1"}, cwd=ROOT, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        code = -1
    importlib.invalidate_caches()  # the extensions are new to this process
    return code == 0, f"{'done' if code == 0 else f'FAILED ({code})'} in {time.perf_counter() - began:.0f} s"


def run_tests(limit: float) -> tuple[bool, str]:
    """Run the test suite and pass its output on; return whether all passed, and its counts."""
    process = subprocess.Popen(
        TESTS,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what the tests have started ends with them
    )
    stop = threading.Timer(limit, partial(os.killpg, process.pid, signal.SIGKILL))
    stop.start()
    last = ""
    assert process.stdout is not None
    for text in process.stdout:
        print(text, end="", flush=True)
        last = text.strip() or last
    code = process.wait()
    stop.cancel()
    counts = re.findall(r"\d+ (?:passed|failed|skipped|deselected|errors?|xfailed|xpassed)", last)
    return code == 0, (", ".join(counts) or f"no counts; last: {last}") + ("" if code == 0 else f"; FAILED ({code})")


def usable_backends(gate: Gate) -> None:
    """Keep the backends that can run; a row for each that cannot."""
    for backend in gate.plan.backends:
        try:
            gate.backends.append(ops.backend_for(backend, gate.plan.device))
        except (ValueError, ImportError) as error:
            gate.add(Row("all cases", backend=backend, status="not measured", note=str(error)))


def philox_words(gate: Gate, words: int) -> Callable[[], Any]:
    """Return a call that makes so many Philox words: in registers alone on a GPU, on the CPU into memory."""
    if gate.dry:
        from rsfast.ops import _cpu

        out = np.empty(words, np.uint32)
        return lambda: _cpu.philox_words(
            seed=1, c1=0, c2=0, c3=0, first_block=0, blocks=words // 4, out=out.ctypes.data, threads=1
        )
    from rsfast.ops import _cuda

    room, device = torch.empty(1 << 20, dtype=torch.int32, device=gate.plan.device), gate.plan.device.index

    def generate() -> None:
        stream = torch.cuda.current_stream(gate.plan.device).cuda_stream
        _cuda.philox_floor(blocks=words // 4, seed=1, out=room.data_ptr(), device=device, stream=stream)

    return generate


def measure_floors(gate: Gate) -> None:
    """Measure copy bandwidth and Philox words at large sizes; the floors of all sizes follow from the two rates."""
    words = max(batch * math.prod(shape) for _, batch, shape in gate.plan.images) // 4 * 4
    sources = [torch.rand(gate.plan.copied // 4, device=gate.plan.device) for _ in range(2)]
    targets = [torch.empty_like(source) for source in sources]
    contenders: dict[str, Calls] = {
        "copy": [partial(target.copy_, source) for target, source in zip(targets, sources, strict=True)]
    }
    absent = ""
    try:
        generate = philox_words(gate, words)
        generate()
        contenders["words"] = [generate] * 4
    except Exception as error:
        absent = f"{type(error).__name__}: {error}"
    times = gate.race(contenders)
    copied = 2 * gate.plan.copied
    gate.bandwidth = copied / times["copy"].seconds
    row = Row("floor: bytes", backend="torch copy", mode="eager", bytes=copied, **asdict(times["copy"]))
    gate.add(replace(row, note=f"{gate.bandwidth / 1e9:.4g} GB/s, read and written"))
    if absent:
        gate.add(Row("floor: Philox words", status="not measured", note=absent))
        return
    gate.second_a_word = times["words"].seconds / words
    row = Row("floor: Philox words", backend="cpu" if gate.dry else "cuda", mode="eager", **asdict(times["words"]))
    gate.add(replace(row, note=f"{1e12 * gate.second_a_word:.4g} ps a word"))


@dataclass(frozen=True)
class Noisy:
    """A case of perturb: a batch of one input's samples."""

    name: str
    batch: int
    shape: tuple[int, ...]
    dtype_name: str
    channels_last: bool
    noise: str = "Gaussian"

    @property
    def key(self) -> str:
        noise = "" if self.noise == "Gaussian" else f"{self.noise} "
        return f"perturb {noise}{self.dtype_name} {'channels_last' if self.channels_last else 'contiguous'}"

    @property
    def what(self) -> str:
        return f"{self.key}, {self.name} {self.batch}"

    @property
    def elements(self) -> int:
        return self.batch * math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """x read once, the output written once."""
        return 4 * math.prod(self.shape) + self.elements * DTYPES[self.dtype_name].itemsize

    def arguments(self, generator: random.Random) -> dict[str, Any]:
        """Return fresh random arguments, on the CPU. Indices are tensors, as from the sampler: no kernel must make them."""
        return {
            "x": torch.rand(1, *self.shape),
            "seed": generator.getrandbits(64),
            "samples": generator.randrange((1 << 56) - self.batch) + torch.arange(self.batch),
            "rows": torch.zeros(self.batch, dtype=torch.int64),
            "input_ids": torch.tensor([generator.getrandbits(32)]),
        }

    def call(self, arguments: dict[str, Any], backend: str, device: torch.device) -> Callable[[], torch.Tensor]:
        """Return the call of perturb with its arguments on the device, and an output of its own, full of NaN."""
        there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        out = torch.empty(
            (self.batch, *self.shape), dtype=DTYPES[self.dtype_name], device=device, memory_format=layout
        ).fill_(torch.nan)
        noise = noises(self.shape)[self.noise]
        return partial(ops.perturb, noise=noise, **there, channels_last=self.channels_last, out=out, backend=backend)


def gate_bits(gate: Gate, case: Noisy) -> list[str]:
    """Return the backends on which a case of perturb is right."""
    arguments = case.arguments(gate.random)
    expected = case.call(arguments, gate.plan.oracle, torch.device("cpu"))()
    return gate.verified(case.what, expected, lambda backend: case.call(arguments, backend, gate.plan.device)())


def gate_perturb(gate: Gate, case: Noisy) -> None:
    """Check a case of perturb on each backend; then time it, if it is one of TIMED."""
    device, right = gate.plan.device, gate_bits(gate, case)
    if not right or (case.dtype_name, case.channels_last) not in TIMED:
        return

    sets = [case.arguments(gate.random) for _ in range(gate.clock.sets(case.nbytes))]
    contenders: dict[str, Calls] = {backend: [case.call(each, backend, device) for each in sets] for backend in right}
    contenders["torch"] = [partial(torch_perturb, each["x"].to(device), case.batch) for each in sets]
    floor_name, floor = gate.floor(case.nbytes, case.elements)
    for mode in gate.clock.modes:
        if mode == "graph" and case.nbytes > 64 << 20:  # what a launch costs is little against this
            continue
        with gate.attempt(f"{case.what}, {mode}"):
            times = gate.race(contenders, mode)
            for backend in right:
                ours = times[backend]
                row = Row(case.what, backend=backend, mode=mode, bytes=case.nbytes, **asdict(ours))
                row.of_floor = floor / ours.seconds
                row.predicted = gate.predicted(case.key, case.elements)
                ratio, target = times["torch"].seconds / ours.seconds, 10 if case.dtype_name == "bfloat16" else None
                gate.add(replace(row, against="torch, float32", ratio=ratio, target=target))
                gate.add(replace(row, against=floor_name, ratio=row.of_floor, target=0.7))


def gate_noise(gate: Gate, case: Noisy) -> None:
    """Check a case of another noise than Gaussian on each backend; then time it against that, without the launches' cost."""
    right = gate_bits(gate, case)
    if not right:
        return
    plain, device = replace(case, noise="Gaussian"), gate.plan.device
    sets = [case.arguments(gate.random) for _ in range(gate.clock.sets(case.nbytes))]
    contenders: dict[str, Calls] = {}
    for backend in right:
        contenders[backend] = [case.call(each, backend, device) for each in sets]
        contenders[f"{backend}, Gaussian"] = [plain.call(each, backend, device) for each in sets]
    mode = gate.clock.modes[-1]
    times = gate.race(contenders, mode)
    for backend in right:
        row = Row(case.what, "Gaussian", backend, mode, bytes=case.nbytes, **asdict(times[backend]))
        ratio = times[f"{backend}, Gaussian"].seconds / times[backend].seconds
        gate.add(replace(row, ratio=ratio, target=TIMES_OF_GAUSSIAN.get(case.noise)))


def torch_votes(logits: torch.Tensor) -> torch.Tensor:
    """Return the votes a class, on the host."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()


def gate_accumulate(gate: Gate, classes: int, batch: int, heads: tuple[Any, ...], target: float | None) -> None:
    """Check accumulate with these heads on each backend; then time it."""
    device = gate.plan.device
    what = f"accumulate, {f'{len(heads) - 1} soft heads' if len(heads) > 1 else 'votes'}, K = {classes}, batch {batch}"
    batches = [torch.randn(batch, classes) * 3 for _ in range(2)]
    batches[0][0, 0] = torch.nan  # a row that does not vote

    def compute(backend: str, device: torch.device = device) -> Tally:
        tracked = torch.arange(2 * (len(heads) - 1)).view(1, -1, 2) % classes  # checked here, left out where it is timed
        tally = Tally(1, classes, heads, tracked_classes=tracked, device=device)
        for logits in batches:  # the second adds to what the first left
            ops.accumulate(logits.to(device), tally, backend=backend)
        return tally

    right = gate.verified(what, compute(gate.plan.oracle, torch.device("cpu")), compute)
    if not right:
        return

    moments = 2 * 8 * (len(heads) - 1) * classes
    nbytes = 4 * batch * classes + 2 * (moments + 8 * (classes + 2))  # the tally is read and written
    sets = [torch.randn(batch, classes, device=device) * 3 for _ in range(gate.clock.sets(nbytes))]
    rows = torch.zeros(batch, dtype=torch.int64, device=device)
    tallies = {backend: Tally(1, classes, heads, device=device) for backend in right}
    contenders: dict[str, Calls] = {
        backend: [partial(ops.accumulate, logits, tallies[backend], rows=rows, backend=backend) for logits in sets]
        for backend in right
    }
    theirs = torch_accumulate if len(heads) > 1 else torch_votes
    against = {"torch": [partial(theirs, logits) for logits in sets[:2]]}  # two suffice: it takes long, and waits each time
    for mode in gate.clock.modes:
        with gate.attempt(f"{what}, {mode}"):
            times = gate.race({**contenders, **(against if mode == "eager" else {})}, mode)
            for backend in right:
                ours = times[backend]
                row = Row(what, backend=backend, mode=mode, bytes=nbytes, **asdict(ours))
                row.of_floor = gate.floor(nbytes)[1] / ours.seconds
                if mode == "eager":  # a graph cannot hold what torch's loop does on the host
                    row.against = "torch, one map at a time" if len(heads) > 1 else "torch, bincount(argmax).cpu()"
                    row.ratio, row.target = times["torch"].seconds / ours.seconds, target
                gate.add(row)


def gate_certify(
    gate: Gate, name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, n: int, batch: int
) -> None:
    """Check a batch of samples on each backend; then time certify against the 2019 loop and against the bare forward."""
    device = gate.plan.device
    what = f"certify, {name}, n = {n:,}, batch {batch}"
    full = make().to(device)
    half = copy.deepcopy(full).to(torch.bfloat16).to(memory_format=torch.channels_last)
    arguments: dict[str, Any] = {"seed": gate.random.getrandbits(64), "dtype": torch.bfloat16, "channels_last": True}
    x = torch.rand(1, *shape)
    noisy = ops.perturb(x, NOISE, samples=range(batch), backend=gate.plan.oracle, **arguments).to(device)
    expected = Tally(1, classes)
    with torch.no_grad():
        ops.accumulate(half(noisy).cpu(), expected, backend=gate.plan.oracle)
    x = x.to(device)
    arguments |= {"num_classes": classes, "batch_size": batch}
    right = gate.verified(
        f"{what}: one batch", expected, lambda backend: rsfast.sample(half, x, NOISE, n=batch, backend=backend, **arguments)
    )

    def forward(n: int) -> None:
        with torch.no_grad():
            for _ in range(math.ceil(n / batch) + 1):  # the selection, too, is one batch
                half(noisy)

    def contenders(n: int) -> dict[str, Calls]:
        loop = Loop2019(full, classes, SIGMA)
        ours: dict[str, Calls] = {
            backend: [partial(rsfast.certify, half, x, NOISE, n0=batch, n=n, backend=backend, **arguments)]
            for backend in right
        }
        return {**ours, "forward": [partial(forward, n)], "loop": [partial(loop.certify, x[0], batch, n, 0.001, batch)]}

    if right:
        small = contenders(max(batch, 10))
        times = race(gate.clock, contenders(n), rounds=7, budget=10 * gate.plan.budget, warm_up=small)
        for backend in right:
            ours = times[backend]
            row = Row(what, backend=backend, mode="eager", **asdict(ours))
            ratio = times["loop"].seconds / ours.seconds
            gate.add(replace(row, against="the 2019 loop, float32 model", ratio=ratio, target=1))
            ratio = ours.seconds / times["forward"].seconds
            gate.add(replace(row, against="the model's bare forward", ratio=ratio, target=1.05, at_most=True))


def measure(gate: Gate) -> None:
    """Check and time everything; the report is written after each part, in case the machine goes away."""
    usable_backends(gate)
    if not gate.backends:
        gate.failed.append("no backend can run")
        return
    measure_floors(gate)
    for name, batch, shape in gate.plan.images:
        for dtype_name in DTYPES:
            for channels_last in (False, True):
                case = Noisy(name, batch, shape, dtype_name, channels_last)
                with gate.attempt(case.what):
                    gate_perturb(gate, case)
    gate.write()
    for noise in OTHER_NOISES:
        for dtype_name, channels_last in TIMED:
            case = Noisy(*gate.plan.noisy, dtype_name, channels_last, noise)
            with gate.attempt(case.what):
                gate_noise(gate, case)
    gate.write()
    for classes, batch, target in gate.plan.logits:
        for heads, of_heads in ((GRID, target), ((Votes(),), None)):
            with gate.attempt(f"accumulate, K = {classes}"):
                gate_accumulate(gate, classes, batch, heads, of_heads)
    gate.write()
    for network in gate.plan.networks:
        with gate.attempt(f"certify, {network[0]}"):
            gate_certify(gate, *network)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_gate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes: shows that this program works")
    parser.add_argument("--skip-build", action="store_true", help="measure what is built already")
    parser.add_argument("--skip-tests", action="store_true", help="do not run the test suite")
    parser.add_argument("--out", type=Path, help="folder of the report (benchmarks/results; a temporary one in a dry run)")
    parser.add_argument("--seed", type=int, help="of all that is drawn; a report names its own")
    parser.add_argument("--commit", help="what to report where the tree is a copy that git does not know")
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print("There is no GPU that torch can use here; --dry-run works without.", file=sys.stderr)
        return 2

    out = options.out or (Path(tempfile.mkdtemp(prefix="gpu_gate_")) if options.dry_run else RESULTS)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    gate = Gate(DRY_RUN if options.dry_run else ON_GPU, out, seed)
    if options.commit and gate.about["dirty"] is None:
        gate.about["commit"] = f"{options.commit} (as told)"
    steps = (
        ("build", options.skip_build, f"RSFAST_CUDA=1 {shlex.join(['python', *BUILD[1:]])}", build),
        ("tests", options.skip_tests, shlex.join(["python", *TESTS[1:]]), run_tests),
    )
    deadline = time.monotonic() + LIMIT
    for name, skip, command, step in steps:
        if skip or options.dry_run:
            gate.about[name] = "skipped" if skip else f"not run, dry run ({command})"
        else:
            print(f"{name}: {command}", flush=True)
            worked, gate.about[name] = step(max(1, deadline - time.monotonic()))
            if not worked:
                gate.failed.append(name)
        print(f"{name}: {gate.about[name]}", flush=True)
    began = time.perf_counter()
    measure(gate)
    report = gate.write()
    print(f"\nMeasured in {time.perf_counter() - began:.0f} s; {gate.path}.md and .json\n\n{report}")
    if gate.failed:
        print(f"\nFAILED: {'; '.join(gate.failed)}")
    return 1 if gate.failed else 0


if __name__ == "__main__":
    sys.exit(main())
