"""What `gpu_gate` checks and times of certify: against the 2019 loop and the bare forward, its waits, and a trace of it."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import rsfast
from benchmarks.cases import NOISE, SIGMA
from benchmarks.gpu_cases import Certify
from benchmarks.gpu_checks import verify
from benchmarks.gpu_measure import Setting, setting
from benchmarks.gpu_sections import Job
from benchmarks.race import Calls, race
from benchmarks.report import ABSENT, FAILED, PASSED, Row
from rsfast import Tally, ops
from rsfast.engine.timing import Profile
from rsfast.loop2019 import Loop2019

LOOP = "the 2019 loop, float32 model"
FORWARD = "bare forward"
ROUNDS, SECONDS = 7, 4.0  # a race of certify
IMAGE = {"dtype": torch.bfloat16, "channels_last": True}


class Prepared:
    """A case with its model, its inputs and its options."""

    def __init__(self, job: Job, on: Setting, case: Certify) -> None:
        self.case, self.device = case, on.device
        generator = job.generator(case.what)
        self.full = case.make().to(on.device)
        half = copy.deepcopy(self.full).to(torch.bfloat16)
        self.half: nn.Module = half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        seeded = torch.Generator().manual_seed(generator.getrandbits(60))
        self.x = torch.rand(case.images, *case.shape, generator=seeded)
        self.options: dict[str, Any] = {"seed": generator.getrandbits(64), "num_classes": case.classes} | IMAGE
        self.options |= {"batch_size": case.batch, "backend": job.backend}

    def certify(self, n: int | None = None) -> list[rsfast.Certificate]:
        case = self.case
        extras: dict[str, Any] = {name: True for name in ("cuda_graph", "compile") if getattr(case, name)}
        extras |= self.options | ({} if case.radius is None else {"radius": case.radius})
        n, x = case.n if n is None else n, self.x.to(self.device)
        found: list[rsfast.Certificate] = rsfast.certify(self.half, x, NOISE, n0=case.n0, n=n, **extras)
        return found

    def forward(self, batch: torch.Tensor, rows: int) -> None:
        """Compute what so many rows cost without noise, votes and bounds."""
        with torch.no_grad():
            for _ in range(math.ceil(rows / self.case.batch)):
                self.half(batch)


def check_one_batch(on: Setting, it: Prepared) -> None:
    """Compare the Tally of one batch with the oracle's, of the same logits."""
    case, options = it.case, {"seed": it.options["seed"]} | IMAGE
    noisy = ops.perturb(it.x[:1], NOISE, samples=range(case.batch), backend=on.oracle, **options).to(on.device)
    expected = Tally(1, case.classes)
    with torch.no_grad():
        ops.accumulate(it.half(noisy).cpu(), expected, backend=on.oracle)
    found = rsfast.sample(it.half, it.x[:1].to(on.device), NOISE, n=case.batch, **it.options)
    verify(found, expected, on.oracle)


def certify(job: Job, on: Setting, case: Certify) -> Iterator[Row]:
    """Time a case of certify against the bare forward on as many rows; one image without options also against the loop."""
    it = Prepared(job, on, case)
    plain = case.images == 1 and not case.cuda_graph and not case.compile
    if plain:
        check_one_batch(on, it)
    began = time.perf_counter()
    rows = sum(each.n0 + each.n for each in it.certify())
    first = time.perf_counter() - began
    batch = torch.rand(case.batch, *case.shape).to(on.device, torch.bfloat16, memory_format=torch.channels_last)
    contenders: dict[str, Calls] = {"ours": [it.certify], FORWARD: [partial(it.forward, batch, rows)]}
    if plain:
        loop = Loop2019(it.full, case.classes, SIGMA)
        contenders[LOOP] = [partial(loop.certify, it.x[0].to(on.device), case.n0, case.n, 0.001, case.batch)]
    times = race(on.clock, contenders, rounds=ROUNDS if on.budget else 3, budget=SECONDS if on.budget else 0.0)
    ratios = {name: times[name].seconds / times["ours"].seconds for name in contenders if name != "ours"}
    targets = {FORWARD: 1 / 1.05, LOOP: 1.0} if plain else {}
    note = f"{rows} rows; first call {first:.3g} s"
    found = times["ours"]
    yield Row(
        case.what, mode="eager", seconds=found.seconds, low=found.low, high=found.high, rounds=found.rounds,
        times=ratios, targets=targets, note=note,
    )  # fmt: skip


def waits_of(it: Prepared, n: int) -> Counter[str]:
    """Return the places in which a run of certify waits for the GPU, as torch sees it, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if it.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            it.certify(n)
        finally:
            if it.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "called a synchronizing" in str(each.message)]
    return Counter(f"{'/'.join(each.filename.split('/')[-2:])}:{each.lineno}" for each in waits)


def waits(job: Job, on: Setting, case: Certify) -> Iterator[Row]:
    """Count the waits of a run, and of one with twice as many batches: a batch may cost none."""
    it = Prepared(job, on, case)
    it.certify()
    few, many = waits_of(it, case.n), waits_of(it, 2 * case.n)
    more = {place: count - few[place] for place, count in many.items() if count > few[place]}
    note = f"{few.total()} with n = {case.n}, {many.total()} with twice that; {dict(few.most_common(6))}"
    yield Row("waits in a run", status=FAILED if more else PASSED, note=f"{note}; more: {more}" if more else note)


def trace(job: Job, on: Setting, case: Certify) -> Iterator[Row]:
    """Write a trace of some inputs, and tell which part of the time the device computes, and what."""
    it, file = Prepared(job, on, case), job.folder / f"trace_{job.backend}.json"
    told: list[str] = []
    each = rsfast.certify_each(it.half, it.x.to(on.device), NOISE, n0=case.n0, n=case.n, **it.options)
    with Profile(file, told.append) as profile:
        for _ in each:
            profile()
    yield Row("trace", status=PASSED if file.exists() else FAILED, note=f"{file.name}: {'; '.join(told)}")

    activities = [torch.profiler.ProfilerActivity.CPU]
    if on.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    it.certify()
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        it.certify()
        seconds = time.perf_counter() - began
    yield busy_part(job, profiler.key_averages(), seconds, on.device.type.upper())


def busy_part(job: Job, events: Any, seconds: float, kind: str) -> Row:
    """Return which part of the time the device computed, what took most of it, and what our kernels took."""
    name = f"self_{'cpu' if kind == 'CPU' else 'device'}_time_total"
    (job.folder / f"profile_{job.backend}.txt").write_text(events.table(sort_by=name, row_limit=60))
    spent: Counter[str] = Counter()  # an operator on the CPU has the time of its kernels, too: it counts once
    for event in events:
        if event.device_type.name == kind and getattr(event, name) > 0:
            spent[event.key[:60]] += getattr(event, name) / 1e6
    if not spent:
        return Row("profile", status=ABSENT, note="the profiler saw no kernel: its counters may not be for every user")
    busy, top = sum(spent.values()), [key for key, _ in spent.most_common(3)]
    mine = [key for key in spent if "perturb" in key or "accumulate" in key]
    parts = ", ".join(f"{key} {spent[key] / busy:.1%}" for key in dict.fromkeys((*top, *mine)))
    return Row("profile", status=PASSED, note=f"device busy {busy / seconds:.0%} of {seconds:.3g} s, profiled: {parts}")


def engine(job: Job) -> None:
    """Every case of certify, the waits of one run and a trace of another, on one backend."""
    on = setting(job.dry)
    for case in on.cases.certify:
        job.run(case.what, partial(certify, job, on, case))
    one, many = on.cases.certify[0], on.cases.certify[2]
    job.run("waits in a run", partial(waits, job, on, one))
    job.run("trace", partial(trace, job, on, many))


def compiled(job: Job) -> None:
    """Certify through torch.compile."""
    on = setting(job.dry)
    for case in on.cases.compiled:
        job.run(case.what, partial(certify, job, on, case))
