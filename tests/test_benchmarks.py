"""The benchmarks: their checks pass, and let no wrong kernel be timed; one JSON has both sides of a race and the ratio."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

import rsfast
from benchmarks import bench_accumulate, bench_certify, bench_perturb, bench_tabular
from rsfast import ops

ROOT = Path(__file__).resolve().parent.parent


def pytest_benchmarks(*arguments):
    """Return what pytest prints in a new process, which has one thread and does not take itself for a worker of xdist."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.parametrize(
    ("benchmarks", "count"),
    [
        ("perturb or (accumulate and not 1000) or (tabular and sample)", "36 passed"),
        pytest.param(
            "(tabular and not sample) or (accumulate and 1000) or (heads_forward and small) or (certify and not memory)",
            "38 passed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_checks_pass(benchmarks, count):
    assert count in pytest_benchmarks("benchmarks", "--benchmark-disable", "-k", benchmarks)


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    perturb = ops.perturb

    def wrong(*arguments, backend="auto", **options):
        found = perturb(*arguments, backend=backend, **options)
        return found.add_(1e-3) if backend == "auto" else found

    monkeypatch.setattr(bench_perturb, "alternate", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(bench_accumulate, "alternate", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(ops, "perturb", wrong)
    monkeypatch.setattr(ops, "accumulate", lambda *_: None)
    with pytest.raises(AssertionError):
        bench_perturb.against_torch(1, "CIFAR", torch.float32)
    with pytest.raises(AssertionError):
        bench_perturb.against_gaussian(1, "Laplace")
    with pytest.raises(AssertionError):
        bench_perturb.against_levels(1, 2)
    with pytest.raises(AssertionError):
        bench_accumulate.against_torch(1, 10)


def test_a_wrong_certificate_is_not_recorded(monkeypatch):
    certified = {"certify": (0.5, 3, 0.6), "Loop2019": (1.5, 3, 0.61)}
    monkeypatch.setattr(bench_certify, "as_a_user_gets_it", lambda contender, *_: certified[contender])
    assert bench_certify.against_loop(1, "certify", "conv net") == {"ours": [0.5], "theirs": [1.5]}
    for wrong in ((0.5, 4, 0.6), (0.5, 3, 0.7)):
        certified["certify"] = wrong
        with pytest.raises(AssertionError):
            bench_certify.against_loop(1, "certify", "conv net")


def test_wrong_answers_to_small_inputs_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench_tabular, "alternate", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(rsfast, "sample", lambda *_, **__: rsfast.Tally(1, bench_tabular.CLASSES))
    with pytest.raises(AssertionError):
        bench_tabular.against_plain_loop(1, "certify", "one input, n = 100,000", 10)
    theirs = [(0, 0.5), (2, 0.4)]
    bench_tabular.check_answers([(0, 0.51), (2, 0.4)], theirs, 1000)
    for wrong in ([(0, 0.5), (1, 0.4)], [(0, 0.25), (2, 0.4)], [(0, 0.5), (-1, 0.0)]):
        with pytest.raises(AssertionError):
            bench_tabular.check_answers(wrong, theirs, 1000)


@pytest.mark.slow
def test_one_json_has_both_sides_and_their_ratio(tmp_path):
    file = tmp_path / "benchmarks.json"
    test = "benchmarks/bench_perturb.py::test_perturb_torch"
    table = pytest_benchmarks(
        *(f"{test}[{side}-bfloat16-CIFAR]" for side in ("ours", "theirs")), "--benchmark-only", f"--benchmark-json={file}"
    )
    assert "| perturb, bfloat16, CIFAR batch | repeat + randn_like * sigma |" in table
    found = json.loads(file.read_text())
    ours, theirs = found["benchmarks"]
    assert ours["group"] == theirs["group"] == "perturb, bfloat16, CIFAR batch, against repeat + randn_like * sigma"
    assert ours["extra_info"] == found["table"][0]
    assert ours["stats"]["rounds"] == theirs["stats"]["rounds"] == 15
    assert ours["stats"]["min"] > 0
    ratio = median(theirs["stats"]["data"]) / median(ours["stats"]["data"])
    assert ours["extra_info"]["ratio"] == pytest.approx(ratio)
