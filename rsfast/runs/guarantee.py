"""What a run guarantees, in one plain sentence, and its settings as a person reads them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..noise import NORMS
from .results import Results

_CHANGES = {
    "l0": "no change of at most as many elements, pixels or patches as its radius says",
    "mahalanobis": "no change whose Mahalanobis norm, in standard deviations of the noise, is at most its radius",
    "projected l2": "no change whose projection has an l2 norm of at most its radius",
    "projections": "no change that alters at most as many projections as its radius says",
}
"""Of norms that are no norm of the change itself."""

_APART = {"command", "versions", "first_logits", "norm", "radius", "rtol", "stopped_early", "class_names"}
"""Of a sidecar: what a report shows elsewhere, or only programs read."""

_LONGEST = 300  # characters of a setting


def guarantee(run: Results) -> str:
    """Return what is proved of each image of a run, in one sentence.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.array([1])
    >>> sidecar = {"noise": {"name": "Gaussian", "sigma": 0.25}, "alpha": 0.001}
    >>> print(guarantee(Results(one, one, one, np.array([0.5]), one == 1, sidecar=sidecar)))
    Except with probability 0.001 for each image, no change whose l2 norm (input units) is at most the image's radius \
changes the answer: the class that the model gives most often under Gaussian noise, sigma = 0.25.
    """
    sidecar = run.sidecar or {}
    if run.alpha is None:
        chance = "With a probability that this table does not state"
    elif run.alpha:
        chance = f"Except with probability {run.alpha:.6g} for each image"
    else:
        chance = "Without any chance of error"
    noise = "noise that this table does not state"
    if run.noise is not None or run.sigma is not None:
        noise = run.noise or f"Gaussian noise, sigma = {run.sigma}"
    head = sidecar.get("head")
    score = head.get("name", "Votes") if isinstance(head, dict) else "Votes"
    answer = "that the model gives most often" if score == "Votes" else f"with the highest mean {score} score of the model"
    if not run.has_radius:
        return f"{chance}, the answer is the class {answer} under {noise}; no radius is certified."
    if run.top_k > 1:
        return f"{chance}, {_changes(run)} moves the answer out of the {run.top_k} classes {answer} under {noise}."
    return f"{chance}, {_changes(run)} changes the answer: the class {answer} under {noise}."


def _changes(run: Results) -> str:
    if run.norm is None:
        return "no change of at most the image's radius, in a norm that this table does not state,"
    if run.norm in _CHANGES:
        return _CHANGES[run.norm].replace("its radius", "the image's radius")
    unit = f" ({NORMS[run.norm].unit})" if run.norm in NORMS else ""
    return f"no change whose {run.norm} norm{unit} is at most the image's radius"


def subject(run: Results) -> str:
    """Return what was certified and how far, in one line: model, weights, data, samples, versions; what is known of these.

    Examples
    --------
    >>> import numpy as np
    >>> none = np.empty(0)
    >>> subject(Results(none, none, none, none, none, sidecar={"model": "timm:resnet18", "weights": None, "n": 1000}))
    'model timm:resnet18, at most 1,000 samples an image'
    """
    sidecar = run.sidecar or {}
    found = [f"{name} {sidecar[name]}" for name in ("model", "weights", "checkpoint", "data") if sidecar.get(name)]
    found += [f"at most {run.n:,} samples an image"] if run.n is not None else []
    return ", ".join(found)


def command(run: Results) -> str | None:
    """Return the command that repeats a run, with the seed that it had; None where none was recorded.

    Examples
    --------
    >>> import numpy as np
    >>> none = np.empty(0)
    >>> command(Results(none, none, none, none, none, sidecar={"command": "rsfast certify --out 'my run'", "seed": 7}))
    "rsfast certify --out 'my run' --seed 7"
    """
    sidecar = run.sidecar or {}
    text, seed = sidecar.get("command"), sidecar.get("seed")
    if not isinstance(text, str) or not text:
        return None
    try:
        seeded = any(each.partition("=")[0] == "--seed" for each in shlex.split(text))
    except ValueError:  # a quotation without an end
        seeded = True
    takes_seed = text.startswith(("rsfast certify ", "rsfast predict "))
    return text if seeded or seed is None or not takes_seed else f"{text} --seed {seed}"


def settings(run: Results) -> list[tuple[str, str]]:
    """Return the settings and versions that a sidecar records, as names and texts; what is null is left out."""
    sidecar = run.sidecar or {}
    found = [(name.replace("_", " "), _text(value)) for name, value in sidecar.items() if name not in _APART]
    versions = sidecar.get("versions")
    if isinstance(versions, dict):
        found.append(("versions", ", ".join(f"{name} {each}" for name, each in versions.items())))
    stopping = run.stopping
    asked = [(name, getattr(stopping, name)) for name in ("radius", "rtol")]
    return [(name, text) for name, text in found if text] + [
        (f"stopped at {name}", f"{value}") for name, value in asked if value is not None
    ]


def _text(value: Any) -> str:
    """Return a setting as a text: {"name": "Gaussian", "sigma": 0.25} as "Gaussian, sigma = 0.25"."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, dict):
        first = [str(value["name"])] if "name" in value else []
        rest = {name: each for name, each in value.items() if name != "name" and each is not None}
        text = ", ".join([*first, *(f"{name} = {_text(each)}" for name, each in rest.items())])
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
