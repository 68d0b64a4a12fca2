"""Where the samples of a Tally come from: what tells independent samples from the same samples counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._check import check_choice, is_int
from . import STREAM_VERSION, STREAMS, Noise, check_noise, check_seed
from . import from_dict as noise_from_dict

_END = 1 << 56  # sample indices lie below


@dataclass(frozen=True)
class Provenance:
    """The place in the noise stream of every sample of a Tally.

    Samples of one seed, input and stream are independent if their indices differ; those of different streams always are.

    Parameters
    ----------
    noise : Noise
        What was added to the inputs.
    seed : int
        In [0, 2^64).
    stream : str
        "selection", "estimation", "training" or "user".
    samples : range, or sequence with one entry for each input
        Sample indices, in [0, 2^56): one range for all inputs, or for each input a range or a sequence of ranges that do not
        overlap. Kept as a tuple of ranges for each input, in ascending order.
    input_ids : sequence of int
        Identity of each input in the noise stream, in [0, 2^32).
    stream_version : int
        `STREAM_VERSION` of the package that drew the samples.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> first = Provenance(Gaussian(0.5), seed=1, stream="estimation", samples=range(60), input_ids=[7])
    >>> rest = Provenance(Gaussian(0.5), seed=1, stream="estimation", samples=range(60, 100), input_ids=[7])
    >>> (first + rest).samples
    ((range(0, 100),),)
    """

    noise: Noise
    seed: int
    stream: str
    samples: Any
    input_ids: Any
    stream_version: int = STREAM_VERSION

    def __post_init__(self) -> None:
        check_noise("noise", self.noise)
        check_choice("stream", self.stream, STREAMS)
        ids = check_input_ids(self.input_ids)
        samples = self.samples
        if isinstance(samples, range):
            samples = (_merged([samples], "samples"),) * len(ids)
        elif isinstance(samples, str) or not isinstance(samples, Sequence):
            raise TypeError(f"samples must be a range, or a sequence with one entry for each input, got {samples!r}")
        else:
            samples = tuple(
                _merged([each] if isinstance(each, range) else each, f"samples[{i}]") for i, each in enumerate(samples)
            )
        if len(samples) != len(ids):
            raise ValueError(f"samples must have one entry for each of {len(ids)} input_ids, got {len(samples)}")
        values = {"seed": check_seed(self.seed), "samples": samples, "input_ids": ids}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def counts(self) -> list[int]:
        """Return the number of samples of each input."""
        return [sum(map(len, ranges)) for ranges in self.samples]

    def select(self, places: Sequence[int]) -> Provenance:
        """Return the provenance of the inputs at these places, in this order."""
        samples, ids = ([values[place] for place in places] for values in (self.samples, self.input_ids))
        return replace(self, samples=samples, input_ids=ids)

    def __add__(self, other: Provenance) -> Provenance:
        """Return the provenance of both sets of samples; raise ValueError unless they are independent and of one stream."""
        if not isinstance(other, Provenance):
            return NotImplemented
        self.check_independent(other)
        if self.stream != other.stream:
            raise ValueError(f"their stream must agree, got {self.stream!r} and {other.stream!r}")
        return replace(self, samples=[a + b for a, b in zip(self.samples, other.samples, strict=True)])

    def check_independent(self, other: Provenance) -> None:
        """Raise ValueError unless both are of the same inputs, noise and seed, and hold no sample twice."""
        for name in ("noise", "seed", "input_ids", "stream_version"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"their {name} must agree, got {_short(ours)} and {_short(theirs)}")
        if self.stream != other.stream:
            return
        for input_id, ours, theirs in zip(self.input_ids, self.samples, other.samples, strict=True):
            for a in ours:
                for b in theirs:
                    if (start := max(a.start, b.start)) < (stop := min(a.stop, b.stop)):
                        raise ValueError(
                            f"both hold samples {start} to {stop - 1} of input {input_id} in the stream {self.stream!r}; "
                            "they must hold different samples"
                        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_dict` gives back an equal Provenance."""
        samples = [[[each.start, each.stop] for each in ranges] for ranges in self.samples]
        return {**vars(self), "noise": self.noise.to_dict(), "samples": samples, "input_ids": list(self.input_ids)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Provenance:
        """Return the Provenance that `to_dict` wrote; raise TypeError or ValueError if it is damaged."""
        samples = [[range(start, stop) for start, stop in ranges] for ranges in data["samples"]]
        return cls(**{**data, "noise": noise_from_dict(data["noise"]), "samples": samples})


def check_input_ids(input_ids: Any) -> tuple[int, ...]:
    """Return ids of inputs as a tuple; raise TypeError or ValueError unless each is an int in [0, 2^32)."""
    ids = tuple(input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids)
    for each in ids:
        if not is_int(each) or not 0 <= each < 1 << 32:
            raise ValueError(f"input_ids must hold ints in [0, 2^32), got {each!r}")
    return tuple(map(int, ids))


def _merged(ranges: Any, name: str) -> tuple[range, ...]:
    """Return ranges in ascending order, adjacent ones as one; raise an error that names them if they overlap."""
    if not isinstance(ranges, Sequence) or not all(isinstance(each, range) and each.step == 1 for each in ranges):
        raise TypeError(f"{name} must be a range of step 1, or a sequence of them, got {ranges!r}")
    return tuple(_joined(sorted((each for each in ranges if each), key=lambda each: each.start), name))


def _joined(ascending: Sequence[range], name: str) -> Iterator[range]:
    last = None
    for each in ascending:
        if each.start < 0 or each.stop > _END:
            raise ValueError(f"{name} must lie in [0, 2^56), got {each}")
        if last is not None and each.start < last.stop:
            raise ValueError(f"{name} must hold ranges that do not overlap, got {last} and {each}")
        if last is not None and each.start == last.stop:
            each = range(last.start, each.stop)
        elif last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
