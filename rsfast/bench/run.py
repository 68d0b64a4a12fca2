"""`rsfast bench` as a function: measure a model, then forecast what a run takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..api import sample
from ..engine.forward import Model
from ..engine.inputs import Unreadable
from ..engine.plan import StoppingRule
from ..noise import Gaussian
from ..runs import settings
from .forecast import Forecast, check_stopping, forecast
from .measure import Measurement
from .report import Report
from .subject import threads
from .twins import Counts, counts_from_run, counts_of

_PILOT, _VOTES = 0.1, 50  # share of the time that votes of images take, and votes of an image
_MOST_VOTES = 10_000
_SEED = 2026  # of noise


def classes_of(
    model: Model, name: str, images: torch.Tensor, noise: Gaussian, num_classes: int | None, options: Mapping[str, Any]
) -> int:
    """Return how many logits a model returns a row; raise ValueError if it fails, or that is not `num_classes`."""
    widths = []

    def first_two(batch: torch.Tensor) -> Any:
        output = model(batch)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            return output  # which the check refuses, with the reason
        widths.append(logits.shape[1])
        return logits[:, :2] if num_classes is None else logits

    how = {**options, "num_classes": num_classes or 2, "seed": _SEED}
    settings.try_model(first_two, name, images, images.device, noise, how)
    return int(widths[0])


def pick(data: torch.Tensor | Dataset[torch.Tensor], count: int, device: torch.device) -> torch.Tensor:
    """Return at most so many of the inputs, evenly spaced, as one tensor float32 [I, *shape] there.

    In place of those that cannot be read it takes others.

    Raises
    ------
    ValueError
        If none can be read, or their shapes differ.
    """
    total = len(data)  # type: ignore[arg-type]
    places = sorted({round(place * (total - 1) / max(1, count - 1)) for place in range(count)})
    found = list[torch.Tensor]()
    for place in dict.fromkeys([*places, *range(total)]):
        if len(found) == len(places):
            break
        with suppress(Unreadable):
            found.append(torch.as_tensor(data[place]))
    if not found:
        raise ValueError(f"data must hold inputs that can be read, got none among {total}")
    if len(shapes := {each.shape for each in found}) > 1:
        several = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise ValueError(f"data must hold inputs of one shape, got {several}; give --image-size")
    return torch.stack(found).to(device)


def bench(
    measurement: Measurement,
    data: torch.Tensor | Dataset[torch.Tensor] | None,
    *,
    name: str,
    certify: Sequence[str],
    images: int,
    stopping: Sequence[StoppingRule],
    from_run: str | Path | None = None,
    twins: int = 1000,
) -> Report:
    """Measure, forecast a run with and without early decisions, and return the report.

    Parameters
    ----------
    measurement : Measurement
    data : Tensor or Dataset, optional
        Images whose votes forecasts rest on, unless there is a run.
    name : str
        The model's.
    certify : sequence of str
        As in `Report`.
    images : int
        Of the run.
    stopping : sequence of StoppingRule
        Early decisions to forecast.
    from_run : path-like, optional
        A run whose images stand for those of the new one.
    twins : int
        As in `forecast`.

    Raises
    ------
    TypeError, ValueError, OSError
        If no votes prove a radius, or `from_run` is no such run, before anything is measured.
    """
    subject = measurement.subject
    for each in stopping:
        check_stopping(subject.noise, subject.num_classes, subject.proof, each)
    counts, votes_of = None, ""
    if from_run is not None:
        proof = {key: subject.proof[key] for key in ("n", "alpha")}
        counts, votes_of = counts_from_run(from_run, subject.noise, subject.num_classes, **proof)
    measured = measurement.measure()
    line = measured.best(exact=True)
    if counts is None and data is not None:
        measurement.say("drawing votes of images for the forecast")
        counts, votes_of = _pilot(measurement, data)
    measurement.say("forecasting")
    found: list[Forecast] = []
    for each in (StoppingRule(), *(stopping if counts is not None else ())):
        proof = {key: subject.proof[key] for key in ("n0", "n", "alpha")}
        rate, start = 1 / line.rate, line.start
        found.append(
            forecast(subject.noise, proof, each, counts, images=images, seconds_a_sample=rate, start=start, twins=twins)
        )
    return Report(subject, name, certify, images, measured, found, votes_of)


def _pilot(measurement: Measurement, data: torch.Tensor | Dataset[torch.Tensor]) -> tuple[Counts, str]:
    """Return votes of as many of the images as there is time for, and a sentence on them."""
    subject, line = measurement.subject, measurement.measured.best(exact=True)
    rows, total = int(line.rate * measurement.seconds * _PILOT), len(data)  # type: ignore[arg-type]
    count = max(1, min(total, rows // _VOTES))
    votes = max(1, min(rows // count, _MOST_VOTES))
    assert line.change is not None
    options = {**subject.options, **line.change.options}
    with threads(line.change.threads):
        tally = sample(
            subject.model,
            pick(data, count, subject.device),
            subject.noise,
            num_classes=subject.num_classes,
            n=votes,
            stream="user",
            seed=_SEED,
            **options,
        )
    return counts_of(tally), f"{votes:,} votes of each of {count:,} images"
