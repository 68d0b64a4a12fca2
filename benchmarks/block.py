"""What all threads of a block do with machine code of compute capability 9.0, where `sass.Thread` runs one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from benchmarks.sass import SHARED, Instruction, Thread


@dataclass
class Block:
    """The threads of a block, which share memory and wait for one another at barriers.

    Between two barriers one thread runs after the other.
    """

    threads: Sequence[Thread]

    def run(self) -> Block:
        shared = bytearray(SHARED)
        for thread in self.threads:
            thread.shared = shared
        while True:
            met = {thread.advance(): thread for thread in self.threads}
            (barrier,) = met  # or the exit: here all threads reach the same
            if barrier.parts[0] == "EXIT":
                return self
            if "RED" in barrier.parts[1]:
                voted = any(thread.holds(barrier.operands[1]) for thread in self.threads)
                for thread in self.threads:
                    thread.voted = voted

    def issued(self) -> Counter[Instruction]:
        """Return how many of each instruction the warps issue: as many as the thread of a warp that comes by most often.

        That is a bound from below: threads of a warp that come by at different times need one each.
        """
        warps = [self.threads[i : i + 32] for i in range(0, len(self.threads), 32)]
        return sum((reduce(or_, (thread.issued for thread in warp)) for warp in warps), Counter[Instruction]())
