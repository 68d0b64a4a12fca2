"""What `load_model` returns, and the checks that all sources of models share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..engine.forward import Model
from .preprocessing import Preprocessing

OWN_WEIGHTS = "give a file as weights (--weights), or random for an untrained model"
"""What to do where a library has no weights of a model; for readers of Python and of the command line."""


class LoadedModel(NamedTuple):
    """A model, and what is known of it.

    Attributes
    ----------
    model : callable
        From a batch [B, C, H, W] of what `preprocessing` makes, mean and std applied, to logits [B, num_classes]. In eval
        mode, where it has modes.
    preprocessing : Preprocessing or None
        What its pictures go through; None where that is not known.
    num_classes : int or None
        K, the number of logits; None where only a batch would show it.
    class_names : list of str or None
        [K], where they are known.
    name : str
        As in ``--model``.
    weights_sha256 : str or None
        SHA-256 of the file that the weights came from; None where they came from no file that was named.
    """

    model: Model
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    name: str = ""
    weights_sha256: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Return ``num_classes``, ``scale`` and ``shift`` for `certify`, of pictures in [0, 1]; those that are known.

        Examples
        --------
        >>> LoadedModel(abs, Preprocessing((0.5,), (0.5,), channels=1), 10).options
        {'num_classes': 10, 'scale': [2.0], 'shift': [-1.0]}
        """
        found: dict[str, Any] = {} if self.num_classes is None else {"num_classes": self.num_classes}
        how = self.preprocessing
        if how is not None and how.mean is not None and how.std is not None:
            found["scale"] = [1 / s for s in how.std]
            found["shift"] = [-m / s for m, s in zip(how.mean, how.std, strict=True)]
        return found


def check_name(what: str, name: str, names: Iterable[str]) -> None:
    """Raise ValueError, with the nearest names, if a library has no model of this one."""
    known = list(names)
    if name not in known:
        near = difflib.get_close_matches(name, known, 5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"{what} must be one of the {len(known)} models of that library, got {name!r}{hint}")


def check_classes(what: str, num_classes: int | None, own: int | None) -> int | None:
    """Return the number of classes of a model that has its weights; raise ValueError if it should be another."""
    if None not in (num_classes, own) and num_classes != own:
        raise ValueError(
            f"num_classes must be {own}, the classes of {what}, got {num_classes}; leave it out, or give weights for "
            f"{num_classes} classes"
        )
    return num_classes if own is None else own


def does_not_load(what: str, wanted: str, error: Exception) -> ValueError:
    """Return the error for a file that holds no such model, with the first line of why."""
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ValueError(f"{what} must be {wanted}, got one that does not load ({reason[:200]})")


def without_weights(what: str, error: BaseException) -> ValueError:
    """Return the error for weights that are neither on this machine nor to be fetched."""
    return ValueError(
        f"{what}: its published weights are not on this machine and could not be fetched ({type(error).__name__}); "
        f"{OWN_WEIGHTS}"
    )
