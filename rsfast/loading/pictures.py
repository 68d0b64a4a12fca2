"""Pictures in files, opened with Pillow: decoded, upright, and RGB or grey; what cannot be read is an `Unreadable`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from .._extras import import_extra
from .._files import open_file, reason
from ..engine.inputs import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

    from .preprocessing import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are pictures, in either case: those of torchvision's ImageFolder, so that numbers are the same."""

# Whatever a file's name ends in, no others are opened: Pillow would hand PostScript to another program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on width and height change places
_SIXTEEN_BITS = 65535
_WHAT = "data of pictures"  # for errors


class Pictures:
    """Pictures by their numbers, as uint8 tensors [C, H, W].

    Each is turned as its EXIF orientation says, and made RGB as Pillow's ``convert("RGB")`` does, which leaves out an alpha
    channel, as torchvision and timm do. With `preprocessing` for one channel it is made grey. 16-bit greys are
    scaled to 8 bits, where ``convert`` would clip them. Then `preprocessing` resizes and crops, if it is given.

    Parameters
    ----------
    names : sequence of str
        Paths in `folder`.
    folder : str
    preprocessing : Preprocessing, optional

    Raises
    ------
    ImportError
        If there is no Pillow.
    """

    def __init__(self, names: Sequence[str], folder: str, preprocessing: Preprocessing | None) -> None:
        import_extra("PIL.Image", "vision", _WHAT)
        self._names, self._folder, self._preprocessing = names, folder, preprocessing

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> torch.Tensor:
        try:
            with self.open(place) as file, _opened(file) as image:
                upright = as_8_bit(_upright(image), self._preprocessing)
        except Exception as error:  # a damaged picture can raise anything
            text = reason(error) or type(error).__name__
            why = f"it is none of {', '.join(_FORMATS)}" if text.startswith("cannot identify image file") else text
            raise Unreadable(f"{self.name(place)}: {why}") from error
        return as_pixels(upright, self._preprocessing)

    def name(self, place: int) -> str:
        return str(Path(self._folder, self._names[place]))

    def open(self, place: int) -> BinaryIO:
        """Open the bytes of a picture, which may be anything."""
        return open_file(self.name(place))

    def check_sizes(self) -> None:
        """Raise ValueError, naming two pictures, unless all that can be read have one size or will be cropped to one."""
        chosen = self._preprocessing
        if chosen is not None and (chosen.size is not None or isinstance(chosen.resize, tuple)):
            return
        first, size = "", (0, 0)
        for place in range(len(self)):
            try:
                with self.open(place) as file, _opened(file) as image:
                    turned = image.format != "TIFF" and _orientation(image) > 4  # Pillow turns TIFF when it opens it
                    found = image.size[::-1] if turned else image.size
            except Exception:
                continue
            first, size = (first, size) if first else (self.name(place), found)
            if found != size:
                raise ValueError(
                    f"pictures must have one size where no preprocessing makes it so, got {size[0]} x {size[1]} in {first} "
                    f"and {found[0]} x {found[1]} in {self.name(place)}; resize them, or pass preprocessing with a size "
                    "(--image-size)"
                )


def _opened(file: BinaryIO) -> Image:
    """Open a picture, not decoded; raise ValueError if it has more pixels than Pillow trusts, or integers of 32 bits."""
    module = import_extra("PIL.Image", "vision", _WHAT)
    image: Image = module.open(file, formats=_FORMATS)
    most = module.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {most}")
    if image.mode == "I" and image.format == "TIFF":  # a PGM file's are scaled to 16 bits
        raise ValueError("it holds integers of 32 bits, whose range is not known")
    return image


def _orientation(image: Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, of a picture that is not
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def as_8_bit(image: Image, preprocessing: Preprocessing | None) -> Image:
    """Return a picture of any mode as RGB, or grey where `preprocessing` is for one channel.

    Raises
    ------
    ValueError
        If it holds floats or integers of 32 bits, whose range is not known, or colours that Pillow does not convert.
    """
    module = import_extra("PIL.Image", "vision", _WHAT)
    mode = "L" if preprocessing is not None and preprocessing.channels == 1 else "RGB"
    if image.mode == "F":
        raise ValueError("it holds floats, whose range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _SIXTEEN_BITS:
            raise ValueError("it holds integers of 32 bits, whose range is not known")
        image = module.fromarray(((values * 255 + _SIXTEEN_BITS // 2) // _SIXTEEN_BITS).astype(np.uint8))
    if image.mode in ("RGBa", "La", "LAB") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")  # first, as Pillow converts it no other way, or warns
    return image.convert(mode)


def as_pixels(image: Image, preprocessing: Preprocessing | None) -> torch.Tensor:
    """Return an RGB or grey picture as uint8 [C, H, W], resized and cropped if `preprocessing` says so."""
    if preprocessing is not None:
        return preprocessing.picture(image)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0).contiguous()


class StoredPictures:
    """Pictures that a file holds as uint8 [N, C, H, W], made what `preprocessing` says."""

    def __init__(self, pixels: torch.Tensor, preprocessing: Preprocessing) -> None:
        import_extra("PIL.Image", "vision", _WHAT)
        self._pixels, self._preprocessing = pixels, preprocessing

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: int) -> torch.Tensor:
        from PIL.Image import fromarray

        pixels = self._pixels[place].movedim(0, -1).numpy()
        image = fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        return self._preprocessing.picture(image)
