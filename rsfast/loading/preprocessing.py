"""How a picture becomes what a model takes: resized, cropped, and normalised where the noise has been added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._check import check_choice

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Names of Pillow's filters."""

_MODES = {1: "L", 3: "RGB"}  # of Pillow, by the number of channels
_DEEP = ("I", "F")  # modes of more than 8 bits a channel begin so


@dataclass(frozen=True)
class Preprocessing:
    """What a model's pictures go through, in this order: channels, size, crop; then noise; then mean and std.

    Noise is in units of [0, 1] pixels, whatever range of values the model takes: a model for [-1, 1] has a mean and a std
    of 0.5.

    Parameters
    ----------
    mean, std : tuple of float, optional
        The model takes ``(pixel - mean) / std`` of pixels in [0, 1], one number a channel. None: pixels as they are.
    size : tuple of int, optional
        Height and width that a picture is cropped to, in its middle, after it is resized; what is missing is black. None:
        no crop.
    resize : int or tuple of int, optional
        The shorter side, or height and width, before the crop. None: pictures keep their size.
    interpolation : str
        One of `INTERPOLATIONS`.
    channels : int
        3 for RGB, or 1 for grey.
    source : str
        Where all this was read.
    half : str
        Where a crop begins that would begin at half a pixel: "even", at the even neighbour, as torchvision and timm do, or
        "below", as Hugging Face does.

    Raises
    ------
    ValueError
        If an argument is not as above.

    Examples
    --------
    >>> print(Preprocessing((0.5,) * 3, (0.5,) * 3, size=(224, 224), resize=256, source="preprocessor_config.json"))
    shorter side 256 (bicubic), crop 224 x 224, RGB, (pixel - 0.5) / 0.5, from preprocessor_config.json
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bicubic"
    channels: int = 3
    source: str = ""
    half: str = "even"

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("channels", self.channels, tuple(_MODES))
        check_choice("half", self.half, ("even", "below"))
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std must be given together, got {self.mean} and {self.std}")

    def picture(self, image: Image.Image) -> torch.Tensor:
        """Return a picture of Pillow as uint8 [channels, H, W], resized and cropped, without mean and std.

        Transparency is dropped, as timm, torchvision and Hugging Face do.

        Raises
        ------
        ValueError
            If the picture has more than 8 bits a channel, which Pillow would cut off.
        """
        from PIL import Image

        if image.mode.startswith(_DEEP):
            raise ValueError(f"a picture must have 8 bits a channel, got Pillow's mode {image.mode}; convert it")
        image = image.convert(_MODES[self.channels])
        if self.resize is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.size is not None:
            image = self._cropped(image, *self.size)
        pixels = np.array(image)
        return torch.from_numpy(pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1).copy())

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        side = self.resize or min(height, width)
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side

    def _cropped(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Return the middle of a picture; Pillow fills what lies outside with black."""
        if image.height < height or image.width < width:
            left, top = max(0, width - image.width) // 2, max(0, height - image.height) // 2
            right, bottom = max(image.width, width), max(image.height, height)
            image = image.crop((-left, -top, right - left, bottom - top))
        place = round if self.half == "even" else int  # round(0.5) is 0, round(1.5) is 2
        top, left = place((image.height - height) / 2), place((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocessing:
        """Return the Preprocessing that `to_dict` wrote."""
        settings: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in data.items()}
        return cls(**settings)

    def __str__(self) -> str:
        steps = []
        if self.resize is not None:
            to = f"size {_by(self.resize)}" if isinstance(self.resize, tuple) else f"shorter side {self.resize}"
            steps.append(f"{to} ({self.interpolation})")
        if self.size is not None and self.size != self.resize:
            steps.append(f"crop {_by(self.size)}")
        steps.append("RGB" if self.channels == 3 else "grey")
        if self.mean is not None and self.std is not None:
            steps.append(f"(pixel - {_numbers(self.mean)}) / {_numbers(self.std)}")
        else:
            steps.append("pixels in [0, 1] as they are")
        return ", ".join(steps) + (f", from {self.source}" if self.source else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _numbers(values: Sequence[float]) -> str:
    """Return one number where all are the same."""
    shown = [f"{value:.6g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
