"""The plan of an incremental certification: pairs of two models on the same noise, until a certificate carries over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._hints import add_note
from ..heads import ClippedLogits, Head
from ..stats import incremental
from ..stats.certificate import ABSTAIN, Certificate, Execution
from ..stats.common import fine_analysis_ends
from ..stats.estimates import Scores
from .forward import Model, check_logits, reduced_precision
from .modes import modules_of

if TYPE_CHECKING:
    from ..ops.tally import Tally

_HEAD = ClippedLogits(0.0, 1.0)  # whose sums of zeros and ones are counts


class Comparison(NamedTuple):
    """What `rsfast.compare` found about an input."""

    before: Certificate
    """Of the first model, as given."""
    after: Certificate
    """Of the changed model."""
    lost: int
    """Pairs, of ``after.n``, in which the first model voted for the class, and the changed one did not."""
    gained: int
    """Pairs in which the changed model voted for one other class, and the first did not: of that with most of them."""

    def counts(self) -> dict[str, Any]:
        """Return what the certificate follows from, with alpha and the noise, as plain JSON values."""
        kept, rival = self.after.counts
        before = {name: getattr(self.before, name) for name in ("prediction", "n", "rule", "bound")}
        pairs = {"trials": self.after.n, "kept": kept, "lost": self.lost, "rival": rival, "gained": self.gained}
        return {"before": before | {"counts": list(self.before.counts)}, "pairs": pairs}


class PairOfModels(torch.nn.Module):
    """Two models on the same batch: rows of their votes and of those on which both agree, [B, 3 K] of zeros and ones.

    A row that votes for no class, as NaN makes it, is all zero.
    """

    def __init__(self, first: Model, changed: Model, num_classes: int) -> None:
        super().__init__()
        self.first, self.changed, self.num_classes = first, changed, num_classes

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        first, changed = self._votes("model_a", self.first, batch), self._votes("model_b", self.changed, batch)
        return torch.cat([first, changed, first * changed], dim=1)

    def _votes(self, name: str, model: Model, batch: torch.Tensor) -> torch.Tensor:
        try:
            output = model(batch)
        except Exception as error:
            add_note(error, f"{name} raised this")
            raise
        logits = check_logits(output, len(batch), self.num_classes, name).float()
        valid = logits.amax(dim=1, keepdim=True).isfinite()  # a NaN anywhere is the maximum
        best = logits.argmax(dim=1)  # of equal ones the first
        return torch.nn.functional.one_hot(best, self.num_classes).float() * valid


def check_pair(name: str, first: Model, changed: Model, device: torch.device, execution: Execution) -> None:
    """Raise ValueError if a first model, the argument `name`, is surely not what was certified, or does not run as it did.

    One that was changed in place is the changed model, and loses nothing to it.
    """
    if first is changed:
        raise ValueError(
            f"{name} must be the model that was certified, got the changed model itself; half() and "
            "torch.nn.utils.prune change a model in place: give them copy.deepcopy(model)"
        )
    ours, theirs = reduced_precision(modules_of(first), device), execution.reduced_precision or ()
    if ours != theirs:
        now, before = (", ".join(each) or "float32" for each in (ours, theirs))
        raise ValueError(
            f"{name} must compute as its certificates' execution says, in {before}, got {now}; rounding decides some votes"
        )


class IncrementalCertification:
    """Plan pairs of each input until enough of the first model's radius is proved of the changed one.

    Parameters
    ----------
    before : mapping of int to Certificate
        Those of the first model, by input id.
    alpha : float
        Failure probability of a certificate of the changed model.
    rtol : float
        An input is decided once it has lost no more than this share of its own radius before, or of the mean radius if that
        is more, but never more than half of its own; or once 1 - rtol of what is likely to be reached is proved.
    n : int, optional
        The most pairs of an input, which takes no more than half of its certificate's n.
    seed, backend, execution
        As in `certificates`; the execution is that of the changed model.
    """

    heads: tuple[Head, ...] = (_HEAD,)
    early, by_range, tracks, lipschitz = True, False, False, False

    def __init__(
        self,
        before: Mapping[int, Certificate],
        *,
        alpha: float,
        rtol: float,
        n: int | None = None,
        seed: int,
        backend: str = "",
        execution: Execution,
    ) -> None:
        most = max(1, max(each.n for each in before.values()) // 2)
        self._before, self.alpha, self.rtol, self.n = before, alpha, rtol, most if n is None else min(most, n)
        self._least_loss = rtol * float(np.mean([each.radius for each in before.values()]))
        self.recorded: dict[str, Any] = {"seed": seed, "backend": backend, "execution": execution}
        ranges = [range(start, end) for start, end in pairwise([0, *fine_analysis_ends(self.n)])]
        self.stages = (("selection", range(0)), *(("estimation", samples) for samples in ranges))

    def undecided(self, selection: Tally, total: Tally, newest: Tally, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return that no input is known to go on: `evaluate` costs little."""
        return np.full(len(rows), False)

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[Comparison | None]:
        """Return the comparison of each input; None where it needs more pairs."""
        before = [self._before[input_id] for input_id in input_ids]
        scores = Scores.total(ranges, _HEAD)
        votes, trials = scores.sums >> _HEAD.bits, scores.trials[:, 0]
        classes = np.array([each.prediction for each in before])
        pairs = incremental.Pairs.of(votes.reshape(len(before), 3, -1), trials, classes)
        rests_on = [incremental.Before.of(each) for each in before]
        _check_model(before, rests_on, votes[np.arange(len(before)), classes], trials, input_ids)
        limits = incremental.proved(rests_on, pairs, self.alpha)
        likely = incremental.still_likely(rests_on, pairs, self.alpha, self.n)
        wanted = np.array([each.radius for each in before])
        enough = wanted - np.minimum(np.maximum(self.rtol * wanted, self._least_loss), wanted / 2)
        decided = limits.radius >= np.minimum(enough, (1 - self.rtol) * likely)
        decided |= (likely <= 0) | (trials == self.n) | (2 * trials >= [each.n for each in before]) | (classes == ABSTAIN)
        return [
            self._comparison(*each) if done else None
            for done, *each in zip(decided, before, *(column.tolist() for column in (*limits, *pairs)), strict=True)
        ]

    def _comparison(
        self,
        before: Certificate,
        lower: float,
        upper: float,
        radius: float,
        trials: int,
        kept: int,
        lost: int,
        rival: int,
        gained: int,
    ) -> Comparison:
        certified = radius > 0 and not before.abstained
        after = replace(
            before,
            prediction=before.prediction if certified else ABSTAIN,
            radius=radius if certified else 0.0,
            p_lower=lower,
            p_upper=upper,
            counts=(kept, rival),
            n0=0,
            n=trials,
            max_samples=self.n,
            alpha=self.alpha,
            alpha_upper=0.0 if before.rule == "one_vs_rest" else self.alpha / 2,
            rule=incremental.RULE,
            bound=incremental.BOUND,
            **self.recorded,
        )
        return Comparison(before, after, lost, gained)


def _check_model(
    before: Sequence[Certificate],
    rests_on: Sequence[incremental.Before],
    votes: NDArray[np.int64],
    trials: NDArray[np.int64],
    input_ids: Sequence[int],
) -> None:
    """Raise ValueError if the first model's votes on samples that its certificate holds can hardly be those of that model.

    A few may differ, as the last bits of logits depend on the batch.
    """
    others = incremental.of_another_model(rests_on, votes, trials)
    rows = zip(before, votes.tolist(), trials.tolist(), input_ids, others.tolist(), strict=True)
    for each, ours, drawn, input_id, other in rows:
        slack = 5 + drawn // 50
        possible = each.counts[0] - (each.n - drawn) - slack <= ours <= each.counts[0] + slack
        if not each.abstained and (other or not possible):
            raise ValueError(
                f"model_a must be the model that was certified, on its inputs, got one with {ours} of {drawn} votes for "
                f"class {each.prediction} on samples of input {input_id}; its certificate has {each.counts[0]} in {each.n}"
            )
