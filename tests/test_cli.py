"""The command line, end to end in a scratch folder: runs are those of the library, and a mistake is one line."""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import tqdm
from conftest import integers

import rsfast
from rsfast import ClippedLogits, Gaussian, Laplace, Mask, Softmax, Sparsemax, SubspaceSmoothing, cli, demo, doctor, results
from rsfast.runs.environment import Environment
from rsfast.runs.writer import RunWriter, format_radius

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.125, 0.875, 1.0]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):  # elementwise, so that no bit depends on the batch
        x = self.dropout(x.float())
        return (x[:, 0, 0] + x[:, 1, 0] + x[:, 2, 0]) * self.weight

def function():
    return lambda x: x[:, 0, 0].clone()

def returns_tuple():
    return lambda x: (x, x)

def needs_argument(width):
    return Net()

def fails():
    raise ValueError("the factory's own words")

def misfit():
    return nn.Sequential(nn.Flatten(), nn.Linear(999, 4))

def doubles():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()

def tires():
    calls = iter(range(5))
    def model(x):
        if next(calls, None) is None:
            raise ArithmeticError("out of luck")
        return x[:, 0, 0]
    return model

number = 3
batches = []

def watches():
    def model(x):
        batches.append((len(x), x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return x[:, 0, 0]
    return model
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_nets.py").write_text(NETS)
    rng = np.random.default_rng(5)
    images = rng.random((7, 3, 4, 4), dtype=np.float32) / 2
    labels = rng.integers(0, 4, 7)
    images[np.arange(7), :, 0, labels] += 0.5
    np.savez("data.npz", images=images, labels=labels)
    return tmp_path


BASE = "--model tiny_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --seed 11"


def run(command, *more, environment=None):
    return cli.main([*command.split(), *map(str, more)], environment=environment)


def data():
    with np.load("data.npz") as arrays:
        return torch.from_numpy(arrays["images"]), arrays["labels"].tolist()


def net():
    sys.path.insert(0, str(Path.cwd()))
    import tiny_nets

    return tiny_nets.Net()


def rows(folder):
    """The table without its times."""
    with open(f"{folder}/results.tsv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file, delimiter="\t")]


def counts(folder):
    with open(f"{folder}/counts.jsonl") as file:
        return [json.loads(line) for line in file]


def sidecar(folder):
    with open(f"{folder}/results.json") as file:
        return json.load(file)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("", {}),
        ("--head softmax:0.25 --bound hoeffding --batch-size 17", {"head": Softmax(0.25), "bound": "hoeffding"}),
        (
            "--head sparsemax:4 --rule top_two --backend reference",
            {"head": Sparsemax(4.0), "rule": "top_two", "backend": "reference"},
        ),
        ("--head clipped:-2:4", {"head": ClippedLogits(-2.0, 4.0)}),
        (
            "--mean 0.5 0.25 0.125 --std 0.5 0.25 0.5 --dtype bfloat16 --channels-last",
            {"scale": [2.0, 4.0, 2.0], "shift": [-1.0, -1.0, -0.25], "dtype": torch.bfloat16, "channels_last": True},
        ),
        ("--mean 0.5 --std 0.25", {"scale": 4.0, "shift": -2.0}),
        ("--clamp 0.25 0.75", {"clamp": (0.25, 0.75)}),
        ("--clamp -0.25 0.5 --mean 0.5 --std 0.25", {"clamp": (-0.25, 0.5), "scale": 4.0, "shift": -2.0}),
        ("--clamp 0.5 0.5", {"clamp": (0.5, 0.5)}),
        ("--clamp 0.25 inf", {"clamp": (0.25, float("inf"))}),
    ],
)
def test_certify_writes_the_certificates_of_the_library(options, arguments):
    assert run(f"certify {BASE} --n0 20 --n 500 --alpha 0.01 --out run {options}") == 0
    images, labels = data()
    expected = rsfast.certify(net(), images, Gaussian(0.5), num_classes=4, n0=20, n=500, alpha=0.01, seed=11, **arguments)
    assert any(not certificate.abstained for certificate in expected) or options == "--clamp 0.5 0.5"
    assert rows("run") == [
        {
            "idx": str(i),
            "label": str(label),
            "predict": str(certificate.prediction),
            "radius": format_radius(certificate.radius),
            "correct": str(int(certificate.prediction == label)),
        }
        for i, (label, certificate) in enumerate(zip(labels, expected, strict=True))
    ]
    recorded = sidecar("run")
    first = expected[0].to_dict()
    assert recorded["rule"] == arguments.get("rule", "top_two" if "clipped" in options else "auto")
    same = ("n0", "n", "alpha", "head", "bound", "noise", "seed", "stream_version", "backend")
    assert {key: recorded[key] for key in same} == {key: first[key] for key in same}
    clamp = arguments.get("clamp")
    assert recorded["clamp"] == (clamp and [each if math.isfinite(each) else None for each in clamp])


def test_a_model_in_float64():
    run(f"certify {BASE} --n 200 --dtype float64 --out run --model tiny_nets:doubles")
    sys.path.insert(0, str(Path.cwd()))
    import tiny_nets

    keywords = {"num_classes": 4, "n": 200, "seed": 11, "dtype": torch.float64}
    expected = rsfast.certify(tiny_nets.doubles(), data()[0], Gaussian(0.5), **keywords)
    assert [row["predict"] for row in rows("run")] == [str(each.prediction) for each in expected]
    assert [row["radius"] for row in rows("run")] == [format_radius(each.radius) for each in expected]
    assert sidecar("run")["dtype"] == expected[0].execution.dtype == "float64"


def test_counts_are_the_integers_of_both_tallies():
    run(f"certify {BASE} --n0 20 --n 50 --head softmax:0.25 --bound hoeffding --start 2 --end 4 --out run")
    images, _ = data()
    shared = {"num_classes": 4, "heads": (Softmax(0.25),), "seed": 11}
    lines = counts("run")
    assert [line["idx"] for line in lines] == [2, 3]
    for line in lines:
        for stream, n in (("selection", 20), ("estimation", 50)):
            i = line["idx"]
            tally = rsfast.sample(net(), images[i : i + 1], Gaussian(0.5), n=n, stream=stream, input_ids=[i], **shared)
            assert line[stream] == {k: getattr(tally, k)[0].tolist() for k in ("n", "counts", "sums", "squares")}
            assert line[stream]["n"] == n


def test_counts_of_ranges_hold_the_histograms():
    run(f"certify {BASE} --n0 20 --n 100 --head softmax:0.25 --end 2 --out run")
    for line in counts("run"):
        (tracked,) = line["selection"]["sums"]
        leading = np.argsort(-np.array(tracked), kind="stable")[:2].tolist()
        assert [tally["n"] for tally in line["estimation"]] == [25, 25, 50]
        for tally in line["estimation"]:
            assert tally["tracked"] == [leading]
            for k, bins in zip(leading, tally["bins"][0], strict=True):
                assert sum(count for _, count, _ in bins) == tally["n"]
                assert sum(total for *_, total in bins) == tally["sums"][0][k]


def lower_bounds(found):
    """What is said of a run that stopped early."""
    return (
        f"certified accuracy at radius 0 at least {results.clean_accuracy(found):.1%}, average certified l2 radius at least "
        f"{results.average_certified_radius(found):.3f}, abstained at most {results.abstention_rate(found):.1%}"
    )


def test_figures_of_a_run_that_stopped_early_are_bounds(capsys):
    """Of --rtol, too, which has no radius to decide; without labels; and certified again."""
    run(f"certify {BASE} --n0 20 --n 2000 --rtol 0.3 --out rtol")
    summary, samples = capsys.readouterr().out.splitlines()
    assert summary.partition(" s, ")[2] == lower_bounds(results.read("rtol"))
    assert " samples an image, of 2,020" in samples
    images, _ = data()
    np.savez("unlabelled.npz", x=images.numpy())
    run(f"certify {BASE} --data unlabelled.npz --n0 20 --n 2000 --radius 0.3 --out unlabelled")
    first, summary, _ = capsys.readouterr().out.splitlines()
    found = results.read("unlabelled")
    share = (found.radius >= 0.3).mean()
    assert 0 < share < 1
    assert first == f"{share:.1%} certified at l2 radius 0.3"
    assert summary.partition(" s, ")[2] == (
        f"mean l2 radius at least {found.radius.mean():.3f}, no labels, "
        f"abstained at most {results.abstention_rate(found):.1%}"
    )
    run(f"certify {BASE} --n0 20 --n 2000 --radius 0.3 --out run")
    capsys.readouterr()
    run("recertify run --alpha 0.2 --out again")
    first, summary = capsys.readouterr().out.splitlines()
    found = results.read("again")
    assert first == f"{(found.radius >= 0.3).mean():.1%} certified at l2 radius 0.3"
    assert summary.partition(" s, ")[2] == lower_bounds(found)


def test_analyze_tells_of_runs_that_stopped_early(capsys):
    run(f"certify {BASE} --n0 20 --n 2000 --radius 0.3 --out run")
    run(f"certify {BASE} --n0 20 --n 200 --out whole")
    runs = {"run": results.read("run"), "whole": results.read("whole")}
    (note,) = results.notes(runs)
    assert note.startswith(
        f"run: sampling stopped once l2 radius 0.3 was decided: {(runs['run'].radius >= 0.3).mean():.1%} "
    )
    for style in ("text", "csv"):
        capsys.readouterr()
        run("analyze run whole --radii 0 0.3 --format", style)
        said = capsys.readouterr()
        assert said.out == results.table(runs, [0, 0.3], style) + "\n"
        lines = [note] if style == "csv" else []
        lines += ["stopped early, so figures are bounds: run", "runs differ in n: 2000 in run, 200 in whole"]
        assert sorted(said.err.splitlines()) == sorted(f"rsfast analyze: warning: {line}" for line in lines)
        assert (note in said.out) == (style == "text")
    write_run("far", [0.8], sidecar={"radius": 0.77})
    run("analyze run whole far --format csv")
    header = capsys.readouterr().out.splitlines()[0].split(",")
    assert {"r=0.3", "r=0.77"} <= set(header)  # what was decided is in the table


def test_a_radius_to_decide(capsys):
    """Fewer samples, which the counts tell; the sidecar says what was asked."""
    assert run(f"certify {BASE} --n0 20 --n 5000 --alpha 0.01 --radius 0.3 --out run") == 0
    images, _ = data()
    expected = rsfast.certify(net(), images, Gaussian(0.5), num_classes=4, n0=20, n=5000, alpha=0.01, radius=0.3, seed=11)
    assert [row["radius"] for row in rows("run")] == [format_radius(certificate.radius) for certificate in expected]
    for line, certificate in zip(counts("run"), expected, strict=True):
        ranges = line["estimation"] if isinstance(line["estimation"], list) else [line["estimation"]]
        assert sum(tally["n"] for tally in ranges) == certificate.n
    assert min(certificate.n for certificate in expected) < 1000
    assert (sidecar("run")["radius"], sidecar("run")["rtol"]) == (0.3, None)
    assert sidecar("run")["bound"] == "beta_binomial_sequence"
    used = sum(certificate.n0 + certificate.n for certificate in expected) / len(expected)
    share = sum(certificate.radius >= 0.3 for certificate in expected) / len(expected)
    first, summary, last = capsys.readouterr().out.splitlines()
    assert first == f"{share:.1%} certified at l2 radius 0.3"
    assert summary.partition(" s, ")[2] == lower_bounds(results.read("run"))
    assert last == f"{used:,.0f} samples an image, of 5,020"
    for options, message in (
        ("--radius 0.5 --rtol 0.1", "--rtol: not allowed with argument --radius"),
        ("--radius 0.5 --bound clopper_pearson", "it holds for one analysis"),
        ("--radius -1", "radius must be a finite number above 0, got -1.0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(f"certify {BASE} --out other {options}")
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_shards_hold_the_rows_and_counts_of_one_run():
    command = f"certify {BASE} --n0 20 --n 300 --skip 2"
    run(f"{command} --out whole")
    run(f"{command} --end 3 --batch-size 64 --out a")
    run(f"{command} --start 3 --max 5 --out b")
    run(f"{command} --start 5 --out c")
    assert [row["idx"] for row in rows("whole")] == ["0", "2", "4", "6"]
    assert [len(rows(shard)) for shard in "abc"] == [2, 1, 1]
    assert rows("a") + rows("b") + rows("c") == rows("whole")
    assert integers("a") + integers("b") + integers("c") == integers("whole")


def test_sidecar_holds_what_an_audit_needs():
    command = (
        f"certify {BASE} --n0 5 --n 20 --mean 0.5 --std 0.25 --weights weights.safetensors --start 1 --skip 2 --out run"
    )
    weights = net().state_dict()
    safetensors.torch.save_file(weights, "weights.safetensors")
    run(command)
    recorded = sidecar("run")
    assert recorded["command"] == f"rsfast {command}"
    assert recorded["model"] == "tiny_nets:Net"
    for name in ("data.npz", "weights.safetensors"):
        key = name.split(".")[0]
        assert recorded[key] == name
        with open(name, "rb") as file:
            assert recorded[f"{key}_sha256"] == hashlib.sha256(file.read()).hexdigest()
    expected = {
        "mean": [0.5],
        "std": [0.25],
        "start": 2,
        "end": 7,
        "skip": 2,
        "backend": "cpu",
        "device": "cpu",
        "dtype": "float32",
    }
    assert {key: recorded[key] for key in expected} == expected
    assert recorded["versions"]["torch"] == torch.__version__
    assert recorded["channels_last"] is False
    assert recorded["batch_size"] > 0


def test_state_dict_hash_is_of_the_weights_that_ran():
    weights = net().state_dict()
    torch.save(weights, "same.pt")
    torch.save({"state_dict": {k: v + 1 for k, v in weights.items()}, "epoch": 3}, "other.pth.tar")
    for i, options in enumerate(("", "--weights same.pt", "--weights other.pth.tar")):
        run(f"predict {BASE} --n 20 --end 1 {options} --out {i}")
    built, same, other = (sidecar(i)["state_dict_sha256"] for i in range(3))
    assert built == same != other
    run(f"predict {BASE} --n 20 --end 1 --model tiny_nets:function --out callable")
    assert sidecar("callable")["state_dict_sha256"] is None


def test_weights_reach_the_model():
    model = net()
    model.weight.data = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    safetensors.torch.save_file(model.state_dict(), "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, "w.pth.tar")
    images, _ = data()
    expected = rsfast.sample(model, images, Gaussian(0.5), num_classes=4, n=50, seed=11).counts.tolist()
    for weights in ("", "--weights w.safetensors", "--weights w.pth.tar"):
        folder = weights[-3:] or "none"
        run(f"predict {BASE} --n 50 {weights} --out {folder}")
        assert ([line["estimation"]["counts"] for line in counts(folder)] == expected) == bool(weights)


def test_predict_writes_the_predictions_of_the_library(capsys):
    assert run(f"predict {BASE} --n 200 --alpha 0.01 --out run") == 0
    images, labels = data()
    expected = rsfast.predict(net(), images, Gaussian(0.5), num_classes=4, n=200, alpha=0.01, seed=11)
    found = rows("run")
    assert [int(row["predict"]) for row in found] == expected
    assert list(found[0]) == ["idx", "label", "predict", "correct"]
    right = [int(p == label) for p, label in zip(expected, labels, strict=True)]
    assert [int(row["correct"]) for row in found] == right
    assert sum(right) > 0
    summary = capsys.readouterr().out
    assert "run: 7 images in " in summary
    assert f", accuracy {sum(right) / 7:.1%}, abstained {expected.count(-1) / 7:.1%}\n" in summary


def test_predict_clamps():
    run(f"predict {BASE} --n 50 --clamp 0.375 0.625 --out run")
    run(f"predict {BASE} --n 50 --out other")
    images, _ = data()
    expected = rsfast.sample(net(), images, Gaussian(0.5), num_classes=4, n=50, seed=11, clamp=(0.375, 0.625))
    assert [line["estimation"]["counts"] for line in counts("run")] == expected.counts.tolist()
    assert counts("run") != counts("other")
    assert sidecar("run")["clamp"] == [0.375, 0.625]
    assert sidecar("other")["clamp"] is None


def test_summary_is_one_line_and_agrees_with_the_table(capsys):
    run(f"certify {BASE} --n0 20 --n 500 --out run")
    captured = capsys.readouterr()
    found = results.read("run")
    assert results.average_certified_radius(found) > 0
    assert captured.out.count("\n") == 1
    assert captured.out.endswith(
        f", certified accuracy at radius 0 {results.clean_accuracy(found):.1%}, average certified l2 radius "
        f"{results.average_certified_radius(found):.3f}, abstained {results.abstention_rate(found):.1%}\n"
    )
    assert captured.err == ""  # no progress bar where stderr is no terminal


def test_unlabelled_images_have_no_accuracy(capsys):
    images, _ = data()
    np.savez("unlabelled.npz", x=images.numpy())
    for command in ("certify --n0 20", "predict"):
        run(f"{command} {BASE} --data unlabelled.npz --n 100 --out {command[:7]}")
        out = capsys.readouterr().out
        assert "no labels" in out
        assert "accuracy" not in out
        assert {(row["label"], row["correct"]) for row in rows(command[:7])} == {("-1", "0")}


def test_a_seed_left_out_is_drawn_and_recorded():
    command = f"predict {BASE.replace('--seed 11', '')} --n 50 --out"
    run(f"{command} a")
    run(f"{command} b")
    seed = sidecar("a")["seed"]
    assert seed != sidecar("b")["seed"]
    run(f"{command} c --seed {seed}")
    assert counts("c") == counts("a")


@pytest.mark.usefixtures("unprobed")
def test_the_model_gets_the_batches_that_were_asked_for():
    run(f"predict {BASE} --model tiny_nets:watches --n 20 --end 1 --batch-size 8 --dtype bfloat16 --channels-last --out run")
    tried, *batches = sys.modules["tiny_nets"].batches
    assert tried[0] == 1
    assert batches == [(length, torch.bfloat16, True) for length in (8, 8, 8)]  # the last one padded
    assert sidecar("run")["batch_size"] == 8


@pytest.mark.parametrize(("command", "samples"), [("certify --n0 7", 27), ("predict", 20)])
def test_progress_counts_every_sample_and_no_other(command, samples):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            assert options["disable"] is None  # silent where stderr is no terminal
            bars.append(self)
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})

    run(f"{command} {BASE} --n 20 --skip 3 --out run", environment=Environment(bar=Bar))
    assert [(bar.n, bar.total) for bar in bars] == [(3 * samples, 3 * samples)]


def test_dropout_is_off():
    run(f"predict {BASE} --n 50 --out a")
    run(f"predict {BASE} --n 50 --out b")
    assert counts("a") == counts("b")


@pytest.mark.usefixtures("unprobed")
def test_rows_written_before_a_failure_stay():
    with pytest.raises(ArithmeticError, match="out of luck"):  # the sample that tries the model, then two batches an image
        run(f"certify {BASE} --model tiny_nets:tires --n0 5 --n 20 --batch-size 13 --out run")
    assert [row["idx"] for row in rows("run")] == ["0", "1"]
    assert [line["idx"] for line in counts("run")] == [0, 1]


def write_run(folder, radii, label=1, sidecar=()):
    with RunWriter(folder, dict(sidecar)) as writer:
        for i, radius in enumerate(radii):
            writer.write(i, label, SimpleNamespace(prediction=1, radius=radius), 0.5, {})


def test_analyze_prints_the_table_of_the_runs(capsys):
    write_run("a", [0.1, 0.6, 0.9])
    write_run("b=c", [0.2, 0.2])
    runs = {"a": results.read("a"), "named": results.read("b=c"), "b=c": results.read("b=c")}
    for style in ("text", "markdown", "latex", "csv"):
        assert run("analyze a named=b=c b=c --radii 0 0.15 0.5 --format", style) == 0
        assert capsys.readouterr().out == results.table(runs, [0, 0.15, 0.5], style) + "\n"


@pytest.mark.parametrize(
    ("largest", "radii"),
    [
        (0.0, [0.0]),
        (0.95, [0.0, 0.25, 0.5, 0.75]),
        (0.8, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (1.9, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),
        (3.8, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]),
        (0.0021, [0.0, 0.0005, 0.001, 0.0015, 0.002]),
        (640.0, [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]),
    ],
)
def test_default_radii_are_round_steps_up_to_the_largest_certified_radius(capsys, largest, radii):
    write_run("a", [largest, largest / 3])
    write_run("wrong", [1e6], label=2)
    run("analyze a wrong --format csv")
    header = capsys.readouterr().out.splitlines()[0].split(",")
    assert header == ["run", "images", "sigma", "n", "alpha", "norm", "ACR", "abstained", *(f"r={r}" for r in radii)]


@pytest.mark.parametrize(("largest", "radii"), [(5e-324, "0 5e-324"), (1e-301, "0 1e-301"), (1.7e308, "0 2.5e307 1.5e308")])
def test_default_radii_of_the_smallest_and_largest_floats(capsys, largest, radii):
    write_table("a.tsv", *(f"{i}\t1\t1\t{largest}\t1\t0" for i in range(3)))
    assert run("analyze a.tsv --format csv") == 0
    captured = capsys.readouterr()
    header = captured.out.splitlines()[0].split(",")
    assert {f"r={float(r)}" for r in radii.split()} <= set(header)
    assert len(header) < 16
    assert captured.err == ""


def test_default_radii_of_a_run_without_labels(capsys):
    write_run("a", [0.4, 0.2], label=None)
    run("analyze a --format csv")
    captured = capsys.readouterr()
    (row,) = csv.DictReader(captured.out.splitlines())
    assert (row["r=0.2"], row["r=0.25"], row["r=0.4"]) == ("1.0", "0.5", "0.5")
    assert "a: no labels: shares of images certified at r, right or wrong" in captured.err


def write_table(path, *rows, header="idx\tlabel\tpredict\tradius\tcorrect\ttime"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{line}\n" for line in (header, *rows)))


ROW = "0\t1\t1\t0.5\t1\t0"


def test_a_table_without_rows_is_left_out_among_others_and_an_error_alone(capsys):
    for name, rows in (("a.tsv", [ROW]), ("b.tsv", []), ("c.tsv", [ROW, ROW])):
        write_table(name, *rows)
    Path("d.tsv").touch()
    for command in ("analyze a.tsv b.tsv c.tsv d.tsv --format csv", "plot a.tsv b.tsv c.tsv d.tsv --out plot.svg"):
        assert run(command) == 0
        captured = capsys.readouterr()
        prefix = f"rsfast {command.split()[0]}: warning: "
        assert captured.err.splitlines() == [
            f"{prefix}b.tsv must have at least one row, got a header only; it is left out",
            f"{prefix}d.tsv must have a header and rows, got neither; it is left out",
            f"{prefix}runs differ in the number of images: 1 in a.tsv, 2 in c.tsv",
        ]
    for command in ("analyze b.tsv", "analyze d.tsv b.tsv", "plot b.tsv --out none.png"):
        assert " must have " in fail(capsys, command)
    assert not Path("none.png").exists()


def test_a_row_that_was_cut_off_is_told(capsys):
    write_table("a.tsv", ROW)
    with open("a.tsv", "a") as file:
        file.write("1\t1\t1")
    assert run("analyze a.tsv --format csv --radii 0.5") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1] == "a.tsv,1,,,,,0.5,0.0,1.0"
    assert captured.err == "rsfast analyze: warning: a.tsv: the last row was cut off; it is left out\n"


def test_a_run_that_is_not_finished_is_told(capsys):
    write_run("a", [0.5, 0.25], sidecar={"start": 3, "end": 9, "skip": 3})
    write_run("b", [0.5, 0.25, 0.1], sidecar={"start": 0, "end": 500, "skip": 1})
    for command in ("analyze a b", "plot a b --out plot.png"):
        run(command)
        assert f"rsfast {command.split()[0]}: warning: b: not finished: 3 of 500 images\n" in capsys.readouterr().err


def test_runs_are_named_before_the_last_equals_sign(capsys):
    """Unless a run goes by the whole, or by what follows another."""
    for path in ("lr=0.1/seed=2/t.tsv", "plain.tsv", "x=y.tsv", "y.tsv"):
        write_table(path, ROW)
    for text, name in (
        ("lr=0.1/seed=2/t.tsv", "lr=0.1/seed=2/t.tsv"),
        ("run=lr=0.1/seed=2/t.tsv", "run"),
        ("sigma=0.25=plain.tsv", "sigma=0.25"),
        ("x=y.tsv", "x=y.tsv"),
        ("z=x=y.tsv", "z=x"),
    ):
        assert run("analyze", text, "--format", "csv") == 0
        assert capsys.readouterr().out.splitlines()[1].startswith(f"{name},1,")
    for text, missing in (("a=b=c.tsv", "c.tsv"), ("=plain.tsv", "=plain.tsv"), ("plain.tsv=", "plain.tsv=")):
        assert f"{missing} must be a run folder or a table, but there is none of that name" in fail(
            capsys, f"analyze {text}"
        )


@pytest.mark.parametrize(("norm", "noise"), [("l0", Mask(0.1)), ("projections", SubspaceSmoothing(np.eye(4)[:, None]))])
@pytest.mark.parametrize(
    ("largest", "radii"), [(0, [0]), (1, [0, 1]), (6, [*range(7)]), (9, [0, 2, 4, 6, 8]), (95, [*range(0, 81, 20)])]
)
def test_default_radii_are_whole_numbers_where_radii_are(norm, noise, largest, radii, capsys):
    write_run("counted", [0.0, float(largest)], sidecar={"noise": noise.to_dict(), "norm": norm})
    assert run("analyze counted --format csv") == 0
    header = capsys.readouterr().out.splitlines()[0].split(",")
    assert [name for name in header if name.startswith("r=")] == [f"r={float(r)}" for r in radii]


def test_a_table_that_states_no_norm_is_named(capsys):
    """Beside runs that state one, by analyze and plot; not where there is nothing that it could differ from."""
    write_run("known", [0.1, 0.6], sidecar={"noise": Laplace(0.5).to_dict(), "norm": "l1"})
    write_run("plain", [0.1, 0.6])
    Path("plain/results.tsv").rename("plain.tsv")
    note = "warning: no norm is stated of plain.tsv, so it may be another than the l1 of the others"
    for command in ("analyze", "plot --out a.svg"):
        assert run(f"{command} plain.tsv known") == 0
        assert f"rsfast {command.split()[0]}: {note}\n" in capsys.readouterr().err
        for text in ("plain.tsv", "known"):
            assert run(f"{command} {text}") == 0
            assert "no norm is stated" not in capsys.readouterr().err


def test_predictions_are_analyzed_and_drawn(capsys):
    run(f"predict {BASE} --n 100 --out labels")
    write_run("radii", [0.1, 0.6])
    found = results.read("labels")
    capsys.readouterr()
    assert run("analyze labels --format csv") == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row == {
        "run": "labels",
        "images": "7",
        "sigma": "0.5",
        "n": "100",
        "alpha": "0.001",
        "norm": "",
        "accuracy": str(found.correct.mean()),
        "abstained": str((found.predict == -1).mean()),
    }
    assert run("analyze labels radii --radii 0.5 --format csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["accuracy"], row["r=0.5"]) for row in rows] == [(str(found.correct.mean()), ""), ("1.0", "0.5")]
    assert run("analyze labels --radii 0.5") == 0
    assert capsys.readouterr().err == "rsfast analyze: warning: --radii has no effect: predictions have no radius\n"
    assert run("plot labels radii --out plot.svg") == 0


@pytest.mark.parametrize("kept", [3, 7])
@pytest.mark.parametrize("command", ["certify --n0 20", "predict"])
def test_a_summary_after_a_resumption_has_the_time_of_all_rows(capsys, command, kept):
    """Also if there was nothing left to do."""
    environment = Environment(clock=itertools.count(step=100.0).__next__)  # each row takes minutes
    run(f"{command} {BASE} --n 200 --out run", environment=environment)
    table = Path("run/results.tsv")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[: kept + 1]))
    capsys.readouterr()
    run(f"{command} {BASE} --n 200 --out run --resume", environment=environment)
    seconds = float(capsys.readouterr().out.partition(" images in ")[2].partition(" s, ")[0])
    assert seconds == pytest.approx(results.read("run").seconds, abs=0.051)
    assert seconds >= 7 * 100


def test_plot_writes_every_file(scratch):
    write_run("a", [0.1, 0.6, 0.9])
    assert run("plot a b=a --out one.png --out two.pdf --out three.svg --title x") == 0
    assert (scratch / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (scratch / "two.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (scratch / "three.svg").read_bytes()


@pytest.mark.parametrize("healthy", [True, False])
def test_doctor_prints_the_report_and_exits_by_it(monkeypatch, capsys, healthy):
    monkeypatch.setattr(doctor, "report", lambda: ("the report", healthy))
    assert run("doctor") == (0 if healthy else 1)
    assert capsys.readouterr().out == "the report\n"


def test_demo_passes_its_options_on(monkeypatch):
    calls = []
    monkeypatch.setattr(demo, "run", lambda out, **options: calls.append((out, options)))
    assert run("demo") == 0
    assert run("demo --out elsewhere --images 5 --seed 3") == 0
    assert calls == [(Path("demo"), {"images": 200, "seed": 2026}), (Path("elsewhere"), {"images": 5, "seed": 3})]


def fail(capsys, command):
    """Return the message of a command that must fail: one line, exit status 2, nothing on stdout."""
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(command))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    prefix = f"rsfast {command.split()[0]}: error: "
    assert captured.err.startswith(prefix)
    return captured.err.removeprefix(prefix)


def test_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        run("nonsense")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("demo", "certify", "predict", "analyze", "plot", "doctor"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sigma 0", "sigma must be positive, finite and a normal float32, got 0.0"),
        ("--sigma x", "argument --sigma: must be a number, got 'x'"),
        ("--noise laplace:1", "argument --noise: not allowed with argument --sigma"),
        ("--num-classes 5", "num_classes must be 4, the logits that model returns a row, got 5"),
        ("--num-classes 1", "num_classes must be at least 2, got 1"),
        ("--alpha 1.5", "alpha must be a finite number above 0 and below 1, got 1.5"),
        ("--alpha 1.5 --head softmax", "alpha must be a finite number above 0 and below 1, got 1.5"),
        ("--n 0", "n must be from 1 to 8589934591, got 0"),
        ("--n0 1e3", "argument --n0: must be an integer, got '1e3'"),
        ("--n 8589934592", "n must be from 1 to 8589934591, got 8589934592"),
        ("--batch-size 0", "batch_size must be from 1 to 8589934591, got 0"),
        ("--seed -1", "seed must be in [0, 2^64), got -1"),
        ("--head soft", "argument --head: must be votes, softmax:T, sparsemax:T or clipped:LOW:HIGH, got 'soft'"),
        ("--head votes:1", "argument --head: must be votes, softmax:T, sparsemax:T or clipped:LOW:HIGH, got 'votes:1'"),
        ("--head softmax:0", "temperature must be a finite number above 0, got 0.0"),
        ("--head clipped:1:0", "low must be below high, both in float32, got 1.0 and 0.0"),
        ("--head softmax --bound clopper_pearson", "got 'clopper_pearson'"),
        ("--head clipped:0:1 --rule one_vs_rest", "got 'one_vs_rest'"),
        ("--bound nonsense", "argument --bound: invalid choice: 'nonsense'"),
        ("--backend nonsense", "backend must be one of 'auto', 'reference', 'cpu', 'cuda', 'triton', got 'nonsense'"),
        ("--backend cuda", "backend must be one that can run on 'cpu', got 'cuda': its tensors must be on a GPU"),
        ("--device nonsense", "--device must be cpu, cuda or cuda:N, got 'nonsense'"),
        ("--device mps", "--device must be cpu, cuda or cuda:N, got 'mps'"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("--model tiny_nets:doubles", "pass dtype=torch.float64, or"),
        ("--start 7", "start and end must be 0 <= start < end <= 7, the number of images, got 7 and 7"),
        ("--start -1", "the number of images, got -1 and 7"),
        ("--end 8", "the number of images, got 0 and 8"),
        ("--start 1 --end 5 --skip 5", "skip must be positive and have a multiple from start 1 to before end 5, got 5"),
        ("--mean 0", "mean and std must be given together"),
        ("--std 1", "mean and std must be given together"),
        ("--mean 0 0 --std 1", "mean must have 1 or 3 numbers, one a channel, got 2"),
        ("--mean 0 --std 1 1 1 1", "std must have 1 or 3 numbers, one a channel, got 4"),
        ("--mean 0 --std -1", "std must be positive and finite, got [-1.0]"),
        ("--clamp 1 0", "clamp must be (low, high) with low <= high, got [1.0, 0.0]"),
        ("--clamp nan 1", "clamp must be (low, high) with low <= high, got [nan, 1.0]"),
        ("--clamp 0 nan", "clamp must be (low, high) with low <= high, got [0.0, nan]"),
        ("--clamp inf 0", "clamp must be (low, high) with low <= high, got [inf, 0.0]"),
        ("--clamp 0", "argument --clamp: expected 2 arguments"),
        ("--clamp 0 x", "argument --clamp: must be a number, got 'x'"),
        ("--mean nan --std 1", "shift must be finite, got [nan, nan, nan]"),
        ("--model tiny_nets", "--model must be MODULE:FACTORY"),
        ("--model no_such_module:Net", "--model no_such_module:Net: ModuleNotFoundError: No module named"),
        ("--model tiny_nets:net", "--model tiny_nets:net: AttributeError: module 'tiny_nets' has no attribute 'net'"),
        ("--model tiny_nets:number", "--model tiny_nets:number: TypeError: 'int' object is not callable"),
        ("--model tiny_nets:needs_argument", "missing 1 required positional argument: 'width'"),
        ("--model tiny_nets:fails", "--model tiny_nets:fails: tiny_nets.py, line 25: ValueError: the factory's own words"),
        ("--model builtins:dict", "--model builtins:dict must return a model, callable on a batch, got {}"),
        ("--model tiny_nets:returns_tuple", "model must return the logits, a tensor [B, K], or an object"),
        ("--model tiny_nets:misfit", "model tiny_nets:misfit fails on a batch [1, 3, 4, 4] of float32: mat1 and mat2"),
        ("--weights missing.safetensors", "missing.safetensors"),
        ("--weights missing.pt", "No such file or directory: 'missing.pt'"),
        ("--weights tiny_nets.py", "--weights tiny_nets.py is damaged or holds more than tensors"),
        ("--weights module.pt", "--weights module.pt holds a tiny_nets.Net, and nothing but tensors is unpickled"),
        ("--weights text.safetensors", "--weights text.safetensors is damaged or holds more than tensors"),
        ("--weights list.pt", "--weights list.pt does not fit model tiny_nets:Net: it holds a list, not tensors by name"),
        ("--weights other.pt", "does not fit model tiny_nets:Net: weight is missing, head is unexpected"),
        ("--weights other.pt --model tiny_nets:function", "must return a torch.nn.Module for weights, got a function"),
        ("--data missing.npz", "No such file or directory: 'missing.npz'"),
        ("--data tiny_nets.py", "--data tiny_nets.py is not an .npz file"),
        ("--out tiny_nets.py", "tiny_nets.py"),
        ("--abc", "unrecognized arguments: --abc"),
    ],
)
def test_mistakes_in_options_are_one_line_and_leave_no_run(capsys, options, message):
    torch.save(net(), "module.pt")
    torch.save([torch.zeros(1)], "list.pt")
    torch.save({"head": torch.zeros(1)}, "other.pt")
    Path("text.safetensors").write_text("text")
    assert message in fail(capsys, f"certify {BASE} --n 20 --out run {options}")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": np.zeros(3)}, "--data bad.npz must hold images (or x), and may hold labels (or y), got pixels"),
        ({}, "got nothing; name them so"),
        (
            {"images": np.zeros((2, 3, 4, 4), int)},
            "got int64; save pixels from 0 to 255 as uint8, and others as float32: images",
        ),
        ({"images": np.zeros((2, 3, 4, 4))}, "--data bad.npz: images must be float32 or uint8, got float64; save"),
        ({"images": np.zeros(2, np.float32)}, "--data bad.npz: images must be [N, ...] and not empty, got [2]"),
        ({"images": np.zeros((0, 3), np.float32)}, "--data bad.npz: images must be [N, ...] and not empty, got [0, 3]"),
        ({"images": np.array([{}])}, "--data bad.npz: images.npy: it must hold numbers, got Python objects"),
        ({"images": np.array([[0], [np.inf]], np.float32)}, "got NaN or infinity in images[1]"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(3, int)}, "must be integers [2], got int64 [3]"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(2)}, "--data bad.npz: y must be integers [2], got float64 [2]"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.array([1, 4])}, "must be from 0 to 3, as num_classes is 4, got 1 to 4"),
        (
            {"x": np.zeros((2, 4), np.float32), "y": np.array([-1, 3])},
            "must be from 0 to 3, as num_classes is 4, got -1 to 3",
        ),
    ],
)
def test_mistakes_in_the_data_are_one_line_and_leave_no_run(capsys, arrays, message):
    np.savez("bad.npz", **arrays)
    assert message in fail(capsys, f"predict {BASE} --data bad.npz --out run")
    assert not Path("run").exists()


def test_an_existing_run_is_refused_and_kept(capsys):
    run(f"certify {BASE} --n 20 --end 1 --out run")
    capsys.readouterr()
    before = {file.name: file.read_bytes() for file in Path("run").iterdir()}
    for command in ("certify", "predict"):
        assert "--out run must be a folder without a run, got one with results.tsv; name another" in fail(
            capsys, f"{command} {BASE} --n 20 --out run"
        )
    assert {file.name: file.read_bytes() for file in Path("run").iterdir()} == before


def test_too_few_samples_are_warned_of(capsys):
    for command, enough in (("certify", 10), ("predict", 11)):
        for n in (enough - 1, enough):
            run(f"{command} {BASE} --n {n} --end 1 --out {command}{n}")
            error = capsys.readouterr().err
            warning = f"rsfast {command}: warning: n is {n}: at alpha = 0.001 every input abstains"
            assert error.startswith(warning) if n < enough else error == ""
    for n in (10, 11):  # by the bound for scores
        run(f"certify {BASE} --n {n} --head softmax --end 1 --out soft{n}")
        error = capsys.readouterr().err
        assert error.endswith(" needs n of at least 11\n") if n < 11 else error == ""


@pytest.mark.parametrize("head", ["votes", "softmax:0.5"])
def test_a_radius_that_no_votes_prove_is_warned_of(capsys, head):
    for radius in (0.5, 2):
        run(f"certify {BASE} --n 200 --head {head} --radius {radius} --end 1 --out run{radius}")
        error = capsys.readouterr().err
        warning = (
            f"rsfast certify: warning: radius is {radius}.0: no input can reach it, as at sigma = 0.5 and alpha = 0.001"
        )
        assert error.startswith(warning) if radius == 2 else error == ""
    assert " n = 200 unanimous votes prove the l2 radius 0." in error


@pytest.mark.parametrize(
    ("gpus", "must_be"), [(0, "cpu, as torch sees no GPU here"), (2, "one of the 2 GPUs that torch sees here")]
)
def test_a_missing_gpu_is_named(capsys, monkeypatch, gpus, must_be):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert fail(capsys, f"certify {BASE} --device cuda:99 --out run") == f"--device must be {must_be}, got 'cuda:99'\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("analyze missing", "missing must be a run folder or a table, but there is none of that name"),
        ("analyze a ./a a", "runs must have different names, got 'a' twice; write NAME=RUN"),
        ("analyze a --radii x", "argument --radii: must be a number, got 'x'"),
        ("plot a --out missing/a.png", "--out must be in a folder that exists, got 'missing/a.png'"),
        ("analyze a --radii -1", "radii must be finite and at least 0, got [-1.0]"),
        ("analyze a --format html", "argument --format: invalid choice: 'html'"),
        ("analyze tiny_nets.py", "tiny_nets.py, line 1: the header is"),
        ("plot a --out a.svg --out a.jpg", "--out must end in one of .png, .pdf, .svg, got 'a.jpg'"),
        ("analyze a --radii 0 inf", "radii must be finite and at least 0, got [0.0, inf]"),
        ("analyze a --radii nan", "radii must be finite and at least 0, got [nan]"),
        ("plot a", "the following arguments are required: --out"),
        ("analyze /dev/null", "/dev/null must be a regular file, got a device"),
        ("plot /dev/zero --out a.png", "/dev/zero must be a regular file, got a device"),
        ("demo --images 501", "images must be from 1 to 500, got 501"),
    ],
)
def test_mistakes_with_runs_are_one_line(capsys, command, message):
    write_run("a", [0.5])
    assert message in fail(capsys, command)


def test_a_missing_extra_is_one_line(capsys, monkeypatch):
    def without_extra(out, **options):
        raise ImportError("the demo needs sklearn: pip install 'rsfast[demo]'")

    monkeypatch.setattr(demo, "run", without_extra)
    assert fail(capsys, "demo") == "the demo needs sklearn: pip install 'rsfast[demo]'\n"


def test_module_runs_and_reads_results_without_torch():
    write_run("a", [0.5, 0.25])
    code = (
        "import runpy, sys\n"
        "sys.argv = ['rsfast', 'analyze', 'a']\n"
        "try:\n"
        "    runpy.run_module('rsfast', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rsfast.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert done.stdout == results.table({"a": results.read("a")}, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) + "\n0 False\n"
