"""What a run says: its rows, certified accuracies, and what is to be known before figures are compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..engine.plan import StoppingRule
from ..noise import NOISES, Gaussian, Noise, radius_label
from ..noise import from_dict as noise_from_dict
from ..noise.constraints import distinct_texts
from ..stats import incremental
from ..stats.certificate import ABSTAIN
from . import layout
from .layout import CERTIFY_COLUMNS, COUNTS, PARTS, PREDICT_COLUMNS, SIDECAR, TABLE, Skipped, read_sidecar
from .tables import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_N = TypeVar("_N", int, float)


@dataclass(frozen=True, eq=False)
class Results:
    """The rows of one run, as arrays of one length, and its sidecar (None if it has none).

    A label or an idx of -1 is unknown. Predictions have no radius: `has_radius` is false then, and `radius` 0. `seconds` is
    the time that all rows took, None where it is unknown. `names` are those of the rows' images, None unless all have one.
    `skipped` are the images that could not be read: they have no row.

    In a notebook it shows as its `table`.
    """

    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    sidecar: dict[str, Any] | None = None
    has_radius: bool = True
    seconds: float | None = None
    names: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes; None where the sidecar has none."""
        names = (self.sidecar or {}).get("class_names")
        if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
            raise TypeError(f"class_names must be an array of strings, got {names!r:.80}")
        return names

    def table(self, radii: Sequence[float] | None = None, format: str = "text", *, name: str = "run") -> str:
        """Return the figures of this run as a table of one row: `summary.table`, with round radii by default.

        Examples
        --------
        >>> three = np.arange(3)
        >>> run = Results(three, three, three, np.array([0.5, 0.25, 0.5]), np.array([True, True, False]))
        >>> print(run.table([0, 0.5], "markdown"))
        | run   |   images |   ACR |   abstained |   r=0.0 |   r=0.5 |
        |:------|---------:|------:|------------:|--------:|--------:|
        | run   |        3 | 0.250 |        0.0% |   66.7% |   33.3% |
        """
        from .summary import round_radii, table

        runs = {name: self}
        return table(runs, round_radii(runs) if radii is None else radii, format)

    def plot(self, path: str | PathLike[str] | None = None, *, name: str = "run", title: str | None = None) -> Figure:
        """Return a figure of certified accuracy against radius, which a notebook shows; write it to a file, if one is named.

        Parameters, errors: as `plot.plot`.
        """
        from .plot import figure, plot

        if path is not None:
            return plot({name: self}, path, title=title)
        return figure({name: self}, title=title)

    def _repr_html_(self) -> str:
        from .summary import html_table, round_radii

        runs = {"run": self}
        return html_table(runs, round_radii(runs))

    @property
    def labelled(self) -> bool:
        """Whether a row has a label."""
        return bool((self.label != -1).any())

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Whether the radius of each row counts: it is no abstention and, if the run has labels, correct."""
        answered = self.predict != ABSTAIN
        return np.asarray(self.correct & answered if self.labelled else answered)

    @property
    def stopping(self) -> StoppingRule:
        """What sampling stopped at before it had drawn all samples; false where it never did.

        Raises
        ------
        TypeError, ValueError
            If the sidecar's ``radius`` or ``rtol`` is out of range. The same holds for the properties below.
        """
        sidecar = self.sidecar or {}
        return StoppingRule(sidecar.get("radius"), sidecar.get("rtol"))

    @property
    def stopped_early(self) -> bool:
        """Whether sampling may have stopped before all samples were drawn, so that figures are bounds."""
        return bool(self.stopping) or bool((self.sidecar or {}).get("stopped_early"))

    @property
    def sigma(self) -> float | None:
        """The noise's standard deviation, in the units of the input; None where the sidecar has none."""
        return _number(self._noise, "sigma", float)

    @property
    def noise(self) -> str | None:
        """A noise that is not Gaussian, as "Laplace, b = 0.5"; None of Gaussian noise, or one that rsfast does not know."""
        if (name := self._noise.get("name")) == Gaussian.__name__ or name not in list(NOISES):
            return None
        return f"{name}, {noise_from_dict(self._noise).settings}"

    @property
    def _noise(self) -> dict[str, Any]:
        noise = (self.sidecar or {}).get("noise")
        if not isinstance(noise, dict | None):
            raise TypeError(f"noise must be an object, got {noise!r:.80}")
        return noise or {}

    @property
    def _known_noise(self) -> Noise | None:
        try:
            return noise_from_dict((self.sidecar or {})["noise"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def norm_settings(self) -> dict[str, Any]:
        """The parameters of the noise that its norm depends on."""
        noise = self._known_noise
        return {} if noise is None else {name: getattr(noise, name) for name in noise.norm_fields}

    @property
    def norm(self) -> str | None:
        """The norm in which radii are measured; None where the sidecar has neither a norm nor a noise that rsfast knows."""
        of_noise = None if (noise := self._known_noise) is None else noise.norm
        norm = (self.sidecar or {}).get("norm", of_noise)
        if not isinstance(norm, str | None) or norm != (of_noise or norm):
            raise ValueError(f"norm must be {of_noise!r}, that of the noise, got {norm!r:.80}")
        return norm

    @property
    def n(self) -> int | None:
        """The samples that an image could take; None where the sidecar has no n."""
        return _number(self.sidecar, "n", int)

    @property
    def alpha(self) -> float | None:
        """The failure probability an image; None where the sidecar has none."""
        return _number(self.sidecar, "alpha", float)

    @property
    def top_k(self) -> int:
        """Of how many classes with the largest scores the prediction is one within the radius; 1 where it is the first."""
        return _number(self.sidecar, "top_k", int) or 1

    @property
    def images_missing(self) -> int:
        """How many rows fewer there are than the sidecar's start, end and skip ask for, but for `skipped`; 0 if unknown."""
        inputs = layout.inputs_of(self.sidecar or {})
        found = len(self.idx) + len(self.skipped)
        return 0 if inputs is None else max(0, -((inputs.start - inputs.stop) // inputs.step) - found)


def _number(settings: Mapping[str, Any] | None, name: str, kind: type[_N]) -> _N | None:
    """Return a setting of a sidecar, None where it is missing or null; raise ValueError if it is no such number."""
    value = (settings or {}).get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 <= value < 1 << 63:
        what = "an int" if kind is int else "a number"
        raise ValueError(f"{name} must be {what} from 0 to 2^63, got {value!r:.80}")
    return kind(value)


def read(path: str | PathLike[str]) -> Results:
    """Read a run folder of rsfast certify or predict, or any table with the columns that such a folder's has.

    Parameters
    ----------
    path : path-like
        A run folder or a TSV file, as `tables.read_table` reads it. The sidecar is read with a run folder's table, and with
        no other.

    Raises
    ------
    OSError
        If there is no such table.
    EmptyTable
        If the table has no rows; a ValueError.
    ValueError
        If a file is malformed, naming it and the line or the field; or a row of a run folder is not that of its check sum.

    Warns
    -----
    UserWarning
        If the last row was cut off: it is left out. If a run folder has no check sums.
    """
    folder = Path(path).is_dir()
    file = Path(path) / TABLE if folder else Path(path)
    beside = file.with_name(SIDECAR)
    if folder and not file.exists() and (file.parent / PARTS).is_dir():
        raise FileNotFoundError(
            f"{file.parent} has no {TABLE} yet, as its run of several processes is not finished; go on with --resume, or "
            f"merge the folders in {file.parent / PARTS}"
        )
    if not folder and not file.exists():
        raise FileNotFoundError(f"{file} must be a run folder or a table, but there is none of that name")
    if folder and not file.exists():
        raise FileNotFoundError(f"{file.parent} must be a run folder or a table, got a folder without {TABLE}")
    sidecar = read_sidecar(beside) if file.name == TABLE and beside.exists() else None
    table = read_table(file, ours=folder or sidecar is not None)
    rows, names, skipped = len(table.idx), list[str](), list[Skipped]()
    if sidecar is not None and (file.parent / COUNTS).exists():
        found = layout.read_rows(file.parent, CERTIFY_COLUMNS if table.has_radius else PREDICT_COLUMNS)
        rows, names = len(found), [row.name for row in found if row.name is not None]
    elif sidecar is not None:
        text = f"{file.parent} has no {COUNTS}, which holds check sums of its rows; damage may pass unnoticed"
        warnings.warn(text, UserWarning, stacklevel=2)
    if sidecar is not None:
        check_settings(beside, sidecar)
        skipped = layout.read_skipped(file.parent, set(table.idx[:rows].tolist()))
    columns: dict[str, Any] = {name: getattr(table, name)[:rows] for name in CERTIFY_COLUMNS[:5]}
    return Results(
        **columns,
        sidecar=sidecar,
        has_radius=table.has_radius,
        seconds=table.seconds,
        names=names if names and len(names) == rows else None,
        skipped=skipped,
    )


def check_settings(file: Path, sidecar: dict[str, Any]) -> None:
    """Raise ValueError, naming the file, if what `Results` reads from its sidecar is damaged."""
    none: dict[str, Any] = dict.fromkeys(CERTIFY_COLUMNS[:5], np.empty(0))
    run = Results(**none, sidecar=sidecar)
    try:
        _ = run.stopping, run.sigma, run.noise, run.norm, run.n, run.alpha, run.top_k, run.images_missing
        _ = run.class_names
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error!s:.250}") from None


def common_norm(results_by_name: Mapping[str, Results]) -> str | None:
    """Return the norm of all radii, None if no run says; predictions have no radius.

    Raises
    ------
    ValueError
        If two runs have different norms, whose radii cannot be compared; or one that depends on other parameters of noise.
    """
    first: tuple[str, dict[str, Any]] | None = None
    of = ""
    for name, run in results_by_name.items():
        if not run.has_radius or (norm := run.norm) is None:
            continue
        if first is None:
            first, of = (norm, run.norm_settings), name
        elif (found := (norm, run.norm_settings)) != first:
            one, other = (text + "".join(f" ({each})" for each in more) for text, more in _distinct_texts(first, found))
            raise ValueError(f"runs must have one norm, got {one} in {of} and {other} in {name}; compare them apart")
    return None if first is None else first[0]


def _distinct_texts(*norms: tuple[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return two norms with their settings as texts, which differ where the settings do."""
    (_, first), (_, second) = norms
    texts = {name: distinct_texts(first.get(name), second.get(name)) for name in {**first, **second}}
    return [(norm, [f"{name} = {texts[name][i]}" for name in settings]) for i, (norm, settings) in enumerate(norms)]


def certified_accuracy(results: Results, radii: ArrayLike) -> NDArray[np.float64]:
    """Return the share of rows that are correct, not abstained, and certified at each radius: ``radius >= r``.

    Of a run without labels, it is the share that is certified, right or wrong.

    Parameters
    ----------
    results : Results
    radii : array_like
        Any shape, at least 0, in the units of the input.

    Returns
    -------
    ndarray of float64
        In [0, 1], of the shape of radii.

    Raises
    ------
    ValueError
        If a radius is negative, infinite or NaN.

    Examples
    --------
    >>> idx = label = np.arange(4)
    >>> predict, radius = np.array([0, 1, -1, 1]), np.array([0.5, 1.0, 0.0, 2.0])
    >>> run = Results(idx, label, predict, radius, predict == label)
    >>> certified_accuracy(run, [0, 0.5, 0.75, 2])
    array([0.5 , 0.5 , 0.25, 0.  ])
    """
    try:
        at = np.asarray(radii, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"radii must be numbers, got {radii!r:.80}") from error
    if not ((at >= 0) & (at < np.inf)).all():
        raise ValueError(f"radii must be finite and at least 0, got {radii!r}")
    certified = np.sort(results.radius[results.certified])
    return np.asarray((certified.size - np.searchsorted(certified, at, side="left")) / results.radius.size)


def average_certified_radius(results: Results) -> float:
    """Return the mean over all rows of the radius, 0 where the row is not certified: the area under the accuracy curve.

    References
    ----------
    Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", 2020.
    """
    # In long double, as a sum of radii near the largest float64 is none.
    return float(np.where(results.certified, results.radius, 0.0).mean(dtype=np.longdouble))


def abstention_rate(results: Results) -> float:
    """Return the share of rows that abstained."""
    return float((results.predict == ABSTAIN).mean())


def clean_accuracy(results: Results) -> float:
    """Return the share of rows predicted correctly: the certified accuracy at radius 0."""
    return float(certified_accuracy(results, 0.0))


def share_decided(results: Results, radius: float) -> float:
    """Return the share of rows, right or wrong, whose prediction is certified at this radius."""
    return float((results.radius >= radius).mean())


def notes(results_by_name: Mapping[str, Results]) -> list[str]:
    """Return what the figures of a run mean where that is not what they are called: it stopped early, or lacks labels.

    A run that stops early stops an image once it has proved what it was asked, or gives it up. With all samples radii would
    be larger, and images that were given up might be certified. So accuracies and the average radius are lower bounds, and
    abstentions an upper bound.
    """
    found = []
    for name, run in results_by_name.items():
        unlabelled = int((run.label == -1).sum())
        if run.skipped:
            first = run.skipped[0].name or f"idx {run.skipped[0].idx}"
            more = f" and {others} more" if (others := len(run.skipped) - 1) else ""
            found.append(f"{name}: images that could not be read count nowhere: {first}{more}.")
        if not run.labelled:
            shares = (
                f": shares of images certified at r, right or wrong, and ACR is their mean {radius_label(run.norm)}"
                if run.has_radius
                else ""
            )
            found.append(f"{name}: no labels{shares}.")
        elif unlabelled:
            found.append(f"{name}: {unlabelled} of {len(run.label)} images have no label, and count as not correct.")
        if run.top_k > 1:
            found.append(
                f"{name}: radii are those within which the class is one of the {run.top_k} with the largest scores."
            )
        if radii := run.stopping.radii:
            every, it = ("", "it") if len(radii) == 1 else ("each ", "them")
            asked = f"{every}{radius_label(run.norm)} {', '.join(map(str, radii))}"
            shares = ", ".join(f"{share_decided(run, radius):.1%}" for radius in radii)
            why = f"sampling stopped once {asked} was decided: {shares} certified at {it}"
        elif (run.sidecar or {}).get("rule") == incremental.RULE:
            why = "it is of a changed model, and sampling stopped once most of the radius of the model before was proved"
        elif run.stopping.rtol is not None:
            why = f"sampling stopped once the {radius_label(run.norm)} was known to {run.stopping.rtol} of its size"
        elif run.stopped_early:
            why = "sampling of some images stopped before all samples were drawn"
        else:
            continue
        found.append(f"{name}: {why}. With all samples ACR and accuracies are at least, abstentions at most, those shown.")
    return found


def caveats(results_by_name: Mapping[str, Results]) -> list[str]:
    """Return why figures of these runs may not be compared: a run is not finished, or stopped early, or they differ.

    Runs of certify are compared with each other, and runs of predict, in n, alpha and the idx of their images.
    """
    found = [
        f"{name}: not finished: {progress(run, ' images')}" for name, run in results_by_name.items() if run.images_missing
    ]
    if early := [name for name, run in results_by_name.items() if run.stopped_early]:
        found.append(f"stopped early, so figures are bounds: {', '.join(early)}")
    radii = {name: run for name, run in results_by_name.items() if run.has_radius}
    norm = common_norm(radii)
    if norm is not None and (unknown := [name for name, run in radii.items() if run.norm is None]):
        found.append(f"no norm is stated of {', '.join(unknown)}, so it may be another than the {norm} of the others")
    for has_radius in (True, False):
        runs = {name: run for name, run in results_by_name.items() if run.has_radius == has_radius}
        for what in ("n", "alpha", "top_k"):
            values = {name: getattr(run, what) for name, run in runs.items()}
            found += _difference(what, {name: value for name, value in values.items() if value is not None})
        known = {name: np.sort(run.idx) for name, run in runs.items() if (run.idx != -1).all()}
        spans = {name: f"idx {idx[0]} to {idx[-1]}" for name, idx in known.items()}
        if fewer := _difference("the number of images", {name: len(run.idx) for name, run in runs.items()}):
            found += fewer
        elif len({idx.tobytes() for idx in known.values()}) > 1:
            found += _difference("images", spans) or [f"runs differ in images: {', '.join(known)} do not have the same idx"]
    return found


def _difference(what: str, values: Mapping[str, object]) -> list[str]:
    """Return one line where runs have different values, with a run of each; no line where they have one."""
    examples: dict[object, str] = {}
    for name, value in values.items():
        examples.setdefault(value, f"{value} in {name}")
    each = list(examples.values())
    more = ", ..." if len(each) > 4 else ""
    return [f"runs differ in {what}: {', '.join(each[:4])}{more}"] if len(each) > 1 else []


def progress(run: Results, unit: str = "") -> str:
    """Return how many images a run has; of one that is not finished or skipped some, of how many, before the unit."""
    rows, skipped = len(run.idx), len(run.skipped)
    total = rows + run.images_missing + skipped
    return f"{rows}{f' of {total}' if total > rows else ''}{unit}{f', {skipped} skipped' if skipped else ''}"
