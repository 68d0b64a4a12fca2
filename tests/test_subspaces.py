"""Smoothing by subspaces: what the classifier sees, how far it may move, and the statistics of Haar subspaces."""

import json
import pickle
import re
from fractions import Fraction
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from scipy import stats
from truth import right_of_zero

import rsfast
from rsfast import CorrelatedGaussian, Gaussian, HaarSubspaces, SubspaceGaussian, SubspaceSmoothing, noise, ops
from rsfast.noise.haar import CHARGE, best_threshold, haar_radius, kept_score, seen_share
from rsfast.ops import cpu, perturb
from rsfast.ops.registry import Backend


def orthonormal(seed, *shape):
    """Random matrices [..., k, d] with orthonormal rows."""
    *many, k, d = shape
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(*many, d, k)))[0].swapaxes(-1, -2)


PLANES = orthonormal(0, 6, 2, 12)
PLANE = orthonormal(1, 3, 12)
NOISES = {
    "smoothing": SubspaceSmoothing(PLANES),
    "gaussian": SubspaceGaussian(PLANE, 0.25),
    "haar": HaarSubspaces(0.25, k=3, d=12),
}
X = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=NOISES)
def one(request):
    return NOISES[request.param]


# What the classifier sees


def white(sigma, count, samples, input_id=0, seed=3):
    """The first numbers of Gaussian noise, float64 [samples, count]."""
    ids = torch.tensor([input_id])
    return perturb(torch.zeros(1, count), Gaussian(sigma), seed=seed, samples=samples, input_ids=ids).double().numpy()


def close(found, wanted):
    """Within the rounding to float32."""
    np.testing.assert_allclose(found.double().flatten(1).numpy(), wanted, rtol=1.2e-7, atol=1e-8)


def test_fixed_projections_show_what_they_leave():
    seen = perturb(X[:1], NOISES["smoothing"], seed=3, samples=range(6))
    close(seen, np.stack([u.T @ (u @ X[0].double().numpy().ravel()) for u in PLANES]))
    assert_same_bits(perturb(X[:1], NOISES["smoothing"], seed=9, samples=range(6), stream="user"), seen)


def test_noise_in_a_fixed_subspace():
    seen = perturb(X[1:2], NOISES["gaussian"], seed=3, samples=range(40))
    close(seen, (X[1].double().numpy().ravel() @ PLANE.T + white(0.25, 3, range(40))) @ PLANE)


def test_noise_in_haar_subspaces():
    """The rows are those of the QR decomposition of the first 36 numbers, its signs such that R has a positive diagonal."""
    seen = perturb(X[2:3], NOISES["haar"], seed=3, samples=range(40), input_ids=[5])
    drawn = white(0.25, 39, range(40), input_id=5)
    q, r = np.linalg.qr(drawn[:, :36].reshape(40, 3, 12).swapaxes(1, 2))
    w = (q * np.sign(r.diagonal(axis1=1, axis2=2))[:, None, :]).swapaxes(1, 2)
    inside = w @ X[2].double().numpy().ravel() + drawn[:, 36:]
    close(seen, (inside[:, None, :] @ w)[:, 0])


def test_every_backend_and_batch(one):
    """The same bits on this machine, whatever the backend, the order of rows, and the size of the batch."""
    count = one.evaluations or 50
    samples, rows = torch.arange(count).repeat(4), torch.arange(4).repeat_interleave(count)
    whole = perturb(X, one, seed=3, samples=samples, rows=rows)
    assert_same_bits(perturb(X, one, seed=3, samples=samples, rows=rows, backend="reference"), whole)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    assert_same_bits(perturb(X, one, seed=3, samples=samples[order], rows=rows[order]), whole[order])
    for size in (1, 3, 64):
        parts = [
            perturb(X, one, seed=3, samples=samples[start : start + size], rows=rows[start : start + size])
            for start in range(0, len(rows), size)
        ]
        assert_same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "noise", [*NOISES.values(), CorrelatedGaussian.low_pass((3, 2, 2), 0.25, 0.5)], ids=[*NOISES, "correlated"]
)
def test_rows_out_of_range_are_nan(noise, monkeypatch):
    """As with any noise where the kernel checks, on a GPU; here it is the CPU's."""

    def checking(job):
        good = (job.rows >= 0) & (job.rows < len(job.x))
        cpu.perturb(job._replace(rows=job.rows * good))
        job.out[~good] = torch.nan

    monkeypatch.setitem(ops.BACKENDS, "triton", Backend("triton", lambda: SimpleNamespace(perturb=checking)))
    rows = torch.tensor([0, 4, 2, -1, 3, 2**40])
    found = perturb(X, noise, seed=3, samples=range(6), rows=rows, clamp=(0.0, 1.0), backend="triton")
    assert torch.isnan(found[1::2]).all()
    assert_same_bits(found[::2], perturb(X, noise, seed=3, samples=range(6), rows=rows % 4, clamp=(0.0, 1.0))[::2])


def test_clamp_scale_shift_type_and_layout(one):
    options = {"seed": 3, "samples": [1], "rows": [2]}
    plain = perturb(X, one, **options)
    scale, shift = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.5, 0.25, -1.0])
    found = perturb(X, one, **options, clamp=(0.1, 0.4), scale=scale, shift=shift, dtype="bfloat16", channels_last=True)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = plain.double().clamp(*torch.tensor([0.1, 0.4]).double()) * scale.double().view(3, 1, 1) + shift.double().view(
        3, 1, 1
    )
    assert_same_bits(found, wanted.float().to(torch.bfloat16))
    out = torch.full((1, 3, 2, 2), torch.nan)
    perturb(X, one, **options, out=out)
    assert_same_bits(out, plain)
    assert perturb(X, one, seed=3, samples=[], rows=[]).shape == (0, 3, 2, 2)


def test_votes_are_invariant_where_nothing_is_seen():
    """Bit for bit for axes; and for planes that are rotated every evaluation is the same here, at this seed."""
    axes = SubspaceSmoothing(np.eye(12)[[[0, 1], [3, 4], [7, 9]]])
    delta = torch.zeros(3, 2, 2)
    delta.view(-1)[[2, 5, 6, 8, 10, 11]] = 1000.0
    assert axes.size(delta) == ops.changed(X[0], X[0] + delta, axes) == 0
    kernel = np.linalg.svd(PLANE)[2][3:]
    gaussian = SubspaceGaussian(PLANE, 0.25)
    moved = torch.from_numpy((X[0].double().numpy().ravel() + kernel[0]).astype(np.float32)).view(3, 2, 2)
    delta = moved.double().numpy() - X[0].double().numpy()
    assert gaussian.size(delta) < 1e-6 < np.linalg.norm(delta)
    model = lambda batch: batch.flatten(1)[:, :4]  # noqa: E731
    before, after = rsfast.certify(
        model, torch.stack([X[0], moved]), gaussian, num_classes=4, n=5000, seed=1, input_ids=[0, 0]
    )
    assert before.counts == after.counts
    assert before.covers(delta) == (not before.abstained)


def test_the_operator(one):
    """What opcheck asks of it, and tensors that do not fit."""
    x, samples = torch.rand(2, 12), torch.arange(4)
    noise = one.parameters((12,))
    tensors = [torch.tensor(array).contiguous() for array in noise.shaper_tensors]

    how = "gaussian", [1.0], [], 1, 1, None, None, None, False, "cpu", torch.empty(4, 12)
    arguments = x, samples % 2, torch.arange(2), samples, *how

    def shaped(shaper, scalars, tensors):
        return {"shaper": shaper, "shaper_scalars": scalars, "shaper_tensors": tensors}

    torch.library.opcheck(torch.ops.rsfast.perturb.default, arguments, shaped(noise.shaper, noise.shaper_scalars, tensors))
    with pytest.raises(ValueError, match=r"^shaper must be one of 'spectrum', "):
        torch.ops.rsfast.perturb(*arguments, **shaped("sphere", [], []))
    wrong = [[each[..., :11].contiguous()] for each in tensors] or [[]]
    with pytest.raises(ValueError, match=r"^(shaper_tensors\[0\] must have shape|shaper_scalars must hold the dimension)"):
        torch.ops.rsfast.perturb(*arguments, **shaped(noise.shaper, [12.0] * len(noise.shaper_scalars), wrong[0]))


# Sizes and parameters


def test_size_counts_what_is_not_exactly_zero():
    turned = SubspaceSmoothing(np.array([[[0.6, 0.8]], [[0.8, -0.6]]]))
    assert turned.size([0.0, 0.0]) == 0
    assert turned.size([1.0, 0.75]) == 2 - (Fraction(0.8) * 1 == Fraction(0.6) * Fraction(3, 4))  # 0.8 is not 4/5
    root = 0.5**0.5
    equal = SubspaceSmoothing(np.array([[[root, root]]]))
    assert equal.size([1.5, -1.5]) == 0  # the products cancel exactly
    assert equal.size([1.5, -1.5000000000000002]) == 1
    assert equal.size([1e-300, -1e-300]) == 1  # where products have too few digits, it counts
    rng = np.random.default_rng(5)
    for _ in range(300):
        row = orthonormal(rng.integers(1 << 30), 1, 3)
        delta = rng.choice([0, 1, -1, 0.5, 1e10, 3e-7], 3) * rng.choice([1, row[0, 0]], 3)
        exact = sum(Fraction(a) * Fraction(b) for a, b in zip(row[0], delta, strict=True))
        assert SubspaceSmoothing(row[None]).size(delta) == (exact != 0)


def test_size_of_a_projection_is_rounded_up():
    rng = np.random.default_rng(6)
    with mp.workdps(60):
        for scale in (1e-200, 1e-8, 1.0, 1e150):
            for _ in range(40):
                delta = rng.normal(size=12) * scale
                delta -= rng.choice([0, 1]) * PLANE.T @ (PLANE @ delta)  # some are orthogonal, to rounding
                exact = mp.sqrt(sum(mp.fdot(map(mp.mpf, row), map(mp.mpf, delta)) ** 2 for row in PLANE))
                found = NOISES["gaussian"].size(delta)
                assert exact <= found
                assert found <= exact * (1 + 1e-14) + 1e-13 * scale
    assert NOISES["gaussian"].size(np.zeros(12)) == 0
    assert NOISES["haar"].size([3.0, 4.0] + [0.0] * 10) == pytest.approx(5)


def test_radius_in_other_norms():
    """No perturbation within the l2 or l1 ball has a larger size, and the l2 factor is nearly 1."""
    one = NOISES["gaussian"]
    radius = one.radius_in(1.0, "l2")
    assert 1 - 1e-9 < radius < 1
    assert all(one.size(row * radius) <= 1 for row in PLANE)
    assert one.radius_in(1.0, "l1") == radius
    assert one.radius_in(1.0, "linf", shape=(3, 2, 2)) == pytest.approx(12**-0.5)
    assert NOISES["haar"].radius_in(1.0, "l1") == 1
    with pytest.raises(ValueError, match=r"^norm must be 'projections' with SubspaceSmoothing noise, got 'l2'"):
        NOISES["smoothing"].radius_in(1.0, "l2")


def test_written_and_read(one):
    read = noise.from_dict(json.loads(json.dumps(one.to_dict())))
    assert read == one == pickle.loads(pickle.dumps(one))
    assert hash(read) == hash(one)
    assert len({one, read, SubspaceSmoothing(PLANES[:5])}) == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SubspaceSmoothing(PLANES[0]), ValueError, "projections must be an array of 3 axes that is not empty"),
        (
            lambda: SubspaceSmoothing(PLANES * 1.00001),
            ValueError,
            "projections must have orthonormal rows, to within 1e-06, got",
        ),
        (lambda: SubspaceSmoothing(PLANES.swapaxes(1, 2)), ValueError, "projections must have no more rows than columns"),
        (lambda: SubspaceSmoothing(PLANES * np.nan), ValueError, "projections must hold numbers that are finite, got nan"),
        (lambda: SubspaceSmoothing("x"), TypeError, "projections must be an array of real numbers"),
        (lambda: SubspaceGaussian(PLANES, 1.0), ValueError, "projection must be an array of 2 axes"),
        (lambda: SubspaceGaussian(PLANE, 0.0), ValueError, "sigma must be positive, finite and a normal float32, got 0.0"),
        (lambda: HaarSubspaces(1.0, 0, 5), ValueError, "k must be from 1 to "),
        (lambda: HaarSubspaces(1.0, 5, 5), ValueError, "k must be from 1 to d - 1 = 4, got 5; for k = d take Gaussian(1.0)"),
        (lambda: HaarSubspaces(1.0, 1.5, 5), TypeError, "k must be an int, got 1.5"),
        (lambda: HaarSubspaces(-1.0, 1, 5), ValueError, "sigma must be positive, finite and a normal float32, got -1.0"),
        (lambda: NOISES["smoothing"].size([1.0]), ValueError, "delta must have the shape of an input that the noise takes"),
        (
            lambda: NOISES["gaussian"].size([np.inf] * 12),
            ValueError,
            "delta must hold finite numbers, got inf at place (0,)",
        ),
        (
            lambda: HaarSubspaces(1.0, 1, 5).size([np.nan] * 5),
            ValueError,
            "delta must hold finite numbers, got nan at place (0,)",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()


def test_inputs_of_another_size(one):
    what = {
        "SubspaceSmoothing": "projections must have 13 columns",
        "SubspaceGaussian": "projection must have 13 columns",
        "HaarSubspaces": "d must be 13",
    }[one.name]
    message = re.escape(f"{what}, the number of elements of an input [13], got 12")
    with pytest.raises(ValueError, match=f"^{message}$"):
        rsfast.certify(right_of_zero, torch.zeros(1, 13), one, num_classes=2)
    with pytest.raises(ValueError, match=rf"^delta must have the shape of .*, got shape \[13\]: {message}$"):
        one.size(np.zeros(13))
    for norm in (one.norm, *one.conversions):
        with pytest.raises(ValueError, match=f"^{message}$"):
            one.radius_in(1.0, norm, [13])


def test_no_lipschitz_constant():
    for one in (NOISES["gaussian"], NOISES["haar"]):
        with pytest.raises(ValueError, match=r"^lipschitz must be None with "):
            rsfast.certify(right_of_zero, X, one, num_classes=2, head=rsfast.Softmax(1.0), lipschitz=1.0)


# Haar subspaces: the law, and the radius that follows


def test_the_law_is_that_of_samples():
    """Kolmogorov-Smirnov of the length of what 4096 samples leave of a unit vector without noise: false failure 1e-6."""
    x = torch.zeros(1, 12)
    x[0, 0] = 1e6  # beside which noise of 1e-6 is nothing
    seen = perturb(x, HaarSubspaces(1e-6, k=3, d=12), seed=8, samples=range(4096)).double() / 1e6
    share = (seen**2).sum(1).numpy()
    assert stats.kstest(share, stats.beta(1.5, 4.5).cdf).pvalue > 1e-6
    angle = seen[:, 1] / (seen[:, 1:] ** 2).sum(1).sqrt()
    assert stats.kstest((angle.numpy() + 1) / 2, stats.beta(5, 5).cdf).pvalue > 1e-6  # uniform on a sphere of R^11


@pytest.mark.parametrize(("k", "d"), [(1, 2), (1, 100), (2, 3), (10, 100), (99, 100), (100, 150528)])
def test_masses_and_means_of_bins(k, d):
    """Against the distribution function by mpmath, and exact moments."""
    law = seen_share(k, d, 512)
    assert law.masses.sum() == pytest.approx(1, abs=1e-14)
    a, b = mp.mpf(k) / 2, mp.mpf(d - k) / 2
    mean = mp.beta(a + 0.5, b) / mp.beta(a, b)
    assert float((law.masses * law.means).sum() / mean) == pytest.approx(1, abs=1e-13)
    for place in (100, 256, 300, 400):
        low, high = (mp.mpf(float(edge)) ** 2 for edge in law.edges[place : place + 2])
        exact = mp.betainc(a, b, low, high, regularized=True)
        # The bins lie between angles: where these are near a right angle, edges are rounded to 8 digits of the mass.
        assert float(law.masses[place]) == pytest.approx(float(exact), rel=1e-9, abs=1e-7 if d - k == 1 else 0)
    assert np.all((law.edges[:-1] <= law.means) & (law.means <= law.edges[1:]))


def exact_kept(s, miss, c, k, d):
    """E k(T) - e^c miss by mpmath, with the density of the share in terms of the angle."""
    s, miss, c = (mp.mpf(float(value)) for value in (s, miss, c))
    weight = lambda t: mp.sin(t) ** (k - 1) * mp.cos(t) ** (d - k - 1)  # noqa: E731

    def errors(t):
        seen = s * mp.sin(t)
        return weight(t) * (mp.ncdf(c / seen - seen / 2) + mp.e**c * mp.ncdf(-c / seen - seen / 2))

    points = [0, *(mp.mpf(float(mp.asin(edge))) for edge in seen_share(k, d, 512).edges[1:-1:64].tolist()), mp.pi / 2]
    return mp.quad(errors, points) / mp.quad(weight, points) - mp.e**c * miss


@pytest.mark.parametrize(("k", "d"), [(1, 2), (2, 3), (10, 100), (39, 40)])
def test_the_kept_score_is_never_above_the_exact_one(k, d):
    """At several shifts, scores and thresholds, and within 2e-4 of it (5e-4 for one row)."""
    law = seen_share(k, d, 512)
    with mp.workdps(18):
        for s, miss, off in [
            (0.5, 0.3, 0),
            (3.0, 0.01, 0),
            (8.0, 0.01, 0.5),
            (20.0, 1e-9, 0),
            (1.0, 0.6, -0.2),
            (1e-6, 0.4999999, 0),
        ]:
            arguments = np.array([[s]]), np.array([[miss]])
            c = best_threshold(*arguments, law) + off
            found, exact = kept_score(*arguments, c, law)[0, 0], exact_kept(s, miss, c[0, 0], k, d)
            assert mp.mpf(found) - CHARGE / 16 <= exact
            assert exact - mp.mpf(found) <= (5e-4 if k == 1 else 2e-4)


def test_the_radius_of_the_formula():
    """7.515 sigma at k, d = 10, 100 and p = 0.99; others by mpmath: f(p) = 1/2 is bracketed."""
    assert HaarSubspaces(2.0, 10, 100).radius(np.array(0.99), np.array(0.01)) == pytest.approx(2 * 7.5145, rel=2e-5)
    with mp.workdps(20):
        for k, d, p in [(10, 100, 0.99), (2, 3, 0.9), (5, 40, 0.999), (39, 40, 0.6)]:
            found = float(haar_radius(np.array(p), np.array(1 - p), k, d))
            for s, sign in ((found, 1), (found * (1 + 1e-4), -1)):
                c = best_threshold(np.array([[s]]), np.array([[1 - p]]), seen_share(k, d, 512))[0, 0]
                assert sign * (exact_kept(s, 1 - p, c, k, d) - 0.5) > 0


def test_the_radius_is_monotone_and_vectorised():
    p = np.sort(np.random.default_rng(0).uniform(0.5, 1, 100))
    found = haar_radius(p, 1 - p, 10, 100)
    assert np.all(np.diff(found) >= -1e-8 * found[1:])
    one_by_one = [haar_radius(p[i : i + 1], 1 - p[i : i + 1], 10, 100)[0] for i in range(0, 100, 37)]
    np.testing.assert_allclose(found[::37], one_by_one, rtol=1e-12)
    tighter = haar_radius(p, (1 - p) / 2, 10, 100)
    assert np.all(tighter > found)
    assert np.all(found >= 0.999 * stats.norm.ppf(p))  # more than plain Gaussian noise
    both = haar_radius(np.stack([p, p]), np.stack([1 - p, (1 - p) / 2]), 10, 100)
    assert both.shape == (2, 100)
    np.testing.assert_allclose(both, [found, tighter], rtol=1e-12)


def test_the_radius_of_extreme_scores():
    assert haar_radius(np.array([0.3, 0.5]), np.array([0.4, 0.5]), 3, 9).tolist() == [0, 0]
    last, tiny = 1 - 2.0**-53, 2.0**-53
    most = haar_radius(np.array([last, last]), np.array([tiny, 5e-324]), 3, 9)
    assert np.all(np.isfinite(most))
    assert most[0] > 8
    close_to_half = haar_radius(np.array([0.5 + 1e-6]), np.array([0.5 - 1e-6]), 3, 9)
    slope = stats.norm.pdf(0) * float((seen_share(3, 9, 512).masses * seen_share(3, 9, 512).means).sum())
    assert 0.99 * 1e-6 / slope < close_to_half[0] <= 1e-6 / slope


def test_many_dimensions_are_plain_gaussian_noise_of_the_share_that_is_seen():
    k, d, p = 5000, 10_000, 0.95
    found = HaarSubspaces(0.5, k, d).radius(np.array(p), np.array(1 - p))
    assert found == pytest.approx(0.5 * stats.norm.ppf(p) * (d / k) ** 0.5, rel=2e-3)


# Attacks


def test_an_attack_on_haar_subspaces():
    """A half-space, a ball and a shell, in 8 directions at the certified radius: false failure 3e-6, besides alpha."""
    one, d = HaarSubspaces(1.0, k=4, d=6), 6
    rng = np.random.default_rng(2)
    normal = torch.from_numpy(rng.normal(size=d).astype(np.float32))
    models = {
        "half-space": lambda y: y @ normal > -1.0,
        "ball": lambda y: (y**2).sum(1) < 7.0,
        "shell": lambda y: ((y**2).sum(1) - 4).abs() < 5.0,
    }
    n = 10_000
    for name, inside in models.items():
        x = torch.zeros(1, d)
        x[0, 1] = 0.3

        def model(batch, inside=inside):
            return torch.nn.functional.one_hot(inside(batch).long(), 2).float()

        (found,) = rsfast.certify(model, x, one, num_classes=2, n=n, seed=5)
        assert found.radius > 0, name
        for number in range(8):
            direction = torch.from_numpy(rng.normal(size=d).astype(np.float32))
            if number == 0:
                direction = normal
            sign = 1 if number % 2 else -1
            moved = x + sign * direction / direction.norm() * found.radius * (1 - 1e-6)
            votes = (
                rsfast.sample(model, moved, one, num_classes=2, n=n, seed=100 + number).counts[0, found.prediction].item()
            )
            assert stats.binomtest(votes, n, 0.5, alternative="less").pvalue > 1e-7, (name, number)


def test_an_attack_in_a_fixed_subspace():
    """Random shifts of the largest size that is certified, and of any length in the kernel: false failure 1e-6."""
    rng, w = np.random.default_rng(3), PLANE
    one = SubspaceGaussian(w, 0.5)
    normal = torch.from_numpy((w.T @ [1.0, 0.5, -0.3]).astype(np.float32))
    model = lambda batch: torch.stack([-(batch @ normal), batch @ normal], 1)  # noqa: E731
    x = torch.from_numpy((0.6 * w[0] + 0.1 * w[1]).astype(np.float32))[None]
    (found,) = rsfast.certify(model, x, one, num_classes=2, n=20_000, seed=2)
    assert found.prediction == 1
    assert found.norm == "projected l2"
    for number in range(12):
        inside = rng.normal(size=3) if number else -np.array([1.0, 0.5, -0.3])
        kernel = rng.normal(size=12)
        delta = w.T @ (inside / np.linalg.norm(inside)) * found.radius + 5 * (kernel - w.T @ (w @ kernel))
        moved = torch.from_numpy((x[0].double().numpy() + delta * (1 - 1e-6)).astype(np.float32))
        assert found.covers(moved.double().numpy() - x[0].double().numpy())
        votes = rsfast.sample(model, moved[None], one, num_classes=2, n=20_000, seed=number).counts[0, 1].item()
        assert stats.binomtest(votes, 20_000, 0.5, alternative="less").pvalue > 1e-7


def test_certificates_and_predictions_of_random_kinds():
    x = torch.full((2, 12), 0.5)
    for one in (NOISES["gaussian"], NOISES["haar"]):
        options = {"num_classes": 2, "seed": 3}
        found = rsfast.certify(right_of_zero, x, one, n=2000, **options)
        for each in found:
            assert rsfast.Certificate.from_dict(json.loads(json.dumps(each.to_dict()))) == each
        early = rsfast.certify(right_of_zero, x, one, n=2000, radius=0.05, **options)
        assert all(each.n <= 2000 for each in early)
        assert len(rsfast.predict(right_of_zero, x, one, n=200, alpha=0.01, **options)) == 2
