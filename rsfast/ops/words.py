"""Make standard noise from given words on any backend, and a checksum of it over all 2^32 words: for tests.

In `perturb` words come from Philox, so no test of it meets all of them. Here they are arguments. The checksums that are kept
here are those of the CPU's kernels. A GPU makes its own, so no noise has to leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from .._check import as_int, check_choice
from .checks import check_apart, require
from .registry import find

Tensor = torch.Tensor

LINE = 1 << 10
"""Sweeps begin and end at multiples of this many words."""

ALL = 1 << 32


class Sweep(NamedTuple):
    """All values of one word of a draw, while its other words stay the same.

    Parameters
    ----------
    draw : str
        One of `DRAWS`.
    words : tuple of int or None
        The draw's words, which repeat; None stands for the word that takes all values.
    checksum : int
        What `sweep` returns for all 2^32 words, by the CPU's kernels.
    """

    draw: str
    words: tuple[int | None, ...]
    checksum: int

    def make_words(self, swept: Tensor) -> Tensor:
        """Return the draw's words, int32, for values of the swept word, int64 in [0, 2^32)."""
        swept = swept.to(torch.int32)  # wraps from 2^31 on
        return torch.stack([swept if w is None else torch.full_like(swept, _signed(w)) for w in self.words], dim=1).view(-1)


# A normal is the product of a radius and of a cosine or sine, rounded once. At angle 0 the cosine is 1, so all radii are
# seen to the bit; the radius of 2605029197 is 1, so all cosines and sines are.
SWEEPS = {
    "Gaussian radius": Sweep("gaussian", (None, 0), 0xAF736D05FE155E97),
    "Gaussian angle": Sweep("gaussian", (2605029197, None), 0x50DF584FB58FE796),
    "Laplace": Sweep("laplace", (None,), 0x15CDF4F869E7C12A),
    "Uniform": Sweep("uniform", (None,), 0x772B5B261203316C),
    "Mask": Sweep("mask", (None,), 0xDFFF2B1E3A95B320),
}
"""By name, sweeps of every draw that needs nothing but words."""

DRAWS = tuple(dict.fromkeys(each.draw for each in SWEEPS.values()))
"""The draws that take nothing but words."""


def noise_of_words(draw: str, words: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return the standard noise that a draw makes from words, in blocks of four.

    Parameters
    ----------
    draw : str
        One of `DRAWS`.
    words : int32 tensor [N]
        The bits of unsigned words, four for each block, as Philox makes them.
    out : float32 tensor [N], optional
        Written and returned instead of a new tensor.
    backend : str
        As `perturb` takes it; one whose kernels take words.

    Returns
    -------
    float32 tensor [N]

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.

    Examples
    --------
    >>> noise_of_words("uniform", torch.tensor([0, 2**31 - 1, -1, 2**30], dtype=torch.int32)).tolist()
    [2.3283064365386963e-10, 1.0, -1.0, 0.5]
    """
    check_choice("draw", draw, DRAWS)
    if not isinstance(words, Tensor):
        raise TypeError(f"words must be a tensor, got {words!r}")
    if words.ndim != 1 or words.numel() % 4:
        raise ValueError(f"words must have shape [N], N a multiple of 4, got {list(words.shape)}")
    require("words", words, (torch.int32,), words.shape, words.device)
    made = torch.empty(words.shape, device=words.device) if out is None else out
    require("out", made, (torch.float32,), words.shape, words.device)
    check_apart([("out", made)], [("words", words)])
    kernel = _kernel(backend, words.device)
    if words.numel():
        kernel(draw, words, made)
    return made


def _kernel(backend: str, device: torch.device) -> Callable[[str, Tensor, Tensor], None]:
    found = find(backend, device)
    kernel: Any = getattr(found.kernels, "noise_of_words", None)
    if kernel is None:
        raise ValueError(f"backend must be one whose kernels take words, got {found.name!r}")
    return kernel  # type: ignore[no-any-return]


def sweep(name: str, first: int = 0, count: int = ALL, *, backend: str = "auto", device: torch.device | str = "cpu") -> int:
    """Return the checksum of what a backend makes of the words [first, first + count).

    Parameters
    ----------
    name : str
        Of one of `SWEEPS`.
    first, count : int
        Multiples of `LINE`, within the 2^32 words.
    backend : str
        As `noise_of_words` takes it.
    device : torch.device or str
        Where the noise and the checksum are made. At the end it is waited for, once.

    Returns
    -------
    int
        In [0, 2^64): the sum of each value's bits times a weight of its place. So the checksums of two ranges add up,
        modulo 2^64, to that of both together.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Notes
    -----
    Weights are odd 64-bit numbers without a pattern, so a single wrong bit always changes the sum. Of other sets of wrong
    values a share of about 2^-32 goes unseen. So does one order: the weight of place p of line q is that of place q of
    line p.

    Examples
    --------
    >>> hex(sweep("Mask", 0, 2048, backend="reference"))
    '0xab8835badb800000'
    """
    total = torch.zeros((), dtype=torch.int64, device=device)
    each = _sweep_of(name)
    weights = _weights(0, LINE * len(each.words), total.device)
    for start, _, values in _swept(each, first, count, backend, total.device):
        lines = (values.view(torch.int32).view(-1, len(weights)) * weights).sum(1)
        total += (lines * _weights(start // LINE, len(lines), total.device)).sum()
    return int(total) % (1 << 64)


def first_difference(
    name: str, first: int = 0, count: int = ALL, *, backend: str = "auto", device: torch.device | str = "cpu"
) -> int | None:
    """Return the first word of a sweep for which a backend and the CPU's kernels make other bits; None if there is none.

    Parameters are those of `sweep`. All values come to the host, so all 2^32 words take minutes.
    """
    each = _sweep_of(name)
    for start, words, found in _swept(each, first, count, backend, torch.device(device)):
        expected = noise_of_words(each.draw, words.cpu(), backend="cpu")
        different = (found.cpu().view(torch.int32) != expected.view(torch.int32)).nonzero()
        if len(different):
            return start + int(different[0]) // len(each.words)
    return None


def _sweep_of(name: str) -> Sweep:
    check_choice("name", name, SWEEPS)
    return SWEEPS[name]


def _swept(each: Sweep, first: int, count: int, backend: str, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each chunk the first value of the swept word, the draw's words, and the noise."""
    first, count = _as_lines("first", first, 0), _as_lines("count", count, LINE)
    if first + count > ALL:
        raise ValueError(f"count must be at most 2^32 - first, got {count} from {first}")
    chunk = 1 << 15 if device.type == "cpu" else 1 << 23  # what fits into a cache; few launches, within a gigabyte
    kernel = _kernel(backend, device)
    for start in range(first, first + count, chunk):
        words = each.make_words(torch.arange(start, min(start + chunk, first + count), device=device))
        values = torch.empty(words.shape, device=device)
        kernel(each.draw, words, values)
        yield start, words, values


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)


def _as_lines(name: str, value: object, least: int) -> int:
    number = as_int(name, value)
    if number < least or number % LINE:
        raise ValueError(f"{name} must be a multiple of {LINE}, at least {least}, got {number}")
    return number


def _weights(first: int, count: int, device: torch.device) -> Tensor:
    """Return odd int64 numbers without a pattern, those of [first, first + count). Products wrap."""
    mixed = (torch.arange(first, first + count, device=device) + 1) * 0x1E3779B97F4A7C15
    mixed = (mixed ^ mixed >> 30) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ mixed >> 27) * 0x14D049BB133111EB
    return (mixed ^ mixed >> 31) | 1
