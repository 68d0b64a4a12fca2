"""Reports that a person reads: what runs certify, as one HTML page, or as Markdown or LaTeX for a paper."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from .._check import check_choice
from .._extras import import_extra
from .._versions import __version__
from ..noise import radius_label
from ..stats.certificate import ABSTAIN
from . import svg
from .guarantee import command, guarantee, settings, subject
from .layout import Skipped
from .pictures import thumbnail
from .plot import what
from .results import Results, abstention_rate, average_certified_radius, caveats, certified_accuracy, progress
from .summary import ENVELOPE, TABLE_FORMATS, cells_of, escape_latex, escape_markdown, round_radii, table
from .writer import format_radius

FORMATS = {"html": "report.html", "markdown": "report.md", "latex": "report.tex"}
"""Formats and their templates."""

MOST_ROWS = 1000
"""Images whose rows a page shows, of each run. A page of 50,000 rows would take a browser seconds to lay out."""

SHOWN = 12
"""Images that are shown as the hardest, and as the safest."""

_MATRIX = 20  # classes of a confusion matrix, at most
_PAIRS = 30  # confusions that are listed where there are more classes

Images = Callable[[int], Any]
"""Returns the picture of an idx, as `pictures.thumbnail` takes it."""


class Table(NamedTuple):
    """A table of a page: rows of (text, number to sort by)."""

    header: Sequence[str]
    rows: Sequence[Sequence[tuple[str, float | str]]]


class Shown(NamedTuple):
    """An image that a page shows."""

    name: str
    picture: str
    label: str
    answer: str
    radius: str
    verdict: str


def report(
    results_by_name: Mapping[str, Results],
    format: str = "html",
    *,
    radii: Sequence[float] | None = None,
    envelope: bool = False,
    images: Mapping[str, Images | str] | None = None,
) -> str:
    """Return a report of runs: what they certify and how, tables, figures, the hardest and the safest images.

    A page of HTML is complete in itself. It has the rows of at most 1,000 images of each run.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        At least one run, all in one norm.
    format : {"html", "markdown", "latex"}
        LaTeX has the tables only, and needs the booktabs package.
    radii : sequence of float, optional
        Of the tables; round steps by default.
    envelope : bool
        Add the upper `summary.envelope` of all runs to table and figure.
    images : mapping, optional
        By the name of a run: a function of an image's idx that returns its picture, float [C, H, W] in [0, 1] or uint8, or
        a text that says why there is none.

    Raises
    ------
    ValueError
        If format is another one, there is no run, two runs have different norms, or a radius is not finite or negative; or
        `envelope` raises it.
    ImportError
        If jinja2, or for HTML matplotlib, is not installed.

    Examples
    --------
    >>> three = np.arange(3)
    >>> run = Results(three, three, three, np.array([0.5, 0.25, 0.5]), np.array([True, True, False]))
    >>> "66.7%" in report({"run": run}, "markdown")
    True
    """
    check_choice("format", format, tuple(FORMATS))
    if not results_by_name:
        raise ValueError("results_by_name must hold at least one run, got none")
    radii = round_radii(results_by_name) if radii is None else radii
    header, cells, notes = cells_of(results_by_name, radii, envelope=envelope)
    shown: dict[str, Any] = {
        "title": "Certified robustness" if any(run.has_radius for run in results_by_name.values()) else "Predictions",
        "version": __version__,
        "notes": notes,
        "caveats": caveats(results_by_name),
    }
    if format == "html":
        of_runs = images or {}
        has_radius = any(run.has_radius for run in results_by_name.values())
        shown |= {
            "summary": Table(header, [[(text, _number(text)) for text in row] for row in cells]),
            "curves": svg.curves(results_by_name, envelope=envelope) if has_radius else "",
            "legend": list(_legend(results_by_name, envelope)),
            "runs": [_of_run(name, run, i, of_runs.get(name, "")) for i, (name, run) in enumerate(results_by_name.items())],
        }
    else:
        text = table(results_by_name, radii, format, envelope=envelope)
        shown["table"] = html.escape(text, quote=False) if format == "markdown" else text  # Markdown shows HTML
        shown["runs"] = [_in_words(name, run, format) for name, run in results_by_name.items()]
    return _render(FORMATS[format], shown)


def _render(template: str, shown: Mapping[str, Any]) -> str:
    jinja2 = import_extra("jinja2", "report", "a report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rsfast.runs"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": escape_markdown, "latex": escape_latex}
    text: str = environment.get_template(template).render(shown)
    return text


def _legend(results_by_name: Mapping[str, Results], envelope: bool) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the colour and the style of each line of the figure, as `plot.draw_curves` draws it."""
    for i, (name, run) in enumerate(results_by_name.items()):
        style = ("solid", "dashed", "dotted", "dashed")[i // 10 % 4] if run.has_radius else "double"
        yield name + what(run), f"var(--c{i % 10})", style
    if envelope:
        yield ENVELOPE, "color-mix(in srgb, currentColor 30%, transparent)", "solid"


def _of_run(name: str, run: Results, number: int, images: Images | str) -> dict[str, Any]:
    """Return what a page shows of one run."""
    hardest, safest, reason = _extremes(run, images)
    return {
        "name": name,
        "guarantee": guarantee(run),
        "subject": subject(run),
        "figures": list(_figures(run)),
        "skipped": [_skipped(each) for each in run.skipped],
        "histogram": svg.histogram(run, f"radii{number}") if run.has_radius and (run.predict != ABSTAIN).any() else "",
        "labelled": run.labelled,
        "radius": radius_label(run.norm),
        "classes": by_class(run),
        "classes_left": max(0, len(_classes(run)) - MOST_ROWS),
        "confusion": _confusion(run),
        "hardest": hardest,
        "safest": safest,
        "no_pictures": reason,
        "rows": _rows(run),
        "rows_left": max(0, len(run.idx) - MOST_ROWS),
        "settings": settings(run),
        "command": command(run),
    }


def _in_words(name: str, run: Results, format: str) -> dict[str, Any]:
    """Return what Markdown and LaTeX say of one run."""
    classes = by_class(run)
    cells = [[escape_markdown(text) if format == "markdown" else text for text, _ in row] for row in classes.rows]
    alignment = ["left", *["right"] * (len(classes.header) - 1)]
    lines = tabulate(cells, classes.header, TABLE_FORMATS[format], disable_numparse=True, colalign=alignment)
    return {
        "name": name,
        "guarantee": guarantee(run),
        "subject": subject(run),
        "skipped": [_skipped(each) for each in run.skipped],
        "classes": lines,
        "settings": settings(run),
        "command": command(run),
    }


def _figures(run: Results) -> Iterator[tuple[str, str]]:
    """Yield the few figures at the head of a run: what they are, and their values."""
    yield "images", progress(run)
    lower, upper = ("at least ", "at most ") if run.stopped_early else ("", "")
    if run.labelled:
        yield "accuracy", f"{lower}{certified_accuracy(run, 0.0):.1%}"
    if run.has_radius:
        yield f"average certified {radius_label(run.norm)}", f"{lower}{average_certified_radius(run):.4g}"
    yield "abstained", f"{upper}{abstention_rate(run):.1%}"


def _skipped(each: Skipped) -> str:
    """Return an image that could not be read, and why, as one line."""
    return f"idx {each.idx}: {each.reason}" if each.name is None else f"{each.name} (idx {each.idx}): {each.reason}"


def _class(run: Results, number: int) -> str:
    """Return how a page calls a class: by its number, and by its name if it has one."""
    if number == ABSTAIN:
        return "abstained"
    named = run.class_names is not None and 0 <= number < len(run.class_names)
    return f"{number} {run.class_names[number]}" if named and run.class_names is not None else str(number)


def _classes(run: Results) -> NDArray[np.int64]:
    """Return the classes that a run's table is divided by: those of the labels, or else of the answers."""
    values = run.label if run.labelled else run.predict
    return np.unique(values[values >= 0])


def by_class(run: Results) -> Table:
    """Return the table of accuracy, abstention and mean radius by class; of answers where there are no labels."""
    rows = []
    for number in _classes(run)[:MOST_ROWS].tolist():
        mine = (run.label if run.labelled else run.predict) == number
        count = int(mine.sum())
        row: list[tuple[str, float | str]] = [(_class(run, number), number), (f"{count}", count)]
        if run.labelled:
            shares = float(run.certified[mine].mean()), float((run.predict[mine] == ABSTAIN).mean())
            row += [(f"{share:.1%}", share) for share in shares]
        if run.has_radius:
            mean = float(np.where(run.certified, run.radius, 0.0)[mine].mean(dtype=np.longdouble))
            row.append((f"{mean:.4g}", mean))
        rows.append(row)
    header = ["class", "images", "accuracy", "abstained"] if run.labelled else ["answer", "images"]
    return Table([*header, f"mean {radius_label(run.norm)}"] if run.has_radius else header, rows)


def _confusion(run: Results) -> dict[str, Any]:
    """Return the confusion matrix; of more than 20 classes the most frequent confusions instead; nothing without labels."""
    known = run.label >= 0
    pairs, counts = np.unique(np.stack([run.label, run.predict])[:, known], axis=1, return_counts=True)
    found = {(label, answer): count for (label, answer), count in zip(pairs.T.tolist(), counts.tolist(), strict=True)}
    classes = sorted({each for pair in found for each in pair} - {ABSTAIN})
    if len(classes) > _MATRIX:
        wrong = sorted((-n, label, answer) for (label, answer), n in found.items() if answer not in (label, ABSTAIN))
        texts = [
            ((_class(run, label), label), (_class(run, each), each), (f"{-n}", -n)) for n, label, each in wrong[:_PAIRS]
        ]
        pairs_table = Table(["label", "answer", "images"], texts)
        return {"answers": [], "cells": [], "pairs": pairs_table, "left": max(0, len(wrong) - _PAIRS)}
    answers, cells = [*classes, ABSTAIN], []
    for label in classes:
        total = sum(found.get((label, each), 0) for each in answers)
        row = [(n := found.get((label, each), 0), n / (total or 1), label == each) for each in answers]
        cells.append((_class(run, label), row))
    return {"answers": [_class(run, each) for each in answers], "cells": cells, "pairs": Table([], []), "left": 0}


def margins(run: Results) -> NDArray[np.float64]:
    """Return the radius of each image, negative where the answer is wrong: the lower, the harder.

    Without labels it is the radius.

    Examples
    --------
    >>> three = np.arange(3)
    >>> margins(Results(three, three, np.array([0, 2, -1]), np.array([0.5, 0.25, 0]), np.array([True, False, False])))
    array([ 0.5 , -0.25,  0.  ])
    """
    wrong = run.labelled & (run.predict != ABSTAIN) & ~run.correct & (run.label != -1)
    return np.where(wrong, -run.radius, run.radius) + 0.0


def _extremes(run: Results, images: Images | str) -> tuple[list[Shown], list[Shown], str]:
    """Return the hardest and the safest images with their certificates, and why there are no pictures, if so."""
    if not run.has_radius:
        return [], [], "predictions have no radius to order images by"
    order = np.argsort(margins(run), kind="stable")
    few = min(SHOWN, max(1, len(order) // 2))
    hardest, safest = order[:few].tolist(), order[::-1][: few if len(order) > 1 else 0].tolist()
    pictures: dict[int, str] = {}
    reason = images if isinstance(images, str) else ""
    if not isinstance(images, str) and (run.idx == -1).any():
        reason = "the table does not say which image is in which row"
    elif not isinstance(images, str):
        try:
            pictures = {row: thumbnail(images(int(run.idx[row]))) for row in {*hardest, *safest}}
        except (OSError, ValueError, IndexError) as error:
            reason = str(error)
    found = [[_shown(run, row, pictures.get(row, "")) for row in rows] for rows in (hardest, safest)]
    return found[0], found[1], reason


def _shown(run: Results, row: int, picture: str) -> Shown:
    label, answer = int(run.label[row]), int(run.predict[row])
    verdict = "abstained" if answer == ABSTAIN else "" if label == -1 else "right" if run.correct[row] else "wrong"
    return Shown(
        name=_name(run, row),
        picture=picture,
        label="" if label == -1 else _class(run, label),
        answer=_class(run, answer),
        radius=format_radius(float(run.radius[row])),
        verdict=verdict,
    )


def _name(run: Results, row: int) -> str:
    idx = f"idx {run.idx[row]}" if run.idx[row] != -1 else f"row {row + 1}"
    return f"{run.names[row]} ({idx})" if run.names is not None else idx


def _rows(run: Results) -> Table:
    """Return a row for each image, the first 1,000."""
    header = ["idx", *(["name"] if run.names is not None else []), *(["label"] if run.labelled else []), "answer"]
    header += [radius_label(run.norm)] if run.has_radius else []
    header += ["verdict"] if run.labelled else []
    rows = []
    for row in range(min(MOST_ROWS, len(run.idx))):
        each = _shown(run, row, "")
        cells: list[tuple[str, float | str]] = [(str(run.idx[row]), int(run.idx[row]))]
        cells += [(run.names[row], run.names[row])] if run.names is not None else []
        cells += [(each.label, int(run.label[row]))] if run.labelled else []
        cells += [(each.answer, int(run.predict[row]))]
        cells += [(each.radius, float(run.radius[row]))] if run.has_radius else []
        cells += [(each.verdict, each.verdict)] if run.labelled else []
        rows.append(cells)
    return Table(header, rows)


def _number(text: str) -> float | str:
    """Return what a cell of the summary is sorted by."""
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        return text
