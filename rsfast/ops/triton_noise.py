"""The noise stream in Triton: csrc/philox.h, uniform.h and noise.h under the same names, operation for operation.

`tl.fma` stands where the C++ says `fused`, and the compiler may contract nothing else (triton_base.OPTIONS). A product with
-1.0 costs nothing; of -x Triton 3.6 makes the subtraction 0 - x.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..noise import streams
from .triton_base import coefficients, horner

_LOG = coefficients(
    "-0x1.ca09bep-4 0x1.f64a52p-3 -0x1.334838p-2 0x1.57d2cap-2 -0x1.99026ep-2 0x1.ffe9b4p-2 -0x1.555694p-1 0x1p0 -0x1p1"
)
_MINUS_TWO_LN2_UNITS = tl.constexpr(float.fromhex("-0x1.62e43p-23"))
_SIN = coefficients("-0x1.2d92dep-15 0x1.465e9p-9 -0x1.4abbb8p-4 -0x1.a34d4cp-26")
_QUARTER_PI = tl.constexpr(float.fromhex("0x1.921fb6p-1"))
_COS = coefficients("0x1.d9bf06p-19 -0x1.55c58cp-12 0x1.03c1dcp-6 -0x1.3bd3ccp-2 0x1p0")
FIXED_STREAM = tl.constexpr(streams.FIXED_STREAM)
NVIDIA = tl.constexpr(torch.version.hip is None)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Philox4x32-10 of uint32 words; those that are the same in all lanes may be scalars."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def centred_uniform(word):
    """u = (word + 1/2) / 2^32: u or 1 - u, and whether it is 1 - u."""
    near_one = word > 0xBFFFFFFF
    return tl.fma(tl.where(near_one, word ^ 0xFFFFFFFF, word).to(tl.float32), 2.0**-32, 2.0**-33), near_one


@triton.jit
def centred_uniform_31(word):
    """u = (2 k + 1) / 2^32, k the low 31 bits of the word: u or 1 - u, and whether it is 1 - u."""
    doubled = word << 1
    near_one = doubled > 0xBFFFFFFF
    return (tl.where(near_one, doubled ^ 0xFFFFFFFF, doubled) | 1).to(tl.float32) * 2.0**-32, near_one


@triton.jit
def minus_two_log(value, near_one):
    """-2 ln(u) of a uniform number."""
    bits = value.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F400000) & -0x800000  # in units of 2^-23: the mantissa is in [3/4, 3/2)
    f = tl.where(near_one, value * -1.0, (bits - exponent).to(tl.float32, bitcast=True) - 1.0)
    e = tl.where(near_one, 0.0, exponent.to(tl.float32) * _MINUS_TWO_LN2_UNITS)
    return tl.fma(horner(f, _LOG, 8), f, e)


@triton.jit
def root(value):
    """The square root, correctly rounded, of a `minus_two_log`, which is from 2^-32 to 46.

    NVIDIA's sqrt.rn is this sequence after a check that the value is ordinary, and a call if it is not.
    """
    if NVIDIA:
        reciprocal = tl.rsqrt(value)
        r = value * reciprocal
        r = tl.fma(tl.fma(r * -1.0, r, value), reciprocal * 0.5, r)
    else:
        r = tl.sqrt_rn(value)
    return r


@triton.jit
def box_muller(radius, angle):
    """r cos(theta) and r sin(theta) with r^2 = minus_two_log(radius) and theta = 2 pi angle / 2^32."""
    value, near_one = centred_uniform(radius)
    r = root(minus_two_log(value, near_one))
    x = (angle << 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-31
    turned = angle + 0x20000000
    square = x * x
    s = tl.fma(x, _QUARTER_PI, horner(square, _SIN, 3) * x)
    c = horner(square, _COS, 4)
    odd_quadrant = (turned & 0x40000000) != 0
    cosine = (r * tl.where(odd_quadrant, s, c)).to(tl.uint32, bitcast=True) ^ ((turned + 0x40000000) & 0x80000000)
    sine = (r * tl.where(odd_quadrant, c, s)).to(tl.uint32, bitcast=True) ^ (turned & 0x80000000)
    return cosine.to(tl.float32, bitcast=True), sine.to(tl.float32, bitcast=True)


@triton.jit
def laplace(word):
    """Laplace noise of scale 1: -ln(u), negative if the top bit of the word is set."""
    value, near_one = centred_uniform_31(word)
    magnitude = (minus_two_log(value, near_one) * 0.5).to(tl.uint32, bitcast=True)
    return (magnitude | (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def uniform(word):
    """Uniform noise on [-1, 1], negative if the top bit of the word is set."""
    magnitude = (((word << 1) | 1).to(tl.float32) * 2.0**-32).to(tl.uint32, bitcast=True)
    return (magnitude | (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def mask(word):
    """What a mask compares with the chance of keeping: the top 24 bits of the word, in [0, 1)."""
    return (word >> 8).to(tl.float32) * 2.0**-24


@triton.jit
def grid_level(word, guide_ptr, shift):
    """How many thresholds lie above the word's low 31 bits, and whether these are the high half of one."""
    word = (word & 0x7FFFFFFF).to(tl.int32, bitcast=True)
    cell = ((word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True) >> shift) - (0x3F000000 >> shift)
    cut = tl.load(guide_ptr + 2 * cell)
    return tl.load(guide_ptr + 2 * cell + 1) + (word < cut).to(tl.int32), word == cut


@triton.jit
def compare_low_words(word, low, unsettled, level, thresholds_ptr):
    """The level where a word's high half is that of a threshold: one threshold after the other, of which the last is 0."""
    value = ((word & 0x7FFFFFFF).to(tl.int64) << 32) | low.to(tl.int64)
    below = unsettled & (value < tl.load(thresholds_ptr + level, mask=unsettled, other=0))
    while tl.max(below.to(tl.int32), axis=0) > 0:
        level += below.to(tl.int32)
        below = below & (value < tl.load(thresholds_ptr + level, mask=below, other=0))
    return level


@triton.jit
def signed(level, word):
    """The level as a float, negative if the top bit of the word is set."""
    return (level.to(tl.float32).to(tl.uint32, bitcast=True) | (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def nearest_integer(value):
    """Ties to even; of values of at most 2^22."""
    return (value + 12582912.0) - 12582912.0


@triton.jit
def corrected_quotient(dividend, divisor, reciprocal):
    """dividend / divisor, for the reciprocal rounded: the product is corrected by its error."""
    quotient = dividend * reciprocal
    return tl.fma(tl.fma(quotient, -divisor, dividend), reciprocal, quotient)


@triton.jit
def small_to_float(value):
    """An integer below 2^23, exactly."""
    return (value | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def splitting(word, count, turn):
    """Where the cells' edges are: the word, or of deterministic splitting one of `count` places, and half way on."""
    place = (((word >> 16) * count) >> 16) + turn
    fixed = (tl.where(place >= count, place - count, place) << 16) | 0x8000
    return tl.where(count > 0, fixed, word).to(tl.float32, bitcast=True)


@triton.jit
def edge(k, place, places, low, step):
    """The edge of splitting noise between the cells k - 1 and k."""
    return tl.fma(tl.fma(k, places, place), step, low)


@triton.jit
def split(z, scalars, x):
    """The centre of x's cell, cut to [0, 1]."""
    count, step, inverse_width, units, half_unit = scalars
    bits = z.to(tl.uint32, bitcast=True)
    places = tl.where(count > 0, count, 65536.0)
    place, low = small_to_float(bits >> 16), small_to_float(bits & 0xFFFF) * (step * 2.0**-16)
    at = x * units
    k = nearest_integer((at - tl.fma(place, step, low)) * inverse_width)
    nearest = edge(k, place, places, low, step)
    below = nearest < at
    other = edge(tl.where(below, k + 1.0, k - 1.0), place, places, low, step)
    first, last = tl.where(below, nearest, other), tl.where(below, other, nearest)
    ends = tl.where(first < 0.0, 0.0, first) + tl.where(last > units, units, last)
    return corrected_quotient(ends, 2.0 * units, half_unit)


@triton.jit
def block_words(block, counter):
    """The four words of these blocks. Words that 64-bit draws need besides are those of `stream` + 128."""
    sample, input_id, stream, seed = counter
    high = (stream << 24) | (sample >> 32)
    return philox(block, sample.to(tl.uint32), input_id.to(tl.uint32), high.to(tl.uint32), seed)


@triton.jit
def grid_gaussian(words, block, counter, shift, guide_ptr, thresholds_ptr):
    """Rounded Gaussian noise: 64 bits an element, of which the low 32 are made where a lane needs them."""
    a, b, c, d = words
    level_a, at_a = grid_level(a, guide_ptr, shift)
    level_b, at_b = grid_level(b, guide_ptr, shift)
    level_c, at_c = grid_level(c, guide_ptr, shift)
    level_d, at_d = grid_level(d, guide_ptr, shift)
    if tl.max((at_a | at_b | at_c | at_d).to(tl.int32), axis=0) > 0:
        sample, input_id, stream, seed = counter
        low_a, low_b, low_c, low_d = block_words(block, (sample, input_id, stream + 128, seed))
        level_a = compare_low_words(a, low_a, at_a, level_a, thresholds_ptr)
        level_b = compare_low_words(b, low_b, at_b, level_b, thresholds_ptr)
        level_c = compare_low_words(c, low_c, at_c, level_c, thresholds_ptr)
        level_d = compare_low_words(d, low_d, at_d, level_d, thresholds_ptr)
    return signed(level_a, a), signed(level_b, b), signed(level_c, c), signed(level_d, d)


@triton.jit
def splitting_noise(block, counter, count):
    """The noise of splitting, of words that are the same for all samples, inputs and streams if it is deterministic."""
    sample, input_id, stream, seed = counter
    turn = (sample % tl.maximum(count, 1).to(tl.int64)).to(tl.uint32)
    random = count == 0
    sample, input_id = tl.where(random, sample, 0), tl.where(random, input_id, 0)
    a, b, c, d = block_words(block, (sample, input_id, tl.where(random, stream, FIXED_STREAM), seed))
    return splitting(a, count, turn), splitting(b, count, turn), splitting(c, count, turn), splitting(d, count, turn)


@triton.jit
def words_to_noise(words, DRAW: tl.constexpr):
    """The standard noise of four words, for the draws that need nothing else."""
    a, b, c, d = words
    if DRAW == "gaussian":
        z0, z1 = box_muller(a, b)
        z2, z3 = box_muller(c, d)
    elif DRAW == "laplace":
        z0, z1, z2, z3 = laplace(a), laplace(b), laplace(c), laplace(d)
    elif DRAW == "uniform":
        z0, z1, z2, z3 = uniform(a), uniform(b), uniform(c), uniform(d)
    elif DRAW == "mask":
        z0, z1, z2, z3 = mask(a), mask(b), mask(c), mask(d)
    else:
        tl.static_assert(False, "ops/triton_noise.py lacks this draw")
    return z0, z1, z2, z3


@triton.jit
def standard_noise(block, counter, scalars, table_0_ptr, table_1_ptr, DRAW: tl.constexpr):
    """A draw's noise of these blocks of four elements: element 0 of each block, element 1, 2 and 3."""
    if DRAW == "splitting":
        z = splitting_noise(block, counter, tl.full((), scalars[0], tl.float32).to(tl.uint32))
    elif DRAW == "grid_gaussian":
        shift = tl.full([1], scalars[0], tl.float32).to(tl.int32)
        z = grid_gaussian(block_words(block, counter), block, counter, shift, table_0_ptr, table_1_ptr)
    else:
        z = words_to_noise(block_words(block, counter), DRAW)
    return z


@triton.jit
def mask_of_groups(group, counter):
    """The mask's noise of elements whose groups share word g % 4 of block g / 4."""
    group = group.to(tl.uint32, bitcast=True)
    a, b, c, d = block_words(group >> 2, counter)
    odd = (group & 1) != 0
    return mask(tl.where((group & 2) != 0, tl.where(odd, d, c), tl.where(odd, b, a)))
