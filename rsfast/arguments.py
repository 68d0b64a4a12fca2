"""What an argument may be, of whatever library it comes."""

from __future__ import annotations

import operator


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
