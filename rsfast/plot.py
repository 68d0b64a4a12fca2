"""The field's figure: certified accuracy against radius."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsfast.results import Results, certified_accuracy

SUFFIXES = (".png", ".pdf")


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


def plot(
    results_by_name: Mapping[str, Results], path: str | PathLike[str], *, title: str | None = None, norm: str = "l2"
) -> None:
    """Draw the certified accuracy of each run against radius, at its exact steps, and save the figure.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        At least one run; the names go to the legend. The curve of a run that stopped sampling early is a lower bound, and
        called so.
    path : path-like
        File to write; its suffix, .png or .pdf, chooses the format.
    title : str, optional
    norm : str
        Norm in which the radii are measured, for the label of the axis.

    Raises
    ------
    ValueError
        If the suffix is another one, or there is no run.
    ImportError
        If matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"path is {str(path)!r}; its suffix must be one of {', '.join(SUFFIXES)}")
    if not results_by_name:
        raise ValueError("results_by_name is empty; it must hold at least one run")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise ImportError("plots need matplotlib, which `pip install rsfast[plot]` installs") from error

    # A Figure of its own, not pyplot's: no global state, no window, and Agg where there is no display.
    figure = Figure(figsize=(6.4, 4.0), dpi=200, layout="tight")
    axes = figure.add_subplot()
    curves = [curve(results) for results in results_by_name.values()]
    right = 1.04 * max(radii[-1] for radii, _ in curves) or 1.0
    lines = [
        axes.step(np.append(radii, right), np.append(accuracy, 0.0), where="pre", linewidth=1.6)[0]
        for radii, accuracy in curves
    ]
    axes.set(xlabel=f"radius ({norm}, input units)", ylabel="certified accuracy", xlim=(0, right), ylim=(0, 1))
    if title is not None:
        axes.set_title(title)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name} (lower bound)" if run.goal else name for name, run in results_by_name.items()]
    for text in axes.legend(lines, labels, edgecolor="none").get_texts():
        text.set_parse_math(False)
    figure.savefig(path)
