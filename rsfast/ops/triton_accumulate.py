"""accumulate as kernels that Triton compiles: csrc/accumulate.h, and the scores of every head that kernels know."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from .._check import MAX_SAMPLES
from ..heads.bins import BINS
from . import marks
from .calls import Accumulation
from .triton_base import OPTIONS, coefficients, horner, on

_TILE = 2048  # logits that a program of accumulate holds
_CHUNK = 1024  # logits that it reads at once where a row has more than that
_FILL = 512  # programs that fill a large GPU
_MAX_SAMPLES = tl.constexpr(MAX_SAMPLES)
_BINS = tl.constexpr(BINS)
_ROWS_MARK, _FULL_MARK, _TRACKED_MARK = map(tl.constexpr, (marks.ROWS, marks.FULL, marks.TRACKED))
_MARKED = tl.constexpr(1024)  # n that a program marks at once

_EXP = coefficients("0x1.6a25cep-10 0x1.1239dep-7 0x1.5558f0p-5 0x1.555492p-3 0x1.fffffcp-2")
_INVERSE_LN2 = tl.constexpr(float.fromhex("0x1.715476p+0"))
_MINUS_LN2_HIGH = tl.constexpr(float.fromhex("-0x1.62e4p-1"))
_MINUS_LN2_LOW = tl.constexpr(float.fromhex("-0x1.7f7d1cp-20"))


# Scores: csrc/accumulate.h. Logits come as tiles [rows, classes] of which every row votes, with -inf beyond the last class;
# what a row as a whole has comes as [rows, 1].


@triton.jit
def exp_units(a):
    """exp(a) in units of 2^-40, int64; 0 for a < -28, exactly 2^40 for a = 0."""
    kept = a >= -28.0
    a = tl.where(kept, a, 0.0)
    shifted = tl.fma(a, _INVERSE_LN2, 12582912.0)  # a / ln 2, rounded to the last place
    n = shifted - 12582912.0
    r = tl.fma(n, _MINUS_LN2_LOW, tl.fma(n, _MINUS_LN2_HIGH, a))
    p = tl.fma(horner(r, _EXP, 4), r * r, r) + 1.0
    shift = 0x4B400000 - shifted.to(tl.int32, bitcast=True)
    units = ((p * 2.0**24).to(tl.int64) << 16) >> shift.to(tl.int64)
    return tl.where(kept, units, 0)


@triton.jit
def softmax_factor(total):
    return ((1 << 63) // ((total.to(tl.uint64) + 255) >> 8)).to(tl.uint32)


@triton.jit
def softmax_score(units, factor):
    return tl.umulhi((units >> 9).to(tl.uint32), factor).to(tl.int64)


@triton.jit
def sparsemax_mantissa(a):
    """1 + a in units of 2^-24, int32; 0 for a <= -1."""
    b = a + 1.0
    return (tl.where(b > 0.0, b, 0.0) * 2.0**24).to(tl.int32)


@triton.jit
def sparsemax_floor(total, count):
    """The threshold that these classes would have, rounded down to units of 2^-24 from the 2^-40 of the total.

    A mantissa is above it if and only if it is above the threshold in the finer units.
    """
    return ((total - (1 << 40)) // count) >> 16


@triton.jit
def sparsemax_score(mantissa, total, count):
    threshold = (total - (1 << 40) + count - 1) // count
    units = mantissa.to(tl.int64) << 16
    return tl.where(units > threshold, units - threshold, 0) >> 10


@triton.jit
def clipped_score(logits, scale, low, high):
    s = tl.where(logits < low, low, logits)
    s = tl.where(s > high, high, s)
    s = (s - low) * scale
    return (tl.where(s > 1.0, 1.0, s) * 2.0**30).to(tl.int64)


@triton.jit
def pointwise_score(kind, logits, scale, low, high):
    """The scores of every head whose score of a class is a function of its logit alone, int64."""
    score = tl.zeros_like(logits).to(tl.int64)
    if kind == 2.0:
        score = clipped_score(logits, scale, low, high)
    return score


@triton.jit
def square_score(score):
    return (score * score + 0x3FFFFFFF) >> 30


@triton.jit
def softmax_scores(a):
    units = exp_units(a)
    return softmax_score(units, softmax_factor(tl.sum(units, 1, keep_dims=True)))


@triton.jit
def sparsemax_scores(a):
    mantissa = sparsemax_mantissa(a)
    total = tl.sum(mantissa.to(tl.int64), 1, keep_dims=True) << 16
    count = tl.sum((mantissa > 0).to(tl.int64), 1, keep_dims=True)
    dropped = 1
    while dropped > 0:  # in any row
        before = count
        kept = mantissa > sparsemax_floor(total, count)
        total = tl.sum(tl.where(kept, mantissa, 0).to(tl.int64), 1, keep_dims=True) << 16
        count = tl.sum(kept.to(tl.int64), 1, keep_dims=True)
        dropped = tl.max(tl.max((before - count).to(tl.int32), 1), 0)
    return sparsemax_score(mantissa, total, count)


@triton.jit
def tile_scores(head_ptr, logits, maximum):
    """The scores of a tile, of the head whose parameters are at `head_ptr`."""
    kind = tl.load(head_ptr)
    scale = tl.load(head_ptr + 1)
    if kind == 0.0:
        score = softmax_scores((logits - maximum) * scale)
    elif kind == 1.0:
        score = sparsemax_scores((logits - maximum) * scale)
    else:
        score = pointwise_score(kind, logits, scale, tl.load(head_ptr + 2), tl.load(head_ptr + 3))
    return score


@triton.jit
def add(to_ptr, slot, stride, place, values, one_slot):
    """Add values [rows, places] to the places of the rows' slots; where all rows have one slot, their sums."""
    if one_slot:
        total = tl.sum(values, 0)
        tl.atomic_add(to_ptr + tl.max(slot, 0) * stride + place, total, mask=total > 0, sem="relaxed")
    else:
        tl.atomic_add(to_ptr + slot[:, None] * stride + place[None, :], values, mask=values > 0, sem="relaxed")


@triton.jit
def add_samples(n_ptr, count):
    """Add to n, and mark those that then are more than a Tally holds."""
    before = tl.atomic_add(n_ptr, count, mask=count > 0, sem="relaxed") & (_ROWS_MARK - 1)
    tl.atomic_or(n_ptr, _FULL_MARK, mask=(count > 0) & (before + count > _MAX_SAMPLES), sem="relaxed")


@triton.jit
def mark_rows(n_ptr, slots, wrong):
    """Mark every n if a row is wrong."""
    for start in range(0, tl.where(wrong, slots, 0), _MARKED):
        slot = start + tl.arange(0, _MARKED)
        tl.atomic_or(n_ptr + slot, _ROWS_MARK, mask=slot < slots, sem="relaxed")


@triton.jit
def read_tracked(tracked_ptr, n_ptr, slot, histogram, classes, inside):
    """The tracked classes of these histograms, and which of them there are; mark the n of the others."""
    tracked = tl.load(tracked_ptr + histogram, mask=inside, other=0)
    known = inside & (tracked >= 0) & (tracked < classes)
    slot += tl.zeros_like(histogram)
    tl.atomic_or(n_ptr + slot, _TRACKED_MARK, mask=inside & (known == 0), sem="relaxed")
    return tracked, known


@triton.jit
def score_bin(score):
    score = score.to(tl.int32)
    below = score < (1 << 29)
    units = tl.minimum(tl.where(below, score, (1 << 30) - score), (1 << 29) - 1) >> 12
    place = tl.where(units < 4, units, (units.to(tl.float32).to(tl.int32, bitcast=True) >> 21) - 512)
    return tl.where(below, place, _BINS - 1 - place)


@triton.jit
def add_bins(counts_ptr, sums_ptr, histogram, score, inside):
    """Add each score to its histogram."""
    place = histogram * _BINS + score_bin(score)
    tl.atomic_add(counts_ptr + place, 1, mask=inside, sem="relaxed")
    tl.atomic_add(sums_ptr + place, score, mask=inside & (score > 0), sem="relaxed")


@triton.jit
def read_tile(logits_ptr, row, k, row_stride, class_stride, inside):
    """The logits of these rows and classes, the maximum of each row, and whether the row votes; zeros where it does not."""
    place = row[:, None] * row_stride + k[None, :].to(tl.int64) * class_stride
    logits = tl.load(logits_ptr + place, mask=inside, other=float("-inf")).to(tl.float32)
    ordered = tl.min((logits == logits).to(tl.int32), 1, keep_dims=True) > 0  # no NaN
    maximum = tl.max(tl.where(ordered, logits, float("inf")), 1, keep_dims=True)
    valid = tl.abs(maximum) < float("inf")
    return tl.where(valid, logits, 0.0), tl.where(valid, maximum, 0.0), valid


@triton.jit(do_not_specialize=["batch", "slots", "heads"], do_not_specialize_on_alignment=["rows_ptr"])
def accumulate_kernel(
    logits_ptr,
    rows_ptr,
    parameters_ptr,
    n_ptr,
    counts_ptr,
    sums_ptr,
    squares_ptr,
    tracked_ptr,
    bin_counts_ptr,
    bin_sums_ptr,
    batch,
    slots,
    heads,
    classes,
    row_stride,
    class_stride,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TRACKED: tl.constexpr,
):
    # Program (t, g) holds a tile of ROWS rows with all their classes, for every head that is g modulo the programs of t.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(rows_ptr + row, mask=row < batch, other=-1)
    present = (slot >= 0) & (slot < slots)
    wrong = tl.max(((row < batch) & (present == 0)).to(tl.int32), 0) > 0
    # What is left out lies in the slot of the others, so that it does not tell against one_slot.
    some_slot = tl.max(tl.where(present, slot, 0), 0)
    slot = tl.where(present, slot, some_slot)
    one_slot = tl.min(slot, 0) == some_slot

    k = tl.arange(0, BLOCK_SIZE)
    inside = present[:, None] & (k < classes)[None, :]
    logits, maximum, valid = read_tile(logits_ptr, row, k, row_stride, class_stride, inside)
    scored = inside & valid

    if tl.program_id(1) == 0:
        mark_rows(n_ptr, slots, wrong)
        if one_slot:
            add_samples(n_ptr + some_slot, tl.sum(present.to(tl.int64), 0))
        else:
            add_samples(n_ptr + slot, present.to(tl.int64))
        vote = tl.min(tl.where(logits == maximum, k[None, :], BLOCK_SIZE), 1, keep_dims=True)
        zero = tl.arange(0, 1)
        add(counts_ptr, slot, classes + 1, k, (scored & (k[None, :] == vote)).to(tl.int64), one_slot)
        add(counts_ptr + classes, slot, classes + 1, zero, (present[:, None] & (valid == 0)).to(tl.int64), one_slot)

    for h in range(tl.program_id(1), heads, tl.num_programs(1)):
        score = tl.where(scored, tile_scores(parameters_ptr + 4 * h, logits, maximum), 0)
        add(sums_ptr + h * classes, slot, heads * classes, k, score, one_slot)
        add(squares_ptr + h * classes, slot, heads * classes, k, square_score(score), one_slot)
        for c in range(TRACKED):
            histogram = (slot * heads + h) * TRACKED + c
            tracked, known = read_tracked(tracked_ptr, n_ptr, slot, histogram, classes, present)
            tracked_score = tl.sum(tl.where(k[None, :] == tracked[:, None], score, 0), 1)
            add_bins(bin_counts_ptr, bin_sums_ptr, histogram, tracked_score, known)


@triton.jit
def read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """The logits of the classes from `start` on, and which classes those are; -inf beyond the last."""
    k = start + tl.arange(0, BLOCK_SIZE)
    return tl.load(row_ptr + k.to(tl.int64) * class_stride, mask=k < classes, other=float("-inf")).to(tl.float32), k


@triton.jit
def wide_maximum(row_ptr, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """A row's largest logit, and 1 if the row votes, else 0."""
    maximum = tl.full([BLOCK_SIZE], float("-inf"), tl.float32)
    ordered = tl.full([BLOCK_SIZE], 1, tl.int32)  # no NaN
    for start in range(0, classes, BLOCK_SIZE):
        logits, _ = read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE)
        maximum = tl.where(logits > maximum, logits, maximum)
        ordered &= (logits == logits).to(tl.int32)
    maximum = tl.max(maximum, 0)
    return maximum, tl.min(ordered, 0) & (tl.abs(maximum) < float("inf")).to(tl.int32)


@triton.jit
def wide_vote(row_ptr, maximum, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """The first class whose logit is the maximum."""
    vote = tl.full([BLOCK_SIZE], 0x7FFFFFFF, tl.int32)
    for start in range(0, classes, BLOCK_SIZE):
        logits, k = read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE)
        vote = tl.minimum(vote, tl.where(logits == maximum, k, 0x7FFFFFFF))
    return tl.min(vote, 0)


@triton.jit
def exp_sum(row_ptr, maximum, scale, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """The sum of a row's exp_units."""
    total = tl.zeros([BLOCK_SIZE], tl.int64)
    for start in range(0, classes, BLOCK_SIZE):
        logits, _ = read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE)
        total += exp_units((logits - maximum) * scale)
    return tl.sum(total, 0)


@triton.jit
def sparsemax_sums(row_ptr, maximum, scale, floor, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """The sum, in units of 2^-40, and the number of a row's mantissas above `floor`."""
    total = tl.zeros([BLOCK_SIZE], tl.int64)
    count = tl.zeros([BLOCK_SIZE], tl.int64)
    for start in range(0, classes, BLOCK_SIZE):
        logits, _ = read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE)
        mantissa = sparsemax_mantissa((logits - maximum) * scale)
        total += tl.where(mantissa > floor, mantissa, 0)
        count += (mantissa > floor).to(tl.int64)
    return tl.sum(total, 0) << 16, tl.sum(count, 0)


@triton.jit
def wide_sums(kind, row_ptr, maximum, scale, classes, class_stride, BLOCK_SIZE: tl.constexpr):
    """What the scores of a row need of all its logits: a sum and, for sparsemax, over how many classes."""
    total, count = tl.full([], 1 << 40, tl.int64), tl.full([], 1, tl.int64)
    if kind == 0.0:
        total = exp_sum(row_ptr, maximum, scale, classes, class_stride, BLOCK_SIZE)
    elif kind == 1.0:
        total, count = sparsemax_sums(row_ptr, maximum, scale, 0, classes, class_stride, BLOCK_SIZE)
        before = count + 1
        while before > count:
            before = count
            floor = sparsemax_floor(total, count)
            total, count = sparsemax_sums(row_ptr, maximum, scale, floor, classes, class_stride, BLOCK_SIZE)
    return total, count


@triton.jit
def wide_score(logits, maximum, total, count, kind, scale, low, high):
    """The scores of some logits of a row, from what the row sums."""
    a = (logits - maximum) * scale
    if kind == 0.0:
        score = softmax_score(exp_units(a), softmax_factor(total))
    elif kind == 1.0:
        score = sparsemax_score(sparsemax_mantissa(a), total, count)
    else:
        score = pointwise_score(kind, logits, scale, low, high)
    return score


@triton.jit(do_not_specialize=["slots", "heads"], do_not_specialize_on_alignment=["rows_ptr"])
def accumulate_wide_kernel(
    logits_ptr,
    rows_ptr,
    parameters_ptr,
    n_ptr,
    counts_ptr,
    sums_ptr,
    squares_ptr,
    tracked_ptr,
    bin_counts_ptr,
    bin_sums_ptr,
    slots,
    heads,
    classes,
    row_stride,
    class_stride,
    BLOCK_SIZE: tl.constexpr,
    TRACKED: tl.constexpr,
    LANES: tl.constexpr,
):
    # Program (b, g) takes row b, in as many passes as its sums need, for every head that is g modulo the programs of b.
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows_ptr + row)
    present = (slot >= 0) & (slot < slots)
    if tl.program_id(1) == 0:
        mark_rows(n_ptr, slots, present == 0)
    row_ptr = logits_ptr + row * row_stride
    maximum, valid = wide_maximum(row_ptr, classes, class_stride, BLOCK_SIZE)
    if present & (tl.program_id(1) == 0):
        vote = tl.where(valid > 0, wide_vote(row_ptr, maximum, classes, class_stride, BLOCK_SIZE), classes)
        add_samples(n_ptr + slot, present.to(tl.int64))
        tl.atomic_add(counts_ptr + slot * (classes + 1) + vote, 1, sem="relaxed")

    lane = tl.arange(0, LANES)  # of the tracked classes
    heads_to_do = tl.where(present & (valid > 0), heads, 0)
    for h in range(tl.program_id(1), heads_to_do, tl.num_programs(1)):
        kind = tl.load(parameters_ptr + 4 * h)
        scale = tl.load(parameters_ptr + 4 * h + 1)
        low = tl.load(parameters_ptr + 4 * h + 2)
        high = tl.load(parameters_ptr + 4 * h + 3)
        total, count = wide_sums(kind, row_ptr, maximum, scale, classes, class_stride, BLOCK_SIZE)
        for start in range(0, classes, BLOCK_SIZE):
            logits, k = read_chunk(row_ptr, start, classes, class_stride, BLOCK_SIZE)
            score = wide_score(logits, maximum, total, count, kind, scale, low, high)
            place = (slot * heads + h) * classes + k
            inside = (k < classes) & (score > 0)
            tl.atomic_add(sums_ptr + place, score, mask=inside, sem="relaxed")
            tl.atomic_add(squares_ptr + place, square_score(score), mask=inside, sem="relaxed")
        if TRACKED > 0:
            histogram = (slot * heads + h) * TRACKED + lane
            tracked, known = read_tracked(tracked_ptr, n_ptr, slot, histogram, classes, lane < TRACKED)
            logits = tl.load(row_ptr + tracked * class_stride, mask=known, other=float("-inf")).to(tl.float32)
            tracked_score = wide_score(logits, maximum, total, count, kind, scale, low, high)
            add_bins(bin_counts_ptr, bin_sums_ptr, histogram, tracked_score, known)
    if TRACKED > 0:
        heads_of_zeros = tl.where(present & (valid == 0), heads, 0)
        for h in range(tl.program_id(1), heads_of_zeros, tl.num_programs(1)):
            histogram = (slot * heads + h) * TRACKED + lane
            _, known = read_tracked(tracked_ptr, n_ptr, slot, histogram, classes, lane < TRACKED)
            tl.atomic_add(bin_counts_ptr + histogram * _BINS, 1, mask=known, sem="relaxed")


def accumulate(job: Accumulation) -> None:
    """Add every row of the logits to its input's slot, on the current stream.

    Parameters
    ----------
    job : Accumulation
        A checked call of `ops.accumulate`. What is out of range is not counted, and marks n (marks.py).

    Notes
    -----
    Numerics: logits become float32, scores are integers (csrc/accumulate.h), and every sum is one of int64, so the order in
    which programs add does not show. Up to 2^20 classes; rows of up to 2048 are held in registers, longer ones are read anew
    for each sum.
    """
    batch, classes = job.logits.shape
    heads = job.parameters.shape[0]
    wide = classes > _TILE
    block = _CHUNK if wide else triton.next_power_of_2(classes)
    rows = 1 if wide else min(128, _TILE // block)
    tiles = triton.cdiv(batch, rows)
    groups = max(1, min(heads, triton.cdiv(_FILL, tiles)))
    tracked = job.tracked_classes.shape[2]
    results = (job.n, job.counts, job.sums, job.squares, job.tracked_classes, job.bin_counts, job.bin_sums)
    tensors = (job.logits, job.rows, job.parameters, *results)
    sizes = (job.n.shape[0], heads, classes, *job.logits.stride())
    with on(job.logits.device):
        if wide:
            lanes = triton.next_power_of_2(max(1, tracked))
            options = {"BLOCK_SIZE": block, "TRACKED": tracked, "LANES": lanes, **OPTIONS}
            accumulate_wide_kernel[(tiles, groups)](*tensors, *sizes, **options)
        else:
            options = {"ROWS": rows, "BLOCK_SIZE": block, "TRACKED": tracked, **OPTIONS}
            accumulate_kernel[(tiles, groups)](*tensors, batch, *sizes, **options)
