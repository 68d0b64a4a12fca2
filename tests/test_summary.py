"""The upper envelope of runs is chosen for the whole set, never for an image; it stands in tables and plots."""

from dataclasses import replace

import numpy as np
import pytest

from rsfast import results
from rsfast.cli import main
from rsfast.results import certified_accuracy, envelope, table
from rsfast.runs.plot import figure
from rsfast.runs.results import Results
from rsfast.runs.summary import cells_of


def sidecar(sigma, name="Gaussian"):
    return {"noise": {"name": name, "sigma": sigma}, "n": 1000, "alpha": 0.001}


def sweep(rows=200, seed=0):
    """Three runs of the same images: more noise has larger radii and fewer right answers."""
    rng = np.random.default_rng(seed)
    label, runs = rng.integers(0, 3, rows), {}
    for sigma, wrong in ((0.25, 0.1), (0.5, 0.3), (1.0, 0.6)):
        predict = np.where(rng.random(rows) < wrong, -1, label)
        radius = np.where(predict == -1, 0, rng.random(rows) * 4 * sigma)
        runs[f"{sigma}"] = Results(np.arange(rows), label, predict, radius, predict == label, sidecar=sidecar(sigma))
    return runs


def test_envelope_is_the_best_run_at_each_radius_and_not_of_each_image():
    runs, radii = sweep(), np.linspace(0, 4, 33)
    best = envelope(runs, radii)
    each = np.array([[np.mean(run.correct & (run.radius >= r)) for r in radii] for run in runs.values()])
    assert best.tolist() == each.max(axis=0).tolist()
    assert len(set(each.argmax(axis=0))) == 3  # each noise is the best somewhere
    of_images = [np.mean(np.any([run.correct & (run.radius >= r) for run in runs.values()], axis=0)) for r in radii]
    assert (best < of_images).any()
    assert envelope(runs, [[0, 0.5]]).shape == (1, 2)


def test_the_order_of_rows_does_not_matter():
    runs = sweep()
    order = np.random.default_rng(1).permutation(200)
    fields = {name: getattr(runs["0.5"], name)[order] for name in ("idx", "label", "predict", "radius", "correct")}
    mixed = {**runs, "0.5": replace(runs["0.5"], **fields)}
    assert envelope(mixed, [0, 0.5, 1]).tolist() == envelope(runs, [0, 0.5, 1]).tolist()


def test_what_has_no_envelope():
    runs = sweep()
    run = runs["0.5"]
    for other, message in (
        ({}, "at least two runs, got 1"),
        ({"b": replace(run, idx=run.idx + 1)}, "on the same images with the same labels, got others in a than in b"),
        ({"b": replace(run, label=np.roll(run.label, 1), correct=run.correct & False)}, "the same labels"),
        ({"b": replace(run, has_radius=False)}, "of runs with radii, got predictions in b"),
        ({"b": replace(run, sidecar=sidecar(0.5, "GridGaussian"))}, "got Gaussian in a and GridGaussian in b"),
        ({"b": replace(run, sidecar=sidecar(0.5) | {"top_k": 5})}, "of runs with one top_k, got 1 in a and 5 in b"),
        ({"b": replace(run, sidecar={"norm": "l1"})}, "runs must have one norm, got l2 in a and l1 in b"),
    ):
        with pytest.raises(ValueError, match=message):
            envelope({"a": run, **other}, [0.5])


def test_table_has_its_row():
    runs, radii = sweep(), [0, 0.5, 1.5]
    best = envelope(runs, radii)
    without, with_it = (table(runs, radii, envelope=each).splitlines() for each in (False, True))
    assert [line.split() for line in with_it[2:5]] == [line.split() for line in without[2:]]
    assert with_it[5].split() == ["upper", "envelope", "*", "200", *"------", *(f"{each:.1%}" for each in best)]
    assert with_it[-1].startswith("* upper envelope: at each radius the best of the runs.")
    last = table(runs, radii, "csv", envelope=True).splitlines()[-1]
    assert last == ",".join(["upper envelope", "200", "", "", "", "", "", "", *map(str, best.tolist())])
    header, cells, _ = cells_of(runs, radii, envelope=True)
    assert [len(row) for row in cells] == [len(header)] * 4


def test_figure_has_its_line():
    runs = sweep()
    (axes,) = figure(runs, envelope=True).axes
    radii, accuracy = axes.lines[-1].get_data()
    assert accuracy[:-1].tolist() == envelope(runs, radii[:-1]).tolist()
    assert set(radii[1:-1]) == {r for run in runs.values() for r in run.radius[run.certified & (run.radius > 0)]}
    assert len(axes.lines) == 4
    legend = axes.get_legend() or axes.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [*runs, "upper envelope"]


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = sweep(rows=20)
    for name, run in runs.items():
        rows = zip(run.idx, run.label, run.predict, run.radius, run.correct, strict=True)
        lines = ["idx\tlabel\tpredict\tradius\tcorrect", *("\t".join(map(str, (*row[:4], int(row[4])))) for row in rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    names = [f"{name}={name}.tsv" for name in runs]
    assert main(["analyze", *names, "--envelope", "--radii", "0.5", "--format", "csv"]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split(",")[-1]) == envelope(runs, 0.5)
    assert main(["plot", *names, "--envelope", "--out", "a.svg"]) == 0
    assert (tmp_path / "a.svg").stat().st_size > 4000
    with pytest.raises(SystemExit):
        main(["plot", names[0], "--envelope", "--out", "a.svg"])
    assert "the upper envelope must be of at least two runs, got 1" in capsys.readouterr().err


def test_results_has_the_same_functions():
    runs = sweep()
    assert runs["0.25"].table([0, 0.5]) == results.table({"run": runs["0.25"]}, [0, 0.5])
    assert runs["0.25"].table() == results.table({"run": runs["0.25"]}, results.round_radii({"run": runs["0.25"]}))
    assert f"{certified_accuracy(runs['0.25'], 0.5):.1%}" in runs["0.25"].table([0.5], "latex").replace("\\", "")
