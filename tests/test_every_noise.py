"""What every noise must do to be one: a row in truth.py's CASES is checked in Python, in files and through all commands."""

import copy
import json
import math
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows, sidecar
from truth import CASES

import rsfast
from rsfast import cli
from rsfast.noise import DRAWS, NOISES, NORMS, from_dict, radius_label
from rsfast.noise.base import Noise
from rsfast.noise.constraints import Array, Choice, Flag, FrozenArray, Integer, Real
from rsfast.noise.text import form, from_text
from rsfast.ops import BACKENDS, _cpu
from rsfast.runs import results

ALPHA = 0.01
ON_CPU = [name for name, backend in BACKENDS.items() if not backend.unavailable_reason(torch.device("cpu"))]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def some_inputs(case):
    return torch.from_numpy(case.input_of(np.array([0.3, 0.5, 0.7, 0.9])))


def settings(case, **more):
    """Settings of a certificate; deterministic noise leaves no choice."""
    return more | ({"n0": 50, "n": 400, "alpha": ALPHA} if case.noise.evaluations is None else {})


def certified(case, **options):
    found = rsfast.certify(case.model, some_inputs(case), case.noise, num_classes=2, seed=3, **settings(case, **options))
    assert any(each.radius > 0 for each in found)  # or it would be no test
    return found


def test_the_registry_is_what_the_kernels_have():
    assert set(_cpu.draws()) == set(DRAWS) == {cls.draw.name for cls in NOISES.values()}


def test_an_unknown_noise_is_told_of_those_that_are_known():
    with pytest.raises(ValueError, match=rf"^noise must be one of {', '.join(map(repr, NOISES))}, got 'Cauchy'$"):
        from_dict({"name": "Cauchy", "b": 1.0})
    with pytest.raises(TypeError, match=r"^data must be a dict, as Noise.to_dict returns one, got 'Cauchy'$"):
        from_dict("Cauchy")


# The object


def test_it_is_a_value(case):
    """Read from JSON, unpickled or copied it is equal, with one hash."""
    noise = case.noise
    for again in (
        from_dict(json.loads(json.dumps(noise.to_dict()))),
        pickle.loads(pickle.dumps(noise)),
        copy.deepcopy(noise),
    ):
        assert again == noise
        assert hash(again) == hash(noise)
        assert again.to_dict() == noise.to_dict()


def test_what_it_declares(case):
    noise, shape = case.noise, tuple(some_inputs(case).shape[1:])
    assert NOISES[noise.name] is type(noise)
    assert DRAWS[noise.draw.name] is noise.draw
    assert set(noise.constraints) == {field.name for field in fields(noise)}
    assert noise.norm in NORMS
    assert noise.norm in ("l1", "l2", "linf") or noise.norm_fields  # or runs of two ellipsoids could be compared
    assert set(noise.norm_fields) <= set(noise.constraints)
    noise.parameters(shape).check()
    assert noise.scale > 0
    assert noise.largest_input > 0
    assert all(f"{name} = " in noise.settings for name in noise.constraints)


def wrong_values(constraint):
    """Values that a constraint refuses, and the error."""
    match constraint:
        case Real(low, high):
            beyond = [
                value
                for value in (np.nextafter(low, -np.inf), np.nextafter(high, np.inf), 10**400)
                if value not in (low, high)
            ]
            return [
                (float("nan"), ValueError),
                *((each, ValueError) for each in beyond),
                ("1", TypeError),
                (True, TypeError),
            ]
        case Integer(low, high):
            return [(low - 1, ValueError), (high + 1, ValueError), (low + 0.5, TypeError), (True, TypeError)]
        case Flag():
            return [(1, TypeError), ("true", TypeError)]
        case Choice():
            return [("none of these", ValueError), (None, ValueError)]
        case Array():
            return [([], ValueError), ([float("nan")], ValueError), (["1"], TypeError), ([[1.0], [1.0, 2.0]], TypeError)]


def test_it_refuses_wrong_values_by_name(case):
    for name, constraint in case.noise.constraints.items():
        for value, error in wrong_values(constraint):
            with pytest.raises(error, match=rf"^{name} must "):
                replace(case.noise, **{name: value})


def texts(noise, folder):
    """The noise's fields as the command line takes them; arrays become files."""
    values = {each.name: getattr(noise, each.name) for each in fields(noise)}
    for name, value in values.items():
        if isinstance(value, FrozenArray):
            np.save(folder / f"{name}.npy", value.array)
            values[name] = f"{folder}/{name}.npy"
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def test_its_text(case, tmp_path):
    """What the command line takes, by place and by name."""
    name, values = case.noise.name.lower(), texts(case.noise, tmp_path)
    assert from_text(":".join([name, *values.values()])) == case.noise
    assert from_text(":".join([name, *(f"{key}={value}" for key, value in values.items())])) == case.noise
    assert form(type(case.noise)).startswith(name)
    with pytest.raises(ValueError, match=re.escape(f"noise must be {form(type(case.noise))}, got '{name}:wrong=1' (")):
        from_text(f"{name}:wrong=1")


# Certificates


def test_certificates_are_written_and_read(case):
    for found in certified(case):
        assert found.norm == case.noise.norm
        assert found.noise == case.noise
        again = rsfast.Certificate.from_dict(json.loads(json.dumps(found.to_dict())))
        assert again == found
        assert hash(again) == hash(found)


def test_radii_in_other_norms(case):
    shape = tuple(some_inputs(case).shape[1:])
    for found in certified(case):
        assert found.radius_in(found.norm) == found.radius
        for norm in case.noise.conversions:
            assert 0 <= found.radius_in(norm, shape) < math.inf
        for norm in {"l0", "l1", "l2", "linf", "mahalanobis", "volume", ""} - {found.norm, *case.noise.conversions}:
            with pytest.raises(
                ValueError, match=rf"^norm must be .*'{found.norm}'.* with {case.noise.name} noise, got '{norm}'$"
            ):
                found.radius_in(norm, shape)
    assert replace(found, radius=0.0, prediction=rsfast.ABSTAIN).radius_in(found.norm) == 0


def test_backends_agree(case):
    """Those that run here: certificates, classes and counts, to the bit."""
    assert {"reference", "cpu"} <= set(ON_CPU)

    def found(backend):
        options = {"num_classes": 2, "seed": 3, "backend": backend}
        few = settings(case, **options)
        n = {name: value for name, value in few.items() if name != "n0"}
        labels = rsfast.predict(case.model, some_inputs(case), case.noise, **n)
        tally = rsfast.sample(case.model, some_inputs(case), case.noise, n=case.noise.evaluations or 60, **options)
        certificates = rsfast.certify(case.model, some_inputs(case), case.noise, **few)
        return [replace(each, backend="") for each in certificates], labels, tally.counts.tolist(), tally.provenance

    first, *others = map(found, ON_CPU)
    assert all(other == first for other in others)
    assert set(first[1]) <= {1, rsfast.ABSTAIN}
    assert 1 in first[1]


def test_tallies(case, tmp_path):
    """Drawn in two parts, added, written and read, certified; refused with another noise."""
    options, total = {"num_classes": 2, "seed": 3}, case.noise.evaluations or 400
    x, part = some_inputs(case), total // 3
    first = rsfast.sample(case.model, x, case.noise, n=part, **options)
    tally = first + rsfast.sample(case.model, x, case.noise, n=total - part, start=part, **options)
    assert tally == rsfast.sample(case.model, x, case.noise, n=total, **options)
    assert tally.provenance.noise == case.noise
    tally.save(tmp_path / "tally.safetensors")
    read = rsfast.Tally.load(tmp_path / "tally.safetensors")
    assert read == tally
    assert read.provenance == tally.provenance
    if case.noise.evaluations is not None:
        return
    selection = rsfast.sample(case.model, x, case.noise, n=50, stream="selection", **options)
    found = rsfast.certificates(selection, read, case.noise, alpha=ALPHA)
    assert [each.radius for each in found] == [each.radius for each in certified(case)]
    with pytest.raises(ValueError, match="noise"):
        rsfast.certificates(selection, read, other_noise(case.noise), alpha=ALPHA)


def other_noise(noise: Noise) -> Noise:
    return next(other.noise for other in CASES.values() if other.noise != noise)


def test_smooth(case):
    """The class of an existing loop gives what `certify` gives, or refuses noise that is not random."""
    if case.noise.evaluations is not None:
        with pytest.raises(ValueError, match="sigma must be random noise"):
            rsfast.Smooth(case.model, 2, case.noise)
        return
    for x in some_inputs(case):
        options = settings(case, rule="one_vs_rest", input_ids=[0])  # the only rule of that loop
        [expected] = rsfast.certify(case.model, x[None], case.noise, num_classes=2, seed=3, **options)
        smooth = rsfast.Smooth(case.model, 2, case.noise, seed=3)
        assert smooth.noise == case.noise
        assert smooth.certify(x, 50, 400, ALPHA, 100) == tuple(expected)


# Files and commands


@pytest.fixture
def command(case, tmp_path, monkeypatch):
    """A function that runs a command in a new directory, where data.npz has inputs; BASE stands for options of the case."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"truth_model_{[*CASES.values()].index(case)}"
    Path(f"{module}.py").write_text(
        f"import truth\n\ndef make():\n    return [*truth.CASES.values()][{module[12:]}].model\n"
    )
    np.savez("data.npz", images=some_inputs(case).numpy(), labels=np.ones(4, dtype=np.int64))
    noise = ":".join([case.noise.name.lower(), *texts(case.noise, tmp_path).values()])
    samples = f"--n 400 --alpha {ALPHA}" if case.noise.evaluations is None else ""
    base = f"--model {module}:make --data data.npz --num-classes 2 --seed 3 --batch-size 100 --noise {noise} {samples}"

    def run(text):
        assert cli.main(text.replace("BASE", base).split()) == 0

    return run


def test_a_run(command, case, capsys):
    """Written, read, certified again, in two shards merged; and the norm is in the sidecar, table, log and summary."""
    random = case.noise.evaluations is None
    first = "--n0 50" if random else ""
    command(f"certify BASE {first} --out run --log-json log.jsonl")
    assert f"average certified {radius_label(case.noise.norm)} " in capsys.readouterr().out
    assert json.loads(Path("log.jsonl").read_text().splitlines()[0])["norm"] == case.noise.norm
    written = sidecar("run")
    assert from_dict(written["noise"]) == case.noise
    assert written["norm"] == case.noise.norm
    found = results.read("run")
    assert found.norm == case.noise.norm
    expected = certified(case)
    assert found.predict.tolist() == [each.prediction for each in expected]
    assert found.radius == pytest.approx([each.radius for each in expected], rel=1e-6)

    command(f"recertify run --out again {f'--alpha {ALPHA / 10}' if random else ''}")
    again = results.read("again")
    if random:
        assert (again.radius <= found.radius).all()
    else:
        assert rows("again") == rows("run")
    command(f"certify BASE {first} --end 2 --out a")
    command(f"certify BASE {first} --start 2 --out b")
    command("merge a b --out merged")
    assert rows("merged") == rows("run")
    capsys.readouterr()

    command("predict BASE --out labels")
    command("analyze run merged labels")
    header, _, *lines, _ = f"{capsys.readouterr().out}\n".partition("run  ")[2].splitlines()
    assert "norm" in header
    assert all(f"  {case.noise.norm}  " in line for line in lines[:2])
    if case.noise.name != "Gaussian":
        assert all(f"  {case.noise.name}, {case.noise.settings}  " in line for line in lines)


def test_the_plot_names_the_norm(command, case, figures):
    command("certify BASE --out run")
    command("plot run --out plot.svg")
    (figure,) = figures
    assert figure.axes[0].get_xlabel() == radius_label(case.noise.norm, unit=True)
