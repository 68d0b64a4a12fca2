"""One batch: perturb, run the model, accumulate; in halves where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..noise import Noise
from ..ops import Accumulator, Perturber, accumulator, memory_format, perturber
from ..ops.tally import Tally
from .forward import Forward, is_out_of_memory
from .timing import StageTimer

Integers = NDArray[np.int64]


class RowGroup(NamedTuple):
    """Rows of a batch that share a stream and a Tally.

    `places`, int64 [3, B] where the batch is made, has for each row its input's slot, its row in the Tally and its sample.
    """

    stream: str
    tally: Tally
    places: torch.Tensor

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self.places.shape[1]


def expand(segments: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """Return the `RowGroup.places` [3, B] of all samples of these segments.

    Parameters
    ----------
    segments : sequence of tuple
        Slot, row of the Tally, first sample and how many samples, of each; at least one.

    Examples
    --------
    >>> expand([(7, 8, 0, 2), (3, 4, 100, 1)]).tolist()
    [[7, 7, 3], [8, 8, 4], [0, 1, 100]]
    """
    slots, rows, firsts, sizes = np.array(segments, dtype=np.int64).T
    firsts[1:] -= sizes[:-1].cumsum()
    places = np.repeat([slots, rows, firsts], sizes, axis=1)
    places[2] += np.arange(places.shape[1])
    return torch.from_numpy(places)


def slice_groups(groups: Sequence[RowGroup], start: int, stop: int) -> list[RowGroup]:
    """Return the rows from `start` to `stop` - 1 of all groups together."""
    found = []
    for group in groups:
        if (places := group.places[:, max(start, 0) : max(stop, 0)]).numel():
            found.append(group._replace(places=places))
        start, stop = start - group.size, stop - group.size
    return found


class Batches:
    """Run batches of one model, noise and preparation, all written to one buffer.

    Parameters
    ----------
    forward : Forward
        The base classifier.
    noise : Noise
    seed : int
    size : int
        Most rows of a batch.
    preparation : mapping
        What `ops.perturber` takes from scale to backend.
    pad : bool
        Give the model a full batch always, whatever is left in the buffer of earlier rows behind the last. Kernels mostly
        compute a row to the same bits wherever it stands in a batch of one shape, and mostly not in one of another
        (docs/promises.md, Bits of rows).
    timer : StageTimer, optional
        Where times go.

    Attributes
    ----------
    limit : int
        Most rows of a batch from now on: `size`, or half of the smallest batch on which memory ran out.
    timer : StageTimer
    perturber, accumulator : callable
        Those of `ops`; a test may replace them.
    """

    perturber = staticmethod(perturber)
    accumulator = staticmethod(accumulator)

    def __init__(
        self,
        forward: Forward,
        noise: Noise,
        *,
        seed: int,
        size: int,
        preparation: Mapping[str, Any],
        pad: bool = False,
        timer: StageTimer | None = None,
    ) -> None:
        self.forward, self.noise, self.seed, self.preparation, self.pad = forward, noise, seed, preparation, pad
        self.timer = timer or StageTimer()
        self.size = self.limit = size
        self._buffer: torch.Tensor | None = None
        self._perturb: tuple[torch.Tensor, torch.Tensor, Perturber] | None = None  # and what it reads
        self._add: list[tuple[Tally, Accumulator]] = []

    def run(self, inputs: torch.Tensor, input_ids: torch.Tensor, groups: Sequence[RowGroup]) -> None:
        """Add these rows to their Tallies, each once: where memory runs out, halve the batch and run the same rows again."""
        rows = sum(group.size for group in groups)
        if rows > self.limit:
            for start in range(0, rows, limit := self.limit):
                self.run(inputs, input_ids, slice_groups(groups, start, start + limit))
            return
        size = self.limit if self.pad else rows
        try:
            logits = self.logits(inputs, input_ids, groups, size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:  # nothing from here on is tried again: it would count rows twice
            with self.timer("kernels"):
                start = 0
                for group in groups:
                    stop = start + group.size
                    self._adder(group.tally)(logits[start:stop], group.places)
                    start = stop
            self.timer.rows += rows
            return
        self._back_off(size)  # out here, where the error no longer keeps what the model had allocated
        self.run(inputs, input_ids, groups)

    def logits(self, inputs: torch.Tensor, input_ids: torch.Tensor, groups: Sequence[RowGroup], size: int) -> torch.Tensor:
        """Return the logits [rows, K] of all rows of `groups`, which the model gets in a batch of `size`."""
        with self.timer("kernels"):
            batch = self._batch(inputs, size)
            perturb, start = self._perturb_of(inputs, input_ids), 0
            for group in groups:
                stop = start + group.size
                perturb(batch[start:stop], group.places, group.stream)
                start = stop
        with self.timer("model"):
            return self.forward(batch)[:start]

    def _perturb_of(self, inputs: torch.Tensor, input_ids: torch.Tensor) -> Perturber:
        if self._perturb is None or self._perturb[0] is not inputs or self._perturb[1] is not input_ids:
            run = self.perturber(inputs, self.noise, seed=self.seed, input_ids=input_ids, **self.preparation)
            self._perturb = inputs, input_ids, run
        return self._perturb[2]

    def _adder(self, tally: Tally) -> Accumulator:
        for known, add in self._add:
            if known is tally:
                return add
        self._add.append((tally, self.accumulator(tally, backend=self.preparation["backend"])))
        return self._add[-1][1]

    def _batch(self, inputs: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the first rows of the buffer: one for the whole run, so memory does not grow with the number of samples."""
        if self._buffer is None or len(self._buffer) < rows:
            layout = memory_format(self.preparation.get("channels_last", False), inputs.ndim - 1)
            dtype = self.preparation.get("dtype") or torch.float32
            shape = (rows, *inputs.shape[1:])
            self._buffer = torch.empty(shape, dtype=dtype, device=inputs.device, memory_format=layout)
            if self.pad:
                self._buffer.zero_()
        return self._buffer[:rows]

    def _back_off(self, size: int) -> None:
        if self.limit == self.size:  # warn once
            warnings.warn(
                f"memory ran out on a batch of {size}; going on with smaller ones, and no sample is lost or counted twice",
                UserWarning,
                stacklevel=2,
            )
        self.limit, self._buffer = -(-size // 2), None
        self.forward.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def staged(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the values from where a copy to the device can be queued, so that nobody waits for it: pinned memory."""
    return values.pin_memory() if device.type != "cpu" and values.device.type == "cpu" else values


def to_device(values: torch.Tensor | Integers, device: torch.device) -> torch.Tensor:
    """Return the values as a tensor there; nobody waits for the copy."""
    return staged(torch.as_tensor(values), device).to(device, non_blocking=device.type != "cpu")


def to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start to copy values to the host; return the copy, and from a GPU the event after which it can be read."""
    if not values.is_cuda:
        return values, None
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    return pinned, recorded_event(values.device)


def recorded_event(device: torch.device) -> torch.cuda.Event | None:
    """Return, from a GPU, an event that happens when it has done what it was given."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))  # of the device, which need not be the current one
    return event
