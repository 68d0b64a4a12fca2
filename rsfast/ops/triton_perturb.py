"""perturb as kernels that Triton compiles: csrc/perturb.h. Nothing here looks at a tensor's values, allocates or waits."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .calls import Perturbation
from .triton_base import MOST, OPTIONS, deinterleave, interleave, on
from .triton_noise import corrected_quotient, mask_of_groups, nearest_integer, split, standard_noise

# A tile is 1024 elements of a channel, which divides the planes and the rows of images of 32 x 32 and 224 x 224: no lane is
# idle. 128 threads make 8 elements each, so a store of 16 bytes takes all of a thread's bfloat16. A loop over tiles makes
# the keys and the row's counter once, and keeps the registers of NVIDIA's GPUs below 64, so that half of its threads fit.
BLOCKS = 256  # of four elements, in a tile of a channel
THREADS = 128
WARPS = THREADS // (32 if torch.version.hip is None else 64)
FEW_CHANNELS = 4  # up to which a program makes all channels of a position
MOST_TILES = 8  # that a program makes if the others are enough to fill a large GPU
FILL = 4096
# What differs between batches of a run, which must not make Triton compile anew.
_VARYING = ["inputs", "seed", "stream", "tiles", "tiles_each"]
_INDICES = ["rows_ptr", "input_ids_ptr", "samples_ptr"]  # a batch's are slices of an array, which may begin anywhere
_RECIPROCAL_255 = tl.constexpr(float.fromhex("0x1.010102p-8"))


@triton.jit
def row_of(row, rows_ptr, input_ids_ptr, samples_ptr, inputs, stream, seed):
    """The input of a row, the counter of its words, and whether rows, samples and input_ids are in range."""
    sample = tl.load(samples_ptr + row)
    source = tl.load(rows_ptr + row)
    valid = (source >= 0) & (source < inputs) & (sample >= 0) & (sample < (1 << 56))
    source = tl.where(valid, source, 0)
    input_id = tl.load(input_ids_ptr + source)
    valid = valid & (input_id >= 0) & (input_id < (1 << 32))
    return source, (sample, input_id, stream.to(tl.int64), seed.to(tl.uint64)), valid


@triton.jit
def tile_noise(
    first_block, counter, scalars, table_0_ptr, table_1_ptr, DRAW: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The noise of a tile's blocks. A thread makes WIDTH elements in a row, as many as it stores at once."""
    block = first_block.to(tl.uint32) + (WIDTH // 4 * tl.arange(0, 4 * BLOCKS // WIDTH)).to(tl.uint32)
    z = standard_noise(block, counter, scalars, table_0_ptr, table_1_ptr, DRAW)
    if WIDTH == 8:
        z += standard_noise(block + 1, counter, scalars, table_0_ptr, table_1_ptr, DRAW)
    return interleave(z)


@triton.jit
def noisy(z, noise_scale, scalars, x, valid, low, high, DRAW: tl.constexpr):
    """x with its noise, before scale and shift: most draws are added. NaN where x is, and in a row that is not valid."""
    if DRAW == "grid_gaussian":
        y = corrected_quotient(nearest_integer(x * 255.0) + z, 255.0, _RECIPROCAL_255)
    elif DRAW == "mask":
        y = tl.where(z < scalars[0], x, tl.where(valid, scalars[1], float("nan")))
    elif DRAW == "splitting":
        y = split(z, scalars, x)
    else:
        y = tl.fma(z, noise_scale, x)
    if low is not None:
        y = tl.where(y < low, low, y)
        y = tl.where(y > high, high, y)
    return y


@triton.jit
def tile_of_a_channel(
    x_ptr, place, inside, first_block, counter, valid, low, high, scalars, each_ptr, table_0_ptr, table_1_ptr,
    DRAW: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The elements at `place`, with their noise, of which the first is the first of a block; `x_ptr` and `each_ptr` count
    from the same element."""
    z = tile_noise(first_block, counter, scalars, table_0_ptr, table_1_ptr, DRAW, BLOCKS, WIDTH)
    x = tl.load(x_ptr + place, mask=inside & valid, other=float("nan"))
    noise_scale = scalars[0]
    if each_ptr is not None:
        each = tl.load(each_ptr + place, mask=inside)
        if DRAW == "mask":  # the group of elements that share a word
            z = mask_of_groups(each, counter)
        else:
            noise_scale = each
    return noisy(z, noise_scale, scalars, x, valid, low, high, DRAW)


@triton.jit
def channels_in_a_row(start, plane, lane):
    """The channel of each lane of a tile that begins at element `start` of a row, and the place in that channel's plane."""
    behind = (start % plane).to(tl.int32) + lane  # since the first plane of the tile began
    return start // plane + behind // plane, behind % plane


# Program (row, channel, t) makes tiles of a channel of a row: spans are channels. Where no channel need be known, or where
# channels are NARROW and a tile holds several, the row as a whole is its only span.
@triton.jit(do_not_specialize=[*_VARYING, "first_channel"], do_not_specialize_on_alignment=_INDICES)
def perturb_kernel(
    out_ptr, x_ptr, rows_ptr, input_ids_ptr, samples_ptr, scale_ptr, shift_ptr, low, high, noise_scalars, each_ptr,
    table_0_ptr, table_1_ptr, seed: tl.uint64, stream, inputs, elements, channels, plane, tiles, tiles_each, span,
    first_channel, DRAW: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, NARROW: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source, counter, valid = row_of(row, rows_ptr, input_ids_ptr, samples_ptr, inputs, stream, seed)
    channel = first_channel + tl.program_id(1)
    first = channel.to(tl.int64) * span
    x_ptr += source * elements + first
    out_ptr += row * elements
    if each_ptr is not None:
        each_ptr += first
    if scale_ptr is not None and not NARROW:
        scale, shift = tl.load(scale_ptr + channel), tl.load(shift_ptr + channel)
    lane = tl.arange(0, 4 * BLOCKS)
    first_tile = tl.program_id(2) * tiles_each
    for tile in range(first_tile, tl.minimum(first_tile + tiles_each, tiles)):
        start = tl.full((), 4 * BLOCKS, INDEX) * tile
        place = start + lane  # of the element in the span
        inside = place < span
        if not ALIGNED:  # the span begins within a block
            place -= (first & 3).to(INDEX)
            inside = (place >= 0) & (place < span)
        block = (first >> 2) + tile * BLOCKS
        y = tile_of_a_channel(
            x_ptr, place, inside, block, counter, valid, low, high, noise_scalars, each_ptr, table_0_ptr, table_1_ptr, DRAW,
            BLOCKS, WIDTH,
        )  # fmt: skip
        channel_of, place_in_plane = channels_in_a_row(start, plane, lane) if NARROW else (channel, place)
        if scale_ptr is not None:
            if NARROW:
                scale, shift = tl.load(scale_ptr + channel_of, mask=inside), tl.load(shift_ptr + channel_of, mask=inside)
            y = tl.fma(y, scale, shift)
        to = place_in_plane.to(INDEX) * channels + channel_of if CHANNELS_LAST else first + place
        tl.store(out_ptr + to, y.to(out_ptr.dtype.element_ty), mask=inside)


# Program (row, t) makes tiles of all channels of a row, of which there are few, and stores WIDTH elements of the output in a
# row: of three channels the words of one thread are those of 3 WIDTH consecutive elements.
@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_INDICES)
def perturb_few_channels_kernel(
    out_ptr, x_ptr, rows_ptr, input_ids_ptr, samples_ptr, scale_ptr, shift_ptr, low, high, noise_scalars, each_ptr,
    table_0_ptr, table_1_ptr, seed: tl.uint64, stream, inputs, elements, channels: tl.constexpr, plane, tiles, tiles_each,
    DRAW: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source, counter, valid = row_of(row, rows_ptr, input_ids_ptr, samples_ptr, inputs, stream, seed)
    x_ptr += source * elements
    out_ptr += row * elements
    lane = tl.arange(0, 4 * BLOCKS)
    group = lane // WIDTH * WIDTH  # the first lane of those that a thread holds
    first_tile = tl.program_id(1) * tiles_each
    for tile in range(first_tile, tl.minimum(first_tile + tiles_each, tiles)):
        start = tl.full((), 4 * BLOCKS, INDEX) * tile
        place = start + lane
        parts = ()
        for channel in tl.static_range(channels):
            first = plane.to(INDEX) * channel
            block = first // 4 + tile * BLOCKS
            y = tile_of_a_channel(
                x_ptr, first + place, place < plane, block, counter, valid, low, high, noise_scalars, each_ptr, table_0_ptr,
                table_1_ptr, DRAW, BLOCKS, WIDTH,
            )  # fmt: skip
            if scale_ptr is not None:
                y = tl.fma(y, tl.load(scale_ptr + channel), tl.load(shift_ptr + channel))
            parts += deinterleave(y, WIDTH)
        to = (start + group) * channels + (lane - group)
        for part in tl.static_range(channels):
            # Element i of a thread's output is channel i % channels of its position i // channels.
            stored = ()
            for i in tl.static_range(part * WIDTH, (part + 1) * WIDTH):
                stored += (parts[i % channels * WIDTH + i // channels],)  # type: ignore[assignment]
            y = interleave(stored).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + to + part * WIDTH, y, mask=start + group < plane)


def perturb(job: Perturbation) -> None:
    """Fill ``job.out`` on the current stream.

    Parameters
    ----------
    job : Perturbation
        A checked call of `ops.perturb`. A row with an index that is out of range becomes NaN; nothing is read or written out
        of bounds.

    Notes
    -----
    Numerics: a fixed sequence of exactly rounded float32 and integer operations (csrc/noise.h, csrc/perturb.h), bit for bit
    that of every other backend; rounded once, to nearest even, to the type of ``out``. Inputs up to 2^34 elements.
    """
    launch(job, BLOCKS, WARPS)


def launch(job: Perturbation, blocks: int, warps: int) -> None:
    """Launch the kernel for a call's layout."""
    channels, elements = job.x.shape[1], job.x[0].numel()
    plane = elements // channels
    channels_last = job.channels_last and channels > 1 and plane > 1
    width = 8 if job.out.element_size() == 2 and plane % 8 == 0 else 4
    few = channels_last and channels <= FEW_CHANNELS and plane % 4 == 0
    by_channel = channels > 1 and (channels_last or job.scale is not None)
    narrow = by_channel and not few and plane < 2 * blocks
    spans, span = (channels, plane) if by_channel and not narrow else (1, elements)
    aligned = spans == 1 or span % 4 == 0
    tiles = triton.cdiv(span + (0 if aligned else 3), 4 * blocks)
    programs = job.out.shape[0] * tiles * (1 if few else spans)
    tiles_each = max(1, min(MOST_TILES, programs // FILL), triton.cdiv(tiles, MOST))
    low, high = job.clamp or (None, None)
    tensors = (job.out, job.x, job.rows, job.input_ids, job.samples, job.scale, job.shift)
    noise = (tuple(job.noise.scalars), job.noise.each, *(job.noise.tables or (None, None)))
    sizes = (job.x.shape[0], elements, channels, plane, tiles, tiles_each)
    arguments = (*tensors, low, high, *noise, job.seed, job.stream, *sizes)
    options: dict[str, Any] = {
        "DRAW": job.noise.draw,
        "BLOCKS": blocks,
        "WIDTH": width,
        "INDEX": tl.int32 if elements < 2**31 - 8 * blocks else tl.int64,
        "num_warps": warps,
        **OPTIONS,
    }
    with on(job.x.device):
        if few:
            perturb_few_channels_kernel[(job.out.shape[0], triton.cdiv(tiles, tiles_each))](*arguments, **options)
            return
        for first_channel in range(0, spans, MOST):
            grid = (job.out.shape[0], min(spans - first_channel, MOST), triton.cdiv(tiles, tiles_each))
            layout = {"CHANNELS_LAST": channels_last, "NARROW": narrow, "ALIGNED": aligned}
            perturb_kernel[grid](*arguments, span, first_channel, **layout, **options)
