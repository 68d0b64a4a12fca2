"""Certificates: what is proved about an input, and the functions that make it of Tallies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from .._check import as_int
from ..heads import Head, Votes
from ..heads import from_dict as head_from_dict
from ..noise import STREAM_VERSION, Gaussian, check_seed
from ..noise import from_dict as noise_from_dict
from ..noise.provenance import Provenance, check_input_ids
from . import bounds, rules
from .estimates import BOUNDS, Estimates, Scores
from .rules import CertificationSpec, Limits

if TYPE_CHECKING:
    from ..ops.tally import Tally

ABSTAIN = -1
"""The prediction where nothing can be said at the asked failure probability."""

_VOTES = Votes()


def _float32s(name: str, values: object) -> tuple[float, ...]:
    """Return a sequence of numbers as float32 holds them."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise TypeError(f"{name} is {values!r}; it must be a sequence of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
            raise TypeError(f"{name} holds {value!r}; each must be a number")
    with np.errstate(over="ignore"):
        return tuple(np.array(values, dtype=np.float32).tolist())


@dataclass(frozen=True)
class Execution:
    """How the base classifier was run: what it computes depends on that, so it belongs to what a certificate certifies.

    Parameters
    ----------
    dtype : str
        Of the batches: "float32", "float16", "bfloat16" or "float64".
    autocast : str, optional
        "float16" or "bfloat16" if it ran under `torch.autocast`.
    channels_last : bool
        Whether batches were laid out with channels last.
    compile : bool
        Whether it ran through `torch.compile`.
    cuda_graph : bool
        Whether it was replayed as a CUDA graph.
    clamp : (float, float), optional
        The range that noisy inputs were clamped to, as float32 holds it. An end may be infinite, which in JSON is null.
    scale, shift : tuple of float, optional
        What noisy inputs were then multiplied by and what was added, as float32 holds it: a number for each channel, or one
        number if it is the same for all.
    reduced_precision : tuple of str, optional
        What else computes in less than float32 precision: the dtypes of the model's state, PyTorch's settings (TF32, say).
    mode_fixed : bool
        Whether part of it ran in the mode that it was made in, as there is no other: an exported program or frozen
        TorchScript. All else ran in eval mode.

    Raises
    ------
    TypeError
        If a field is not of its kind.
    ValueError
        If dtype or autocast is none of these names, clamp is not (low, high) with low <= high, scale or shift is not
        finite, or these have different lengths.

    Examples
    --------
    >>> Execution.from_dict({"autocast": "bfloat16", "scale": [4.0, 4.0, 4.0]}).scale
    (4.0,)
    """

    dtype: str = "float32"
    autocast: str | None = None
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    clamp: tuple[float, float] | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    reduced_precision: tuple[str, ...] | None = None
    mode_fixed: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16", "float64"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be 'float32', 'float16', 'bfloat16' or 'float64'")
        if self.autocast not in (None, "float16", "bfloat16"):
            raise ValueError(f"autocast is {self.autocast!r}; it must be 'float16', 'bfloat16' or None")
        for name in ("channels_last", "compile", "cuda_graph", "mode_fixed"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} is {value!r}; it must be a bool")
        self._settle_clamp()
        self._settle_scale_and_shift()
        if (found := self.reduced_precision) is not None:
            if isinstance(found, str) or not isinstance(found, Sequence) or not all(isinstance(each, str) for each in found):
                raise TypeError(f"reduced_precision is {found!r}; it must be a sequence of str")
            object.__setattr__(self, "reduced_precision", tuple(found) or None)

    def _settle_clamp(self) -> None:
        if self.clamp is None:
            return
        if isinstance(self.clamp, str) or not isinstance(self.clamp, Sequence) or len(self.clamp) != 2:
            raise TypeError(f"clamp is {self.clamp!r}; it must be (low, high)")
        ends = zip(self.clamp, (-math.inf, math.inf), strict=True)  # JSON has no infinity, and None instead
        low, high = _float32s("clamp", [otherwise if end is None else end for end, otherwise in ends])
        if not low <= high or low == math.inf or high == -math.inf:
            raise ValueError(f"clamp is {self.clamp!r}; it must be (low, high) with low <= high")
        object.__setattr__(self, "clamp", (low, high))

    def _settle_scale_and_shift(self) -> None:
        lengths = set()
        for name in ("scale", "shift"):
            if (given := getattr(self, name)) is None:
                continue
            values = _float32s(name, given)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {given!r}; it must be finite")
            lengths.add(len(values))
            object.__setattr__(self, name, values[:1] if len(set(values)) == 1 else values)
        if len(lengths - {1}) > 1:
            raise ValueError(f"scale is {self.scale!r} and shift is {self.shift!r}; they must have the same length")

    @property
    def below_float32(self) -> str:
        """What of it computes in less than float32 precision, in words; empty if nothing does."""
        low = ("float16", "bfloat16")
        found = [f"{name} = {value}" for name in ("dtype", "autocast") if (value := getattr(self, name)) in low]
        return ", ".join([*found, *(self.reduced_precision or ())])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_dict` gives back an equal Execution."""
        data = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.clamp is not None:
            data["clamp"] = [end if math.isfinite(end) else None for end in self.clamp]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Execution:
        """Return the Execution that `to_dict` wrote. Fields left out take their defaults; TypeError if one is unknown."""
        return cls(**data)


_EXECUTION = Execution()


@dataclass(frozen=True)
class Certificate:
    """What is proved about one input: the smoothed classifier returns ``prediction`` within ``radius`` of it.

    With probability at least ``1 - alpha`` over the samples. Unpacks as ``prediction, radius``. A `pandas.DataFrame` of a
    list of them has a row for each, and a column for each field.

    Parameters
    ----------
    prediction : int
        The class, or `ABSTAIN`.
    radius : float
        In ``norm``, in the units of the input, rounded down; 0 for an abstention.
    norm : str
        The norm of the noise.
    p_lower, p_upper : float
        Lower bound on the selected class's smoothed score, upper bound on every other class's.
    counts : tuple of int
        Votes, in the estimation sample, for the selected class and for the one of the others that got most.
    n0, n : int
        Selection and estimation samples used.
    cap : int
        The most estimation samples there could have been: more than n where sampling stopped early; 0 if not known.
    alpha : float
        Probability that the certificate is wrong.
    alpha_upper : float
        The part of it that p_upper may fail with; the rest is p_lower's.
    lipschitz : float, optional
        The Lipschitz constant of the base scores that the radius rests on, per unit of the input.
    rule, bound : str
        As used: one of `rules.RULES`, one of `estimates.BOUNDS`.
    head : Head
        The score that was averaged.
    noise : Gaussian
        The smoothing noise.
    seed, stream_version, input_id : int
        With the sample indices, all that the noise depends on.
    backend : str
        What computed it; no part of the result.
    execution : Execution
        How the base classifier was run.

    Examples
    --------
    >>> prediction, radius = Certificate(3, 0.5, "l2", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest",
    ...                                  "clopper_pearson", Votes(), Gaussian(0.5), seed=0, stream_version=1, input_id=0)
    >>> prediction, radius
    (3, 0.5)
    """

    prediction: int
    radius: float
    norm: str
    p_lower: float
    p_upper: float
    counts: tuple[int, int]
    n0: int
    n: int
    alpha: float
    rule: str
    bound: str
    head: Head
    noise: Gaussian
    seed: int
    stream_version: int
    input_id: int
    backend: str = ""
    alpha_upper: float = 0.0
    lipschitz: float | None = None
    cap: int = 0
    execution: Execution = _EXECUTION

    @property
    def abstained(self) -> bool:
        """Whether the prediction is `ABSTAIN`."""
        return self.prediction == ABSTAIN

    def __getitem__(self, place: int) -> int | float:
        """Return the prediction or the radius, which is what unpacking needs."""
        return (self.prediction, self.radius)[place]

    if TYPE_CHECKING:  # type checkers ask for it, but pandas would take for a row of two numbers what has it

        def __iter__(self) -> Iterator[int | float]: ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_dict` gives back an equal Certificate."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        written = {name: data[name].to_dict() for name in ("head", "noise", "execution")}
        return data | written | {"counts": list(self.counts)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Return the Certificate that `to_dict` wrote; one from before there was an `execution` gets the default.

        Raises
        ------
        TypeError
            If a field is missing or unknown.
        ValueError
            If the head or the noise has an unknown name, or they or the execution a parameter out of range.
        """
        read: dict[str, Callable[[Any], Any]] = {
            "head": head_from_dict,
            "noise": noise_from_dict,
            "counts": tuple,
            "execution": Execution.from_dict,
        }
        return cls(**{name: read[name](value) if name in read else value for name, value in data.items()})


def certificates(
    selection: Tally,
    estimation: Tally | Sequence[Tally],
    noise: Gaussian,
    *,
    head: Head = _VOTES,
    alpha: float,
    bound: str = "auto",
    rule: str = "auto",
    lipschitz: float | None = None,
    cap: int | None = None,
    seed: int | None = None,
    input_ids: Sequence[int] | None = None,
    assume_independent: bool = False,
    backend: str = "",
    execution: Execution = _EXECUTION,
) -> list[Certificate]:
    """Return the certificate of every input of two Tallies.

    Parameters
    ----------
    selection : Tally
        Chooses each input's class, by its largest count or sum (the lowest class on a tie); bounds nothing.
    estimation : Tally or sequence of Tally
        Bounds the scores. Its samples have to be independent of the selection's, which the `Tally.provenance` of both tells.
        A sequence holds the ranges of one sample, in order: betting bounds adapt their bets from one to the next. Where they
        end is fixed before the sample (`sequences.range_ends`, `analysis_ends`).
    noise : Gaussian
        The noise both were sampled with; their provenance must state it.
    head : Head
        The score to certify; one of the Tallies' heads.
    alpha : float
        Probability that a certificate is wrong, for each input.
    bound : str
        Of votes: "clopper_pearson" ("auto"), "randomized_clopper_pearson", "beta_binomial_sequence". Of votes or scores:
        "betting" ("auto" for scores), "empirical_bernstein", "hoeffding", "betting_sequence". Of scores the two that bet
        take the histograms of `leading_classes`.
    rule : str
        "one_vs_rest", "top_two", "class_partitioning" (votes only), "bonferroni", or "auto": for each input the one of the
        first two that the selection sample says will give the larger radius; top-two where the head's scores do not sum to
        1.
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score (of the head's scores, not the logits) per unit of what the
        model takes. `of_inputs` makes it one per unit of the inputs, by the scale of `execution`; without an execution that
        names the scale it must be per unit of the inputs. Radii are then those of `Gaussian.potential` with it. It is taken
        on trust (`lipschitz_bound` proves one), and it is one of real numbers: what float32 rounds in a score comes on top.
        Below float32 it is refused: a rounded score jumps.
    cap : int, optional
        The most estimation samples of an input there could have been, fixed before. Needed with a sequence, and where
        sampling may have stopped early: then only a sequence will do, at the last look as at any other, and `estimation` has
        one Tally for each look. Leave it out only where the samples were looked at once, at a number fixed before.
    seed : int, optional
        The seed both were sampled with: by default what their provenance states. Recorded; randomized bounds take their
        uniforms from it.
    input_ids : sequence of int, optional
        The inputs' ids in the noise stream: by default what the provenance states. Recorded; randomized bounds take the
        uniforms of these ids. 0, 1, ... where no Tally states any.
    assume_independent : bool
        Take Tallies that state no provenance, on your word that no sample is in two of them or twice in one, and that all
        were drawn with `noise` and `seed`. `seed` must then be given. What is stated is checked all the same.
    backend : str
        Recorded.
    execution : Execution
        How the base classifier was run. Recorded; `lipschitz` depends on its scale.

    Returns
    -------
    list of Certificate
        One for each input, in order. A radius that is not positive becomes an abstention.

    Raises
    ------
    TypeError
        If alpha is not a number, or another argument not of its kind.
    ValueError
        If an argument is out of range, bound or rule does not fit the head, there is a Lipschitz constant of what computes
        below float32, or the Tallies do not fit each other, are not known to be independent, or lack what the bound needs.

    Notes
    -----
    With Q the noise's potential, lo and up one-sided bounds and A the selected class, the radius is
    ``(Q(lo(A)) - Q(pB)) / 2``. One-vs-rest: lo at alpha, ``pB = 1 - lo(A)``, so that the radius is ``Q(lo(A))``. Top-two:
    lo and up have half of alpha each; ``pB`` is the largest up of the other classes, and no more than ``1 - lo(A)`` if
    scores sum to at most 1. The runner-up is one fixed class whose up fails with up's share of alpha, and the largest up is
    no smaller: nothing is divided by the number of classes. "auto" tries both on the selection's scores as if there were
    as many as in the estimation; it looks at nothing else, so the certificate is wrong with probability alpha whatever it
    picks. Bonferroni and class partitioning do divide, lo and each up at
    ``alpha / K`` or alpha over the number of buckets (`partition`, of the selection's votes); they are here to compare
    with, and their radius is never above top-two's. A draw that voted for nobody counts as a trial, and for no class.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Theorem 1, Proposition 2;
    Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", 2019, for soft scores;
    Delattre et al., "Bridging the Theoretical Gap in Randomized Smoothing", 2025, for class partitioning.

    Examples
    --------
    >>> from rsfast import Provenance, Tally
    >>> tallies = []
    >>> for stream, n in (("selection", 10), ("estimation", 100)):
    ...     where = Provenance(Gaussian(0.5), seed=0, stream=stream, samples=range(n), input_ids=[0])
    ...     tallies.append(tally := Tally(1, 2, provenance=where))
    ...     tally.n[0], tally.counts[0, 0], tally.counts[0, 1] = n, 1, n - 1
    >>> (prediction, radius), = certificates(*tallies, Gaussian(0.5), alpha=0.001)
    >>> prediction, round(radius, 4)
    (1, 0.6746)
    """
    from ..ops.tally import Tally  # who has one has imported torch

    # With cap every look is one of several, the last one, too.
    spec = CertificationSpec(noise, alpha, head, bound, rule, lipschitz, looks=cap is not None)
    if not isinstance(execution, Execution):
        raise TypeError(f"execution is {execution!r}; it must be an Execution")
    ranges = estimation if isinstance(estimation, Sequence) else [estimation]
    for name, tally in (("selection", selection), *(("estimation", tally) for tally in ranges)):
        if not isinstance(tally, Tally):
            raise TypeError(
                f"{name} is or holds a {type(tally).__name__}; it must be a Tally, or of estimation a list of them"
            )
    if not ranges or len({id(tally) for tally in ranges}) < len(ranges):
        raise ValueError(f"estimation holds {len(ranges)} Tallies; it must hold at least one, and none twice")
    for tally in ranges:
        if tally is selection:
            raise ValueError("estimation is selection; it must be another, independent sample")
        for name in ("heads", "num_inputs", "num_classes"):
            ours, theirs = getattr(selection, name), getattr(tally, name)
            if ours != theirs:
                raise ValueError(f"estimation.{name} is {theirs!r}; it must be selection.{name}, {ours!r}")
    if head not in selection.heads:
        raise ValueError(f"head is {head!r}; it must be one of the Tallies' heads, {selection.heads!r}")
    seed, ids = _source(selection, ranges, noise, seed, input_ids, assume_independent)
    drawn = Scores.total(ranges, _VOTES).trials
    for name, n in (("selection", Scores.of(selection, _VOTES).trials), ("estimation", drawn)):
        if (least := int(n.min())) < 1:
            raise ValueError(f"{name}.n is {least} for an input; it must be at least 1")
    least, most = int(drawn.min()), int(drawn.max())
    cap = cap if cap is None else as_int("cap", cap)
    if cap is not None and not most <= cap < bounds.MAX_TRIALS:
        raise ValueError(f"cap is {cap}; it must be at least the estimation samples of every input, {most}, and below 2**33")
    if cap is None and least < most:
        raise ValueError(
            f"estimation.n runs from {least} to {most}; if sampling stopped early, cap must say how many samples there "
            "could have been; if these numbers were fixed before, certify inputs of different n by themselves (Tally.select)"
        )
    if cap is None and BOUNDS[spec.bound].sequence:
        raise ValueError(f"cap is None; with the bound {spec.bound!r} it must be the most samples there could have been")
    cap = most if cap is None else cap
    spec = of_inputs(spec, execution)
    return prove(spec, selection, ranges, cap=cap, seed=seed, input_ids=ids, backend=backend, execution=execution)[0]


def _source(
    selection: Tally,
    ranges: Sequence[Tally],
    noise: Gaussian,
    seed: int | None,
    input_ids: Sequence[int] | None,
    assume_independent: bool,
) -> tuple[int, list[int]]:
    """Return the seed and the input ids of Tallies; raise ValueError unless they hold each of their samples once."""
    known: list[tuple[str, Provenance]] = []
    for name, tally in (("selection", selection), *(("estimation", tally) for tally in ranges)):
        tally.check_provenance(name)
        if tally.provenance is None and not assume_independent:
            raise ValueError(
                f"{name}.provenance is None, so nothing tells that estimation is independent of selection; it must state "
                "where the samples come from, as a Tally from sample does, or assume_independent must be True"
            )
        for other_name, other in known:
            if tally.provenance is not None:
                try:
                    other.check_independent(tally.provenance)
                except ValueError as error:
                    raise ValueError(f"{other_name} and {name} do not fit: {error}") from None
        known += [] if tally.provenance is None else [(name, tally.provenance)]
    ids = None if input_ids is None else list(check_input_ids(input_ids))
    if ids is not None and len(ids) != selection.num_inputs:
        raise ValueError(f"input_ids has {len(ids)} entries; it must have one for each of {selection.num_inputs} inputs")
    seed = seed if seed is None else check_seed(seed)
    if not known:
        if seed is None:
            raise TypeError("seed is None; it must be an int where no Tally states it")
        return seed, list(range(selection.num_inputs)) if ids is None else ids
    name, stated = known[0]
    for what, given, theirs in (
        ("noise", noise, stated.noise),
        ("seed", seed, stated.seed),
        ("input_ids", ids, list(stated.input_ids)),
        ("STREAM_VERSION", STREAM_VERSION, stated.stream_version),
    ):
        if given is not None and given != theirs:
            raise ValueError(f"{what} is {given!r}, but {name} was sampled with {theirs!r}; they must agree")
    return stated.seed, list(stated.input_ids)


def of_inputs(spec: CertificationSpec, execution: Execution) -> CertificationSpec:
    """Return the spec with its Lipschitz constant per unit of the inputs, in which radii are measured.

    Parameters
    ----------
    spec : CertificationSpec
        Its Lipschitz constant is one per unit of what the model takes: of the inputs after scale and shift.
    execution : Execution
        How the base classifier runs.

    Returns
    -------
    CertificationSpec
        The constant is multiplied by the largest ``|scale|``, and rounded up. A largest scale below 1 leaves it as it is, so
        that a constant per unit of the inputs, too, is never made too small.

    Raises
    ------
    ValueError
        If there is a constant and something computes below float32: a score that is rounded so jumps, and has none.

    Examples
    --------
    >>> from rsfast.heads import Softmax
    >>> spec = CertificationSpec(Gaussian(0.5), 0.001, Softmax(), lipschitz=0.5)
    >>> round(of_inputs(spec, Execution(scale=(2.0, 4.0))).lipschitz, 9)
    2.0
    """
    if spec.lipschitz is None:
        return spec
    if low := execution.below_float32:
        raise ValueError(
            f"lipschitz is {spec.lipschitz!r}; it must be None where the model computes in less than float32 precision, "
            f"as scores rounded so have no Lipschitz constant: {low}"
        )
    steepest = max([1.0, *map(abs, execution.scale or ())])
    constant = float(spec.lipschitz)
    return replace(spec, lipschitz=constant if steepest == 1 else math.nextafter(constant * steepest, math.inf))


def prove(
    spec: CertificationSpec,
    selection: Tally,
    ranges: Sequence[Tally],
    *,
    cap: int,
    seed: int,
    input_ids: Sequence[int],
    backend: str,
    execution: Execution = _EXECUTION,
) -> tuple[list[Certificate], Estimates, Limits]:
    """Return what `certificates` does, of arguments that fit each other, and what it rests on; of a spec `of_inputs`."""
    selected = Scores.of(selection, spec.head)
    estimates = Estimates.of(selected, ranges, spec.head, spec.bound, cap, seed, input_ids)
    found = rules.limits(estimates, spec)
    radii = rules.radius(spec.noise, found.lower, found.upper, spec.lipschitz)

    chosen = estimates.classes[:, :1]
    votes = Scores.total(ranges, _VOTES).sums
    first, second = np.take_along_axis(votes, chosen, axis=1), votes.copy()
    np.put_along_axis(second, chosen, -1, axis=1)
    drawn = estimates.scores.trials
    columns = (chosen, radii, found.lower, found.upper, first, second.max(axis=1), selected.trials, drawn)
    certificates = [
        Certificate(
            prediction=label if r > 0 else ABSTAIN,
            radius=max(0.0, r),
            norm=spec.noise.norm,
            p_lower=lower,
            p_upper=upper,
            counts=(a, b),
            n0=n0,
            n=n,
            alpha=spec.alpha,
            rule=used,
            bound=spec.bound,
            head=spec.head,
            noise=spec.noise,
            seed=seed,
            stream_version=STREAM_VERSION,
            input_id=int(input_id),
            backend=backend,
            alpha_upper=part,
            lipschitz=spec.lipschitz,
            cap=cap,
            execution=execution,
        )
        for input_id, label, r, lower, upper, a, b, n0, n, used, part in zip(
            input_ids, *(c.ravel().tolist() for c in (*columns, found.rules, found.alpha_upper)), strict=True
        )
    ]
    return certificates, estimates, found


def prediction(votes: NDArray[np.int64], alpha: float) -> int:
    """Return the smoothed classifier's class, from votes [classes], or `ABSTAIN`.

    Parameters
    ----------
    votes : ndarray of int64
        Votes for each of two or more classes.
    alpha : float
        Probability that a class returned is not the smoothed classifier's.

    Returns
    -------
    int
        The class with most votes; `ABSTAIN` where the two-sided exact binomial test of the top two classes does not
        reject, at level alpha, that they are equally likely.

    Raises
    ------
    TypeError
        If alpha is not a number.
    ValueError
        If alpha is not in (0, 1).

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Proposition 1.

    Examples
    --------
    >>> prediction(np.array([2, 18]), 0.001), prediction(np.array([9, 11]), 0.001)
    (1, -1)
    """
    alpha = bounds.check_alpha(alpha)
    label, rival = np.argsort(-votes)[:2]  # which of two equal classes comes first does not matter: they abstain
    first, second = int(votes[label]), int(votes[rival])
    return int(label) if first and binomtest(first, first + second, 0.5).pvalue <= alpha else ABSTAIN


def predictions(tally: Tally, alpha: float) -> list[int]:
    """Return the `prediction` at every input of a Tally; draws that voted for nobody are left out.

    Parameters, errors, source: as `prediction`. ValueError if n is not what the Tally's provenance states.

    Examples
    --------
    >>> from rsfast import Tally
    >>> tally = Tally(2, 2)
    >>> for counts, votes in zip(tally.counts, ([2, 18], [9, 11])):
    ...     counts[0], counts[1] = votes
    >>> predictions(tally, 0.001)
    [1, -1]
    """
    tally.check_provenance()
    return [prediction(votes, alpha) for votes in Scores.of(tally, _VOTES).sums]


def smallest_certifiable_n(alpha: float) -> int:
    """Return the fewest estimation samples with which unanimous votes certify anything: ``alpha ** (1 / n) > 1/2``.

    Raises
    ------
    TypeError, ValueError
        If alpha is not a number in (0, 1).

    Examples
    --------
    >>> smallest_certifiable_n(0.001)
    10
    """
    mantissa, exponent = math.frexp(bounds.check_alpha(alpha))  # exact, where a logarithm is not at powers of 1/2
    return 2 - exponent if mantissa == 0.5 else 1 - exponent


def smallest_predictable_n(alpha: float) -> int:
    """Return the fewest samples with which `predictions` can answer: a unanimous test, ``2 ** (1 - n) <= alpha``.

    Raises
    ------
    TypeError, ValueError
        If alpha is not a number in (0, 1).

    Examples
    --------
    >>> smallest_predictable_n(0.001)
    11
    """
    return 2 - math.frexp(bounds.check_alpha(alpha))[1]
