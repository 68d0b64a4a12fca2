"""The Tally: everything that sampling leaves behind, as integers. Adding two is exact, so shards merge to the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from .._check import MAX_SAMPLES, as_int
from ..heads import Head, Votes, check_head
from ..heads import from_dict as head_from_dict
from ..heads.bins import BINS, bin_edges
from ..noise.provenance import Provenance
from .arguments import check_range, integers
from .marks import check_marks

MAX_TRACKED = 8
"""Most classes of an input and head whose scores have histograms."""

_FORMAT = "rsfast.Tally 1"
_NAMES = ("n", "counts", "sums", "squares")
_BIN_NAMES = ("bin_counts", "bin_sums")

Integers = NDArray[np.int64]


def _numpy(tensor: torch.Tensor) -> Integers:
    return tensor.cpu().numpy()


def _sparse(counts: list[int], sums: list[int]) -> list[list[int]]:
    """Return [bin, count, sum] for each bin of a histogram that is not empty."""
    return [[place, count, total] for place, (count, total) in enumerate(zip(counts, sums, strict=True)) if count]


def _dense(bins: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the counts and sums that `_sparse` made this of."""
    counts, sums, last = [0] * BINS, [0] * BINS, -1
    for place, count, total in bins:
        if not last < place < BINS:
            raise ValueError(f"bins must ascend from 0 to {BINS - 1}, got {bins!r}")
        counts[place], sums[place], last = count, total, place
    return [counts, sums]


def _tensor(name: str, values: list[Any]) -> torch.Tensor:
    try:
        return torch.tensor(values)
    except RuntimeError as error:  # of null, say, or of what int64 does not hold
        raise TypeError(f"{name} must hold 64-bit integers, got {values!r:.100} ({error})") from None


def _check_size(name: str, value: object, low: int, high: int) -> int:
    number = as_int(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {number}")
    return number


def check_classes(num_classes: object) -> int:
    """Return a number of classes, from 2 to 2^20, as an int; raise TypeError or ValueError if it is not one."""
    return _check_size("num_classes", num_classes, 2, 1 << 20)


def row_bytes(num_classes: int, heads: Sequence[Head], tracked_classes: int = 0) -> int:
    """Return how many bytes what counts of one input takes, where so many classes of each soft head have histograms.

    Examples
    --------
    >>> row_bytes(3, [Votes()]) == sum(tensor.nbytes for tensor in Tally(1, 3).tensors().values())
    True
    """
    soft = sum(head.soft for head in heads)
    return 8 * (1 + num_classes + 1 + 2 * soft * (num_classes + tracked_classes * BINS))


def check_heads(heads: Sequence[Head], name: str = "heads") -> tuple[Head, ...]:
    """Return a Tally's heads; raise TypeError or ValueError unless they are one or more, and none twice.

    Errors call them `name`.
    """
    if isinstance(heads, Head) or not isinstance(heads, Iterable):
        hint = f"; pass [{heads!r}]" if isinstance(heads, Head) else ""
        raise TypeError(f"{name} must be a sequence of heads, got {heads!r}{hint}")
    heads = tuple(heads)
    for head in heads:
        check_head(f"each of {name}", head)
    if not heads or len(set(heads)) != len(heads):
        raise ValueError(f"{name} must hold at least one head, and none twice, got {heads!r}")
    return heads


class Tally:
    """Vote counts and score sums of `num_inputs` inputs.

    Parameters
    ----------
    num_inputs, num_classes : int
        I and K; K from 2 to 2^20.
    heads : sequence of Head
        What is averaged. Votes are always counted; each other head takes a place in sums and squares.
    tracked_classes : int64 tensor [I, M, C], optional
        For each input and each of the M soft heads, the C classes (0 to 8) whose scores are put into histograms. None by
        default: C is 0.
    provenance : Provenance, optional
        Which samples it holds, once all are added. `sample` states it; a loop of your own should, too: `certificates`
        refuses a Tally that states none unless you vouch for it.
    device : torch.device

    Attributes
    ----------
    n : int64 tensor [I]
        Samples drawn; 2^40 or more if a kernel on a GPU found a wrong argument of `accumulate`. The Tally is then void:
        ``to("cpu")``, `select`, `integers`, `head_sums`, `head_histograms`, `save` and + raise the error that a CPU raises.
    counts : int64 tensor [I, K + 1]
        Votes a class; last, the rows that voted for none because a logit was NaN or the largest was not finite.
    sums, squares : int64 tensors [I, M, K]
        For each of the M soft heads, the sum of the scores in units of 2^-30 (each rounded down), and of their squares in
        the same units (each rounded up).
    tracked_classes : int64 tensor [I, M, C]
        As given.
    bin_counts, bin_sums : int64 tensors [I, M, C, BINS]
        For each tracked class, how many of its scores fall into each bin (`sequences.bin_of`), and the sum of these. A row
        that voted for no class has a score of 0.
    compiled : bool
        Whether kernels know every head. Else only the backend "reference" takes it.
    heads, soft_heads : tuple of Head
        As given; and without Votes, in the order of the axis M.
    parameters : float32 tensor [M, 4]
        Of the soft heads, as `Head.parameters` gives them.
    provenance : Provenance or None
        As given; None if it is not known. Checked when it is set.

    Examples
    --------
    >>> a, b = Tally(1, 10), Tally(1, 10)
    >>> (a + b).n.tolist()
    [0]
    """

    def __init__(
        self,
        num_inputs: int,
        num_classes: int,
        heads: Sequence[Head] = (Votes(),),
        *,
        tracked_classes: Any = None,
        provenance: Provenance | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        num_inputs, num_classes = _check_size("num_inputs", num_inputs, 1, 1 << 32), check_classes(num_classes)
        self.heads = heads = check_heads(heads)
        self.compiled = all(head.compiled for head in heads)
        self.soft_heads = tuple(head for head in heads if head.soft)
        self.num_inputs, self.num_classes = num_inputs, num_classes
        self.provenance = provenance
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        places = (num_inputs, len(self.soft_heads))
        self.tracked_classes = (
            zeros(*places, 0) if tracked_classes is None else self._check_tracked(tracked_classes).to(device)
        )
        moments, bins = (*places, num_classes), (*self.tracked_classes.shape, BINS)
        self.n, self.counts = zeros(num_inputs), zeros(num_inputs, num_classes + 1)
        self.sums, self.squares, self.bin_counts, self.bin_sums = zeros(moments), zeros(moments), zeros(bins), zeros(bins)
        parameters = torch.tensor([head.parameters() for head in self.soft_heads], dtype=torch.float32)
        self.parameters = parameters.view(-1, 4).to(device)

    def _check_tracked(self, classes: Any) -> torch.Tensor:
        """Return a contiguous copy."""
        places = (self.num_inputs, len(self.soft_heads))
        shape = f"[{places[0]}, {places[1]}, C], C from 0 to {MAX_TRACKED}"
        tracked = integers("tracked_classes", classes, shape)
        if tracked.ndim != 3 or tracked.shape[:2] != places or tracked.shape[2] > MAX_TRACKED:
            raise ValueError(f"tracked_classes must have shape {shape}, got {list(tracked.shape)}")
        check_range("tracked_classes", tracked, self.num_classes)
        return tracked.clone(memory_format=torch.contiguous_format)

    @property
    def provenance(self) -> Provenance | None:
        return self._provenance

    @provenance.setter
    def provenance(self, provenance: Provenance | None) -> None:
        if provenance is not None and not isinstance(provenance, Provenance):
            raise TypeError(f"provenance must be a Provenance or None, got {provenance!r}")
        if provenance is not None and len(provenance.input_ids) != self.num_inputs:
            raise ValueError(f"provenance must be of {self.num_inputs} inputs, got one of {len(provenance.input_ids)}")
        self._provenance = provenance

    def _check_marks(self) -> None:
        check_marks(self.n, self.num_inputs, self.num_classes)

    def check_provenance(self, name: str = "tally") -> None:
        """Raise ValueError if n is not what the provenance states, as where samples were added twice."""
        if self.provenance is None:
            return
        self._check_marks()
        for place, (n, stated) in enumerate(zip(self.n.tolist(), self.provenance.counts(), strict=True)):
            if n != stated:
                raise ValueError(
                    f"{name}.n[{place}] must be {stated}, as its provenance states, got {n}; add each of these samples once"
                )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what counts by name: n, counts, sums, squares and, where classes are tracked, bin_counts and bin_sums."""
        return {name: getattr(self, name) for name in (*_NAMES, *(_BIN_NAMES if self.tracked_classes.numel() else ()))}

    def _fill(self, tensors: dict[str, torch.Tensor]) -> Tally:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        return self

    def _fill_checked(self, tensors: dict[str, torch.Tensor]) -> Tally:
        for name, tensor in self.tensors().items():
            found = tensors.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != torch.int64 or bool((found < 0).any()):
                held = found if found is None else list(found.shape)
                raise ValueError(f"{name} must be int64 {list(tensor.shape)}, none negative, got {held}")
        if not torch.equal(tensors["n"], tensors["counts"].sum(1)) or int(tensors["n"].max()) > MAX_SAMPLES:
            raise ValueError("n must be the sum of counts, and at most 2^33 - 1")
        if self.tracked_classes.numel():
            self._check_bins(*(tensors[name] for name in ("n", "sums", *_BIN_NAMES)))
        return self._fill(tensors)

    def _check_bins(self, n: torch.Tensor, sums: torch.Tensor, bin_counts: torch.Tensor, bin_sums: torch.Tensor) -> None:
        n = n[:, None, None]
        if bool((bin_counts > n[..., None]).any()) or bool((bin_counts.sum(-1) != n).any()):
            raise ValueError("the bin_counts of each tracked class must add up to n")
        lower, upper = map(torch.from_numpy, bin_edges())
        if bool((bin_sums < bin_counts * lower).any()) or bool((bin_sums > bin_counts * upper).any()):
            raise ValueError("bin_sums must lie within what the scores of each bin can add up to")
        if not torch.equal(bin_sums.sum(-1), sums.gather(2, self.tracked_classes.cpu())):
            raise ValueError("the bin_sums of each tracked class must add up to its sums")

    def __add__(self, other: Tally) -> Tally:
        """Return the tally of both sets of samples. Exact, commutative and associative.

        Raises
        ------
        ValueError
            If they do not fit each other, hold a sample twice (by their provenance), or only one states its provenance and
            the other is not empty.
        OverflowError
            If the sum would hold more than 2^33 - 1 samples of an input.
        """
        if not isinstance(other, Tally):
            return NotImplemented
        if (self.heads, self.counts.shape) != (other.heads, other.counts.shape):
            raise ValueError(
                f"tallies that are added must agree in inputs, classes and heads, got {self.num_inputs}, {self.num_classes} "
                f"and {self.heads}, with {other.num_inputs}, {other.num_classes} and {other.heads}"
            )
        if not torch.equal(self.tracked_classes, other.tracked_classes.to(self.tracked_classes.device)):
            raise ValueError("tallies that are added must have equal tracked_classes, got one that tracks other classes")
        most = int((self.n + other.n.to(self.n.device)).max())
        if most > MAX_SAMPLES:
            self._check_marks()
            other._check_marks()
            raise OverflowError(f"a Tally must hold at most 2^33 - 1 samples of an input, got {most} in the sum")
        mine, theirs = self.tensors(), other.tensors()
        total = {name: mine[name] + theirs[name].to(self.n.device) for name in mine}
        return self._like(self.tracked_classes.clone(), self._united(other), total)

    def _united(self, other: Tally) -> Provenance | None:
        """Return the provenance of the sum."""
        known = [tally for tally in (self, other) if tally.provenance is not None]
        if not known:
            return None
        for tally in known:
            tally.check_provenance()
        if len(known) == 1:
            if bool((other if known[0] is self else self).n.any()):
                raise ValueError(
                    "tallies that are added must both state their provenance, got one that does not; state it for both, or "
                    "set provenance = None on both"
                )
            return known[0].provenance
        assert self.provenance is not None
        assert other.provenance is not None
        try:
            return self.provenance + other.provenance
        except ValueError as error:
            raise ValueError(f"two tallies cannot be added: {error}") from None

    def _like(self, tracked_classes: torch.Tensor, provenance: Provenance | None, tensors: dict[str, torch.Tensor]) -> Tally:
        """Return a tally of the same heads and classes that holds these tensors, on their device."""
        tally, n = object.__new__(Tally), tensors["n"]
        tally.__dict__.update(vars(self), num_inputs=len(n), tracked_classes=tracked_classes, **tensors)
        tally.provenance = provenance
        tally.parameters = self.parameters.to(n.device)
        if not tracked_classes.numel():
            bins = (*tracked_classes.shape, BINS)
            tally.bin_counts, tally.bin_sums = n.new_empty(bins), n.new_empty(bins)
        return tally

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same heads and the same integers, on whatever device and wherever they come from."""
        if not isinstance(other, Tally):
            return NotImplemented
        if not torch.equal(self.tracked_classes.cpu(), other.tracked_classes.cpu()):
            return False
        mine, theirs = self.tensors(), other.tensors()
        return self.heads == other.heads and all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        n = self.n.tolist() if self.num_inputs <= 4 else f"{int(self.n.min())}..{int(self.n.max())}"
        return f"Tally(num_inputs={self.num_inputs}, num_classes={self.num_classes}, heads={self.heads}, n={n})"

    def to(self, device: torch.device | str) -> Tally:
        """Return a copy on `device`."""
        if torch.device(device).type == "cpu":
            self._check_marks()
        copies = {name: tensor.to(device, copy=True) for name, tensor in self.tensors().items()}
        return self._like(self.tracked_classes.to(device, copy=True), self.provenance, copies)

    def select(self, indices: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> Tally:
        """Return the tally of these inputs alone, a copy, in this order.

        Raises
        ------
        TypeError, ValueError
            If `indices` are not ints in [0, num_inputs), at least one.
        """
        self._check_marks()
        places = integers("indices", indices, "[B]")
        if places.ndim != 1 or not len(places):
            raise ValueError(f"indices must have shape [B], B at least 1, got {list(places.shape)}")
        check_range("indices", places, self.num_inputs)
        provenance = self.provenance and self.provenance.select(places.tolist())
        places = places.to(self.n.device)
        parts = {name: tensor[places] for name, tensor in self.tensors().items()}
        return self._like(self.tracked_classes[places], provenance, parts)

    def shares(self, count: int) -> list[Tally]:
        """Return the tallies of `count` equal shares of the inputs, in order: views, without provenance.

        Raises
        ------
        TypeError, ValueError
            If `count` is no int that divides the number of inputs.

        Examples
        --------
        >>> first, second = Tally(6, 2).shares(2)
        >>> first.num_inputs, second.num_inputs
        (3, 3)
        """
        count = _check_size("count", count, 1, self.num_inputs)
        if self.num_inputs % count:
            raise ValueError(f"count must divide the {self.num_inputs} inputs, got {count}")
        size = self.num_inputs // count
        spans = [slice(start, start + size) for start in range(0, size * count, size)]
        tensors, tracked = self.tensors(), self.tracked_classes
        return [self._like(tracked[s], None, {name: tensor[s] for name, tensor in tensors.items()}) for s in spans]

    def head_sums(self, *heads: Head) -> tuple[Integers, Integers, Integers]:
        """Return the sums and squares [I, K] of a head's scores, and the trials [I, 1], as NumPy arrays.

        Scores and squares are in units of ``2**-head.bits``: of a head that is not soft they are the counts of votes.
        Several heads are stacked along the first axis, ``[heads * I, ...]``: all inputs of the first head come first.

        Raises
        ------
        TypeError
            If no head is given.
        ValueError
            If a head is not one of the tally's soft heads, nor do all vote.

        Examples
        --------
        >>> sums, squares, trials = Tally(1, 3).head_sums(Votes())
        >>> sums.tolist(), trials.tolist()
        ([[0, 0, 0]], [[0]])
        """
        if not heads:
            raise TypeError(f"heads must be given, one or more of {list(self.heads)!r}, got none")
        self._check_marks()
        repeats, trials = (len(heads), 1), _numpy(self.n)[:, None]
        if not any(head.soft for head in heads):
            votes = np.tile(_numpy(self.counts)[:, :-1], repeats)  # the last column is no class
            return votes, votes, np.tile(trials, repeats)
        sums, squares = self._stacked(heads, self.sums, self.squares)
        return sums, squares, np.tile(trials, repeats)

    def head_histograms(self, *heads: Head) -> tuple[Integers, Integers, Integers]:
        """Return a soft head's tracked classes [I, C], and their bin counts and bin sums [I, C, BINS], as NumPy arrays.

        Several heads are stacked as in `head_sums`.

        Raises
        ------
        ValueError
            If a head is not one of the tally's soft heads. Votes have no histograms: their counts are all there is.
        """
        self._check_marks()
        tracked, counts, sums = self._stacked(heads, self.tracked_classes, self.bin_counts, self.bin_sums)
        return tracked, counts, sums

    def _stacked(self, heads: tuple[Head, ...], *tensors: torch.Tensor) -> list[Integers]:
        """Return tensors [I, M, ...] as arrays ``[heads * I, ...]``."""
        places: slice | list[int] = slice(None)
        if heads != self.soft_heads:  # which takes next to no time where these are the same objects
            known = {head: place for place, head in enumerate(self.soft_heads)}
            for head in heads:
                if head not in known:
                    raise ValueError(f"head must be one of the tally's soft heads {self.soft_heads}, got {head!r}")
            places = [known[head] for head in heads]
        found = (_numpy(tensor[:, places]).swapaxes(0, 1) for tensor in tensors)
        return [array.reshape(len(heads) * self.num_inputs, *array.shape[2:]) for array in found]

    def integers(self, index: int) -> dict[str, Any]:
        """Return n, counts, sums and squares of one input as Python integers and lists, for JSON.

        Where classes are tracked, also tracked, and as bins [M][C] the list of [bin, count, sum] of those that hold a score.
        """
        check_marks(self.n[index], self.num_inputs, self.num_classes)
        integers = {name: getattr(self, name)[index].tolist() for name in _NAMES}
        if self.tracked_classes.numel():
            counts, sums = self.bin_counts[index].tolist(), self.bin_sums[index].tolist()
            integers["tracked"] = self.tracked_classes[index].tolist()
            integers["bins"] = [list(map(_sparse, *histograms)) for histograms in zip(counts, sums, strict=True)]
        return integers

    @classmethod
    def from_integers(cls, inputs: Sequence[dict[str, Any]], heads: Sequence[Head]) -> Tally:
        """Return the tally whose `integers` these are, one dict an input.

        Raises
        ------
        TypeError, ValueError
            If they do not fit together, or the heads.
        """
        if not inputs or any(name not in each for name in _NAMES for each in inputs):
            raise ValueError(f"inputs must hold at least one dict, each with {', '.join(_NAMES)}, got {inputs!r}")
        tensors = {name: _tensor(name, [each[name] for each in inputs]) for name in _NAMES}  # of int64, if all are integers
        if tensors["counts"].ndim != 2:
            raise ValueError(f"counts must be a list, one a class and one more, got {inputs[0]['counts']!r}")
        binned = {name in each for each in inputs for name in ("tracked", "bins")}
        if len(binned) > 1:
            raise ValueError("each of inputs must hold tracked and bins, or none either, got some without what others have")
        tracked = [each["tracked"] for each in inputs] if True in binned else None
        tally = cls(len(inputs), tensors["counts"].shape[1] - 1, heads, tracked_classes=tracked)
        if tracked is not None:
            dense = _tensor("bins", [[[_dense(c) for c in head] for head in each["bins"]] for each in inputs])
            tensors |= zip(_BIN_NAMES, dense.unbind(-2), strict=True)
        for name in ("sums", "squares"):
            if tensors[name].shape == (len(inputs), 0):  # lists without a soft head say neither type nor classes
                tensors[name] = torch.zeros(len(inputs), 0, tally.num_classes, dtype=torch.int64)
        return tally._fill_checked(tensors)

    def save(self, path: str | Path) -> None:
        """Write the tally to a safetensors file."""
        self._check_marks()
        metadata = {"format": _FORMAT, "heads": json.dumps([head.to_dict() for head in self.heads])}
        if self.provenance is not None:
            metadata["provenance"] = json.dumps(self.provenance.to_dict())
        tensors = self.tensors() | ({"tracked": self.tracked_classes} if self.tracked_classes.numel() else {})
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Tally:
        """Read a tally that `save` wrote.

        Raises
        ------
        ValueError
            If the file is not a Tally, or its tensors do not fit together.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} must be a safetensors file that Tally.save wrote, got another ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} must have format {_FORMAT!r}, got {metadata.get('format')!r}")
        try:
            heads = [head_from_dict(head) for head in json.loads(metadata["heads"])]
            counts, tracked = tensors["counts"], tensors.get("tracked")
            if tracked is None and "bin_counts" in tensors:
                raise ValueError("it must hold tracked where it holds bin_counts, got none")
            stated = metadata.get("provenance")
            provenance = None if stated is None else Provenance.from_dict(json.loads(stated))
            more: dict[str, Any] = {"tracked_classes": tracked, "provenance": provenance, "device": device}
            return cls(counts.shape[0], counts.shape[1] - 1, heads, **more)._fill_checked(tensors)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must be as Tally.save wrote it, got a damaged file ({type(error).__name__}: {error})"
            ) from error
