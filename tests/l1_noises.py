"""What tests of noises in l1 share: their draws, evaluated on given words; and exact answers."""

from collections.abc import Callable
from typing import NamedTuple

import mpmath as mp
import numpy as np
import torch
from scipy import stats

from rsfast.noise import DRAWS, Laplace, Noise, Splitting, Uniform
from rsfast.ops import _cpu, arithmetic

EDGES = [(c + o) % 2**32 for c in (*(k << 28 for k in range(16)), *(1 << k for k in range(32))) for o in (-2, -1, 0, 1, 2)]


def kernel_values(draw, words):
    """Standard noise float32 of uint32 words, by the CPU's kernel on the instruction set in use."""
    words, out = np.asarray(words, dtype=np.uint32), np.full(len(words), np.nan, dtype=np.float32)
    number = _cpu.draws().index(draw)
    _cpu.noise_of_words(number, words.ctypes.data, words.size, out.ctypes.data)
    return out


def reference_values(draw, words):
    return DRAWS[draw].plain([torch.tensor(np.asarray(words, dtype=np.int64))], arithmetic)[0].numpy()


class WordDraw(NamedTuple):
    """A draw that makes an element of a word: k its low 31 bits, and the top bit the sign."""

    noise: Noise
    known: Callable[[int], mp.mpf]  # k to the exact magnitude
    exact: Callable[[np.ndarray], np.ndarray]  # the same in float64, to an ulp of float64 or so
    allowed: Callable[[np.ndarray], np.ndarray]  # error of a float32 magnitude
    ends: tuple[float, float]  # magnitudes of k = 0 and k = 2^31 - 1
    distribution: object
    cuts: tuple[float, ...]


def _minus_log(k):
    return np.where(k < 2**30, -np.log((2 * k + 1) / 2**32), -np.log1p((2 * k + 1 - 2**32) / 2**32))


def _ulps(count, least=0.0):
    return lambda exact: np.maximum(least, count * np.spacing(exact.astype(np.float32)).astype(np.float64))


WORD_DRAWS = {
    "laplace": WordDraw(
        Laplace(1.0),
        lambda k: -mp.log(mp.mpf(2 * k + 1) / 2**32),
        _minus_log,
        _ulps(4, 2e-7),  # as the contract has it
        (float(np.float32(32 * np.log(2))), 2.0**-32),
        stats.laplace,
        (1, 4, 8, 12),
    ),
    "uniform": WordDraw(
        Uniform(1.0),
        lambda k: mp.mpf(2 * k + 1) / 2**32,
        lambda k: (2 * k + 1) / 2**32,
        _ulps(0.5),  # rounded once
        (2.0**-32, 1.0),
        stats.uniform(-1, 2),
        (0.1, 0.5, 0.9, 0.999, 0.99999),
    ),
}


def _laplace_potential(p, b):
    return b * (mp.log(2 * p) if p < 0.5 else -mp.log(2 * (1 - p)))


def _uniform_potential(p, lam):
    return 2 * lam * (p - mp.mpf(0.5))


POTENTIALS = {Laplace: _laplace_potential, Uniform: _uniform_potential, Splitting: _uniform_potential}
"""Exact potentials of mpmath numbers p and the parameter."""
