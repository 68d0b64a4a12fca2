"""What a head declares, and the registry of heads."""

from __future__ import annotations

from abc import ABC
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from .._check import check_choice

HEADS: dict[str, type[Head]] = {}
"""Every head by its name, which files and tables record."""


@dataclass(frozen=True)
class Head(ABC):
    """Base of all heads: the fields of a subclass are its parameters, which it checks when it is made."""

    kind: ClassVar[int | None]
    """How kernels know a soft head (``HeadKind`` in csrc/accumulate.h). None of a head that votes."""
    option: ClassVar[str]
    """How the command line takes it: its word there, and a colon and a letter or word for each parameter."""
    sums_to_one: ClassVar[bool] = True
    """Whether the scores of a row sum to at most 1."""
    bits: ClassVar[int] = 30
    """A score q is an integer from 0 to 2**bits, and stands for ``q * 2**-bits``."""
    slack: ClassVar[int] = 2
    """By how many units at most q lies below the real-valued score that it stands for."""

    compiled: ClassVar[bool] = True
    """Whether kernels know its kind. One that they do not know needs the backend "reference"."""

    @property
    def soft(self) -> bool:
        """Whether a Tally holds its scores in sums, squares and histograms. Votes are in ``Tally.counts``."""
        return self.kind is not None

    def parameters(self) -> tuple[float, float, float, float]:
        """Return a soft head's kind, scale, low and high: float32 values, as the kernels compute with them."""
        raise TypeError(f"head must be soft to have a kernel's parameters, got {self!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the head's name and parameters; `from_dict` reads it back."""
        return {"name": type(self).__name__, **asdict(self)}


H = TypeVar("H", bound=type[Head])


def register(head: H) -> H:
    """Add a class of heads to the registry, as a decorator.

    Raises
    ------
    ValueError
        If its name, its kind or its word on the command line is another head's.
    """
    for other in HEADS.values():
        same_word = head.option.partition(":")[0] == other.option.partition(":")[0]
        if head.__name__ == other.__name__ or same_word or (head.kind is not None and head.kind == other.kind):
            raise ValueError(f"head must have a name, an option and a kind of its own, got {head}; {other} is like it")
    HEADS[head.__name__] = head
    return head


def check_head(name: str, value: object) -> Head:
    """Return `value` if it is a head.

    Raises
    ------
    TypeError
        If it is not.

    Examples
    --------
    >>> check_head("head", "votes")
    Traceback (most recent call last):
    TypeError: head must be one of Votes, Softmax, Sparsemax, ClippedLogits, got 'votes'
    """
    if not isinstance(value, Head):
        raise TypeError(f"{name} must be one of {', '.join(HEADS)}, got {value!r}")
    return value


def from_dict(data: dict[str, Any]) -> Head:
    """Return the head that `Head.to_dict` wrote.

    Raises
    ------
    ValueError
        If the name is not that of a registered head.

    Examples
    --------
    >>> from_dict({"name": "Softmax", "temperature": 0.5})
    Softmax(temperature=0.5)
    """
    parameters = dict(data)
    return HEADS[check_choice("head", parameters.pop("name", None), HEADS)](**parameters)
