"""Many processes: which share of the work is this one's, and how results come together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from .._check import check_choice
from .options import SHARDS

T = TypeVar("T")

_POLL = 1e-4  # seconds between two polls of a collective
_APART = 1_000_000  # microseconds between two decisions of all ranks


class Ranks(NamedTuple):
    """This process, how many processes there are, and what is divided among them: "inputs", "samples" or nothing.

    All ranks must make the same calls in the same order. One whose call the others do not make waits until they have ended,
    then raises ConnectionAbortedError, or until the process group's timeout. Signals take effect meanwhile.
    """

    shard: str | None = None
    rank: int = 0
    world: int = 1

    @classmethod
    def find(cls, shard: str | None) -> Ranks:
        """Return the place of this process in the default process group.

        Raises
        ------
        ValueError
            If shard is not one of `SHARDS` or None, or there is no process group to share with.
        """
        if shard is None:
            return cls()
        check_choice("shard", shard, (*SHARDS, None))
        if not distributed.is_available() or not distributed.is_initialized():
            raise ValueError(
                f"shard must be None without a process group, got {shard!r}; call torch.distributed.init_process_group "
                "first, as under torchrun"
            )
        return cls(shard, distributed.get_rank(), distributed.get_world_size())

    @property
    def by_inputs(self) -> bool:
        """Whether each process takes whole inputs."""
        return self.shard == "inputs"

    @property
    def by_samples(self) -> bool:
        """Whether each process takes samples of every input."""
        return self.shard == "samples"

    def gather(self, value: T) -> list[T]:
        """Return what each rank has, in their order."""
        if self.shard is None:
            return [value]
        values: list[Any] = [None] * self.world
        _finish(distributed.barrier(async_op=True))  # what follows is short
        distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return what rank 0 has."""
        return self.gather(value if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def assert_equal(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError, on all ranks, if one has a setting that rank 0 has otherwise."""
        first, *others = self.gather(settings)
        for rank, theirs in enumerate(others, start=1):
            for name in {**first, **theirs}:
                if first.get(name) != theirs.get(name):
                    raise ValueError(
                        f"{name} must be the same on all processes, got {first.get(name)!r} on rank 0 and "
                        f"{theirs.get(name)!r} on rank {rank}"
                    )

    @contextmanager
    def barrier_or_raise(self) -> Iterator[None]:
        """Let all ranks come to the end of the block, or none: what one raises there ends the block of the others, too.

        The block itself calls nothing that waits for other ranks.

        Raises
        ------
        ConnectionAbortedError
            If another rank raised an exception.
        """
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        failures = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, text in enumerate(failures):
            if text is not None:
                raise ConnectionAbortedError(f"rank {rank} gave up: {text}")

    def all_reduce_sum(self, integers: torch.Tensor) -> None:
        """Replace these integers by their sum over all ranks; on a GPU nothing waits for that."""
        if self.shard is None:
            return
        work = distributed.all_reduce(integers, async_op=True)
        if integers.is_cuda:
            work.wait()  # the stream does
        else:
            _finish(work)


class ControlSignal:
    """Decide what ranks that divide samples do after a batch: the largest request of any, on all alike; 0 is to go on.

    To decide after every batch would make each rank wait for the slowest every time. They decide about once a second.

    Parameters
    ----------
    ranks : Ranks
        Their process group must be able to do it on the CPU.
    clock : callable
        Returns the seconds.
    """

    def __init__(self, ranks: Ranks, clock: Callable[[], float] = time.monotonic) -> None:
        self._ranks, self._clock = ranks, clock
        self._left = self._batches = 1
        self._since = clock()

    def __call__(self, request: int) -> int:
        """Return what to do: the request itself, where ranks do not divide samples."""
        if not self._ranks.by_samples:
            return request
        self._left -= 1
        if self._left:
            return 0
        took = (self._clock() - self._since) / self._batches
        largest = torch.tensor([request, int(took * 1e6)])
        _finish(distributed.all_reduce(largest, distributed.ReduceOp.MAX, async_op=True))
        request, microseconds = largest.tolist()
        self._left = self._batches = max(1, _APART // max(1, microseconds))
        self._since = self._clock()
        return request


def _finish(work: distributed.Work) -> None:
    """Wait for a collective; signals take effect meanwhile, which in torch's own wait they do not."""
    while not work.is_completed():
        time.sleep(_POLL)
    try:
        work.wait()
    except RuntimeError as error:
        raise ConnectionAbortedError(f"another process of this job is gone, or does something else: {error}") from error
