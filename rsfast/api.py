"""The public functions: check the arguments, draw the samples, turn the Tallies into certificates."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, Unpack, cast, overload
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from . import bounds, certificate, ops, rules
from .allocator import keep_freed_memory
from .arguments import as_int, is_int
from .batch_size import automatic
from .batches import Batches, Part
from .certificate import ABSTAIN, Certificate, Execution
from .forward import Forward, Model, reduced_precision
from .heads import Head, Votes
from .hints import axes_of_one
from .inputs import Inputs, Owned, Source, warn_of_units
from .looks import Certification, Course, Goal, Prediction, largest_radius, smallest_n
from .meter import Meter
from .noise import Gaussian
from .probe import ROWS, probe
from .provenance import Provenance
from .ranks import Ranks
from .rules import Method
from .sampler import Outcome, Sampler, draw
from .tally import MAX_SAMPLES, Tally

T = TypeVar("T")

_VOTES = Votes()


def _count(name: str, value: object, most: int = MAX_SAMPLES) -> int:
    count = as_int(name, value)
    if not 1 <= count <= most:
        raise ValueError(f"{name} is {count}; it must be from 1 to {most}")
    return count


class SmoothOptions(TypedDict, total=False):
    """Keyword arguments that `sample`, `certify`, `predict` and `Smooth` share; `sample` documents them."""

    scale: torch.Tensor | Sequence[float] | float | None
    shift: torch.Tensor | Sequence[float] | float | None
    clamp: tuple[float, float] | None
    dtype: torch.dtype | str | None
    channels_last: bool
    autocast: torch.dtype | str | None
    compile: bool
    cuda_graph: bool
    backend: str
    progress: bool


class SampleOptions(SmoothOptions, total=False):
    """Those that `sample`, `certify` and `predict` share."""

    batch_size: int | str
    input_ids: torch.Tensor | Sequence[int] | None


class SamplingOptions(SampleOptions, total=False):
    """Those that `certify` and `predict` share."""

    shard: str | None


def _check_options(options: Mapping[str, object], kind: type) -> None:
    if unknown := set(options) - set(kind.__annotations__):
        known = ", ".join(kind.__annotations__)
        raise TypeError(f"{', '.join(sorted(unknown))} is no argument; further ones are {known}")


def _check_model(name: str, value: Any) -> Model:
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__qualname__}; it must be an instance, callable on a batch")
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; it must be callable on a batch")
    return cast(Model, value)


class Sampling:
    """Checked arguments of a call: what to sample, how, and from which place in the noise stream."""

    def __init__(
        self,
        model: Model,
        inputs: Source,
        noise: Gaussian,
        num_classes: int,
        seed: int | None,
        *,
        batch_size: int | str = "auto",
        input_ids: torch.Tensor | Sequence[int] | None = None,
        progress: bool = False,
        autocast: torch.dtype | str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        shard: str | None = None,
        **preparation: Any,
    ) -> None:
        self.ranks = Ranks.find(shard)
        with self.ranks.together():
            _check_options(preparation, SamplingOptions)
            self.model = _check_model("model", model)
            if isinstance(batch_size, str) and batch_size != "auto":
                raise ValueError(f"batch_size is {batch_size!r}; it must be an int or 'auto'")
            self.batch_size = batch_size if isinstance(batch_size, str) else _count("batch_size", batch_size)
            if not isinstance(noise, Gaussian):
                raise TypeError(f"noise is {noise!r}; it must be a Gaussian")
            self.inputs = Inputs(inputs, input_ids, noise)
            num_classes = Tally(1, num_classes).num_classes  # checked
            self.noise, self.num_classes, self.progress = noise, num_classes, progress
            self.seed = ops.check_seed(secrets.randbits(64) if seed is None else seed)
            self.device = self._find_device(isinstance(inputs, torch.Tensor))
            # scale and shift go to the device once, rather than once a batch.
            shape = self.inputs.shape
            scale, shift = ops.affine(preparation.get("scale"), preparation.get("shift"), shape[0], self.device)
            backend = ops.backend_for(preparation.get("backend", "auto"), self.device)
            dtype = ops.as_dtype("dtype", torch.float32 if (given := preparation.get("dtype")) is None else given)
            self.preparation = {**preparation, "scale": scale, "shift": shift, "backend": backend, "dtype": dtype}
            # No samples: this only checks the noise and the preparation, before any work is done.
            x = torch.zeros(1, *shape, device=self.device)
            ops.perturb(x, noise, seed=self.seed, samples=range(0), rows=[], **self.preparation)
            self.forward = Forward(
                model, num_classes, self.device, autocast=autocast, compile=compile, cuda_graph=cuda_graph
            )
            self.forward.about = self.inputs.about
            if self.forward.autocast is not None and dtype == torch.float64:
                what = f"autocast is {self.forward.autocast} and dtype is {dtype}"
                raise ValueError(f"{what}, which autocast leaves alone; leave one of them out")
            self.execution = Execution(
                dtype=_name(dtype),
                autocast=None if self.forward.autocast is None else _name(self.forward.autocast),
                channels_last=preparation.get("channels_last", False),
                compile=compile,
                cuda_graph=cuda_graph,
                clamp=ops.check_clamp(preparation.get("clamp")),
                scale=None if scale is None else tuple(scale.tolist()),
                shift=None if shift is None else tuple(shift.tolist()),
                reduced_precision=reduced_precision(self.forward.modules, self.device),
                mode_fixed=self.forward.mode_fixed,
            )
            if self.device.type == "cpu":
                keep_freed_memory()
        self._probed = False
        if shard is not None:
            self._agree(seed, input_ids)

    def _agree(self, seed: int | None, input_ids: torch.Tensor | Sequence[int] | None) -> None:
        """Raise ValueError where processes were given different things, as a DistributedSampler gives different inputs."""
        ids = None if input_ids is None else torch.as_tensor(input_ids, dtype=torch.int64).cpu().numpy()
        settings = {
            "seed": seed,
            "shard": self.ranks.shard,
            "batch_size": self.batch_size,
            "num_classes": self.num_classes,
            "noise": self.noise,
            "backend": self.preparation["backend"],
            "the number of inputs": self.inputs.count,
            "the shape of an input": list(self.inputs.shape),
            "the checksum of inputs[0]": crc32(self.inputs.first.cpu().numpy().tobytes()),
            "the checksum of input_ids": None if ids is None else crc32(ids.tobytes()),
        }
        self.ranks.agree(settings | self.execution.to_dict())
        self.seed = self.ranks.same(self.seed)

    def _find_device(self, fixed: bool) -> torch.device:
        """Return where batches are made: with the inputs, or, where these are read one by one, with the model."""
        tensors = []
        if isinstance(self.model, torch.nn.Module):
            tensors = [*self.model.parameters(), *self.model.buffers()]
        devices = {tensor.device for tensor in tensors}
        if fixed and devices and self.inputs.device not in devices:
            where = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"inputs is on '{self.inputs.device}', but the model is on '{where}'; they must share a device")
        return self.inputs.device if fixed or len(devices) != 1 else devices.pop()

    def bar(self, samples: int, description: str, shares: int = 1) -> tqdm[Any]:
        """Return a progress bar over `samples` samples of each input that this process has, one in `shares`.

        It is silent unless asked for and stderr is a terminal, and on all ranks but the first.
        """
        return tqdm(
            total=None if self.inputs.count is None else samples * -(-self.inputs.count // shares),
            desc=description,
            unit="sample",
            unit_scale=True,
            disable=None if self.progress and self.ranks.rank == 0 else True,
        )

    def batches(self, samples: int, pad: bool = False) -> Batches:
        """Return what runs batches, of the size that was asked for or that is best for so many samples an input."""
        size, meter = self.size(samples), Meter(self.device)
        if self.forward.compile or self.forward.cuda_graph or self.forward.mode_fixed:
            # A smaller last batch would be compiled for, run without a graph, or be refused.
            pad |= self.inputs.count is None or samples * self.inputs.count > size
        return Batches(
            self.forward, self.noise, seed=self.seed, size=size, preparation=self.preparation, pad=pad, meter=meter
        )

    def size(self, samples: int) -> int:
        """Return the batch size that was asked for; or the best for so many samples an input, which all ranks then take.

        The model runs here for the first time, so it is probed before. A call of fewer rows than the
        probe takes does without.
        """
        total = None if self.inputs.count is None else samples * self.inputs.count
        if not self._probed and (total is None or total >= 2 * ROWS):
            with self.ranks.together():
                self._probe()
            self._probed = True
        if not isinstance(self.batch_size, str):
            return self.batch_size
        batches = Batches(self.forward, self.noise, seed=self.seed, size=1, preparation=self.preparation)
        x, ids = (
            torch.zeros(1, *self.inputs.shape, device=self.device),
            torch.zeros(1, dtype=torch.int64, device=self.device),
        )

        def run(size: int) -> None:
            rows = np.zeros(size, dtype=np.int64)
            with self.forward.running():
                batches.logits(x, ids, [Part("user", Tally(1, self.num_classes), rows, rows, np.arange(size))], size)

        with self.ranks.together():
            size = automatic(self.model, self.inputs.shape, self.device, self.execution, total, run)
        return self.ranks.same(size)

    def _probe(self) -> None:
        """Run the model on a few rows of the first input, and warn if it is no function of a row."""
        first = self.inputs.first[None].to(self.device)

        def noisy(samples: torch.Tensor) -> torch.Tensor:
            samples = samples.to(self.device)
            rows = torch.zeros_like(samples)
            return ops.perturb(
                first, self.noise, seed=self.seed, samples=samples, rows=rows, stream="user", **self.preparation
            )

        sizes = (ROWS,) if isinstance(self.batch_size, str) else (ROWS, self.batch_size)
        probe(self.forward, noisy, sizes, (self.inputs.shape, self.device, self.execution))

    def sampler(self, course: Course, bar: tqdm[Any], *, pad: bool = False, **hooks: Any) -> Sampler:
        """Return what takes the inputs through a course; with `hooks` as in `Sampler`, and `pad` as in `Batches`."""
        inputs, count, world = self.inputs, self.inputs.count, self.ranks.world
        mine: Iterable[tuple[int, torch.Tensor]] = inputs
        if self.ranks.by_inputs:
            mine = islice(inputs, self.ranks.rank, None, world)
            count = None if count is None else len(range(self.ranks.rank, count, world))
        self.forward.full_precision = course.lipschitz
        # Ranks cut the last batches in other places than one process does; the model sees full ones all the same.
        batches = self.batches(expected(course), pad or self.ranks.shard is not None)
        with torch.inference_mode(False):  # its Tallies are added to outside that mode, in which the caller may be
            return Sampler(
                course,
                mine,
                inputs.shape,
                count,
                self.num_classes,
                batches,
                self.device,
                ranks=self.ranks,
                bar=bar,
                **hooks,
            )

    def outcomes(self, course: Course, description: str) -> Iterator[Outcome]:
        """Take the inputs through a course, and yield what is found in their order."""
        if self.ranks.shard is not None:
            self.ranks.agree(vars(course))
            self.batch_size = self.size(expected(course))  # now, when all ranks come here, and not with the first outcome

        def found() -> Iterator[Outcome]:
            samples, shares = sum(len(piece) for _, piece in course.pieces), self.ranks.world if self.ranks.by_inputs else 1
            with self.inputs, self.bar(samples, description, shares) as bar:
                yield from self.sampler(course, bar)

        return found()

    def certification(self, methods: Sequence[Method], goal: Goal, n0: int, n: int, **options: Any) -> Certification:
        """Return the course of a certification."""
        backend, execution = self.preparation["backend"], self.execution
        return Certification(methods, goal, n0=n0, n=n, seed=self.seed, backend=backend, execution=execution, **options)

    def all_found(self, course: Course, description: str) -> list[Any]:
        """Return what is found for every input, in their order; of all ranks' inputs if these are divided."""
        outcomes = self.outcomes(course, description)
        if not self.ranks.by_inputs:
            return [each.found for each in outcomes]
        with self.ranks.together():
            mine = [each.found for each in outcomes]
        of_ranks = self.ranks.gather(mine)
        found: list[Any] = [None] * sum(map(len, of_ranks))
        for rank, theirs in enumerate(of_ranks):
            found[rank :: self.ranks.world] = theirs
        return found


def expected(course: Course) -> int:
    """Return about how many samples an input takes: where it may be decided early, a twentieth of all, as in the demo."""
    return sum(len(samples) for _, samples in course.pieces) // (20 if course.early else 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sample(
    model: Model,
    inputs: torch.Tensor,
    noise: Gaussian,
    *,
    num_classes: int,
    n: int,
    start: int = 0,
    stream: str = "estimation",
    heads: Sequence[Head] = (_VOTES,),
    tracked: NDArray[np.int64] | torch.Tensor | None = None,
    seed: int,
    **options: Unpack[SampleOptions],
) -> Tally:
    """Return the Tally of n noisy samples of every input.

    Tallies of disjoint sample ranges add up to the Tally of the whole: ``sample(n=60) + sample(n=40, start=60)`` equals
    ``sample(n=100)``, bit for bit, as long as the model computes each row the same in whatever batch it stands. Each states
    in its `provenance` which samples it holds, so that none is counted twice.

    Parameters
    ----------
    model : callable
        From a batch [B, *shape] to logits [B, num_classes]. A torch.nn.Module is put into eval mode meanwhile.
    inputs : float32 tensor [I, *shape]
        Finite, no value beyond ``noise.largest_input``; first axis of shape is the channel.
    noise : Gaussian
        Its sigma is in the units of inputs.
    num_classes : int
        K, the number of logits.
    n : int
        Samples of each input.
    start : int
        Index of the first; they are start to start + n - 1, below 2^56.
    stream : str
        "selection", "estimation", "training" or "user".
    heads : sequence of Head
        The scores to sum; all are taken from the same logits.
    tracked : int64 array [I, M, C], optional
        Classes whose scores' histograms the Tally keeps, for betting bounds: `leading_classes` of the selection sample.
    seed : int
        In [0, 2^64).
    batch_size : int or "auto"
        Rows in a batch; rows of several inputs may share one. "auto" takes the fastest, found by a short search and kept for
        the model, or 16 MiB of noise where a search would take more than 1 % of the samples. Where memory runs out, batches
        are halved, with a warning.
    input_ids : int64 tensor [I], optional
        Identity of each input in the noise stream, in [0, 2^32); 0 to I - 1 by default.
    scale, shift, clamp, dtype, channels_last, backend
        As in `ops.perturb`. dtype is what the model takes: "float64" for one whose weights are float64.
    autocast, compile, cuda_graph
        As in `forward.Forward`. With scale, shift, clamp, dtype and channels_last part of the classifier that is certified,
        and recorded.
    progress : bool
        Show a progress bar if stderr is a terminal.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be; before any sampling, but for what the model returns.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> tally = sample(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, n=1000, seed=1)
    >>> tally.counts.sum().item()
    1000
    """
    _check_options(options, SampleOptions)  # no shard: each process has a range of its own, or inputs
    n, x = _count("n", n), ops.check_inputs("inputs", inputs)
    if seed is None:
        raise TypeError("seed is None; it must be an int, so that other samples of the same stream can be told apart")
    if not is_int(start) or not 0 <= int(start) <= (1 << 56) - n:
        raise ValueError(f"start is {start!r}; it must be an int from 0 to 2^56 - n")
    sampling = Sampling(model, inputs, noise, num_classes, seed, **options)
    sampling.inputs.warn_of_units(noise.sigma, stacklevel=2)
    given = options.get("input_ids")
    ids = ops.indices("input_ids", range(len(x)) if given is None else given, len(x), 1 << 32, x.device)
    return _draw(sampling, x, ids, range(int(start), int(start) + n), stream, heads, tracked)


def _draw(
    sampling: Sampling,
    x: torch.Tensor,
    ids: torch.Tensor,
    samples: range,
    stream: str,
    heads: Sequence[Head] = (_VOTES,),
    tracked: NDArray[np.int64] | torch.Tensor | None = None,
) -> Tally:
    """Return the Tally of these samples of every input."""
    provenance = Provenance(sampling.noise, sampling.seed, ops.check_stream(stream), samples, ids)
    with torch.inference_mode(False):  # as in Sampling.sampler
        tally = Tally(len(x), sampling.num_classes, heads, tracked=tracked, provenance=provenance, device=x.device)
    with sampling.bar(len(samples), "sampling") as bar:
        draw(sampling.batches(len(samples)), x, ids, tally, samples, stream, bar)
    return tally


class CertifyOptions(SamplingOptions, total=False):
    """Those that `certify` with one head and with several share, and `tune_head`; `certify` documents them."""

    n0: int
    n: int
    alpha: float
    bound: str
    rule: str
    lipschitz: float | None
    seed: int | None


@overload
def certify(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    head: Head = ...,
    radius: float | None = ...,
    rtol: float | None = ...,
    **options: Unpack[CertifyOptions],
) -> list[Certificate]: ...


@overload
def certify(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    head: Sequence[Head],
    radius: float | None = ...,
    rtol: float | None = ...,
    **options: Unpack[CertifyOptions],
) -> list[list[Certificate]]: ...


def certify(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    head: Head | Sequence[Head] = _VOTES,
    bound: str = "auto",
    rule: str = "auto",
    lipschitz: float | None = None,
    radius: float | None = None,
    rtol: float | None = None,
    seed: int | None = None,
    **options: Unpack[SamplingOptions],
) -> list[Certificate] | list[list[Certificate]]:
    """Return one Certificate for each input: the smoothed classifier's class, and the radius within which it is constant.

    Each is wrong with probability at most alpha, over the noise. The class is chosen on n0 samples and bounded on others: n,
    or as many as it takes to decide.

    Parameters
    ----------
    model, noise, num_classes, **options
        As in `sample`.
    inputs : float32 tensor [I, *shape], Dataset, DataLoader or iterable
        A tensor, or anything that `inputs.Inputs` reads: ahead of the model, and never all in memory.
    n0, n : int
        Selection samples, and estimation samples of each input; the most of them if `radius` or `rtol` is given.
    alpha : float
        Failure probability, in (0, 1), of an input.
    head : Head or sequence of Head
        The score that is averaged: part of the classifier, to be fixed before sampling. Of several each gets a certificate,
        at alpha over their number, so that all of an input hold together and the best may be quoted.
    bound : str
        "auto": Clopper-Pearson for votes, betting for scores; with `radius` or `rtol`, the beta-binomial and the betting
        sequence. Or a name, as in `certificates`.
    rule : str
        "auto" (for each input what its selection sample promises more of, one-vs-rest or top-two), "one_vs_rest",
        "top_two", "class_partitioning" or "bonferroni".
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's score under `head`, **per unit of what the model takes**, as
        `lipschitz_bound` of the model with its softmax gives it. What is used and recorded is that times the largest
        ``|scale|``, or times 1 where that is less: per unit of inputs, in which radii are measured. It is taken on trust,
        and one of real numbers: what float32 rounds in a score comes on top. Refused where something computes below
        float32, as scores then jump: dtype, autocast, the model's parameters and buffers, its logits, TF32 and the like
        (on a GPU PyTorch's default for convolutions; `torch.backends.cudnn.allow_tf32` switches it off).
    radius : float, optional
        Stop sampling an input as soon as its radius is proved to be as large, or the samples say that it will not be. The
        certificate holds either way; its radius may be larger or smaller, and n is the number of samples it took.
    rtol : float, optional
        Stop sampling an input as soon as its radius is proved to within this share, in (0, 1), of what it could become.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. Either way it is in the Certificate.
    shard : str, optional
        Under torch.distributed, what the processes of the default group divide: "inputs", or "samples" of every input. All
        are called with the same arguments, and all return all certificates: those of one process. What one raises ends the
        others, too; while they share samples, with the end of its process or the process group's timeout.

    Returns
    -------
    list of Certificate
        Each unpacks as ``prediction, radius``; ``rsfast.ABSTAIN, 0.0`` where nothing can be certified. With a sequence of
        heads, for each input the list of its certificates, one a head.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be; before any sampling, but for what the model returns.

    Warns
    -----
    UserWarning
        If n is so small that even unanimous votes certify nothing, or not the `radius` that is asked for. If inputs leave
        [0, 1], as sigma is in their units; of inputs that are not a tensor, the first is looked at.

    Notes
    -----
    Samples are looked at after 16, 24, 32, 48, 64 ... (`sequences.look_ends`), whatever the batch size.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, CERTIFY.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> [(prediction, radius)] = certify(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, n=10_000, seed=1)
    >>> prediction, 0.45 < radius <= 0.5
    (0, True)
    >>> [found] = certify(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, radius=0.25, seed=1)
    >>> found.radius >= 0.25, found.n
    (True, 64)
    """
    sampling, course = _certification(
        model, inputs, noise, num_classes, n0, n, alpha, head, bound, rule, lipschitz, Goal(radius, rtol), seed, options
    )
    found = sampling.all_found(course, "certifying")
    return [certificates[0] for certificates in found] if isinstance(head, Head) else found


_DEFAULTS: dict[str, Any] = certify.__kwdefaults__  # type: ignore[assignment]


def _certification(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    num_classes: int,
    n0: int,
    n: int,
    alpha: float,
    head: Head | Sequence[Head],
    bound: str,
    rule: str,
    lipschitz: float | None,
    goal: Goal,
    seed: int | None,
    options: SamplingOptions,
) -> tuple[Sampling, Certification]:
    """Check what `certify` and `certify_each` were given."""
    n0, n, alpha = _count("n0", n0), _count("n", n), bounds.check_alpha(alpha)
    heads = _heads(head)
    methods = [Method(noise, alpha / len(heads), each, bound, rule, lipschitz, looks=bool(goal)) for each in heads]
    sampling = Sampling(model, inputs, noise, num_classes, seed, **options)
    course = sampling.certification(methods, goal, n0, n)
    sampling.inputs.warn_of_units(noise.sigma, stacklevel=3)
    for method in course.methods:
        _warn_of_radius(method, goal, n0, n, sampling.num_classes)
    return sampling, course


@overload
def certify_each(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    head: Head = ...,
    radius: float | None = ...,
    rtol: float | None = ...,
    **options: Unpack[CertifyOptions],
) -> Iterator[Certificate]: ...


@overload
def certify_each(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    head: Sequence[Head],
    radius: float | None = ...,
    rtol: float | None = ...,
    **options: Unpack[CertifyOptions],
) -> Iterator[list[Certificate]]: ...


def certify_each(
    model: Model, inputs: Source, noise: Gaussian, *, num_classes: int, **options: Any
) -> Iterator[Certificate] | Iterator[list[Certificate]]:
    """Yield what `certify` returns, in the order of the inputs, each as soon as it and those before it are finished.

    Arguments are those of `certify`, and checked when this is called; of inputs that are not a tensor, each when it is
    read. Neither the inputs nor the certificates are ever all in memory. With ``shard="inputs"`` each process yields its
    own: of process r of w every w-th input, from the r-th. In a forked child the iterator raises RuntimeError.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> inputs = (torch.tensor([value]) for value in (0.5, -0.4, 0.3))
    >>> for found in certify_each(model, inputs, Gaussian(0.25), num_classes=2, n=1000, seed=1):
    ...     print(found.input_id, found.prediction)
    0 0
    1 1
    2 0
    """
    if unknown := set(options) - {*_DEFAULTS, *SamplingOptions.__annotations__}:
        raise TypeError(f"{', '.join(sorted(unknown))} is no argument of certify")
    named = {name: options.pop(name, default) for name, default in _DEFAULTS.items()}
    goal, head = Goal(named.pop("radius"), named.pop("rtol")), named["head"]
    sampling, course = _certification(
        model, inputs, noise, num_classes, **named, goal=goal, options=cast(SamplingOptions, options)
    )
    found = (outcome.found for outcome in sampling.outcomes(course, "certifying"))
    return Owned(
        "the iterator of certify_each", (certificates[0] for certificates in found) if isinstance(head, Head) else found
    )


def _heads(head: Head | Sequence[Head]) -> tuple[Head, ...]:
    heads = (head,) if isinstance(head, Head) else head
    if isinstance(heads, str) or not isinstance(heads, Sequence):
        raise TypeError(f"head is {head!r}; it must be one of Votes, Softmax, Sparsemax, ClippedLogits, or a list of them")
    Tally(1, 2, heads)  # checks them
    return tuple(heads)


class Tuned(NamedTuple):
    """What `tune_head` found: the head to deploy, and the score of every head."""

    head: Head
    scores: dict[Head, float]


_CRITERIA = ("average_radius", "certified_accuracy")


def tune_head(
    model: Model,
    inputs: Source,
    labels: torch.Tensor | Sequence[int],
    noise: Gaussian,
    heads: Sequence[Head],
    *,
    num_classes: int,
    criterion: str | float = "average_radius",
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    bound: str = "auto",
    rule: str = "auto",
    lipschitz: float | None = None,
    seed: int | None = None,
    **options: Unpack[SamplingOptions],
) -> Tuned:
    """Return the head that certifies best on calibration inputs, for the classifier that is then deployed and certified.

    All heads are evaluated on the same samples. Certify with ``head=tuned.head`` on other inputs: the choice is then fixed
    before any sample that is certified, and costs nothing. Choosing a head for each input, from the samples that are
    certified, would prove nothing about any one classifier.

    Parameters
    ----------
    model, noise, num_classes, n0, n, alpha, bound, rule, lipschitz, **options
        As in `certify`, and best as they will be in deployment.
    inputs : float32 tensor [I, *shape]
        Calibration inputs; none of those that are certified later.
    labels : int64 [I]
        Their true classes.
    heads : sequence of Head
        To choose from.
    criterion : str or float
        "average_radius": the mean over inputs of the radius, 0 where the prediction is wrong. "certified_accuracy": the
        share of inputs that are predicted right, and not abstained from. A number: the share that is right with a radius of
        at least that much.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. It may be the seed of the certification: noise comes from
        the stream "training".

    Returns
    -------
    Tuned
        ``head``, the first of those with the largest score; ``scores``, of every head.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be; before any sampling, but for what the model returns.

    Examples
    --------
    >>> from rsfast.heads import Softmax
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> inputs, labels = torch.tensor([[0.5], [-0.4]]), [0, 1]
    >>> heads = [Votes(), Softmax(1.0), Softmax(0.01)]
    >>> tune_head(model, inputs, labels, Gaussian(0.25), heads, num_classes=2, n=1000, seed=1).head
    Votes()
    """
    n0, n, alpha = _count("n0", n0), _count("n", n), bounds.check_alpha(alpha)
    heads = _heads(heads)
    least = criterion
    if isinstance(criterion, str):
        if criterion not in _CRITERIA:
            raise ValueError(f"criterion is {criterion!r}; it must be a radius, or one of {', '.join(_CRITERIA)}")
        least = 0.0
    elif isinstance(criterion, bool) or not isinstance(criterion, (int, float, np.floating, np.integer)):
        raise TypeError(f"criterion is {criterion!r}; it must be a radius, or one of {', '.join(_CRITERIA)}")
    elif not 0 <= criterion < np.inf:
        raise ValueError(f"criterion is {criterion!r}; as a radius it must be finite and not negative")
    methods = [Method(noise, alpha, head, bound, rule, lipschitz) for head in heads]
    sampling = Sampling(model, inputs, noise, num_classes, seed, **options)
    if sampling.inputs.count is None:
        what = f"inputs is a {type(inputs).__name__}; it must be a tensor or have a length, that of labels"
        raise TypeError(f"{what}; pass list(inputs), of inputs one by one")
    truth = ops.indices("labels", labels, sampling.inputs.count, sampling.num_classes, sampling.inputs.device)
    ops.check_range("labels", truth, sampling.num_classes)
    sampling.inputs.warn_of_units(noise.sigma, stacklevel=2)
    found = sampling.all_found(sampling.certification(methods, Goal(), n0, n, streams=("training",) * 2), "tuning")
    radii = np.array([[each.radius for each in of_input] for of_input in found])
    right = np.array([[each.prediction for each in of_input] for of_input in found]) == truth.cpu().numpy()[:, None]
    values = radii if criterion == "average_radius" else radii >= least
    scores = dict(zip(heads, np.where(right, values, 0).mean(axis=0).tolist(), strict=True))
    return Tuned(max(scores, key=lambda head: scores[head]), scores)


def _warn_if_hopeless(what: str, n: int, alpha: float, smallest: int, stacklevel: int = 3) -> None:
    if n < smallest:
        warnings.warn(
            f"n is {n}: at alpha = {alpha} every input abstains, whatever the votes; {what} needs n of at least {smallest}",
            UserWarning,
            stacklevel=stacklevel,
        )


def _warn_of_radius(method: Method, goal: Goal, n0: int, n: int, num_classes: int) -> None:
    """Warn the caller of `certify` or `certify_each` of what no votes can prove."""
    largest = largest_radius(method, goal, n0=n0, n=n, num_classes=num_classes)
    if largest == 0:
        smallest = smallest_n(method, goal, n0=n0, num_classes=num_classes)
        _warn_if_hopeless("certify", n, method.alpha, smallest, stacklevel=5)
    elif goal.radius is not None and largest < goal.radius:
        warnings.warn(
            f"radius is {goal.radius}: no input can reach it, as at sigma = {method.noise.sigma} and alpha = {method.alpha} "
            f"n = {n} unanimous votes prove a radius of {largest:.4g}; take a smaller radius, or a larger sigma or n",
            UserWarning,
            stacklevel=4,
        )


def predict(
    model: Model,
    inputs: Source,
    noise: Gaussian,
    *,
    num_classes: int,
    n: int,
    alpha: float,
    seed: int | None = None,
    **options: Unpack[SamplingOptions],
) -> list[int]:
    """Return the smoothed classifier's class at each input, or ABSTAIN where n votes do not tell it at level alpha.

    The two-sided exact binomial test of the two classes with most votes. A class that is returned is not the smoothed
    classifier's with probability at most alpha.

    Parameters, errors, warning: as `certify`.

    References
    ----------
    Cohen, Rosenfeld and Kolter 2019, PREDICT, after Hung and Fithian, "Rank verification for exponential families", 2019.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> predict(model, torch.tensor([[0.5], [0.0]]), Gaussian(0.25), num_classes=2, n=100, alpha=0.001, seed=1)
    [0, -1]
    """
    n, alpha = _count("n", n), bounds.check_alpha(alpha)
    sampling = Sampling(model, inputs, noise, num_classes, seed, **options)
    sampling.inputs.warn_of_units(noise.sigma, stacklevel=2)
    _warn_if_hopeless("predict", n, alpha, certificate.smallest_predictable_n(alpha))
    return sampling.all_found(Prediction(n, alpha), "predicting")


class _Checked(Generic[T]):
    """An attribute that is checked whenever it is set; with `make`, one that was not set is made when it is first read."""

    def __init__(self, check: Callable[[Any], T], make: Callable[[], T] | None = None) -> None:
        self._check, self._make = check, make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> _Checked[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object, owner: type) -> _Checked[T] | T:
        if instance is None:
            return self
        values = vars(instance)
        if self._name not in values:
            if self._make is None:
                raise AttributeError(f"{self._name} is not set; Smooth.__init__ or the subclass must set it")
            values.setdefault(self._name, self._make())  # of several threads, the first
        return cast(T, values[self._name])

    def __set__(self, instance: object, value: Any) -> None:
        vars(instance)[self._name] = self._check(value)


def _check_smooth_options(value: Any) -> SmoothOptions:
    if not isinstance(value, Mapping):
        raise TypeError(f"options is {value!r}; it must be a dict of keyword arguments")
    _check_options(value, SmoothOptions)
    return cast(SmoothOptions, dict(value))


def _draw_seed() -> int:
    return secrets.randbits(64)


def _check_or_draw_seed(value: Any) -> int:
    return ops.check_seed(_draw_seed() if value is None else value)


@dataclass
class _Call:
    """What a call of a `Smooth` samples, as it was when the call began, and its place in the noise stream."""

    smooth: Smooth
    base_classifier: Model
    num_classes: int
    sigma: float
    seed: int
    options: SmoothOptions
    input_id: int = 0
    stream: str = "user"
    start: int = 0

    def check(self) -> None:
        """Raise RuntimeError if what was sampled may not be what this says."""
        for name in ("base_classifier", "num_classes", "sigma"):
            before, now = getattr(self, name), getattr(self.smooth, name)
            if now is not before and now != before:
                raise RuntimeError(
                    f"{name} is {now!r}, but was {before!r} when the call began; it must stay the same until the call ends"
                )

    def advance(self, stream: str) -> None:
        """Go to the first sample of another stream."""
        self.stream, self.start = stream, 0

    def take(self, num: int) -> int:
        """Return the first of `num` samples that nobody else takes."""
        with _PLACES:
            start, self.start = self.start, self.start + num
        return start


_CALL: ContextVar[_Call | None] = ContextVar("_CALL", default=None)  # of this thread, so that all can share an object
_PLACES = Lock()  # of all objects: it is held for less than a microsecond, and a lock could not be pickled


class Smooth:
    """Cohen et al.'s class: change the import line of an existing loop, and it draws, counts and bounds here.

    Parameters
    ----------
    base_classifier : callable
        From a batch [B, *shape] to logits [B, num_classes].
    num_classes : int
    sigma : float
        Standard deviation of the Gaussian noise, in the units of x.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.
    **options
        scale, shift, clamp, dtype, channels_last, backend and progress, as in `sample`.

    Attributes
    ----------
    base_classifier, num_classes, sigma, seed, options
        As given. Each may be set at any time and is checked then. The next call uses it.

    Raises
    ------
    TypeError, ValueError
        If an argument or an attribute that is set is wrong. Nothing changes then.
    RuntimeError
        If base_classifier, num_classes or sigma was set while `certify` or `predict` ran. There is no answer then.

    Notes
    -----
    The k-th call of `certify` or `predict` on an object takes input id k, so the same calls in the same order give the same
    answers. Setting `seed` does not set back k. A copy goes on from the k of its original.

    Threads may share an object. Each call has an input id and a place in the noise stream of its own, and gives the answer
    that the object would give in one thread for that id. Which call of several threads gets which id is left to chance.

    A subclass may override `_sample_noise`, `_count_arr` and `_lower_confidence_bound`, as forks of the original do. One
    whose ``__init__`` does not call this class's sets base_classifier, num_classes and sigma itself.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019;
    github.com/locuslab/smoothing.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = Smooth(model, num_classes=2, sigma=0.25, seed=1)
    >>> prediction, radius = smooth.certify(torch.full((1, 2, 2), 0.2), n0=100, n=1000, alpha=0.001, batch_size=100)
    >>> prediction
    0
    """

    ABSTAIN = ABSTAIN

    base_classifier = _Checked(partial(_check_model, "base_classifier"))
    num_classes = _Checked(lambda value: Tally(1, value).num_classes)
    sigma = _Checked(lambda value: Gaussian(value).sigma)
    seed = _Checked(_check_or_draw_seed, _draw_seed)
    options = _Checked(_check_smooth_options, SmoothOptions)
    _calls = 0  # that have begun
    _drawn = 0  # samples since then, outside of any call

    def __init__(
        self,
        base_classifier: Model,
        num_classes: int,
        sigma: float,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        self.base_classifier, self.options, self.num_classes = base_classifier, options, num_classes
        self.sigma, self.seed = sigma, seed

    @property
    def noise(self) -> Gaussian:
        """The noise of this sigma."""
        return Gaussian(self.sigma)

    def _now(self) -> _Call:
        """Return a call with the attributes as they are now."""
        return _Call(self, self.base_classifier, self.num_classes, self.sigma, self.seed, self.options.copy())

    @contextmanager
    def _call(self) -> Iterator[_Call]:
        """Begin a call, which `_sample_noise` then finds; raise RuntimeError if what it rests on changed meanwhile."""
        call = self._now()
        with _PLACES:
            call.input_id = self._calls
            self._calls, self._drawn = self._calls + 1, 0
        token = _CALL.set(call)
        try:
            yield call
            call.check()
        finally:
            _CALL.reset(token)

    def certify(self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """Return (class, l2 radius) at x, or (ABSTAIN, 0.0); wrong with probability at most alpha.

        Parameters
        ----------
        x : float32 tensor [C, H, W], [1, C, H, W], [H, W] or [D]
        n0, n : int
            Samples that choose the class, and samples that bound it.
        alpha : float
            Failure probability, in (0, 1).
        batch_size : int
        """
        n0, n, alpha = _count("n0", n0), _count("n", n), bounds.check_alpha(alpha)
        _warn_if_hopeless("certify", n, alpha, certificate.smallest_certifiable_n(alpha))
        warn_of_units(x, self.sigma, stacklevel=2)
        with self._call() as call:
            call.advance("selection")
            chosen = int(self._sample_noise(x, n0, batch_size).argmax())
            call.advance("estimation")
            votes = int(self._sample_noise(x, n, batch_size)[chosen])
            p_lower = self._lower_confidence_bound(votes, n, alpha)
        radius = float(rules.radius(Gaussian(call.sigma), p_lower, 1 - p_lower))
        return (chosen, radius) if radius > 0 else (ABSTAIN, 0.0)

    def predict(self, x: torch.Tensor, n: int, alpha: float, batch_size: int) -> int:
        """Return the class at x, or ABSTAIN; wrong with probability at most alpha. Parameters as in `certify`."""
        n, alpha = _count("n", n), bounds.check_alpha(alpha)
        _warn_if_hopeless("predict", n, alpha, certificate.smallest_predictable_n(alpha))
        warn_of_units(x, self.sigma, stacklevel=2)
        with self._call() as call:
            call.advance("estimation")
            votes = self._sample_noise(x, n, batch_size)
        return certificate.prediction(votes, alpha)

    def _sample_noise(self, x: torch.Tensor, num: int, batch_size: int) -> NDArray[np.int64]:
        """Return the votes [num_classes] of num further samples; called directly, from the stream "user"."""
        given, x, num = x, _one_input(x), _count("num", num)
        call = _CALL.get()
        if call is None or call.smooth is not self:
            call = self._now()
            with _PLACES:
                call.input_id, call.start = self._calls, self._drawn
                self._drawn += num
        options: dict[str, Any] = {"batch_size": batch_size, "input_ids": [call.input_id], **call.options}
        sampling = Sampling(call.base_classifier, x, Gaussian(call.sigma), call.num_classes, call.seed, **options)
        sampling.forward.about = f"x of shape {[*given.shape]} is taken as one input of shape {[*x.shape[1:]]}"
        sampling.forward.about += (hint := axes_of_one(given.shape)) and f"; {hint}"
        start, ids = call.take(num), torch.tensor([call.input_id], device=x.device)
        tally = _draw(sampling, x, ids, range(start, start + num), call.stream)
        votes: NDArray[np.int64] = tally.counts[0, :-1].cpu().numpy()
        if getattr(self._count_arr, "__func__", None) is Smooth._count_arr:
            return votes  # as it would count them
        return self._count_arr(np.repeat(np.arange(call.num_classes), votes), call.num_classes)

    def _count_arr(self, arr: NDArray[np.integer[Any]], length: int) -> NDArray[np.int64]:
        """Return how often each class [length] is in `arr`, the predictions of a batch.

        For forks: votes are counted by the kernels. Where this is overridden, `_sample_noise` gives it those of all samples
        at once, in the order of the classes.
        """
        arr = np.asarray(arr)
        if arr.ndim != 1 or (arr.size and arr.dtype.kind not in "iu"):
            raise TypeError(f"arr is {arr.dtype} {list(arr.shape)}; it must be integers [B]")
        if arr.size and not 0 <= arr.min() <= arr.max() < length:
            raise ValueError(f"arr runs from {arr.min()} to {arr.max()}; it must lie in [0, {length})")
        return np.bincount(arr.astype(np.int64), minlength=length)

    def _lower_confidence_bound(self, NA: int, N: int, alpha: float) -> float:
        """Return the one-sided Clopper-Pearson lower bound at level alpha on the chance of NA votes in N."""
        return float(bounds.clopper_pearson_lower(NA, N, alpha))


def _one_input(x: torch.Tensor) -> torch.Tensor:
    """Return x as a batch of one, with the shapes that the original's ``x.repeat((n, 1, 1, 1))`` gives, but that a vector
    stays one, and several inputs, which it mixed into one vote, are refused."""
    if isinstance(x, torch.Tensor) and x.ndim not in (1, 2, 3) and (x.ndim != 4 or len(x) != 1):
        several = "; of several call it for each, or rsfast.certify for all" if x.ndim == 4 else ""
        raise ValueError(
            f"x has shape {list(x.shape)}; it must be one input, [C, H, W], [1, C, H, W], [H, W] or [D]{several}"
        )
    x = ops.check_inputs("x", x, single=True)
    return x if x.ndim == 4 else x[None, None] if x.ndim == 2 else x[None]
