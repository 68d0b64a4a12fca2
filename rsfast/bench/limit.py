"""A limit on the time of what cannot be asked to stop, as a compiler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds.

    A timer of the system interrupts it. Outside the main thread, where Python takes no signals, there is no limit.

    Examples
    --------
    >>> with at_most(5):
    ...     print("quick enough")
    quick enough
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    passed = False

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal passed
        passed = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    except Exception as error:  # which a compiler may have made of it
        if passed:
            raise TimeoutError(f"not done within {seconds:.0f} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
