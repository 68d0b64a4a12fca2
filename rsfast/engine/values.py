"""Whether the values of inputs suit a noise: finite, within its range, and on its grid."""

from __future__ import annotations

import math

import torch

from ..noise import Noise

_CHECKED_BYTES = 64 << 20  # of inputs that are checked at once, where the check takes memory


def usable(rows: torch.Tensor, noise: Noise | None) -> torch.Tensor:
    """Return for each of `rows` [I, *shape] whether it suits the noise, a bool [I], as `check_values` says."""
    low, high = rows.flatten(1).aminmax(dim=1)  # NaN where there is one
    suits = torch.maximum(-low, high) <= _largest(noise)
    if noise is not None and noise.input_range is not None:
        least, most = noise.input_range
        suits &= (low >= least) & (high <= most)
    if noise is not None and noise.grid is not None:
        suits &= ~_off_grid(rows.flatten(1), noise.grid).any(dim=1)
    return suits


def _largest(noise: Noise | None) -> float:
    most = torch.finfo(torch.float32).max
    return most if noise is None else min(noise.largest_input, most)


def _off_grid(x: torch.Tensor, grid: int) -> torch.Tensor:
    """Return which elements lie further from a multiple of 1 / grid than the rounding of a few operations takes them."""
    nearest = (x * grid).round() / grid
    return (x - nearest).abs() > nearest.abs() * 2.0**-21  # 4 to 8 units in the last place


def check_tensor(tensor: torch.Tensor, noise: Noise | None) -> None:
    """Raise ValueError unless all rows of `tensor` [I, *shape] suit the noise."""
    if tensor.dtype == torch.uint8:
        return
    # Some rows at a time where the check takes memory.
    step = len(tensor) if noise is None or noise.grid is None else max(1, _CHECKED_BYTES // tensor[0].nbytes)
    for first in range(0, len(tensor), step):
        rows = tensor[first : first + step]
        suits = usable(rows, noise)
        if not bool(suits.all()):
            place = int((~suits).int().argmax())
            check_values(f"inputs[{first + place}]", rows[place], noise)


def check_values(name: str, x: torch.Tensor, noise: Noise | None) -> None:
    """Raise ValueError unless an input [*shape] suits the noise.

    It must be finite, not beyond `Noise.largest_input`, in `Noise.input_range`, and on the grid if the noise has one.
    """
    magnitude = float(x.abs().max())
    if not math.isfinite(magnitude):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if noise is not None and noise.input_range is not None:
        _check_within(name, x, noise, *noise.input_range)
    if noise is not None and magnitude > noise.largest_input:
        raise ValueError(
            f"{name} must hold values of at most {noise.largest_input:g}, got {magnitude:g}; there float32 has too few "
            f"numbers for noise of {noise.settings}"
        )
    if noise is None or noise.grid is None:
        return
    if len(places := _off_grid(x, noise.grid).nonzero()):
        place, grid = tuple(places[0].tolist()), noise.grid
        value = float(x[place])
        raise ValueError(
            f"{name} must hold multiples of 1/{grid} with {noise.name} noise, got {value:.9g} at {list(place)}, next to "
            f"{round(value * grid)}/{grid}; "
            + ("pass uint8 images, or round them: " if noise.takes_bytes else "round them: ")
            + f"images.mul({grid}).round().div({grid})"
        )


def _check_within(name: str, x: torch.Tensor, noise: Noise, least: float, most: float) -> None:
    if len(places := ((x < least) | (x > most)).nonzero()):
        place = places[0].tolist()
        raise ValueError(
            f"{name} must hold values in [{least:g}, {most:g}] with {noise.name} noise, got {float(x[tuple(place)]):.9g} at "
            f"{place}; images are in [0, 1]: pass images.float() / 255"
            + (", or uint8 images as they are" if noise.takes_bytes else "")
        )
