"""What a run takes from its surroundings: clock, bar, writer, and how often it saves and reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from .writer import RunWriter


def _print(text: str) -> None:
    print(f"rsfast: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Environment:
    """What a `Run` takes from its surroundings; tests and the command line replace some of it.

    Attributes
    ----------
    say : callable
        Takes lines for the user.
    clock : callable
        Returns seconds.
    bar : callable
        Makes the progress bar, as tqdm does.
    writer : callable
        Makes the `RunWriter`.
    checkpoint_every, checkpoint_share : float
        A checkpoint is due after so many seconds, or after so many times the seconds that the last one took.
    event_every : float
        Seconds between events "progress" of the log.
    """

    say: Callable[[str], object] = _print
    clock: Callable[[], float] = time.perf_counter
    bar: Callable[..., tqdm[Any]] = tqdm
    writer: Callable[..., RunWriter] = RunWriter
    checkpoint_every: float = 30.0
    checkpoint_share: float = 20.0
    event_every: float = 10.0
