"""Pictures of a data set as small PNGs within a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._extras import import_extra

LARGEST = 128  # pixels, of a thumbnail's longer side


def thumbnail(image: Any) -> str:
    """Return a picture as a PNG of at most 128 pixels a side, a data URI.

    Parameters
    ----------
    image : Tensor or array [C, H, W] or [H, W]
        1, 3 or 4 channels: floats in [0, 1], or bytes. Other floats are stretched from the least to the largest.

    Raises
    ------
    ValueError
        If it has another shape, or holds NaN or infinity.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> thumbnail(np.zeros((3, 2, 2), dtype=np.float32))[:22]
    'data:image/png;base64,'
    >>> thumbnail(np.zeros(10))
    Traceback (most recent call last):
    ValueError: inputs must be pictures [channels, height, width] with 1, 3 or 4 channels, got shape [10]
    """
    picture = import_extra("PIL.Image", "report", "a thumbnail").fromarray(_pixels(np.asarray(image)))
    picture.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return bytes [H, W] or [H, W, 3]."""
    channels = array.shape[0] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ValueError(
            f"inputs must be pictures [channels, height, width] with 1, 3 or 4 channels, got shape {list(array.shape)}"
        )
    if array.dtype != np.uint8:
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("inputs must hold finite numbers to be shown, got NaN or infinity")
        if values.min() < 0 or values.max() > 1:
            values = (values - values.min()) / (values.max() - values.min() or 1)
        array = np.round(values * 255).astype(np.uint8)
    pixels = array if array.ndim == 2 else array[:3].transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., 0] if channels == 1 and pixels.ndim == 3 else pixels)
