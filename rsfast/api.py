"""The public functions: check the arguments, draw the samples, return what the plan makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from . import ops
from ._check import as_real, check_choice
from .engine.forward import Model
from .engine.inputs import Owned, Source, warn_of_units
from .engine.options import (
    CertifyOptions,
    ProofOptions,
    SampleOptions,
    SamplingOptions,
    StoppingOptions,
    TuneOptions,
    checked,
    part,
    prediction_options,
    proof_options,
    refuse_unknown,
    sample_range,
)
from .engine.plan import Certification, Prediction, StoppingRule, largest_radius, smallest_n
from .engine.sampling import Sampling, draw_tally, warn_if_hopeless
from .heads import HEADS, Head, Votes
from .noise import Noise, check_noise, radius_label
from .ops.tally import Tally, check_heads
from .stats.certificate import Certificate
from .stats.prediction import smallest_predictable_n
from .stats.rules import CertificationSpec, alike

_VOTES = Votes()


def sample(
    model: Model,
    inputs: torch.Tensor,
    noise: Noise,
    *,
    num_classes: int,
    n: int | None = None,
    start: int = 0,
    stream: str = "estimation",
    heads: Sequence[Head] = (_VOTES,),
    tracked_classes: NDArray[np.int64] | torch.Tensor | None = None,
    seed: int,
    **options: Unpack[SampleOptions],
) -> Tally:
    """Return the Tally of n noisy samples of every input.

    Tallies of disjoint sample ranges add up to the Tally of the whole: ``sample(n=60) + sample(n=40, start=60)`` equals
    ``sample(n=100)``, bit for bit, as long as the model computes each row the same in whatever batch it stands. Each states
    in its `provenance` which samples it holds, so that none is counted twice.

    Parameters
    ----------
    model : callable
        From a batch ``[B, *shape]`` to logits [B, num_classes]. A torch.nn.Module is put into eval mode meanwhile.
    inputs : float32 tensor ``[I, *shape]``
        Finite, no value beyond ``noise.largest_input``, none outside ``noise.input_range``; first axis of shape is the
        channel. With `GridGaussian` noise uint8 images, or float32 multiples of 1/255.
    noise : Noise
        Its parameters are in the units of inputs.
    num_classes : int
        K, the number of logits.
    n : int, optional
        Samples of each input. Random noise needs it. Of deterministic noise all evaluations from start on, if left out.
    start : int
        Index of the first; they are start to start + n - 1, below 2^56.
    stream : str
        "selection", "estimation", "training" or "user".
    heads : sequence of Head
        The scores to sum; all are taken from the same logits.
    tracked_classes : int64 array [I, M, C], optional
        Classes whose scores' histograms the Tally keeps, for betting bounds: `leading_classes` of the selection sample.
    seed : int
        In [0, 2^64).
    batch_size : int or "auto"
        Rows in a batch; rows of several inputs may share one. "auto" takes the fastest that a search on at most 1 % of the
        samples finds, and keeps it for the model. It begins at 2 MiB of noise on a CPU, 4 MiB for vectors, 4 to 32,768 rows,
        and elsewhere at 16 MiB, 16 to 65,536 rows. Short calls take that as it is. Where memory runs out, batches are
        halved, with a warning.
    input_ids : int64 tensor [I], optional
        Identity of each input in the noise stream, in [0, 2^32); 0 to I - 1 by default.
    scale, shift, clamp, dtype, channels_last, backend
        As in `ops.perturb`. dtype is what the model takes: "float64" for one whose weights are float64.
    autocast, compile, cuda_graph
        And whatever else `forward.Forward` takes, as there. These and scale, shift, clamp, dtype and channels_last are part
        of the classifier that is certified, and recorded.
    progress : bool
        Show a progress bar if stderr is a terminal, or in a notebook.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any sampling; if what the model returns is wrong, at its first batch.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> tally = sample(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, n=1000, seed=1)
    >>> tally.counts.sum().item()
    1000
    """
    refuse_unknown(SampleOptions, options)  # no shard: each process has a range of its own, or inputs
    samples = sample_range(noise, n, start)
    x = ops.as_floats(ops.check_inputs("inputs", inputs, noise=noise))
    if seed is None:
        raise TypeError("seed must be an int, got None; other samples of the same stream must be known to be others")
    sampling = Sampling(model, inputs, noise, num_classes, seed=seed, **options)
    warn_of_units(sampling.inputs.known, noise, stacklevel=2)
    given = options.get("input_ids")
    ids = ops.indices("input_ids", range(len(x)) if given is None else given, len(x), 1 << 32, x.device)
    return draw_tally(sampling, x, ids, samples, stream, heads, tracked_classes)


@overload
def certify(
    model: Model, inputs: Source, noise: Noise, *, num_classes: int, head: Head = ..., **options: Unpack[CertifyOptions]
) -> list[Certificate]: ...


@overload
def certify(
    model: Model, inputs: Source, noise: Noise, *, num_classes: int, head: Sequence[Head], **options: Unpack[CertifyOptions]
) -> list[list[Certificate]]: ...


def certify(
    model: Model,
    inputs: Source,
    noise: Noise,
    *,
    num_classes: int,
    head: Head | Sequence[Head] = _VOTES,
    **options: Unpack[CertifyOptions],
) -> list[Certificate] | list[list[Certificate]]:
    """Return one Certificate for each input: the smoothed classifier's class, and the radius within which it is constant.

    Each is wrong with probability at most alpha, over the noise. The class is chosen on n0 samples and bounded on others: n,
    or as many as it takes to decide. Of deterministic noise all evaluations are counted, and the certificate is exact.

    Parameters
    ----------
    model, noise, num_classes, **options
        As in `sample`.
    inputs : float32 tensor ``[I, *shape]``, Dataset, DataLoader or iterable
        A tensor, or anything that `inputs.Inputs` reads: ahead of the model, and never all in memory. With `GridGaussian`
        noise uint8 images, or float32 multiples of 1/255.
    n0, n : int
        Selection samples (default 100), and estimation samples (default 100,000) of each input: the most of them if `radius`
        or `rtol` is given. With deterministic noise this and what follows, up to `rtol`, is to be left out: n is
        ``noise.evaluations``, n0 and alpha are 0, and `head` votes.
    alpha : float
        Failure probability, in (0, 1), of an input (default 0.001).
    head : Head or sequence of Head
        The score that is averaged: part of the classifier, to be fixed before sampling. Of several each gets a certificate,
        at alpha over their number, so that all of an input hold together and the best may be quoted.
    bound : str
        "auto": Clopper-Pearson for votes, betting for scores; with `radius` or `rtol`, the beta-binomial and the betting
        sequence. Or a name, as in `certificates`.
    rule : str
        "auto" (for each input what its selection sample promises more of, one-vs-rest or top-two), "one_vs_rest",
        "top_two", "class_partitioning" or "bonferroni".
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's score under `head`, **per unit of what the model takes**, as
        `lipschitz_bound` of the model with its softmax gives it. What is used and recorded is that times the largest
        ``|scale|``, or times 1 where that is less: per unit of inputs, in which radii are measured. It is taken on trust,
        and one of real numbers: what float32 rounds in a score comes on top. Refused where something computes below
        float32, as scores then jump: dtype, autocast, the model's parameters and buffers, its logits, TF32 and the like
        (on a GPU PyTorch's default for convolutions; `torch.backends.cudnn.allow_tf32` switches it off).
    top_k : int
        k, less than num_classes (default 1). The radius is then that within which the class is among the k with the largest
        smoothed scores. It is larger, and there may be one where the class's score is below 1/2: one-vs-rest needs only
        ``1 / (k + 1)``. The k largest of the others pay alpha / 2k each, whatever the number of classes (`certificates`).
    radius : float or sequence of float, optional
        In the noise's norm. Stop sampling an input as soon as its radius is proved to be as large, or a forecast says that
        it will not be. The certificate holds either way; its radius may be larger or smaller, and n is the number of samples
        it took. Several radii, which must increase, must all be decided: that gives certified accuracy at each of them. An
        input takes about as many samples as the radius that is hardest to decide for it.
    rtol : float, optional
        Stop sampling an input as soon as its radius is proved to within this share, in (0, 1), of what it could become.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. Either way it is in the Certificate.
    shard : str, optional
        Under torch.distributed, what the processes of the default group divide: "inputs", or "samples" of every input. All
        are called with the same arguments, and all return all certificates: those of one process. What one raises ends the
        others, too; while they share samples, with the end of its process or the process group's timeout.

    Returns
    -------
    list of Certificate
        Each unpacks as ``prediction, radius``; ``rsfast.ABSTAIN, 0.0`` where nothing can be certified. The radius is in the
        noise's norm, and `Certificate.radius_in` states it in others. With a sequence of heads, for each input the list of
        its certificates, one a head.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any sampling; if what the model returns is wrong, at its first batch.

    Warns
    -----
    UserWarning
        If n is so small that even unanimous votes certify nothing, or not the `radius` that is given. If inputs leave
        [0, 1], as the noise is in their units; of inputs that are not a tensor, the first is checked.

    Notes
    -----
    With `radius` or `rtol`, samples are analysed after fixed numbers of them, whatever the batch size. For votes these are
    16, 24, 32 ... 80, 88, 96, 105 ... (`sequences.fine_analysis_ends`). Where a head has scores, or the bound bets, they are
    16, 24, 32, 48, 64 ... (`sequences.analysis_ends`).

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, CERTIFY.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> [(prediction, radius)] = certify(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, n=10_000, seed=1)
    >>> prediction, 0.45 < radius <= 0.5
    (0, True)
    >>> [found] = certify(model, torch.full((1, 1), 0.5), Gaussian(0.25), num_classes=2, radius=0.25, seed=1)
    >>> found.radius >= 0.25, found.n
    (True, 64)
    """
    sampling, plan = _certification(model, inputs, noise, num_classes, head, options)
    results = sampling.results(plan, "certifying")
    return [certificates[0] for certificates in results] if isinstance(head, Head) else results


def _certification(
    model: Model, inputs: Source, noise: Noise, num_classes: int, head: Head | Sequence[Head], options: CertifyOptions
) -> tuple[Sampling, Certification]:
    """Check the arguments of `certify` and `certify_each`; return what to sample, and the plan."""
    refuse_unknown(CertifyOptions, options)
    heads = _heads(head)
    proof, stopping = proof_options(noise, heads[0], options), StoppingRule(**part(StoppingOptions, options))
    specs = _specs(noise, heads, proof, alpha=proof["alpha"] / len(heads), early=bool(stopping))
    sampling = Sampling(model, inputs, noise, num_classes, **part(SamplingOptions, options))
    plan = sampling.certification(specs, stopping, proof["n0"], proof["n"])
    warn_of_units(sampling.inputs.known, noise, stacklevel=3)
    for places in alike(plan.specs) if noise.evaluations is None else ():  # a group's specs have one largest radius
        warn_of_radius(plan.specs[places[0]], stopping, proof["n0"], proof["n"], sampling.num_classes)
    return sampling, plan


def _specs(
    noise: Noise, heads: Sequence[Head], proof: ProofOptions, *, alpha: float, early: bool = False
) -> list[CertificationSpec]:
    how = {name: value for name, value in proof.items() if name not in ("n0", "n", "alpha")}
    return [CertificationSpec(noise, alpha, head, early=early, **how) for head in heads]  # type: ignore[arg-type]


@overload
def certify_each(
    model: Model, inputs: Source, noise: Noise, *, num_classes: int, head: Head = ..., **options: Unpack[CertifyOptions]
) -> Iterator[Certificate]: ...


@overload
def certify_each(
    model: Model, inputs: Source, noise: Noise, *, num_classes: int, head: Sequence[Head], **options: Unpack[CertifyOptions]
) -> Iterator[list[Certificate]]: ...


def certify_each(
    model: Model,
    inputs: Source,
    noise: Noise,
    *,
    num_classes: int,
    head: Head | Sequence[Head] = _VOTES,
    **options: Unpack[CertifyOptions],
) -> Iterator[Certificate] | Iterator[list[Certificate]]:
    """Yield what `certify` returns, in the order of the inputs, each as soon as it and those before it are finished.

    Arguments are those of `certify`, and checked when this is called; of inputs that are not a tensor, each when it is
    read. Neither the inputs nor the certificates are ever all in memory. With ``shard="inputs"`` each process yields its
    own: of process r of w every w-th input, from the r-th. In a forked child the iterator raises RuntimeError.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> inputs = (torch.tensor([value]) for value in (0.5, -0.4, 0.3))
    >>> for found in certify_each(model, inputs, Gaussian(0.25), num_classes=2, n=1000, seed=1):
    ...     print(found.input_id, found.prediction)
    0 0
    1 1
    2 0
    """
    sampling, plan = _certification(model, inputs, noise, num_classes, head, options)
    results = (outcome.result for outcome in sampling.outcomes(plan, "certifying"))
    return Owned(
        "the iterator of certify_each", (certificates[0] for certificates in results) if isinstance(head, Head) else results
    )


def _heads(head: Head | Sequence[Head], name: str = "head") -> tuple[Head, ...]:
    heads = (head,) if isinstance(head, Head) else head
    if isinstance(heads, str) or not isinstance(heads, Sequence):
        hint = "pass an object, such as rsfast.Softmax(0.5)"
        raise TypeError(f"{name} must be one of {', '.join(HEADS)}, or a list of them, got {head!r}; {hint}")
    return check_heads(heads, name)


class Tuned(NamedTuple):
    """What `tune_head` found: the head to deploy, and the score of every head."""

    head: Head
    scores: dict[Head, float]


def tune_head(
    model: Model,
    inputs: Source,
    labels: torch.Tensor | Sequence[int],
    noise: Noise,
    heads: Sequence[Head],
    *,
    num_classes: int,
    criterion: str | float = "average_radius",
    **options: Unpack[TuneOptions],
) -> Tuned:
    """Return the head that certifies best on calibration inputs, for the classifier that is then deployed and certified.

    All heads are evaluated on the same samples. Certify with ``head=tuned.head`` on other inputs: the choice is then fixed
    before any sample that is certified, and costs nothing. Choosing a head for each input, from the samples that are
    certified, would prove nothing about any one classifier.

    Parameters
    ----------
    model, noise, num_classes, **options
        As in `certify`, and best as they will be in deployment; but n is 10,000 by default, and there is no radius or rtol.
    inputs : float32 tensor ``[I, *shape]``
        Calibration inputs; not those that are certified later.
    labels : int64 [I]
        Their true classes.
    heads : sequence of Head
        To choose from.
    criterion : str or float
        "average_radius": the mean over inputs of the radius, 0 where the prediction is wrong. "certified_accuracy": the
        share of inputs that are predicted right, and not abstained from. A number: the share that is right with a radius of
        at least that much in the noise's norm.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. It may be the seed of the certification: noise comes from
        the stream "training".

    Returns
    -------
    Tuned
        ``head``, the first of those with the largest score; ``scores``, of every head.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any sampling; if what the model returns is wrong, at its first batch.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> from rsfast.heads import Softmax
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> inputs, labels = torch.tensor([[0.5], [-0.4]]), [0, 1]
    >>> heads = [Votes(), Softmax(1.0), Softmax(0.01)]
    >>> tune_head(model, inputs, labels, Gaussian(0.25), heads, num_classes=2, n=1000, seed=1).head
    Votes()
    """
    refuse_unknown(TuneOptions, options)
    if check_noise("noise", noise).evaluations is not None:
        raise ValueError(f"noise must be random where heads are compared, got {noise!r:.100}; certify with Votes()")
    proof = checked(ProofOptions, {"n": 10_000} | part(ProofOptions, options))
    heads, least = _heads(heads, "heads"), 0.0
    if isinstance(criterion, str):
        check_choice("criterion", criterion, ("average_radius", "certified_accuracy"))
    else:
        least = as_real("criterion", criterion, least=0)
    specs = _specs(noise, heads, proof, alpha=proof["alpha"])
    sampling = Sampling(model, inputs, noise, num_classes, **part(SamplingOptions, options))
    if sampling.inputs.count is None:
        kind = type(inputs).__name__
        raise TypeError(f"inputs must be a tensor or have a length, that of labels, got a {kind}; pass list(inputs)")
    truth = ops.indices("labels", labels, sampling.inputs.count, sampling.num_classes, sampling.inputs.device)
    ops.check_range("labels", truth, sampling.num_classes)
    warn_of_units(sampling.inputs.known, noise, stacklevel=2)
    plan = sampling.certification(specs, StoppingRule(), proof["n0"], proof["n"], streams=("training", "training"))
    found = sampling.results(plan, "tuning")
    radii = np.array([[each.radius for each in of_input] for of_input in found])
    right = np.array([[each.prediction for each in of_input] for of_input in found]) == truth.cpu().numpy()[:, None]
    values = radii if criterion == "average_radius" else radii >= least
    scores = dict(zip(heads, np.where(right, values, 0).mean(axis=0).tolist(), strict=True))
    return Tuned(max(scores, key=lambda head: scores[head]), scores)


def warn_of_radius(spec: CertificationSpec, stopping: StoppingRule, n0: int, n: int, num_classes: int) -> None:
    """Warn the caller of `certify` or `certify_each` of what no votes can prove, where noise is random."""
    largest = largest_radius(spec, stopping, n0=n0, n=n, num_classes=num_classes)
    if largest == 0:
        smallest = smallest_n(spec, stopping, n0=n0, num_classes=num_classes)
        if smallest is not None:
            return warn_if_hopeless("certify", n, spec.alpha, smallest, stacklevel=5)
        warnings.warn(
            f"every input abstains, whatever the votes: at {spec.noise.settings} no number of samples proves a radius; take "
            f"{spec.noise.more}",
            UserWarning,
            stacklevel=4,
        )
    elif beyond := [radius for radius in stopping.radii if radius > largest]:
        warnings.warn(
            f"radius is {', '.join(map(str, beyond))}: no input can reach it, as at {spec.noise.settings} and alpha = "
            f"{spec.alpha} n = {n} unanimous votes prove the {radius_label(spec.noise.norm)} {largest:.4g}; take a smaller "
            f"radius, or {spec.noise.more}, or a larger n",
            UserWarning,
            stacklevel=4,
        )


def predict(
    model: Model,
    inputs: Source,
    noise: Noise,
    *,
    num_classes: int,
    n: int | None = None,
    alpha: float | None = None,
    **options: Unpack[SamplingOptions],
) -> list[int]:
    """Return the smoothed classifier's class at each input, or ABSTAIN where n votes do not decide at level alpha.

    The two-sided exact binomial test of the two classes with most votes. A class that is returned is not the smoothed
    classifier's with probability at most alpha.

    Parameters
    ----------
    n : int
        Samples of each input. Random noise needs it; deterministic noise counts all evaluations, so it may be left out.
    alpha : float
        Failure probability, in (0, 1), of each input. Random noise needs it. Deterministic noise takes none: only a tie
        abstains.

    Other parameters, errors, warning: as `certify`.

    References
    ----------
    Cohen, Rosenfeld and Kolter 2019, PREDICT, after Hung and Fithian, "Rank verification for exponential families", 2019.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> predict(model, torch.tensor([[0.5], [0.0]]), Gaussian(0.25), num_classes=2, n=100, alpha=0.001, seed=1)
    [0, -1]
    """
    n, alpha = prediction_options(noise, n, alpha)
    sampling = Sampling(model, inputs, noise, num_classes, **options)
    warn_of_units(sampling.inputs.known, noise, stacklevel=2)
    if alpha:
        warn_if_hopeless("predict", n, alpha, smallest_predictable_n(alpha))
    return sampling.results(Prediction(n, alpha), "predicting")
