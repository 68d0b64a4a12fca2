"""rsfast.Run: a run folder without the command line, the same as with it, and bad arguments refused before any work."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LINEAR_NETS

import rsfast
from rsfast import Gaussian, Run, cli
from rsfast.engine.modes import device_of
from rsfast.runs import results, settings
from rsfast.runs.environment import Environment, Stopped


@pytest.fixture(autouse=True)
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run_nets.py").write_text(LINEAR_NETS)
    np.savez("data.npz", images=images().numpy(), labels=np.arange(6) % 4)
    import run_nets

    return run_nets.Net()


def images():
    return torch.from_numpy(np.random.default_rng(0).random((6, 3, 2, 2), dtype=np.float32))


def make(net, out="run", **options):
    options = {"num_classes": 4, "labels": np.arange(6) % 4, "seed": 3, "batch_size": 50} | options
    return Run(net, images(), Gaussian(0.5), out, **options)


def of_command(text, out):
    base = "--model run_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --seed 3 --batch-size 50"
    assert cli.main(f"{text} {base} --out {out}".split()) == 0


def rows(folder):
    return [line.rsplit("\t", 1)[0] for line in Path(folder, "results.tsv").read_text().splitlines()]


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("certify --n 300", lambda run: run.certify(n=300)),
        (
            "certify --n 300 --head softmax:0.5 --alpha 0.01 --clamp 0 1 --mean 0.5 --std 2 --skip 2",
            lambda run: run.certify(rsfast.Softmax(0.5), n=300, alpha=0.01),
        ),
        ("certify --n 600 --radius 0.2 --n0 20 --start 1 --end 4", lambda run: run.certify(n=600, n0=20, radius=0.2)),
        ("predict --n 40 --alpha 0.01", lambda run: run.predict(40, 0.01)),
    ],
)
def test_a_run_writes_what_the_command_writes(command, call, net):
    """Byte for byte, but for times; and each goes on with the other's."""
    of_command(command, "theirs")
    sidecar = json.loads(Path("theirs/results.json").read_text())
    about = {name: sidecar[name] for name in ("command", "model", "data", "data_sha256")}
    options = {name: sidecar[name] for name in ("start", "end", "skip", "clamp", "mean", "std")}
    found = call(make(net, "ours", about=about, **options))
    assert rows("ours") == rows("theirs")
    assert Path("ours/counts.jsonl").read_bytes() == Path("theirs/counts.jsonl").read_bytes()
    ours, theirs = (Path(name, "results.json").read_text().splitlines() for name in ("ours", "theirs"))
    assert [line for line in ours if "started" not in line] == [line for line in theirs if "started" not in line]
    assert found.idx.tolist() == results.read("theirs").idx.tolist()
    table = Path("theirs/results.tsv")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    call(make(net, "theirs", about=about, resume=True, environment=Environment(say=lambda text: None), **options))
    assert rows("theirs") == rows("ours")
    assert Path("ours/counts.jsonl").read_bytes() == Path("theirs/counts.jsonl").read_bytes()


def test_each_is_called_once_a_row_is_written(net):
    seen = []

    def each(idx, certificate):
        assert rows("run")[-1].split("\t")[0] == str(idx)
        seen.append((idx, certificate.prediction, certificate.radius > 0))

    found = make(net).certify(each=each, n=300)
    assert seen == list(zip(found.idx.tolist(), found.predict.tolist(), (found.radius > 0).tolist(), strict=True))


def test_a_run_goes_on_after_a_signal(net):
    """In this process, where a KeyboardInterrupt tells of it; seed and batch size are those of the run."""
    whole = make(net, "whole").certify(n=300)
    calls = iter(range(1, 1000))

    def stopping(_, batch):
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = net.register_forward_pre_hook(stopping)
    said = []
    with pytest.raises(Stopped, match=r"^terminated; rows in run: \d; samples of other images are saved; --resume goes on$"):
        make(net, environment=Environment(say=said.append)).certify(n=300)
    hook.remove()
    assert Path("run/checkpoint.jsonl").exists()
    found = make(net, resume=True, seed=None, batch_size="auto", environment=Environment(say=said.append)).certify(n=300)
    assert said == []
    assert Path("run/counts.jsonl").read_bytes() == Path("whole/counts.jsonl").read_bytes()
    assert found.radius.tolist() == whole.radius.tolist()
    with pytest.raises(ValueError, match=r"seed must be 3, as in run/results\.json, got 4"):
        make(net, resume=True, seed=4).certify(n=300)


def test_a_run_with_laplace_noise(net, capsys):
    """Every command takes it: certified, stopped, resumed, certified again, merged, refused beside l2 radii, drawn."""
    base = "--model run_nets:Net --data data.npz --num-classes 4 --seed 3 --batch-size 50 --n 300"

    def run(command, options=""):
        return cli.main([*command.split(), *options.split()])

    def certify(out, options=""):
        assert run(f"certify {base} --out {out}", options or "--noise laplace:0.5") == 0

    certify("whole")
    sidecar = json.loads(Path("whole/results.json").read_text())
    assert (sidecar["noise"], sidecar["norm"]) == ({"name": "Laplace", "b": 0.5}, "l1")
    options = {"num_classes": 4, "labels": np.arange(6) % 4, "seed": 3, "batch_size": 50}
    found = Run(net, images(), rsfast.Laplace(0.5), "python", **options).certify(n=300)
    assert rows("python") == rows("whole")
    (certificate,) = rsfast.certify(net, images()[:1], rsfast.Laplace(0.5), n=300, num_classes=4, seed=3)
    assert found.radius[0] == pytest.approx(certificate.radius, rel=1e-6)

    calls = iter(range(1, 1000))
    stop = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == 20 else None
    )
    with pytest.raises(SystemExit) as stopped:
        certify("run")
    stop.remove()
    assert stopped.value.code == 143
    assert len(rows("run")) < len(rows("whole"))
    with pytest.raises(SystemExit):
        certify("run", "--sigma 0.5 --resume")
    assert "noise must be Laplace(b=0.5), as in " in capsys.readouterr().err
    certify("run", "--noise laplace:0.5 --resume")
    assert rows("run") == rows("whole")

    assert run("recertify run --out again --alpha 0.01") == 0
    certify("wanted", "--noise laplace:0.5 --alpha 0.01")
    assert rows("again") == rows("wanted")
    for out, part in (("a", "--end 2"), ("b", "--start 2")):
        certify(out, f"--noise laplace:0.5 {part}")
    assert run("merge a b --out merged") == 0
    assert rows("merged") == rows("whole")

    certify("gaussian", "--noise gaussian:0.5")
    certify("sigma", "--sigma 0.5")
    assert rows("gaussian") == rows("sigma")
    with pytest.raises(SystemExit):
        run("analyze run gaussian")
    assert "runs must have one norm, got l1 in run and l2 in gaussian; compare them apart" in capsys.readouterr().err
    assert run(f"predict --noise laplace:0.5 {base} --out labels") == 0
    capsys.readouterr()
    assert run("analyze run labels --format csv --radii 0") == 0
    header, first, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("run,images,sigma,noise,n,alpha,norm,")
    assert first.startswith('run,6,,"Laplace, b = 0.5",300,0.001,l1,')
    assert run("analyze run") == 0
    assert "  Laplace, b = 0.5  " in capsys.readouterr().out
    assert run("plot run --out plot.svg") == 0
    assert Path("plot.svg").exists()
    with pytest.raises(SystemExit):
        run("plot run gaussian --out both.svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "one of the arguments --sigma --noise is required"),
        ("--noise laplace", "--noise: must be laplace:B, got 'laplace' (b is missing)"),
        ("--noise cauchy:1", "--noise: must begin with the name of a noise: gaussian, "),
        ("--noise laplace:0", "got 'laplace:0' (b must be positive, finite and a normal float32, got 0.0)"),
    ],
)
def test_bad_noise(options, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(f"certify --model run_nets:Net --data data.npz --num-classes 4 --out run {options}".split())
    assert message in capsys.readouterr().err
    with pytest.raises(TypeError, match=r"noise must be one of Gaussian, .*, got 0\.5"):
        Run(torch.nn.Flatten(), images(), 0.5, "run", num_classes=4)


def test_model_and_data_are_known_by_their_own_names_and_bytes(net):
    make(net).predict(20, 0.5)
    sidecar = json.loads(Path("run/results.json").read_text())
    assert (sidecar["model"], sidecar["command"], sidecar["data"]) == ("run_nets:Net", None, None)
    with pytest.raises(ValueError, match="data_sha256 must be "):
        make(net, labels=None, resume=True).predict(20, 0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": [0]}, ValueError, "labels must be one an image, 6 in all, got 1"),
        ({"labels": [0, 1, 2, 3, 4, 0]}, ValueError, "labels must be from 0 to 3, got 0 to 4"),
        ({"labels": [0.5] * 6}, TypeError, "labels must be an int, got 0.5"),
        ({"start": 6}, ValueError, "start and end must be 0 <= start < end <= 6"),
        ({"skip": 0}, ValueError, "skip must be positive"),
        ({"mean": [0.5]}, ValueError, "mean and std must be given together"),
        ({"about": {"modle": "x"}}, TypeError, "about must have keys among command, model, .* got modle"),
        ({"progress": True}, TypeError, "keyword arguments must not be among input_ids, progress, got progress"),
        ({"sead": 1}, TypeError, "keyword arguments must be among .* got sead"),
        ({"batch_size": 0}, ValueError, "batch_size must be from 1"),
        ({"shard": "inputs"}, ValueError, "shard must be None without a process group"),
        ({"num_classes": 3, "labels": None}, ValueError, "model run_nets:Net fails on a batch|num_classes"),
    ],
)
def test_bad_arguments(options, error, message, net):
    with pytest.raises(error, match=message):
        make(net, **options)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[1.0]], TypeError, r"images must be a tensor, float32 \[N, ...\], or a Dataset .*, got a list"),
        (torch.zeros(2, 3, dtype=torch.float64), TypeError, "images must be float32, got torch.float64"),
        (torch.zeros(3), ValueError, r"images must be \[N, ...\] and not empty, got \[3\]"),
        (torch.zeros(0, 3), ValueError, r"images must be \[N, ...\] and not empty, got \[0, 3\]"),
    ],
)
def test_bad_images(images, error, message, net):
    with pytest.raises(error, match=message):
        Run(net, images, Gaussian(0.5), "run", num_classes=4)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be from 1"),
        ({"alpha": 2.0}, ValueError, "alpha"),
        ({"seed": 3}, TypeError, "must be of the certification, got seed; give those to Run"),
        ({"radius": 0.1, "rtol": 0.1}, ValueError, "radius"),
    ],
)
def test_bad_ways_to_certify(options, error, message, net):
    run = make(net)
    with pytest.raises(error, match=message):
        run.certify(**options)
    assert not Path("run").exists()


def test_a_run_computes_where_the_model_is():
    images = torch.zeros(1, 3)
    assert device_of(torch.nn.Linear(3, 2, device="meta"), images) == torch.device("meta")
    assert device_of(torch.nn.BatchNorm1d(3, affine=False, device="meta"), images) == torch.device("meta")
    assert device_of(torch.nn.Flatten(), images) == device_of(len, images) == torch.device("cpu")


def test_a_mean_of_three_channels_does_not_fit_images_of_one():
    with pytest.raises(ValueError, match=r"^mean must have 1 number, as images have 1 channel here, got 3$"):
        settings.normalisation([0.5, 0.5, 0.5], [0.2, 0.2, 0.2], channels=1)
