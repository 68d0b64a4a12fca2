"""Samples of inputs that are not finished, on disk: what a run that was stopped goes on from.

The first line names the run. Each other line is an input, with a check sum of its run and text, so that nothing goes on from
what is damaged or comes from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from .._files import open_file, write_whole
from .check_sums import parse_json, seal, unseal
from .layout import CHECKPOINT

_NEW = f"{CHECKPOINT}.new"
_AGAIN = "remove it, and images without a row begin again"
_KEPT = "the rows and the checkpoint before are kept, and --resume goes on once there is space"


def save(folder: Path, run: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Write one line an input, in place of an older checkpoint; killed meanwhile, that is still there.

    Parameters
    ----------
    folder : Path
        The run folder.
    run : str
        What tells its run from others: `layout.identity`.
    inputs : iterable of mapping
        Plain JSON values, with the input's ``idx``.

    Raises
    ------
    OSError
        If the folder cannot be written, for want of space mostly. The older checkpoint is still there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), "a run", [{"idx": 7, "asked": 100}])
    ...     load(Path(folder), "a run")
    {7: {'idx': 7, 'asked': 100}}
    """
    lines = (seal(each, run.encode()) for each in inputs)
    write_whole(folder / CHECKPOINT, chain([json.dumps({"run": run}).encode() + b"\n"], lines), scratch=_NEW, then=_KEPT)


def load(folder: Path, run: str) -> dict[int, dict[str, Any]]:
    """Return what was saved of each input, by its idx; nothing where there is no checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged, naming the line, or of another run.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return {}
    with open_file(file) as opened:
        lines = opened.read().splitlines() or [b""]
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                theirs = parse_json(line)["run"]
            else:
                each = parse_json(line)
                if unseal(line, theirs.encode()) is None or each.pop("crc32", None) is None:
                    raise ValueError("it has no check sum")
                found[each["idx"]] = each
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = f"{file}, line {number}, is damaged; {_AGAIN} ({type(error).__name__}: {error})"
            raise ValueError(why) from None
        if theirs != run:
            raise ValueError(f"{file} must be of this run, got one of another run; {_AGAIN}")
    return found


def remove(folder: Path) -> None:
    """Remove the checkpoint, if there is one, and what is left of one that was being written."""
    for name in (CHECKPOINT, _NEW):
        (folder / name).unlink(missing_ok=True)
