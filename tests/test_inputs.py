"""Inputs: what it takes from each kind of source, when it reads it, and how it lets go of it."""

import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import readers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import rsfast
from rsfast.engine.inputs import Inputs
from rsfast.ops import openmp

X = torch.arange(60, dtype=torch.float32).reshape(10, 2, 3)
LABELS = torch.arange(10)


def eventually(condition):
    """Wait until it holds; what is waited for takes microseconds, and a failure a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    eventually(lambda: not readers())


class Squares(Dataset):
    """Map style, with labels; like many, it relies on its caller to mind its length."""

    def __len__(self):
        return len(X)

    def __getitem__(self, place):
        return torch.cat([X, X])[place], place


class Unsized(IterableDataset):
    def __iter__(self):
        return zip(X, LABELS, strict=True)


class Sized(Unsized):
    def __len__(self):
        return len(X)


def only_inputs(items):
    return torch.stack([x for x, _ in items])


SOURCES = {
    "tensor": (lambda: X, 10),
    "strided tensor": (lambda: X.transpose(1, 2).contiguous().transpose(1, 2), 10),
    "list": (lambda: list(X), 10),
    "strided list": (lambda: list(X.transpose(1, 2).contiguous().transpose(1, 2)), 10),
    "list with labels": (lambda: list(zip(X, LABELS, strict=True)), 10),
    "generator": (lambda: (x for x in X), None),
    "map dataset": (Squares, 10),
    "tensor dataset": (lambda: TensorDataset(X), 10),
    "iterable dataset": (Unsized, None),
    "iterable dataset with a length": (Sized, 10),
    "loader": (lambda: DataLoader(Squares(), batch_size=4), 10),
    "loader without labels": (lambda: DataLoader(X, batch_size=4), 10),
    "loader without batches": (lambda: DataLoader(Squares(), batch_size=None), 10),
    "loader with a sampler": (lambda: DataLoader(Squares(), batch_size=4, sampler=range(10)), 10),
    "loader with batches of its own": (lambda: DataLoader(Squares(), batch_sampler=[[0, 1, 2], [3], range(4, 10)]), None),
    "loader with a batch sampler": (lambda: DataLoader(Squares(), batch_sampler=BatchSampler(range(10), 3, False)), 10),
    "loader that may drop": (lambda: DataLoader(Squares(), batch_size=5, drop_last=True), None),
    "loader that collates": (lambda: DataLoader(Squares(), batch_size=4, collate_fn=only_inputs), None),
    "loader of an iterable dataset": (lambda: DataLoader(Unsized(), batch_size=4), None),
    "loader with workers": (lambda: DataLoader(Squares(), batch_size=2, num_workers=2), 10),
}


# What it takes


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same(name):
    make, count = SOURCES[name]
    with Inputs(make()) as inputs:
        assert inputs.count == count
        assert inputs.shape == X.shape[1:]
        assert inputs.device == X.device
        found = list(inputs)
    assert [input_id for input_id, _ in found] == list(range(10))
    assert all(x.is_contiguous() and x.dtype == torch.float32 for _, x in found)
    assert torch.equal(torch.stack([x for _, x in found]), X)


def test_a_shuffled_loader_keeps_its_order():
    """Ids go by the order in which inputs come."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    sampler = RandomSampler(X, generator=torch.Generator().manual_seed(3))
    assert list(sampler) == order.tolist()
    sampler.generator.manual_seed(3)
    with pytest.warns(UserWarning, match=r"DataLoader that shuffles \(its RandomSampler\)"):
        found = list(Inputs(DataLoader(X, batch_size=3, sampler=sampler)))
    assert torch.equal(torch.stack([x for _, x in found]), X[order])
    assert [input_id for input_id, _ in found] == list(range(10))


SHUFFLED = {
    "shuffle": lambda: DataLoader(X, batch_size=4, shuffle=True),
    "without batches": lambda: DataLoader(X, batch_size=None, shuffle=True),
    "subset": lambda: DataLoader(X, batch_size=4, sampler=SubsetRandomSampler([3, 1, 4])),
    "weighted": lambda: DataLoader(X, batch_size=4, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    "distributed": lambda: DataLoader(X, batch_size=4, sampler=DistributedSampler(X, 2, 0)),
    "batch sampler": lambda: DataLoader(X, batch_sampler=BatchSampler(RandomSampler(X), 4, False)),
}
IN_ORDER = {
    "plain": lambda: DataLoader(X, batch_size=4),
    "distributed": lambda: DataLoader(X, batch_size=4, sampler=DistributedSampler(X, 2, 0, shuffle=False)),
    "a sampler of one's own": lambda: DataLoader(X, batch_size=4, sampler=[3, 1, 2]),
    "batches of one's own": lambda: DataLoader(X, batch_sampler=[[3, 1], [2]]),
    "iterable dataset": lambda: DataLoader(Unsized(), batch_size=4),
}


def certify(loader, **options):
    return rsfast.certify(lambda x: x.flatten(1)[:, :2], loader, rsfast.Gaussian(2.0), num_classes=2, n=20, **options)


@pytest.mark.parametrize("name", SHUFFLED)
def test_a_shuffled_loader_is_warned_of(name):
    """Once a call, and before sampling."""
    for _ in range(2):
        with pytest.warns(UserWarning, match="use shuffle=False, or pass input_ids") as caught:
            certify(SHUFFLED[name]())
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="shuffles"):
            rsfast.predict(None.__ne__, SHUFFLED[name](), rsfast.Gaussian(2.0), num_classes=2, n=20, alpha=0.01)
        loader = SHUFFLED[name]()
        certify(loader, input_ids=range(10 if loader.batch_sampler is None else len(loader.batch_sampler.sampler)))


@pytest.mark.parametrize("name", IN_ORDER)
def test_no_other_loader_is_warned_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify(IN_ORDER[name]())


def test_one_buffer_for_all():
    """A source may write its next input where the last one was, though that has not been taken yet."""

    def source():
        buffer = torch.empty(2, 3)
        for x in X:
            yield buffer.copy_(x)

    assert torch.equal(torch.stack([x for _, x in Inputs(source())]), X)


def test_gradients_are_dropped():
    assert not any(x.requires_grad for _, x in Inputs([x.clone().requires_grad_() for x in X]))


# Ids


@pytest.mark.parametrize("source", [X, list(X), iter(X)], ids=["tensor", "list", "iterator"])
@pytest.mark.parametrize(
    "ids",
    [[*range(9, 0, -1), 2**32 - 1], torch.arange(10) * 7, range(100, 120, 2), np.arange(10)],
    ids=lambda x: type(x).__name__,
)
def test_ids(source, ids):
    source = iter(X) if not isinstance(source, (torch.Tensor, list)) else source
    assert [input_id for input_id, _ in Inputs(source, ids)] == [int(k) for k in ids]


@pytest.mark.parametrize("source", [X, list(X)], ids=["tensor", "list"])
@pytest.mark.parametrize("length", [9, 11])
def test_ids_of_known_number(source, length):
    with pytest.raises(ValueError, match=rf"^input_ids must have shape \[10\], got \[{length}\]"):
        Inputs(source, range(length))


@pytest.mark.parametrize("source", [lambda: X, lambda: list(X), lambda: iter(X)], ids=["tensor", "list", "iterator"])
@pytest.mark.parametrize(
    ("error", "message", "ids"),
    [
        (ValueError, r"^input_ids must lie in .*, got values from 0 to 4294967296", [0] * 9 + [2**32]),
        (ValueError, r"^input_ids must lie in .*, got values from -1 to 8", torch.arange(10) - 1),
        (TypeError, r"^input_ids must have dtype int64, got torch.float32", torch.zeros(10)),
        (TypeError, r"^input_ids must be int64 .*, got \['a'\]", ["a"]),
    ],
)
def test_wrong_ids(source, error, message, ids):
    with pytest.raises(error, match=message):
        Inputs(source(), ids)


def test_too_few_ids():
    inputs = Inputs(iter(X), [5, 6, 7])
    assert [next(inputs)[0] for _ in range(3)] == [5, 6, 7]
    with pytest.raises(ValueError, match=r"^input_ids must name every input, got shape \[3\] where there is an inputs\[3\]"):
        next(inputs)
    assert list(inputs) == []


def test_ids_to_spare():
    assert [input_id for input_id, _ in Inputs(iter(X[:2]), [5, 6, 7])] == [5, 6]


# Errors


@pytest.mark.parametrize(
    ("error", "message", "source"),
    [
        (
            TypeError,
            r"^inputs must be a dense float32 tensor \[I, \*shape\], got a ndarray; pass torch.from_numpy",
            X.numpy(),
        ),
        (TypeError, r"^inputs must have dtype float32, got torch.uint8; .* x.float\(\) / 255", X.to(torch.uint8)),
        (ValueError, r"^inputs must have shape \[I, \*shape\] with at least one input.*, got \[4\]", torch.zeros(4)),
        (ValueError, r"^inputs must have shape .*, got \[0, 4\]", torch.zeros(0, 4)),
        (
            ValueError,
            r"^inputs\[2\] must be finite, got NaN or infinity",
            torch.tensor([[0.0], [1.0], [torch.nan], [torch.inf]]),
        ),
        (TypeError, r"^inputs must be .* a Dataset with a length, or an iterable .*, got a str$", "images.npz"),
        (TypeError, r"^inputs must be .*, got a int", 5),
        (TypeError, r"^inputs must be .* with a length, .*, got a Dataset$", Dataset()),
        (ValueError, r"^inputs must hold at least one input, got none", []),
        (ValueError, r"^inputs must hold at least one input, got none", DataLoader([], batch_size=2)),
        (TypeError, r"^inputs must be .* an iterable of inputs \[\*shape\], got a dict; pass inputs\[\"x\"\]$", {"x": X}),
        (TypeError, r"^inputs\[0\] must be a dense float32 tensor \[\*shape\], got a str$", ["x.png"]),
        (TypeError, r"^the batch at inputs\[0\] must be .*, got a dict", DataLoader([{"x": x} for x in X], batch_size=2)),
        (
            ValueError,
            r"^the batch at inputs\[0\] must have shape \[I, \*shape\] with .*, got \[2\]",
            DataLoader([0.5, 1.5], 2),
        ),
    ],
)
def test_errors_at_once(error, message, source):
    if isinstance(source, DataLoader) and "must have shape" in message:
        source.collate_fn = torch.tensor  # default_collate would make float64
    with pytest.raises(error, match=message):
        Inputs(source)


BAD_ITEMS = [
    (
        TypeError,
        r"^inputs\[3\] must have dtype float32, got torch.uint8; .* x.float\(\) / 255",
        torch.zeros(2, 3, dtype=torch.uint8),
    ),
    (
        TypeError,
        r"^inputs\[3\] must have dtype float32, got torch.float64; call x.float\(\)",
        torch.zeros(2, 3, dtype=torch.float64),
    ),
    (TypeError, r"^inputs\[3\] must be a dense float32 tensor \[\*shape\], got a ndarray", X[0].numpy()),
    (TypeError, r"^inputs\[3\] must be a dense float32 tensor .*, got torch.sparse_coo; ", X[0].to_sparse()),
    (TypeError, r"^inputs\[3\] must be .*, got a tuple", ()),
    (TypeError, r"^inputs\[3\] must be .*, got a int", (7, X[0])),
    (ValueError, r"^inputs\[3\] must be finite, got NaN or infinity", torch.full((2, 3), -torch.inf)),
    (ValueError, r"^inputs\[3\] must have shape \[2, 3\], as inputs\[0\], got \[3, 2\]", torch.zeros(3, 2)),
    (ValueError, r"^inputs\[3\] must have shape \[\*shape\] with at least one element.*, got \[\]", torch.tensor(1.0)),
    (ValueError, r"^inputs\[3\] must have shape \[\*shape\] with at least one element.*, got \[0\]", torch.zeros(0)),
    (ValueError, r"^inputs\[3\] must be on 'cpu', as inputs\[0\] is, got 'meta'", torch.zeros(2, 3, device="meta")),
]


@pytest.mark.parametrize(("error", "message", "bad"), BAD_ITEMS)
def test_an_error_waits_for_its_turn(error, message, bad):
    inputs = Inputs([*X[:3], bad, X[4]])
    assert [next(inputs)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error, match=message):
        next(inputs)
    assert list(inputs) == []


def test_an_error_within_a_batch():
    x = X.clone()
    x[5, 1, 1] = torch.nan
    inputs = Inputs(DataLoader(x, batch_size=4))
    assert [next(inputs)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"^inputs\[5\] must be finite, got NaN or infinity"):
        next(inputs)


class Corrupt(OSError):
    pass


@pytest.mark.parametrize("good", [0, 3])
def test_errors_of_the_source(good):
    """The very exception, where it happened, with a note where Python has notes."""
    raised = Corrupt("not an image")

    def source():
        yield from X[:good]
        raise raised

    with pytest.raises(Corrupt, match=r"^not an image") as caught:  # noqa: PT012 (with no input it is raised at once)
        inputs = Inputs(source())
        assert [next(inputs)[0] for _ in range(good)] == list(range(good))
        next(inputs)
    assert caught.value is raised
    assert raised.args == ("not an image",)
    assert raised.__notes__ == [f"inputs raised this when inputs[{good}] was read"]


@pytest.mark.parametrize("error", [IndexError, StopIteration])
def test_no_error_of_a_dataset_is_taken_for_its_end(error):
    class Defective(Squares):
        def __getitem__(self, place):
            if place == 6:
                raise error
            return super().__getitem__(place)

    inputs = Inputs(Defective())
    assert [next(inputs)[0] for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(IndexError if error is IndexError else RuntimeError):
        next(inputs)


# Reading ahead


@pytest.mark.parametrize(("elements", "ahead"), [(6, 64), (1 << 22, 4), (1 << 24, 2)])
def test_how_far_it_reads(elements, ahead):
    """64 inputs, or 64 MiB, but 2 inputs: as many as that, and never more."""
    asked = 0

    def source():
        nonlocal asked
        while True:
            asked += 1
            yield torch.zeros(1).expand(elements)

    with Inputs(source()) as inputs:
        for taken in range(3):
            eventually(lambda taken=taken: asked == taken + ahead)
            time.sleep(0.01)  # one more would come at once
            assert asked == taken + ahead
            next(inputs)


class Operations(TorchDispatchMode):
    """Counts what the thread that enters it does."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Watched(IterableDataset):
    """All that its thread does is counted from the first input on."""

    def __init__(self):
        self.operations = Operations()

    def __iter__(self):
        with self.operations:
            yield from X


@pytest.mark.parametrize("size", [None, 5])
def test_the_thread_waits_for_no_value(size):
    """On a GPU to look at a value is to wait for it, and for the model's batches before it, with every input."""
    source = Watched()
    inputs = source if size is None else DataLoader(source, batch_size=size)
    with Inputs(inputs) as found:
        assert len(list(found)) == 10
    counts = source.operations.counts
    assert counts["clone"] == 10
    assert not {"_local_scalar_dense", "is_nonzero", "equal", "item"} & set(counts)
    assert counts["aminmax"] == (10 if size is None else 2)


def test_a_tensor_needs_no_thread():
    inputs = Inputs(X)
    next(inputs)
    assert readers() == []


def test_memory_is_flat():
    """Of 100,000 inputs no more are alive than the few of each kind: the source's, those read ahead and those taken."""
    made, taken, most, asked = weakref.WeakSet(), weakref.WeakSet(), 0, 0

    def source():
        nonlocal asked
        for asked in range(1, 100_001):  # noqa: B007 (read below)
            x = torch.zeros(1)
            made.add(x)
            yield x

    with Inputs(source()) as inputs:
        for count, (_, x) in enumerate(inputs, 1):
            taken.add(x)
            most = max(most, asked - count, len(taken))
    assert count == asked == 100_000
    assert 1 < most <= 64
    assert len(made) == 0


@pytest.mark.skipif(openmp.runtime() is None, reason="torch has no OpenMP here")
def test_the_cores_are_left_to_the_model(threads):
    """The thread that reads has no OpenMP team; others keep theirs."""
    threads(2)

    def source():
        torch.zeros(1 << 20).clone()
        yield torch.tensor([float(torch.get_num_threads())])

    assert next(Inputs(source()))[1].item() == 1
    assert torch.get_num_threads() == 2


# Letting go


def endless():
    return itertools.cycle(X)


def leave_by_break():
    for input_id, _ in Inputs(endless()):
        if input_id == 2:
            break


def leave_by_exception():
    def work():
        with Inputs(endless()) as inputs:
            next(inputs)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert caught.tb is not None  # it still holds the frame of work


def leave_by_close():
    inputs = Inputs(endless())
    next(inputs)
    inputs.close()
    inputs.close()
    assert list(inputs) == []


def leave_untouched():
    Inputs(endless())


def leave_a_cycle():
    cycle = [Inputs(endless())]
    cycle.append(cycle)
    del cycle
    gc.collect()


def leave_at_the_end():
    inputs = Inputs(iter(X))
    assert len(list(inputs)) == 10
    assert readers() == []


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_by_close, leave_untouched, leave_a_cycle, leave_at_the_end]
)
def test_the_thread_ends(leave):
    """Before whoever leaves goes on."""
    leave()
    assert readers() == []


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_collected_by_its_own_thread():
    """Cycles are collected in whatever thread the collector happens to run, and a thread cannot wait for itself."""
    dropped = threading.Event()

    def source():
        yield X[0]
        assert dropped.wait(60)
        gc.collect()
        yield from endless()

    gc.disable()
    try:
        cycle = [Inputs(source())]
        gone = weakref.ref(cycle[0])
        cycle.append(cycle)
        del cycle
        dropped.set()
        eventually(lambda: gone() is None and not readers())
    finally:
        gc.enable()


def test_a_source_runs_in_one_thread():
    """From its first line to what it does when it is closed: some handles may not change threads."""
    threads = []

    def source():
        try:
            for x in X:
                threads.append(threading.current_thread())
                yield x
        finally:
            threads.append("closed")
            threads.append(threading.current_thread())

    with Inputs(source()) as inputs:
        next(inputs)
    assert "closed" in threads
    assert len({*threads} - {"closed"}) == 1


def test_a_source_that_does_not_come_back():
    """close() waits a moment, and no longer."""
    waits, go = threading.Event(), threading.Event()

    def source():
        yield X[0]
        waits.set()
        go.wait(60)

    inputs = Inputs(source(), patience=0.01)
    assert waits.wait(60)
    inputs.close()
    assert len(readers()) == 1
    go.set()


def test_the_interpreter_ends():
    """With one input reading as fast as it can, one that waits, and nobody who closes them."""
    code = """
        import itertools, threading, torch
        from rsfast.engine.inputs import Inputs
        def waiting():
            yield torch.zeros(1)
            threading.Event().wait()
        first, second = Inputs(waiting()), Inputs(itertools.repeat(torch.zeros(1000)))
        for _ in range(100):
            next(second)
        print("end")
        """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout, found.stderr) == (0, "end\n", "")
