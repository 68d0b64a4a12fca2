"""The operator on given words: every backend gives the same bits, and a checksum of them shows a single wrong bit."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_same_bits

from rsfast import noise
from rsfast.ops import BACKENDS, cpu, words
from rsfast.ops.registry import Backend
from rsfast.ops.words import ALL, LINE, SWEEPS, first_difference, noise_of_words, sweep

# 0, 2^32 - 1, the ends of quadrants and of eighths, 3/4 of 2^32, where the complement is taken, and every power of 2.
HOSTILE = sorted(
    {
        (centre + offset) % ALL
        for centre in (*(k << 29 for k in range(8)), *(1 << k for k in range(32)), *(3 << k for k in range(31)), 0xBFFFFFFF)
        for offset in (-2, -1, 0, 1, 2)
    }
)


def as_words(values):
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)


def hostile_words(draw):
    """Pairs of hostile words for normals: every radius with every angle. Elsewhere every hostile word in each place."""
    some = as_words(HOSTILE)
    if draw == "gaussian":
        return torch.cartesian_prod(some, some[::3]).view(-1)[: len(some) * len(some[::3]) // 2 * 4]
    return torch.cat([some.roll(shift) for shift in range(4)])[: len(some) // 4 * 16]


# The same bits


@pytest.mark.parametrize("draw", words.DRAWS)
def test_hostile_words(draw, isa):
    given = hostile_words(draw)
    assert_same_bits(noise_of_words(draw, given, backend="cpu"), noise_of_words(draw, given, backend="reference"))


@pytest.mark.parametrize("draw", words.DRAWS)
def test_any_number_of_blocks(draw, isa):
    """Of which the last of a tile are few, into memory that is given, and nothing is written past its end."""
    rng = np.random.default_rng(5)
    for count in (0, 4, 12, 64, 68, 1028):
        given = torch.from_numpy(rng.integers(-(2**31), 2**31, count, dtype=np.int32))
        room = torch.full((count + 4,), torch.nan)
        noise_of_words(draw, given, out=room[:count], backend="cpu")
        assert_same_bits(room[:count], noise_of_words(draw, given, backend="reference"))
        assert room[count:].isnan().all()


def test_what_is_swept():
    """Angle 0 leaves the radius as it is, and the radius of the other word is 1."""
    (radius, angle), place = (SWEEPS[name] for name in ("Gaussian radius", "Gaussian angle")), torch.tensor([0, 1, ALL - 1])
    assert radius.make_words(place).tolist() == [0, 0, 1, 0, -1, 0]
    assert angle.make_words(place).tolist() == [2605029197 - ALL, 0, 2605029197 - ALL, 1, 2605029197 - ALL, -1]
    assert noise_of_words("gaussian", angle.make_words(torch.tensor([0, 1 << 30]))).tolist() == [1, 0, 0, 1]
    assert {*words.DRAWS} == {"mask", *(name for name, draw in noise.DRAWS.items() if draw.plain)}


# Checksums


@pytest.mark.parametrize("name", SWEEPS)
def test_a_checksum_is_that_of_the_reference(name, isa):
    """From the middle of a sweep, where words wrap as int32."""
    first, count = (1 << 31) - 4 * LINE, 7 * LINE
    assert sweep(name, first, count, backend="cpu") == sweep(name, first, count, backend="reference")


def test_checksums_add_up():
    """However a range is cut: a GPU is given more words at once than a CPU, which takes 32 lines."""
    first, lines = (1 << 31) - 40 * LINE, 70
    whole = sweep("Laplace", first, lines * LINE)
    for length in (1, 3, 32, 69):
        parts = [(first + i * LINE, min(length, lines - i) * LINE) for i in range(0, lines, length)]
        sums = [sweep("Laplace", *part) for part in parts]
        assert sum(sums) % 2**64 == whole != sums[0]


@pytest.fixture
def altered(monkeypatch):
    """A backend "altered": the CPU's, whose values a function then changes, their bits as integers."""

    def altered(change):
        def kernel(draw, given, out):
            cpu.noise_of_words(draw, given, out)
            change(out.view(torch.int32))

        monkeypatch.setitem(BACKENDS, "altered", Backend("altered", lambda: SimpleNamespace(noise_of_words=kernel)))

    return altered


def test_one_wrong_bit_shows_anywhere(altered):
    """Every bit of a value; then values of every line of weights, at both ends and at places between."""
    right, length = sweep("Laplace", 0, 2 * LINE, backend="reference"), 2 * LINE
    places = [0, LINE - 1, LINE, length - 1, *np.random.default_rng(6).integers(0, length, 30).tolist()]
    for place, bit in [*((77, bit) for bit in range(32)), *((place, 31) for place in places), *((p, 0) for p in places)]:

        def flip(bits, place=place, bit=bit):
            bits[place] ^= -(1 << 31) if bit == 31 else 1 << bit

        altered(flip)
        assert sweep("Laplace", 0, length, backend="altered") != right, (place, bit)
        if bit == 31:
            assert first_difference("Laplace", 0, length, backend="altered") == place


@pytest.mark.parametrize(
    "change",
    [
        lambda bits: bits.copy_(bits.flip(0)),
        lambda bits: bits.copy_(bits.view(-1, LINE).flip(0).reshape(-1)),  # lines in another order
        lambda bits: bits[3:5].copy_(bits[3:5].flip(0)),
        lambda bits: bits.view(-1, 4)[0].add_(
            torch.tensor([1, -1, -1, 1], dtype=torch.int32)
        ),  # any linear weight misses it
        lambda bits: bits.bitwise_xor_(-(1 << 31)),
        lambda bits: bits.add_(1),
    ],
)
def test_many_wrong_values_show(change, altered):
    altered(change)
    assert sweep("Laplace", LINE, 4 * LINE, backend="altered") != sweep("Laplace", LINE, 4 * LINE, backend="reference")


def test_where_the_first_difference_is(altered):
    altered(lambda bits: None)
    assert first_difference("Gaussian angle", 5 * LINE, LINE, backend="altered") is None
    altered(lambda bits: bits[2 * LINE + 7].add_(1))  # the sine of the fourth word after the first line
    assert first_difference("Gaussian angle", 5 * LINE, 2 * LINE, backend="altered") == 6 * LINE + 3


@pytest.mark.noise
@pytest.mark.parametrize("name", SWEEPS)
def test_all_words(name, isa, threads):
    """The checksums that GPUs are compared with, on every instruction set."""
    threads(1)
    part = 1 << 28
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = pool.map(lambda first: sweep(name, first, part, backend="cpu"), range(0, ALL, part))
    assert sum(sums) % 2**64 == SWEEPS[name].checksum


# Arguments


def error(**change):
    """The error of a call that is right but for these arguments."""
    with pytest.raises((TypeError, ValueError)) as raised:
        noise_of_words(**{"draw": "laplace", "words": torch.zeros(8, dtype=torch.int32)} | change)
    return str(raised.value)


def test_errors_name_the_argument():
    zeros = torch.zeros(8, dtype=torch.int32)
    assert error(draw="splitting").startswith("draw must be ")
    assert error(words=[1, 2, 3, 4]) == "words must be a tensor, got [1, 2, 3, 4]"
    for wrong in (zeros[:6], zeros.view(2, 4)):
        assert error(words=wrong) == f"words must have shape [N], N a multiple of 4, got {list(wrong.shape)}"
    assert error(words=zeros.long()) == "words must have dtype int32, got torch.int64"
    assert error(words=torch.zeros(16, dtype=torch.int32)[::2]).startswith("words must be contiguous")
    assert error(out=torch.zeros(4)) == "out must have shape [8], got [4]"
    assert error(out=torch.zeros(8).double()) == "out must have dtype float32, got torch.float64"
    assert error(out=torch.zeros(8, device="meta")).startswith("out must be on 'cpu'")
    assert (
        error(words=zeros, out=zeros.view(torch.float32)) == "out must have memory of its own, got some that words has, too"
    )
    assert error(backend="cuda").startswith("backend must be one that can run on 'cpu', got 'cuda'")
    for place, message in {
        ("Normal",): "name must be ",
        ("Mask", -LINE): f"first must be a multiple of {LINE}, at least 0, got -{LINE}",
        ("Mask", 1): f"first must be a multiple of {LINE}, at least 0, got 1",
        ("Mask", 0.5): "first must be an int, got 0.5",
        ("Mask", 0, 0): f"count must be a multiple of {LINE}, at least {LINE}, got 0",
        ("Mask", LINE, ALL): f"count must be at most 2^32 - first, got {ALL} from {LINE}",
    }.items():
        with pytest.raises((TypeError, ValueError)) as raised:
            sweep(*place)
        assert str(raised.value).startswith(message)


def test_a_backend_that_takes_no_words(monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", Backend("mine", lambda: SimpleNamespace()))
    assert error(backend="mine") == "backend must be one whose kernels take words, got 'mine'"
