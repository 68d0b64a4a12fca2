"""rsfast.compat.rs4a beside a plain loop with rs4a's functions (tests/literal_rs4a.py): the same script.

Bounds are compared by the votes that they rest on (tests/peer_loops.py), radii with the formula at mpmath's precision.
Of all 15 inputs one differs by more with chance 6e-7. Each class leads by 0.4 or more of 500 votes: 9 standard deviations.
"""

import math

import literal_rs4a
import mpmath as mp
import numpy as np
import pytest
import torch
from peer_loops import assert_same_votes, run, votes_of
from torch import nn

from rsfast import noise as noises
from rsfast.compat import rs4a

N, ALPHA = 2000, 0.002

SCRIPT = """
from src.everything import *
results = []
for kind in (Gaussian, Laplace, Uniform):
    noise = kind(dim=4, sigma=0.5, device="cpu")
    preds = smooth_predict_hard(model, x, noise, 500, noise_batch_size=128)
    top_cats = preds.probs.argmax(dim=1)
    prob_lb = certify_prob_lb(model, x, top_cats, 0.002, noise, 2000, noise_batch_size=128)
    radii = [noise.certify_l1(prob_lb), noise.certify_l2(prob_lb), noise.certify_linf(prob_lb)]
    soft = smooth_predict_soft(model, x, noise, 500)
    results.append((top_cats, prob_lb, radii, -preds.log_prob(y), soft.probs))
"""


def classifier():
    """Three classes: the first element, the second, or 0.4."""
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 0]]))
        linear.bias.copy_(torch.tensor([0.0, 0.0, 0.4]))
    return linear


X = torch.tensor([[1.0, 0, 0, 0], [0.8, 0, 0, 0], [0, 1.1, 0, 0], [0, 0.9, 0, 0], [-0.4, -0.4, 0, 0]])
Y = torch.tensor([0, 0, 1, 1, 2])


def test_the_same_script():
    torch.manual_seed(1)
    both = [
        run(SCRIPT, "src.everything", module, model=classifier(), x=X, y=Y) for module in ("literal_rs4a", rs4a.__name__)
    ]
    for theirs, mine in zip(*(each["results"] for each in both), strict=True):
        assert mine[0].tolist() == theirs[0].tolist() == Y.tolist()
        assert (mine[1].dtype, mine[1].shape, mine[1].device) == (theirs[1].dtype, theirs[1].shape, theirs[1].device)
        assert_same_votes(votes_of(mine[1], N, ALPHA), votes_of(theirs[1], N, ALPHA / 2), N)
        for one, two in zip(mine[2], theirs[2], strict=True):
            assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert bool((mine[3] < 1).all())  # of the labels' classes
        # A mean of 500 scores in [0, 1] has standard deviation 0.0224 or less, the difference of two 0.0317: 5.5 of them.
        assert bool(((mine[4] - theirs[4]).abs() < 0.175).all())


def test_with_noises_of_the_peer():
    """One changed line is enough: that of `src.smooth`. Their noises keep their own radii."""
    for kind in ("Gaussian", "Laplace", "Uniform"):
        theirs, mine = (getattr(module, kind)(4, sigma=0.5) for module in (literal_rs4a, rs4a))
        found = [rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, each, 500, seed=3) for each in (theirs, mine, mine.noise)]
        assert found[0].tolist() == found[1].tolist() == found[2].tolist()
        assert (mine.sigma, mine.lambd) == (0.5, theirs.lambd)


def _applied(noise):
    """lambd as the kernels apply it."""
    return mp.mpf(float(np.float32(noise.lambd)))


EXACT = {
    "Gaussian": lambda noise, p: noise.lambd * mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p) - 1),
    "Laplace": lambda noise, p: -_applied(noise) * mp.log(2 * min(1 - mp.mpf(p), p)) * mp.sign(mp.mpf(p) - 0.5),
    "Uniform": lambda noise, p: 2 * _applied(noise) * (mp.mpf(p) - 0.5),
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("adv", [1, 2, math.inf])
def test_radii(kind, adv):
    """Never above the exact ones, and near them: in the noise's norm, and where its ball holds one of another norm."""
    noise, p = getattr(rs4a, kind)(9, lambd=0.5), torch.tensor([0.0, 0.3, 0.5, 0.500001, 0.75, 0.99, 0.9999])
    own = 2 if kind == "Gaussian" else 1
    shrinks = 1 if adv <= own else {(1, 2): 3, (1, math.inf): 9, (2, math.inf): 3}[own, adv]
    radii = noise.certify(p, adv)
    assert (radii.dtype, radii.shape) == (torch.float32, p.shape)
    for q, radius in zip(p.double().tolist()[1:], radii.double().tolist()[1:], strict=True):
        exact = EXACT[kind](noise, q) / shrinks
        assert exact - 1e-6 * abs(exact) - 1e-9 <= radius <= exact
    assert radii[0] < 0
    assert noise.certify(p[5], adv).shape == ()


@pytest.mark.parametrize("kind", ["Gaussian", "Laplace", "Uniform"])
def test_radii_of_the_peer(kind):
    """rs4a's formula in the noise's own norm gives the same up to what float32 rounds."""
    p = torch.tensor([0.6, 0.9, 0.99])
    mine, theirs = (getattr(module, kind)(4, sigma=0.3) for module in (rs4a, literal_rs4a))
    for name in ("certify_l1", "certify_l2", "certify_linf"):
        assert getattr(mine, name)(p).tolist() == pytest.approx(getattr(theirs, name)(p).tolist(), rel=1e-5)


def test_legacy():
    """The approximation for Laplace noise is larger than what is proved, and said to be none."""
    noise, p = rs4a.Laplace(100, lambd=0.5), torch.tensor([0.9])
    with pytest.warns(UserWarning, match="no certificate"):
        found = noise.certify(p, math.inf, legacy=True)
    assert found.item() == pytest.approx(0.5 * 1.2815516 / 10, rel=1e-5)
    assert noise.certify(p, math.inf).item() < found.item()


def test_bounds_are_rounded_down():
    """0.99 at float32 is above some float64 bound: none is returned that is above its own."""
    bounds = rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, rs4a.Gaussian(4, 0.5), N, seed=5)
    exact = [rs4a.clopper_pearson_lower(k, N, ALPHA) for k in votes_of(bounds, N, ALPHA)]
    assert bool((bounds.double().numpy() <= exact).all())
    assert bounds.double().numpy() == pytest.approx(np.array(exact), rel=2.0**-23)


def test_seeds():
    """The same seed gives the same answers in any batch; the class is chosen on other samples than the bound."""
    noise = rs4a.Gaussian(4, 0.5)
    one = rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, noise, N, 32, seed=5)
    assert one.tolist() == rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, noise, N, 512, seed=5).tolist()
    assert one.tolist() != rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, noise, N, seed=6).tolist()
    assert one.tolist() != rs4a.certify_prob_lb(classifier(), X, Y, ALPHA, noise, N).tolist()
    shares = rs4a.smooth_predict_hard(classifier(), X, noise, N, seed=5).probs[range(5), Y]
    assert (shares * N).round().int().tolist() != votes_of(one, N, ALPHA).tolist()
    rows = [
        rs4a.certify_prob_lb(classifier(), X[[i]], Y[[i]], ALPHA, noise, N, seed=5, input_ids=[i]) for i in range(len(X))
    ]
    assert [row.item() for row in rows] == one.tolist()
    assert rows[0].shape == ()  # as there


def test_noise_for_training():
    """`sample` draws the noise that is certified, other noise each time, and passes gradients on."""
    noise, x = rs4a.Laplace(4, sigma=0.5, seed=1), torch.zeros(5000, 4, requires_grad=True)
    one, two = noise.sample(x), noise.sample(x)
    assert not torch.equal(one, two)
    assert one.std().item() == pytest.approx(0.5, abs=0.05)  # 10 standard errors
    one.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(rs4a.Laplace(4, sigma=0.5, seed=1).sample(x), one)
    assert (str(noise), noise.plotstr()) == (f"Laplace(dim=4, lambd={noise.lambd}, sigma=0.5)", "Laplace")
    assert isinstance(noise.noise, noises.Laplace)


class Pareto(literal_rs4a.Gaussian):
    pass


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: rs4a.Gaussian(4), ValueError, "sigma or lambd must be given, and not both, got None and None"),
        (lambda: rs4a.Gaussian(4, sigma=0.0), ValueError, "sigma must be a finite number above 0"),
        (lambda: rs4a.Uniform(0, 0.5), ValueError, "dim must be at least 1, got 0"),
        (lambda: rs4a.Gaussian(4, 0.5).certify(torch.tensor([0.9]), 3), ValueError, "adv must be 1, 2 or inf"),
        (lambda: rs4a.Gaussian(4, 0.5).certify(torch.tensor([1.0]), 2), ValueError, "prob_lb must hold numbers at least 0"),
        (lambda: rs4a.Gaussian(4, 0.5).certify(0.9, 2), TypeError, "prob_lb must be a tensor of floats, got 0.9"),
        (lambda: rs4a.Uniform(4, 0.5).certify(torch.tensor([0.9]), 1, legacy=True), ValueError, "legacy must be False"),
        (lambda: rs4a.smooth_predict_hard(classifier(), X, Pareto(4, 0.5)), TypeError, "noise must be one of Gaussian"),
        (
            lambda: rs4a.smooth_predict_hard(classifier(), X, rs4a.Uniform(3, 0.5)),
            ValueError,
            "dim of noise must be 4, .* got 3",
        ),
        (lambda: rs4a.smooth_predict_hard(classifier(), X, 0.5), TypeError, "noise must be one of Gaussian"),
        (lambda: rs4a.smooth_predict_hard(classifier(), X.double(), rs4a.Gaussian(4, 0.5)), TypeError, "x must have dtype"),
        (lambda: rs4a.smooth_predict_hard(classifier(), X, rs4a.Gaussian(4, 0.5), 0), ValueError, "sample_size must be"),
        (lambda: rs4a.smooth_predict_hard(5, X, rs4a.Gaussian(4, 0.5)), TypeError, "model must be callable"),
        (lambda: rs4a.smooth_predict_hard(lambda x: x.sum(1), X, rs4a.Gaussian(4, 0.5)), ValueError, "model must return"),
        (lambda: rs4a.smooth_predict_hard(lambda x: x * math.nan, X, rs4a.Gaussian(4, 0.5)), ValueError, "finite logits"),
        (lambda: rs4a.certify_prob_lb(classifier(), X, Y, 0.0, rs4a.Gaussian(4, 0.5)), ValueError, "alpha must be"),
        (lambda: rs4a.certify_prob_lb(classifier(), X, Y[:2], 0.1, rs4a.Gaussian(4, 0.5)), TypeError, "top_cats must be"),
        (lambda: rs4a.certify_prob_lb(classifier(), X, Y + 1, 0.1, rs4a.Gaussian(4, 0.5)), ValueError, "top_cats must lie"),
    ],
)
def test_wrong_uses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_too_few_samples():
    with pytest.warns(UserWarning, match="certify_prob_lb needs n of at least"):
        rs4a.certify_prob_lb(classifier(), X, Y, 0.001, rs4a.Gaussian(4, 0.5), 5)
