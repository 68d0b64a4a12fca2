"""The smallest alpha: below it every way to give one refuses, and at it what is certified is finite and smaller."""

import pytest
import torch

import rsfast
from rsfast import ClippedLogits, Gaussian, Smooth, Softmax, Votes, cli
from rsfast.stats import prediction, proof
from rsfast.stats.common import SMALLEST_ALPHA
from rsfast.stats.rules import CertificationSpec

NOISE = Gaussian(0.25)
INPUTS = torch.tensor([[5.0], [0.1]])
OPTIONS = {"num_classes": 3, "n": 500, "seed": 1}


def model(x):
    return torch.stack([x[:, 0], -x[:, 0], -1 - x[:, 0]], dim=1)


def tally(stream):
    return rsfast.sample(model, INPUTS, NOISE, stream=stream, **OPTIONS)


WAYS = {
    "certify": lambda alpha: rsfast.certify(model, INPUTS, NOISE, alpha=alpha, **OPTIONS),
    "certify_each": lambda alpha: rsfast.certify_each(model, INPUTS, NOISE, alpha=alpha, **OPTIONS),
    "predict": lambda alpha: rsfast.predict(model, INPUTS, NOISE, alpha=alpha, **OPTIONS),
    "tune_head": lambda alpha: rsfast.tune_head(model, INPUTS, [0, 0], NOISE, [Votes()], alpha=alpha, **OPTIONS),
    "certificates": lambda alpha: rsfast.certificates(tally("selection"), tally("estimation"), NOISE, alpha=alpha),
    "predictions": lambda alpha: rsfast.predictions(tally("estimation"), alpha),
    "Smooth.certify": lambda alpha: Smooth(model, 3, 0.25).certify(INPUTS[0], 10, 500, alpha, 100),
    "Smooth.predict": lambda alpha: Smooth(model, 3, 0.25).predict(INPUTS[0], 500, alpha, 100),
    "CertificationSpec": lambda alpha: CertificationSpec(NOISE, alpha),
    "smallest_certifiable_n": proof.smallest_certifiable_n,
    "smallest_predictable_n": prediction.smallest_predictable_n,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_below_the_smallest_it_is_refused(way):
    for alpha in (9e-301, 1e-310, 5e-324):
        with pytest.raises(ValueError, match=f"^alpha must be at least 1e-300, got {alpha!r}"):
            way(alpha)


@pytest.mark.parametrize("command", ["certify", "predict"])
def test_the_command_line_refuses_it(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(f"{command} --model m:f --data d --num-classes 2 --sigma 1 --out out --alpha 1e-305".split())
    assert stopped.value.code == 2
    assert f"rsfast {command}: error: alpha must be at least 1e-300, got 1e-305; " in capsys.readouterr().err


def test_heads_share_it():
    with pytest.raises(ValueError, match="alpha must be at least 1e-300, got 5e-301"):
        rsfast.certify(model, INPUTS, NOISE, head=[Votes(), Softmax()], alpha=1e-300, **OPTIONS)


@pytest.mark.filterwarnings("ignore:inputs hold values")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "one_vs_rest"},
        {"rule": "bonferroni"},
        {"rule": "class_partitioning"},
        {"bound": "randomized_clopper_pearson"},
        {"bound": "hoeffding"},
        {"bound": "betting"},
        {"radius": 0.1},
        {"rtol": 0.1},
        {"radius": 0.1, "head": Softmax(0.5)},
        {"head": Softmax(0.5), "bound": "empirical_bernstein"},
        {"head": ClippedLogits(-1, 1)},
    ],
    ids=str,
)
def test_at_the_smallest_certificates_are_finite(options):
    def radius(alpha):
        found = rsfast.certify(model, INPUTS[:1], NOISE, alpha=alpha, **{**OPTIONS, "n": 20_000}, **options)
        return found[0].radius

    least = radius(SMALLEST_ALPHA)
    assert 0 < least < float("inf")
    if "radius" not in options:  # which stops as soon as it is proved
        assert least < radius(1e-100) < radius(0.001)
