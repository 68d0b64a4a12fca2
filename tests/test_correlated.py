"""Gaussian noise with a spectrum: its bits and covariance, its radii, and attacks on its certificates."""

import itertools
import re

import mpmath as mp
import numpy as np
import pytest
import scipy.fft
import torch
from conftest import assert_same_bits, bits, poison
from scipy import stats
from scipy.special import ndtr, ndtri

import rsfast
from rsfast import CorrelatedGaussian, Gaussian
from rsfast.noise import frequencies
from rsfast.ops import arithmetic, perturb
from rsfast.ops.shaping import filtered

SHAPES = [(1,), (2,), (7,), (8,), (3, 5), (2, 6), (3, 4, 4), (2, 5, 7), (1, 28, 28), (3, 31, 33), (2, 3, 4, 6)]
SMALL = [(7,), (8,), (2, 5), (1, 4, 4), (2, 3, 5), (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def axes(shape):
    return shape[1:] or shape


def spectrum_of(shape, channels=False, seed=1):
    """The power of white noise: random, and symmetric up to a rounding."""
    count = shape[0] if channels and len(shape) > 1 else 1
    noise = np.random.default_rng(seed).normal(size=(count, *axes(shape)))
    found = np.abs(np.fft.rfftn(noise, axes=range(1, noise.ndim))) ** 2 / noise[0].size + 0.01
    return found if count > 1 else found[0]


def symmetric(spectrum):
    """The larger of the eigenvalues at k and -k of the axes but the last, in every column."""
    over = tuple(range(1, spectrum.ndim - 1))
    return np.maximum(spectrum, np.roll(np.flip(spectrum, over), 1, over))


def noises(shape):
    return [CorrelatedGaussian(spectrum_of(shape, channels)) for channels in (False, True)]


def white(x, **keywords):
    return perturb(torch.zeros_like(x), Gaussian(1.0), **keywords).double().numpy()


def covariance(noise, shape):
    """Of each channel, [C, N, N]: what an impulse at every place becomes, as numpy.fft shapes it."""
    spectrum = np.broadcast_to(noise.spectrum, ((shape[0] if len(shape) > 1 else 1), *noise.of_channels(shape).shape[1:]))
    n, over = int(np.prod(axes(shape))), tuple(range(1, len(axes(shape)) + 1))
    impulses = np.fft.rfftn(np.eye(n).reshape(n, *axes(shape)), axes=over)
    return np.stack([np.fft.irfftn(impulses * each, s=axes(shape), axes=over).reshape(n, n) for each in spectrum])


def everything(noise, shape):
    """The covariance of all elements of an input, [d, d]."""
    blocks = covariance(noise, shape)
    c, n = blocks.shape[:2]
    found = np.zeros((c, n, c, n))
    for i, block in enumerate(blocks):
        found[i, :, i] = block
    return found.reshape(c * n, c * n)


# Bits


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula(shape):
    """x + irfftn(rfftn(z) sqrt(spectrum)), z Gaussian noise of the same call, by NumPy in float64, rounded once.

    NumPy's transform rounds otherwise, which shows in an element with chance 1e-8: in none of these 17,000 here, and with
    chance 2e-4 where an FFT library is another one.
    """
    x, over = torch.rand(2, *shape), tuple(range(2 if len(shape) > 1 else 1, len(shape) + 1))
    keywords = {"seed": 3, "samples": [0, 5, 2**40], "rows": [1, 0, 1], "input_ids": [7, 2**32 - 1]}
    for noise in noises(shape):
        transformed = np.fft.rfftn(white(x, **keywords), axes=over) * np.sqrt(noise.spectrum)
        y = x[[1, 0, 1]].double().numpy() + np.fft.irfftn(transformed, s=axes(shape), axes=over)
        for backend in ("reference", "cpu"):
            assert_same_bits(perturb(x, noise, **keywords, backend=backend), torch.from_numpy(y.astype(np.float32)))


def test_a_constant_spectrum_is_white_noise():
    x = torch.rand(1, 3, 8, 9)
    found, wanted = (
        perturb(x, noise, seed=1, samples=range(9)) for noise in (CorrelatedGaussian(np.full((8, 5), 0.09)), Gaussian(0.3))
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_follows_the_noise(dtype, channels_last, isa):
    """Clamp, one fma of scale and shift, one rounding, in the layout asked for; x is left alone."""
    x, noise = torch.rand(2, 3, 5, 7) * 2 - 0.5, CorrelatedGaussian(spectrum_of((3, 5, 7)))
    keywords = {"seed": 2**64 - 1, "samples": [1, 2, 3], "rows": [0, 1, 0], "stream": "user"}
    scale, shift = torch.tensor([2.0, 3.1, 0.7]), torch.tensor([-1.0, 0.3, 0.1])
    y, before = perturb(x, noise, **keywords).clamp(0.0, 1.0), x.clone()
    wanted = arithmetic.fma(y, scale[:, None, None], shift[:, None, None]).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = poison((3, 3, 5, 7), dtype, layout)
    keywords |= {"scale": scale, "shift": shift, "clamp": (0.0, 1.0), "dtype": dtype, "channels_last": channels_last}
    assert perturb(x, noise, **keywords, out=out) is out
    assert_same_bits(out, wanted)
    assert perturb(x, noise, **keywords).is_contiguous(memory_format=layout)
    assert_same_bits(x, before)
    assert perturb(x, noise, seed=1, samples=[], rows=[]).shape == (0, 3, 5, 7)


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 5), (3, 7, 9), (3, 32, 32), (1, 97, 101), (3, 200, 111)])
def test_batch_and_order_change_nothing(shape):
    """Rows by themselves, permuted, in batches of 1 to 7, and of more inputs: the same bits."""
    x, noise = torch.rand(3, *shape), CorrelatedGaussian(spectrum_of(shape))
    samples, rows = torch.arange(20) * 3, torch.arange(20) % 3
    whole = perturb(x, noise, seed=1, samples=samples, rows=rows)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert_same_bits(perturb(x, noise, seed=1, samples=samples[order], rows=rows[order]), whole[order])
    for size in (1, 2, 3, 7):
        parts = [
            perturb(x, noise, seed=1, samples=samples[i : i + size], rows=rows[i : i + size]) for i in range(0, 20, size)
        ]
        assert_same_bits(torch.cat(parts), whole)
    one = perturb(x[2:], noise, seed=1, samples=samples[rows == 2], input_ids=[2])
    assert_same_bits(one, whole[rows == 2])


def test_groups_that_are_not_full():
    """More samples than a group holds, and one that is cut: as each by itself."""
    x, noise = torch.rand(1, 4096), CorrelatedGaussian(spectrum_of((4096,)))  # 16 a group on the CPU
    whole = perturb(x, noise, seed=1, samples=range(37))
    assert_same_bits(torch.cat([perturb(x, noise, seed=1, samples=[i]) for i in range(37)]), whole)


def test_threads_change_next_to_nothing(threads):
    """The transform's last bits in float64: no more than one element in 10^5 here by a bit, while 10^-8 are expected."""
    for shape in ((3,), (3, 7, 9), (3, 224, 224)):
        x, noise = torch.rand(1, *shape), CorrelatedGaussian(spectrum_of(shape))
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(bits(perturb(x, noise, seed=1, samples=range(8))))
        for other in found[1:]:
            assert (other - found[0]).abs().max() <= 1
            assert (other != found[0]).double().mean() <= 1e-5


def test_an_element_that_is_not_finite_stays_alone():
    x, noise = torch.rand(1, 3, 4, 4), CorrelatedGaussian(spectrum_of((3, 4, 4)))
    clean = perturb(x, noise, seed=1, samples=range(3))
    x[0, 1, 2, 3], x[0, 0, 0, 0] = torch.nan, torch.inf
    found = perturb(x, noise, seed=1, samples=range(3))
    assert found[:, 1, 2, 3].isnan().all()
    assert (found[:, 0, 0, 0] == torch.inf).all()
    assert (found != clean).sum() == 6


# The noise's law


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("channels", [False, True])
def test_the_variance_of_every_frequency(shape, channels):
    """The power of each over its eigenvalue is a chi-square of 20,000 or 40,000 degrees; 0 where the eigenvalue is.

    Each of up to 24 frequencies fails at either end with chance 1e-8: false failure below 5e-7, fixed seed.
    """
    spectrum, n = spectrum_of(shape, channels), int(np.prod(axes(shape)))
    weakest = np.unravel_index(spectrum.argmin(), spectrum.shape)
    mirrored = tuple(-i for i in weakest[-len(axes(shape)) : -1])
    spectrum[weakest] = spectrum[(*weakest[: spectrum.ndim - len(axes(shape))], *mirrored, weakest[-1])] = 0
    noise = CorrelatedGaussian(spectrum)
    y = (
        perturb(torch.zeros(1, *shape), noise, seed=2024, samples=range(20_000))
        .double()
        .numpy()
        .reshape(20_000, -1, *axes(shape))
    )
    over = tuple(range(2, y.ndim))
    power = (np.abs(np.fft.fftn(y, axes=over)) ** 2).sum(axis=0) / n
    columns = covariance(noise, shape)[:, 0].reshape(power.shape)
    eigenvalues = np.fft.fftn(columns, axes=tuple(range(1, power.ndim))).real
    for place in itertools.product(*map(range, power.shape)):
        own = tuple(-i % size for i, size in zip(place[1:], axes(shape), strict=True)) == place[1:]
        degrees = 20_000 * (1 if own else 2)
        ratio = power[place] * (1 if own else 2)
        if eigenvalues[place] < 1e-9:
            assert power[place] < 1e-9
        else:
            assert 1e-8 < stats.chi2.cdf(ratio / eigenvalues[place], degrees) < 1 - 1e-8


@pytest.mark.parametrize("shape", [(8,), (2, 5), (2, 3, 5)])
def test_distribution(shape):
    """Kolmogorov-Smirnov of sums with random weights over their deviation, channels together: false failure 1e-5."""
    for noise in noises(shape):
        z = perturb(torch.zeros(1, *shape), noise, seed=7, samples=range(1 << 15)).flatten(1).double().numpy()
        for w in np.random.default_rng(2).normal(size=(5, z.shape[1])):
            deviation = np.sqrt(w @ everything(noise, shape) @ w)
            assert stats.kstest(z @ w / deviation, "norm").pvalue > 1e-6


@pytest.mark.parametrize("shape", [(7,), (1000,), (3, 32, 32), (1, 97, 101), (3, 224, 224)])
def test_the_transform_is_off_by_less_than_the_charge(shape):
    """Of the weakest frequency's deviation, beside ones 2^10 times as strong, against SciPy in extended precision."""
    rng, over = np.random.default_rng(6), tuple(range(2 if len(shape) > 1 else 1, len(shape) + 1))
    z = rng.normal(size=(2, *shape))
    for share in (0.05, 0.95):
        gain = np.where(rng.random(frequencies(shape).shape) < share, 1.0, 2.0**-10)[None]
        gain = np.sqrt(CorrelatedGaussian(symmetric(gain**2)[0]).of_channels(shape))
        found = filtered(torch.from_numpy(z), torch.from_numpy(gain)).numpy()
        exact = scipy.fft.rfftn(z.astype(np.longdouble), axes=over) * gain
        errors = np.abs(scipy.fft.rfftn(found.astype(np.longdouble), axes=over) - exact) / np.prod(axes(shape)) ** 0.5
        assert errors.max() < CorrelatedGaussian.potential_error * gain.min()


# Radii


@pytest.mark.parametrize("shape", SMALL)
def test_radii_against_the_covariance(shape):
    """Within 1e-9 of what eigenvalues and the inverse of the whole matrix give; linf is a bound."""
    for noise in noises(shape):
        matrix = everything(noise, shape)
        values, inverse = np.linalg.eigvalsh(matrix), np.linalg.inv(matrix)
        exact = {"l2": values[0] ** 0.5, "l1": inverse.diagonal().max() ** -0.5, "volume": np.exp(np.log(values).mean() / 2)}
        for norm, factor in exact.items():
            assert noise.radius_in(1.5, norm, shape) == pytest.approx(1.5 * factor, rel=1e-9)
        corners = np.random.default_rng(3).choice([-1.0, 1.0], (1000, len(matrix)))
        longest = np.sqrt(((corners @ inverse) * corners).sum(1).max())
        assert noise.radius_in(1.5, "linf", shape) * longest <= 1.5


@pytest.mark.parametrize("shape", SMALL)
def test_radii_are_rounded_down(shape):
    """Never above the formula in 60 digits, nor more than 2e-12 below it."""
    for noise in noises(shape):
        last, spectrum = axes(shape)[-1], noise.of_channels(shape)
        with mp.workdps(60):
            channels = []
            for channel in spectrum:
                weights = [1 if k == 0 or 2 * k == last else 2 for k in range(last // 2 + 1)] * (
                    channel.size // (last // 2 + 1)
                )
                channels.append(
                    [mp.mpf(e) for e, w in zip(channel.ravel().tolist(), weights, strict=True) for _ in range(w)]
                )
            least, d = min(min(each) for each in channels), int(np.prod(shape))
            exact = {"l2": mp.sqrt(least), "linf": mp.sqrt(least / d)}
            exact["l1"] = min(1 / mp.sqrt(sum(1 / e for e in each) / len(each)) for each in channels)
            together = [e for each in channels for e in each]
            exact["volume"] = mp.exp(sum(map(mp.log, together)) / len(together) / 2)
            for norm, factor in exact.items():
                for radius in (0.3, 2.326):
                    found = mp.mpf(noise.radius_in(radius, norm, shape))
                    assert (1 - mp.mpf("2e-12")) * factor * radius <= found <= factor * radius


def test_the_radius_is_charged_for_the_rounding_of_the_transform():
    noise = CorrelatedGaussian([1.0, 0.5, 0.1])
    (found,) = noise.radius(np.array([0.9]), np.array([0.1]))
    assert ndtri(0.9) * (1 - 2**-35) < found < ndtri(0.9) * (1 - 2**-37)
    assert noise.potential([0.0, 0.5, 1.0]).tolist() == [-np.inf, 0, np.inf]
    with pytest.raises(ValueError, match=r"^lipschitz must be None with CorrelatedGaussian noise"):
        noise.potential(0.9, lipschitz=1.0)


def test_an_eigenvalue_of_0_leaves_no_radius_but_the_noises_own():
    noise, shape = CorrelatedGaussian.low_pass((2, 6, 6), 0.2, 0.5, floor=0), (2, 6, 6)
    assert [noise.radius_in(2.0, norm, shape) for norm in ("mahalanobis", "l1", "l2", "linf", "volume")] == [2, 0, 0, 0, 0]
    band = frequencies(shape) <= 0.2
    assert noise.band_radius(2.0, band) == pytest.approx(2 * np.asarray(noise.spectrum).max() ** 0.5)
    assert noise.band_radius(2.0, ~band) == 0
    assert noise.scale == pytest.approx(np.asarray(noise.spectrum).max() ** 0.5)


# Attacks


@pytest.mark.parametrize("shape", SMALL)
def test_no_shift_beats_a_half_space(shape):
    """Its score at x + delta is Phi(rho - w'delta / sqrt(w'Sw)); the worst delta of length rho ends at 1/2, none beyond.

    Shifts of the length of a radius in l2, and in a band in l2, do no better; along its weakest frequency they come as far.
    """
    rng, n = np.random.default_rng(4), int(np.prod(axes(shape)))
    for noise in noises(shape):
        matrix, low = everything(noise, shape), frequencies(shape) <= 0.3
        root = np.linalg.inv(np.linalg.cholesky(matrix))
        rho = float(noise.potential(0.95))
        for _ in range(20):
            w = rng.normal(size=len(matrix))
            deviation = np.sqrt(w @ matrix @ w)
            shifts = rng.normal(size=(500, len(matrix)))
            onto = rho / np.linalg.norm(shifts @ root.T, axis=1, keepdims=True) * shifts
            worst = -rho * matrix @ w / deviation
            scores = ndtr(rho + np.vstack([onto, worst]) @ w / deviation)
            assert scores.min() >= 0.5 - 1e-12
            assert scores[-1] <= 0.5 + 1e-12
            assert ndtr(rho + 1.001 * worst @ w / deviation) < 0.5
        over = tuple(range(2, 2 + len(axes(shape))))
        spread = rng.normal(size=(500, len(matrix) // n, *axes(shape)))
        for band in (low, ~low, np.ones_like(low)):
            inside = np.fft.irfftn(np.fft.rfftn(spread, axes=over) * band, s=axes(shape), axes=over).reshape(500, -1)
            inside *= noise.band_radius(rho, band) / np.linalg.norm(inside, axis=1, keepdims=True)
            assert np.linalg.norm(inside @ root.T, axis=1).max() <= rho * (1 + 1e-12)
        assert noise.band_radius(rho, np.ones_like(low)) == noise.radius_in(rho, "l2")


def test_a_band_s_radius_is_attained():
    """By a wave of its weakest frequency: of the band's length it has the certified Mahalanobis length."""
    noise, shape = CorrelatedGaussian(spectrum_of((1, 6, 8))), (1, 6, 8)
    inverse = np.linalg.inv(everything(noise, shape))
    for cutoff in (0.0, 0.2, 0.4, 0.8):
        band = frequencies(shape) <= cutoff
        weakest = np.unravel_index(np.where(band, noise.spectrum, np.inf).argmin(), band.shape)
        coefficients = np.zeros(band.shape, dtype=complex)
        coefficients[weakest] = 1
        wave = np.fft.irfftn(coefficients, s=(6, 8), axes=(0, 1)).ravel()
        wave *= noise.band_radius(2.0, band) / np.linalg.norm(wave)
        assert np.sqrt(wave @ inverse @ wave) == pytest.approx(2.0, rel=1e-10)


def test_a_certificate_holds_against_the_worst_shift():
    """A half-space sampled: the score at x + delta, of the certified length, is above 1/2 (alpha = 0.001)."""
    shape, generator = (1, 4, 6), torch.Generator().manual_seed(1)
    noise, w = CorrelatedGaussian.low_pass(shape, 0.3, 0.5), torch.rand(24, generator=generator)
    model = lambda batch: torch.stack([torch.zeros(len(batch)), batch.flatten(1) @ w], 1)  # noqa: E731
    normal, matrix = w.double().numpy(), everything(noise, shape)
    deviation = np.sqrt(normal @ matrix @ normal)
    x = torch.full((1, *shape), float(1.5 * deviation / normal.sum()))
    (found,) = rsfast.certify(model, x, noise, num_classes=2, n=20_000, seed=1)
    start = x.double().numpy().ravel()
    assert normal @ (start - found.radius * matrix @ normal / deviation) > 0
    assert 0.95 * 1.5 < found.radius < 1.5 * (1 + 1e-6)
    assert found.norm == "mahalanobis"


# Low-pass noise


@pytest.mark.parametrize("shape", [(9,), (10,), (2, 7), (3, 8, 8), (1, 5, 9)])
def test_low_pass(shape):
    """Each element has the variance sigma^2; the band has one eigenvalue and the rest `floor` times it."""
    noise = CorrelatedGaussian.low_pass(shape, 0.25, 0.5, floor=0.125)
    np.testing.assert_allclose(everything(noise, shape).diagonal(), 0.25, rtol=1e-12)
    inside, outside = (
        np.unique(np.asarray(noise.spectrum)[band]) for band in (frequencies(shape) <= 0.25, frequencies(shape) > 0.25)
    )
    assert outside / inside == pytest.approx([0.125], rel=1e-15)
    # At equal power it beats white noise against low frequencies, and loses against all.
    assert noise.radius_in(1.0, "l2") < 0.5 < noise.band_radius(1.0, frequencies(shape) <= 0.25)
    y = perturb(torch.zeros(1, *shape), noise, seed=1, samples=range(1 << 15)).double()
    degrees = y.numel() / 100  # no fewer independent numbers are in it: eigenvalues differ by 8, elements are correlated
    assert abs(float((y**2).mean()) / 0.25 - 1) < 5.5 * (2 / degrees) ** 0.5


def test_frequencies():
    assert frequencies((5,)).tolist() == [0, 0.2, 0.4]
    assert frequencies((7, 4)).tolist() == [0, 0.25, 0.5]
    np.testing.assert_allclose(frequencies((3, 4, 2)), np.hypot([[0], [0.25], [0.5], [0.25]], [[0, 0.5]]))
    assert frequencies((1, 2, 3, 4)).shape == (2, 3, 3)


# Errors


@pytest.mark.parametrize(
    ("spectrum", "message"),
    [
        ([], "spectrum must be an array of 1 or more axes that is not empty, got shape [0]"),
        ([1, -1e-9], "spectrum must hold numbers that are 0 or more, and finite float32, got -1e-09"),
        ([1, np.nan], "spectrum must hold numbers that are 0 or more, and finite float32, got nan"),
        ([0.0, 0.0], "spectrum must have an eigenvalue of at least 1.18e-38, got 0 as the largest"),
        (
            [1.0, 2.0**-21],
            "spectrum must have eigenvalues that are 0 or at least 2^-20 of the largest, 1, got 4.76837e-07; raise such ",
        ),
        ([[1], [2, 3]], "spectrum must be an array of numbers: "),
    ],
)
def test_wrong_spectra(spectrum, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        CorrelatedGaussian(spectrum)


@pytest.mark.parametrize(
    ("spectrum", "message"),
    [
        (np.ones((4, 4)), "spectrum must have shape [4, 3] or [3, 4, 3] for inputs of shape [3, 4, 4], got shape [4, 4]"),
        (
            np.ones((1, 4, 3)),
            "spectrum must have shape [4, 3] or [3, 4, 3] for inputs of shape [3, 4, 4], got shape [1, 4, 3]",
        ),
        (
            1 + (np.arange(12) == 3).reshape(4, 3),
            "spectrum must be symmetric, with the same eigenvalue at frequencies k and -k, got ",
        ),
        (
            1 + (np.arange(12) == 5).reshape(4, 3),
            "spectrum must be symmetric, with the same eigenvalue at frequencies k and -k, ",
        ),
    ],
)
def test_spectra_that_do_not_fit_are_refused_before_any_work(spectrum, message):
    def model(batch):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rsfast.certify(model, torch.zeros(2, 3, 4, 4), CorrelatedGaussian(spectrum), num_classes=2, n=10)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        CorrelatedGaussian(spectrum).radius_in(1.0, "volume", (3, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 4, 4), -0.1, 1.0), "cutoff must be a finite number at least 0, got -0.1"),
        (((3, 4, 4), 0.1, 0.0), "sigma must be positive, finite and a normal float32, got 0.0"),
        (((3, 4, 4), 0.1, 1.0, 1.5), "floor must be a finite number at least 0 and at most 1, got 1.5"),
        (((3, 4, 4), 0.1, 1.0, 1e-9), "floor must be 0 or from 2^-20 to 1, got 1e-09"),
        (
            ((3, 4, 4), 0.1, 1e-30),
            "sigma must give the strong band a variance that is a normal float32, got 1e-30, which gives 1.3913e-59",
        ),
        (((), 0.1, 1.0), "shape must have at least one axis with CorrelatedGaussian noise, got []"),
        (((3, 0, 4), 0.1, 1.0), "shape must hold positive ints, got (3, 0, 4)"),
        ((3, 0.1, 1.0), "shape must be a sequence of ints, the shape of an input, got 3"),
    ],
)
def test_wrong_low_passes(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        CorrelatedGaussian.low_pass(*arguments)


@pytest.mark.parametrize(
    ("band", "error", "message"),
    [
        (np.ones((4, 3)), TypeError, "band must be an array of bools, got float64"),
        (
            np.ones((4, 4), dtype=bool),
            ValueError,
            "band must be True somewhere, and have shape [4, 3], as spectrum has, got 16 ",
        ),
        (
            np.zeros((4, 3), dtype=bool),
            ValueError,
            "band must be True somewhere, and have shape [4, 3], as spectrum has, got 0 ",
        ),
    ],
)
def test_wrong_bands(band, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        CorrelatedGaussian(np.ones((4, 3))).band_radius(1.0, band)


def test_the_operator():
    """What opcheck asks of it, and a gain that does not fit."""
    x, samples = torch.rand(2, 3, 4, 5), torch.arange(4)
    gain = torch.from_numpy(CorrelatedGaussian(spectrum_of((3, 4, 5))).parameters((3, 4, 5)).shaper_tensors[0])

    how, out = ("gaussian", [1.0], [], 1, 1, None, None, None, False, "cpu"), torch.empty(4, 3, 4, 5)
    arguments = x, samples % 2, torch.arange(2), samples, *how, out

    def shaped(gain):
        return {"shaper": "spectrum", "shaper_tensors": [gain]}

    torch.library.opcheck(torch.ops.rsfast.perturb.default, arguments, shaped(gain))
    for wrong in (gain[0], gain[:, :3], gain.float(), torch.ones(2, 4, 3).double()):
        with pytest.raises((TypeError, ValueError), match=r"^shaper_tensors\[0\] must "):
            torch.ops.rsfast.perturb(*arguments, **shaped(wrong))
    with pytest.raises(ValueError, match=r"^out must have memory of its own"):
        torch.ops.rsfast.perturb(x, *[samples[:2]] * 3, *how, x, **shaped(gain))


def test_the_value_of_a_smoothed_function():
    """Of |x|^2, the trace of the covariance more, within 5.5 standard errors: 4e-8. It has no score."""
    noise = CorrelatedGaussian(spectrum_of((8,)))
    g = rsfast.smoothed(lambda x: x.square().sum(1), noise, 1 << 14, seed=1)
    value = g.value(torch.ones(8))
    assert abs(value.mean - 8 - everything(noise, (8,)).trace()) < 5.5 * value.standard_error
    with pytest.raises(TypeError, match=r"^noise must be .* for a gradient, got CorrelatedGaussian.* implemented for Corr"):
        g.gradient(torch.ones(8))
