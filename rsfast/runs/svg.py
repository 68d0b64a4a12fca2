"""Figures of a report, as SVG within the page, whose colours are the page's: they change with light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..noise import radius_label
from ..noise.norms import is_counted
from ..stats.certificate import ABSTAIN
from .plot import draw_curves, new_figure
from .results import Results, common_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _LINE = "#010203", "#e6e6e6"  # of texts and axes; of the grid, which draw_curves makes 0.9
_SERIES = [f"#0{i}0{i}ff" for i in range(10)]
_COLOURS = {
    _INK: "currentColor",
    "#000000": "currentColor",
    _LINE: "var(--line)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(_SERIES)},
}
_BINS = 30  # of a histogram, at most


def curves(results_by_name: Mapping[str, Results], *, envelope: bool = False) -> str:
    """Return the certified accuracy of runs against radius, without a legend: run i has the colour ``--c{i % 10}``."""
    norms = {run.norm for run in results_by_name.values() if run.has_radius}
    label = radius_label(common_norm(results_by_name), unit=True) if len(norms) < 2 else "radius"
    return _svg("curves", lambda figure: draw_curves(figure, results_by_name, label, envelope=envelope), height=3.1)


def histogram(run: Results, salt: str) -> str:
    """Return the histogram of the radii of images that are answered: right ones in ``--c2``, wrong ones above in ``--c3``.

    Without labels all are in ``--c0``. `salt` tells the figures of one page apart.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        answered = run.predict != ABSTAIN
        most = float(run.radius[answered].max(initial=0))
        if is_counted(run.norm):
            step = max(1, -(-int(most + 1) // _BINS))
            edges = np.arange(0, most + 1 + step, step) - 0.5
        else:
            edges = np.linspace(0, most or 1.0, _BINS + 1)
        groups = [answered & run.correct, answered & ~run.correct] if run.labelled else [answered]
        bottom = np.zeros(len(edges) - 1)
        for group, colour in zip(groups, (2, 3) if run.labelled else (0,), strict=True):
            heights, _ = np.histogram(run.radius[group], edges)
            axes.bar(edges[:-1], heights, np.diff(edges) * 0.92, bottom, align="edge", color=f"C{colour}")
            bottom = bottom + heights
        axes.set(xlabel=radius_label(run.norm, unit=True), ylabel="images", xlim=(edges[0], edges[-1]))
        for axis in (axes.yaxis, axes.xaxis) if is_counted(run.norm) else (axes.yaxis,):
            axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(color=_LINE, linewidth=0.8, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    return _svg(salt, draw, height=2.1)


def _svg(salt: str, draw: Callable[[Figure], object], *, height: float) -> str:
    """Return what is drawn as an element that takes the width it is given."""
    figure = new_figure((4.8, height))  # first, as it says what is missing
    from cycler import cycler
    from matplotlib import rc_context

    look: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        **{"svg.fonttype": "none", "svg.hashsalt": salt, "axes.facecolor": "none"},
        **{"axes.prop_cycle": cycler(color=_SERIES), "path.simplify_threshold": 0.5},
    }
    content = io.StringIO()
    with rc_context(look):
        draw(figure)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", facecolor="none", metadata=metadata)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    for colour, of_page in _COLOURS.items():
        text = text.replace(colour, of_page)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # an id must be unique on a page
    return text.replace("xlink:href", "href").strip()
