"""The curve is certified accuracy at its exact steps, and the figure draws that curve."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from rsfast.plot import curve, plot
from rsfast.results import Results, certified_accuracy


def random_run(seed, rows=300):
    rng = np.random.default_rng(seed)
    label, predict = rng.integers(0, 3, rows), rng.integers(-1, 3, rows)
    # Eighths, so that many rows share a radius and some are certified at 0.
    return Results(np.arange(rows), label, predict, rng.integers(0, 20, rows) / 8, predict == label)


def abstained():
    three = np.arange(3)
    return Results(three, three, np.full(3, -1), np.zeros(3), np.zeros(3, dtype=bool))


def test_curve_is_the_definition_at_and_between_its_steps():
    run = random_run(1)
    radii, accuracy = curve(run)
    assert radii[0] == 0
    assert (np.diff(radii) > 0).all()

    def definition(r):
        return np.mean(run.correct & (run.radius >= r))

    assert accuracy.tolist() == [definition(r) for r in radii]
    # On (radii[i - 1], radii[i]] the curve is accuracy[i], and 0 past the last.
    assert accuracy[1:].tolist() == [definition(np.nextafter(r, np.inf)) for r in radii[:-1]]
    assert definition(np.nextafter(radii[-1], np.inf)) == 0
    assert set(run.radius[run.correct]) <= set(radii)


def test_curve_of_abstentions_is_flat():
    radii, accuracy = curve(abstained())
    assert radii.tolist() == [0.0]
    assert accuracy.tolist() == [0.0]


@pytest.fixture
def figures(monkeypatch):
    """The figures that plot() saves."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def record(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF-"), (".PNG", b"\x89PNG")])
def test_files(suffix, magic, tmp_path):
    path = tmp_path / f"figure{suffix}"
    plot({"run": random_run(1)}, path, title="CIFAR-10", norm="l1")
    content = path.read_bytes()
    assert content.startswith(magic)
    assert len(content) > 4000


def test_figure_draws_the_curve_and_names_everything(figures, tmp_path):
    # As TeX, the second name would be an error.
    runs = {"sigma = 0.25": random_run(1), r"a_$\b$": random_run(2), "all abstain": abstained()}
    plot(runs, str(tmp_path / "figure.png"), title="CIFAR-10", norm="l1")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "radius (l1, input units)"
    assert axes.get_ylabel() == "certified accuracy"
    assert axes.get_title() == "CIFAR-10"
    assert axes.get_ylim() == (0, 1)
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "50%"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(runs)
    for line, run in zip(axes.lines, runs.values(), strict=True):
        x, y = line.get_data()
        # "pre": y[i] holds to the left of x[i], up to x[i - 1] and without it.
        assert line.get_drawstyle() == "steps-pre"
        assert y[:-1].tolist() == certified_accuracy(run, x[:-1]).tolist()
        assert x[-1] == axes.get_xlim()[1] > run.radius[run.correct].max(initial=0)
        assert y[-1] == 0


def test_runs_that_stopped_early_are_lower_bounds(figures, tmp_path):
    sidecars = {"all": {"radius": None}, "decided": {"radius": 0.5}, "to 10 %": {"rtol": 0.1}, "table alone": None}
    plot({name: replace(random_run(1), sidecar=sidecar) for name, sidecar in sidecars.items()}, tmp_path / "figure.png")
    names = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert names == ["all", "decided (lower bound)", "to 10 % (lower bound)", "table alone"]


def test_figure_of_abstentions_alone(figures, tmp_path):
    plot({"all abstain": abstained()}, tmp_path / "figure.png")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == (0, 1)
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 0]]


def test_no_pyplot_state(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot({"run": random_run(1)}, tmp_path / "figure.png")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.gz"])
def test_unknown_suffix_is_refused_before_any_work(name, tmp_path):
    # None is no mapping of results: had work begun, the error would be another one.
    with pytest.raises(ValueError, match=r"path is '.*figure.*'; its suffix must be one of \.png, \.pdf"):
        plot(None, tmp_path / name)


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="results_by_name is empty"):
        plot({}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install rsfast\[plot\]"):
        plot({"run": random_run(1)}, tmp_path / "figure.png")
