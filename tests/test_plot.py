"""The curve is certified accuracy at its exact steps, and the figure draws that curve."""

import sys
import traceback
from dataclasses import replace

import numpy as np
import pytest
from conftest import largest_file

from rsfast.runs.plot import curve, plot
from rsfast.runs.results import Results, certified_accuracy


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


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF-"), (".PNG", b"\x89PNG"), (".svg", b"<?xml")]
)
def test_files(suffix, magic, tmp_path):
    path = tmp_path / f"figure{suffix}"
    plot({"run": random_run(1)}, path, title="CIFAR-10", norm="l1")
    content = path.read_bytes()
    assert content.startswith(magic)
    assert len(content) > 4000


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_full_disk_leaves_the_figure_before(suffix, tmp_path):
    path = tmp_path / f"figure{suffix}"
    plot({"run": random_run(1)}, path)
    before = path.read_bytes()
    with largest_file(4000), pytest.raises(OSError, match=f"in writing .*figure{suffix}") as raised:
        plot({"run": random_run(2)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    # An error that was caught is often in a cycle with its frames, and Python 3.12.1 crashes in the garbage collector when
    # a view of a BytesIO is in one; 3.13.0 warns.
    held = [value for frame, _ in traceback.walk_tb(raised.tb) for value in frame.f_locals.values()]
    assert not any(isinstance(value, memoryview) for value in held)


@pytest.mark.parametrize(
    ("norm", "label"),
    [
        ("l0", "l0 radius (changed elements, pixels or patches)"),
        ("l2", "l2 radius (input units)"),
        ("mahalanobis", "Mahalanobis radius (standard deviations)"),
        ("of another version", "of another version radius (its units)"),
        (None, "radius (input units)"),
    ],
)
def test_the_axis_names_the_norm_and_its_unit(norm, label, figures, tmp_path):
    run = random_run(1)
    plot({"run": replace(run, sidecar={"norm": norm})}, tmp_path / "figure.svg")
    assert figures[0].axes[0].get_xlabel() == label


def test_the_axis_names_no_norm_that_not_all_runs_state(figures, tmp_path):
    runs = {"a": replace(random_run(1), sidecar={"norm": "l1"}), "b": random_run(2)}
    for more, label in (({}, "radius"), ({"norm": "l1"}, "l1 radius (input units)")):
        plot(runs, tmp_path / "figure.svg", **more)
        assert figures[-1].axes[0].get_xlabel() == label


def test_figure_draws_the_curve_and_names_everything(figures, tmp_path):
    # As TeX, the second name would be an error.
    runs = {"sigma = 0.25": random_run(1), r"a_$\b$": random_run(2), "all abstain": abstained()}
    plot(runs, str(tmp_path / "figure.png"), title="CIFAR-10", norm="l1")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "l1 radius (input units)"
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


def legend_of(figure):
    """The legend, wherever it is."""
    return figure.axes[0].get_legend() or figure.legends[0]


def legend_names(figure):
    return [text.get_text() for text in legend_of(figure).get_texts()]


NAMES = {
    "twenty": [f"out/method_{k}/noise_0.5/test" for k in range(20)],
    "sixty": [f"run {k}" for k in range(60)],
    "a long one": ["a/" + "x" * 700],
    "wide letters": [f"{k}{'W' * 200}" for k in range(3)],
    "many words": [f"{k} is a run " * 15 for k in range(7)],
    "two": ["a", "b"],
}


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
@pytest.mark.parametrize("title", [None, "one title of many words " * 20, "W" * 200])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.filterwarnings("error")
def test_legend_and_title_stay_on_the_page_and_off_the_curves(names, title, suffix, figures, tmp_path):
    plot({name: random_run(1, rows=20) for name in names}, tmp_path / f"figure{suffix}", title=title)
    (figure,) = figures
    (axes,) = figure.axes
    area, page, box = axes.get_window_extent(), figure.bbox, legend_of(figure).get_window_extent()
    for each in (box, axes.title.get_window_extent()):
        assert -1 <= each.x0 <= each.x1 <= page.x1 + 1
        assert -1 <= each.y0 <= each.y1 <= page.y1 + 1
    assert not area.overlaps(box) or box.width * box.height < area.width * area.height / 4
    assert area.height > 2.5 * figure.dpi  # inches
    assert len(legend_names(figure)) == len(names)


def test_forty_lines_can_be_told_apart(figures, tmp_path):
    plot({str(k): random_run(k, rows=5) for k in range(40)}, tmp_path / "figure.png")
    looks = [(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines]
    assert len(set(looks)) == 40
    assert {style for _, style in looks[:10]} == {"-"}


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["runs/a/test/0.25", "runs/b/test/0.25"], ["a", "b"]),
        (["runs/a/x", "runs/b/c/x", "runs/a/c/x"], ["a", "b/c", "a/c"]),
        (["run", "run/again"], ["run", "run/again"]),
        (["x/run", "run"], ["x/run", "run"]),
        (["a/b/a", "a/a"], ["b/a", "a"]),
        (["noise 0.25", "noise 0.5"], ["noise 0.25", "noise 0.5"]),
        (["/abs/one", "/abs/two"], ["one", "two"]),
        (["some/folder/of/one"], ["some/folder/of/one"]),
        (["_a$x$", r"_b_$\c$"], ["_a$x$", r"_b_$\c$"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_names_share_is_left_out_of_the_legend(names, shown, figures, tmp_path):
    plot({name: random_run(1, rows=5) for name in names}, tmp_path / "figure.png", title=r"_$\c$")
    assert legend_names(figures[0]) == shown
    assert len(set(shown)) == len(names)


def predictions(run):
    return replace(run, radius=np.zeros(len(run.idx)), has_radius=False)


def test_predictions_are_a_point(figures, tmp_path):
    runs = {"certified": random_run(1), "predicted": predictions(random_run(2)), "again": predictions(random_run(3))}
    plot(runs, tmp_path / "figure.png")
    _, *points = figures[0].axes[0].lines
    for line, run in zip(points, list(runs.values())[1:], strict=True):
        assert line.get_xydata().tolist() == [[0, run.correct.mean()]]
        assert (line.get_marker(), line.get_linestyle(), line.get_clip_on()) == ("o", "None", False)
    abstained = f"{(runs['predicted'].predict == -1).mean():.1%} abstained"
    assert legend_names(figures[0])[:2] == ["certified", f"predicted (predictions, {abstained})"]


def test_predictions_alone(figures, tmp_path):
    plot({"predicted": predictions(random_run(2))}, tmp_path / "figure.png")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == (0, 1)
    assert len(axes.lines) == 1


def test_runs_without_labels_are_called_so(figures, tmp_path):
    labelled = random_run(1)
    unlabelled = replace(labelled, label=np.full(300, -1), correct=np.zeros(300, dtype=bool))
    plot({"run": unlabelled}, tmp_path / "figure.png")
    plot({"run": unlabelled, "labelled": labelled}, tmp_path / "figure.png")
    alone, both = figures
    assert alone.axes[0].get_ylabel() == "share certified, right or wrong"
    assert both.axes[0].get_ylabel() == "certified accuracy"
    assert legend_names(alone) == ["run (no labels: right or wrong)"]
    assert legend_names(both) == ["run (no labels: right or wrong)", "labelled"]
    x, y = alone.axes[0].lines[0].get_data()
    answered = unlabelled.predict != -1
    assert y[:-1].tolist() == [(answered & (unlabelled.radius >= r)).mean() for r in x[:-1]]
    assert y[0] > 0.5


def test_a_run_that_is_not_finished_is_called_so(figures, tmp_path):
    run = replace(random_run(1), sidecar={"start": 0, "end": 1000, "skip": 2, "rtol": 0.1})
    plot({"run": run}, tmp_path / "figure.png")
    assert legend_names(figures[0]) == ["run (lower bound, not finished: 300 of 500 images)"]


@pytest.mark.parametrize("radius", [5e-324, 1e-323, 1e-310, 1e-30, 1e30, 9e299])
@pytest.mark.filterwarnings("error")
def test_radii_of_any_size_are_drawn(radius, figures, tmp_path):
    run = random_run(1, rows=3)
    plot({"run": replace(run, radius=np.array([radius, 0, radius / 2]))}, tmp_path / "figure.png")
    assert len(figures) == 1


@pytest.mark.parametrize("radius", [1e300, 1e308, sys.float_info.max])
def test_a_radius_that_is_too_large_to_draw_is_refused(radius, tmp_path):
    three = np.arange(3)
    run = Results(three, three, three, np.array([0, radius, 1]), three >= 0)
    with pytest.raises(ValueError, match=r"radii must be below 1e\+300 to be drawn, got 1.*e\+30\d in run"):
        plot({"other": random_run(1), "run": run}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ValueError, match=r"path must end in one of \.png, \.pdf, \.svg, got '.*figure.*'"):
        plot(None, tmp_path / name)


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"path must be in a folder that exists, got '.*nowhere/figure\.svg'"):
        plot(None, tmp_path / "nowhere/figure.svg")


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="results_by_name must hold at least one run"):
        plot({}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"a plot needs matplotlib: pip install 'rsfast\[plot\]'"):
        plot({"run": random_run(1)}, tmp_path / "figure.png")
