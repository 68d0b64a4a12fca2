"""rsfast.engine.batch_size: which size the search finds, where it ends, and when it is made. The clock is a fake."""

import pytest
import torch
from torch import nn

from rsfast.engine import batch_size
from rsfast.engine.batch_size import Sizes, automatic, fastest, fixed
from rsfast.stats.certificate import Execution

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = torch.Size([3, 32, 32])  # 128 rows mostly, 1 to 16384


class Machine:
    """Takes the time a batch that it is told, and notes what was run."""

    def __init__(self, seconds, memory=1 << 20):
        self.now, self.seconds, self.memory, self.runs = 0.0, seconds, memory, []

    def clock(self):
        return self.now

    def run(self, size):
        self.runs.append(size)
        if size > self.memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(size)


def test_fixed():
    """On a CPU 2 MiB of float32, of vectors 4 MiB, 4 to 32768 rows; on a GPU 16 MiB, 16 to 65536 rows; powers of two."""
    shapes = {
        (1,): (32768, 65536),
        (10,): (32768, 65536),
        (64,): (16384, 65536),
        (100,): (8192, 32768),
        (1, 8, 8): (8192, 65536),
        (1, 2, 2): (32768, 65536),
        (3, 32, 32): (128, 1024),
        (3, 224, 224): (4, 16),
        (3, 1024, 1024): (4, 16),
        (3, 1 << 13, 1 << 13): (1, 16),
    }
    found = {shape: (fixed(torch.Size(shape), CPU), fixed(torch.Size(shape), GPU)) for shape in shapes}
    assert found == shapes


@pytest.mark.parametrize(
    ("seconds", "memory", "found", "runs"),
    [
        (lambda size: 1.0, 1 << 20, 4096, [64, 128, 256, 512, 1024, 2048, 4096, 32, 16]),  # the larger the better
        (lambda size: size, 1 << 20, 16, [64, 128, 256, 32, 16]),  # the smallest of equals, but none that is not needed
        (lambda size: size**1.5, 1 << 20, 8, [64, 128, 256, 32, 16, 8]),  # the smaller the better
        (lambda size: max(size, 256), 1 << 20, 256, [64, 128, 256, 512, 1024, 32, 16]),
        (lambda size: max(size, 256) + 200 * (size == 128), 1 << 20, 256, [64, 128, 256, 512, 1024, 32, 16]),  # one bad size
        (lambda size: size * 0.985 ** size.bit_length(), 1 << 20, 128, [64, 128, 256, 32, 16]),  # 1.5 % at a time
        (lambda size: 1.0, 300, 256, [64, 128, 256, 512, 32, 16]),  # out of memory
        (lambda size: 1.0, 20, 16, [64, 32, 16, 8]),
    ],
)
def test_fastest(seconds, memory, found, runs):
    machine = Machine(seconds, memory)
    assert fastest(machine.run, Sizes(8, 64, 4096), clock=machine.clock) == (found, True)
    assert machine.runs == [size for size in runs for _ in range(3 if size <= memory else 1)]


@pytest.mark.parametrize("fast", [1, 2, 3])
def test_the_best_of_three_runs_counts(fast):
    """The others may compile, or be disturbed."""
    machine = Machine(lambda size: 1 if size == 16 or machine.runs.count(size) == fast else 1000)
    assert fastest(machine.run, Sizes(16, 16, 32), clock=machine.clock) == (32, True)


def test_what_runs_on_is_waited_for():
    """As on a GPU: the run returns at once, and the time is spent until synchronised."""
    queued, machine = [], Machine(lambda size: 0)

    def run(size):
        queued.append(size)
        machine.run(size)

    def synchronize():
        machine.now += sum(max(size, 256) for size in queued)
        queued.clear()

    assert fastest(run, Sizes(16, 64, 4096), None, synchronize, machine.clock) == (256, True)


def test_other_errors_come_through():
    machine = Machine(lambda size: 1, memory=7)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fastest(machine.run, Sizes(8, 64, 4096), clock=machine.clock)
    assert machine.runs == [64, 32, 16, 8]

    def run(size):
        if size == 128:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fastest(run, Sizes(8, 64, 4096))


@pytest.mark.parametrize("budget", range(0, 3000, 100))
def test_a_search_stays_within_its_budget(budget):
    """It ends sooner, with the best of what it saw."""
    machine = Machine(lambda size: max(size, 256))
    found, sure = fastest(machine.run, Sizes(8, 64, 4096), budget, clock=machine.clock)
    assert sum(machine.runs) <= budget
    every = [64, 128, 256, 512, 1024, 32, 16]
    assert sure == (budget >= 3 * sum(every))
    assert found == max((size for size in machine.runs if size <= 256), default=64)


@pytest.mark.parametrize(("samples", "rows"), [(None, 6000), (600_000, 6000), (599_999, 6000), (38_400, 384), (38_399, 0)])
def test_a_search_takes_at_most_one_percent_of_the_samples(samples, rows):
    """And is made again where it did not come to its end: a longer call may learn more."""
    machine, model = Machine(lambda size: size), nn.Flatten()
    size = automatic(model, SHAPE, CPU, Execution(), samples, machine.run, machine.clock)
    spent = sum(machine.runs)
    assert spent <= rows
    assert spent > 0 or (rows == 0 and size == fixed(SHAPE, CPU))
    assert automatic(model, SHAPE, CPU, Execution(), None, machine.run, machine.clock) == 32
    assert (sum(machine.runs) == spent) == (samples is None or samples >= 100 * 3 * (128 + 256 + 512 + 64 + 32))


@pytest.mark.parametrize(
    ("shape", "largest"), [((1,), 65536), ((1024,), 65536), ((1025,), 32768), ((3, 224, 224), 256), ((3, 2048, 2048), 4)]
)
def test_no_more_than_256_mib_or_65536_rows(shape, largest):
    machine = Machine(lambda size: 1.0, memory=1 << 20)
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
    others = (nn.Flatten(), torch.Size([3, 31, 32]), torch.device("cpu:0"), Execution(compile=True))
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
    half = len(machine.runs) // 2
    assert machine.runs[:half] == machine.runs[half:]
