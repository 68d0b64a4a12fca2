"""How long a run will take: its samples by certifying twins of images, its seconds by what was measured of the model."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.plan import StoppingRule, largest_radius
from ..noise import Gaussian, radius_label
from ..runs.environment import Environment
from ..runs.run import Run
from ..stats.rules import CertificationSpec
from .subject import threads
from .twins import Counts, Twins, posterior

_UNANIMOUS = np.array([[1000, 0]])
_BATCH = 8192  # rows of the twins' batches, which do not decide how many samples a twin takes
_FEW = 1000  # samples of a twin where there are no early decisions: no more are needed to time its bounds and files


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes
    ----------
    option : str
        ``--radius R ...``, ``--rtol X``, or "" of a run without early decisions.
    samples : float
        Of an image, selection samples among them: the mean over images.
    error : float
        Its standard error, which is that of the choice of images; 0 where it is known, None of a single image.
    seconds : float
        Of all images.
    """

    option: str
    samples: float
    error: float | None
    seconds: float


def check_stopping(noise: Gaussian, num_classes: int, proof: Mapping[str, Any], stopping: StoppingRule) -> None:
    """Raise ValueError if no votes prove the radius at which sampling is to stop."""
    if not stopping.radii:
        return
    spec = CertificationSpec(noise, proof["alpha"], early=True)
    most = largest_radius(spec, stopping, n0=proof["n0"], n=proof["n"], num_classes=num_classes)
    if stopping.radii[-1] > most:
        floor = math.floor(most * 1e4) / 1e4
        raise ValueError(
            f"radius must be at most {floor:g}, the {radius_label(noise.norm)} that unanimous votes prove at sigma = "
            f"{noise.sigma:g}, n = {proof['n']:,} and alpha = {proof['alpha']:g}, got {stopping.radii[-1]:g}; take a "
            "smaller radius, or a larger sigma or n"
        )


def forecast(
    noise: Gaussian,
    proof: Mapping[str, Any],
    stopping: StoppingRule,
    counts: Counts | None,
    *,
    images: int,
    seconds_a_sample: float,
    start: float = 0.0,
    twins: int = 1000,
    seed: int = 2026,
) -> Forecast:
    """Return what a run takes, by certifying twins of some of its images into a temporary run folder.

    So the samples of early decisions are those of the analyses, bounds and stopping rule of ``rsfast certify`` itself. What
    the twins take besides their trivial classifier and their noise, which is bounds and files, an image takes, too.

    Parameters
    ----------
    noise : Gaussian
    proof : mapping
        ``n0``, ``n`` and ``alpha``.
    stopping : StoppingRule
    counts : int64 array [I, K] or None
        Votes of some of the images; None where there are none, and no early decisions.
    images : int
        How many images the run has.
    seconds_a_sample : float
        Of the model and of rsfast, in full batches.
    start : float
        Seconds until the first batch is done.
    twins : int
        How many are certified, about.
    seed : int
        Of their votes.

    Examples
    --------
    >>> proof = {"n0": 100, "n": 10_000, "alpha": 0.001}
    >>> votes = np.array([[100, 0], [80, 20]])
    >>> found = forecast(Gaussian(0.5), proof, StoppingRule(radius=0.5), votes, images=1000, seconds_a_sample=0.001, twins=9)
    >>> found.option, found.samples < 10_100, found.seconds > found.samples
    ('--radius 0.5', True, True)
    """
    if not stopping or counts is None:
        shares = posterior(_UNANIMOUS, twins)
        _, overhead = _certify(Twins(shares, noise.sigma), noise, {**proof, "n": min(_FEW, proof["n"])}, stopping, seed)
        error: float | None = 0.0
        mean = float(proof["n0"] + proof["n"])
    else:
        counts = counts[np.linspace(0, len(counts) - 1, min(len(counts), twins)).astype(int)]
        copies = max(1, twins // len(counts))
        samples, overhead = _certify(Twins(posterior(counts, copies), noise.sigma), noise, proof, stopping, seed)
        of_images = samples.reshape(-1, copies).mean(axis=1)
        mean = float(samples.mean())
        error = float(of_images.std(ddof=1) / math.sqrt(len(counts))) if len(counts) > 1 else None
    option = "" if stopping.rtol is None else f"--rtol {stopping.rtol:g}"
    if stopping.radii:
        option = " ".join(["--radius", *(f"{radius:g}" for radius in stopping.radii)])
    return Forecast(option, mean, error, start + images * (mean * seconds_a_sample + overhead))


def _certify(
    twins: Twins, noise: Gaussian, proof: Mapping[str, Any], stopping: StoppingRule, seed: int
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Return the samples that each twin took, and the seconds of one besides classifier and noise."""
    samples = np.zeros(len(twins.inputs))

    def note(index: int, certificate: Any) -> None:
        samples[index] = certificate.n0 + certificate.n

    with tempfile.TemporaryDirectory(prefix="rsfast-bench-") as folder:
        log = Path(folder, "log.jsonl")
        environment = Environment(say=lambda _: None, bar=_no_bar)
        run = Run(
            twins,
            twins.inputs,
            noise,
            Path(folder, "run"),
            num_classes=twins.num_classes,
            seed=seed,
            batch_size=_BATCH,
            log_json=str(log),
            environment=environment,
        )
        with threads(1):  # which is what so small a classifier is fastest with
            run.certify(**proof, **vars(stopping), each=note)
        ended = json.loads(log.read_text().splitlines()[-1])
    share = max(0.0, 1 - ended["share_model"] - ended["share_kernels"])
    return samples, ended["seconds"] * share / len(samples)


def _no_bar(**options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(**{**options, "disable": True})
