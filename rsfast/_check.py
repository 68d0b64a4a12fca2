"""What an argument may be, of whatever library it comes."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_int(name: str, value: object) -> int:
    """Return an integer of any library, as one of NumPy or a tensor without axes, as Python's.

    Raises
    ------
    TypeError
        If it is no integer. A bool is none.

    Examples
    --------
    >>> import numpy as np
    >>> as_int("n", np.int16(5))
    5
    """
    if type(value) is int:  # all that torch.compile can follow
        return value
    if not is_int(value):
        raise TypeError(f"{name} is {value!r}; it must be an int")
    return operator.index(value)  # type: ignore[arg-type]


def is_int(value: object) -> bool:
    """Tell whether it is an integer, as `as_int` takes one."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or "bool" in str(getattr(value, "dtype", "")):
        return False  # an index to torch all the same
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # as of a tensor of floats, which has the method
        return False
    return True


def as_integers(name: str, value: ArrayLike, low: int) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {value!r}; it must be an integer or an array of integers")
    signed = array.astype(np.int64)  # wraps to below 0 from 2^63 on; NumPy 1 would compare those as floats
    if np.any(signed < low):
        raise ValueError(f"{name} is {value!r}; it must be at least {low} and fit in 64 bits")
    return signed


def as_reals(name: str, value: ArrayLike, high: float, allowed: str) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if not np.all((array >= 0) & (array <= high)):  # NaN fails too
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    return array
