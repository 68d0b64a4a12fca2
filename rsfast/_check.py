"""Checks of arguments, and the one form of their errors: "`name` must be X, got Y", then what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

MAX_SAMPLES = (1 << 33) - 1
"""Most samples of one input: 2^33 scores of 2^30 would overflow int64."""


def is_int(value: object) -> bool:
    """Return whether `value` is an integer, as `as_int` takes one.

    Examples
    --------
    >>> is_int(np.int16(5)), is_int(5.0), is_int(True)
    (True, False, False)
    """
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or "bool" in str(getattr(value, "dtype", "")):
        return False  # an index to torch all the same
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # as of a tensor of floats, which has the method
        return False
    return True


def is_real(value: object) -> bool:
    """Return whether `value` is a real number of Python or NumPy, as `as_real` takes one.

    Examples
    --------
    >>> is_real(np.float32(5)), is_real("5"), is_real(True)
    (True, False, False)
    """
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def as_int(name: str, value: object) -> int:
    """Return an integer of any library, such as NumPy's or a tensor without axes, as Python's.

    Raises
    ------
    TypeError
        If `value` is not an integer. A bool is not.

    Examples
    --------
    >>> as_int("n", np.int16(5))
    5
    """
    if type(value) is int:  # all that torch.compile can follow
        return value
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return operator.index(value)  # type: ignore[arg-type]


def check_count(name: str, value: object) -> int:
    """Return a number of samples, or of rows, as an int; raise unless it is an int from 1 to `MAX_SAMPLES`."""
    count = as_int(name, value)
    if not 1 <= count <= MAX_SAMPLES:
        raise ValueError(f"{name} must be from 1 to {MAX_SAMPLES}, got {count}")
    return count


def as_float(name: str, value: object) -> float:
    """Return a number as Python's float, an integer beyond all floats as infinity; raise TypeError if it is not one.

    Examples
    --------
    >>> as_float("b", 10**400)
    inf
    """
    if not is_real(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def as_real(
    name: str,
    value: object,
    *,
    above: float | None = None,
    below: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> float:
    """Return a finite number within the bounds as Python's float.

    Parameters
    ----------
    name : str
        What the error calls it.
    value : int, float or scalar of NumPy
    above, below : float, optional
        The number must be greater, or less.
    least, most : float, optional
        The number must be at least this, or at most.

    Raises
    ------
    TypeError
        If `value` is not a number. A bool is not.
    ValueError
        If it is NaN, infinite or out of bounds.

    Examples
    --------
    >>> as_real("alpha", np.float64(0.25), above=0, below=1)
    0.25
    >>> as_real("alpha", 1, above=0, below=1)
    Traceback (most recent call last):
    ValueError: alpha must be a finite number above 0 and below 1, got 1
    """
    number = as_float(name, value)
    if (
        not math.isfinite(number)
        or (above is not None and not number > above)
        or (below is not None and not number < below)
        or (least is not None and not number >= least)
        or (most is not None and not number <= most)
    ):
        limits = (("above", above), ("at least", least), ("below", below), ("at most", most))
        wanted = " and ".join(f"{what} {limit}" for what, limit in limits if limit is not None)
        raise ValueError(f"{name} must be {f'a finite number {wanted}'.strip()}, got {value!r}")
    return number


def check_choice(name: str, value: T, choices: Collection[T]) -> T:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    ValueError
        If it is not.

    Examples
    --------
    >>> check_choice("stream", "user", ("training", "user"))
    'user'
    >>> check_choice("stream", "mine", ("training", "user"))
    Traceback (most recent call last):
    ValueError: stream must be one of 'training', 'user', got 'mine'
    """
    if value not in tuple(choices):  # a dict or set would raise another error for what has no hash
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def as_integers(name: str, value: ArrayLike, low: int) -> NDArray[np.int64]:
    """Return integers, none below `low`, as an int64 array.

    Raises
    ------
    TypeError
        If `value` holds anything but integers.
    ValueError
        If one is below `low`, or does not fit in 64 bits.

    Examples
    --------
    >>> as_integers("trials", [2, 3], 1)
    array([2, 3])
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or an array of integers, got {value!r}")
    signed = array.astype(np.int64)  # wraps to below 0 from 2^63 on; NumPy 1 would compare those as floats
    if (signed < low).any():
        raise ValueError(f"{name} must be at least {low} and fit in 64 bits, got {value!r}")
    return signed


def as_reals(name: str, value: ArrayLike, high: float, allowed: str) -> NDArray[np.float64]:
    """Return numbers from 0 to `high` as a float64 array; `allowed` is what an error says that they must be.

    Raises
    ------
    ValueError
        If one is NaN, or out of range.

    Examples
    --------
    >>> as_reals("mean", [0, 0.5], 1, "in [0, 1]")
    array([0. , 0.5])
    """
    array = np.asarray(value, dtype=np.float64)
    if not np.all((array >= 0) & (array <= high)):  # NaN fails too
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return array
