"""The field's figure: certified accuracy against radius."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._extras import import_extra
from .._files import write_whole
from ..noise import radius_label
from .results import Results, abstention_rate, certified_accuracy, common_norm, progress
from .summary import ENVELOPE
from .summary import envelope as envelope_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

SUFFIXES = (".png", ".pdf", ".svg")
_STYLES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # each for as many runs as there are colours, ten
_LARGEST = 1e300  # a radius up to which matplotlib's own arithmetic stays finite


def curve(results: Results) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return every radius at which certified accuracy steps down, after radius 0, and the accuracy at each.

    Certified accuracy at r is the share with ``radius >= r``, so accuracy[i] holds on (radii[i - 1], radii[i]], and beyond
    the last radius it is 0.

    Returns
    -------
    radii, accuracy : ndarray of float64
        The first increasing from 0, the second decreasing from the clean accuracy.

    Examples
    --------
    >>> three = np.arange(3)
    >>> curve(Results(three, three, three, np.array([0.5, 0.25, 0.5]), np.array([True, True, False])))
    (array([0.  , 0.25, 0.5 ]), array([0.66666667, 0.66666667, 0.33333333]))
    """
    radii = np.unique(np.append(0.0, results.radius[results.certified]))
    return radii, certified_accuracy(results, radii)


def check_path(path: str | PathLike[str]) -> None:
    """Raise ValueError unless the suffix of a file to write is one of `SUFFIXES`, and its folder exists."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"path must be in a folder that exists, got {str(path)!r}")


def plot(
    results_by_name: Mapping[str, Results],
    path: str | PathLike[str],
    *,
    title: str | None = None,
    norm: str | None = None,
    envelope: bool = False,
) -> Figure:
    """Draw the certified accuracy of each run against radius, at its exact steps, and save the figure.

    Predictions have no radius: their accuracy is a point at radius 0. The legend names a curve that is not what the axis
    says: the lower bound of a run that stopped early, the share of images certified, right or wrong, where there are no
    labels, and a run that is not finished.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        At least one run. The names go to the legend, without the folders that all of them share at either end.
    path : path-like
        File to write; its suffix, .png, .pdf or .svg, chooses the format.
    title : str, optional
    norm : str, optional
        Norm in which the radii are measured, for the label of the axis; that of the runs by default, and none if not
        all of them state it.
    envelope : bool
        Draw the upper `summary.envelope` of all runs, too.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the suffix is another one, its folder is not there, there is no run, a certified radius is 1e300 or more, two
        runs have different norms, or `norm` is not theirs; or there is something else than a regular file at path; or
        `envelope` raises it.
    OSError
        If the file cannot be written, for want of space mostly. What was there before stays.
    ImportError
        If matplotlib is not installed.
    """
    check_path(path)
    made = figure(results_by_name, title=title, norm=norm, envelope=envelope)
    content = BytesIO()
    made.savefig(content, format=Path(path).suffix[1:].lower())
    write_whole(path, [content.getvalue()])
    return made


def figure(
    results_by_name: Mapping[str, Results], *, title: str | None = None, norm: str | None = None, envelope: bool = False
) -> Figure:
    """Return the figure that `plot` saves; a notebook shows it."""
    if not results_by_name:
        raise ValueError("results_by_name must hold at least one run, got none")
    of_runs = common_norm(results_by_name)
    if norm is not None and of_runs not in (None, norm):
        raise ValueError(f"norm must be that of the runs, {of_runs!r}, got {norm!r}")
    label = radius_label(norm or of_runs, unit=True)
    if norm is None and len({run.norm for run in results_by_name.values() if run.has_radius}) > 1:
        label = "radius"  # a table of another script states no norm

    # A Figure of its own, not pyplot's: no global state, no window, and Agg where there is no display.
    made = new_figure((6.4, 4.0))
    lines = draw_curves(made, results_by_name, label, envelope=envelope)
    (axes,) = made.axes
    if title is not None:
        above = axes.set_title(title, parse_math=False)
        more = 1 - 1 / _wrap(above)
        made.set_figheight(made.get_figheight() + more * above.get_window_extent().height / made.dpi)
    names = zip(_short(list(results_by_name)), results_by_name.values(), strict=True)
    _add_legend(made, lines, [*(name + what(run) for name, run in names), *([ENVELOPE] if envelope else [])])
    return made


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure, width and height in inches; raise ImportError if matplotlib is not installed."""
    import_extra("matplotlib", "plot", "a plot")
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:  # a notebook shows figures of pyplot, and no others, by itself
            content = BytesIO()
            self.savefig(content, format="png", dpi=100)
            return content.getvalue()

    return Shown(figsize=size, dpi=200, layout="constrained")


def draw_curves(
    figure: Figure, results_by_name: Mapping[str, Results], label: str, *, envelope: bool = False
) -> list[Line2D]:
    """Draw the certified accuracies of runs on axes of their own, x labelled as given, and return their lines."""
    from matplotlib.ticker import PercentFormatter

    curves = {name: curve(run) for name, run in results_by_name.items()}
    for name, (radii, _) in curves.items():
        if radii[-1] >= _LARGEST:
            raise ValueError(f"radii must be below {_LARGEST} to be drawn, got {radii[-1]} in {name}")
    right = 1.04 * max(radii[-1] for radii, _ in curves.values()) or 1.0
    axes = figure.add_subplot()
    lines: list[Line2D] = []
    for i, (name, (radii, accuracy)) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": f"C{i % 10}", "linewidth": 1.6}
        if results_by_name[name].has_radius:
            look["linestyle"] = _STYLES[i // 10 % len(_STYLES)]
            lines += axes.step(np.append(radii, right), np.append(accuracy, 0.0), where="pre", **look)
        else:
            marker = _MARKERS[i // 10 % len(_MARKERS)]
            lines += axes.plot(radii[:1], accuracy[:1], marker, clip_on=False, **look)
    if envelope:
        radii = np.unique(np.concatenate([radii for radii, _ in curves.values()]))
        best = np.append(envelope_at(results_by_name, radii), 0.0)
        look = {"color": "black", "linewidth": 3.2, "alpha": 0.3, "zorder": 1.5}  # wide, and below the runs that it touches
        lines += axes.step(np.append(radii, right), best, where="pre", **look)
    labelled = any(run.labelled for run in results_by_name.values())
    axes.set(xlabel=label, xlim=(0, right), ylim=(0, 1))
    axes.set_ylabel("certified accuracy" if labelled else "share certified, right or wrong")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return lines


def _short(names: list[str]) -> list[str]:
    """Return names without the folders that all share at their beginning and at their end.

    >>> _short(["runs/small/test/0.25", "runs/large/test/0.25"])
    ['small', 'large']
    """
    parts = [name.split("/") for name in names]
    most = min(map(len, parts)) - 1 if len(names) > 1 else 0  # something is left of each
    first = next((i for i in range(most) if len({part[i] for part in parts}) > 1), most)
    most -= first
    last = next((i for i in range(most) if len({part[-1 - i] for part in parts}) > 1), most)
    return ["/".join(part[first : len(part) - last]) for part in parts]


def what(run: Results) -> str:
    """Return what the legend says of a run beside its name."""
    more = []
    if not run.has_radius:
        more.append(f"predictions, {abstention_rate(run):.1%} abstained")
    if not run.labelled:
        more.append("no labels: right or wrong")
    if run.stopped_early:
        more.append("lower bound")
    if run.images_missing:
        more.append(f"not finished: {progress(run)} images")
    return f" ({', '.join(more)})" if more else ""


def _add_legend(figure: Figure, lines: list[Line2D], labels: list[str]) -> None:
    """Add the legend: in the axes where it takes less than a quarter of them, else below them, on a page longer by it."""
    (axes,) = figure.axes
    figure.draw_without_rendering()  # which lays the axes out
    area, page = axes.get_window_extent(), figure.bbox.width
    legend, width, height = _legend(axes, lines, labels)
    if width * height < area.width * area.height / 4 and width < area.width and height < area.height:
        return
    for columns in range(min(len(labels), 5), 0, -1):
        legend.remove()
        legend, width, height = _legend(figure, lines, labels, loc="outside lower center", fontsize="small", ncols=columns)
        if width < 0.98 * page:
            break
    figure.set_figheight(figure.get_figheight() + height / figure.dpi)


def _legend(where: Figure | Axes, lines: list[Line2D], labels: list[str], **options: Any) -> tuple[Legend, float, float]:
    """Return a legend, and its width and height."""
    legend = where.legend(lines, ["-"] * len(lines), edgecolor="none", **options)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)  # here, as matplotlib leaves out a label that begins with _
        _wrap(text)
    box = legend.get_window_extent()
    return legend, box.width, box.height


def _wrap(text: Text) -> int:
    """Break a text into as many lines as it needs to fit on the page beside axes' labels, and return their number."""
    figure = text.get_figure()
    assert figure is not None
    whole, characters = text.get_text(), 80
    while text.get_window_extent().width > 0.85 * figure.bbox.width and characters > 1:
        text.set_text(textwrap.fill(whole, characters))
        characters = characters * 7 // 8
    return text.get_text().count("\n") + 1
