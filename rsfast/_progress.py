"""The progress bar: a widget in a notebook, elsewhere a line where stderr is a terminal."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


def progress_bar(*args: Any, disable: bool | None = None, make: type[tqdm[Any]] = tqdm, **options: Any) -> tqdm[Any]:
    """Return a progress bar, as tqdm makes it.

    Parameters
    ----------
    disable : bool, optional
        None shows it in a notebook, and where stderr is a terminal.
    make : type
        The class of the bar.

    Examples
    --------
    >>> progress_bar(total=3, disable=True).disable
    True
    """
    # A notebook's output is no terminal either, so tqdm would show nothing.
    in_notebook = any(each.__module__ == "tqdm.notebook" for each in make.__mro__)
    return make(*args, disable=False if disable is None and in_notebook else disable, **options)
