"""ops.accumulate: every backend and instruction set makes the same integers, which are what the contract says they are."""

import copy
import ctypes
import functools
import itertools
import math
import mmap
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import Flushing, bits

from rsfast import ops, sequences
from rsfast._check import MAX_SAMPLES
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.ops import BACKENDS, accumulate, reference
from rsfast.ops.registry import Backend
from rsfast.ops.tally import Tally

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TEMPERATURES = (1e-7, 0.02, 0.1, 1.0, 10.0, 1000.0)
HEADS = (Votes(), *map(Softmax, TEMPERATURES), *map(Sparsemax, TEMPERATURES), ClippedLogits(-2.5, 7.0))
ONE = 1 << 30
# Batches of less, exactly and more than a tile of 16 rows; more rows than one chunk holds (256 where K is 10 to 64, 64 where
# it is 1000, 16 where it is 5000).
SIZES = [(k, b) for k in (2, 3, 10, 17, 100) for b in (1, 15, 16, 17, 300)]
SIZES += [(64, 17), (65, 17), (1000, 1), (1000, 17), (1000, 70), (5000, 1), (5000, 17)]
SLOTS = 4


def generator(seed):
    return torch.Generator().manual_seed(seed)


def hostile_logits(classes, batch, dtype=torch.float32, seed=0):
    """Rows of many scales, with ties, offsets, equal rows, classes of -inf, and about one in nine that does not vote."""
    draw = generator(1000 * classes + batch + seed)
    logits = torch.randn(batch, classes, generator=draw, dtype=torch.float64)
    scale = torch.tensor([1e-9, 1e-3, 0.1, 1.0, 4.0, 30.0, 1000.0])[torch.randint(7, (batch,), generator=draw)]
    logits = logits * scale[:, None] + torch.randint(-2, 3, (batch, 1), generator=draw) * 7
    kind = torch.randint(9, (batch,), generator=draw)
    logits[kind == 0] = logits[kind == 0].round()
    logits[kind == 1] = logits[kind == 1, :1]
    place = (kind == 2).nonzero().flatten()
    spoil = torch.tensor([math.nan, math.inf])[torch.arange(len(place)) % 2].double()
    logits[place, torch.randint(classes, (len(place),), generator=draw)] = spoil
    logits[place[::5]] = -math.inf
    masked = torch.rand(batch, classes, generator=draw) < torch.rand(batch, 1, generator=draw)
    logits[masked & (kind == 3)[:, None]] = -math.inf
    return logits.to(dtype)


def that_vote(logits):
    """The rows without a NaN whose maximum is finite."""
    return logits[~logits.isnan().any(1) & logits.amax(1).isfinite()]


def fill(logits, rows=None, *, heads=HEADS, slots=SLOTS, tracked=None, backend="cpu"):
    tally = Tally(slots, logits.shape[1], heads, tracked_classes=tracked)
    accumulate(logits, tally, rows=rows, backend=backend)
    return tally


def row_scores(logits, *heads, backend="cpu"):
    """Each row's integer scores [B, len(heads), K]: a slot a row."""
    return fill(logits, range(len(logits)), heads=heads, slots=len(logits), backend=backend).sums


def assert_same(found, expected):
    for name in ("n", "counts", "sums", "squares", "tracked_classes", "bin_counts", "bin_sums"):
        a, b = getattr(found, name), getattr(expected, name)
        places = (a != b).nonzero()[:4].tolist()
        assert not places, (name, [(place, a[tuple(place)].item(), b[tuple(place)].item()) for place in places])
    assert found == expected


def some_classes(classes, count, *, heads=HEADS, slots=SLOTS):
    """Classes to track, now and then one twice."""
    soft = sum(head != Votes() for head in heads)
    return torch.randint(classes, (slots, soft, count), generator=generator(classes + count))


def some_rows(batch, seed=0):
    return torch.randint(SLOTS, (batch,), generator=generator(seed))


same_logits = functools.cache(hostile_logits)


@functools.cache
def expected(classes, batch, dtype, tracked=0, slot=None):
    """The reference's Tally of hostile logits, in some slots or in one, with histograms of `tracked` classes a head."""
    rows = some_rows(batch) if slot is None else torch.full((batch,), slot)
    of = some_classes(classes, tracked) if tracked else None
    return fill(hostile_logits(classes, batch, dtype), rows, tracked=of, backend="reference")


# Integer for integer


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_is_the_reference(dtype, isa):
    for classes, batch in SIZES:
        logits = hostile_logits(classes, batch, dtype)
        before = logits.clone()
        assert_same(fill(logits, some_rows(batch)), expected(classes, batch, dtype))
        assert torch.equal(bits(logits), bits(before))


def test_the_hostile_logits_are_hostile():
    """The sizes above hold rows that vote and rows that do not, and scores between 0 and 1 for every head."""
    for dtype in TYPES:
        tally = expected(100, 300, dtype)
        assert tally.n.sum() == 300
        assert (tally.counts[:, -1] > 2).all()
        assert ((tally.sums % ONE > 0).sum((0, 2)) > 0).all()


@pytest.fixture(scope="module")
def million_classes():
    logits = torch.stack([torch.zeros(1 << 20), torch.randn(1 << 20, generator=generator(3))])
    heads = (Softmax(1.0), Sparsemax(10.0), ClippedLogits(-1.0, 1.0))
    return logits, heads, fill(logits, [0, 1], heads=heads, slots=2, backend="reference")


@pytest.mark.slow
def test_a_million_classes(million_classes, isa):
    """K = 2^20, the largest: sums of all-equal and of random rows do not overflow."""
    logits, heads, expected = million_classes
    found = fill(logits, [0, 1], heads=heads, slots=2)
    assert_same(found, expected)
    assert (found.sums[0, :2] == ONE >> 20).all()
    assert (found.sums[:, :2].sum(2) <= ONE).all()


def test_two_calls_add(isa):
    logits = hostile_logits(10, 50)
    tally = fill(logits, some_rows(50))
    accumulate(logits, tally, rows=some_rows(50))
    for name in ("n", "counts", "sums", "squares"):
        assert torch.equal(getattr(tally, name), 2 * getattr(expected(10, 50, torch.float32), name))


def test_empty_batch():
    assert fill(torch.zeros(0, 3), []) == Tally(SLOTS, 3, HEADS)


# What changes nothing


def test_order_and_splits(isa):
    """Rows permuted, and a batch cut in two, five and fifty."""
    logits, rows = hostile_logits(17, 300), some_rows(300)
    order = torch.randperm(300, generator=generator(4))
    assert_same(fill(logits[order], rows[order]), expected(17, 300, torch.float32))
    for size in (150, 61, 6):
        tally = Tally(SLOTS, 17, HEADS)
        for i in range(0, 300, size):
            accumulate(logits[i : i + size], tally, rows=rows[i : i + size])
        assert_same(tally, expected(17, 300, torch.float32))


def test_threads(threads, isa):
    for count in (1, 2, 3, 5, 64):
        threads(count)
        assert_same(fill(hostile_logits(1000, 70), some_rows(70)), expected(1000, 70, torch.float32))
        assert_same(fill(hostile_logits(3, 16), some_rows(16)), expected(3, 16, torch.float32))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_logits_of_any_strides(dtype, isa):
    logits, rows = hostile_logits(17, 300, dtype), some_rows(300)
    wide = torch.full((600, 51), math.nan, dtype=dtype)
    wide[::2, 7:41:2] = logits
    views = {
        "transposed": logits.t().contiguous().t(),
        "sliced": wide[::2, 7:41:2],
        "with a row stride": torch.cat([logits, logits], dim=1)[:, :17],
        "with an offset": torch.cat([logits, logits])[300:],
        "requiring grad": logits.clone().requires_grad_(),
    }
    for name, view in views.items():
        assert name == "with an offset" or name == "requiring grad" or not view.is_contiguous()
        assert_same(fill(view, rows), expected(17, 300, dtype))
        assert_same(fill(view, rows, backend="reference"), expected(17, 300, dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nothing_beyond_the_last_logit_is_read(dtype, isa):
    """Logits end where memory does: the next page may not be read, and a kernel that does ends the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    for classes, batch in ((2, 17), (5, 1), (5, 17), (10, 40), (15, 16), (17, 3), (17, 16), (100, 1)):
        logits = hostile_logits(classes, batch, dtype)
        offset = page - logits.numel() * dtype.itemsize
        placed = torch.frombuffer(memory, dtype=dtype, count=logits.numel(), offset=offset).view(batch, classes)
        placed.copy_(logits)
        assert_same(fill(placed, some_rows(batch)), fill(logits, some_rows(batch), backend="reference"))


def test_broadcast_logits(isa):
    row = torch.tensor([0.5, -1.0, 0.25])
    assert_same(fill(row.expand(20, 3), some_rows(20)), fill(row.repeat(20, 1), some_rows(20)))
    column = torch.randn(20, 1, generator=generator(5))
    assert_same(fill(column.expand(20, 7), some_rows(20)), fill(column.repeat(1, 7), some_rows(20)))


def test_logits_that_are_a_lazy_negation(isa):
    """The imaginary part of a lazy conjugate is a view whose elements are negated when they are read."""
    logits = torch.complex(torch.zeros(9, 4), torch.randn(9, 4, generator=generator(6))).conj().imag
    assert logits.is_neg()
    assert_same(fill(logits, some_rows(9)), fill(logits.clone(), some_rows(9)))


def test_flushing_subnormals_in_the_caller(isa):
    """Logits whose differences are subnormal count at temperature 1e-38, whatever mode the caller is in."""
    logits = torch.randn(40, 5, generator=generator(7)) * 2.0**-130
    half = (torch.randn(40, 5, generator=generator(7)) * 2.0**-20).half()
    heads = (Softmax(1e-38), Sparsemax(1e-38), Softmax(1e-6))
    for values in (logits, half):
        expected = fill(values, some_rows(40), heads=heads)
        assert_same(expected, fill(values, some_rows(40), heads=heads, backend="reference"))
        with Flushing():
            found = fill(values, some_rows(40), heads=heads)
        assert_same(found, expected)
    assert (logits.abs() < 2.0**-126).all()
    assert len(row_scores(logits, Softmax(1e-38)).unique()) > 100


def test_index_tensors_of_any_strides(isa):
    rows = torch.stack([some_rows(17), torch.full((17,), 99)], dim=1)[:, 0]
    assert not rows.is_contiguous()
    assert_same(fill(hostile_logits(10, 17), rows), expected(10, 17, torch.float32))


# Votes


def test_votes(backend):
    """Hand-made rows: ties go to the lowest class, -0 ties with 0, a row of equals votes for class 0."""
    for row, vote in (
        ([0.0, 1.0, 2.0], 2),
        ([0.0, 2.0, 2.0], 1),
        ([2.0, 2.0, 2.0], 0),
        ([-0.0, 0.0, -1.0], 0),
        ([0.0, -0.0, -1.0], 0),
        ([-1.0, -0.0, 0.0], 1),
        ([-3e38, -3e38, 3e38], 2),
        ([-3e38, -3.1e38, -3.2e38], 0),
        ([1e-45, 0.0, 3e-45], 2),
        ([math.nan, 1.0, 0.0], 3),
        ([0.0, math.inf, 0.0], 3),
        ([math.inf, -math.inf, math.inf], 3),
        ([-math.inf, 0.0, math.nan], 3),
        ([math.nan, -math.inf, -math.inf], 3),
        ([-math.inf, -math.inf, -math.inf], 3),
        ([0.0, 0.0, -math.inf], 0),
        ([-math.inf, -3.4e38, -math.inf], 1),
        ([-math.inf, -1.0, -1.0], 1),
    ):
        for batch in (1, 17):
            tally = fill(torch.tensor([row]).repeat(batch, 1), heads=(Votes(),), slots=1, backend=backend)
            assert tally.n.tolist() == [batch]
            assert tally.counts.tolist() == [[batch * (k == vote) for k in range(4)]]


def slots_of(order, batch):
    """The slot of each row: all one, in runs, a row each, in turns, or the last first."""
    places = torch.arange(batch)
    return {
        "one": torch.zeros_like(places) + SLOTS - 1,
        "runs": places * SLOTS // batch,
        "each": places,
        "in turns": places % SLOTS,
        "descending": places.flip(0) // 20,
    }[order]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("order", ["one", "runs", "each", "in turns", "descending"])
def test_votes_without_scores(order, dtype, threads, isa):
    """Rows in any order of slots, shared by any number of threads, of classes beside one another and not."""
    for classes, batch in itertools.product((2, 4, 5, 15, 16, 17, 63, 64, 65, 1000), (1, 15, 16, 17, 1000)):
        logits, rows = same_logits(classes, batch, dtype), slots_of(order, batch)
        wanted = fill(logits, rows, heads=(Votes(),), slots=max(batch, SLOTS), backend="reference")
        for count, view in ((1, logits), (3, logits), (1, logits.t().contiguous().t())):
            threads(count)
            assert_same(fill(view, rows, heads=(Votes(),), slots=max(batch, SLOTS)), wanted)


def test_votes_of_many_rows_on_many_threads(threads, isa):
    """Enough rows of a few classes for sixteen threads, and slots whose rows two or more of them read."""
    logits = hostile_logits(3, 400_000)
    for rows in (slots_of("one", 400_000), slots_of("runs", 400_000), some_rows(400_000)):
        wanted = fill(logits, rows, heads=(Votes(),), backend="reference")
        for count in (1, 2, 16):
            threads(count)
            assert_same(fill(logits, rows, heads=(Votes(),)), wanted)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_finite_maximum_votes_for_none(value, dtype, isa):
    """Wherever it stands, it counts in n and in the last of counts and adds no score; rows beside it do not notice."""
    clean = torch.randn(33, 5, generator=generator(8)).to(dtype)
    for place in ((0, 0), (5, 2), (15, 4), (16, 0), (32, 4)):
        logits = clean.clone()
        logits[place if value != -math.inf else place[0]] = value
        found = fill(logits, [0] * 33, slots=1)
        rest = fill(torch.cat([clean[: place[0]], clean[place[0] + 1 :]]), [0] * 32, slots=1)
        rest.n += 1
        rest.counts[0, -1] += 1
        assert_same(found, rest)
    everything = fill(torch.full((33, 5), value, dtype=dtype), [0] * 33, slots=1)
    assert everything.counts.tolist() == [[0, 0, 0, 0, 0, 33]]
    assert not everything.sums.any()
    assert not everything.squares.any()


def test_doubles_beyond_float32(isa):
    """A float64 logit that rounds to an infinite float32 is infinite: from the largest float32 plus half its unit on."""
    top = 2.0**128 - 2.0**104
    limit = top + 2.0**103
    for value, votes in ((top, True), (math.nextafter(limit, 0), True), (limit, False), (1e39, False)):
        found = fill(torch.tensor([[0.0, value]], dtype=torch.float64), [0], heads=(Votes(), Softmax(1.0)), slots=1)
        assert found.counts.tolist() == [[0, 1, 0] if votes else [0, 0, 1]]
        assert found.sums.tolist() == [[[0, ONE if votes else 0]]]
        found = fill(torch.tensor([[-value, -7.0]], dtype=torch.float64), [0], heads=(Votes(), Softmax(1.0)), slots=1)
        assert found.counts.tolist() == [[0, 1, 0]]
        assert found.sums.tolist() == [[[0, ONE]]]


# Classes that are not in use


def masked_logits(classes, batch, dtype, share):
    """Rows in which about `share` of the classes are -inf, and the same rows with a very low logit instead."""
    draw = generator(classes + batch)
    logits = (torch.randn(batch, classes, generator=draw) * 5).to(dtype)
    masked = torch.rand(batch, classes, generator=draw) < share
    masked[torch.arange(batch), torch.randint(classes, (batch,), generator=draw)] = False
    low = -60_000.0 if dtype == torch.float16 else -1e30
    return logits.masked_fill(masked, -math.inf), logits.masked_fill(masked, low)


MASKS = [(2, 40, 0.5), (3, 17, 0.9), (10, 300, 0.5), (17, 33, 0.0), (100, 70, 0.99), (1000, 17, 0.3), (2100, 3, 0.9)]


@functools.cache
def expected_masked(classes, batch, dtype, share):
    """What the reference makes of the logits that are very low, with two classes tracked."""
    _, low = masked_logits(classes, batch, dtype, share)
    return fill(low, some_rows(batch), tracked=some_classes(classes, 2), backend="reference")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_masked_classes_are_classes_far_below(dtype, backend):
    """Logits of -inf leave votes, scores and histograms of the others as very low ones do, to the last integer."""
    for classes, batch, share in MASKS:
        masked, _ = masked_logits(classes, batch, dtype, share)
        found = fill(masked, some_rows(batch), tracked=some_classes(classes, 2), backend=backend)
        assert_same(found, expected_masked(classes, batch, dtype, share))
        assert not found.counts[:, -1].any()
        assert share == 0 or masked.isinf().any()


def test_masked_classes_score_0(backend):
    """At the smallest and largest temperatures, in bin 0; the classes that are left share 2^30."""
    soft = [head(t) for head in (Softmax, Sparsemax) for t in (3e-39, 1e-38, 1.0, 8e37)]
    heads = (*soft, ClippedLogits(-3e38, 3e37), ClippedLogits(1.0, 2.0))
    for row, used in (([-math.inf, 2.0, 2.0, -math.inf], 2), ([0.5] * 16 + [-math.inf] * 5, 16)):
        logits = torch.tensor([row]).repeat(17, 1)
        off = logits[0].isinf().nonzero().flatten()
        tracked = off[[0, -1]].expand(1, len(heads), 2)
        found = fill(logits, [0] * 17, heads=heads, slots=1, tracked=tracked, backend=backend)
        assert not found.sums[0, :, off].any()
        assert not found.squares[0, :, off].any()
        assert (found.bin_counts[..., 0] == 17).all()
        assert not found.bin_sums.any()
        left = found.sums[0, : len(soft)][:, ~logits[0].isinf()]
        assert (left == 17 * (ONE // used)).all()
        assert found.counts[0, int((~logits[0].isinf()).int().argmax())] == 17


# Scores


def softmax_integers(units):
    """The softmax contract on Python integers, from a row's exponentials in units of 2^-40."""
    factor = 2**63 // -(-sum(units) // 256)
    return [(u >> 9) * factor >> 32 for u in units]


def sparsemax_integers(units):
    """The sparsemax contract on Python integers: the exact threshold of Martins and Astudillo 2016, rounded up."""
    ordered, total, support = sorted(units), sum(units), len(units)
    while Fraction(total - 2**40, support) >= ordered[-support]:
        total, support = total - ordered[-support], support - 1
    threshold = Fraction(total - 2**40, support)
    assert sum(max(u - threshold, 0) for u in units) == 2**40
    return [max(u - math.ceil(threshold), 0) >> 10 for u in units]


@functools.cache
def restated(classes, temperature):
    """Rows of logits and their softmax and sparsemax: shift and scale in float32, units, and then Python integers."""
    logits = hostile_logits(classes, 24, seed=1)
    logits = that_vote(logits)
    a = (logits - logits.max(1, keepdim=True).values) * torch.tensor(1 / temperature, dtype=torch.float32)
    softmax = [softmax_integers(units) for units in reference.exp_units(a).tolist()]
    shifted = (a + torch.tensor(1.0)).clamp(min=0).tolist()
    sparsemax = [sparsemax_integers([int(value * 2**24) << 16 for value in row]) for row in shifted]
    return logits, torch.tensor(softmax), torch.tensor(sparsemax)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_scores_restated_on_integers(classes, isa):
    for temperature in TEMPERATURES:
        logits, softmax, sparsemax = restated(classes, temperature)
        found = row_scores(logits, Softmax(temperature), Sparsemax(temperature))
        assert torch.equal(found[:, 0], softmax)
        assert torch.equal(found[:, 1], sparsemax)


def test_exponentials():
    """exp in units of 2^-40 against mpmath: relative error below 2^-23, and a unit; exact at 0, nothing below -28."""
    a = torch.cat([torch.linspace(-28, 0, 1501), -torch.logspace(-45, 1.4, 1500), torch.tensor([-0.0, -27.999998])])
    for value, units in zip(a.tolist(), reference.exp_units(a).tolist(), strict=True):
        exact = mp.exp(value) * 2**40
        assert -exact * mp.mpf(2) ** -23 - 1 <= units - exact <= exact * mp.mpf(2) ** -23
    assert reference.exp_units(torch.tensor([0.0])).item() == 2**40
    assert reference.exp_units(torch.tensor([-28.000002, -1e30, -math.inf])).tolist() == [0, 0, 0]


def float64_softmax(logits, temperature):
    a = (logits.double() - logits.double().max(1, keepdim=True).values) / temperature
    return a, a.softmax(1)


def float64_sparsemax(logits, temperature):
    """Martins and Astudillo 2016, Algorithm 1."""
    a = (logits.double() - logits.double().max(1, keepdim=True).values) / temperature
    ordered = a.sort(1, descending=True).values
    count = (1 + torch.arange(1, a.shape[1] + 1) * ordered > ordered.cumsum(1)).sum(1, keepdim=True)
    threshold = (ordered.cumsum(1).gather(1, count - 1) - 1) / count
    return (a - threshold).clamp(min=0)


ROWS = [(2, 200), (10, 200), (100, 100), (1000, 50), (5000, 20)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("classes", "batch"), ROWS)
def test_softmax_is_softmax(classes, batch, temperature, isa):
    """Against float64.

    a = (logit - maximum) / temperature takes three roundings, exp is good to 2^-23, so a weight is off by less than
    w = 3|a| 2^-24 + 2^-23 of itself, a score p by p (w + the mean of w under p); a score is then rounded down thrice, and
    what lies below 2^-40 is dropped. Scores never sum to more than 1.
    """
    logits = hostile_logits(classes, batch, seed=2)
    logits = that_vote(logits)
    q = row_scores(logits, Softmax(temperature))[:, 0]
    a, p = float64_softmax(logits, temperature)
    weight = torch.where(p > 0, (3 * a.abs() + 2) * 2.0**-24, 0.0)
    allowed = 1.01 * p * (weight + (p * weight).sum(1, keepdim=True)) + (4 + classes * 2.0**-10) / ONE
    assert ((q / ONE - p).abs() <= allowed).all()
    assert (q >= 0).all()
    assert (q.sum(1) <= ONE).all()
    assert (q.sum(1) >= ONE - 4 * classes).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("classes", "batch"), ROWS)
def test_sparsemax_is_sparsemax(classes, batch, temperature, isa):
    """Against float64, within 5.5e-7. Scores never sum to more than 1.

    In the support |a| <= 1: three roundings of a, one of 1 + a and a truncation, 4.5 * 2^-24 in all; as much again by way
    of the threshold; and two units.
    """
    logits = hostile_logits(classes, batch, seed=3)
    logits = that_vote(logits)
    q = row_scores(logits, Sparsemax(temperature))[:, 0]
    p = float64_sparsemax(logits, temperature)
    assert ((q / ONE - p).abs() <= 5.5e-7).all()
    assert (q >= 0).all()
    assert (q.sum(1) <= ONE).all()
    assert (q.sum(1) >= ONE - 2 * (q > 0).sum(1)).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.5, 7.0), (1e6, 1e6 + 1), (-3e38, 3e37), (1e-30, 2e-30)])
def test_clipped_logits(low, high, isa):
    """Against exact rationals of the float32 parameters, within four roundings and a unit.

    One rounding is of 1 / (high - low), which for a width beyond 2^126 is subnormal and loses up to two bits.
    """
    roundings = Fraction(7 if high - low > 2.0**126 else 4, 2**24)
    low32, high32 = np.float32(low), np.float32(high)
    inside = torch.rand(400, generator=generator(9), dtype=torch.float64) * (float(high32) - float(low32)) + float(low32)
    logits = torch.cat([inside.float(), torch.tensor([low32, high32, -3.4e38, 3.4e38])]).view(-1, 2)
    q = row_scores(logits, ClippedLogits(low, high))[:, 0]
    for value, score in zip(logits.flatten().tolist(), q.flatten().tolist(), strict=True):
        exact = (Fraction(min(max(value, float(low32)), float(high32))) - Fraction(float(low32))) / (
            Fraction(float(high32)) - Fraction(float(low32))
        )
        assert abs(Fraction(score, ONE) - exact) <= exact * roundings + Fraction(1, ONE)
        assert 0 <= score <= ONE
    assert q[-2:, 0].tolist() == [0, 0]
    assert q[-1, 1] == q[-2, 1]
    assert ONE - int(q[-2, 1]) <= ONE * roundings


def test_no_row_of_scores_exceeds_one(isa):
    """A search for rows that sum to more: few and many classes, near ties, ramps, geometric and random rows."""
    draw = generator(10)
    for classes in (2, 3, 4, 5, 7, 16, 33, 257, 1024, 4999, 5000):
        batch = max(20, 20_000 // classes)
        ramp = -torch.arange(classes) / classes
        rows = torch.cat(
            [
                torch.rand(batch, classes, generator=draw),
                torch.rand(batch, classes, generator=draw) * 1e-6,
                torch.randn(batch, classes, generator=draw) * 5,
                torch.rand(batch, 1, generator=draw) * 30 * ramp,
                torch.rand(batch, classes, generator=draw).log(),
                (torch.rand(batch, classes, generator=draw) < 0.5) * torch.rand(batch, 1, generator=draw),
            ]
        )
        heads = [head(t) for head in (Softmax, Sparsemax) for t in (0.02, 0.3, 1.0, 3.0, 1000.0)]
        total = row_scores(rows, *heads).sum(2)
        assert total.max() <= ONE
        assert total.max() >= ONE - 1  # the search comes as close as it can
        assert total.min() >= ONE - 4 * classes


def test_a_lone_class_scores_one(isa):
    """Exactly 2^30, and 0 for the others, where no other is within 28 temperatures (softmax) or 1 (sparsemax)."""
    for classes in (2, 3, 17, 1000):
        logits = torch.zeros(3, classes)
        logits[0, -1], logits[1, 0], logits[2, classes // 2] = 29.0, 3e38, 1e5
        q = row_scores(logits, Softmax(1.0), Sparsemax(1.0), Sparsemax(29.0), Softmax(1e-7))
        one_hot = torch.zeros(3, classes, dtype=torch.int64)
        one_hot[0, -1] = one_hot[1, 0] = one_hot[2, classes // 2] = ONE
        assert torch.equal(q, one_hot[:, None].expand_as(q))


def test_equal_classes_share(isa):
    """Among the n largest, which are equal, 2^30 / n each, rounded down."""
    for classes in (2, 3, 7, 16, 100, 1000):
        for equal in sorted({1, 2, classes // 2, classes} - {0}):
            logits = torch.full((1, classes), -1e4)
            logits[0, :equal] = 5.0
            q = row_scores(logits, Softmax(0.02), Sparsemax(0.02))[0]
            assert (q[:, :equal] <= ONE // equal).all()
            assert (q[:, :equal] >= ONE // equal - 1).all()
            assert not q[:, equal:].any()


def test_squares_are_rounded_up(isa):
    logits = hostile_logits(10, 200, seed=4)
    tally = fill(logits, range(200), slots=200)
    squares = [[[-(-q * q // ONE) for q in row] for row in head] for head in tally.sums.tolist()]
    assert tally.squares.tolist() == squares
    assert any(q * q % ONE for q in tally.sums.flatten().tolist())


def test_extreme_finite_logits(isa):
    """Differences that overflow float32 leave a vote, a softmax of one, and no NaN."""
    logits = torch.tensor([[3e38, -3e38, 3e38], [-3e38, 3e38, 0.0], [-3.4e38, -3.4e38, -3.4e38]])
    found = fill(logits, [0, 1, 2], slots=3)
    assert_same(found, fill(logits, [0, 1, 2], slots=3, backend="reference"))
    assert found.counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert found.sums[0, 0].tolist() == [ONE // 2, 0, ONE // 2]
    assert found.sums[1, 0].tolist() == [0, ONE, 0]


def leading_logits(kind, classes, batch):
    """Rows whose largest logits are few, many, all equal, in steps of a few ties, or beside masked and spoilt ones."""
    draw = generator(classes + batch)
    logits = torch.randn(batch, classes, generator=draw) * 3
    return {
        "few": logits,
        "the same in all rows": logits[:1] + logits / 10,
        "close": logits * 1e-4 + 100,
        "equal": torch.full_like(logits, 0.5),
        "ties": logits.round(),
        "most masked": logits.where(torch.rand(batch, classes, generator=draw) < 0.1, -math.inf),
        "hostile": hostile_logits(classes, batch),
    }[kind]


@pytest.mark.parametrize("kind", ["few", "the same in all rows", "close", "equal", "ties", "most masked", "hostile"])
def test_many_heads_are_each_head_alone(kind, isa):
    """With many heads the kernel ranks each row's largest logits first, 64 at most; with one head it does without."""
    factors = (0.001, 0.1, 1.0, 3.0, 6.0, 10.0, 50.0, 1e7)
    heads = (Votes(), ClippedLogits(-2.5, 7.0), *(head(1 / factor) for factor in factors for head in (Softmax, Sparsemax)))
    for classes, batch in ((2, 17), (10, 40), (63, 17), (64, 17), (65, 17), (66, 1), (300, 31), (1000, 70)):
        logits, rows = leading_logits(kind, classes, batch), some_rows(batch)
        tracked = some_classes(classes, 2, heads=heads)
        found = fill(logits, rows, heads=heads, tracked=tracked)
        for h, head in enumerate(heads[1:]):
            alone = fill(logits, rows, heads=(head,), tracked=tracked[:, h : h + 1])
            for name in ("sums", "squares", "bin_counts", "bin_sums"):
                assert torch.equal(getattr(found, name)[:, h], getattr(alone, name)[:, 0]), (name, head, classes)


# Histograms


def edge_scores():
    """0 and 1, the edges of every bin, the integers beside them, and many between."""
    edges = np.concatenate(sequences.bin_edges())
    draws = np.random.default_rng(11).integers(0, ONE + 1, 10_000)
    scores = np.concatenate([edges - 1, edges, edges + 1, [0, ONE], draws])
    return scores[(scores >= 0) & (scores <= ONE)]


def test_bins_of_the_reference():
    q = edge_scores()
    found = reference.bins(torch.from_numpy(q))
    assert found.tolist() == sequences.bin_of(q).tolist()
    assert set(found.tolist()) == set(range(sequences.BINS))


def edge_logits():
    """Rows whose first logit is an edge of a bin, or the float32 above or below it."""
    edges = torch.from_numpy(np.concatenate(sequences.bin_edges()) / ONE).float()
    logits = torch.cat([edges, *(torch.nextafter(edges, torch.tensor(to)) for to in (-1.0, 2.0))])
    return torch.stack([logits, torch.zeros_like(logits)], dim=1)


def histograms(q, rows, tracked):
    """From each row's scores [B, M, K], what bin_counts and bin_sums must be."""
    q, counts = q.numpy(), np.zeros((*tracked.shape, sequences.BINS), dtype=np.int64)
    sums = counts.copy()
    for row, slot in enumerate(rows):
        for h, classes in enumerate(tracked[slot].tolist()):
            for c, k in enumerate(classes):
                place = slot, h, c, int(sequences.bin_of(q[row, h, k]))
                counts[place] += 1
                sums[place] += q[row, h, k]
    return torch.from_numpy(counts), torch.from_numpy(sums)


def test_bins_at_every_edge(backend):
    logits, tracked = edge_logits(), torch.tensor([[[0, 1, 0]]])
    heads, rows = (ClippedLogits(0.0, 1.0),), [0] * len(logits)
    found = fill(logits, rows, heads=heads, slots=1, tracked=tracked, backend=backend)
    counts, sums = histograms(row_scores(logits, *heads, backend="reference"), rows, tracked)
    assert torch.equal(found.bin_counts, counts)
    assert torch.equal(found.bin_sums, sums)
    assert (counts[0, 0, 0] > 0).all()


@functools.cache
def expected_histograms(classes, batch, count):
    scores = row_scores(hostile_logits(classes, batch), *(head for head in HEADS if head != Votes()), backend="reference")
    return histograms(scores, some_rows(batch).tolist(), some_classes(classes, count))


@pytest.mark.parametrize(("classes", "batch", "count"), [(2, 100, 1), (2, 17, 2), (10, 300, 2), (1000, 40, 3), (5000, 5, 1)])
def test_histograms_are_of_the_scores(classes, batch, count, backend):
    """Of every row that is there: one that is not finite has a score of 0, in bin 0. Counts add up to n, sums to sums."""
    logits, rows, tracked = hostile_logits(classes, batch), some_rows(batch), some_classes(classes, count)
    found = fill(logits, rows, tracked=tracked, backend=backend)
    counts, sums = expected_histograms(classes, batch, count)
    assert torch.equal(found.bin_counts, counts)
    assert torch.equal(found.bin_sums, sums)
    assert (found.bin_counts.sum(-1) == found.n[:, None, None]).all()
    assert torch.equal(found.bin_sums.sum(-1), found.sums.gather(2, tracked))
    for name in ("n", "counts", "sums", "squares"):
        assert torch.equal(getattr(found, name), getattr(expected(classes, batch, torch.float32), name))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_histograms_of_the_cpu_are_the_reference(dtype, isa):
    for classes, batch in SIZES:
        logits, rows, tracked = hostile_logits(classes, batch, dtype), some_rows(batch), some_classes(classes, 1 + batch % 3)
        wanted = expected(classes, batch, dtype, 1 + batch % 3)
        assert_same(fill(logits, rows, tracked=tracked), wanted)
        assert_same(fill(logits.t().contiguous().t(), rows, tracked=tracked), wanted)


def test_histograms_of_parts_add_up(threads, isa):
    logits, rows, tracked = hostile_logits(17, 300), some_rows(300), some_classes(17, 2)
    wanted = fill(logits, rows, tracked=tracked)
    for count in (1, 2, 5):
        threads(count)
        assert_same(fill(logits, rows, tracked=tracked), wanted)
    for size in (150, 61, 6):
        tally = Tally(SLOTS, 17, HEADS, tracked_classes=tracked)
        parts = []
        for i in range(0, 300, size):
            accumulate(logits[i : i + size], tally, rows=rows[i : i + size])
            parts.append(fill(logits[i : i + size], rows[i : i + size], tracked=tracked))
        assert_same(tally, wanted)
        assert_same(sum(parts[1:], start=parts[0]), wanted)


def test_a_class_tracked_twice_and_as_many_as_may_be(isa):
    logits, rows = hostile_logits(10, 50), some_rows(50)
    tracked = torch.tensor([3, 3, 0, 9, 1, 3, 2, 9]).expand(SLOTS, len(HEADS) - 1, 8)
    found = fill(logits, rows, tracked=tracked)
    assert_same(found, fill(logits, rows, tracked=tracked, backend="reference"))
    assert torch.equal(found.bin_sums[:, :, 0], found.bin_sums[:, :, 5])


def test_rows_that_are_not_finite_score_0(backend):
    for batch in (1, 16, 33):
        found = fill(torch.full((batch, 5), math.nan), [1] * batch, tracked=some_classes(5, 2), backend=backend)
        assert (found.bin_counts[1, :, :, 0] == batch).all()
        assert found.bin_counts.sum() == batch * 2 * (len(HEADS) - 1)
        assert not found.bin_sums.any()


# Threads, memory, and the operator itself


def test_threads_that_share_a_tally(threads, isa):
    """Eight threads add to one Tally, many rows each, as the kernels run without Python's lock: no count is lost."""
    threads(1)
    heads, tracked, calls = (ClippedLogits(0.0, 1.0),), torch.tensor([[[0, 1]]]), 64
    logits = hostile_logits(2, 20_000)
    shared, alone = (Tally(1, 2, heads, tracked_classes=tracked) for _ in range(2))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: accumulate(logits, shared), range(calls)))
    accumulate(logits, alone)
    for name in ("n", "counts", "sums", "squares", "bin_counts", "bin_sums"):
        assert torch.equal(getattr(shared, name), calls * getattr(alone, name)), name


def test_calls_on_one_tally_take_turns(monkeypatch):
    """A backend that dawdles between reading a counter and writing it loses nothing, through a view of the Tally either."""

    def accumulate_slowly(job):
        before = job.n.clone()
        time.sleep(0.002)
        job.n.copy_(before + len(job.rows))

    slow = Backend("slow", lambda: SimpleNamespace(accumulate=accumulate_slowly))
    monkeypatch.setitem(BACKENDS, slow.name, slow)
    tally = Tally(1, 3)
    twin = copy.copy(tally)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: accumulate(torch.zeros(2, 3), (tally, twin)[i % 2], backend="slow"), range(16)))
    assert tally.n.tolist() == [32]


@pytest.mark.slow
def test_after_a_fork_that_came_in_the_middle_of_a_call():
    """A child gets locks of its own: none that a thread of its parent holds."""
    code = """
import os, signal
from rsfast import Tally
from rsfast.ops import accumulate, accumulation
import torch
for lock in accumulation._turns:
    lock.acquire()
child = os.fork()
if child == 0:
    signal.alarm(120)
    accumulate(torch.zeros(2, 3), Tally(1, 3), backend="reference")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_copies_of_a_tally_count_on_their_own():
    tally = fill(hostile_logits(10, 50), some_rows(50), tracked=some_classes(10, 2))
    for copied in (copy.deepcopy(tally), pickle.loads(pickle.dumps(tally))):
        assert copied == tally
        accumulate(hostile_logits(10, 50), copied, rows=some_rows(50))
        assert copied != tally


def test_autograd_notices_that_a_tally_was_added_to():
    tally = Tally(1, 3, (Softmax(1.0),), tracked_classes=[[[0]]])
    names = ("n", "counts", "sums", "squares", "bin_counts", "bin_sums")
    before = [getattr(tally, name)._version for name in names]
    accumulate(torch.zeros(2, 3), tally)
    assert all(getattr(tally, name)._version > version for name, version in zip(names, before, strict=True))


def call_operator(**changes):
    """The operator on 2 rows of 3 classes, with a Tally of 4 inputs, 2 soft heads and 1 tracked class."""
    tally = Tally(4, 3, (Softmax(1.0), Sparsemax(1.0)), tracked_classes=torch.ones(4, 2, 1, dtype=torch.int64))
    names = ("n", "counts", "sums", "squares", "tracked_classes", "bin_counts", "bin_sums")
    arguments = {"logits": torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), "rows": torch.tensor([0, 3])}
    arguments |= {"parameters": tally.parameters, "backend": "cpu"} | {name: getattr(tally, name) for name in names}
    torch.ops.rsfast.accumulate(**arguments | changes)
    return tally


INDEX = torch.int64
OPERATOR_ERRORS = {
    "logits of integers": (
        TypeError,
        r"^logits must have dtype .*, got torch.int32",
        {"logits": torch.zeros(2, 3, dtype=torch.int32)},
    ),
    "logits of rank 1": (ValueError, r"^logits must have shape .*, got \[3\]", {"logits": torch.zeros(3)}),
    "logits of 4 classes": (
        ValueError,
        r"^logits must have shape \[B, 3\], .*, got \[2, 4\]",
        {"logits": torch.zeros(2, 4)},
    ),
    "logits elsewhere": (
        ValueError,
        r"^logits must be on 'cpu', .*, got some on 'meta'",
        {"logits": torch.zeros(2, 3, device="meta")},
    ),
    "rows too few": (ValueError, r"^rows must have shape .*, got \[1\]", {"rows": torch.zeros(1, dtype=INDEX)}),
    "rows of floats": (TypeError, r"^rows must have dtype .*, got torch.float32", {"rows": torch.zeros(2)}),
    "rows strided": (
        ValueError,
        r"^rows must be contiguous in .*, got strides ",
        {"rows": torch.zeros(4, dtype=INDEX)[::2]},
    ),
    "rows too large": (ValueError, r"^rows must lie in \[0, 4\), got values from 0 to 4", {"rows": torch.tensor([0, 4])}),
    "parameters short": (ValueError, r"^parameters must have shape .*, got \[2, 3\]", {"parameters": torch.zeros(2, 3)}),
    "parameters of another number": (
        ValueError,
        r"^sums must have shape .*, got \[4, 2, 3\]",
        {"parameters": torch.zeros(3, 4)},
    ),
    "parameters of doubles": (
        TypeError,
        r"^parameters must have dtype .*, got torch.float64",
        {"parameters": torch.zeros(2, 4, dtype=torch.float64)},
    ),
    "n of int32": (TypeError, r"^n must have dtype .*, got torch.int32", {"n": torch.zeros(4, dtype=torch.int32)}),
    "n strided": (ValueError, r"^n must be contiguous in .*, got strides ", {"n": torch.zeros(8, dtype=INDEX)[::2]}),
    "counts of fewer inputs": (
        ValueError,
        r"^counts must have shape .*, got \[3, 4\]",
        {"counts": torch.zeros(3, 4, dtype=INDEX)},
    ),
    "counts strided": (
        ValueError,
        r"^counts must be contiguous in .*, got strides ",
        {"counts": torch.zeros(4, 4, dtype=INDEX).t()},
    ),
    "counts broadcast": (
        ValueError,
        r"^counts must be contiguous in .*, got strides ",
        {"counts": torch.zeros(1, 4, dtype=INDEX).expand(4, 4)},
    ),
    "sums of floats": (TypeError, r"^sums must have dtype .*, got torch.float32", {"sums": torch.zeros(4, 2, 3)}),
    "squares too small": (
        ValueError,
        r"^squares must have shape .*, got \[4, 1, 3\]",
        {"squares": torch.zeros(4, 1, 3, dtype=INDEX)},
    ),
    "tracked of rank 2": (
        ValueError,
        r"^tracked_classes must have shape .*, got \[4, 2\]",
        {"tracked_classes": torch.zeros(4, 2, dtype=INDEX)},
    ),
    "tracked out of range": (
        ValueError,
        r"^tracked_classes must lie in .*, got values from 3 to 3",
        {"tracked_classes": torch.full((4, 2, 1), 3)},
    ),
    "tracked negative": (
        ValueError,
        r"^tracked_classes must lie in .*, got values from -1 to -1",
        {"tracked_classes": torch.full((4, 2, 1), -1)},
    ),
    "bins too few": (
        ValueError,
        r"^bin_counts must have shape .*, got ",
        {"bin_counts": torch.zeros(4, 2, 1, 127, dtype=INDEX)},
    ),
    "bin_sums too few": (
        ValueError,
        r"^bin_sums must have shape .*, got ",
        {"bin_sums": torch.zeros(4, 2, 0, 128, dtype=INDEX)},
    ),
    "backend": (ValueError, r"^backend must be one of 'auto', .*, got 'fast'", {"backend": "fast"}),
}


@pytest.mark.parametrize("case", OPERATOR_ERRORS)
def test_the_operator_checks_a_call_itself(case):
    error, message, changes = OPERATOR_ERRORS[case]
    with pytest.raises(error, match=message):
        call_operator(**changes)


def test_the_operator_without_changes_is_accumulate():
    assert call_operator().counts.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tensors_that_share_memory_are_refused(backend):
    """Two counters of a Tally, and a counter with what is read, whatever the types; beside one another they are taken."""
    memory = torch.zeros(100, dtype=INDEX)
    counts, sums = memory[:16].view(4, 4), memory[15:39].view(4, 2, 3)
    with pytest.raises(ValueError, match=r"^counts must have memory of its own, got some that sums has"):
        call_operator(counts=counts, sums=sums, backend=backend)
    with pytest.raises(ValueError, match=r"^sums must have memory of its own, got some that logits has"):
        call_operator(sums=sums, logits=memory.view(torch.float32)[70:76].view(2, 3), backend=backend)
    with pytest.raises(ValueError, match=r"^sums must have memory of its own, got some that logits has"):
        call_operator(sums=sums, logits=memory.view(torch.float32)[:140:2].view(7, 10).t()[2:5, 1:3].t(), backend=backend)
    with pytest.raises(ValueError, match=r"^n must have memory of its own, got some that rows has"):
        call_operator(n=memory[:4], rows=memory[3:5], backend=backend)
    with pytest.raises(ValueError, match=r"^squares must have memory of its own, got some that tracked_classes has"):
        call_operator(squares=memory[:24].view(4, 2, 3), tracked_classes=memory[8:16].view(4, 2, 1), backend=backend)
    assert not memory.any()
    call_operator(counts=memory[:16].view(4, 4), sums=memory[16:40].view(4, 2, 3), n=memory[40:44], backend=backend)
    assert memory[40:44].tolist() == [1, 0, 0, 1]
    tally = Tally(1, 3)
    tally.counts = tally.n.expand(1, 4)
    with pytest.raises(ValueError, match=r"^counts must be contiguous in .*, got strides "):
        accumulate(torch.zeros(1, 3), tally)


# The cap, and errors


def test_the_cap():
    """2^33 - 1 samples of an input are held; one more is an OverflowError, and leaves the tally alone."""
    assert MAX_SAMPLES == 2**33 - 1
    tally = Tally(2, 3, HEADS)
    tally.n[1] = MAX_SAMPLES - 5
    tally = tally.to("cpu")
    accumulate(torch.zeros(4, 3), tally, rows=[0] * 4)
    accumulate(torch.zeros(5, 3), tally, rows=[1] * 5)
    assert tally.n.tolist() == [4, MAX_SAMPLES]
    before = tally.to("cpu")
    with pytest.raises(OverflowError, match=r"^a Tally must hold at most 2\^33 - 1 samples .*, got 8589934591 and 1 more"):
        accumulate(torch.zeros(1, 3), tally, rows=[1])
    assert tally == before


def test_sums_hold_at_the_cap():
    """2^33 - 1 scores and squares of 1, 2^63 - 2^30 in all, are an int64."""
    tally = Tally(1, 2, (Softmax(1.0),))
    tally.n[0] = MAX_SAMPLES - 1
    tally.sums[0, 0, 0] = tally.squares[0, 0, 0] = (MAX_SAMPLES - 1) * ONE
    tally = tally.to("cpu")
    accumulate(torch.tensor([[100.0, 0.0]]), tally)
    assert tally.sums.tolist() == [[[MAX_SAMPLES * ONE, 0]]]
    assert tally.squares.tolist() == [[[MAX_SAMPLES * ONE, 0]]]


def call(**changes):
    keywords = {"logits": torch.zeros(2, 3), "tally": Tally(4, 3), "rows": [0, 3], **changes}
    return accumulate(keywords.pop("logits"), keywords.pop("tally"), **keywords)


META = torch.device("meta")
ERRORS = {
    "logits no tensor": (TypeError, r"^logits must be .*\[B, 3\].*, got a list", {"logits": [[0.0]]}),
    "logits of rank 1": (ValueError, r"^logits must have shape .*num_classes, got \[3\]", {"logits": torch.zeros(3)}),
    "logits of rank 3": (ValueError, r"^logits must have shape .*, got \[2, 3, 1\]", {"logits": torch.zeros(2, 3, 1)}),
    "too many classes": (ValueError, r"^logits must have shape \[B, 3\], .*, got \[2, 4\]", {"logits": torch.zeros(2, 4)}),
    "integers": (
        TypeError,
        r"^logits must have dtype .*, got torch.int64",
        {"logits": torch.zeros(2, 3, dtype=torch.int64)},
    ),
    "complex": (
        TypeError,
        r"^logits must have dtype .*, got torch.complex64",
        {"logits": torch.zeros(2, 3, dtype=torch.complex64)},
    ),
    "logits elsewhere": (
        ValueError,
        r"^logits must be on 'cpu', .*, got some on 'meta'",
        {"logits": torch.zeros(2, 3, device=META)},
    ),
    "tally elsewhere": (
        ValueError,
        r"^logits must be on 'meta', .*, got some on 'cpu'",
        {"tally": Tally(4, 3, device=META)},
    ),
    "no rows": (ValueError, r"^rows must name the input of each row, of the tally's 4, got None", {"rows": None}),
    "rows too large": (ValueError, r"^rows must lie in .*\[0, 4\), got values from 0 to 4", {"rows": [0, 4]}),
    "rows negative": (ValueError, r"^rows must lie in .*, got values from -1 to 0", {"rows": [-1, 0]}),
    "rows too few": (ValueError, r"^rows must have shape .*\[2\], got \[1\]", {"rows": [0]}),
    "rows of int32": (TypeError, r"^rows must have dtype .*, got torch.int32", {"rows": torch.zeros(2, dtype=torch.int32)}),
    "rows elsewhere": (
        ValueError,
        r"^rows must be on .*, got one on 'meta'",
        {"rows": torch.zeros(2, dtype=torch.int64, device=META)},
    ),
    "backend": (ValueError, r"^backend must be one of 'auto', .*'cpu'.*, got 'fast'", {"backend": "fast"}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    """Each names the argument, says what it was, and leaves the tally alone."""
    error, message, changes = ERRORS[case]
    tally = changes.get("tally", Tally(4, 3))
    with pytest.raises(error, match=message):
        call(**{"tally": tally, **changes})
    if tally.n.device.type == "cpu":
        assert tally == Tally(4, 3)


NO_TALLY = {
    "tally no Tally": (TypeError, r"^tally must be a Tally, got None", {"tally": None}),
    "logits sparse": ((TypeError, ValueError), r"^logits ", {"logits": torch.zeros(2, 3).to_sparse()}),
}


@pytest.mark.parametrize("case", NO_TALLY)
def test_errors_of_what_is_no_tally_or_no_dense_tensor(case):
    error, message, changes = NO_TALLY[case]
    with pytest.raises(error, match=message):
        call(**changes)


def test_a_call_without_changes_is_right():
    """So that every error above is of what it changes; and rows may be left out where there is one input."""
    call()
    accumulate(torch.zeros(2, 3), Tally(1, 3))


def test_types():
    """The four that the tests above go through are all there are."""
    assert set(ops.TYPES) == set(TYPES)
