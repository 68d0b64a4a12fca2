"""What is measured: a model, some of its inputs and the noise; and each way to run it, as a number of rows to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from .. import ops
from ..engine.batches import Batches, RowGroup, expand
from ..engine.forward import Forward, Model
from ..engine.options import ProofOptions, checked
from ..engine.plan import StoppingRule
from ..engine.sampler import Sampler
from ..engine.sampling import Sampling
from ..engine.timing import StageTimer
from ..loop2019 import Loop2019
from ..noise import Gaussian, Uniform
from ..ops.tally import Tally
from ..stats.rules import CertificationSpec

_SEED = 2026  # of noise that only time is taken of


@dataclass(frozen=True)
class Subject:
    """A model as it is to be certified.

    Parameters
    ----------
    model : callable
        As in `certify`.
    images : Tensor
        float32 [I, *shape], where the model runs.
    noise : Gaussian
    num_classes : int
    options : mapping
        Of `certify`, that stay as they are: scale and shift.
    proof : mapping
        ``n0``, ``n`` and ``alpha``; those left out are the defaults of `certify`.
    """

    model: Model
    images: torch.Tensor
    noise: Gaussian
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "proof", checked(ProofOptions, self.proof))

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.images.device

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return self.images.shape[1:]


@dataclass(frozen=True)
class Change:
    """What is done in another way than rsfast does it by default.

    Parameters
    ----------
    name : str
        For the table.
    options : mapping
        Of `certify`.
    threads : int, optional
        Of the model and the kernels on a CPU.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the classifier still computes in the precision of its weights: then its votes differ by rounding only."""
        return not self.options.keys() & {"autocast", "dtype"}

    def without(self, other: Change) -> Change:
        """Return what of this change the other does not do as well."""
        missing = object()
        own = {name: value for name, value in self.options.items() if other.options.get(name, missing) != value}
        return Change(self.name, own, self.threads)

    def __add__(self, other: Change) -> Change:
        """Return both changes; of what both set, what the second sets."""
        threads = self.threads if other.threads is None else other.threads
        return Change(f"{self.name}, {other.name}", {**self.options, **other.options}, threads)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch and the kernels run on so many threads meanwhile; None leaves them as they are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Certifying:
    """rsfast with some change, on one input: selection, estimation and bound, as often as rows ask for.

    Parameters
    ----------
    subject : Subject
    change : Change
        Its options have a ``batch_size``.

    Attributes
    ----------
    change : Change
    batch : int
        Rows of a batch.
    rows : int
        Samples that were drawn so far.
    seconds : dict of str to float
        Where their time went: "model", "kernels", "bounds" and "rest".

    Raises
    ------
    TypeError, ValueError
        If the change does not go with the model, the device or the shape.
    """

    def __init__(self, subject: Subject, change: Change) -> None:
        self._subject, self.change = subject, change
        options = {**subject.options, **change.options}
        self._sampling = Sampling(
            subject.model, subject.images[:1], subject.noise, subject.num_classes, seed=_SEED, **options
        )
        self._spec = CertificationSpec(subject.noise, subject.proof["alpha"])
        self.batch = int(options["batch_size"])
        self._batches, self._passed = self._new_batches(), 0.0

    def _new_batches(self) -> Batches:
        of = self._sampling
        how: dict[str, Any] = {"preparation": of.preparation, "timer": StageTimer(self._subject.device)}
        return Batches(of.forward, of.noise, seed=of.seed, size=self.batch, pad=True, **how)

    def __call__(self, rows: int) -> None:
        """Certify one input on so many samples, at least 2."""
        n0 = min(self._subject.proof["n0"], rows // 2)
        plan = self._sampling.certification([self._spec], StoppingRule(), n0, rows - n0)
        inputs, shape = [(0, self._subject.images[0])], self._subject.shape
        pacing, ranks, bar = self._sampling.pacing, self._sampling.ranks, self._sampling.bar(rows, "")
        began = perf_counter()
        with threads(self.change.threads):
            for _ in Sampler(plan, inputs, shape, 1, self._batches, pacing=pacing, ranks=ranks, bar=bar):
                pass
        self._passed += perf_counter() - began

    @property
    def rows(self) -> int:
        return self._batches.timer.rows

    @property
    def seconds(self) -> dict[str, float]:
        spent = self._batches.timer.seconds()
        return {**spent, "rest": max(0.0, self._passed - sum(spent.values()))}

    def votes(self, rows: int) -> torch.Tensor:
        """Return the class that each of so many noisy rows votes for, int64 [rows]: the same rows for every change."""
        images, classes = self._subject.images, list[torch.Tensor]()
        ids = torch.arange(len(images), device=images.device)
        batches, tally = self._new_batches(), Tally(1, self._subject.num_classes)
        with threads(self.change.threads), self._sampling.forward.running():
            for start in range(0, rows, self.batch):
                size = min(self.batch, rows - start)
                segments = [(row % len(images), 0, row, 1) for row in range(start, start + size)]
                group = RowGroup("user", tally, expand(segments).to(images.device))
                logits = batches.logits(images, ids, [group], self.batch)
                classes.append(logits.float().argmax(1).cpu())
        return torch.cat(classes)


def random_inputs(count: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return inputs float32 [count, *shape], uniform in [0, 1] and always the same.

    Examples
    --------
    >>> found = random_inputs(4, [3, 8, 8], torch.device("cpu"))
    >>> found.shape, bool(((found >= 0) & (found <= 1)).all())
    (torch.Size([4, 3, 8, 8]), True)
    """
    rows = torch.zeros(count, dtype=torch.int64, device=device)
    grey = torch.full((1, *shape), 0.5, device=device)
    return ops.perturb(grey, Uniform(0.5), seed=_SEED, samples=torch.arange(count, device=device), rows=rows, stream="user")


def bare(subject: Subject, batch: int) -> Callable[[int], None]:
    """Return what runs the model only, in eval mode and without autograd, on batches of this many rows."""
    forward = Forward(subject.model, subject.num_classes, subject.device)
    rows = random_inputs(batch, subject.shape, subject.device)

    def run(count: int) -> None:
        with forward.running():
            for _ in range(-(-count // batch)):
                forward(rows)
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)

    return run


def loop(subject: Subject, batch: int) -> Callable[[int], object]:
    """Return what draws votes with the loop of 2019, in batches of this many rows."""
    forward = Forward(subject.model, subject.num_classes, subject.device)
    scale, shift = (_by_channel(subject, name) for name in ("scale", "shift"))

    def classifier(rows: torch.Tensor) -> torch.Tensor:
        rows = rows if scale is None else rows * scale
        return forward(rows if shift is None else rows + shift)

    votes = Loop2019(classifier, subject.num_classes, subject.noise.sigma)

    def run(count: int) -> None:
        with forward.running():
            votes.sample_noise(subject.images[0], count, batch)

    return run


def _by_channel(subject: Subject, name: str) -> torch.Tensor | None:
    values: float | Sequence[float] | torch.Tensor | None = subject.options.get(name)
    if values is None:
        return None
    found = torch.as_tensor(values, dtype=torch.float32, device=subject.device)
    return found.reshape(-1, *[1] * (len(subject.shape) - 1))
