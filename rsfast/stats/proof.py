"""From Tallies to certificates, and how many samples they take at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .._check import as_int
from ..heads import Head, Votes
from ..noise import STREAM_VERSION, Noise, check_noise, check_seed
from ..noise.provenance import Provenance, check_input_ids
from . import rules
from .certificate import ABSTAIN, Certificate, Execution
from .common import MAX_TRIALS, Floats, check_alpha
from .estimates import Estimates, Scores, TallyLike, leader_and_rival
from .exact import check_whole
from .rules import CertificationSpec, Limits
from .top_k import exact_lead

_VOTES = Votes()
_EXECUTION = Execution()


def certificates(
    selection: TallyLike,
    estimation: TallyLike | Sequence[TallyLike],
    noise: Noise,
    *,
    head: Head = _VOTES,
    alpha: float,
    bound: str = "auto",
    rule: str = "auto",
    lipschitz: float | None = None,
    top_k: int = 1,
    max_samples: int | None = None,
    seed: int | None = None,
    input_ids: Sequence[int] | None = None,
    assume_independent: bool = False,
    backend: str = "",
    execution: Execution = _EXECUTION,
) -> list[Certificate]:
    """Return the certificate of every input of two Tallies.

    Parameters
    ----------
    selection : Tally
        Chooses each input's class, by its largest count or sum (the lowest class on a tie); bounds nothing.
    estimation : Tally or sequence of Tally
        Bounds the scores. Its samples must be independent of the selection's, which is checked by the `Tally.provenance` of
        both. A sequence holds the ranges of one sample, in order: betting bounds adapt their bets from one to the next.
        Where they end is fixed before the sample (`sequences.range_ends`, `analysis_ends`).
    noise : Noise
        The noise both were sampled with; their provenance must state it. `exact_certificates` takes deterministic noise.
    head : Head
        The score to certify; one of the Tallies' heads.
    alpha : float
        Probability that a certificate is wrong, for each input.
    bound : str
        Of votes: "clopper_pearson" ("auto"), "randomized_clopper_pearson", "beta_binomial_sequence". Of votes or scores:
        "betting" ("auto" for scores), "empirical_bernstein", "hoeffding", "betting_sequence". The two that bet on scores
        need histograms of the `leading_classes`.
    rule : str
        "one_vs_rest", "top_two", "class_partitioning" (votes only), "bonferroni", or "auto": for each input that of the
        first two for which the selection sample predicts the larger radius; top-two where the head's scores do not sum to
        1.
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score (of the head's scores, not the logits) per unit of what the
        model takes. `of_inputs` makes it one per unit of the inputs, by the scale of `execution`; without an execution that
        names the scale it must be per unit of the inputs. Radii then follow from `Noise.potential` with it. It is taken
        on trust (`lipschitz_bound` proves one). It is a constant of real numbers and does not cover what float32 rounds in a
        score. Below float32 it is refused: a rounded score jumps.
    top_k : int
        Less than the number of classes. The radius is then that within which the class is among the top_k with the largest
        scores, which `top_k.top_k_radius` proves; with 1, that within which it is the first.
    max_samples : int, optional
        The most estimation samples of an input there could have been, fixed before. It is needed with a sequence, and where
        sampling may have stopped early. Then the bound must be a sequence, at the last analysis too, and `estimation` has
        one Tally for each analysis. Leave it out only if the samples were analysed once, at a number fixed before.
    seed : int, optional
        The seed both were sampled with: by default what their provenance states. It is recorded, and randomized bounds take
        their uniforms from it.
    input_ids : sequence of int, optional
        The inputs' ids in the noise stream: by default what the provenance states, or 0, 1, ... where no Tally states any.
        They are recorded, and randomized bounds take the uniforms of these ids.
    assume_independent : bool
        Take Tallies that state no provenance, on your word that no sample is in two of them or twice in one, and that all
        were drawn with `noise` and `seed`. `seed` must then be given. What is stated is checked all the same.
    backend : str
        Recorded.
    execution : Execution
        How the base classifier was run. Recorded; `lipschitz` depends on its scale.

    Returns
    -------
    list of Certificate
        One for each input, in order. A radius that is not positive becomes an abstention.

    Raises
    ------
    TypeError
        If alpha is not a number, or another argument has another type.
    ValueError
        If an argument is out of range, bound or rule does not fit the head, lipschitz is given and something computes below
        float32, or the Tallies do not fit each other, are not known to be independent, or lack what the bound needs.

    Notes
    -----
    With Q the noise's potential, lo and up one-sided bounds and A the selected class, the radius is
    ``(Q(lo(A)) - Q(pB)) / 2``. One-vs-rest: lo at alpha, ``pB = 1 - lo(A)``, so that the radius is ``Q(lo(A))``. Top-two:
    lo and up have half of alpha each; ``pB`` is the largest up of the other classes, and no more than ``1 - lo(A)`` if
    scores sum to at most 1. The runner-up is one fixed class whose up fails with up's share of alpha, and the largest up is
    no smaller: nothing is divided by the number of classes. "auto" tries both on the selection's scores as if there were
    as many as in the estimation. It uses nothing else, so the certificate is wrong with probability at most alpha whatever
    it picks. Bonferroni and class partitioning do divide, lo and each up at ``alpha / K`` or alpha over the number of
    buckets (`partition`, of the selection's votes). They are here to compare with, and their radius is never above
    top-two's. A draw that voted for nobody counts as a trial, and for no class.

    With top_k = k above 1, one-vs-rest gives ``Q(lo(A)) - Q(1 / (k + 1))``, so that lo(A) need not be above 1/2. Top-two
    compares with the k largest ups instead of the largest, each at ``alpha / 2k``: only those of the k classes that truly
    are the largest others must hold. Bonferroni's ups stay at ``alpha / K``, and class partitioning is refused.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Theorem 1, Proposition 2;
    Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", 2019, for soft scores;
    Delattre et al., "Bridging the Theoretical Gap in Randomized Smoothing", 2025, for class partitioning.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> from rsfast import Provenance, Tally
    >>> tallies = []
    >>> for stream, n in (("selection", 10), ("estimation", 100)):
    ...     where = Provenance(Gaussian(0.5), seed=0, stream=stream, samples=range(n), input_ids=[0])
    ...     tallies.append(tally := Tally(1, 2, provenance=where))
    ...     tally.n[0], tally.counts[0, 0], tally.counts[0, 1] = n, 1, n - 1
    >>> (prediction, radius), = certificates(*tallies, Gaussian(0.5), alpha=0.001)
    >>> prediction, round(radius, 4)
    (1, 0.6746)
    """
    if check_noise("noise", noise).evaluations is not None:
        raise ValueError(
            f"noise must be random where a sample selects the class, got {noise!r:.100}; give the Tally of all its "
            "evaluations to exact_certificates"
        )
    spec = CertificationSpec(noise, alpha, head, bound, rule, lipschitz, early=max_samples is not None, top_k=top_k)
    if not isinstance(execution, Execution):
        raise TypeError(f"execution must be an Execution, got {execution!r}")
    ranges = estimation if isinstance(estimation, Sequence) else [estimation]
    _check_tallies(selection, ranges, head)
    spec.check_classes(selection.num_classes)
    seed, ids = _source(selection, ranges, noise, seed, input_ids, assume_independent)
    most = _check_numbers(spec, selection, ranges, max_samples)
    spec = of_inputs(spec, execution)
    (found,), *_ = prove(
        [spec], selection, ranges, max_samples=most, seed=seed, input_ids=ids, backend=backend, execution=execution
    )
    return found


def exact_certificates(
    tally: TallyLike, *, top_k: int = 1, backend: str = "", execution: Execution = _EXECUTION
) -> list[Certificate]:
    """Return the exact certificate of every input of a Tally that holds all evaluations of deterministic noise.

    Nothing is left to chance: alpha is 0.

    Parameters
    ----------
    tally : Tally
        Its provenance states the noise, and the samples 0 to ``noise.evaluations`` - 1 of each input. They may be of any
        stream: deterministic noise is the same in all.
    top_k, backend, execution
        As in `certificates`.

    Returns
    -------
    list of Certificate
        One for each input, in order. The class is that of most votes; a tie abstains. The radius is
        ``noise.exact_radius(lead)``, the lead being the votes for the class less those for the next. It may be 0: the class
        at the input itself is then all that is proved. p_lower and p_upper are the shares of these votes. With top_k above 1
        the lead is `top_k.exact_lead`, the lowest of equal classes is taken, and p_upper is the share of the class with the
        top_k-th most votes of the others.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Notes
    -----
    A changed evaluation takes at most one vote from the class and gives at most one to another, so the lead falls by at most
    2. A row whose logits are not finite votes for nobody, and may become a vote for anybody. It then moves the lead by 1.

    References
    ----------
    Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", 2021, Theorem 2.

    Examples
    --------
    >>> import numpy as np
    >>> from rsfast import Provenance, SubspaceSmoothing, Tally
    >>> noise = SubspaceSmoothing(np.eye(5)[:, None])
    >>> where = Provenance(noise, seed=0, stream="estimation", samples=range(5), input_ids=[0])
    >>> tally = Tally(1, 2, provenance=where)
    >>> tally.n[0], tally.counts[0, 1] = 5, 5
    >>> (prediction, radius), = exact_certificates(tally)
    >>> prediction, radius
    (1, 2.0)
    """
    if not isinstance(tally, TallyLike):
        raise TypeError(f"tally must be a Tally, got {tally!r:.100}; sample() returns Tallies")
    if not isinstance(execution, Execution):
        raise TypeError(f"execution must be an Execution, got {execution!r}")
    where = check_whole("tally", tally)
    spec = CertificationSpec(where.noise, 0.0, bound="exact", rule="exact", top_k=top_k)
    spec.check_classes(tally.num_classes)
    (found,), *_ = prove(
        [spec],
        None,
        [tally],
        max_samples=where.noise.evaluations or 0,
        seed=where.seed,
        input_ids=where.input_ids,
        backend=backend,
        execution=execution,
    )
    return found


def _check_tallies(selection: TallyLike, ranges: Sequence[TallyLike], head: Head) -> None:
    """Raise TypeError or ValueError unless these are Tallies that fit each other and hold the head."""
    for name, tally in (("selection", selection), *(("estimation", tally) for tally in ranges)):
        if not isinstance(tally, TallyLike):
            form = "a Tally, or a list of Tallies" if name == "estimation" else "a Tally"
            raise TypeError(f"{name} must be {form}, got {tally!r:.100}; sample() returns Tallies")
    if not ranges or len({id(tally) for tally in ranges}) < len(ranges):
        raise ValueError(f"estimation must hold at least one Tally, and none twice, got {len(ranges)} Tallies")
    for tally in ranges:
        if tally is selection:
            raise ValueError("estimation must be another, independent sample, got selection")
        for name in ("heads", "num_inputs", "num_classes"):
            ours, theirs = getattr(selection, name), getattr(tally, name)
            if ours != theirs:
                raise ValueError(f"estimation.{name} must be selection.{name}, {ours!r}, got {theirs!r}")
    if head not in selection.heads:
        raise ValueError(f"head must be one of the Tallies' heads, {selection.heads!r}, got {head!r}")


def _check_numbers(
    spec: CertificationSpec, selection: TallyLike, ranges: Sequence[TallyLike], max_samples: int | None
) -> int:
    """Return the most samples there could have been; raise ValueError unless the numbers of samples go with it."""
    drawn = Scores.total(ranges, _VOTES).trials
    for name, n in (("selection", Scores.of(selection, _VOTES).trials), ("estimation", drawn)):
        if (least := int(n.min())) < 1:
            raise ValueError(f"{name}.n must be at least 1 for each input, got {least}")
    least, most = int(drawn.min()), int(drawn.max())
    if max_samples is not None:
        max_samples = as_int("max_samples", max_samples)
        if not most <= max_samples < MAX_TRIALS:
            raise ValueError(
                f"max_samples must be at least the estimation samples of every input, {most}, and below 2**33, "
                f"got {max_samples}"
            )
        return max_samples
    if least < most:
        raise ValueError(
            f"estimation.n must be the same for all inputs, got {least} to {most}; if sampling stopped early, state "
            "max_samples, the most there could have been; if these numbers were fixed before, certify inputs of different n "
            "by themselves (Tally.select)"
        )
    if spec.limits_by.sequence:
        raise ValueError(
            f"max_samples must be the most samples there could have been with the bound {spec.bound!r}, got None"
        )
    return most


def _source(
    selection: TallyLike,
    ranges: Sequence[TallyLike],
    noise: Noise,
    seed: int | None,
    input_ids: Sequence[int] | None,
    assume_independent: bool,
) -> tuple[int, list[int]]:
    """Return the seed and the input ids of Tallies; raise ValueError unless they hold each of their samples once."""
    known: list[tuple[str, Provenance]] = []
    for name, tally in (("selection", selection), *(("estimation", tally) for tally in ranges)):
        tally.check_provenance(name)
        if tally.provenance is None and not assume_independent:
            raise ValueError(
                f"{name}.provenance must state which samples the Tally holds, as one from sample does, got None; if you "
                "know that estimation is independent of selection, pass assume_independent=True"
            )
        for other_name, other in known:
            if tally.provenance is not None:
                try:
                    other.check_independent(tally.provenance)
                except ValueError as error:
                    fit = "independent samples of one noise, seed and inputs"
                    raise ValueError(f"{other_name} and {name} must be {fit}: {error}") from None
        known += [] if tally.provenance is None else [(name, tally.provenance)]
    ids = None if input_ids is None else list(check_input_ids(input_ids))
    if ids is not None and len(ids) != selection.num_inputs:
        raise ValueError(f"input_ids must have one entry for each of {selection.num_inputs} inputs, got {len(ids)}")
    seed = seed if seed is None else check_seed(seed)
    if not known:
        if seed is None:
            raise TypeError("seed must be an int where no Tally states it, got None")
        return seed, list(range(selection.num_inputs)) if ids is None else ids
    name, stated = known[0]
    for what, given, theirs in (
        ("noise", noise, stated.noise),
        ("seed", seed, stated.seed),
        ("input_ids", ids, list(stated.input_ids)),
        ("STREAM_VERSION", STREAM_VERSION, stated.stream_version),
    ):
        if given is not None and given != theirs:
            raise ValueError(f"{what} must be {theirs!r}, with which {name} was sampled, got {given!r}")
    return stated.seed, list(stated.input_ids)


def of_inputs(spec: CertificationSpec, execution: Execution) -> CertificationSpec:
    """Return the spec with its Lipschitz constant per unit of the inputs, in which radii are measured.

    Parameters
    ----------
    spec : CertificationSpec
        Its Lipschitz constant is per unit of what the model takes, the inputs after scale and shift.
    execution : Execution
        How the base classifier runs.

    Returns
    -------
    CertificationSpec
        The constant is multiplied by the largest ``|scale|``, and rounded up. A largest scale below 1 leaves it as it is, so
        that a constant per unit of the inputs, too, is never made too small.

    Raises
    ------
    ValueError
        If there is a constant and something computes below float32: a score that is rounded so jumps and has none.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> from rsfast.heads import Softmax
    >>> spec = CertificationSpec(Gaussian(0.5), 0.001, Softmax(), lipschitz=0.5)
    >>> round(of_inputs(spec, Execution(scale=(2.0, 4.0))).lipschitz, 9)
    2.0
    """
    if spec.lipschitz is None:
        return spec
    if low := execution.below_float32:
        raise ValueError(
            f"lipschitz must be None where the model computes in less than float32 precision, got {spec.lipschitz!r} with "
            f"{low}; scores rounded so have no Lipschitz constant"
        )
    steepest = max([1.0, *map(abs, execution.scale or ())])
    constant = float(spec.lipschitz)
    return replace(spec, lipschitz=constant if steepest == 1 else math.nextafter(constant * steepest, math.inf))


def prove(
    specs: Sequence[CertificationSpec],
    selection: TallyLike | None,
    ranges: Sequence[TallyLike],
    *,
    max_samples: int,
    seed: int,
    input_ids: Sequence[int],
    backend: str,
    execution: Execution = _EXECUTION,
) -> tuple[list[list[Certificate]], Estimates, Limits]:
    """Return the certificates, a list for each spec, of Tallies that fit each other, and what they rest on.

    Specs are `of_inputs`, and of one group of `rules.alike`. What they rest on is stacked, head after head. There is a
    selection unless the specs are exact: then the votes themselves name the class.
    """
    spec, heads = specs[0], [spec.head for spec in specs]
    needs = spec.limits_by.histograms
    selected = Scores.total(ranges, *heads) if selection is None else Scores.of(selection, *heads)
    estimates = Estimates.of(selected, ranges, heads, needs, max_samples, seed, input_ids)
    found = rules.limits(estimates, spec)
    chosen, drawn = estimates.classes[:, :1], estimates.scores.trials
    votes = estimates.scores.sums if heads == [_VOTES] else Scores.total(ranges, _VOTES).sums
    first, second = leader_and_rival(votes, chosen)
    radii, ahead = _exact(spec, estimates) if spec.exact else _bounded(spec, found)
    before = np.zeros_like(drawn) if selection is None else selected.trials
    columns = (np.where(ahead, chosen, ABSTAIN), radii, found.lower, found.upper[:, -1:], first, second, before, drawn)
    certificates = [
        Certificate(
            prediction=label,
            radius=max(0.0, r),
            norm=spec.noise.norm,
            p_lower=lower,
            p_upper=upper,
            counts=(a, b),
            n0=n0,
            n=n,
            alpha=spec.alpha,
            rule=used,
            bound=spec.bound,
            head=head,
            noise=spec.noise,
            seed=seed,
            stream_version=STREAM_VERSION,
            input_id=int(input_id),
            backend=backend,
            alpha_upper=part,
            lipschitz=spec.lipschitz,
            max_samples=max_samples,
            execution=execution,
            top_k=spec.top_k,
        )
        for head, input_id, label, r, lower, upper, a, b, n0, n, used, part in zip(
            (head for head in heads for _ in input_ids),
            estimates.input_ids.tolist(),
            *(c.ravel().tolist() for c in (*columns, found.rules, found.alpha_upper)),
            strict=True,
        )
    ]
    inputs = len(input_ids)
    return [certificates[start : start + inputs] for start in range(0, len(certificates), inputs)], estimates, found


def _exact(spec: CertificationSpec, estimates: Estimates) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the radii [inputs, 1] of deterministic noise, and whether the class is proved at the input itself."""
    chosen, scores = estimates.classes[:, :1], estimates.scores
    first, others = (scores.only(classes).sums for classes in (chosen, scores.largest_others(chosen, spec.top_k)))
    lead = exact_lead(first, others)
    return spec.noise.exact_radius(lead), lead > 0


def _bounded(spec: CertificationSpec, found: Limits) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the radii [inputs, 1] that follow from limits, and whether they prove the class."""
    radii = rules.radius_of(spec, found.lower, found.upper)
    return radii, radii > 0


def smallest_certifiable_n(alpha: float) -> int:
    """Return the fewest estimation samples with which unanimous votes certify anything: ``alpha ** (1 / n) > 1/2``.

    Examples
    --------
    >>> smallest_certifiable_n(0.001)
    10
    """
    mantissa, exponent = math.frexp(check_alpha(alpha))  # exact, where a logarithm is not at powers of 1/2
    return 2 - exponent if mantissa == 0.5 else 1 - exponent
