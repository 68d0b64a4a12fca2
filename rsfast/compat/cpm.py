"""CPM's class `Smooth`, which writes logs of votes and certifies from them: change the import line of an existing loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._check import as_integers, check_choice, check_count
from ..engine.inputs import warn_of_units
from ..ops.tally import Tally
from ..stats.proof import certificates
from ..stats.rules import RULES
from . import cohen


class Smooth(cohen.Smooth):
    """CPM's class: change the import line of an existing loop, and it draws, counts and bounds here.

    Parameters, attributes and errors are those of `cohen.Smooth`. The k-th call of `log_certify`
    takes input id k as well: the two logs of an input are independent. Those of two objects of one seed are not: log both
    samples with one object, or leave out the seed.

    Notes
    -----
    The modes are "Rmono", the one-vs-rest radius from one lower limit at alpha, and "Rmulti", from
    limits that share alpha. A mode may also be a rule of `rsfast.certify`: "top_two" and "auto" do
    not divide alpha by the number of classes or buckets, and top-two's radius is never below CPM's.

    References
    ----------
    Delattre, Caillon, Barthélemy, Fagnou and Allauzen, "Bridging the Theoretical Gap in Randomized
    Smoothing", 2025.

    Examples
    --------
    >>> smooth = Smooth(lambda x: x.flatten(1)[:, :3], num_classes=3, sigma=0.25, seed=1)
    >>> x = torch.tensor([0.3, 0.1, 0.0])
    >>> counts_selection, counts_estimation = smooth.log_certify(x, 100, 100), smooth.log_certify(x, 1000, 100)
    >>> prediction, radius = smooth.certify_from_log_cpm(counts_selection, counts_estimation, 1000, 100, 0.001, "Rmulti")
    >>> prediction, 0 < radius < 0.2 / 2**0.5
    (0, True)
    """

    def log_certify(self, x: torch.Tensor, n: int, batch_size: int) -> NDArray[np.int64]:
        """Return the votes [num_classes] of n samples of x."""
        warn_of_units(x, self.noise, stacklevel=2)
        with self._call() as call:
            call.stream = "estimation"
            return self._sample_noise(x, n, batch_size)

    def certify_from_log(
        self, counts_selection: ArrayLike, counts_estimation: ArrayLike, n: int, alpha: float, mode: str = "R3"
    ) -> tuple[int, float]:
        """Return (class, radius) from votes as Cohen et al. do, one-vs-rest at alpha, whatever the mode; or (ABSTAIN, 0.0).

        Parameters
        ----------
        counts_selection, counts_estimation : array_like of int [num_classes]
            Votes of two independent samples of an input. The first chooses the class, the second
            bounds it.
        n : int
            Draws of the second, no fewer than its votes. A draw without a vote is one for nobody.
        alpha : float
            Probability that the radius is wrong.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong.
        """
        selection = self._logged("counts_selection", counts_selection)
        estimation = self._logged("counts_estimation", counts_estimation, "n", n)
        return self._proved(selection, estimation, alpha, "one_vs_rest")

    def certify_from_log_cpm(
        self, counts_selection: ArrayLike, counts_estimation: ArrayLike, N: int, N0: int, alpha: float, mode: str = "Rmono"
    ) -> tuple[int, float]:
        """Return (class, radius) from votes, in mode "Rmulti" by class partitioning; or (ABSTAIN, 0.0).

        Parameters and errors are those of `certify_from_log`; N and N0 are the draws of the second
        and the first sample.
        """
        selection = self._logged("counts_selection", counts_selection, "N0", N0)
        estimation = self._logged("counts_estimation", counts_estimation, "N", N)
        return self._proved(selection, estimation, alpha, _rule(mode, "class_partitioning"))

    def certify_from_log_bonferroni(
        self, counts_selection: ArrayLike, counts_estimation: ArrayLike, N: int, N0: int, alpha: float, mode: str = "Rmono"
    ) -> tuple[int, float]:
        """Return (class, radius) from votes, in mode "Rmulti" with alpha / num_classes for each class; or (ABSTAIN, 0.0).

        Parameters and errors are those of `certify_from_log_cpm`.
        """
        selection = self._logged("counts_selection", counts_selection, "N0", N0)
        estimation = self._logged("counts_estimation", counts_estimation, "N", N)
        return self._proved(selection, estimation, alpha, _rule(mode, "bonferroni"))

    def _proved(self, selection: Tally, estimation: Tally, alpha: float, rule: str) -> tuple[int, float]:
        [found] = certificates(
            selection,
            estimation,
            self.noise,
            alpha=alpha,
            bound="clopper_pearson",
            rule=rule,
            seed=0,  # which a bound without a uniform does not use
            assume_independent=True,
        )
        return found.prediction, found.radius

    def _logged(self, name: str, counts: ArrayLike, total_name: str = "", total: int | None = None) -> Tally:
        """Return the Tally of one input with these votes, of so many draws; of as many as votes, if it is not known."""
        votes = as_integers(name, counts, 0)
        if votes.shape != (self.num_classes,):
            raise ValueError(f"{name} must have shape [{self.num_classes}], one of each class, got {list(votes.shape)}")
        most = check_count(f"the sum of {name}", int(votes.sum()))
        total = most if total is None else check_count(total_name, total)
        if most > total:
            raise ValueError(f"{total_name} must be at least the {most} votes in {name}, got {total}")
        tally = Tally(1, self.num_classes)
        tally.n[0], tally.counts[0, -1] = total, total - most
        tally.counts[0, :-1] = torch.from_numpy(votes)
        return tally


def _rule(mode: str, multi: str) -> str:
    """Return the rule that a mode stands for; it may be one itself."""
    check_choice("mode", mode, ("Rmono", "Rmulti", "auto", *RULES))
    return {"Rmono": "one_vs_rest", "Rmulti": multi}.get(mode, mode)


def load_counts(path: str | Path) -> NDArray[np.int64]:
    """Return the votes [rows, num_classes] of a log of `log_certify`: a header, then idx, label and counts a row, with tabs.

    The counts are read as JSON: the original evaluates them as Python.

    Raises
    ------
    ValueError
        If a row is not as above, or has another number of classes than the first.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "log.txt").write_text("idx\\tlabel\\tcounts\\n0\\t2\\t[1, 0, 99]\\n")
    ...     load_counts(Path(folder, "log.txt")).tolist(), load_labels(Path(folder, "log.txt")).tolist()
    ([[1, 0, 99]], [2])
    """
    return np.array([counts for _, counts in _rows(path)], dtype=np.int64)


def load_labels(path: str | Path) -> NDArray[np.int64]:
    """Return the labels [rows] of such a log; ValueError as from `load_counts`."""
    return np.array([label for label, _ in _rows(path)], dtype=np.int64)


def _rows(path: str | Path) -> list[tuple[int, list[int]]]:
    found: list[tuple[int, list[int]]] = []
    for number, line in enumerate(Path(path).read_text().splitlines()[1:], 2):
        try:
            _, label, text = line.split("\t")
            counts = as_integers("counts", json.loads(text), 0)
            if counts.ndim != 1 or (found and len(counts) != len(found[0][1])):
                raise ValueError(f"counts must be as many as in the first row, got shape {list(counts.shape)}")
            found.append((int(label), counts.tolist()))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must hold idx, label and a list of counts, with tabs, got {line!r:.100} in line {number} ({error})"
            ) from None
    return found
