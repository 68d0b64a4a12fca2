"""What `gpu_gate` checks and times of the kernels: floors, perturb and accumulate, each as rows of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_cases
from benchmarks.cases import SIGMA, TIMES_OF_GAUSSIAN, noises, torch_accumulate, torch_perturb
from benchmarks.gpu_cases import DTYPES, HEADS, Accumulate, Cases, Perturb
from benchmarks.gpu_checks import verify
from benchmarks.gpu_sections import Job
from benchmarks.race import Calls, Clock, EventClock, HostClock, Timing, race
from benchmarks.report import ABSENT, PASSED, ROOT, Row
from rsfast import Tally, ops

PREDICTIONS = ROOT / "benchmarks" / "results" / "predictions_sm90.json"  # {backend: {case.what: {key: seconds}}}
PREDICTED = {"H200": "seconds", "H100": "seconds_h100"}  # the key of a GPU whose name has this
SCALE, SHIFT, CLAMP = (4.0, 4.5, 4.25), (-2.0, -2.25, -1.75), (0.0, 1.0)  # of the options, for three channels
GRAPH_BYTES = 64 << 20  # what a launch costs is little against more than this


@dataclass(frozen=True)
class Setting:
    """On what the kernels are measured, and for how long."""

    device: torch.device
    clock: Clock
    oracle: str  # the backend whose bits are right
    cases: Cases
    copied: int  # bytes of a copy
    rounds: int
    budget: float  # seconds a race, after which it ends early, though not before race.LEAST_ROUNDS

    def race(self, contenders: dict[str, Calls], mode: str = "eager") -> dict[str, Timing]:
        return race(self.clock, contenders, rounds=self.rounds, budget=self.budget, mode=mode)


def setting(dry: bool) -> Setting:
    if dry:
        return Setting(torch.device("cpu"), HostClock(), "reference", gpu_cases.DRY_RUN, 1 << 16, rounds=3, budget=0.0)
    device = torch.device("cuda", 0)
    return Setting(device, EventClock(device), "cpu", gpu_cases.ON_GPU, 1 << 30, rounds=30, budget=0.6)


# Floors


def philox_words(on: Setting, words: int) -> Callable[[], Any]:
    """Return a call that makes so many Philox words: in registers alone on a GPU, on the CPU into memory."""
    if on.device.type == "cpu":
        from rsfast.ops import _cpu

        out = np.empty(words, np.uint32)
        return lambda: _cpu.philox_words(1, 0, 0, 0, 0, words // 4, out.ctypes.data, 1)
    from rsfast.ops import _cuda

    room, index = torch.empty(1 << 20, dtype=torch.int32, device=on.device), on.device.index

    def generate() -> None:
        stream = torch.cuda.current_stream(on.device).cuda_stream
        _cuda.philox_floor(words // 4, 1, room.data_ptr(), index, stream)

    return generate


def floors(job: Job, on: Setting) -> Iterator[Row]:
    """Rates at large sizes, from which the floors of all sizes follow; there is no allowance for launches."""
    words = max(case.elements for case in on.cases.perturb) // 4 * 4
    tensors = [torch.rand(on.copied // 4, device=on.device) for _ in range(2)]
    contenders: dict[str, Calls] = {
        "copy": [partial(tensors[0].copy_, tensors[1])] * 2,
        "fill_": [partial(tensor.fill_, 0.5) for tensor in tensors],
        "normal_ float32": [partial(tensor.normal_, 0.0, SIGMA) for tensor in tensors],
        "normal_ bfloat16": [partial(tensor.bfloat16().normal_, 0.0, SIGMA) for tensor in tensors],
    }
    moved = {"copy": 2 * on.copied, "normal_ bfloat16": on.copied // 2}
    rates = job.report.section(job.name).setdefault("rates", {})
    absent = ""
    try:
        generate = philox_words(on, words)
        generate()
        contenders["Philox words"] = [generate] * 2
    except Exception as error:
        absent = f"{type(error).__name__}: {error}"
    times = on.race(contenders)
    for name in contenders:
        found = asdict(times[name])
        if name == "Philox words":
            rates["word"] = times[name].seconds / words
            yield Row(f"floor: {name}", mode="eager", note=f"{1e12 * rates['word']:.4g} ps a word", **found)
            continue
        nbytes = moved.get(name, on.copied)
        rates[name] = nbytes / times[name].seconds
        yield Row(f"floor: {name}", "torch", "eager", bytes=nbytes, note=f"{rates[name] / 1e9:.4g} GB/s", **found)
    if absent:
        yield Row("floor: Philox words", status=ABSENT, note=absent)


def floor(job: Job, nbytes: int, words: int = 0) -> float:
    """Return the larger of the floors in seconds; NaN where none was measured."""
    rates: dict[str, float] = job.report.section(job.name).get("rates", {})
    return max(nbytes / rates.get("copy", math.nan), words * rates.get("word", 0.0))


def row_of(job: Job, case: Perturb | Accumulate, mode: str, timing: Timing, **more: Any) -> Row:
    """Return the row of a timing with its floor and prediction."""
    least = floor(job, case.nbytes, case.elements if isinstance(case, Perturb) else 0)
    of_floor = None if math.isnan(least) else least / timing.seconds
    shared = {"bytes": case.nbytes, "of_floor": of_floor, "predicted": prediction(job, case.what), **asdict(timing)}
    return Row(case.what, job.backend, mode, **shared, **more)


def prediction(job: Job, what: str) -> float | None:
    """Return the seconds that the machine code promises of a case on this GPU; None where nobody predicted them."""
    keys = [key for name, key in PREDICTED.items() if name in job.report.about.get("device", "")]
    found: dict[str, float] = json.loads(PREDICTIONS.read_text()).get(job.backend, {}).get(what, {})
    return found.get(keys[0]) if keys else None


# perturb


def arguments(case: Perturb, generator: random.Random) -> dict[str, Any]:
    """Return fresh random arguments, on the CPU. Indices are tensors, as from the sampler: no kernel must make them."""
    return {
        "x": torch.rand(1, *case.shape, generator=torch.Generator().manual_seed(generator.getrandbits(60))),
        "seed": generator.getrandbits(64),
        "samples": generator.randrange((1 << 56) - case.batch) + torch.arange(case.batch),
        "rows": torch.zeros(case.batch, dtype=torch.int64),
        "input_ids": torch.tensor([generator.getrandbits(32)]),
        "scale": torch.tensor(SCALE) if case.scale else None,
        "shift": torch.tensor(SHIFT) if case.scale else None,
    }


def output(case: Perturb, device: torch.device) -> torch.Tensor:
    """Return room for a result, full of NaN."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    shape, dtype = (case.batch, *case.shape), DTYPES[case.dtype]
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout).fill_(torch.nan)


def call(case: Perturb, given: dict[str, Any], out: torch.Tensor, backend: str) -> Callable[[], torch.Tensor]:
    """Return the call of perturb with its arguments on the device of out."""
    there: dict[str, Any] = {
        name: value.to(out.device) if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    noise, clamp = noises(case.shape)[case.noise], CLAMP if case.clamp else None
    return partial(
        ops.perturb, noise=noise, **there, clamp=clamp, channels_last=case.channels_last, out=out, backend=backend
    )


def check(case: Perturb, generator: random.Random, backend: str, device: torch.device, oracle: str) -> None:
    """Raise unless a backend's result of a case, on fresh arguments, has the bits of the oracle's on the CPU."""
    given = arguments(case, generator)
    expected = call(case, given, output(case, torch.device("cpu")), oracle)()
    verify(call(case, given, output(case, device), backend)(), expected, oracle)


def expression(case: Perturb, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the same with PyTorch's generator, in the output's type: compiled it is one kernel, the honest competitor."""
    scale, shift = (torch.tensor(each, device=device).view(3, 1, 1) for each in (SCALE, SHIFT))
    dtype, shape = DTYPES[case.dtype], (case.batch, *case.shape)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        y = x + SIGMA * torch.randn(shape, dtype=dtype, device=device)
        y = y.clamp(*CLAMP) if case.clamp else y
        return (y * scale + shift if case.scale else y).to(dtype)

    return noisy


def competitors(job: Job, case: Perturb, xs: list[torch.Tensor], outs: list[torch.Tensor]) -> dict[str, Calls]:
    """Return what PyTorch does of the same, or of a part of it."""
    found: dict[str, Calls] = {"fill_": [partial(out.fill_, 0.5) for out in outs]}
    if not case.scale and not case.clamp:
        found["torch"] = [partial(torch_perturb, x, case.batch) for x in xs]
        found["normal_"] = [partial(out.normal_, 0.0, SIGMA) for out in outs]
    if case.dtype == "bfloat16" and not case.channels_last:
        plain = expression(case, xs[0].device)
        fused = plain if job.dry else torch.compile(plain, dynamic=False)  # for fewer cases than torch's limit of 8
        found["compiled"] = [partial(fused, x) for x in xs]
    return found


def those_that_run(clock: Clock, contenders: dict[str, Calls], mode: str) -> tuple[dict[str, Calls], str]:
    """Return the competitors that work here in this mode, and why others do not."""
    found, notes = {}, []
    for name, calls in contenders.items():
        try:
            calls[0]()
            if mode == "graph" and isinstance(clock, EventClock):
                clock.capture(calls[:1])
            found[name] = calls
        except Exception as error:
            notes.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:100])
    return found, "; ".join(notes)


def perturb(job: Job, on: Setting, case: Perturb) -> Iterator[Row]:
    """Check a case of perturb, then time it against what PyTorch has."""
    generator = job.generator(case.what)
    check(case, generator, job.backend, on.device, on.oracle)
    if not case.timed:
        yield Row(case.what, status=PASSED)
        return
    sets = [arguments(case, generator) for _ in range(on.clock.sets(case.nbytes))]
    outs = [output(case, on.device) for _ in sets]
    ours = [call(case, each, out, job.backend) for each, out in zip(sets, outs, strict=True)]
    theirs = competitors(job, case, [each["x"].to(on.device) for each in sets], outs)
    targets = {"floor": 0.7, **({"torch": 10.0} if case.dtype == "bfloat16" and "torch" in theirs else {})}
    for mode in on.clock.modes:
        if mode == "graph" and case.nbytes > GRAPH_BYTES:
            continue
        usable, note = those_that_run(on.clock, theirs, mode)
        times = on.race({"ours": ours, **usable}, mode)
        ratios = {name: times[name].seconds / times["ours"].seconds for name in usable}
        # A plain call of a small batch takes what its launch costs: only a graph can reach the floor.
        timed = "graph" in on.clock.modes and mode == "eager" and case.nbytes <= GRAPH_BYTES
        yield row_of(job, case, mode, times["ours"], times=ratios, targets={} if timed else targets, note=note)


def other_noise(job: Job, on: Setting, case: Perturb) -> Iterator[Row]:
    """Check a case of another noise than Gaussian, then time it against that, without the launches' cost."""
    generator = job.generator(case.what)
    check(case, generator, job.backend, on.device, on.oracle)
    plain = Perturb(case.images, case.batch, case.shape, case.dtype, case.channels_last)
    sets = [(arguments(case, generator), output(case, on.device)) for _ in range(on.clock.sets(case.nbytes))]
    contenders: dict[str, Calls] = {
        name: [call(each, given, out, job.backend) for given, out in sets]
        for name, each in (("ours", case), ("Gaussian", plain))
    }
    mode = on.clock.modes[-1]
    times = on.race(contenders, mode)
    targets = {"Gaussian": TIMES_OF_GAUSSIAN[case.noise]} if case.noise in TIMES_OF_GAUSSIAN else {}
    ratio = times["Gaussian"].seconds / times["ours"].seconds
    yield row_of(job, case, mode, times["ours"], times={"Gaussian": ratio}, targets=targets)


# accumulate


def torch_votes(logits: torch.Tensor) -> torch.Tensor:
    """Return the votes a class, on the host."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()


def tally_of(case: Accumulate, device: torch.device, histograms: bool) -> Tally:
    heads = HEADS[case.heads]
    tracked = torch.arange(2 * (len(heads) - 1)).view(1, -1, 2) % case.classes if histograms and len(heads) > 1 else None
    return Tally(1, case.classes, heads, tracked_classes=tracked, device=device)


def accumulate(job: Job, on: Setting, case: Accumulate) -> Iterator[Row]:
    """Check accumulate into a Tally that is not empty, with a row that does not vote; then time it."""
    seeded = torch.Generator().manual_seed(job.generator(case.what).getrandbits(60))
    batches = [torch.randn(case.batch, case.classes, generator=seeded) * 3 for _ in range(2)]
    batches[0][0, 0] = torch.nan

    def compute(backend: str, device: torch.device) -> Tally:
        tally = tally_of(case, device, case.histograms)
        for logits in batches:
            ops.accumulate(logits.to(device), tally, backend=backend)
        return tally

    verify(compute(job.backend, on.device), compute(on.oracle, torch.device("cpu")), on.oracle)
    sets = [torch.randn(case.batch, case.classes, device=on.device) * 3 for _ in range(on.clock.sets(case.nbytes))]
    rows = torch.zeros(case.batch, dtype=torch.int64, device=on.device)

    def contender(histograms: bool) -> Calls:
        tally = tally_of(case, on.device, histograms)
        return [partial(ops.accumulate, logits, tally, rows=rows, backend=job.backend) for logits in sets]

    ours, theirs = contender(case.histograms), {}
    if case.histograms:
        theirs["without histograms"] = contender(False)
    else:  # two sets suffice: it takes long, and waits each time, so that it fits into no graph
        plain = torch_accumulate if len(HEADS[case.heads]) > 1 else torch_votes
        theirs["torch"] = [partial(plain, logits) for logits in sets[:2]]
    for mode in on.clock.modes:
        rivals = theirs if mode == "eager" or case.histograms else {}
        times = on.race({"ours": ours, **rivals}, mode)
        ratios = {name: times[name].seconds / times["ours"].seconds for name in rivals}
        targets = {"torch": case.target} if case.target is not None and rivals else {}
        yield row_of(job, case, mode, times["ours"], times=ratios, targets=targets)


def kernels(job: Job) -> None:
    """Floors, then every case of perturb and accumulate, on one backend."""
    on = setting(job.dry)
    try:
        ops.backend_for(job.backend, on.device)
    except (ValueError, ImportError) as error:
        why = str(error)
        job.run("all kernels", lambda: [Row("all kernels", status=ABSENT, note=why)])
        return
    job.run("floors", lambda: floors(job, on))
    for case in on.cases.perturb:
        job.run(case.what, partial(perturb, job, on, case))
    for each in on.cases.accumulate:
        job.run(each.what, partial(accumulate, job, on, each))
    for case in on.cases.noises:
        job.run(case.what, partial(other_noise, job, on, case))
