"""rsfast.compat.sound_rs beside a plain loop with Sound-RS's Certifier: the same script.

Radii are compared by the votes that they rest on (tests/peer_loops.py): of all 5 inputs one differs by more with chance
2e-7. Each class leads by 0.3 or more of 150 votes, 5 standard deviations, and seeds are fixed.
"""

import sys
from types import ModuleType

import pytest
import torch
from peer_loops import assert_same_votes, run, votes_of_radii
from torch import nn

from rsfast import Gaussian, GridGaussian, certify
from rsfast.compat.sound_rs import Certifier

SIGMA, N, ALPHA = 0.25, 2000, 0.001

SCRIPT = """
from certifier import Certifier
rows = Certifier(0.25).certify(model, dataset, bs=50, n0=128, n=1990, alpha=0.001, skip=2)
header, rows = rows[0], rows[1:]
accuracy = sum(r1 > 0.1 for _, _, r1, _ in rows) / len(rows)
"""


def model():
    """Three classes of images [1, 2, 2]: the mean, 0.65, or 1 - the mean."""
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([1.0, 0.0, -1.0])[:, None] / 4 * torch.ones(4))
        linear.bias.copy_(torch.tensor([0.0, 0.65, 1.0]))
    return nn.Sequential(nn.Flatten(), linear)


def dataset():
    """Levels of grey and their classes; the last label is wrong, and every second item is skipped."""
    levels, labels = (210, 200, 128, 50, 60), (0, 0, 1, 2, 0)
    pairs = [(torch.full((1, 2, 2), level) / 255, label) for level, label in zip(levels, labels, strict=True)]
    return [pair for pair in pairs for _ in range(2)]


def test_the_same_script():
    torch.manual_seed(1)
    names = {"model": model(), "dataset": dataset()}
    theirs, mine = (run(SCRIPT, "certifier", module, **names) for module in ("literal_sound_rs", "rsfast.compat.sound_rs"))
    assert mine["header"] == theirs["header"]
    assert [row[:2] for row in mine["rows"]] == [row[:2] for row in theirs["rows"]]
    assert [row[1] for row in mine["rows"]] == [0, 0, 1, 2, 2]
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["rows"][-1][2:] == theirs["rows"][-1][2:] == (0.0, 0.0)  # where the label is not the class
    right = [[row[2] for row in each["rows"][:-1]] for each in (mine, theirs)]
    assert_same_votes(*(votes_of_radii(radii, SIGMA, N, ALPHA) for radii in right), N)
    for one, two in zip(mine["rows"][:-1], theirs["rows"][:-1], strict=True):
        assert one[3] == pytest.approx(two[3], abs=0.06)  # 6 standard deviations of a difference of two
        assert {type(each) for each in one} == {int, float}


def test_rows():
    """What rsfast.certify proves at the same samples, with the same clamp."""
    x, labels = torch.stack([x for x, _ in dataset()]), [label for _, label in dataset()]
    _, *rows = Certifier(SIGMA, seed=3).certify(model(), dataset(), bs=100, n0=100, n=N, skip=1)
    for place, rule in ((2, "one_vs_rest"), (3, "top_two")):
        found = certify(
            model(), x, GridGaussian(SIGMA), num_classes=3, n0=100, n=N, alpha=ALPHA, rule=rule, seed=3, clamp=(-1.0, 2.0)
        )
        assert [row[place] for row in rows] == [
            each.radius if each.prediction == label else 0.0 for each, label in zip(found, labels, strict=True)
        ]


def test_abstention():
    """At a tie nothing is proved: radii 0, and the class that was selected."""
    tie = [(torch.full((1, 2, 2), 0.5).mul(255).round() / 255, 0)]
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        network[1].bias.zero_()
    _, (label, predicted, r1, r2) = Certifier(SIGMA, seed=1).certify(network, tie, n=500, skip=1)
    assert (label, r1, r2) == (0, 0.0, 0.0)
    assert predicted in (0, 1)


def test_seeds_and_ids():
    """The answers do not depend on the batch size where samples are whole batches of both, nor on what is skipped."""
    certifier = Certifier(SIGMA, seed=3)
    rows = certifier.certify(model(), dataset(), bs=64, n=640, skip=1)
    assert rows == Certifier(SIGMA, seed=3).certify(model(), dataset(), bs=128, n=640, skip=1)
    assert rows[1::3] == certifier.certify(model(), dataset(), bs=64, n=640, skip=3)[1:]
    assert rows != Certifier(SIGMA).certify(model(), dataset(), bs=64, n=640, skip=1)


def test_not_exact():
    with pytest.warns(UserWarning, match="exact is False"):
        certifier = Certifier(SIGMA, exact=False, seed=1)
    assert isinstance(certifier.noise, Gaussian)
    assert certifier.certify(model(), [(torch.full((1, 2, 2), 0.7), 0)], n=500, skip=1)[1][2] > 0


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_named_datasets(monkeypatch, name):
    """They are read by torchvision, as in the original."""
    vision, datasets, transforms = ModuleType("torchvision"), ModuleType("datasets"), ModuleType("transforms")
    vision.datasets, vision.transforms, asked = datasets, transforms, []
    transforms.ToTensor, transforms.Resize, transforms.CenterCrop = lambda: "tensor", str, str
    transforms.Compose = list

    def named(kind):
        return lambda *args, **kwargs: (asked.append((kind, args, kwargs)), dataset())[1]

    datasets.CIFAR10, datasets.CIFAR100, datasets.ImageFolder = named("cifar10"), named("cifar100"), named("imagenet")
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    found = Certifier(SIGMA, seed=3).certify(model(), name, n=640, path="folder")
    assert found == Certifier(SIGMA, seed=3).certify(model(), dataset(), n=640)
    ((kind, args, kwargs),) = asked
    assert kind == name
    if name == "imagenet":
        assert args == ("folder", ["256", "224", "tensor"])
    else:
        assert kwargs == {"root": "./data", "train": False, "download": True, "transform": "tensor"}
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"needs torchvision: pip install 'rsfast\[vision\]'"):
        Certifier(SIGMA).certify(model(), name, path="folder")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Certifier(0.0), ValueError, "sigma must be a finite number above 0"),
        (lambda: Certifier(0.001), ValueError, "sigma must be"),
        (lambda: Certifier(SIGMA, exact=1), TypeError, "exact must be a bool, got 1"),
        (lambda: Certifier(SIGMA).certify(model(), "mnist"), ValueError, "dataset must be a Dataset of items"),
        (lambda: Certifier(SIGMA).certify(model(), "imagenet"), ValueError, "'imagenet' with a path"),
        (lambda: Certifier(SIGMA).certify(model(), [(torch.full((1, 2, 2), 0.7), 0)]), ValueError, "multiples of 1/255"),
        (lambda: Certifier(SIGMA).certify(model(), dataset(), n=0), ValueError, "n must be"),
        (lambda: Certifier(SIGMA).certify(model(), dataset(), alpha=1), ValueError, "alpha must be"),
        (lambda: Certifier(SIGMA).certify(None, dataset()), TypeError, "model must be callable"),
    ],
)
def test_wrong_uses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
