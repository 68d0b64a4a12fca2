"""The command line with models and data by name: no Python by the user, and what it says, records and refuses."""

import json
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from torch import nn

import rsfast
from rsfast import cli
from rsfast.cli import sources
from rsfast.loading.cifar_resnet import CifarResNet
from rsfast.loading.preprocessing import Preprocessing

SMALL = "--sigma 0.25 --seed 3 --n0 10 --n 40"
NAMES = ["cat/0.png", "cat/1.png", "cat/bad.png", "dog/0.png", "dog/1.png"]
CIFAR10 = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Pictures of several sizes and modes, one of them broken, and a checkpoint of a small net for 2 classes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, mode in zip(NAMES, ("RGB", "L", "", "RGBA", "P"), strict=True):
        Path("zoo", name).parent.mkdir(parents=True, exist_ok=True)
        if mode:
            pixels = rng.integers(0, 256, (*rng.integers(32, 48, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(f"zoo/{name}")
        else:
            Path("zoo", name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    torch.manual_seed(0)
    state = nn.Sequential(nn.Identity(), nn.DataParallel(CifarResNet(8, 2))).state_dict()
    torch.save({"arch": "cifar_resnet8", "state_dict": state}, "net.tar")
    return tmp_path


def run(command):
    return cli.main(command.split())


def fails(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert not Path("out").exists()
    return said[-1].partition(" error: ")[2]


def sidecar(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def table(folder="out"):
    """The rows without their times."""
    return [line.rpartition("\t")[0] for line in Path(folder, "results.tsv").read_text().splitlines()]


def test_a_folder_of_pictures(capsys):
    assert run(f"certify --checkpoint net.tar --data zoo --image-size 24 --workers 0 {SMALL} --out out") == 0
    said = capsys.readouterr()
    first, second, skip = said.err.splitlines()
    assert first.startswith(
        "rsfast certify: model: cifar_resnet8, 2 classes; pictures: shorter side 24 (bicubic), crop 24 x 24"
    )
    assert second == "rsfast certify: data: 5 pictures of 2 classes in zoo"
    assert "images[2] (cat/bad.png) cannot be read and is skipped: zoo/cat/bad.png" in skip
    assert said.out.startswith("out: 4 of 5 images, 1 skipped in ")
    how = Preprocessing(*map(tuple, CIFAR10), (24, 24), 24, source=sidecar()["preprocessing"]["source"])
    assert sidecar()["preprocessing"] == how.to_dict()
    loaded = rsfast.load_model(checkpoint="net.tar")
    data = rsfast.load_data("zoo", preprocessing=how)
    images = torch.stack([data[place] for place in (0, 1, 3, 4)])
    found = rsfast.certify(
        loaded.model, images, rsfast.Gaussian(0.25), n0=10, n=40, seed=3, input_ids=[0, 1, 3, 4], **loaded.options
    )
    assert [line.split("\t")[2] for line in table()[1:]] == [str(each.prediction) for each in found]
    recorded = sidecar()
    assert (recorded["mean"], recorded["std"]) == CIFAR10
    assert recorded["class_names"] == ["cat", "dog"]
    assert (recorded["model"], recorded["checkpoint"], recorded["num_classes"]) == ("cifar_resnet8", "net.tar", 2)
    assert recorded["weights_sha256"] == loaded.weights_sha256


def test_a_run_goes_on_only_with_the_same_pictures_and_weights(capsys):
    command = f"certify --checkpoint net.tar --data zoo --image-size 24 --workers 0 {SMALL} --out run"
    run(f"{command} --end 5")
    before = table("run")
    Path("run", "results.tsv").write_text("\n".join(Path("run", "results.tsv").read_text().splitlines()[:2]) + "\n")
    run(f"{command} --resume")
    assert table("run") == before
    capsys.readouterr()
    assert "must be " in fails(capsys, f"{command} --resume --image-size 20")
    assert "mean must be " in fails(capsys, f"{command} --resume --mean 0.5 --std 0.5")
    torch.manual_seed(1)
    torch.save({"arch": "cifar_resnet8", "state_dict": CifarResNet(8, 2).state_dict()}, "net.tar")
    assert " must be " in fails(capsys, f"{command} --resume --mean {CIFAR_MEAN} --std {CIFAR_STD}")


CIFAR_MEAN, CIFAR_STD = (" ".join(map(str, values)) for values in CIFAR10)


def test_timm_untrained(capsys):
    command = f"predict --model timm:test_resnet --weights random --data zoo --image-size 32 {SMALL.replace('--n0 10', '')}"
    run(f"{command} --out out --end 2 --workers 0")
    said = capsys.readouterr().err
    assert "model: timm:test_resnet, untrained, 1000 classes; pictures: shorter side 32" in said
    assert "--data zoo holds 2 classes, and num_classes is 1000" in said
    assert sidecar()["mean"] == [0.5] * 3
    assert "class_names" not in sidecar()
    run(f"{command} --out other --end 2 --workers 0 --num-classes 2 --mean 0 --std 1")
    assert sidecar("other")["num_classes"] == 2
    assert sidecar("other")["scale"] == [1.0]


def test_bytes_for_noise_of_bytes():
    options = SMALL.replace("--sigma 0.25", "--noise gridgaussian:0.25")
    run(f"certify --checkpoint net.tar --data zoo --image-size 24 --workers 0 {options} --out out --end 2")
    assert sidecar()["noise"]["name"] == "GridGaussian"
    how = rsfast.load_model(checkpoint="net.tar").preprocessing
    how = Preprocessing(how.mean, how.std, (24, 24), 24)
    data = rsfast.load_data("zoo", preprocessing=how, bytes=True)
    assert data[0].dtype == torch.uint8


def test_several_sigmas(capsys):
    command = f"--checkpoint net.tar --data zoo --image-size 24 --workers 0 {SMALL} --sigma 0.12 0.5"
    run(f"certify {command} --out out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == ["out/sigma=0.12", "out/sigma=0.5"]
    assert [line.split()[0] for line in lines[4:7]] == ["sigma=0.12", "sigma=0.5", "upper"]
    assert Path("out/sweep.svg").read_text().lstrip().startswith("<?xml")
    run(f"certify {command} --sigma 0.5 --out one")
    assert table("out/sigma=0.5") == table("one")
    assert sidecar("out/sigma=0.12")["noise"]["sigma"] == 0.12
    run(f"certify {command} --sigma 0.12 0.5 0.25 --out out --resume")
    assert sidecar("out/sigma=0.25")["noise"]["sigma"] == 0.25
    run(f"predict {command.replace('--n0 10', '')} --out predictions")
    assert sidecar("predictions/sigma=0.5")["n"] == 40
    assert not Path("predictions/sweep.svg").exists()


def test_a_run_in_out_is_refused_before_anything_is_loaded(capsys):
    command = "certify --checkpoint net.tar --data zoo --image-size 24 --workers 0"
    run(f"{command} {SMALL} --out runs/sigma=0.5")
    Path("runs/parts/0-of-2").mkdir(parents=True)
    Path("runs/parts/0-of-2/results.json").write_text("{}")
    refused = "must be a folder without a run, got one with"
    for options, message in (
        (f"{SMALL} --out runs/sigma=0.5", f"--out runs/sigma=0.5 {refused} results.tsv; name another"),
        (f"{SMALL} --sigma 0.25 0.5 --out runs", f"runs/sigma=0.5 {refused} results.tsv; name another"),
        (f"{SMALL} --out runs", f"--out runs {refused} runs/parts/0-of-2; name another"),
        (f"{SMALL} --out net.tar", "--out net.tar must be a folder without a run, got a file; name another"),
        (f"{SMALL} --sigma 0.25 0.5 --out runs --resume", "--data missing: "),
    ):
        assert fails(capsys, f"{command} {options} --data missing").startswith(message)
    changed = "recertify runs/sigma=0.5 --model torchvision:missing --out runs/sigma=0.5"
    assert fails(capsys, changed).startswith(f"--out runs/sigma=0.5 {refused} results.tsv; name another")
    assert not Path("runs/sigma=0.25").exists()


def test_arrays_are_fed_as_they_are(capsys):
    images = np.random.default_rng(1).random((2, 3, 16, 20), dtype=np.float32)
    np.savez("data.npz", images=images, labels=[1, 0])
    run(f"certify --checkpoint net.tar --data data.npz --image-size 24 {SMALL} --out out")
    assert "pictures: RGB, (pixel - (0.4914, " in capsys.readouterr().err
    assert sidecar()["preprocessing"]["resize"] is None
    loaded = rsfast.load_model(checkpoint="net.tar")
    found = rsfast.certify(
        loaded.model, torch.from_numpy(images), rsfast.Gaussian(0.25), n0=10, n=40, seed=3, **loaded.options
    )
    assert [line.split("\t")[2] for line in table()[1:]] == [str(each.prediction) for each in found]


MISTAKES = {
    "--data zoo --checkpoint net.tar --sigma 0.5 0.25 0.5": "--sigma must be different numbers, got 0.5 twice",
    "--data zoo --checkpoint net.tar --sigma 0.5 -1": "sigma must be ",
    "--data zoo": "--model must be given: MODULE:FACTORY, timm:NAME, torchvision:NAME, hf:FOLDER_OR_NAME, onnx:FILE",
    "--data zoo --model timm:test_resnett --weights random": "--model timm:test_resnett must be one of the ",
    "--data zoo --model jit:absent.pt": "--model jit:absent.pt: No such file or directory",
    "--data zoo --checkpoint absent.tar": "--checkpoint absent.tar: [Errno 2] No such file or directory",
    "--data nothing --checkpoint net.tar": "--data nothing",
    "--data zoo --checkpoint net.tar": "--data zoo: pictures must have one size",
    "--data zoo --checkpoint net.tar --weights net.tar": "weights and checkpoint must not both be given",
    "--data zoo --checkpoint net.tar --num-classes 3": "num_classes must be 2, the classes of checkpoint net.tar",
    "--data data.npz --model rsfast.loading.cifar_resnet:resnet20": "--num-classes must be given, the number of logits: ",
    "--data zoo --model rsfast.loading.cifar_resnet:resnet20 --image-size 24": "num_classes must be 10",
    "--data zoo --checkpoint net.tar --image-size 24 --mean 0.5": "mean and std must be given together",
    "--data zoo --checkpoint net.tar --image-size 24 --batch-size many": "must be an int or auto, got 'many'",
    "--data zoo --checkpoint net.tar --image-size 24 --workers -1": "workers must be from 0 to ",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes_are_one_line(capsys, options):
    np.savez("data.npz", images=np.zeros((2, 3, 32, 32), np.float32))
    assert MISTAKES[options] in fails(capsys, f"certify {SMALL} {options} --out out")


def test_classes_that_the_model_names_otherwise():
    with pytest.warns(UserWarning, match="data zoo gives dog the label 1, and the model names its class 0 so"):
        sources.warn_of_other_classes("zoo", ["cat", "dog"], ["dog", "bird"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sources.warn_of_other_classes("zoo", ["n01440764", "dog"], ["tench", "dog"])


def test_the_hint_survives_a_traceback_of_torchscript(capsys):
    torch.jit.trace(nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten()), torch.zeros(1, 3, 32, 32)).save("net.jit")
    np.savez("data.npz", images=np.zeros((2, 32, 32, 3), np.float32))
    said = fails(capsys, f"certify {SMALL} --data data.npz --model jit:net.jit --num-classes 2 --out out")
    assert "Given groups=1" in said
    assert said.endswith("images.movedim(-1, 1)")


@pytest.mark.slow
def test_resumed_after_a_kill():
    """The process is killed between rows; what is resumed is the run that never stopped."""
    arguments = f"--checkpoint net.tar --data zoo --image-size 24 {SMALL} --n 1500 --batch-size 10 --resume"
    killed = programs.start("-m", "rsfast", "certify", *arguments.split(), "--out", "out")
    while not Path("out", "results.tsv").exists() or len(table()) < 2:
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(table()) < 5
    for folder in ("out", "whole"):
        run(f"certify {arguments} --workers 0 --out {folder}")
    assert len(table()) == 5
    assert table() == table("whole")
    for folder in ("out", "whole"):
        skipped = [json.loads(line) for line in Path(folder, "skipped.jsonl").read_text().splitlines()]
        assert [each["name"] for each in skipped] == ["cat/bad.png"]
