"""Runs of a changed model: certified from the run before and few pairs of samples, resumed, merged, checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rsfast import Gaussian, Run
from rsfast.cli import main
from rsfast.runs.layout import CERTIFY_COLUMNS, read_rows
from rsfast.runs.merge import merge
from rsfast.runs.recertify import check_rows, recertify

IMAGES = torch.rand((6, 1, 4, 4), generator=torch.Generator().manual_seed(2))
NOISE = Gaussian(0.25)


def network(change=0.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight += change * torch.randn((3, 16), generator=torch.Generator().manual_seed(9))
    return model


def run(out, model, noise=NOISE, seed=4, **options):
    return Run(model, IMAGES, noise, out, num_classes=3, labels=[0, 1, 2, 0, 1, 2], seed=seed, batch_size=256, **options)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    run(folder, network()).certify(n=20_000)
    return folder


def test_a_changed_model(before, tmp_path):
    """Its radii are those of the run before but for some per cent, and not above what the model has, certified anew."""
    found = run(tmp_path / "after", network(0.002)).recertify(before, network())
    anew = run(tmp_path / "anew", network(0.002)).certify(n=50_000)
    assert found.predict[:5].tolist() == anew.predict[:5].tolist()  # the last is close to a boundary
    assert found.predict[5] in (-1, anew.predict[5])
    assert 0.85 * anew.radius.sum() <= found.radius.sum()
    assert (found.radius <= anew.radius * 1.05).all()
    sidecar = json.loads((tmp_path / "after" / "results.json").read_text())
    assert (sidecar["rule"], sidecar["recertified_from"], sidecar["num_classes"]) == ("incremental", str(before), 3)
    lines = [json.loads(line) for line in (tmp_path / "after" / "counts.jsonl").read_text().splitlines()]
    assert all(line["pairs"]["trials"] <= 10_000 for line in lines)


def test_stopped_and_resumed(before, tmp_path):
    run(tmp_path / "whole", network(0.002)).recertify(before, network())

    def stop(index, certificate):
        if index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", network(0.002)).recertify(before, network(), each=stop)
    run(tmp_path / "parts", network(0.002), resume=True).recertify(before, network())
    tables = [(tmp_path / name / "results.tsv").read_text().splitlines() for name in ("whole", "parts")]
    whole, resumed = ([line.rpartition("\t")[0] for line in table] for table in tables)  # without the time
    assert whole == resumed
    with pytest.raises(ValueError, match="rtol must be"):
        run(tmp_path / "parts", network(0.002), resume=True).recertify(before, network(), rtol=0.2)


def test_merged_and_checked(before, tmp_path):
    """A row must follow from its counts; they prove nothing without the run before."""
    run(tmp_path / "a", network(0.002), end=3).recertify(before_of(tmp_path, end=3), network())
    run(tmp_path / "b", network(0.002), start=3).recertify(before_of(tmp_path, start=3), network())
    merged, missing = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert (merged, missing) == (list(range(6)), [])
    with pytest.raises(ValueError, match="recertify the run that they rest on"):
        recertify(tmp_path / "all", tmp_path / "again", alpha=0.01)
    rows = read_rows(tmp_path / "all", CERTIFY_COLUMNS)
    check_rows(tmp_path / "all", rows, CERTIFY_COLUMNS)
    with pytest.raises(ValueError, match="damaged"):
        check_rows(tmp_path / "all", [rows[1]._replace(radius=1.01 * rows[1].radius)], CERTIFY_COLUMNS)


def before_of(tmp_path, **part):
    folder = tmp_path / f"before {part}"
    run(folder, network(), **part).certify(n=2_000)
    return folder


def test_mistakes(before, tmp_path):
    with pytest.raises(ValueError, match="seed must be 4"):
        run(tmp_path / "out", network(), seed=5).recertify(before, network())
    with pytest.raises(ValueError, match=r"noise must be .*only the model may change"):
        run(tmp_path / "out", network(), Gaussian(0.5)).recertify(before, network())
    with pytest.raises(ValueError, match="got one with another state_dict"):
        run(tmp_path / "out", network()).recertify(before, network(0.002))
    with pytest.raises(ValueError, match="whose logits of the first image are"):
        run(tmp_path / "out", network()).recertify(before, network(0.2).forward)
    changed = network(0.002)
    with pytest.raises(ValueError, match="got the changed model itself"):
        run(tmp_path / "out", changed).recertify(before, changed)
    run(tmp_path / "predicted", network()).predict(100)
    with pytest.raises(ValueError, match="must be a run of rsfast certify"):
        run(tmp_path / "out2", network()).recertify(tmp_path / "predicted", network())


FACTORIES = """
import torch
from torch import nn

def before(change=0.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight += change * torch.randn((3, 16))
    return model

def pruned():
    return before(0.002)
"""


def test_the_command(tmp_path, capsys, monkeypatch):
    """The model before, the images and all settings are those that the run names."""
    (tmp_path / "nets_of_change.py").write_text(FACTORIES)
    np.savez(tmp_path / "images.npz", images=IMAGES.numpy(), labels=np.arange(6) % 3)
    monkeypatch.chdir(tmp_path)
    model = ["--model", "nets_of_change:before", "--num-classes", "3"]
    given = ["--sigma", "0.25", "-n", "5000", "--seed", "4", "--mean", "0.5", "--std", "0.5", "--end", "3"]
    assert main(["certify", *model, "--data", "images.npz", *given, "--out", "before"]) == 0
    changed = ["recertify", "before", "--model", "nets_of_change:pruned"]
    assert main([*changed, "--out", "after", "--rtol", "0.2"]) == 0
    sidecar = json.loads(Path("after", "results.json").read_text())
    assert (sidecar["model"], sidecar["end"], sidecar["rtol"]) == ("nets_of_change:pruned", 3, 0.2)
    capsys.readouterr()
    for wrong, text in (
        ([*changed, "--out", "other", "--rule", "top_two"], "--rule cannot be given with --model"),
        (["recertify", "before", "--out", "other", "--weights", "w.pt"], "--weights needs --model"),
        ([*changed, "--out", "other", "--data", "none.npz"], "--data none.npz"),
        (
            ["recertify", "after", "--model", "nets_of_change:before", "--out", "other"],
            "recertify the run that they rest on",
        ),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert text in capsys.readouterr().err
        assert not Path("other", "results.tsv").exists()
