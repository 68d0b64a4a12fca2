"""Inputs, one by one, from whatever holds them."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from .. import ops
from .._hints import add_note, axes, axes_of_each, conversion
from ..noise import Noise
from ..noise.norms import in_input_units
from ..ops import openmp
from .batches import to_host
from .values import check_tensor, check_values, usable

_AHEAD = 64  # inputs that are read before they are needed, at most
_AHEAD_BYTES = 64 << 20  # what they take, at most, but that 2 are always read

_IDS = range(1 << 32)
_SLACK = 1e-3  # that images may leave [0, 1] by: resizing and rounding do

Source = torch.Tensor | Dataset[Any] | Iterable[Any]
"""Anything that holds inputs: a tensor, a Dataset, a DataLoader or another iterable."""


T = TypeVar("T")


class Unreadable(ValueError):
    """An input that cannot be read, as a broken picture: raise it from a Dataset's ``__getitem__``.

    A `Run` names, counts and skips that input. Elsewhere it is an error as any other.
    """


class Owned(Generator[T, None, None]):
    """A generator for the process that made it.

    A forked child lacks its threads, and would wait for ever. There `next` raises RuntimeError, and `close` does nothing.

    Parameters
    ----------
    what : str
        How the error names it.
    items : generator
        What it yields.
    """

    def __init__(self, what: str, items: Generator[T, None, None]) -> None:
        self._what, self._items, self._process = what, items, os.getpid()

    def send(self, value: None) -> T:
        self._check()
        return self._items.send(value)

    def throw(self, *error: Any) -> T:
        self._check()
        return self._items.throw(*error)

    def close(self) -> None:
        if os.getpid() == self._process:
            self._items.close()

    def _check(self) -> None:
        if (process := os.getpid()) != self._process:
            raise RuntimeError(
                f"{self._what} belongs to process {self._process}, which made it, and this is process {process}, forked "
                "from that; make another one here"
            )


class Inputs:
    """Iterate over (input id, input), check each input, and read ahead of the model where there is reading to do.

    Parameters
    ----------
    inputs : float32 tensor [I, *shape], Dataset, DataLoader or iterable
        A DataLoader gives batches [B, *shape], or inputs if its batch_size is None; a Dataset of either style and any other
        iterable gives inputs [*shape]. Of an item that is a tuple or list, as (input, label), the first is taken.
    ids : int64 tensor [I] or sequence of int, optional
        Identity of each input in the noise stream, in [0, 2^32); 0, 1, ... by default.
    noise : Noise, optional
        Inputs are refused beyond its `largest_input`, outside its `input_range` and off its `grid`. One that takes 8-bit
        images gets them as float32.
    name : callable, optional
        Returns what errors call the input at a place; by default ``inputs[place]``.
    skip : callable, optional
        Called, in its turn, with the id of an input in whose place `inputs` gives (does not raise) an `Unreadable`, and
        with that. Without, it is raised.
    patience : float
        Seconds to wait for the thread when it is to end: it may itself be waiting, for a disk or a network.

    Attributes
    ----------
    shape : torch.Size
        Of each input.
    device : torch.device
        Of each input.
    count : int or None
        How many there are, if `inputs` knows before it is read.
    first : tensor [*shape]
        The first of them, which is still to come.
    known : tensor [I, *shape]
        The inputs that are there already: all of a tensor, otherwise the first.
    about : str
        How they were taken, for whoever meets an error that they may be the cause of.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be. A tensor is checked at once, and so is the first input of
        anything else; a later one when its turn comes. What `inputs` itself raises comes in its turn, too.
    Unreadable
        If all were skipped.

    Warns
    -----
    UserWarning
        If `inputs` is a DataLoader that shuffles, and ids is None: an id then names a place in its order, not an input.

    Notes
    -----
    All but a tensor is read by one background thread, at most 64 inputs or 64 MiB (but 2 inputs) ahead. Each is copied, so
    `inputs` may write the next into the same memory. The thread ends with the iteration, with `close` or ``with``, and when
    the object is collected. A forked child gets a RuntimeError in place of the next input.

    Examples
    --------
    >>> images = torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9]))
    >>> with Inputs(images, ids=[10, 11, 12]) as inputs:
    ...     print(inputs.count, [(input_id, image.tolist()) for input_id, image in inputs])
    3 [(10, [0.0, 0.0]), (11, [0.0, 0.0]), (12, [0.0, 0.0])]
    """

    def __init__(
        self,
        inputs: Source,
        ids: torch.Tensor | Sequence[int] | None = None,
        noise: Noise | None = None,
        *,
        name: Callable[[int], str] = "inputs[{}]".format,
        skip: Callable[[int, Unreadable], object] | None = None,
        patience: float = 1.0,
    ) -> None:
        self.count: int | None
        self._skip, self._taken = skip, 0
        if isinstance(inputs, (torch.Tensor, np.ndarray)):
            tensor = ops.check_inputs("inputs", inputs, noise=noise)
            check_tensor(tensor, noise)
            self.count = len(tensor)
            self._ids = _check_ids(ids, self.count, tensor.device)
            self._rows: Generator[torch.Tensor | Unreadable, None, None] = _rows(tensor)
        else:
            self.count = length_of(inputs)
            # Only their values are wanted, so they may be on any device.
            self._ids = _check_ids(ids, self.count, ids.device if isinstance(ids, torch.Tensor) else torch.device("cpu"))
            batched = isinstance(inputs, DataLoader) and inputs.batch_sampler is not None
            if ids is None and isinstance(inputs, DataLoader) and (sampler := shuffler(inputs)) is not None:
                warnings.warn(
                    f"inputs is a DataLoader that shuffles (its {type(sampler).__name__}), so input ids name places in its "
                    "order, and another order gives an input other noise; use shuffle=False, or pass input_ids in its order",
                    UserWarning,
                    stacklevel=2,
                )
            rows = _checked(_items(inputs), batched, noise, name, skip is not None)
            self._rows = Owned("inputs", _ahead(rows, noise, name, patience))
        self.first = self._next()
        self.shape, self.device = self.first.shape, self.first.device
        self.known = inputs if isinstance(inputs, torch.Tensor) else self.first[None]
        self.about, hint = f"these are rows of inputs that are each {[*self.shape]}", axes_of_each(self.shape)
        if isinstance(inputs, torch.Tensor):
            taken = f"are taken as {self.count} inputs of shape {[*self.shape]}"
            self.about, hint = f"inputs of shape {[*inputs.shape]} {taken}", axes(inputs.shape)
        self.about += hint and f"; {hint}"
        # Also at exit: a thread that still runs while the interpreter is taken down may take the process with it.
        self._close = weakref.finalize(self, self._rows.close)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[int, torch.Tensor]:
        row = self._next()
        return self._next_id(), row

    def _next(self) -> torch.Tensor:
        """Return the next input that can be read; `skip` takes the others."""
        for row in self._rows:
            if isinstance(row, torch.Tensor):
                return row
            assert self._skip is not None  # else it was raised
            self._skip(self._next_id(), row)
        if not hasattr(self, "first"):
            raise Unreadable(f"inputs must hold at least one that can be read, got none of {self._taken}")
        raise StopIteration

    def _next_id(self) -> int:
        place, self._taken = self._taken, self._taken + 1
        if place < len(self._ids):
            return self._ids[place]
        self.close()
        raise ValueError(f"input_ids must name every input, got shape [{place}] where there is an inputs[{place}]")

    def close(self) -> None:
        """End the iteration and the thread; a thread that waits for `inputs` ends when the next one arrives."""
        self._close()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def warn_of_units(x: object, noise: Noise, stacklevel: int) -> None:
    """Warn if inputs do not lie in [0, 1], so that the noise may be meant in other units than theirs.

    Noise of a scale above 1 is meant for other units than [0, 1].
    """
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or not x.numel() or noise.scale > 1:
        return
    low, high = map(float, x.detach().aminmax())
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    what = f"{noise.scale_setting} and the radii are" if in_input_units(noise.norm) else f"{noise.scale_setting} is"
    warnings.warn(
        f"inputs hold values from {low:.4g} to {high:.4g}, and {what} in these units; if they are images, pass them in "
        "[0, 1], and the model's normalisation as scale= and shift= (--mean and --std)",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


def _check_ids(ids: torch.Tensor | Sequence[int] | None, count: int | None, device: torch.device) -> Sequence[int]:
    if ids is None:
        return _IDS
    tensor = ops.indices("input_ids", ids, count, len(_IDS), device)
    ops.check_range("input_ids", tensor, len(_IDS))
    numbers: list[int] = tensor.tolist()
    return numbers


def _items(inputs: Any) -> Iterator[object]:
    """Return the items of an iterable, or of what has a length and takes an index, as a map-style Dataset."""
    is_array = hasattr(inputs, "__array__") or hasattr(inputs, "__array_interface__")  # of another library, or an image
    if not is_array and not isinstance(inputs, (str, Mapping)):
        if isinstance(inputs, Iterable):
            return iter(inputs)
        # iter() would take this, too, but go on for ever, or take an IndexError from deep inside it for the end.
        if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
            return (inputs[place] for place in range(len(inputs)))
    step = conversion("inputs", inputs)
    raise TypeError(
        "inputs must be a dense float32 tensor [I, *shape], a DataLoader, a Dataset with a length, or an iterable of inputs "
        f"[*shape], got a {type(inputs).__name__}{'' if step is None else f'; pass {step}'}"
    )


def length_of(inputs: Any) -> int | None:
    """Return how many inputs there are, or None where `inputs` does not know."""
    if isinstance(inputs, DataLoader):
        batches = inputs.batch_sampler
        if batches is None:
            inputs = inputs.sampler
        elif type(batches) is BatchSampler and not batches.drop_last and inputs.collate_fn is default_collate:
            inputs = batches.sampler
        else:
            return None
    try:
        return len(inputs)
    except (TypeError, NotImplementedError):  # as an IterableDataset or a sampler without a length raises
        return None


def shuffler(loader: DataLoader[Any]) -> object | None:
    """Return what shuffles a DataLoader: one of torch's samplers, or an object whose attribute `shuffle` is True."""
    batches = loader.batch_sampler
    for sampler in (loader.sampler if batches is None else getattr(batches, "sampler", None), batches):
        if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
            return sampler
        if getattr(sampler, "shuffle", False) is True:  # as DistributedSampler
            return sampler
    return None


class _Row(NamedTuple):
    """An input, whether it suits the noise [1] on the host, and from a GPU what to wait for before that can be read."""

    pixels: torch.Tensor
    usable: torch.Tensor
    known: torch.cuda.Event | None


class _Skipped(NamedTuple):
    """In place of an input: why it cannot be read. An exception that is not wrapped so ends the reading."""

    error: Unreadable


def _rows(tensor: torch.Tensor) -> Generator[torch.Tensor, None, None]:
    """Yield the first row, to be inspected, and then every row."""
    yield ops.as_floats(tensor[0])
    for place in range(len(tensor)):
        yield ops.as_floats(tensor[place])


def _checked(
    items: Iterator[object], batched: bool, noise: Noise | None, name_of: Callable[[int], str], skips: bool
) -> Iterator[_Row | _Skipped]:
    """Yield a copy of each input of `items`: inputs or batches of them, bare or the first of a tuple or list.

    Whoever takes an input checks its values: to check them here would be to wait for a GPU each time.
    """
    place, first, shape, device = 0, -1, torch.Size(), torch.device("cpu")
    while True:
        try:
            item = next(items)
            if isinstance(item, Unreadable) and not skips:
                raise item
        except StopIteration:
            break
        except BaseException as error:
            add_note(error, f"inputs raised this when {name_of(place)} was read")
            raise
        if isinstance(item, Unreadable):
            yield _Skipped(item)
            place += 1
            continue
        form = "(image for batch in inputs for image in {})" if batched else "({} for item in inputs)"
        given = "batch" if batched else "item"
        if isinstance(item, (tuple, list)) and item and not all(isinstance(each, (int, float)) for each in item):
            item, given = item[0], f"{given}[0]"
        name = f"the batch at {name_of(place)}" if batched else name_of(place)
        batch = ops.check_inputs(name, item, single=not batched, given=given, form=form, noise=noise)
        batch = ops.as_floats(batch)
        batch = batch if batched else batch[None]
        if first < 0:
            first, shape, device = place, batch.shape[1:], batch.device
        if batch.shape[1:] != shape:
            got = list(batch.shape[1:])
            raise ValueError(f"{name_of(place)} must have shape {list(shape)}, as {name_of(first)}, got {got}")
        if batch.device != device:
            raise ValueError(f"{name_of(place)} must be on '{device}', as {name_of(first)} is, got '{batch.device}'")
        suits, known = to_host(usable(batch, noise))
        for number, row in enumerate(batch):
            # A view would keep its batch in memory, and show what a source that writes into one buffer writes next.
            yield _Row(row.clone(), suits[number : number + 1], known)
            place += 1
    if place == 0:
        raise ValueError("inputs must hold at least one input, got none")


def _ahead(
    rows: Iterator[_Row | _Skipped], noise: Noise | None, name_of: Callable[[int], str], patience: float
) -> Generator[torch.Tensor | Unreadable, None, None]:
    """Yield the first of `rows` that could be read, to be inspected, and then it and all others, which a thread reads.

    The thread takes a token from `wanted` for each row, so no more are read than tokens were given. Both queues are safe
    where garbage collection may close this generator: in any thread, within any call.
    """
    wanted: SimpleQueue[None] = SimpleQueue()
    found: SimpleQueue[_Row | _Skipped | BaseException | None] = SimpleQueue()
    stop, current_thread = threading.Event(), threading.current_thread  # no global is left where an interpreter ends
    # Streams are a thread's own, and so is the GPU that .cuda() means.
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    thread = threading.Thread(target=_read, args=(rows, wanted, found, stop, stream), name="rsfast inputs", daemon=True)
    del rows  # so that what `inputs` does at its end is done in the thread in which it did the rest
    thread.start()
    try:
        wanted.put(None)
        place, inspected = 0, False
        while (row := found.get()) is not None:
            if isinstance(row, BaseException):
                raise row
            if isinstance(row, _Row):
                if row.known is not None:
                    row.known.synchronize()
                if not bool(row.usable):
                    check_values(name_of(place), row.pixels, noise)
                if not inspected:
                    for _ in range(min(_AHEAD, max(2, _AHEAD_BYTES // row.pixels.nbytes)) - 1):
                        wanted.put(None)
                    yield row.pixels
                    inspected = True
            wanted.put(None)
            yield row.pixels if isinstance(row, _Row) else row.error
            place += 1
    finally:
        stop.set()
        wanted.put(None)  # it may be waiting for one
        if thread is not current_thread():
            thread.join(patience)


def _read(
    rows: Iterator[_Row | _Skipped],
    wanted: SimpleQueue[None],
    found: SimpleQueue[_Row | _Skipped | BaseException | None],
    stop: threading.Event,
    stream: torch.cuda.Stream | None,
) -> None:
    """Put a row into `found` for each token in `wanted`, until `stop`; at the end None, or the exception that ended it."""
    openmp.limit_to_one_thread()  # the cores are the model's
    with torch.cuda.stream(stream):
        try:
            while True:
                wanted.get()
                if stop.is_set():
                    return
                found.put(next(rows))
        except StopIteration:
            found.put(None)
        except BaseException as error:
            found.put(error)
