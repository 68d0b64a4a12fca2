"""Inputs outside [0, 1] get one warning a call about the units of sigma; no others do."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rsfast
from rsfast import Gaussian, Smooth
from rsfast.cli import main

X = torch.rand((3, 3, 4, 5), generator=torch.Generator().manual_seed(0))
LOW = "from -"
OUTSIDE = {
    "0 to 255": (X * 255, r"from .* to 2\d\d"),
    "-1 to 1": (2 * X - 1, LOW),
    "standardised": ((X - 0.5) / 0.25, LOW),
    "grey": (X[:, :1] * 1.5, "from .* to 1[.]"),
    "volume": (X[..., None].repeat(1, 1, 1, 1, 3) - 0.1, LOW),
    "one of several": (torch.cat([X, -X]), LOW),
    "table": (torch.randn(3, 12), LOW),
    "features": (torch.randn(3, 64, 4, 5), LOW),
}
FINE = {"0 to 1": X, "to be trained": X.clone().requires_grad_(), "rounded": X * 1.0005 - 0.0002, "table": torch.rand(3, 12)}


def model(x):
    return x.flatten(1)[:, :2]


OPTIONS = {"num_classes": 2, "n": 20, "seed": 1}
CALLS = {
    "certify": lambda x, noise: rsfast.certify(model, x, noise, **OPTIONS),
    "certify several heads": lambda x, noise: rsfast.certify(model, x, noise, head=[rsfast.Votes()], **OPTIONS),
    "certify_each": lambda x, noise: list(rsfast.certify_each(model, x, noise, **OPTIONS)),
    "predict": lambda x, noise: rsfast.predict(model, x, noise, alpha=0.1, **OPTIONS),
    "sample": lambda x, noise: rsfast.sample(model, x, noise, **OPTIONS),
    "tune_head": lambda x, noise: rsfast.tune_head(model, x, [0] * len(x), noise, [rsfast.Votes()], **OPTIONS),
    "Smooth.certify": lambda x, noise: Smooth(model, 2, noise.sigma).certify(x[-1], 20, 20, 0.1, 10),
    "Smooth.predict": lambda x, noise: Smooth(model, 2, noise.sigma).predict(x[-1], 20, 0.1, 10),
}


def test_radii_in_other_units_are_not_said_to_be_in_these():
    class Counted(rsfast.Laplace):
        norm = "l0"

    with pytest.warns(UserWarning, match=r", and b = 0\.5 is in these units; if "):
        rsfast.predict(model, 2 * X, Counted(0.5), num_classes=2, n=20, alpha=0.1, seed=1)


def test_only_the_scale_has_units():
    noise = rsfast.HaarSubspaces(0.5, k=2, d=X[0].numel())
    with pytest.warns(UserWarning, match=r", and sigma = 0\.5 and the radii are in these units; if "):
        rsfast.predict(model, 2 * X, noise, num_classes=2, n=20, alpha=0.1, seed=1)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("scaled", [False, True])
def test_images_outside_are_warned_of(call, case, scaled):
    """Once, at the caller's line, whether the classifier normalises or not."""
    x, said = OUTSIDE[case]
    if "Smooth" in call and case == "volume":
        return  # it takes no more than three axes
    options = {"scale": 2.0, "shift": -1.0} if scaled and "Smooth" not in call else {}
    with pytest.warns(UserWarning, match=f"^inputs hold values {said}") as caught:
        CALLS[call](x, Gaussian(0.5)) if not options else rsfast.certify(model, x, Gaussian(0.5), **OPTIONS, **options)
    assert [warning.filename for warning in caught] == [__file__]
    assert "sigma = 0.5 and the radii are in these units; if " in str(caught[0].message)


@pytest.mark.parametrize("make", [list, iter, TensorDataset, lambda x: DataLoader(TensorDataset(x), batch_size=2)])
def test_the_first_of_other_inputs(make):
    for x, count in ((2 * X, 1), (torch.cat([X[:1], 2 * X]), 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            CALLS["certify"](make(x), Gaussian(0.5))
        assert len(caught) == count


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", FINE)
def test_nothing_else_is_warned_of(call, case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[call](FINE[case], Gaussian(0.5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.complex64])
def test_what_is_refused_is_not_warned_of(dtype):
    smooth = Smooth(model, 2, 0.25, seed=1)
    for x in (X[0] * 255, X[:1] * 255):
        with pytest.raises(TypeError, match=rf"^x must have dtype float32, got {dtype}"):
            smooth.certify(x.to(dtype), 10, 20, 0.01, 10)


def test_a_sigma_of_their_units():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS["certify"](X * 255, Gaussian(32.0))


def test_before_any_sampling():
    def never(x):
        raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="inputs hold values from "):
            rsfast.certify(never, X * 255, Gaussian(0.5), **OPTIONS)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(("command", "options"), [("certify", "--n0 20"), ("predict", "--mean 0.5 --std 0.25")])
@pytest.mark.parametrize("factor", [1, 255])
def test_one_line_of_the_command_line(command, options, factor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "units_nets.py").write_text("def net():\n    return lambda x: x.flatten(1)[:, :2]\n")
    np.savez("data.npz", images=factor * X.numpy())
    line = f"{command} --model units_nets:net --data data.npz --num-classes 2 --sigma 0.5 --n 20 --alpha 0.1 --out run"
    assert main([*line.split(), *options.split()]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.startswith(f"rsfast {command}: warning: inputs hold values from ") for line in warned] == [True] * (
        factor > 1
    )
