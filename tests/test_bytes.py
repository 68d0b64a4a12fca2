"""8-bit images, and noise on their grid: uint8 is accepted wherever inputs are, floats must lie on the grid."""

import re
import warnings

import numpy as np
import pytest
import torch
from conftest import LINEAR_NETS, assert_same_bits
from torch.utils.data import DataLoader, TensorDataset

import rsfast
from rsfast import Gaussian, GridGaussian, Mask, Run, Splitting, SubspaceSmoothing, Uniform, cli, ops
from rsfast.engine.inputs import Inputs
from rsfast.noise import Noise

NOISE = GridGaussian(0.25)
PIXELS = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8))
FLOATS = PIXELS / 255
GOOD = {"num_classes": 2, "seed": 1}


def model(batch):
    mean = batch.flatten(1).mean(1)
    return torch.stack([mean - 0.5, 0.5 - mean], 1)


def certify(inputs, noise=NOISE, **options):
    return rsfast.certify(model, inputs, noise, n=400, **GOOD | options)


@pytest.fixture(scope="module")
def certificates():
    return certify(FLOATS)


SOURCES = {
    "tensor": lambda: PIXELS,
    "list": lambda: list(PIXELS),
    "generator": lambda: (pixels for pixels in PIXELS),
    "pairs": lambda: [(pixels, 1) for pixels in PIXELS],
    "DataLoader": lambda: DataLoader(TensorDataset(PIXELS, torch.zeros(5)), batch_size=2),
    "DataLoader of inputs": lambda: DataLoader(TensorDataset(PIXELS), batch_size=None),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_may_hold_bytes(source, certificates):
    """They are certified as x / 255 is, without a warning about units."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert certify(source()) == certificates
        assert list(rsfast.certify_each(model, source(), NOISE, n=400, **GOOD)) == certificates
        found = rsfast.predict(model, source(), NOISE, n=50, alpha=0.01, **GOOD)
        assert found == rsfast.predict(model, FLOATS, NOISE, n=50, alpha=0.01, **GOOD)


def test_sample_and_perturb_take_bytes():
    options = {"n": 50, **GOOD}
    assert rsfast.sample(model, PIXELS, NOISE, **options) == rsfast.sample(model, FLOATS, NOISE, **options)
    options = {"seed": 1, "samples": range(5)}
    assert_same_bits(ops.perturb(PIXELS, NOISE, **options), ops.perturb(FLOATS, NOISE, **options))


def test_smooth_takes_bytes():
    for x in PIXELS:
        found = [rsfast.Smooth(model, 2, NOISE, seed=2).certify(each, 20, 200, 0.01, 50) for each in (x, x[None], x / 255)]
        assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match=r"^inputs\[0\] must hold multiples of 1/255"):
        rsfast.Smooth(model, 2, NOISE).predict(x / 255 + 0.001, 20, 0.01, 20)
    with pytest.raises(TypeError, match=r"^x must have dtype float32, got torch.uint8; .* GridGaussian noise"):
        rsfast.Smooth(model, 2, 0.25).predict(x, 20, 0.01, 20)


def test_inputs_are_float32_whatever_they_were():
    for source in SOURCES.values():
        with Inputs(source(), noise=NOISE) as inputs:
            assert_same_bits(torch.stack([row for _, row in inputs]), FLOATS)


def test_raw_floats_are_warned_of():
    """0 to 255 as floats are multiples of 1/255, too, but the noise is meant for [0, 1]."""
    with pytest.warns(UserWarning, match=r"^inputs hold values from .* and sigma = 0.25 and the radii are in these units"):
        certify(PIXELS.float())


# Floats


def test_a_few_roundings_are_no_matter(certificates):
    up, down = (torch.nextafter(torch.nextafter(FLOATS, torch.tensor(end)), torch.tensor(end)) for end in (9.0, -9.0))
    for x in (up, down.abs(), FLOATS.double().float(), (FLOATS * 3.0) / 3.0):
        moved = torch.where(FLOATS == 0, FLOATS, x)
        assert [each.counts for each in certify(moved)] == [each.counts for each in certificates]


def off_the_grid(distance, place=(3, 1, 2, 0)):
    x = FLOATS.clone()
    x[place] = 0.5 + distance
    return x


@pytest.mark.parametrize("distance", [0.0, 1e-3, 1 / 510 + 3e-7, 1 / 510 - 3e-7])
def test_floats_off_the_grid_are_refused(distance):
    x = off_the_grid(distance)
    value, near = f"{float(x[3, 1, 2, 0]):.9g}", round(float(x[3, 1, 2, 0]) * 255)
    message = (
        rf"^inputs\[3\] must hold multiples of 1/255 with GridGaussian noise, got {value} at \[1, 2, 0\], next to {near}"
        r"/255; pass uint8 images, or round them: images.mul\(255\).round\(\).div\(255\)$"
    )
    with pytest.raises(ValueError, match=message):
        certify(x)
    for source in (list(x), DataLoader(x, batch_size=4)):
        inputs = Inputs(source, noise=NOISE)
        assert [next(inputs)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match=message):
            next(inputs)
    assert len(certify(x.mul(255).round().div(255))) == 5
    assert len(certify(x, Gaussian(0.25))) == 5


def test_values_near_zero_must_be_zero():
    x = FLOATS.clone()
    x[0, 0, 0, 0] = 1e-9
    with pytest.raises(
        ValueError, match=r"^inputs\[0\] must hold multiples .* got 9.99999972e-10 at \[0, 0, 0\], next to 0/255"
    ):
        certify(x)
    x[0, 0, 0, 0] = -0.0
    assert len(certify(x)) == 5


def test_large_and_infinite_values():
    with pytest.raises(
        ValueError,
        match=r"^inputs\[0\] must hold values in \[-256, 256\] .*, got 257 at \[0\]; images are in \[0, 1\]: .* / 255",
    ):
        certify(torch.full((1, 3), 257.0))
    with pytest.raises(ValueError, match=r"^inputs\[0\] must be finite"):
        certify(torch.full((1, 3), torch.nan))


def test_a_smoothed_function_takes_inputs_on_the_grid():
    g = rsfast.smoothed(lambda x: x.flatten(1).sum(1), NOISE, 200, seed=1)
    value, error = g.value(FLOATS[0])
    assert abs(value - FLOATS[0].sum()) < 5 * error
    with pytest.raises(
        ValueError, match=r"^x must hold multiples of 1/255 with GridGaussian noise, got 0.5 at \[0\], next to 12"
    ):
        rsfast.smoothed(lambda x: x.sum(1), NOISE, 20).value(torch.tensor([0.5]))


# Other noise


PROPOSAL = r"got torch.uint8; convert integer images with x.float\(\) / 255, or take GridGaussian noise"


def test_other_noise_proposes_this_one():
    for call in (
        lambda: certify(PIXELS, Gaussian(0.25)),
        lambda: certify(list(PIXELS), Gaussian(0.25)),
        lambda: rsfast.sample(model, PIXELS, Gaussian(0.25), n=2, **GOOD),
        lambda: ops.perturb(PIXELS, Gaussian(0.25), seed=1, samples=range(5)),
    ):
        with pytest.raises(TypeError, match=PROPOSAL):
            call()
    with pytest.raises(TypeError, match=r"uint8; pass images.float\(\) / 255, or take GridGaussian noise$"):
        Run(model, PIXELS, Gaussian(0.25), "run", num_classes=2)


@pytest.mark.parametrize(
    ("noise", "python"),
    [
        (Gaussian(0.25), ", or take GridGaussian noise"),
        (Splitting(0.5), ", or take Splitting(lam, deterministic=True) noise"),
        (Mask(0.25), ""),
        (Uniform(0.25), ""),
        (SubspaceSmoothing(np.eye(48)[None]), ""),
    ],
    ids=lambda each: each.name if isinstance(each, Noise) else "",
)
def test_proposals_of_other_noise(noise, python):
    """First to divide, which is all where no noise like it takes bytes."""
    with pytest.raises(TypeError, match=re.escape("convert integer images with x.float() / 255" + python) + "(,|$)"):
        ops.perturb(PIXELS, noise, seed=1, samples=range(5))
    with pytest.raises(TypeError, match=re.escape(f"uint8; pass images.float() / 255{python}") + "$"):
        Run(model, PIXELS, noise, "run", num_classes=2)


# Runs


def test_runs_and_the_command_line(tmp_path, monkeypatch):
    """The same rows of bytes and of floats; certified again from the run folder; other noise takes them as x / 255."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "byte_nets.py").write_text(LINEAR_NETS)
    pixels = PIXELS[:, :, :2, :2]
    np.savez("data.npz", images=pixels.numpy(), labels=np.arange(5) % 4)
    base = "--model byte_nets:Net --data data.npz --num-classes 4 --seed 3"
    assert cli.main(f"certify {base} --noise gridgaussian:0.25 --n 300 --out command".split()) == 0
    from byte_nets import Net

    runs = [
        Run(Net(), x, NOISE, out, num_classes=4, labels=np.arange(5) % 4, seed=3)
        for x, out in ((pixels, "a"), (pixels / 255, "b"))
    ]
    found = [run.certify(n=300) for run in runs]
    assert found[0].radius.tolist() == found[1].radius.tolist() == rsfast.runs.results.read("command").radius.tolist()
    assert max(found[0].radius) > 0
    assert cli.main(["recertify", "command", "--alpha", "0.01", "--out", "again"]) == 0
    np.savez("floats.npz", images=pixels.numpy() / np.float32(255), labels=np.arange(5) % 4)
    for data in ("data", "floats"):
        command = f"certify {base} --sigma 0.25 --n 300 --out of_{data}".replace("data.npz", f"{data}.npz")
        assert cli.main(command.split()) == 0
    others = [rsfast.runs.results.read(f"of_{data}").radius.tolist() for data in ("data", "floats")]
    assert others[0] == others[1] != found[0].radius.tolist()
