"""Cohen et al.'s class `Smooth`: change the import line of an existing loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from .. import ops
from .._check import check_count, is_real
from .._hints import axes_of_one
from ..api import warn_of_radius
from ..engine.forward import Model
from ..engine.inputs import warn_of_units
from ..engine.options import SmoothOptions, refuse_unknown
from ..engine.plan import StoppingRule
from ..engine.sampling import Sampling, check_model, draw_tally, warn_if_hopeless
from ..heads import Head, Votes
from ..noise import Gaussian, Noise
from ..ops.tally import Tally, check_classes
from ..stats import prediction, proof, rules
from ..stats.bounds.clopper_pearson import clopper_pearson_lower
from ..stats.certificate import ABSTAIN, Certificate
from ..stats.common import check_alpha
from ._shared import seed_or_random

T = TypeVar("T")


def _noise(sigma: float | Noise) -> Noise:
    return sigma if isinstance(sigma, Noise) else Gaussian(sigma)


class _Checked(Generic[T]):
    """An attribute that is checked whenever it is set. With `make`, one that was not set is made at the first use."""

    def __init__(self, check: Callable[[Any], T], make: Callable[[], T] | None = None) -> None:
        self._check, self._make = check, make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
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
        raise TypeError(f"options must be a dict of keyword arguments, got {value!r}")
    refuse_unknown(SmoothOptions, value)
    return cast(SmoothOptions, dict(value))


def _check_sigma(value: Any) -> float | Noise:
    """Return a standard deviation as a float, that of a `Gaussian` too, or another noise as it is."""
    if not isinstance(value, Noise):
        if not is_real(value):
            raise TypeError(f"sigma must be a number or a noise, got {value!r}")
        value = Gaussian(value)
    if value.evaluations is not None:
        raise ValueError(f"sigma must be random noise, got {value!r}; rsfast.certify gives its exact certificates")
    return value.sigma if type(value) is Gaussian else value


@dataclass
class _Call:
    """What a call of a `Smooth` samples, as it was when the call began, and its place in the noise stream."""

    smooth: Smooth
    base_classifier: Model
    num_classes: int
    sigma: float | Noise
    seed: int
    options: SmoothOptions
    input_id: int = 0
    stream: str = "user"
    start: int = 0
    made: tuple[torch.Tensor, int, Sampling] | None = None  # of an x and a batch size

    def sampling(self, x: torch.Tensor, row: torch.Tensor, batch_size: int) -> Sampling:
        """Return what samples x as the input `row`: `certify` draws two samples of the same."""
        if self.made is not None and self.made[0] is x and self.made[1] == batch_size:
            return self.made[2]
        options: dict[str, Any] = {"batch_size": batch_size, "input_ids": [self.input_id], **self.options}
        noise, options["seed"] = _noise(self.sigma), self.seed
        found = self.smooth._sampling(self.base_classifier, row, noise, self.num_classes, **options)
        found.forward.about = f"x of shape {[*x.shape]} is taken as one input of shape {[*row.shape[1:]]}"
        found.forward.about += (hint := axes_of_one(x.shape)) and f"; {hint}"
        self.made = x, batch_size, found
        return found

    def certificates(
        self,
        x: torch.Tensor,
        specs: Sequence[rules.CertificationSpec],
        n0: int,
        n: int,
        batch_size: int,
        stopping: StoppingRule | None = None,
    ) -> list[Certificate]:
        """Return the certificate of x under each spec, all from the same samples."""
        sampling = self.sampling(x, one_input(x, _noise(self.sigma)), batch_size)
        plan = sampling.certification(specs, stopping or StoppingRule(), n0, n)
        found: list[Certificate]
        [found] = sampling.results(plan, "certifying")
        return found

    def check(self) -> None:
        """Raise RuntimeError if an attribute was set since the call began, so that other things may have been sampled."""
        for name in ("base_classifier", "num_classes", "sigma"):
            before, now = getattr(self, name), getattr(self.smooth, name)
            if now is not before and now != before:
                raise RuntimeError(
                    f"{name} must stay {before!r} until the call that began with it ends, got {now!r}; there is no answer"
                )

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
        From a batch ``[B, *shape]`` to logits [B, num_classes].
    num_classes : int
    sigma : float or Noise
        Standard deviation of Gaussian noise, in the units of x; or a noise, whose norm radii are then in.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.
    **options
        scale, shift, clamp, dtype, channels_last, backend and progress, as in `sample`.

    Attributes
    ----------
    base_classifier, num_classes, sigma, seed, options
        As given, but sigma is a float where it was given as `Gaussian`. Each may be set at any time and is checked then. The
        next call uses it.
    noise : Noise
        The noise that sigma stands for; it cannot be set.

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
    >>> from rsfast.noise import Laplace
    >>> _, l1_radius = Smooth(model, 2, Laplace(0.25), seed=1).certify(torch.full((1, 2, 2), 0.2), 100, 1000, 0.001, 100)
    >>> 0 < l1_radius <= 0.8
    True
    """

    ABSTAIN = ABSTAIN

    base_classifier = _Checked(partial(check_model, "base_classifier"))
    num_classes = _Checked(check_classes)
    sigma = _Checked(_check_sigma)
    seed = _Checked(seed_or_random, seed_or_random)
    options = _Checked(_check_smooth_options, SmoothOptions)
    _calls = 0  # that have begun
    _drawn = 0  # samples since then, outside of any call

    def __init__(
        self,
        base_classifier: Model,
        num_classes: int,
        sigma: float | Noise,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        self.base_classifier, self.options, self.num_classes = base_classifier, options, num_classes
        self.sigma, self.seed = sigma, seed

    @property
    def noise(self) -> Noise:
        """The noise that sigma stands for."""
        return _noise(self.sigma)

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
        """Return (class, radius in the noise's norm) at x, or (ABSTAIN, 0.0); wrong with probability at most alpha.

        Parameters
        ----------
        x : float32 tensor [C, H, W], [1, C, H, W], [H, W] or [D]
            Or uint8, with `GridGaussian` noise.
        n0, n : int
            Samples that choose the class, and samples that bound it.
        alpha : float
            Failure probability, in (0, 1).
        batch_size : int
        """
        return self._certified(x, n0, n, alpha, batch_size)

    def predict(self, x: torch.Tensor, n: int, alpha: float, batch_size: int) -> int:
        """Return the class at x, or ABSTAIN; wrong with probability at most alpha. Parameters as in `certify`."""
        return self._predicted(x, n, alpha, batch_size)

    def _certified(self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """Return what `certify` does, and warn the caller of its caller."""
        n0, n, alpha = check_count("n0", n0), check_count("n", n), check_alpha(alpha)
        warn_if_hopeless("certify", n, alpha, proof.smallest_certifiable_n(alpha), stacklevel=4)
        warn_of_units(x, self.noise, stacklevel=3)
        with self._call() as call:
            call.stream, call.start = "selection", 0
            chosen = int(self._sample_noise(x, n0, batch_size).argmax())
            call.stream, call.start = "estimation", 0
            votes = int(self._sample_noise(x, n, batch_size)[chosen])
            p_lower = self._lower_confidence_bound(votes, n, alpha)
        radius = float(rules.radius(_noise(call.sigma), p_lower, 1 - p_lower))
        return (chosen, radius) if radius > 0 else (ABSTAIN, 0.0)

    def _predicted(self, x: torch.Tensor, n: int, alpha: float, batch_size: int) -> int:
        """Return what `predict` does, and warn the caller of its caller."""
        n, alpha = check_count("n", n), check_alpha(alpha)
        warn_if_hopeless("predict", n, alpha, prediction.smallest_predictable_n(alpha), stacklevel=4)
        warn_of_units(x, self.noise, stacklevel=3)
        with self._call() as call:
            call.stream, call.start = "estimation", 0
            votes = self._sample_noise(x, n, batch_size)
        return prediction.prediction(votes, alpha)

    def _sample_noise(self, x: torch.Tensor, num: int, batch_size: int) -> NDArray[np.int64]:
        """Return the votes [num_classes] of num further samples; called directly, from the stream "user"."""
        votes: NDArray[np.int64] = self._tally(x, num, batch_size).to("cpu").counts[0, :-1].numpy()
        if getattr(self._count_arr, "__func__", None) is Smooth._count_arr:
            return votes  # as it would count them
        return self._count_arr(np.repeat(np.arange(len(votes)), votes), len(votes))

    def _tally(self, x: torch.Tensor, num: int, batch_size: int, heads: Sequence[Head] = (Votes(),)) -> Tally:
        """Return the Tally of num further samples of x; outside of a call, from the stream "user"."""
        row, num = one_input(x, self.noise), check_count("num", num)
        call = _CALL.get()
        if call is None or call.smooth is not self:
            call = self._now()
            with _PLACES:
                call.input_id, call.start = self._calls, self._drawn
                self._drawn += num
        sampling, start, ids = call.sampling(x, row, batch_size), call.take(num), torch.tensor([call.input_id])
        return draw_tally(sampling, row, ids.to(row.device), range(start, start + num), call.stream, heads)

    def _check(
        self, x: torch.Tensor, spec: rules.CertificationSpec, n0: int, n: int, stopping: StoppingRule | None = None
    ) -> tuple[int, int]:
        """Return the numbers of samples of a peer's `certify`, checked, and warn its caller as `rsfast.certify` does."""
        n0, n = check_count("n0", n0), check_count("n", n)
        warn_of_radius(spec, stopping or StoppingRule(), n0, n, self.num_classes)
        warn_of_units(x, self.noise, stacklevel=3)
        return n0, n

    def _sampling(self, model: Model, row: torch.Tensor, noise: Noise, num_classes: int, **options: Any) -> Sampling:
        """Return what samples a row; a peer overrides it whose base classifier takes more than a batch."""
        return Sampling(model, row, noise, num_classes, **options)

    def _count_arr(self, arr: NDArray[np.integer[Any]], length: int) -> NDArray[np.int64]:
        """Return how often each class [length] is in `arr`, the predictions of a batch.

        For forks: votes are counted by the kernels. Where this is overridden, `_sample_noise` gives it those of all samples
        at once, in the order of the classes.
        """
        arr = np.asarray(arr)
        if arr.ndim != 1 or (arr.size and arr.dtype.kind not in "iu"):
            raise TypeError(f"arr must be integers [B], got {arr.dtype} {list(arr.shape)}")
        if arr.size and not 0 <= arr.min() <= arr.max() < length:
            raise ValueError(f"arr must lie in [0, {length}), got {arr.min()} to {arr.max()}")
        return np.bincount(arr.astype(np.int64), minlength=length)

    def _lower_confidence_bound(self, NA: int, N: int, alpha: float) -> float:
        """Return the one-sided Clopper-Pearson lower bound at level alpha on the chance of NA votes in N."""
        return float(clopper_pearson_lower(NA, N, alpha))


def one_input(x: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Return x as a batch of one, of the shape that the original's ``x.repeat((n, 1, 1, 1))`` gives.

    But a vector stays a vector, and several inputs are refused: the original mixed them into one vote.
    """
    if isinstance(x, torch.Tensor) and x.ndim not in (1, 2, 3) and (x.ndim != 4 or len(x) != 1):
        several = "; of several call it for each, or rsfast.certify for all" if x.ndim == 4 else ""
        raise ValueError(f"x must be one input, [C, H, W], [1, C, H, W], [H, W] or [D], got shape {list(x.shape)}{several}")
    x = ops.as_floats(ops.check_inputs("x", x, single=True, noise=noise))
    return x if x.ndim == 4 else x[None, None] if x.ndim == 2 else x[None]
