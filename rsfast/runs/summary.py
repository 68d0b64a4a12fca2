"""Several runs beside each other: a table with one row a run, and the upper envelope of runs that differ in noise."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import LATEX_ESCAPE_RULES, tabulate

from ..noise.norms import is_counted
from .results import (
    Results,
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    clean_accuracy,
    common_norm,
    notes,
    progress,
)

ENVELOPE = "upper envelope"
"""What tables and plots call it."""

ENVELOPE_NOTE = (
    "upper envelope: at each radius the best of the runs. The noise is chosen for all images at once, by their own accuracy."
)

TABLE_FORMATS = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}
"""Formats of tables for papers, and what tabulate calls them."""

_SETTINGS = ("sigma", "n", "alpha", "norm")
"""Columns of settings. A noise that is not Gaussian has one more, "noise", after sigma."""
_MAX_COLUMNS = 8  # of certified accuracies, after radius 0
_TINY = 1e-300  # a radius with no round step below it
_LONG = 1e6  # an average radius from which on it is written with an exponent


def envelope(results_by_name: Mapping[str, Results], radii: ArrayLike) -> NDArray[np.float64]:
    """Return the upper envelope of runs that differ in the size of their noise: the best certified accuracy at each radius.

    Papers print it to show what one may reach by the choice of sigma. At each radius one noise is chosen for the whole set,
    by the accuracy on these same images. So the figure is slightly optimistic for new images; choose sigma on other images
    to avoid that. It is not the accuracy of choosing the best sigma for each image: that would need certificates of all
    sigmas at once, with alpha divided by their number.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        Runs of certify, at least two, on the same images, with noise of one kind. Their models may differ, as those that
        were trained with each noise do.
    radii : array_like
        As `certified_accuracy` takes them.

    Returns
    -------
    ndarray of float64
        In [0, 1], of the shape of radii.

    Raises
    ------
    ValueError
        If there are fewer than two runs, or they differ in norm, kind of noise, top_k, images or labels.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, section 4.

    Examples
    --------
    >>> two = np.arange(2)
    >>> small = Results(two, two, two, np.array([0.5, 0.5]), np.array([True, True]))
    >>> large = Results(two, two, np.array([-1, 1]), np.array([0.0, 1.0]), np.array([False, True]))
    >>> envelope({"sigma 0.25": small, "sigma 0.5": large}, [0.0, 0.5, 1.0])
    array([1. , 1. , 0.5])
    """
    if len(results_by_name) < 2:
        raise ValueError(f"the upper envelope must be of at least two runs, got {len(results_by_name)}")
    common_norm(results_by_name)
    (first_name, first), *others = results_by_name.items()
    for name, run in results_by_name.items():
        if not run.has_radius:
            raise ValueError(f"the upper envelope must be of runs with radii, got predictions in {name}; leave them out")
    for name, run in others:
        one, other = (((each.sidecar or {}).get("noise") or {}).get("name") for each in (first, run))
        if one is not None and other is not None and one != other:
            raise ValueError(
                f"the upper envelope must be of runs with one kind of noise, got {one} in {first_name} and {other} in {name}"
            )
        if run.top_k != first.top_k:
            raise ValueError(
                f"the upper envelope must be of runs with one top_k, got {first.top_k} in {first_name} and {run.top_k} in "
                f"{name}"
            )
        if _images(run) != _images(first):
            raise ValueError(
                f"the upper envelope must be of runs on the same images with the same labels, got others in {first_name} "
                f"than in {name}"
            )
    return np.asarray(np.max([certified_accuracy(run, radii) for run in results_by_name.values()], axis=0))


def _images(run: Results) -> list[tuple[int, int]]:
    """Return idx and label of each image, in the order of idx; where no idx is known, in that of the rows."""
    pairs = list(zip(run.idx.tolist(), run.label.tolist(), strict=True))
    return pairs if (run.idx == -1).any() else sorted(pairs)


def round_radii(results_by_name: Mapping[str, Results]) -> list[float]:
    """Return 0 and the multiples, at most eight, of a round step up to the largest certified radius.

    With them the radii that runs were asked to decide. The step is a whole number where radii are.
    """
    runs = results_by_name.values()
    asked = {float(radius) for run in runs for radius in run.stopping.radii}
    largest = max(float(run.radius[run.certified].max(initial=0)) for run in runs)
    if largest < _TINY:
        return sorted({0.0, largest} | asked)
    decade, steps = 10.0 ** math.floor(math.log10(largest / _MAX_COLUMNS)), (1, 2.5, 5, 10)
    if is_counted(common_norm(results_by_name)):
        decade, steps = max(decade, 1.0), (1, 2, 5, 10)
    step = next(each * decade for each in steps if largest / (each * decade) <= _MAX_COLUMNS)
    return sorted({float(f"{i * step:.6g}") for i in range(int(largest / step) + 1)} | asked)


def table(
    results_by_name: Mapping[str, Results], radii: Sequence[float], format: str = "text", *, envelope: bool = False
) -> str:
    """Return one row per run: images, sigma, noise, n, alpha, norm, ACR, share abstained, accuracy at each radius.

    ACR is the average certified radius. Where predictions are among the runs there is a column of accuracies, and where
    there is nothing else none of radii.
    Shares are percentages with one decimal, and csv holds the unrounded fractions. They are rounded to nearest, unlike a
    radius: the table estimates accuracy from a test set and certifies nothing. Runs that have `notes` are marked with an
    asterisk, and the notes follow the table; of a run that is not finished, images is "120 of 500". But csv has neither.
    Of sigma, n, alpha and norm, what no run has recorded is left out; in csv it is an empty column. There is a
    column noise if a run's is not Gaussian.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        At least one run.
    radii : sequence of float
        At least 0, in the norm of the runs.
    format : {"text", "markdown", "latex", "csv"}
    envelope : bool
        Add a row of the upper `envelope` of all runs.

    Returns
    -------
    str
        Without a trailing newline. LaTeX needs the booktabs package.

    Raises
    ------
    ValueError
        If format is none of these, there is no run, two runs have different norms, or a radius is negative, infinite or
        NaN; or `envelope` raises it.
    """
    if format not in ("csv", *TABLE_FORMATS):
        raise ValueError(f"format must be one of {', '.join(TABLE_FORMATS)}, csv, got {format!r}")
    if format == "csv":
        header, rows = _rows(results_by_name, radii, every_setting=True, envelope=envelope)
        text = io.StringIO()
        writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().removesuffix("\n")
    header, cells, below = cells_of(results_by_name, radii, envelope=envelope)
    below = [f"* {note}" for note in below]
    if format == "markdown":
        cells = [[name.replace("|", r"\|").replace(" *", r" \*"), *rest] for name, *rest in cells]
        below = [f"\\{note}" for note in below]
    if format == "latex":
        below = [escape_latex(note) for note in below]
    alignment = ["left", *["right"] * (len(header) - 1)]
    lines = tabulate(cells, header, tablefmt=TABLE_FORMATS[format], disable_numparse=True, colalign=alignment)
    return "\n\n".join([str(lines), *below])


def escape_latex(text: str) -> str:
    """Return a text as LaTeX sets it.

    >>> print(escape_latex("50% of a_b"))
    50\\% of a\\_b
    """
    return "".join(LATEX_ESCAPE_RULES.get(each, each) for each in text)


def escape_markdown(text: str) -> str:
    """Return a text, in one line, as Markdown shows it, in a table too.

    >>> print(escape_markdown("a|b <c> *d*"))
    a\\|b &lt;c&gt; \\*d\\*
    """
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def html_table(results_by_name: Mapping[str, Results], radii: Sequence[float]) -> str:
    """Return `table` as HTML, escaped, for a notebook."""
    header, cells, below = cells_of(results_by_name, radii)
    lines = str(tabulate(cells, header, tablefmt="html", disable_numparse=True))
    return "\n".join([lines, *(f"<p>* {html.escape(note)}</p>" for note in below)])


def cells_of(
    results_by_name: Mapping[str, Results], radii: Sequence[float], *, envelope: bool = False
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the header of `table`, its rows of texts, and the notes; the name of a run that has one ends in an asterisk."""
    header, rows = _rows(results_by_name, radii, envelope=envelope)
    cells = []
    for row, run in zip(rows, results_by_name.values(), strict=False):  # the envelope is no run
        shown = {name: _cell(name, value) for name, value in row.items()}
        mark = " *" if notes({"": run}) else ""
        cells.append([f"{row['run']}{mark}", progress(run), *(shown[name] for name in header[2:])])
    below = notes(results_by_name)
    if envelope:
        cells.append([f"{ENVELOPE} *", *(_cell(name, rows[-1][name]) for name in header[1:])])
        below.append(ENVELOPE_NOTE)
    return header, cells, below


def _rows(
    results_by_name: Mapping[str, Results], radii: Sequence[float], *, every_setting: bool = False, envelope: bool = False
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns of a table, those of settings only where a run has them unless all are asked for, and its rows."""
    if not results_by_name:
        raise ValueError("results_by_name must hold at least one run, got none")
    if isinstance(radii, str) or not hasattr(radii, "__iter__"):
        raise TypeError(f"radii must be a list of numbers, got {radii!r:.80}")
    common_norm(results_by_name)
    rows = [_row(name, run, radii) for name, run in results_by_name.items()]
    always = {"run", "images", "accuracy", "abstained", *(_SETTINGS if every_setting else ())}
    header = [name for name in rows[0] if name in always or any(row[name] is not None for row in rows)]
    if all(run.has_radius for run in results_by_name.values()):
        header.remove("accuracy")  # it is that at radius 0
    if envelope:
        rows.append(_envelope_row(results_by_name, radii, rows[0]))
    return header, rows


def _envelope_row(results_by_name: Mapping[str, Results], radii: Sequence[float], like: Mapping[str, Any]) -> dict[str, Any]:
    best = dict(zip((f"r={float(r)}" for r in radii), envelope(results_by_name, radii).tolist(), strict=True))
    return {**dict.fromkeys(like), "run": ENVELOPE, "images": like["images"], **best}


def _row(name: str, run: Results, radii: Sequence[float]) -> dict[str, Any]:
    """Return the figures of a run by column; None is unknown."""
    accuracies = certified_accuracy(run, radii).tolist()
    return {
        "run": name,
        "images": len(run.idx),
        **{setting: getattr(run, setting) for setting in ("sigma", "noise", *_SETTINGS[1:])},
        "norm": run.norm if run.has_radius else None,
        "accuracy": clean_accuracy(run) if run.labelled else None,
        "ACR": average_certified_radius(run) if run.has_radius else None,
        "abstained": abstention_rate(run),
        **{f"r={float(r)}": each if run.has_radius else None for r, each in zip(radii, accuracies, strict=True)},
    }


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "ACR":
        return f"{value:.3f}" if value < _LONG else f"{value:.3e}"
    return str(value) if name in ("run", "images", "noise", *_SETTINGS) else f"{value:.1%}"
