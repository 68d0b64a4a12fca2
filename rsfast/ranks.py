"""Many processes: which share of the work is this one's, and how results come together."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

SHARDS = ("inputs", "samples")


class Ranks(NamedTuple):
    """This process and how many there are, and what is divided among them: "inputs", "samples" or nothing."""

    shard: str | None = None
    rank: int = 0
    world: int = 1

    @classmethod
    def find(cls, shard: str | None) -> Ranks:
        """Return the place of this process in the default process group.

        Raises
        ------
        ValueError
            If shard is none of `SHARDS` or None, or there is no process group to share with.
        """
        if shard is None:
            return cls()
        if shard not in SHARDS:
            raise ValueError(f"shard is {shard!r}; it must be {' or '.join(map(repr, SHARDS))}, or None")
        if not distributed.is_available() or not distributed.is_initialized():
            raise ValueError(
                f"shard is {shard!r}, but there is no process group; torch.distributed.init_process_group must have been "
                "called, as under torchrun"
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

    def same(self, value: T) -> T:
        """Return what rank 0 has."""
        values: list[Any] = [value]
        if self.shard is not None:
            distributed.broadcast_object_list(values)
        found: T = values[0]
        return found

    def add(self, integers: torch.Tensor) -> None:
        """Replace these integers by the sum over all ranks, if samples are divided."""
        if self.by_samples:
            distributed.all_reduce(integers)

    def gather(self, values: list[T]) -> list[T]:
        """Return the values of all ranks, if inputs are divided."""
        if not self.by_inputs:
            return values
        lists: list[list[T]] = [[] for _ in range(self.world)]
        distributed.all_gather_object(lists, values)
        return [value for of_rank in lists for value in of_rank]
