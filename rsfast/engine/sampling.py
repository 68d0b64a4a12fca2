"""A call's checked arguments: what to sample, how, and from which place in the noise stream."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any, cast
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from typing_extensions import Unpack

from .. import ops
from .._progress import progress_bar
from ..heads import Head, Votes
from ..noise import Noise, check_noise
from ..noise.provenance import Provenance
from ..ops.tally import Tally, check_classes
from ..stats.certificate import Execution
from ..stats.rules import CertificationSpec
from .allocator import keep_freed_memory
from .batch_size import FULL, MOST, automatic
from .batches import Batches, RowGroup
from .forward import Forward, Model, reduced_precision
from .inputs import Inputs, Source, Unreadable
from .options import ForwardOptions, PreparationOptions, SamplingOptions, checked, part
from .plan import Certification, SamplingPlan, StoppingRule
from .probe import ROWS, probe
from .ranks import Ranks
from .sampler import Outcome, Pacing, Sampler, draw
from .timing import StageTimer


def check_model(name: str, value: Any) -> Model:
    if isinstance(value, type):
        raise TypeError(f"{name} must be an instance, callable on a batch, got the class {value.__qualname__}")
    if not callable(value):
        hint = "; pass its attribute model" if callable(getattr(value, "model", None)) else ""
        hint = "; rsfast.load_model takes names of models" if isinstance(value, str) else hint
        raise TypeError(f"{name} must be callable on a batch, got {value!r:.80}{hint}")
    return cast(Model, value)


class Sampling:
    """Checked arguments of a call: what to sample, how, and from which place in the noise stream.

    Parameters
    ----------
    model, inputs, noise, num_classes, **options
        As in `certify`.
    name, skip
        As in `Inputs`.

    Attributes
    ----------
    model, noise, num_classes, seed, batch_size
        As given; seed is drawn from the operating system where it is None.
    options : dict
        All `SamplingOptions`, checked.
    inputs : Inputs
        To be closed, or used in a ``with`` block.
    ranks : Ranks
        What processes divide among them.
    device : torch.device
        Where batches are made.
    preparation : dict
        What `ops.perturber` takes from scale to backend.
    backend : str
        That of the kernels, "auto" resolved.
    forward : Forward
        The base classifier.
    execution : Execution
        How it runs, as certificates record it.
    pacing : Pacing
        How its samplers keep time. This one, `probe` and `find_batch_size` are of the class, where a test may replace them.
    probe, find_batch_size : callable
        `probe.probe` and `batch_size.automatic`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; on all ranks, if it is wrong on one or differs between them.
    """

    pacing = Pacing()
    probe = staticmethod(probe)
    find_batch_size = staticmethod(automatic)

    def __init__(
        self,
        model: Model,
        inputs: Source,
        noise: Noise,
        num_classes: int,
        *,
        name: Callable[[int], str] = "inputs[{}]".format,
        skip: Callable[[int, Unreadable], object] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:
        self.ranks = Ranks.find(options.get("shard"))
        with self.ranks.barrier_or_raise():
            self.options = checked(SamplingOptions, options)
            self.model = check_model("model", model)
            check_noise("noise", noise)
            self.inputs = Inputs(inputs, self.options["input_ids"], noise, name=name, skip=skip)
            self.noise, self.num_classes = noise, check_classes(num_classes)
            self._period = 1 << 56 if noise.evaluations is None else noise.evaluations  # of samples that are drawn in vain
            self.batch_size = self.options["batch_size"]
            self.seed = secrets.randbits(64) if (seed := self.options["seed"]) is None else seed
            self.device = self._find_device(isinstance(inputs, torch.Tensor))
            self.preparation = self._prepare()
            self.backend: str = self.preparation["backend"]
            self.forward = self._make_forward()
            self.execution = self._record()
            if self.device.type == "cpu":
                keep_freed_memory()
        self._probed = False
        if self.ranks.shard is not None:
            self._assert_equal()

    def _prepare(self) -> dict[str, Any]:
        """Return what `ops.perturber` takes, checked before any work is done."""
        options, shape = self.options, self.inputs.shape
        # scale and shift go to the device once, rather than once a batch.
        scale, shift = ops.affine(options["scale"], options["shift"], shape[0], self.device)
        dtype = ops.as_dtype("dtype", torch.float32 if options["dtype"] is None else options["dtype"])
        backend = ops.backend_for(options["backend"], self.device)
        preparation: dict[str, Any] = {**part(PreparationOptions, options)}
        preparation |= {"scale": scale, "shift": shift, "dtype": dtype, "backend": backend}
        x = torch.zeros(1, *shape, dtype=torch.float32, device=self.device)
        ops.perturber(x, self.noise, seed=self.seed, input_ids=[0], **preparation)
        return preparation

    def _make_forward(self) -> Forward:
        forward = Forward(self.model, self.num_classes, self.device, **part(ForwardOptions, self.options))
        forward.about = self.inputs.about
        if forward.autocast is not None and self.preparation["dtype"] == torch.float64:
            raise ValueError(
                f"autocast must be None where dtype is torch.float64, which it leaves alone, got {forward.autocast}; leave "
                "one of them out"
            )
        return forward

    def _record(self) -> Execution:
        """Return what certificates record of the options, and of the model."""
        given, autocast = self.preparation, self.forward.autocast
        names = {field.name for field in fields(Execution)}
        recorded: dict[str, Any] = {name: value for name, value in self.options.items() if name in names}
        recorded |= {name: None if given[name] is None else tuple(given[name].tolist()) for name in ("scale", "shift")}
        recorded |= {"dtype": _name(given["dtype"]), "autocast": None if autocast is None else _name(autocast)}
        recorded["clamp"] = ops.check_clamp(given["clamp"])
        found = reduced_precision(self.forward.modules, self.device)
        return Execution(**recorded, reduced_precision=found, mode_fixed=self.forward.mode_fixed)

    def _assert_equal(self) -> None:
        """Raise ValueError where processes were given different things, as a DistributedSampler gives different inputs."""
        given = self.options["input_ids"]
        ids = None if given is None else torch.as_tensor(given, dtype=torch.int64).cpu().numpy()
        settings = {
            "seed": self.options["seed"],
            "shard": self.ranks.shard,
            "batch_size": self.batch_size,
            "num_classes": self.num_classes,
            "noise": self.noise,
            "backend": self.backend,
            "the number of inputs": self.inputs.count,
            "the shape of an input": list(self.inputs.shape),
            "the checksum of inputs[0]": crc32(self.inputs.first.cpu().numpy().tobytes()),
            "the checksum of input_ids": None if ids is None else crc32(ids.tobytes()),
        }
        self.ranks.assert_equal(settings | self.execution.to_dict())
        self.seed = self.ranks.broadcast(self.seed)

    def _find_device(self, fixed: bool) -> torch.device:
        """Return where batches are made: with the inputs, or, where these are read one by one, with the model."""
        tensors = []
        if isinstance(self.model, torch.nn.Module):
            tensors = [*self.model.parameters(), *self.model.buffers()]
        devices = {tensor.device for tensor in tensors}
        if fixed and devices and self.inputs.device not in devices:
            where = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"inputs must be on the model's device, '{where}', got '{self.inputs.device}'")
        return self.inputs.device if fixed or len(devices) != 1 else devices.pop()

    def bar(self, samples: int, description: str, shares: int = 1) -> tqdm[Any]:
        """Return a progress bar over `samples` samples of each input that this process has, one in `shares`.

        It is silent unless the option `progress` is set and stderr is a terminal or this is a notebook, and on all ranks but
        the first.
        """
        return progress_bar(
            total=None if self.inputs.count is None else samples * -(-self.inputs.count // shares),
            desc=description,
            unit="sample",
            unit_scale=True,
            disable=None if self.options["progress"] and self.ranks.rank == 0 else True,
        )

    def batches(self, samples: int, *, pad: bool = False, early: bool = False) -> Batches:
        """Return what runs batches, of the `size` for so many samples an input."""
        size, timer = self.size(samples, pad=pad, early=early), StageTimer(self.device)
        if self.forward.compile or self.forward.cuda_graph or self.forward.mode_fixed:
            # A smaller last batch would be compiled for, run without a graph, or be refused.
            pad |= self.inputs.count is None or samples * self.inputs.count > size
        return Batches(
            self.forward, self.noise, seed=self.seed, size=size, preparation=self.preparation, pad=pad, timer=timer
        )

    def size(self, samples: int, *, pad: bool = False, early: bool = False) -> int:
        """Return the batch size that was given, or the best for so many samples an input, the same on all ranks.

        The model runs here for the first time, so it is probed before. A call of fewer rows than the
        probe takes does without. `pad` is as in `Batches`; `early` says that inputs may be decided early.
        """
        total = None if self.inputs.count is None else samples * self.inputs.count
        most = MOST
        if pad or (early and self.device.type != "cpu"):
            # A batch that is full whatever is left is waste at the end, and where inputs are decided early. The number of
            # inputs plays no part: a run over some of them must find the same bits.
            most = FULL if early else max(FULL, samples // 8)
        if not self._probed and (total is None or total >= 2 * ROWS):
            with self.ranks.barrier_or_raise():
                self._probe()
            self._probed = True
        if not isinstance(self.batch_size, str):
            return self.batch_size
        batches = Batches(self.forward, self.noise, seed=self.seed, size=1, preparation=self.preparation)
        x = torch.zeros(1, *self.inputs.shape, dtype=torch.float32, device=self.device)
        ids = torch.zeros(1, dtype=torch.int64, device=self.device)

        def run(size: int) -> None:
            places = torch.zeros(3, size, dtype=torch.int64, device=self.device)
            torch.remainder(torch.arange(size, device=self.device), self._period, out=places[2])
            with self.forward.running():
                batches.logits(x, ids, [RowGroup("user", Tally(1, self.num_classes), places)], size)

        with self.ranks.barrier_or_raise():
            size = self.find_batch_size(self.model, self.inputs.shape, self.device, self.execution, total, run, most=most)
        return self.ranks.broadcast(size)

    def _probe(self) -> None:
        """Run the model on a few rows of the first input, and warn if its logits of a row depend on more than the row."""
        first = self.inputs.first[None].to(self.device)

        def noisy(samples: torch.Tensor) -> torch.Tensor:
            samples = samples.to(self.device) % self._period
            rows = torch.zeros_like(samples)
            return ops.perturb(
                first, self.noise, seed=self.seed, samples=samples, rows=rows, stream="user", **self.preparation
            )

        sizes = (ROWS,) if isinstance(self.batch_size, str) else (ROWS, self.batch_size)
        self.probe(self.forward, noisy, sizes, (self.inputs.shape, self.device, self.execution))

    def sampler(
        self, plan: SamplingPlan, bar: tqdm[Any], *, pad: bool = False, saved: Mapping[int, Mapping[str, Any]] | None = None
    ) -> Sampler:
        """Return what takes the inputs through a plan; `pad` is as in `Batches`, `saved` as in `Sampler`."""
        inputs, count, world = self.inputs, self.inputs.count, self.ranks.world
        mine: Iterable[tuple[int, torch.Tensor]] = inputs
        if self.ranks.by_inputs:
            mine = islice(inputs, self.ranks.rank, None, world)
            count = None if count is None else len(range(self.ranks.rank, count, world))
        self.forward.full_precision = plan.lipschitz
        # Ranks cut the last batches in other places than one process does; the model sees full ones all the same.
        batches = self.batches(expected(plan), pad=pad or self.ranks.shard is not None, early=plan.early)
        with torch.inference_mode(False):  # its Tallies are added to outside that mode, in which the caller may be
            return Sampler(
                plan, mine, inputs.shape, count, batches, pacing=self.pacing, ranks=self.ranks, bar=bar, saved=saved
            )

    def outcomes(self, plan: SamplingPlan, description: str) -> Iterator[Outcome]:
        """Take the inputs through a plan, and yield the outcomes in the order of the inputs."""
        if self.ranks.shard is not None:
            self.ranks.assert_equal({name: value for name, value in vars(plan).items() if not name.startswith("_")})
            # Now, when all ranks come here, and not with the first outcome.
            self.batch_size = self.size(expected(plan), pad=True, early=plan.early)

        def found() -> Iterator[Outcome]:
            samples = sum(len(samples) for _, samples in plan.stages)
            shares = self.ranks.world if self.ranks.by_inputs else 1
            with self.inputs, self.bar(samples, description, shares) as bar:
                yield from self.sampler(plan, bar)

        return found()

    def certification(
        self, specs: Sequence[CertificationSpec], stopping: StoppingRule, n0: int, n: int, **options: Any
    ) -> Certification:
        """Return the plan of a certification; raise ValueError where there are no more classes than a spec's top_k."""
        for spec in specs:
            spec.check_classes(self.num_classes)
        recorded: dict[str, Any] = {"seed": self.seed, "backend": self.backend, "execution": self.execution}
        return Certification(specs, stopping, n0=n0, n=n, **recorded, **options)

    def results(self, plan: SamplingPlan, description: str) -> list[Any]:
        """Return the result of every input, in their order; of all ranks' inputs if these are divided."""
        outcomes = self.outcomes(plan, description)
        if not self.ranks.by_inputs:
            return [each.result for each in outcomes]
        with self.ranks.barrier_or_raise():
            mine = [each.result for each in outcomes]
        of_ranks = self.ranks.gather(mine)
        found: list[Any] = [None] * sum(map(len, of_ranks))
        for rank, theirs in enumerate(of_ranks):
            found[rank :: self.ranks.world] = theirs
        return found


def expected(plan: SamplingPlan) -> int:
    """Return about how many samples an input takes: where it may be decided early, a twentieth of all, as in the demo."""
    return sum(len(samples) for _, samples in plan.stages) // (20 if plan.early else 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def draw_tally(
    sampling: Sampling,
    x: torch.Tensor,
    ids: torch.Tensor,
    samples: range,
    stream: str,
    heads: Sequence[Head] = (Votes(),),
    tracked_classes: NDArray[np.int64] | torch.Tensor | None = None,
) -> Tally:
    """Return the Tally of these samples of every input; raise ValueError where deterministic noise has no such samples."""
    n = sampling.noise.evaluations
    if n is not None and samples.stop > n:
        raise ValueError(f"start + n must be at most {n}, the evaluations of {sampling.noise!r:.60}, got {samples.stop}")
    provenance = Provenance(sampling.noise, sampling.seed, ops.check_stream(stream), samples, ids)
    with torch.inference_mode(False):  # as in Sampling.sampler
        tally = Tally(
            len(x), sampling.num_classes, heads, tracked_classes=tracked_classes, provenance=provenance, device=x.device
        )
    with sampling.bar(len(samples), "sampling") as bar:
        draw(sampling.batches(len(samples)), x, ids, tally, samples, stream, bar)
    return tally


def warn_if_hopeless(what: str, n: int, alpha: float, smallest: int, stacklevel: int = 3) -> None:
    if n < smallest:
        warnings.warn(
            f"n is {n}: at alpha = {alpha} every input abstains, whatever the votes; {what} needs n of at least {smallest}",
            UserWarning,
            stacklevel=stacklevel,
        )
