"""Several radii decided at once: when an input stops, what is recorded and printed, and that files keep each one proved."""

import numpy as np
import pytest
import torch
from conftest import LINEAR_NETS, rows, sidecar

from rsfast.api import certify
from rsfast.cli import main
from rsfast.engine.plan import StoppingRule
from rsfast.noise import Gaussian
from rsfast.runs import results
from rsfast.runs.summary import round_radii
from rsfast.runs.writer import format_radius

RADII = [0.25, 0.5, 1.0]


def model(batch):
    """Two classes; the true radius of the first at x is x, if it is positive."""
    return torch.stack([batch[:, 0], -batch[:, 0]], dim=1)


@pytest.mark.parametrize(
    ("proved", "ceiling", "decided"),
    [
        (0.1, 0.2, True),  # below all
        (0.1, 0.25, False),  # the first is still possible
        (0.25, 0.49, True),  # between the first and the second
        (0.3, 0.5, False),
        (0.6, 0.99, True),
        (0.6, 1.2, False),
        (0.2, 0.4, False),
        (1.0, 9.0, True),  # beyond all
    ],
)
def test_an_input_stops_once_its_place_among_the_radii_is_known(proved, ceiling, decided):
    rule = StoppingRule(radius=RADII)
    assert rule.reached(np.array([proved]), np.array([ceiling])).tolist() == [decided]
    alone = [StoppingRule(radius=r).reached(np.array([proved]), np.array([ceiling]))[0] for r in RADII]
    assert all(alone) == decided


def test_a_list_of_one_is_its_number():
    assert StoppingRule([0.5]) == StoppingRule((0.5,)) == StoppingRule(np.array([0.5])) == StoppingRule(0.5)
    assert StoppingRule([0.5]).radius == 0.5
    assert StoppingRule(RADII).radius == StoppingRule(np.array(RADII)).radius == (0.25, 0.5, 1.0)
    assert hash(StoppingRule(RADII)) == hash(StoppingRule(tuple(RADII)))
    assert [StoppingRule(each).radii for each in (None, 0.5, RADII)] == [(), (0.5,), (0.25, 0.5, 1.0)]


@pytest.mark.parametrize(
    ("radius", "error", "message"),
    [
        ([], ValueError, r"radius must be a number, or numbers that increase, got \[\]"),
        ([0.5, 0.25], ValueError, r"radius must be a number, or numbers that increase, got \[0.5, 0.25\]"),
        ([0.5, 0.5], ValueError, r"radius must be a number, or numbers that increase, got \[0.5, 0.5\]"),
        ([0.0, 0.5], ValueError, "radius must be a finite number above 0, got 0.0"),
        ([0.5, float("inf")], ValueError, "radius must be a finite number above 0, got inf"),
        ([0.5, float("nan")], ValueError, "radius must be a finite number above 0, got nan"),
        ([0.5, "1"], TypeError, "radius must be a number, got '1'"),
        ([0.5, [1.0]], TypeError, r"radius must be a number, got \[1.0\]"),
        ("0.5 1", TypeError, "radius must be a number, got '0.5 1'"),
    ],
)
def test_radii_that_are_none(radius, error, message):
    with pytest.raises(error, match=message):
        StoppingRule(radius=radius)
    with pytest.raises(error, match=message):
        certify(model, torch.zeros(1, 1), Gaussian(0.5), num_classes=2, radius=radius)


def test_certify_decides_each_radius_as_it_does_alone():
    """No input stops before it would alone, and most as soon as the slowest of the radii is decided."""
    x = torch.linspace(0.02, 1.4, 60)[:, None]
    options = {"num_classes": 2, "n": 20_000, "seed": 5}
    together = certify(model, x, Gaussian(0.5), radius=RADII, **options)
    alone = {r: certify(model, x, Gaussian(0.5), radius=r, **options) for r in RADII}
    slowest = [max(each.n for each in of_input) for of_input in zip(*alone.values(), strict=True)]
    n = [each.n for each in together]
    assert all(all_at_once >= one for all_at_once, one in zip(n, slowest, strict=True))
    assert sum(all_at_once == one for all_at_once, one in zip(n, slowest, strict=True)) > 50
    for r, found in alone.items():
        same = [(one.radius >= r) == (each.radius >= r) for one, each in zip(found, together, strict=True)]
        assert sum(same) >= 59  # a forecast of fewer samples may give up what more would prove
    assert all(each.radius <= truth for each, truth in zip(together, x[:, 0].tolist(), strict=True))


def test_what_no_input_can_reach_is_named():
    text = r"radius is 2.5, 3.0: no input can reach it, as at sigma = 0.5 and alpha = 0.001 n = 1000"
    with pytest.warns(UserWarning, match=text):
        certify(model, torch.full((1, 1), 0.4), Gaussian(0.5), num_classes=2, radius=[0.25, 2.5, 3.0], n=1000, seed=1)


def test_a_table_keeps_each_radius_that_was_proved():
    asked = [0.1, 0.1 + 0.2, 0.7]
    assert float(format_radius(0.1 + 0.2, asked)) == 0.1 + 0.2
    assert format_radius(0.3, asked) == format_radius(0.3) == "0.2999999"
    assert format_radius(0.65, asked) == format_radius(0.65)
    for radius in np.random.default_rng(0).uniform(0, 1, 200):
        written = float(format_radius(radius, asked))
        assert written <= radius
        assert [written >= each for each in asked] == [radius >= each for each in asked]


# Run folders.

BASE = "certify --model radii_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --seed 11 --n0 20 --n 2000"


@pytest.fixture
def run(workspace, capsys):
    workspace("radii_nets", LINEAR_NETS, np.arange(6) % 4)

    def command(text):
        capsys.readouterr()
        assert main(text.split()) == 0
        return capsys.readouterr().out

    return command


def test_one_radius_is_recorded_as_a_number_and_several_as_a_list(run):
    run(f"{BASE} --out one --radius 0.4")
    assert sidecar("one")["radius"] == 0.4
    told = run(f"{BASE} --out several --radius 0.1 0.4 0.9").splitlines()
    assert sidecar("several")["radius"] == [0.1, 0.4, 0.9]
    found = results.read("several")
    shares = [f"{(found.radius >= r).mean():.1%}" for r in (0.1, 0.4, 0.9)]
    assert told[:3] == [f"{share} certified at l2 radius {r}" for share, r in zip(shares, (0.1, 0.4, 0.9), strict=True)]
    assert float(shares[2][:-1]) < float(shares[0][:-1])
    note = f"sampling stopped once each l2 radius 0.1, 0.4, 0.9 was decided: {', '.join(shares)} certified at them"
    table = run("analyze several")
    assert note in table
    assert {0.1, 0.4, 0.9} <= set(round_radii({"several": found}))


def test_runs_with_several_radii_go_on_and_are_certified_again(run, capsys):
    run(f"{BASE} --out whole --radius 0.1 0.4")
    run(f"{BASE} --out parts --radius 0.1 0.4 --resume")
    run(f"{BASE} --out parts --radius 0.1 0.4 --resume")
    assert rows("parts") == rows("whole")
    run("recertify whole --out again")
    assert rows("again") == rows("whole")
    assert sidecar("again")["radius"] == [0.1, 0.4]
    run("recertify whole --out other --alpha 0.05")
    for radius in ("0.1", "0.1 0.5"):
        with pytest.raises(SystemExit):
            main(f"{BASE} --out parts --radius {radius} --resume".split())
        assert "radius must be [0.1, 0.4], as in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(f"{BASE} --out new --radius 0.4 0.1".split())
    assert "radius must be a number, or numbers that increase, got [0.4, 0.1]" in capsys.readouterr().err
