"""rsfast.compat.art beside ART's own estimator: the same script, with the other import line.

Radii are compared by the votes that they rest on (tests/peer_loops.py): of all 24 inputs one differs by
more with chance 1e-6. Seeds are fixed, so that a class that 100 votes select is always the same.
"""

import copy
import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch
from peer_loops import assert_same_votes, run, votes_of_radii
from torch import nn

pytest.importorskip("art")

from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.postprocessor import ReverseSigmoid
from art.defences.preprocessor import SpatialSmoothing
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing as Theirs

import rsfast
import rsfast.compat.art
from rsfast.compat.art import PyTorchRandomizedSmoothing as Ours

MINE, PEER = "rsfast.compat.art", "art.estimators.certification.randomized_smoothing"
SIGMA, N, ALPHA = 0.5, 2000, 0.001


def network():
    """Three classes of images [1, 4, 4]: the mean of the left half, of the right half, or a constant."""
    linear = nn.Linear(16, 3)
    with torch.no_grad():
        left = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4)
        linear.weight.copy_(torch.stack([left, 1 - left, torch.zeros(16)]) / 8)
        linear.bias.copy_(torch.tensor([0.0, 0.0, 0.55]))
    return nn.Sequential(nn.Flatten(), linear)


def images():
    """Two images of each class, one of them nearer to the next."""
    x = np.full((6, 1, 4, 4), 0.3, dtype=np.float32)
    x[0, ..., :2], x[1, ..., :2], x[2, ..., 2:], x[3, ..., 2:] = 0.85, 0.75, 0.8, 0.7
    x[5] = 0.4
    return x


SETTINGS = {
    "loss": nn.CrossEntropyLoss(),
    "input_shape": (1, 4, 4),
    "nb_classes": 3,
    "clip_values": (0.0, 1.0),
    "device_type": "cpu",
    "sample_size": 100,
    "scale": SIGMA,
    "alpha": ALPHA,
}

SCRIPT = """
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
smoothed = PyTorchRandomizedSmoothing(model, **settings)
classes, radii = smoothed.certify(x, n=n, batch_size=500)
one_hot = smoothed.predict(x, batch_size=500)
forced = smoothed.predict(x, is_abstain=False)
"""


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), (0.25, 0.5)])
def test_the_same_script(preprocessing):
    """Also where the model takes standardised inputs: noise is in the units of x."""
    model = network()
    with torch.no_grad():  # so that the classifier of x stays the same
        subtrahend, divisor = preprocessing
        model[1].bias += model[1].weight.sum(1) * subtrahend
        model[1].weight *= divisor
    np.random.seed(3)  # noqa: NPY002  # which ART draws from
    settings = SETTINGS | {"preprocessing": preprocessing}
    both = [run(SCRIPT, PEER, module, model=model, settings=settings, x=images(), n=N) for module in (PEER, MINE)]
    theirs, mine = both
    assert mine["classes"].tolist() == theirs["classes"].tolist() == [0, 0, 1, 1, 2, 2]
    assert_same_votes(*(votes_of_radii(each["radii"], SIGMA, N, ALPHA) for each in both), N)
    for name in ("classes", "radii", "one_hot", "forced"):
        assert (mine[name].dtype, mine[name].shape) == (theirs[name].dtype, theirs[name].shape)
    assert mine["forced"].tolist() == theirs["forced"].tolist() == np.eye(3)[[0, 0, 1, 1, 2, 2]].tolist()
    for each in (mine, theirs):  # a row is 1 at the class, or all 0
        assert bool(((each["one_hot"] == each["forced"]).all(1) | (each["one_hot"] == 0).all(1)).all())


def ours(seed=7, model=None, **changed):
    return Ours(network() if model is None else model, **(SETTINGS | changed), seed=seed)


def test_abstention():
    """Where two classes tie: -1 and radius 0, a row of zeros, and a class if it is asked for."""
    x = np.full((2, 1, 4, 4), 0.8, dtype=np.float32)
    x[1, ..., :2] = 1.0
    smoothed = ours()
    classes, radii = smoothed.certify(x, n=200)
    assert classes.tolist() == [-1, 0]
    assert radii[0] == 0 < radii[1]
    assert smoothed.predict(x).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert smoothed.predict(x, is_abstain=False).sum(1).tolist() == [1, 1]


def test_what_certify_returns():
    """It is rsfast.certify with ART's formula: one class against the rest, Clopper-Pearson."""
    found = rsfast.certify(
        network(),
        torch.from_numpy(images()),
        rsfast.Gaussian(SIGMA),
        num_classes=3,
        n0=100,
        n=N,
        alpha=ALPHA,
        rule="one_vs_rest",
        seed=7,
    )
    classes, radii = ours().certify(images(), n=N)
    assert classes.tolist() == [each.prediction for each in found]
    assert radii.tolist() == [each.radius for each in found]


def test_calls_repeat():
    """The same calls give the same answers, whatever the batch size; a further call has other noise."""
    first, second = ours(), ours()
    one, two = first.certify(images(), n=N, batch_size=64), second.certify(images(), n=N, batch_size=1000)
    assert one[1].tolist() == two[1].tolist()
    assert first.certify(images(), n=N)[1].tolist() != one[1].tolist()
    assert ours(seed=None).certify(images(), n=N)[1].tolist() != one[1].tolist()
    assert (first.get_params()["seed"], ours(seed=None).seed != ours(seed=None).seed) == (7, True)
    first.set_params(seed=8)
    assert (first.seed, first.sample_size) == (8, 100)
    copied = copy.deepcopy(second)
    assert copied.certify(images(), n=N)[1].tolist() == second.certify(images(), n=N)[1].tolist()


def test_fit_and_attacks():
    """`fit` trains, and attacks find gradients: after a step towards the other class, the model says the other class."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    smoothed = ours(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=0.3), scale=0.1)
    x, y = np.repeat(images(), 10, axis=0), np.repeat([0, 0, 1, 1, 2, 2], 10)
    smoothed.fit(x, y, batch_size=30, nb_epochs=20)
    classes, radii = smoothed.certify(images(), n=500)
    assert classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert bool((radii > 0).all())
    assert model.training  # as ART's fit leaves it: certify put it back
    targets = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    assert smoothed.loss_gradient(images(), targets).shape == images().shape
    assert smoothed.loss_gradient(images(), targets, sampling=True).shape == images().shape
    for attack in (
        FastGradientMethod(smoothed, eps=0.5),
        ProjectedGradientDescent(smoothed, eps=0.5, eps_step=0.2, max_iter=3, verbose=False),
    ):
        attacked = attack.generate(images())
        assert 0.1 < np.abs(attacked - images()).max() <= 0.5 + 1e-6
        assert bool((smoothed.predict(attacked, is_abstain=False).argmax(1) != classes).any())


@pytest.mark.filterwarnings("ignore::UserWarning")  # ART warns of where noise is added
@pytest.mark.parametrize(
    "defences",
    [
        {"preprocessing_defences": SpatialSmoothing(window_size=3, channels_first=True)},
        {"postprocessing_defences": ReverseSigmoid()},
    ],
)
def test_defences_in_numpy(defences):
    """Noise comes before a defence of the input, and votes after one of the output: as in ART's `predict`."""
    model = network() if "preprocessing_defences" in defences else nn.Sequential(*network(), nn.Softmax(1))
    np.random.seed(5)  # noqa: NPY002
    both = [kind(model, **SETTINGS, **defences).certify(images(), n=N, batch_size=500) for kind in (Theirs, Ours)]
    assert both[1][0].tolist() == both[0][0].tolist()
    sure = both[0][0] >= 0
    assert sure.sum() >= 4
    assert_same_votes(*(votes_of_radii(radii[sure], SIGMA, N, ALPHA) for _, radii in both), N)


def test_other_inputs():
    """float64 is taken as ART takes it, as float32."""
    assert ours().certify(images().astype(np.float64), n=100)[1].tolist() == ours().certify(images(), n=100)[1].tolist()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: ours().certify(torch.zeros(1, 1, 4, 4), n=10), TypeError, "x must be an array"),
        (lambda: ours().certify(images(), n=0), ValueError, "n must be from 1"),
        (lambda: ours(scale=0.0).certify(images(), n=10), ValueError, "scale must be a finite number above 0, got 0.0"),
        (lambda: ours(alpha=1.5).certify(images(), n=10), ValueError, "alpha must be"),
        (lambda: ours(sample_size=0).predict(images()), ValueError, "sample_size must be from 1"),
        (lambda: ours().predict(images(), is_abstain="no"), ValueError, "is_abstain must be a bool, got 'no'"),
        (lambda: ours().predict(images(), is_abstain=0), ValueError, "is_abstain must be a bool, got 0"),
        (lambda: ours(seed=-1), ValueError, "seed must be"),
        (lambda: ours(nb_classes=4).certify(images(), n=10), ValueError, "num_classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:n is 10")
def test_wrong_uses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.slow
def test_without_art():
    """The import line says what to install."""
    code = "import sys; sys.modules['art'] = None; import rsfast.compat.art"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.strip().endswith("ImportError: rsfast.compat.art needs ART: pip install 'rsfast[art]'")


def test_doctest():
    """Its example; pytest collects those of modules that import without extras."""
    assert doctest.testmod(rsfast.compat.art, raise_on_error=True).attempted > 0
