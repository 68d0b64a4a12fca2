"""Certificates: what is proved about an input, and how the base classifier was run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._check import check_choice, is_real
from ..heads import Head
from ..heads import from_dict as head_from_dict
from ..noise import Noise
from ..noise import from_dict as noise_from_dict

if TYPE_CHECKING:
    from pandas import DataFrame

ABSTAIN = -1
"""The prediction where nothing is proved at the failure probability that was asked for."""

_NAMES = {"max_samples": "cap"}
"""Fields whose name in files is older."""

_LEFT_OUT = {"top_k": 1}
"""Fields that files hold only where they have another value than this: earlier versions did not have them."""


def _float32s(name: str, values: object) -> tuple[float, ...]:
    """Return a sequence of numbers as float32 holds them."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    for value in values:
        if not is_real(value):
            raise TypeError(f"{name} must hold numbers only, got {value!r}")
    with np.errstate(over="ignore"):
        return tuple(np.array(values, dtype=np.float32).tolist())


@dataclass(frozen=True)
class Execution:
    """How the base classifier was run. What it computes depends on that, so a certificate holds for one Execution only.

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
        By what noisy inputs were then multiplied, and what was then added, as float32 holds it: a number for each channel,
        or one number if it is the same for all.
    reduced_precision : tuple of str, optional
        What else computes in less than float32 precision: the dtypes of the model's state, PyTorch's settings (TF32, say).
    mode_fixed : bool
        Whether part of it ran in the only mode it has, that in which it was made: an exported program or frozen
        TorchScript. All else ran in eval mode.

    Raises
    ------
    TypeError
        If a field has another type.
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
        check_choice("dtype", self.dtype, ("float32", "float16", "bfloat16", "float64"))
        check_choice("autocast", self.autocast, (None, "float16", "bfloat16"))
        for name in ("channels_last", "compile", "cuda_graph", "mode_fixed"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {value!r}")
        self._settle_clamp()
        self._settle_scale_and_shift()
        if (found := self.reduced_precision) is not None:
            if isinstance(found, str) or not isinstance(found, Sequence) or not all(isinstance(each, str) for each in found):
                raise TypeError(f"reduced_precision must be a sequence of str, got {found!r}")
            object.__setattr__(self, "reduced_precision", tuple(found) or None)

    def _settle_clamp(self) -> None:
        if self.clamp is None:
            return
        if isinstance(self.clamp, str) or not isinstance(self.clamp, Sequence) or len(self.clamp) != 2:
            raise TypeError(f"clamp must be (low, high), got {self.clamp!r}")
        ends = zip(self.clamp, (-math.inf, math.inf), strict=True)  # JSON has no infinity, and None instead
        low, high = _float32s("clamp", [otherwise if end is None else end for end, otherwise in ends])
        if not low <= high or low == math.inf or high == -math.inf:
            raise ValueError(f"clamp must be (low, high) with low <= high, got {self.clamp!r}")
        object.__setattr__(self, "clamp", (low, high))

    def _settle_scale_and_shift(self) -> None:
        lengths = set()
        for name in ("scale", "shift"):
            if (given := getattr(self, name)) is None:
                continue
            values = _float32s(name, given)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be finite, got {given!r}")
            lengths.add(len(values))
            object.__setattr__(self, name, values[:1] if len(set(values)) == 1 else values)
        if len(lengths - {1}) > 1:
            raise ValueError(f"scale and shift must have the same length, got {self.scale!r} and {self.shift!r}")

    @property
    def below_float32(self) -> str:
        """Which parts compute in less than float32 precision, in words; empty if none does."""
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


@dataclass(frozen=True)
class Certificate:
    """What is proved about one input: the smoothed classifier returns ``prediction`` within ``radius`` of it.

    With ``top_k`` above 1 what is proved is less: there ``prediction`` is one of the top_k classes with the largest scores.
    It holds with probability at least ``1 - alpha`` over the samples. It unpacks as ``prediction, radius``. A
    `pandas.DataFrame` of a list of them has a row for each, and a column for each field.

    Parameters
    ----------
    prediction : int
        The class, or `ABSTAIN`.
    radius : float
        In ``norm``, in the unit that `noise.NORMS` states, rounded down; 0 for an abstention.
    norm : str
        The norm of the noise.
    p_lower, p_upper : float
        Lower bound on the selected class's smoothed score, upper bound on every other class's; with top_k above 1 on the
        top_k-th largest of these.
    counts : tuple of int
        Votes, in the estimation sample, for the selected class and for the one of the others that got most.
    n0, n : int
        Selection and estimation samples used.
    max_samples : int
        The most estimation samples there could have been: more than n where sampling stopped early; 0 if not known.
        `to_dict` calls it "cap".
    alpha : float
        Probability that the certificate is wrong.
    alpha_upper : float
        The part of it that p_upper may fail with; the rest is p_lower's.
    lipschitz : float, optional
        The Lipschitz constant of the base scores that the radius rests on, per unit of the input.
    rule, bound : str
        As used: one of `rules.RULES`, one of `registry.BOUNDS`.
    head : Head
        The score that was averaged.
    noise : Noise
        The smoothing noise.
    seed, stream_version, input_id : int
        The noise depends on them and the sample indices only.
    backend : str
        What computed it; the result does not depend on it.
    execution : Execution
        How the base classifier was run.
    top_k : int
        Of how many classes with the largest scores ``prediction`` is one within the radius. `to_dict` leaves out a 1.

    Examples
    --------
    >>> from rsfast import Gaussian, Votes
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
    noise: Noise
    seed: int
    stream_version: int
    input_id: int
    backend: str = ""
    alpha_upper: float = 0.0
    lipschitz: float | None = None
    max_samples: int = 0
    execution: Execution = field(default_factory=Execution)
    top_k: int = 1

    @property
    def abstained(self) -> bool:
        """Whether the prediction is `ABSTAIN`."""
        return self.prediction == ABSTAIN

    def radius_in(self, norm: str, shape: Sequence[int] | None = None) -> float:
        """Return the radius in another norm, rounded down; 0 for an abstention. See `Noise.radius_in`.

        Parameters
        ----------
        norm : str
            This certificate's, which returns `radius`, or one that its noise converts to.
        shape : sequence of int, optional
            Of the input, where the conversion depends on it. Whenever it is given, the noise must fit it.

        Raises
        ------
        TypeError, ValueError
            If the noise does not convert to this norm, or shape is wrong, or is missing and needed.

        Examples
        --------
        >>> from rsfast import Laplace, Votes
        >>> found = Certificate(3, 0.5, "l1", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest", "clopper_pearson",
        ...                     Votes(), Laplace(0.5), seed=0, stream_version=1, input_id=0)
        >>> found.radius_in("l2", shape=(4, 4))
        0.125
        """
        return self.noise.radius_in(self.radius, norm, shape)

    def covers(self, delta: ArrayLike) -> bool:
        """Return whether it is proved that the class is the same, or of the `top_k`, at the input plus a perturbation.

        Parameters
        ----------
        delta : array_like ``[*shape]``
            What is added to the input, of the input's full shape and in its units: finite
            floating-point numbers, which `Noise.size` measures. A certificate does not know the
            shape of its input. So what would have to be broadcast is refused only where the noise's
            parameters do not fit it; elsewhere its size is too small.

        Returns
        -------
        bool
            False for an abstention.

        Raises
        ------
        TypeError, ValueError
            As `Noise.size` raises them, also for an abstention.

        Examples
        --------
        >>> from rsfast import Gaussian, Votes
        >>> found = Certificate(3, 0.5, "l2", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest", "clopper_pearson", Votes(),
        ...                     Gaussian(0.5), seed=0, stream_version=1, input_id=0)
        >>> found.covers([0.3, 0.3]), found.covers([0.3, 0.4])
        (True, False)
        """
        covered = bool(self.noise.size(delta) <= self.radius)
        return covered and not self.abstained

    def __getitem__(self, place: int) -> int | float:
        """Return the prediction or the radius, which is what unpacking needs."""
        return (self.prediction, self.radius)[place]

    if TYPE_CHECKING:  # type checkers ask for it, but pandas would take for a row of two numbers what has it

        def __iter__(self) -> Iterator[int | float]: ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_dict` gives back an equal Certificate."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        data = {_NAMES.get(name, name): value for name, value in held.items() if (name, value) not in _LEFT_OUT.items()}
        written = {name: data[name].to_dict() for name in ("head", "noise", "execution")}
        return data | written | {"counts": list(self.counts)}

    def to_row(self) -> dict[str, Any]:
        """Return the certificate as a row of a table, by column: numbers, texts, bools and None.

        It is what `to_frame` makes a column of each. The two counts have a column each. Head and noise are texts, and so is
        what is not the default of the execution.

        Examples
        --------
        >>> from rsfast import Gaussian, Votes
        >>> found = Certificate(3, 0.5, "l2", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest", "clopper_pearson", Votes(),
        ...                     Gaussian(0.5), seed=0, stream_version=1, input_id=7)
        >>> row = found.to_row()
        >>> row["input_id"], row["prediction"], row["radius"], row["count"], row["count_of_next"], row["noise"]
        (7, 3, 0.5, 90, 7, 'Gaussian(sigma=0.5)')
        """
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        count, following = row.pop("counts")
        execution, default = row.pop("execution").to_dict(), Execution().to_dict()
        changed = ", ".join(f"{name} = {value}" for name, value in execution.items() if value != default[name])
        first = {"input_id": row.pop("input_id"), "prediction": row.pop("prediction"), "radius": row.pop("radius")}
        texts = {name: repr(row[name]) for name in ("head", "noise")}
        return {**first, **row, **texts, "count": count, "count_of_next": following, "execution": changed}

    def _repr_html_(self) -> str:
        """Return the row as a table of two columns, which notebooks show."""
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in self.to_row().items()
        )
        return f"<table>{cells}</table>"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Return the Certificate that `to_dict` wrote.

        Without an ``execution`` it gets the default, and without a ``norm`` that of its noise.

        Raises
        ------
        TypeError
            If a field is missing or unknown.
        ValueError
            If the head or the noise has an unknown name, or they or the execution a parameter out of range.
        """
        if not isinstance(data, Mapping):
            hint = "; read JSON with json.loads first" if isinstance(data, str) else ""
            raise TypeError(f"data must be a dict that to_dict wrote, got a {type(data).__name__}{hint}")
        read: dict[str, Callable[[Any], Any]] = {
            "head": head_from_dict,
            "noise": noise_from_dict,
            "counts": tuple,
            "execution": Execution.from_dict,
        }
        names = {written: name for name, written in _NAMES.items()}
        found = {names.get(name, name): read[name](value) if name in read else value for name, value in data.items()}
        if "norm" not in found and "noise" in found:
            found["norm"] = found["noise"].norm
        return cls(**found)


def to_frame(found: Iterable[Certificate | Sequence[Certificate]]) -> DataFrame:
    """Return certificates as a pandas.DataFrame of their rows (`Certificate.to_row`), in their order.

    Parameters
    ----------
    found : iterable of Certificate, or of sequences of Certificate
        As `certify` returns them; for several heads it returns a list for each input, which gives a row for each head.

    Raises
    ------
    TypeError
        If found holds anything else.
    ImportError
        If pandas is not installed.

    Examples
    --------
    >>> from rsfast import Gaussian, Votes
    >>> found = Certificate(3, 0.5, "l2", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest", "clopper_pearson", Votes(),
    ...                     Gaussian(0.5), seed=0, stream_version=1, input_id=7)
    >>> to_frame([found])[["input_id", "prediction", "radius", "head"]]
       input_id  prediction  radius     head
    0         7           3     0.5  Votes()
    """
    if isinstance(found, Certificate) or not isinstance(found, Iterable):
        hint = "; pass [certificate]" if isinstance(found, Certificate) else ""
        raise TypeError(f"found must be a list of certificates, got a {type(found).__name__}{hint}")
    rows = []
    for each in found:
        certificates: Sequence[Any] = each if isinstance(each, (list, tuple)) else [each]
        if not all(isinstance(certificate, Certificate) for certificate in certificates):
            raise TypeError(f"found must hold certificates, or a list of them for each input, got {each!r:.80}")
        rows += [certificate.to_row() for certificate in certificates]
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame needs pandas, which `pip install pandas` installs") from error
    return pandas.DataFrame(rows)
