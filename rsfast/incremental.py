"""Incremental certification: what the certificates of one model and a few pairs of samples prove about a changed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from ._check import as_real, check_count
from .engine.forward import Model, reduced_precision
from .engine.incremental import Comparison, IncrementalCertification, PairOfModels, check_pair
from .engine.inputs import Source, length_of, shuffler
from .engine.modes import is_fixed, modules_of
from .engine.sampling import Sampling, check_model
from .noise import STREAM_VERSION
from .ops.tally import check_classes
from .stats.certificate import Certificate
from .stats.common import check_alpha
from .stats.incremental import check_before

if TYPE_CHECKING:
    from .stats.certificate import Execution

_AS_BEFORE = ("dtype", "autocast", "channels_last", "compile", "cuda_graph", "clamp", "scale", "shift")


def compare(
    model_a: Model,
    model_b: Model,
    inputs: Source,
    certificates: Sequence[Certificate],
    *,
    num_classes: int,
    alpha: float = 0.001,
    rtol: float = 0.03,
    n: int | None = None,
    batch_size: int | str = "auto",
    shard: str | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> list[Comparison]:
    """Certify a changed model from the certificates of the model it was made of, and few samples of both.

    For a model that was quantised, pruned, compiled, fine-tuned a little or run in another dtype. Both models see the same
    noise, that of the certificates. The mass that the certified class loses to the change is small, so few pairs bound it
    well, and the certificate's own samples pay for the rest. Each pair runs both models.

    Parameters
    ----------
    model_a : callable
        The model that was certified. It runs as the certificates' `execution` says. That it is this model is taken on trust
        where its votes do not tell it from another, so no copy of the changed model will do.
    model_b : callable
        The changed model, given the same batches. One that takes another dtype converts its input.
    inputs : float32 tensor ``[I, *shape]``, Dataset, DataLoader or iterable
        The inputs of the certificates, in their order.
    certificates : sequence of Certificate
        Those of model_a, one an input, of votes under random noise; what `certify` returned, or a list of one head.
    num_classes : int
        K, the number of logits of either model.
    alpha : float
        Failure probability, in (0, 1), of a certificate of model_b. A tenth of it pays for the limit of the certificate's
        samples, which is computed again; the rest for the pairs.
    rtol : float
        Stop sampling an input once it has lost no more than this share of its own radius before, or of the mean radius of
        the certificates if that is more, but never more than half of its own; or once ``1 - rtol`` of what it is likely to
        become is proved. In (0, 1).
    n : int, optional
        The most pairs of an input. It is half of the certificate's n if that is less: no input takes more runs of a model
        than to certify it anew.
    batch_size, shard, backend, progress
        As in `certify`.

    Returns
    -------
    list of Comparison
        ``before``, the certificate as given; ``after``, that of model_b, with the rule "incremental", whose n counts pairs;
        ``lost``, the pairs in which model_b lost the class. An input whose certificate abstains abstains again.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any sampling; if model_a cannot be the model of the certificates, once its votes show
        it.

    Notes
    -----
    ``P(f' = A) >= P(f = A) - P(f = A, f' != A)``. The limits of both terms come from samples that
    may be the same, as alpha is divided between them. The votes of f' bound P(f' = A) by
    themselves, too, at a share of their own; the better limit counts. The limits of pairs hold at
    any number of them.

    References
    ----------
    Ugare, Suresh, Banerjee, Singh and Misailovic, "Incremental Randomized Smoothing Certification", 2024.

    Examples
    --------
    >>> import torch
    >>> from rsfast import Gaussian, certify
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> pruned = lambda x: torch.stack([x[:, 0], -1.01 * x[:, 0] + 0.002], dim=1)
    >>> inputs = torch.full((1, 1), 0.3)
    >>> found = certify(model, inputs, Gaussian(0.25), num_classes=2, n=100_000, seed=1)
    >>> [(before, after, *_)] = compare(model, pruned, inputs, found, num_classes=2)
    >>> 0.97 * before.radius <= after.radius < before.radius, after.n < 10_000
    (True, True)
    """
    classes = check_classes(num_classes)
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        check_model(name, model)
    first = _check_certificates(certificates)
    _check_count(length_of(inputs), len(certificates))
    if isinstance(inputs, DataLoader) and (sampler := shuffler(inputs)) is not None:
        what = f"got a DataLoader that shuffles (its {type(sampler).__name__})"
        raise ValueError(f"inputs must come in the order of certificates, {what}; use shuffle=False, for certify too")
    alpha, rtol = check_alpha(alpha), as_real("rtol", rtol, above=0, below=1)
    n = None if n is None else check_count("n", n)
    options: dict[str, Any] = {name: getattr(first.execution, name) for name in _AS_BEFORE}
    options |= {"batch_size": batch_size, "shard": shard, "backend": backend, "progress": progress, "seed": first.seed}
    ids = [each.input_id for each in certificates]
    pair = PairOfModels(model_a, model_b, classes)
    sampling = Sampling(pair, inputs, first.noise, 3 * classes, input_ids=ids, **options)
    check_pair("model_a", model_a, model_b, sampling.device, first.execution)
    plan = IncrementalCertification(
        dict(zip(ids, certificates, strict=True)),
        alpha=alpha,
        rtol=rtol,
        n=n,
        seed=first.seed,
        backend=sampling.backend,
        execution=_execution(sampling, model_b),
    )
    found = sampling.results(plan, "comparing")
    _check_count(len(found), len(certificates))  # an iterable may end early
    return found


def _check_count(inputs: int | None, certificates: int) -> None:
    if inputs not in (None, certificates):
        raise ValueError(f"certificates must be one an input, {inputs}, got {certificates}")


def _check_certificates(certificates: Sequence[Certificate]) -> Certificate:
    """Return the first certificate, with which all others share what was sampled; raise TypeError or ValueError."""
    if not isinstance(certificates, Sequence) or not all(isinstance(each, Certificate) for each in certificates):
        hint = "; of several heads pass those of votes, as [each[0] for each in certificates]"
        several = isinstance(certificates, Sequence) and isinstance(certificates[0], list)
        raise TypeError(
            f"certificates must be a list of Certificate, one an input, got {certificates!r:.100}{hint if several else ''}"
        )
    if not certificates:
        raise ValueError("certificates must hold at least one, got none")
    check_before(certificates)
    first = certificates[0]
    for place, each in enumerate(certificates):
        for name in ("noise", "seed", "stream_version", "execution"):
            if getattr(each, name) != getattr(first, name):
                raise ValueError(
                    f"certificates must be of one call, got {name} {getattr(first, name)!r:.80} in certificates[0] and "
                    f"{getattr(each, name)!r:.80} in certificates[{place}]"
                )
    if first.stream_version != STREAM_VERSION:
        raise ValueError(f"certificates must be of the noise stream's version {STREAM_VERSION}, got {first.stream_version}")
    if len({each.input_id for each in certificates}) < len(certificates):
        raise ValueError("certificates must be of different inputs, got one input id twice")
    return first


def _execution(sampling: Sampling, model: Model) -> Execution:
    """Return how the changed model runs: as the pair does, but only its own modules count for what is below float32."""
    modules = modules_of(model)
    found = reduced_precision(modules, sampling.device)
    return replace(sampling.execution, reduced_precision=found or None, mode_fixed=any(map(is_fixed, modules)))
