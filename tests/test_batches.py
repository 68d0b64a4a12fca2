"""Batches: every row counts once, whatever runs out of memory; padding that never counts; one buffer for all."""

import random
import warnings

import numpy as np
import pytest
import torch
from conftest import first_elements

from rsfast.engine.batches import Batches, RowGroup, slice_groups
from rsfast.engine.forward import Forward
from rsfast.heads import Softmax, Votes
from rsfast.noise import Gaussian
from rsfast.ops import accumulate, accumulator, perturb, perturber
from rsfast.ops.tally import Tally

CPU = torch.device("cpu")
X = torch.rand((5, 3, 2, 2), generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([9, 0, 4, 2**32 - 1, 7])
HEADS = (Votes(), Softmax(0.5))
NO_MEMORY = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": lambda: MemoryError(),
    "allocator": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"),
}


def make(model=first_elements, size=16, pad=False, **preparation):
    forward = Forward(model, 4, CPU)
    return Batches(forward, Gaussian(0.5), seed=3, size=size, preparation={"backend": "cpu", **preparation}, pad=pad)


def tallies():
    return {"selection": Tally(5, 4, HEADS), "estimation": Tally(5, 4, HEADS)}


def rows(into, first, selected, estimated):
    """Parts of so many rows of two streams, of inputs in turn."""
    parts = []
    for stream, count in (("selection", selected), ("estimation", estimated)):
        places = np.arange(first, first + count)
        parts.append(RowGroup(stream, into[stream], torch.from_numpy(np.stack([places % 5, places * 2 % 5, 10 * places]))))
    return [part for part in parts if part.size]


def run(batches, into, plan):
    """One batch for each pair of `plan`: rows of the selection and of the estimation."""
    with batches.forward.running():
        for number, (selected, estimated) in enumerate(plan):
            batches.run(X, IDS, rows(into, 100 * number, selected, estimated))
    return into


PLAN = [(16, 0), (5, 11), (0, 16), (1, 15), (7, 2), (0, 16), (3, 0), (0, 1)]


@pytest.fixture(scope="module")
def expected():
    return run(make(), tallies(), PLAN)


def test_rows_against_single_ones(expected):
    """Each row alone, its logits put into the Tally by hand."""
    alone = tallies()
    for number, (selected, estimated) in enumerate(PLAN):
        for part in rows(alone, 100 * number, selected, estimated):
            for slot, row, sample in part.places.T.tolist():
                options = {"stream": part.stream, "input_ids": IDS[slot][None], "backend": "reference"}
                noisy = perturb(X[slot][None], Gaussian(0.5), seed=3, samples=[sample], **options)
                accumulate(first_elements(noisy), part.tally, rows=[row], backend="reference")
    assert alone == expected
    assert [int(tally.n.sum()) for tally in alone.values()] == [32, 61]


# Memory that runs out


@pytest.mark.parametrize("kind", NO_MEMORY)
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_memory_that_runs_out_in_the_model(expected, kind, pad, seed):
    """At random batches, and always above a random size: the same Tallies, one warning, and never the same size again."""
    rng = random.Random(seed)
    most, sizes, failed = rng.choice([1, 2, 5, 9, 15]), [], []

    def model(batch):
        sizes.append(len(batch))
        if len(batch) > most or (len(batch) > 1 and rng.random() < 0.2):
            failed.append(len(batch))
            raise NO_MEMORY[kind]()
        return first_elements(batch)

    batches = make(model, pad=pad)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run(batches, tallies(), PLAN) == expected
    assert failed
    assert len(said) == 1
    assert str(said[0].message).startswith(f"memory ran out on a batch of {failed[0]}; going on with smaller ones")
    assert failed == sorted(set(failed), reverse=True)
    assert batches.limit == -(-failed[-1] // 2)
    assert batches.timer.rows == sum(map(sum, PLAN))
    if not pad:
        assert sum(sizes) - sum(failed) == sum(map(sum, PLAN))


def test_where_memory_runs_out_the_graph_goes_first(monkeypatch):
    """Before the smaller batch runs, as a CUDA graph holds memory of its own."""
    events = []

    def model(batch):
        events.append(len(batch))
        if len(batch) > 8:
            raise MemoryError
        return first_elements(batch)

    batches = make(model)
    monkeypatch.setattr(batches.forward, "release", lambda: events.append("release"))
    with pytest.warns(UserWarning, match="memory ran out on a batch of 16"):
        run(batches, tallies(), [(16, 0)])
    assert events == [16, "release", 8, 8]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_memory_that_runs_out_in_the_noise(expected, failing):
    """When part of a batch is there already."""
    calls = []

    def scarce(*arguments, **options):
        run = perturber(*arguments, **options)

        def fill(out, places, stream):
            calls.append(len(out))
            if len(calls) == 2 + failing:
                raise MemoryError
            run(out, places, stream)

        return fill

    batches = make()
    batches.perturber = scarce
    with pytest.warns(UserWarning, match="memory ran out on a batch of 16"):
        assert run(batches, tallies(), PLAN) == expected
    assert batches.limit == 8


@pytest.mark.parametrize("pad", [False, True])
def test_a_row_that_does_not_fit(pad):
    """Halved to the end, the error comes through; what was counted before is whole."""
    sizes, into = [], tallies()

    def model(batch):
        sizes.append(len(batch))
        if len(sizes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return first_elements(batch)

    with pytest.warns(UserWarning, match="memory ran out"), pytest.raises(torch.OutOfMemoryError):
        run(make(model, pad=pad), into, [(16, 0), (5, 6)])
    assert sizes == [16, 16, 8, 4, 2, 1] if pad else [16, 11, 6, 3, 2, 1]
    assert into["selection"].n.sum() == 16
    assert into["estimation"].n.sum() == 0


def test_one_row_of_a_padded_batch_is_tried_in_smaller_ones(expected):
    """It is the padding that does not fit."""
    sizes = []

    def model(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise MemoryError
        return first_elements(batch)

    into = tallies()
    with pytest.warns(UserWarning, match="memory ran out on a batch of 16"):
        run(make(model, pad=True), into, [(0, 1)])
    assert sizes == [16, 8, 4, 2]
    assert into == run(make(), tallies(), [(0, 1)])


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_memory_that_runs_out_in_counting_comes_through(kind):
    """Rows may have been counted by then: to try them again could count them twice."""
    calls, into = [], tallies()

    def failing(tally, backend):
        def add(logits, places):
            accumulator(tally, backend=backend)(logits, places)
            raise NO_MEMORY[kind]()

        return add

    batches = make(lambda batch: calls.append(len(batch)) or first_elements(batch))
    batches.accumulator = failing
    with pytest.raises((RuntimeError, MemoryError)):
        run(batches, into, [(5, 11)])
    assert calls == [16]
    assert into["selection"].n.sum() == 5
    assert into["estimation"].n.sum() == 0


@pytest.mark.parametrize(
    ("error", "message", "model"),
    [
        (RuntimeError, "mat1 and mat2 shapes cannot be multiplied", lambda x: x.flatten(1) @ torch.zeros(3, 4)),
        (ZeroDivisionError, "division by zero", lambda x: 1 / 0),
        (
            ValueError,
            r"^model must return shape \[16, K\] for a batch of 16, got \[15, 4\]",
            lambda x: first_elements(x)[1:],
        ),
    ],
)
def test_other_errors_come_through_at_once(error, message, model):
    calls, into = [], tallies()
    with pytest.raises(error, match=message):
        run(make(lambda batch: calls.append(len(batch)) or model(batch)), into, [(5, 11)])
    assert calls == [16]
    assert into == tallies()


def test_errors_of_the_noise_come_through():
    calls = []
    with (
        pytest.raises(ValueError, match=r"^input_ids must lie in .*, got values from -1"),
        (batches := make(calls.append)).forward.running(),
    ):
        batches.run(X, IDS - 1, rows(tallies(), 0, 3, 0))
    assert calls == []


# Padding, and the buffer


def test_padding(expected):
    """The model gets the full size always; rows of it that hold no sample are not counted."""
    sizes = []
    found = run(make(lambda batch: sizes.append(len(batch)) or first_elements(batch), pad=True), tallies(), PLAN)
    assert found == expected
    assert sizes == [16] * len(PLAN)


def test_padding_is_finite_and_what_it_returns_is_nobodys():
    """Where no row has been yet there are zeros, not whatever was in memory."""
    seen = []

    def model(batch):
        seen.append(batch.clone())
        return torch.where(torch.arange(len(batch))[:, None] < 3, first_elements(batch), torch.nan)

    into = run(make(model, pad=True), tallies(), [(3, 0)])
    assert torch.equal(seen[0][3:], torch.zeros(13, 3, 2, 2))
    assert into["selection"].counts[:, -1].sum() == 0
    assert into["selection"].n.sum() == 3


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_buffer_for_all(channels_last):
    """Every batch lies at the same address, in the layout and dtype that were asked for."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    seen = []

    def model(batch):
        seen.append((batch.data_ptr(), batch.dtype, batch.is_contiguous(memory_format=layout)))
        return first_elements(batch)

    run(make(model, channels_last=channels_last, dtype=torch.bfloat16), tallies(), PLAN)
    assert seen == [(seen[0][0], torch.bfloat16, True)] * len(PLAN)


# cut


@pytest.mark.parametrize("seed", range(20))
def test_cut(seed):
    """Rows of all parts together, as if they were one array."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 6) for _ in range(rng.randint(1, 4))]
    numbers = iter(range(100))
    into = Tally(1, 2)
    parts = [
        RowGroup(f"{place}", into, torch.tensor([[next(numbers)] * 3 for _ in range(length)]).T)
        for place, length in enumerate(lengths)
    ]
    every = [(part.stream, k) for part in parts for k in part.places[2].tolist()]
    assert len(every) == sum(lengths)
    for start in range(len(every) + 3):
        for stop in range(start, len(every) + 3):
            found = slice_groups(parts, start, stop)
            assert [(part.stream, k) for part in found for k in part.places[2].tolist()] == every[start:stop]
            for part in found:
                slots, rows, samples = part.places.tolist()
                assert slots == rows == samples != []
                assert part.tally is into
