"""rsfast.engine.batch_size: which size the search finds, where it ends, and when it is made. The clock is a fake."""

import pytest
import torch
from torch import nn

from rsfast.engine import batch_size
from rsfast.engine.batch_size import automatic, fastest, fixed
from rsfast.stats.certificate import Execution

CPU = torch.device("cpu")
SHAPE = torch.Size([3, 32, 32])
SIZES = [1 << k for k in range(4, 13)]
SEARCH = 3 * sum(SIZES)  # rows


class Machine:
    """Takes the time a batch that it is told, and notes what was run."""

    def __init__(self, seconds, memory=4096):
        self.now, self.seconds, self.memory, self.runs = 0.0, seconds, memory, []

    def clock(self):
        return self.now

    def run(self, size):
        self.runs.append(size)
        if size > self.memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(size)


def test_fixed():
    """16 MiB of float32, from 16 to 1024 rows."""
    shapes = {(3, 224, 224): 27, (3, 32, 32): 1024, (1,): 1024, (3, 1024, 1024): 16, (1, 64, 128): 512}
    assert {shape: fixed(torch.Size(shape)) for shape in shapes} == shapes


@pytest.mark.parametrize(
    ("seconds", "memory", "found", "last"),
    [
        (lambda size: 1.0, 4096, 4096, 4096),  # the larger the better
        (lambda size: size, 4096, 16, 64),  # no row faster in a larger batch: two more sizes are tried
        (lambda size: max(size, 100), 4096, 128, 512),
        (lambda size: size + (40 if size == 64 else 0) + max(0, 200 - size), 4096, 256, 1024),  # one bad size ends nothing
        (lambda size: size * 0.985 ** (size.bit_length()), 4096, 32, 64),  # 1.5 % at a time does not go on
        (lambda size: 1.0, 300, 256, 512),  # out of memory
        (lambda size: size, 20, 16, 32),
    ],
)
def test_fastest(seconds, memory, found, last):
    machine = Machine(seconds, memory)
    assert fastest(machine.run, SIZES, clock=machine.clock) == found
    whole = [size for size in SIZES if size <= min(last, memory)]
    assert machine.runs == [size for size in whole for _ in range(3)] + ([last] if last > memory else [])


@pytest.mark.parametrize("fast", [1, 2, 3])
def test_the_best_of_three_runs_counts(fast):
    """The others may compile, or be disturbed."""
    machine = Machine(lambda size: 1 if size == 16 or machine.runs.count(size) == fast else 1000)
    assert fastest(machine.run, [16, 32], clock=machine.clock) == 32


def test_what_runs_on_is_waited_for():
    """As on a GPU: the run returns at once, and the time is spent until synchronised."""
    queued, machine = [], Machine(lambda size: 0)

    def run(size):
        queued.append(size)
        machine.run(size)

    def synchronize():
        machine.now += sum(max(size, 100) for size in queued)
        queued.clear()

    assert fastest(run, SIZES, synchronize, machine.clock) == 128


def test_other_errors_come_through():
    machine = Machine(lambda size: 1, memory=8)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fastest(machine.run, SIZES, clock=machine.clock)

    def run(size):
        if size == 64:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fastest(run, SIZES)


@pytest.mark.parametrize(
    ("samples", "searched"), [(None, True), (100 * SEARCH, True), (100 * SEARCH - 1, False), (1, False)]
)
def test_a_search_takes_at_most_one_percent_of_the_samples(samples, searched):
    machine = Machine(lambda size: 1.0)
    found = automatic(nn.Flatten(), SHAPE, CPU, Execution(), samples, machine.run, machine.clock)
    assert (found, len(machine.runs)) == ((4096, 27) if searched else (fixed(SHAPE), 0))


@pytest.mark.parametrize(
    ("shape", "largest"), [((1,), 4096), ((16384,), 4096), ((16385,), 2048), ((3, 224, 224), 256), ((3, 2048, 2048), 16)]
)
def test_no_more_than_256_mib(shape, largest):
    machine = Machine(lambda size: 1.0)
    assert automatic(nn.Flatten(), torch.Size(shape), CPU, Execution(), None, machine.run, machine.clock) == largest
    assert max(machine.runs) == largest


def test_the_answer_is_remembered():
    """Per model, shape, device and execution, and for no longer than the model lives; then few samples do not matter."""
    machine, model = Machine(lambda size: max(size, 100)), nn.Flatten()
    before = len(batch_size.remembered)
    arguments = [model, SHAPE, CPU, Execution()]
    assert automatic(*arguments, None, machine.run, machine.clock) == 128
    once = len(machine.runs)
    assert [automatic(*arguments, samples, machine.run, machine.clock) for samples in (None, 1)] == [128, 128]
    assert len(machine.runs) == once
    others = (nn.Flatten(), torch.Size([12]), torch.device("cpu:0"), Execution(compile=True))
    for place, other in enumerate(others):
        changed = [*arguments[:place], other, *arguments[place + 1 :]]
        assert automatic(*changed, None, machine.run, machine.clock) == 128
        assert len(machine.runs) == (place + 2) * once
    assert len(batch_size.remembered) == before + 2
    del model, arguments, others, other, changed
    assert len(batch_size.remembered) == before


class Slotted:
    __slots__ = ()

    def __call__(self, batch):
        return batch


class Unhashable(Slotted):
    __slots__ = ("__weakref__",)
    __hash__ = None


@pytest.mark.parametrize("model", [Slotted(), Unhashable()])
def test_what_cannot_be_remembered_is_measured_each_time(model):
    machine = Machine(lambda size: max(size, 100))
    for _ in range(2):
        assert automatic(model, SHAPE, CPU, Execution(), None, machine.run, machine.clock) == 128
    assert machine.runs[:18] == machine.runs[18:]
