"""Noises on the command line, by what their classes declare: toys with every kind of field, and mistakes."""

import copy
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from rsfast import noise
from rsfast.cli import arguments, main
from rsfast.noise import NOISES, Gaussian, Laplace, from_dict
from rsfast.noise.base import Noise
from rsfast.noise.constraints import POSITIVE, Array, Choice, Constraint, Flag, FrozenArray, Integer, Real
from rsfast.noise.text import form, forms, from_text


@dataclass(frozen=True)
class ToyGrid(Noise):
    """A number, a bool, an integer and a name; of no use but to be read."""

    lam: float
    deterministic: bool = False
    levels: int = 255
    per: str = "element"

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "lam": POSITIVE,
        "deterministic": Flag(),
        "levels": Integer(1, 65535),
        "per": Choice(("element", "patch")),
    }
    norm = "l0"


@dataclass(frozen=True)
class ToyShape(Noise):
    """An array, and one more that may be left out."""

    sigmas: FrozenArray
    fill: FrozenArray = (0.0,)

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "sigmas": Array(POSITIVE, (1, 3)),
        "fill": Array(Real(-10, 10, "from -10 to 10"), (1,)),
    }
    norm = "mahalanobis"


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for toy in (ToyGrid, ToyShape):
        monkeypatch.setitem(NOISES, toy.__name__, toy)


def test_forms():
    assert form(Gaussian) == "gaussian:SIGMA"
    assert form(ToyGrid) == "toygrid:LAM[:deterministic=true|false][:levels=LEVELS][:per=element|patch]"
    assert form(ToyShape) == "toyshape:SIGMAS.npy[:fill=FILL.npy]"
    assert forms() == " or".join(", ".join(map(form, NOISES.values())).rsplit(",", 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gaussian:0.5", Gaussian(0.5)),
        ("laplace:b=1e-3", Laplace(0.001)),
        ("toygrid:0.5", ToyGrid(0.5)),
        ("toygrid:0.5:deterministic=true", ToyGrid(0.5, deterministic=True)),
        ("toygrid:0.5:per=patch:levels=15", ToyGrid(0.5, levels=15, per="patch")),
        ("toygrid:0.5:false:15:patch", ToyGrid(0.5, False, 15, "patch")),
        ("toygrid:0.5:deterministic=True:levels=15", ToyGrid(0.5, deterministic=True, levels=15)),
        ("toygrid:levels=15:lam=2", ToyGrid(2.0, levels=15)),
        ("toyshape:0.5,0.25", ToyShape([0.5, 0.25])),
        ("toyshape:0.5:fill=-1,0,1e0", ToyShape([0.5], [-1, 0, 1])),
    ],
)
def test_texts(text, expected):
    assert from_text(text) == expected
    assert arguments.noise(text) == expected


def test_array_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sigmas = np.random.default_rng(1).uniform(0.1, 1, (3, 4, 5)).astype(np.float32)
    np.save("a.npy", sigmas)
    np.save("k=v.npy", [1, 2])
    Path("a=b").mkdir()
    np.save("a=b/s.npy", sigmas)
    assert from_text("toyshape:sigmas=a=b/s.npy") == ToyShape(sigmas)
    assert from_text("toyshape:a.npy") == ToyShape(sigmas)
    assert from_text(f"toyshape:sigmas={tmp_path}/a.npy:fill=k=v.npy") == ToyShape(sigmas, np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "noise must begin with the name of a noise: gaussian, "),
        ("Gaussian:1", ", toygrid or toyshape, got 'Gaussian:1'"),
        ("gaussian", "noise must be gaussian:SIGMA, got 'gaussian' (sigma is missing)"),
        ("gaussian:x", "noise must be gaussian:SIGMA, got 'gaussian:x' (sigma must be a number, got 'x')"),
        (
            "gaussian:1:2",
            "noise must be gaussian:SIGMA, got 'gaussian:1:2' (values must be at most 1, got 2; a colon ends each)",
        ),
        ("gaussian:1:sigma=2", "noise must be gaussian:SIGMA, got 'gaussian:1:sigma=2' (sigma must be set once)"),
        ("gaussian:s=1", "noise must be gaussian:SIGMA, got 'gaussian:s=1' (the name before = must be sigma, got 's')"),
        ("gaussian:", "(sigma must be a number, got '')"),
        ("gaussian:-1", "got 'gaussian:-1' (sigma must be positive, finite and a normal float32, got -1.0)"),
        ("toygrid:1:deterministic=yes", "(deterministic must be true or false, got 'yes')"),
        ("toygrid:1:deterministic", "(deterministic must be true or false, got 'deterministic')"),
        ("toygrid:1:levels=0", "(levels must be from 1 to 65535, got 0)"),
        ("toygrid:1:levels=1.5", "(levels must be an integer, got '1.5')"),
        ("toygrid:1:per=pixel", "(per must be one of 'element', 'patch', got 'pixel')"),
        ("toygrid:deterministic=true:1", "(deterministic must be set once)"),
        ("toyshape:", "(sigmas must be a .npy file, or numbers with commas between, got '')"),
        ("toyshape:0.1,a", "(sigmas must be a .npy file, or numbers with commas between, got '0.1,a')"),
        ("toyshape:sig.npz", "(sigmas must be a .npy file, or numbers with commas between, got 'sig.npz')"),
        ("toyshape:a:b:c/s.npy", "(values must be at most 2, got 3; a colon ends each)"),
        ("toyshape:a=b/s.npy", "(the name before = must be sigmas or fill, got 'a'; a path with = is sigmas=PATH)"),
        ("subspacesmoothing:1,0", "(projections must be a .npy file of 3 axes, got '1,0')"),
        ("toyshape:1,-1", "(sigmas must hold numbers that are positive, finite and a normal float32, got -1.0)"),
        ("toyshape:1:fill=11", "(fill must hold numbers that are from -10 to 10, got 11.0)"),
        ("toyshape:nowhere.npy", "(sigmas must be a .npy file of numbers, got 'nowhere.npy': No such file or directory)"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_text(text)


def test_files_that_are_no_arrays_of_numbers(tmp_path):
    (tmp_path / "text.npy").write_text("0.5, 0.25")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "plane.npy", np.ones((2, 2)))
    np.save(tmp_path / "none.npy", np.ones(0))
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan]))
    for name, message in {
        "text": "text.npy': ",
        "empty": "empty.npy': ",
        "objects": "objects.npy': Object arrays cannot be loaded when allow_pickle=False",
        "words": "sigmas must be an array of real numbers, got one of <U1",
        "plane": "sigmas must be an array of 1 or 3 axes that is not empty, got shape [2, 2]",
        "none": "sigmas must be an array of 1 or 3 axes that is not empty, got shape [0]",
        "nan": "sigmas must hold numbers that are positive, finite and a normal float32, got nan",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            from_text(f"toyshape:{tmp_path}/{name}.npy")


def test_the_command_says_it_in_one_line(capsys):
    needed = "certify --model m:f --data d.npz --num-classes 2 --out o"
    with pytest.raises(SystemExit):
        main([*needed.split(), "--noise", "toygrid:1:levels=0"])
    assert capsys.readouterr().err == (
        "rsfast certify: error: argument --noise: must be toygrid:LAM[:deterministic=true|false][:levels=LEVELS]"
        "[:per=element|patch], got 'toygrid:1:levels=0' (levels must be from 1 to 65535, got 0)\n"
    )
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    assert "toygrid:LAM[:deterministic=true|false]" in re.sub(r"\s+", "", capsys.readouterr().out)


# Fields in Python


@pytest.mark.parametrize("each", [ToyGrid(0.5, True, 15, "patch"), ToyShape(np.full((2, 1, 3), 0.1), [-0.0])], ids=repr)
def test_fields_are_values(each):
    """They survive JSON, pickling and copying, equal and with one hash; other values are not equal."""
    for other in (from_dict(json.loads(json.dumps(each.to_dict()))), pickle.loads(pickle.dumps(each)), copy.deepcopy(each)):
        assert other == each
        assert hash(other) == hash(each)
    assert ToyGrid(0.5) != ToyGrid(0.5, levels=15)
    assert ToyShape([0.5]) != ToyShape([[[0.5]]])
    assert ToyShape([0.5, 0.25]) != ToyShape([0.5, 0.125])


def test_an_array_is_copied_and_never_changes():
    values = np.array([0.5, 0.25])
    toy = ToyShape(values)
    values[0] = 9
    assert np.asarray(toy.sigmas).tolist() == [0.5, 0.25]
    assert np.asarray(toy.sigmas, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(toy.sigmas)[0] = 9
    with pytest.raises(ValueError, match="WRITEABLE"):
        toy.sigmas.array.setflags(write=True)
    with pytest.raises(AttributeError):
        toy.sigmas.array = values
    assert (toy.sigmas.shape, len(toy.sigmas), toy.sigmas[1]) == ((2,), 2, 0.25)
    assert toy.settings == "sigmas = 0.25 to 0.5 of shape [2], fill = 0 to 0 of shape [1]"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"deterministic": 1}, TypeError, "deterministic must be a bool, got 1"),
        ({"levels": 2.0}, TypeError, "levels must be an int, got 2.0"),
        ({"levels": True}, TypeError, "levels must be an int, got True"),
        ({"per": None}, ValueError, "per must be one of 'element', 'patch', got None"),
        ({"lam": [1]}, TypeError, r"lam must be a number, got \[1\]"),
    ],
    ids=str,
)
def test_wrong_fields(values, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ToyGrid(**{"lam": 1.0} | values)


@pytest.mark.parametrize("value", [[[1.0], [1.0, 2.0]], None, "12", [1j], [True], 0.5], ids=str)
def test_wrong_arrays(value):
    with pytest.raises((TypeError, ValueError), match=r"^sigmas must be an array of "):
        ToyShape(value)


def test_every_field_of_every_noise_is_declared():
    for cls in noise.NOISES.values():
        assert set(cls.constraints) == {field.name for field in fields(cls)}
