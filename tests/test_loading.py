"""What the command line is given by name: a file or a model that will not do is one line, and leaves no run folder."""

import io
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import integers

import rsfast
from rsfast import cli
from rsfast.runs import layout as run_folder

NETS = """
import sys
import torch
from torch import nn
import rsfast

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def wrapped():
    return nn.DataParallel(net())

def key():
    return {}["resnet"]

def deeper():
    def attribute():
        return None.weight
    return attribute()

def in_torch():
    return nn.Linear("12", 3)

def in_rsfast():
    return rsfast.Gaussian(-1)

def asserts():
    assert net is None, "no such net"

def stops():
    sys.exit("no weights here")

class Aborted(BaseException):
    pass

def aborts():
    raise Aborted("no GPU")

def recurses():
    return recurses()

def imports():
    import no_such_module_either

def lines():
    raise OSError("first\\nsecond")

def needs(width, *, depth):
    return net()

def number():
    return 3

def nothing():
    net()

def kind():
    return nn.ReLU

class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error

def forward(error):
    return lambda: Fails(error)

index, value, name = forward(IndexError("out of range")), forward(ValueError("bad")), forward(KeyError("features"))
failed, runtime = forward(AssertionError()), forward(RuntimeError("shapes"))

def library():
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 6)), nn.BatchNorm2d(2))

def image():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))

def exported():
    return torch.export.export(net(), (torch.zeros(2, 12),), dynamic_shapes=({0: torch.export.Dim("b")},)).module()

instance = net()
"""
BASE = "--num-classes 3 --sigma 0.5 --seed 1 --n 50 --out out"


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    np.savez("data.npz", images=images())
    return tmp_path


def images(count=4):
    return np.random.default_rng(3).random((count, 12), dtype=np.float32)


def predict(model="nets:net", data="data.npz", *more):
    return cli.main(["predict", *BASE.split(), "--model", model, "--data", data, *more])


def fails(capsys, *arguments):
    """What stands on the one line, after the command's name."""
    with pytest.raises(SystemExit) as stopped:
        predict(*arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"rsfast predict: error: [^\n]+\n", said.err)
    assert not Path("out").exists()
    return said.err.removeprefix("rsfast predict: error: ").removesuffix("\n")


def line(text):
    """Where in nets.py this stands."""
    return f"nets.py, line {NETS[: NETS.index(text)].count(chr(10)) + 1}: "


def hostile(header, data=b"", compression=zipfile.ZIP_STORED):
    packed = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("images.npy", packed)
    return file.getvalue()


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def damaged(place, value):
    """An archive with other bytes at a place counted from its directory."""
    whole = bytearray(saved(images=images()))
    at = whole.index(b"PK\1\2") + place
    whole[at : at + len(value)] = value
    return bytes(whole)


DECLARED = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
DATA = {
    "empty": (b"", "data.npz is not an .npz file"),
    "text": (b"images", "data.npz is not an .npz file"),
    "an .npy file": (hostile(DECLARED % b"(1, 12)")[30 + 10 :], "data.npz"),
    "a page": (b"<!DOCTYPE html>\r\n<html>", "; it begins with '<!DOCTYPE html> <html>', so it is text"),
    "float64": (saved(images=images().astype("f8")), "must be float32 or uint8, got float64; save images.astype('float32')"),
    "pixels": (
        saved(images=np.ones((4, 12), "i8")),
        "images must be float32 or uint8, got int64; save pixels from 0 to 255 as uint8, and others as float32: images.as",
    ),
    "pixels under the other name": (
        saved(x=np.ones((4, 12), "u2")),
        "data.npz: x must be float32 or uint8, got uint16; save",
    ),
    "other names": (
        saved(arr_0=images(), arr_1=[0] * 4),
        "data.npz must hold images (or x), and may hold labels (or y), got arr_0, arr_1; name them so",
    ),
    "many names": (saved(**{f"a{place}": [0] for place in range(99)}), "a6, a7, and 91 more; name them so"),
    "bools as labels": (saved(x=images(), y=np.ones(4, bool)), "; save y.reshape(-1).astype('int64')"),
    "cut off": (saved(images=images())[:200], "data.npz is not an .npz file"),
    "cut in the directory": (saved(images=images())[:-4], "data.npz is not an .npz file"),
    "encrypted": (damaged(8, b"\1"), "data.npz: images.npy: RuntimeError: "),
    "compressed in an unknown way": (damaged(10, b"\x63"), "data.npz: images.npy: NotImplementedError: "),
    "not deflated": (damaged(10, b"\x08"), "data.npz: images.npy: "),
    "a size of another member": (
        damaged(24, b"\xff\xff\xff\x7f"),
        "data.npz: images.npy: its header declares float32 [4, 12]",
    ),
    "10^15 floats": (hostile(DECLARED % b"(10000, 100000000000)"), "data.npz: images.npy: its header declares"),
    "nested": (hostile(b"(" * 9000), "data.npz: images.npy: "),
    "objects": (saved(images=np.array([[{}]])), "data.npz: images.npy: it must hold numbers, got Python objects"),
    "labels of objects": (saved(x=images(), y=np.array([{}] * 4)), "data.npz: y.npy: it must hold numbers"),
    "structured": (
        saved(images=np.zeros((4, 2), "f4,f4")),
        "--data data.npz: images must be float32 or uint8, got [('f0', '<f4')",
    ),
    "both names": (saved(images=images(), x=images()), "data.npz must hold images or x, got both; leave one out"),
    "both labels": (saved(x=images(), y=[0] * 4, labels=[0] * 4), "data.npz must hold labels or y, got both"),
    "no images": (
        saved(images=np.zeros((0, 12), "f4")),
        "--data data.npz: images must be [N, ...] and not empty, got [0, 12]",
    ),
    "images of nothing": (
        saved(images=np.zeros((4, 0), "f4")),
        "--data data.npz: images must be [N, ...] and not empty, got [4, 0]",
    ),
    "one number": (saved(images=np.float32(1)), "--data data.npz: images must be [N, ...] and not empty, got []"),
    "text as images": (saved(images=np.array([["a"]])), "--data data.npz: images must be float32 or uint8, got <U1"),
    "float16": (saved(images=images().astype("f2")), "--data data.npz: images must be float32 or uint8, got float16"),
    "labels as a column": (
        saved(x=images(), y=np.zeros((4, 1), int)),
        "must be integers [4], got int64 [4, 1]; save y.reshape(-1).astype('int64')",
    ),
    "labels as floats": (saved(x=images(), y=np.ones(4)), "; save y.reshape(-1).astype('int64')"),
    "one-hot labels": (saved(x=images(), y=np.eye(4)[:, :3]), "; of one-hot labels or scores save y.argmax(1)"),
    "halves as labels": (saved(x=images(), y=np.full(4, 0.5)), "--data data.npz: y must be integers [4], got float64 [4]"),
    "labels of others": (saved(x=images(), y=np.zeros(5, int)), "--data data.npz: y must be integers [4], got int64 [5]"),
    "labels unknown": (saved(x=images(), y=np.full(4, -1)), "got -1 to -1"),
}


@pytest.mark.parametrize(("data", "message"), DATA.values(), ids=DATA)
def test_data_that_will_not_do(capsys, data, message):
    Path("data.npz").write_bytes(data)
    said = fails(capsys)
    assert "--data data.npz" in said
    assert message in said
    assert not said.endswith("'int64')") or "save" in message


def test_labels_without_a_remedy_get_none(capsys):
    for name in ("halves as labels", "labels of others"):
        Path("data.npz").write_bytes(DATA[name][0])
        assert "save" not in fails(capsys)


@pytest.mark.parametrize(
    ("option", "of_a_folder"),
    [("--data", "in it or in class folders, got nothing"), ("--weights", "Is a directory: 'folder'")],
)
def test_what_is_no_file(capsys, option, of_a_folder):
    os.mkfifo("fifo")
    os.mkdir("folder")
    for path, message in (
        ("fifo", "must be a regular file, got a FIFO"),
        ("/dev/zero", "must be a regular file, got a device"),
        ("folder", of_a_folder),
        ("missing", "No such file or directory: 'missing'"),
    ):
        said = fails(capsys, "nets:net", "data.npz", option, path)
        assert said.startswith(f"{option} {path}")
        assert said.endswith(message)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.astype(">f4"), np.asfortranarray, lambda x: np.asfortranarray(x.astype(">f4"))],
    ids=["big-endian", "by columns", "both"],
)
def test_images_in_another_order_are_the_same_images(change):
    predict()
    np.savez_compressed("changed.npz", x=change(images()), y=np.array([0, 1, 2, 0], ">i4"))
    predict("nets:net", "changed.npz", "--out", "other")
    plain, changed = (run_folder.read_sidecar(Path(folder, "results.json")) for folder in ("out", "other"))
    assert plain["first_logits"] == changed["first_logits"]
    assert integers("out") == integers("other")
    assert [row.split("\t")[1] for row in Path("other/results.tsv").read_text().splitlines()[1:]] == ["0", "1", "2", "0"]


WEIGHTS = {
    "empty": (b"", "--weights w.pt must hold a state_dict, got an empty file"),
    "text": (b"weights", "--weights w.pt is damaged or holds more than tensors"),
    "a header without end": (struct.pack("<Q", 1 << 62) + b"{}", "--weights w.pt is damaged or holds more than tensors"),
    "arrays": (saved(images=images()), "--weights w.pt is damaged or holds more than tensors"),
    "code": (b"cos\nmkdir\n(S'made'\ntR.", "--weights w.pt "),
}


@pytest.mark.parametrize(("data", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_will_not_do(capsys, data, message):
    Path("w.pt").write_bytes(data)
    assert message in fails(capsys, "nets:net", "data.npz", "--weights", "w.pt")
    assert not Path("made").exists()


def test_weights_of_a_checkpoint_are_said_in_one_line(capsys):
    torch.manual_seed(5)
    state = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).state_dict()
    torch.save({"net": {f"module.{name}": value for name, value in state.items()}, "epoch": 7}, "w.pt")
    for model in ("net", "wrapped"):
        predict(f"nets:{model}", "data.npz", "--weights", "w.pt", "--out", model)
        said = "--weights w.pt: took its entry net"
        said += ", read module.1.weight as 1.weight, and 1 more names so" if model == "net" else ""
        assert capsys.readouterr().err == f"rsfast predict: warning: {said}\n"
    counts = [integers(folder) for folder in ("net", "wrapped")]
    assert counts[0] == counts[1]
    predict()
    assert integers("out") != counts[0]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("key", line('{}["resnet"]') + "KeyError: 'resnet'"),
        ("deeper", line("return None.weight") + "AttributeError: 'NoneType' object has no attribute 'weight'"),
        ("in_torch", line('nn.Linear("12"') + "TypeError: "),
        ("in_rsfast", line("rsfast.Gaussian(-1)") + "ValueError: sigma "),
        ("asserts", line("assert net") + "AssertionError: no such net"),
        ("stops", line("sys.exit") + "SystemExit: no weights here"),
        ("aborts", line('raise Aborted("no GPU")') + "Aborted: no GPU"),
        ("recurses", line("return recurses()") + "RecursionError: "),
        ("imports", line("import no_such") + "ModuleNotFoundError: No module named 'no_such_module_either'"),
        ("lines", line("raise OSError") + "OSError: first second"),
        (
            "needs",
            "TypeError: needs() missing 1 required positional argument: 'width'; it must be a function without arguments "
            "that returns the model",
        ),
        ("instance", "; it must be a function without arguments that returns the model"),
        ("absent", "AttributeError: module 'nets' has no attribute 'absent'; it came from {cwd}/nets.py"),
        ("number", "must return a model, callable on a batch, got 3"),
        ("nothing", "must return a model, callable on a batch, got None"),
        ("kind", "must return a model, callable on a batch, got the class ReLU"),
        ("index", "fails on a batch [1, 12] of float32: " + line("raise self.error") + "IndexError: out of range"),
        ("value", "fails on a batch [1, 12] of float32: " + line("raise self.error") + "ValueError: bad"),
        ("name", "fails on a batch [1, 12] of float32: " + line("raise self.error") + "KeyError: 'features'"),
        ("failed", "fails on a batch [1, 12] of float32: " + line("raise self.error") + "AssertionError: "),
        ("runtime", "fails on a batch [1, 12] of float32: " + line("raise self.error") + "RuntimeError: shapes"),
        ("library", "fails on a batch [1, 12] of float32: ValueError: expected 4D input (got 3D input)"),
    ],
)
def test_mistakes_in_a_model_name_the_line(capsys, factory, message):
    said = fails(capsys, f"nets:{factory}")
    assert said.startswith((f"model nets:{factory}", f"--model nets:{factory}"))
    assert message.replace("{cwd}", str(Path.cwd())).rstrip() in said


def test_images_without_a_batch_axis_are_hinted_at(capsys):
    """One image [C, H, W] in --data is taken as C images [H, W]."""
    np.savez("data.npz", images=np.zeros((3, 8, 8), dtype=np.float32))
    assert fails(capsys, "nets:image").endswith("; one image [C, H, W] needs its batch axis: images[None]")
    np.savez("data.npz", images=np.zeros((3, 3, 8, 8), dtype=np.float32))
    assert "batch axis" not in fails(capsys, "nets:index")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def net(:\n", "wrong.py, line 1: SyntaxError: "),
        ("import torch\n\nx = 1 / 0\n", "wrong.py, line 3: ZeroDivisionError: division by zero"),
        ("import torch\nimport absent_module\n", "wrong.py, line 2: ModuleNotFoundError: No module named 'absent_module'"),
        ("import helper\n", "helper.py, line 2: KeyError: 'a'"),
        ("import argparse\n\nargparse.ArgumentParser().parse_args(['--lr'])\n", "wrong.py, line 3: SystemExit: 2"),
        ("from torch import no_such_name\n", "wrong.py, line 1: ImportError: cannot import name 'no_such_name'"),
    ],
)
def test_mistakes_in_a_module_name_the_line(capsys, source, message):
    Path("wrong.py").write_text(source)
    Path("helper.py").write_text("def f():\n    return {}['a']\nf()\n")
    with pytest.raises(SystemExit) as stopped:
        predict("wrong:net")
    assert stopped.value.code == 2
    assert f"rsfast predict: error: --model wrong:net: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_a_model_outside_the_working_directory_is_named_in_full(capsys, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "far_nets.py").write_text("def net():\n    return [][0]\n")
    monkeypatch.syspath_prepend(str(folder))
    assert f"--model far_nets:net: {folder}/far_nets.py, line 2: IndexError: list index out of range" == fails(
        capsys, "far_nets:net"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "nets.py:net",
        "./nets:net",
        "models/nets:net",
        ".nets:net",
        "nets:net()",
        "nets:net:3",
        "nets:",
        ":net",
        "nets",
        "a..b:c",
    ],
)
def test_a_model_that_is_no_pair_of_names(capsys, spec):
    said = fails(capsys, spec)
    assert said.startswith("--model must be MODULE:FACTORY, such as nets:resnet110, names ")
    assert " without a path, .py or brackets, or one of timm:..., torchvision:..., hf:..., " in said
    assert said.endswith(f", got {spec!r}")


def test_a_model_that_is_not_there(capsys):
    for name in ("no_such_module", "nets.deeper", "no-such.module"):
        assert fails(capsys, f"{name}:net").endswith(f"; {name} must be installed, or a module in the working directory")


def test_being_stopped_is_no_mistake_of_the_model(monkeypatch, capsys):
    monkeypatch.setattr(cli.signal, "signal", lambda _, handler: monkeypatch.setattr(rsfast, "stop", handler, raising=False))
    Path("stopped.py").write_text("import rsfast\nrsfast.stop()\n")
    with pytest.raises(SystemExit) as stopped:
        predict("stopped:net")
    assert stopped.value.code == 143
    Path("interrupted.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(SystemExit) as stopped:
        predict("interrupted:net")
    assert stopped.value.code == 130


def test_an_exported_program_is_a_model():
    assert predict("nets:exported", "data.npz", "--batch-size", "16") == 0


def environment():
    """That of a program that finds rsfast and its own working directory, and nothing else."""
    return {**os.environ, "PYTHONPATH": str(Path(rsfast.__file__).parents[1])}


ENTRIES = {"module": ["-m", "rsfast"], "command": ["-P", "-c", "import sys; from rsfast.cli import main; sys.exit(main())"]}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_no_module_in_the_working_directory_stands_in_for_another(tmp_path, entry):
    """Nor for one that NumPy, SciPy and PyTorch import, before --model or long after."""
    for name in (
        "profile",
        "cProfile",
        "pstats",
        "statistics",
        "random",
        "calendar",
        "queue",
        "sympy",
        "mpmath",
        "safetensors",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    (tmp_path / "filter.py").write_text("from nets import net\n")  # of no other name
    options = [*BASE.split(), "--data", "data.npz", "--profile"]
    command = [sys.executable, *entry, "predict", *options, "--model", "filter:net"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "trace.json").exists()
    command[-1] = "statistics:net"
    done = subprocess.run([*command, "--out", "other"], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"module 'statistics' has no attribute 'net'; it came from /.*/statistics\.py\n$", done.stderr)
    assert str(tmp_path) not in done.stderr


def test_the_working_directory_of_another_program_stays_first(tmp_path):
    """Of `python -m other`, which imports rsfast."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import rsfast, sys\nprint(sys.path[0])")
    (tmp_path / "other" / "__main__.py").touch()
    command = [sys.executable, "-m", "other", "rsfast"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}\n"
