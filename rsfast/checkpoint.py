"""Samples of inputs that are not finished, on disk: what a run that was stopped goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.jsonl"
"""File name in a run folder."""


def save(folder: Path, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Write one line an input, in place of an older checkpoint; killed meanwhile, that is still there.

    Raises
    ------
    OSError
        If the folder cannot be written, for want of space mostly. The older checkpoint is still there.
    """
    new = folder / f"{CHECKPOINT}.new"
    try:
        with open(new, "w", encoding="utf-8") as file:
            for each in inputs:
                file.write(json.dumps(each, allow_nan=False) + "\n")
        new.replace(folder / CHECKPOINT)
    except OSError as error:
        new.unlink(missing_ok=True)
        text = f"{error.strerror} in writing {folder / CHECKPOINT}; the rows before and the checkpoint before are kept"
        raise type(error)(error.errno, text) from None


def load(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what was saved of each input, by its idx; nothing where there is no checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged, naming the line.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return {}
    found = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            each = json.loads(line)
            found[int(each["idx"])] = each
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}, line {number}: {type(error).__name__}: {error}; remove it, and images without a row begin again"
            ) from None
    return found
