"""perturb as a kernel that Triton compiles: csrc/perturb.h. Nothing here looks at a tensor's values, allocates or waits."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from .calls import Perturbation
from .triton_base import MOST, OPTIONS, on
from .triton_noise import corrected_quotient, mask_of_groups, nearest_integer, split, standard_noise

_BLOCKS = 256  # of four elements, that a program of perturb makes
_RECIPROCAL_255 = tl.constexpr(float.fromhex("0x1.010102p-8"))


@triton.jit
def row_of(row, rows_ptr, input_ids_ptr, samples_ptr, inputs):
    """The input of a row, its id, the sample, and whether all three are in range; if not, input 0 is read."""
    sample = tl.load(samples_ptr + row)
    source = tl.load(rows_ptr + row)
    valid = (source >= 0) & (source < inputs) & (sample >= 0) & (sample < (1 << 56))
    source = tl.where(valid, source, 0)
    input_id = tl.load(input_ids_ptr + source)
    valid = valid & (input_id >= 0) & (input_id < (1 << 32))
    tl.device_assert(valid, "rows, input_ids or samples are out of range")
    return source, input_id, sample, valid


@triton.jit
def noisy(z, noise_scale, scalars, x, low, high, DRAW: tl.constexpr):
    """x with its noise, before scale and shift: most draws are added."""
    if DRAW == "grid_gaussian":
        y = corrected_quotient(nearest_integer(x * 255.0) + z, 255.0, _RECIPROCAL_255)
    elif DRAW == "mask":
        y = tl.where(z < scalars[0], x, scalars[1])
    elif DRAW == "splitting":
        y = split(z, scalars, x)
    else:
        y = tl.fma(z, noise_scale, x)
    if low is not None:
        y = tl.where(y < low, low, y)
        y = tl.where(y > high, high, y)
    return y


@triton.jit
def with_each(z, each_ptrs, mask, sample, input_id, stream, seed, noise_scale, DRAW: tl.constexpr):
    """The noise and its scale where every element has a value: its scale, or of a mask the group that shares a word."""
    each = tl.load(each_ptrs, mask=mask)
    if DRAW == "mask":
        z = mask_of_groups(each, sample, input_id, stream, seed)
    else:
        noise_scale = each
    return z, noise_scale


@triton.jit
def scaled(y, scale_ptrs, shift_ptrs, mask):
    """y by the scale and the shift of each lane's channel."""
    return tl.fma(y, tl.load(scale_ptrs, mask=mask), tl.load(shift_ptrs, mask=mask))


@triton.jit
def channels_in_a_row(start, plane, lane):
    """The channel of each lane of a tile that begins at element `start` of a row, and the place in that channel's plane."""
    behind = (start % plane).to(tl.int32) + lane  # since the first plane of the tile began
    return start // plane + behind // plane, behind % plane


# Program (row, channel, tile) makes one tile of BLOCKS Philox blocks of a channel of a row: spans are channels. Where no
# channel need be known, or channels are NARROW and a tile holds several, the row as a whole is its only span.
@triton.jit(do_not_specialize=["inputs", "seed", "stream", "first_channel", "first_tile"])
def perturb_kernel(
    out_ptr,
    x_ptr,
    rows_ptr,
    input_ids_ptr,
    samples_ptr,
    scale_ptr,
    shift_ptr,
    low,
    high,
    noise_scalars,
    each_ptr,
    table_0_ptr,
    table_1_ptr,
    seed: tl.uint64,
    stream,
    inputs,
    elements,
    channels,
    plane,
    span,
    first_channel,
    first_tile,
    DRAW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NARROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, input_id, sample, valid = row_of(row, rows_ptr, input_ids_ptr, samples_ptr, inputs)

    channel = first_channel + tl.program_id(1)
    tile = (first_tile + tl.program_id(2)).to(tl.int64)
    first = channel.to(tl.int64) * span
    block = ((first >> 2) + tile * BLOCKS).to(tl.uint32) + tl.arange(0, BLOCKS).to(tl.uint32)
    z = standard_noise(block, sample, input_id, stream, seed, noise_scalars, table_0_ptr, table_1_ptr, DRAW)

    lane = tl.arange(0, 4 * BLOCKS)
    place = tile * (4 * BLOCKS) + lane  # of the element in the span
    inside = place < span
    if not ALIGNED:  # the span begins within a block
        place -= first & 3
        inside = (place >= 0) & (place < span)
    x = tl.load(x_ptr + (source * elements + first) + place, mask=inside)
    noise_scale = noise_scalars[0]
    if each_ptr is not None:
        z, noise_scale = with_each(z, each_ptr + first + place, inside, sample, input_id, stream, seed, noise_scale, DRAW)
    y = tl.where(valid, noisy(z, noise_scale, noise_scalars, x, low, high, DRAW), float("nan"))  # if the assertion is off
    if NARROW:
        channel, in_plane = channels_in_a_row(tile * (4 * BLOCKS), plane, lane)
    else:
        in_plane = place
    if scale_ptr is not None:
        y = scaled(y, scale_ptr + channel, shift_ptr + channel, inside if NARROW else None)
    if CHANNELS_LAST:
        to_ptr = out_ptr + row * elements + channel + in_plane.to(tl.int64) * channels
    else:
        to_ptr = out_ptr + (row * elements + first) + place
    tl.store(to_ptr, y.to(out_ptr.dtype.element_ty), mask=inside)


def perturb(job: Perturbation) -> None:
    """Fill ``job.out`` on the current stream.

    Parameters
    ----------
    job : Perturbation
        A checked call of `ops.perturb`. An index that is out of range fails an assertion on the device, and reads and writes
        nothing out of bounds.

    Notes
    -----
    Numerics: a fixed sequence of exactly rounded float32 and integer operations (csrc/noise.h, csrc/perturb.h), bit for bit
    that of every other backend; rounded once, to nearest even, to the type of ``out``. Inputs up to 2^34 elements.
    """
    channels, elements = job.x.shape[1], job.x[0].numel()
    plane = elements // channels
    channels_last = job.channels_last and channels > 1 and plane > 1
    by_channel = channels > 1 and (channels_last or job.scale is not None)
    narrow = by_channel and plane < 2 * _BLOCKS
    spans, span = (channels, plane) if by_channel and not narrow else (1, elements)
    aligned = spans == 1 or span % 4 == 0
    tiles = triton.cdiv(span + (0 if aligned else 3), 4 * _BLOCKS)
    low, high = job.clamp or (None, None)
    with on(job.x.device):
        for first_channel in range(0, spans, MOST):
            for first_tile in range(0, tiles, MOST):
                grid = (job.out.shape[0], min(spans - first_channel, MOST), min(tiles - first_tile, MOST))
                perturb_kernel[grid](
                    job.out,
                    job.x,
                    job.rows,
                    job.input_ids,
                    job.samples,
                    job.scale,
                    job.shift,
                    low,
                    high,
                    tuple(job.noise.scalars),
                    job.noise.each,
                    *(job.noise.tables or (None, None)),
                    job.seed,
                    job.stream,
                    job.x.shape[0],
                    elements,
                    channels,
                    plane,
                    span,
                    first_channel,
                    first_tile,
                    DRAW=job.noise.draw,
                    CHANNELS_LAST=channels_last,
                    NARROW=narrow,
                    ALIGNED=aligned,
                    BLOCKS=_BLOCKS,
                    **OPTIONS,
                )
