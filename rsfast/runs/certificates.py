"""Results of certificates that are in memory, as a notebook has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._check import as_int
from ..stats.certificate import ABSTAIN, Certificate
from .results import Results

_OF_ONE = {"prediction", "radius", "p_lower", "p_upper", "counts", "cap", "input_id", "execution"}
"""What `Certificate.to_dict` holds of one input, and what a sidecar has under other names."""


def from_certificates(
    found: Sequence[Certificate],
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Results:
    """Return certificates of one noise as `Results`, for a table, a figure or a report.

    Parameters
    ----------
    found : sequence of Certificate
        Of different inputs, as `certify` returns them for one head, at least one.
    labels : sequence of int, optional
        True classes, one a certificate.
    names : sequence of str, optional
        Of the inputs, one a certificate.
    class_names : sequence of str, optional

    Returns
    -------
    Results
        Without the time that they took. Its sidecar holds what all certificates share.

    Raises
    ------
    TypeError
        If found holds anything but certificates: those of several heads are a list for each input.
    ValueError
        If found is empty, or holds certificates of several noises or top_k; or labels, names or class_names do not fit it.

    Examples
    --------
    >>> import rsfast, torch
    >>> found = rsfast.certify(torch.nn.Flatten(), torch.eye(2), rsfast.Gaussian(0.1), num_classes=2, n=1000, seed=1)
    >>> run = from_certificates(found, labels=[0, 0])
    >>> print(run.table([0, 0.1], "markdown"))
    | run   |   images |   sigma |    n |   alpha |   norm |   ACR |   abstained |   r=0.0 |   r=0.1 |
    |:------|---------:|--------:|-----:|--------:|-------:|------:|------------:|--------:|--------:|
    | run   |        2 |     0.1 | 1000 |   0.001 |     l2 | 0.123 |        0.0% |   50.0% |   50.0% |
    """
    if isinstance(found, Certificate) or not isinstance(found, Iterable):
        hint = "; pass [certificate]" if isinstance(found, Certificate) else ""
        raise TypeError(f"found must be a list of certificates, got a {type(found).__name__}{hint}")
    certificates = list(found)
    if not certificates:
        raise ValueError("found must hold at least one certificate, got none")
    for each in certificates:
        if not isinstance(each, Certificate):
            hint = "; of several heads, pass those of one, as [each[0] for each in found]" if isinstance(each, list) else ""
            raise TypeError(f"found must hold certificates, got a {type(each).__name__}{hint}")
    first = certificates[0]
    for each in certificates:
        if each.noise != first.noise or each.norm != first.norm:
            raise ValueError(
                f"found must hold certificates of one noise, got {first.noise!r:.100} and {each.noise!r:.100}; make results "
                "of each"
            )
        if each.top_k != first.top_k:
            raise ValueError(f"found must hold certificates of one top_k, got {first.top_k} and {each.top_k}")
    count = len(certificates)
    for name, values in (("labels", labels), ("names", names), ("class_names", class_names)):
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            what = "ints" if name == "labels" else "texts"
            raise TypeError(f"{name} must be a sequence of {what}, got {values!r:.80}")
    label = np.full(count, -1) if labels is None else np.array([as_int("labels", each) for each in labels], dtype=np.int64)
    predict = np.array([each.prediction for each in certificates])
    for name, values in (("labels", labels), ("names", names)):
        if values is not None and len(values) != count:
            raise ValueError(f"{name} must be one a certificate, {count} in all, got {len(values)}")
    most = int(max(predict.max(), label.max()))
    if class_names is not None and len(class_names) <= most:
        raise ValueError(f"class_names must name the classes from 0 to {most}, got {len(class_names)} names")
    return Results(
        idx=np.array([each.input_id for each in certificates]),
        label=label,
        predict=predict,
        radius=np.array([each.radius for each in certificates]),
        correct=(predict == label) & (predict != ABSTAIN),
        sidecar=_shared(certificates) | ({} if class_names is None else {"class_names": list(class_names)}),
        names=None if names is None else list(names),
    )


def _shared(certificates: Sequence[Certificate]) -> dict[str, Any]:
    """Return the settings that all certificates have, as a sidecar holds them."""
    first, *others = [
        {**each.to_dict(), **each.execution.to_dict(), "n": max(each.n, each.max_samples)} for each in certificates
    ]
    shared = {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}
    stopped_early = any(each.n < each.max_samples for each in certificates)
    return {name: value for name, value in shared.items() if name not in _OF_ONE} | {"stopped_early": stopped_early}
