"""What a noise's parameters may be, declared as data: checked in Python, read from the command line, shown in its help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_float, as_int, check_choice
from .._files import reason


class Constraint(Protocol):
    """What a parameter may be. A noise's `constraints` have one for each of its fields."""

    def check(self, name: str, value: Any) -> Any:
        """Return `value` as the noise keeps it; raise TypeError or ValueError, which name it, if it is not allowed.

        What is returned can be hashed and compared. The same value, or what JSON makes of
        `FrozenArray.tolist`, gives it again.
        """

    def parse(self, name: str, text: str) -> Any:
        """Return what a text on the command line stands for, for `check`; raise ValueError, which names it, if nothing."""

    def form(self, name: str) -> str:
        """Return what stands for the value in help."""


def _parsed(read: Callable[[str], Any], name: str, text: str, what: str) -> Any:
    try:
        return read(text)
    except ValueError:
        raise ValueError(f"{name} must be {what}, got {text!r}") from None


@dataclass(frozen=True)
class Real:
    """The numbers from `low` to `high`, and the words that say so in an error.

    Examples
    --------
    >>> POSITIVE.check("sigma", 1)
    1.0
    """

    low: float
    high: float
    words: str

    def check(self, name: str, value: object) -> float:
        """Return `value` as a float."""
        number = as_float(name, value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{name} must be {self.words}, got {value!r}")
        return number

    def parse(self, name: str, text: str) -> float:
        """Return the number."""
        return float(_parsed(float, name, text, "a number"))

    def form(self, name: str) -> str:
        """Return the name in capitals."""
        return name.upper()


_FLOAT32 = np.finfo(np.float32)
POSITIVE = Real(float(_FLOAT32.tiny), float(_FLOAT32.max), "positive, finite and a normal float32")


@dataclass(frozen=True)
class Integer:
    """The integers from `low` to `high`.

    Examples
    --------
    >>> Integer(1, 255).check("levels", np.uint8(255))
    255
    """

    low: int
    high: int

    def check(self, name: str, value: object) -> int:
        """Return `value` as an int."""
        number = as_int(name, value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{name} must be from {self.low} to {self.high}, got {number}")
        return number

    def parse(self, name: str, text: str) -> int:
        """Return the integer."""
        return int(_parsed(int, name, text, "an integer"))

    def form(self, name: str) -> str:
        """Return the name in capitals."""
        return name.upper()


@dataclass(frozen=True)
class Flag:
    """True or False; "true" or "false" on the command line, in any case.

    Examples
    --------
    >>> Flag().parse("deterministic", "true")
    True
    """

    def check(self, name: str, value: object) -> bool:
        """Return `value`."""
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")
        return value

    def parse(self, name: str, text: str) -> bool:
        """Return the bool."""
        if (lower := text.lower()) not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return lower == "true"

    def form(self, name: str) -> str:
        """Return both texts."""
        return "true|false"


@dataclass(frozen=True)
class Choice:
    """One of some names.

    Examples
    --------
    >>> Choice(("element", "pixel")).form("per")
    'element|pixel'
    """

    names: tuple[str, ...]

    def check(self, name: str, value: object) -> str:
        """Return `value`."""
        return str(check_choice(name, value, self.names))

    def parse(self, name: str, text: str) -> str:
        """Return the text."""
        return text

    def form(self, name: str) -> str:
        """Return all names."""
        return "|".join(self.names)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that cannot be made writable, as its memory is that of bytes."""
    return np.ndarray(array.shape, array.dtype, array.tobytes())


class FrozenArray:
    """A float64 array that never changes, so that a noise that has it can be compared and hashed.

    Parameters
    ----------
    values : array_like
        They are copied.

    Examples
    --------
    >>> FrozenArray([[0.5, 0.25]]) == FrozenArray(np.array([[0.5, 0.25]]))
    True
    >>> FrozenArray([[0.5, 0.25]])
    0.25 to 0.5 of shape [1, 2]
    """

    def __init__(self, values: ArrayLike) -> None:
        self._array = read_only(np.asarray(values, dtype=np.float64) + 0.0)  # no -0.0, which equals 0.0 but has other bytes
        self._hash = hash((self._array.shape, self._array.tobytes()))

    @property
    def array(self) -> NDArray[np.float64]:
        """The values, read-only."""
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self._array.shape

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, place: Any) -> Any:
        return self._array[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenArray) and self._hash == other._hash and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{self.array.min():.6g} to {self.array.max():.6g} of shape {[*self.array.shape]}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy or dtype not in (None, np.float64) else self.array

    def __reduce__(self) -> tuple[type[FrozenArray], tuple[NDArray[np.float64]]]:
        return FrozenArray, (self.array,)  # another process has other hashes

    def tolist(self) -> Any:
        """Return the values as lists, which JSON can hold."""
        return self.array.tolist()


def distinct_texts(first: object, second: object) -> tuple[str, str]:
    """Return the texts of two values of one parameter; of arrays that read the same, with the first element that differs.

    Examples
    --------
    >>> distinct_texts(FrozenArray([1, 2, 4]), FrozenArray([1, 3, 4]))
    ('1 to 4 of shape [3], 2.0 at [1]', '1 to 4 of shape [3], 3.0 at [1]')
    >>> distinct_texts(0.25, 0.5)
    ('0.25', '0.5')
    """
    texts = str(first), str(second)
    if texts[0] != texts[1] or not isinstance(first, FrozenArray) or not isinstance(second, FrozenArray) or first == second:
        return texts
    place = tuple(np.argwhere(first.array != second.array)[0].tolist())
    one, other = (f"{each!r}, {each.array[place].item()!r} at {[*place]}" for each in (first, second))
    return one, other


@dataclass(frozen=True)
class Array:
    """Arrays whose elements a constraint of numbers allows; on the command line a .npy file, or numbers with commas.

    Parameters
    ----------
    element : Real
    axes : tuple of int, optional
        How many axes there may be; any number but 0 by default.

    Examples
    --------
    >>> Array(POSITIVE, (1, 3)).check("sigmas", [0.5, 0.25])
    0.25 to 0.5 of shape [2]
    """

    element: Real
    axes: tuple[int, ...] = ()

    def check(self, name: str, value: Any) -> FrozenArray:
        """Return `value` as a `FrozenArray`."""
        array = value.array if isinstance(value, FrozenArray) else _as_array(name, value)
        if array.ndim not in (self.axes or range(1, array.ndim + 1)) or not array.size:
            raise ValueError(f"{name} must be an array of {self._axes} axes that is not empty, got shape {[*array.shape]}")
        wrong = ~((array >= self.element.low) & (array <= self.element.high))
        if wrong.any():
            raise ValueError(f"{name} must hold numbers that are {self.element.words}, got {array[wrong][0]}")
        return value if isinstance(value, FrozenArray) else FrozenArray(array)

    def parse(self, name: str, text: str) -> NDArray[Any] | Sequence[float]:
        """Return the file's array, or the numbers, which make an array of one axis."""
        if not text.endswith(".npy"):
            flat = 1 in (self.axes or (1,))
            what = "a .npy file" + (", or numbers with commas between" if flat else f" of {self._axes} axes")
            numbers: list[float] = _parsed(lambda each: [float(number) for number in each.split(",")], name, text, what)
            if not flat:
                raise ValueError(f"{name} must be {what}, got {text!r}")
            return numbers
        try:
            with Path(text).open("rb") as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} must be a .npy file of numbers, got {text!r}: {reason(error)}") from error

    def form(self, name: str) -> str:
        """Return the name of a file, from the parameter's."""
        return f"{name.upper()}.npy"

    @property
    def _axes(self) -> str:
        return " or ".join(map(str, self.axes)) or "1 or more"


def _as_array(name: str, value: Any) -> NDArray[np.float64]:
    try:
        array = np.asarray(value)
    except ValueError as error:  # of lists of several lengths
        raise TypeError(f"{name} must be an array of numbers: {error}") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be an array of real numbers, got one of {array.dtype}")
    return array.astype(np.float64)
