"""What noises with an array among their parameters share: checks, equality, and a short text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .base import Noise


class ArrayConstraint(NamedTuple):
    """The numbers that an array may hold, as a function that says which are right, and the words that say so in an error.

    Examples
    --------
    >>> ArrayConstraint(np.isfinite, "finite", np.float32).check("sigmas", [1, 2])
    array([1., 2.], dtype=float32)
    """

    holds: Callable[[NDArray[np.float64]], Any]
    words: str
    dtype: DTypeLike

    def check(self, name: str, value: object) -> NDArray[Any]:
        """Return a copy of `value` that nobody can write to; raise TypeError or ValueError, naming it, if it is wrong."""
        try:
            array = np.array(value)
        except (TypeError, ValueError):  # ragged lists, tensors on a GPU
            array = np.array(None)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be an array of real numbers, got {value!r:.80}")
        if not array.size or not array.ndim:
            raise ValueError(f"{name} must have one axis or more, none of length 0, got shape {list(array.shape)}")
        right = self.holds(array.astype(np.float64))
        if not np.all(right):
            raise ValueError(
                f"{name} must hold numbers that are {self.words}, got {array[~right].flat[0].item()!r} among them"
            )
        array = np.ascontiguousarray(array, dtype=self.dtype)
        array.flags.writeable = False
        return array


class ArrayNoise(Noise):
    """A noise with arrays among its fields, which nobody can write to: equal if all fields are, with a hash made once.

    Subclasses have the decorator ``dataclass(frozen=True, eq=False, repr=False)``, and an
    `ArrayConstraint` for each field that is an array.
    """

    has_arrays = True

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        pairs = zip(self._fields().values(), other._fields().values(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        values = (np.asarray(value) for value in self._fields().values())
        return hash((type(self), *((value.shape, value.tobytes()) for value in values)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields only: the hash of bytes is another one in another process."""
        return type(self), tuple(self._fields().values())

    def __repr__(self) -> str:
        return f"{self.name}({self.settings})"

    @property
    def settings(self) -> str:
        """The parameters as messages show them, as "sigmas = 3 values from 0.1 to 0.5"."""
        return ", ".join(f"{name} = {_text(value)}" for name, value in self._fields().items())

    def to_dict(self) -> dict[str, Any]:
        """Return the noise's name and parameters, arrays as nested lists; `from_dict` reads it back."""
        return {"name": self.name, **{name: np.asarray(value).tolist() for name, value in self._fields().items()}}


def _text(value: Any) -> str:
    if np.ndim(value) == 0:
        return str(value)
    return f"{' x '.join(map(str, value.shape))} values from {value.min():g} to {value.max():g}"
