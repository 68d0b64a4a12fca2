"""smoothing-ensembles' classes: ensembles, K-consensus and early decisions at a radius. Change their import lines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from typing_extensions import Unpack

from .._check import as_int, as_real, check_count
from ..engine.forward import Model
from ..engine.options import SmoothOptions
from ..engine.plan import StoppingRule
from ..engine.sampling import check_model
from ..noise import Noise
from ..stats.certificate import Certificate
from ..stats.common import check_alpha
from ..stats.rules import CertificationSpec
from . import cohen


class Ensemble(torch.nn.Module):
    """The sum of several classifiers' logits; where the first k of them agree on the class, that of these k.

    The sum of logits that all have their largest at one class has its largest there, too. So an ensemble with k is another
    classifier than one without, but never runs the others where the first k agree.

    Parameters
    ----------
    base_classifiers : sequence of callable
        Each from a batch ``[B, *shape]`` to logits [B, num_classes].
    k : int, optional
        From 1 to their number, which is the default.

    Attributes
    ----------
    rows, agreed, further : int
        Rows so far, those on which the first k agreed, and the batches that the others ran on; 0 for ever without k.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> up, down = (lambda x: torch.stack([x, 0 * x], 1)), (lambda x: torch.stack([-x, 0 * x], 1))
    >>> Ensemble([up, up, down], k=2)(torch.tensor([1.0, -1.0]))[:, 0]
    tensor([ 2., -2.])
    """

    def __init__(self, base_classifiers: Sequence[Model], k: int | None = None) -> None:
        super().__init__()
        if isinstance(base_classifiers, (str, torch.Tensor)) or not isinstance(base_classifiers, Sequence):
            raise TypeError(f"base_classifiers must be a list of classifiers, got {base_classifiers!r:.60}")
        if not base_classifiers:
            raise ValueError("base_classifiers must hold at least one classifier, got none")
        for number, each in enumerate(base_classifiers):
            check_model(f"base_classifiers[{number}]", each)
        k = len(base_classifiers) if k is None else as_int("k", k)
        if not 1 <= k <= len(base_classifiers):
            raise ValueError(f"k must be from 1 to {len(base_classifiers)}, the classifiers, got {k}")
        self.base_classifiers, self.k = list(base_classifiers), k
        self.members = torch.nn.ModuleList([each for each in base_classifiers if isinstance(each, torch.nn.Module)])
        self.rows = self.agreed = self.further = 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, num_classes]."""
        first = torch.stack([classifier(batch) for classifier in self.base_classifiers[: self.k]])
        total = first.sum(dim=0)
        others = self.base_classifiers[self.k :]
        if others:
            classes = first.argmax(dim=2)
            differ = (classes != classes[0]).any(dim=0)
            count = int(differ.sum())
            self.rows, self.agreed, self.further = (
                self.rows + len(batch),
                self.agreed + len(batch) - count,
                self.further + (count > 0),
            )
            if count:
                rows = batch[differ]
                total[differ] += torch.stack([classifier(rows) for classifier in others]).sum(dim=0)
        return total


class _SmoothEnsemble(cohen.Smooth):
    """What the classes share: `cohen.Smooth` of an `Ensemble`."""

    def __init__(
        self,
        base_classifiers: Sequence[Model],
        num_classes: int,
        sigma: float | Noise,
        k: int | None = None,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(Ensemble(base_classifiers, k), num_classes, sigma, seed=seed, **options)
        self.k = k
        self.number_of_early_stoppings = self.number_of_additional_batches_needed = 0

    @property
    def base_classifiers(self) -> list[Callable[..., Any]]:
        """The classifiers of the ensemble."""
        return cast(Ensemble, self.base_classifier).base_classifiers

    @property
    def num_classifiers(self) -> int:
        """Their number."""
        return len(self.base_classifiers)

    def _certificate(
        self, x: torch.Tensor, spec: CertificationSpec, n0: int, n: int, batch_size: int, stopping: StoppingRule
    ) -> Certificate:
        """Return the certificate of x; set how often the first k agreed, and the batches that ran on the others."""
        with self._call() as call:
            ensemble = cast(Ensemble, call.base_classifier)
            before = ensemble.rows, ensemble.agreed, ensemble.further
            [found] = call.certificates(x, [spec], n0, n, batch_size, stopping)
        rows, agreed = ensemble.rows - before[0], ensemble.agreed - before[1]
        # Rows are more than the samples where the model was probed, or a last batch was filled up.
        self.number_of_early_stoppings = agreed * (n0 + found.n) // max(rows, 1)
        self.number_of_additional_batches_needed = ensemble.further - before[2]
        return found

    def _decision(
        self,
        x: torch.Tensor,
        n0: int,
        n_list: Sequence[int],
        alpha: float,
        beta: float,
        batch_size: int,
        radius_to_certify: float,
    ) -> tuple[Certificate, bool, int]:
        """Return the certificate, whether its radius is large enough, and the place in n_list of the last sample."""
        if not isinstance(n_list, Sequence) or not n_list:
            raise TypeError(f"n_list must be a list of sample sizes, got {n_list!r}")
        ends = list(accumulate(check_count("n_list", size) for size in n_list))
        as_real("beta", beta, above=0, below=1)
        stopping = StoppingRule(radius=as_real("radius_to_certify", radius_to_certify, above=0))
        spec = CertificationSpec(self.noise, check_alpha(alpha), early=True)
        n0, n = self._check(x, spec, n0, ends[-1], stopping)
        found = self._certificate(x, spec, n0, n, batch_size, stopping)
        return found, found.radius >= radius_to_certify, bisect_left(ends, found.n)


class SmoothEnsembleAdaptive(_SmoothEnsemble):
    """Decide whether the smoothed ensemble is certified at a radius, with as few samples as that takes.

    Parameters
    ----------
    base_classifiers : sequence of callable
        The ensemble, whose logits are added. Each from a batch ``[B, *shape]`` to logits [B, num_classes].
    num_classes, sigma, seed, **options
        As in `cohen.Smooth`, as are the attributes.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    The original takes up to five samples of growing size, each with a part of alpha. Here one sample grows, and a
    confidence sequence bounds it at each interim analysis (`rsfast.certify` with ``radius=``). So alpha is not divided.

    References
    ----------
    Horvath, Mueller, Fischer and Vechev, "Boosting Randomized Smoothing with Variance Reduced Classifiers", 2022;
    github.com/eth-sri/smoothing-ensembles.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = SmoothEnsembleAdaptive([model, model], num_classes=2, sigma=0.25, seed=1)
    >>> smooth.certify(torch.full((1, 2, 2), 0.2), 100, 100_000, [1000, 10_000], 0.001, 0.0001, 1000, 0.25)[:3]
    (1, 0, 0)
    """

    def __init__(
        self,
        base_classifiers: Sequence[Model],
        num_classes: int,
        sigma: float | Noise,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifiers, num_classes, sigma, seed=seed, **options)

    def certify(  # type: ignore[override]
        self,
        x: torch.Tensor,
        n0: int,
        n_original: int,
        n_list: Sequence[int],
        alpha: float,
        beta: float,
        batch_size: int,
        radius_to_certify: float,
    ) -> tuple[int, int, int, float]:
        """Return (1, class, level, share of votes), or (-1, -1, level, share of votes) where the radius is not proved.

        Parameters
        ----------
        x : float32 tensor [C, H, W], [1, C, H, W], [H, W] or [D]
        n0 : int
            Samples that choose the class.
        n_original : int
            Not used, as there.
        n_list : list of int
            Sample sizes of the levels. Their sum is the most samples that bound the class; the level returned is the place
            in the list of the last one.
        alpha : float
            Probability, in (0, 1), that the class is certified wrongly.
        beta : float
            Not used: an input is given up when a forecast says that the radius will not be proved. That is no claim.
        batch_size : int
        radius_to_certify : float
            In the noise's norm, above 0.
        """
        found, proved, level = self._decision(x, n0, n_list, alpha, beta, batch_size, radius_to_certify)
        return (1, found.prediction, level, _share(found)) if proved else (-1, -1, level, _share(found))


class SmoothEnsembleKConsensus(_SmoothEnsemble):
    """Certify an ensemble whose further classifiers run only where the first k differ.

    Parameters
    ----------
    base_classifiers, num_classes, sigma, seed, **options
        As in `SmoothEnsembleAdaptive`.
    k : int
        Classifiers that run on every sample.

    Attributes
    ----------
    number_of_early_stoppings : int
        Samples of the last call on which the first k agreed. It is their share of all rows that the model was given, times
        the samples.
    number_of_additional_batches_needed : int
        Batches of the last call that ran on the others.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = SmoothEnsembleKConsensus([model] * 3, num_classes=2, sigma=0.25, k=2, seed=1)
    >>> prediction, radius, *_ = smooth.certify(torch.full((1, 2, 2), 0.2), 100, 1000, 0.001, 100)
    >>> prediction, 0.2 < radius < 0.5, smooth.number_of_early_stoppings
    (0, True, 1100)
    """

    def __init__(
        self,
        base_classifiers: Sequence[Model],
        num_classes: int,
        sigma: float | Noise,
        k: int,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifiers, num_classes, sigma, k, seed=seed, **options)

    def certify(  # type: ignore[override]
        self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int
    ) -> tuple[int, float, float, int, float]:
        """Return (class, radius, share on which the first k agreed, batches of the others, share of votes).

        Class and radius are those of `cohen.Smooth.certify`, as are the parameters.
        """
        spec = CertificationSpec(self.noise, check_alpha(alpha), bound="clopper_pearson", rule="one_vs_rest")
        n0, n = self._check(x, spec, n0, n)
        found = self._certificate(x, spec, n0, n, batch_size, StoppingRule())
        agreed = self.number_of_early_stoppings / (n0 + n)
        return found.prediction, found.radius, agreed, self.number_of_additional_batches_needed, _share(found)


class SmoothEnsembleAdaptiveKConsensus(SmoothEnsembleKConsensus):
    """Decide as `SmoothEnsembleAdaptive`, of an ensemble as in `SmoothEnsembleKConsensus`.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = SmoothEnsembleAdaptiveKConsensus([model] * 3, num_classes=2, sigma=0.25, k=2, seed=1)
    >>> smooth.certify(torch.full((1, 2, 2), 0.2), 100, 100_000, [1000, 10_000], 0.001, 0.001, 1000, 0.25)[:3]
    (1, 0, 0)
    """

    def certify(  # type: ignore[override]
        self,
        x: torch.Tensor,
        n0: int,
        n_original: int,
        n_list: Sequence[int],
        alpha: float,
        beta: float,
        batch_size: int,
        radius_to_certify: float,
    ) -> tuple[int, int, int, float, int, int, int]:
        """Return what `SmoothEnsembleAdaptive.certify` does; then samples, those on which k agreed, the others' batches."""
        found, proved, level = self._decision(x, n0, n_list, alpha, beta, batch_size, radius_to_certify)
        counts = n0 + found.n, self.number_of_early_stoppings, self.number_of_additional_batches_needed
        return (1, found.prediction, level, _share(found), *counts) if proved else (-1, -1, level, _share(found), *counts)


def _share(found: Certificate) -> float:
    """Return the share of the votes that the selected class got."""
    return found.counts[0] / found.n
