"""Lines of JSON that end in a check sum, so that damage does not pass for data."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

_KEY = b', "crc32": '
_END = re.compile(rb"(\d{1,10})\}\n?")


def parse_json(text: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what JSON text holds; raise ValueError, whatever is wrong with it.

    NaN and infinity are refused: rsfast never writes them. `pairs` makes an object of its entries; a dict by default.

    Examples
    --------
    >>> parse_json(b"[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def seal(value: Mapping[str, Any], *context: bytes) -> bytes:
    r"""Return a line: a JSON object with a check sum as its last entry.

    Parameters
    ----------
    value : mapping
        Plain JSON values; not empty.
    *context : bytes
        What else the sum covers, such as which run the line belongs to.

    Raises
    ------
    TypeError, ValueError
        If value holds what JSON cannot, NaN and infinity included.

    Examples
    --------
    >>> line = seal({"idx": 7}, b"a run")
    >>> line
    b'{"idx": 7, "crc32": 2022692989}\n'
    >>> unseal(line, b"a run")
    b'{"idx": 7}'
    """
    body = json.dumps(value, allow_nan=False).removesuffix("}").encode()
    return b"%b%b%d}\n" % (body, _KEY, _sum(body, context))


def unseal(line: bytes, *context: bytes) -> bytes | None:
    """Return the object's text without the check sum; None if the line has none, as those of earlier versions.

    Raises
    ------
    ValueError
        If the check sum belongs to another text or context.
    """
    body, _, end = line.rpartition(_KEY)
    found = _END.fullmatch(end)
    if not body or found is None:
        return None
    if int(found[1]) != _sum(body, context):
        raise ValueError("its check sum belongs to other data")
    return body + b"}"


def _sum(body: bytes, context: tuple[bytes, ...]) -> int:
    total = 0
    for each in (*context, body):
        total = zlib.crc32(each, total)
    return total


def _refuse(name: str) -> Any:
    raise ValueError(f"numbers must be finite, got {name}")
