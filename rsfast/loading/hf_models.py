"""``hf:NAME``: image classifiers of Hugging Face, from a folder, the local cache or the hub, with their preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._extras import import_extra, import_torchvision
from .loaded import LoadedModel, check_classes, without_weights
from .preprocessing import INTERPOLATIONS, Preprocessing

_FILTERS = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))  # Pillow's numbers
_MOST_DIFFERENCE = 4 / 255  # in pixels: antialiasing on tensors differs from Pillow's by at most 2 / 255


def load(name: str, pretrained: bool, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return an image classifier from a folder that `save_pretrained` wrote, or by its name on the hub.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If there is no such model, it lacks weights of its classifier, or its pictures are made in a way that
        `Preprocessing` cannot repeat.
    """
    what = f"model hf:{name}"
    if find_spec("torchvision"):  # which transformers then imports, and which may not load as it is
        import_torchvision(what)
    transformers = import_extra("transformers", "hf", what)
    place = Path(name).expanduser()
    found = str(place) if place.is_dir() else name
    changes = {} if pretrained or num_classes is None else {"num_labels": num_classes}
    automatic = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(found, **changes)
        if pretrained:
            with _no_bars(transformers):
                model, info = automatic.from_pretrained(found, output_loading_info=True)
            if missing := sorted(info["missing_keys"]):
                raise ValueError(
                    f"{what} must hold all weights of a classifier, {missing[0]} is missing; fine-tune it first"
                )
        else:
            model = automatic.from_config(config)
    except OSError as error:
        if place.is_dir():
            raise ValueError(f"{what}: {str(error).partition(chr(10))[0]}") from error
        raise without_weights(what, error) from error
    own = check_classes(what, num_classes, model.config.num_labels)
    labels = model.config.id2label
    known = pretrained and any(labels[index] != f"LABEL_{index}" for index in labels)
    return LoadedModel(
        model.eval(), _preprocessing(transformers, what, found), own, [labels[i] for i in sorted(labels)] if known else None
    )


@contextmanager
def _no_bars(transformers: Any) -> Iterator[None]:
    """Show no bar of how far weights are loaded, which takes a moment."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _preprocessing(transformers: Any, what: str, found: str) -> Preprocessing | None:
    """Return what preprocessor_config.json says, once it makes of a picture what Hugging Face's own processor does."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(found)
    except OSError:
        warnings.warn(f"{what} has no preprocessor_config.json: pictures are fed as they are", UserWarning, stacklevel=2)
        return None
    how = _read(what, processor.to_dict())
    _check(what, how, processor)
    return how


def _read(what: str, config: dict[str, Any]) -> Preprocessing:
    size, crop = (config.get(key) or {} for key in ("size", "crop_size"))
    side = size.get("shortest_edge")
    both = (size["height"], size["width"]) if "height" in size else None
    cropped = (crop["height"], crop["width"]) if config.get("do_center_crop") and "height" in crop else None
    resize: int | tuple[int, int] | None = (both or side) if config.get("do_resize") else None
    if config.get("crop_pct") and side and cropped is None:  # as ConvNeXt: to side / crop_pct and cropped, or squeezed
        cropped = (side, side)
        resize = int(side / config["crop_pct"]) if side < 384 else cropped
    if config.get("do_resize") and resize is None:
        raise ValueError(f"{what}: size in preprocessor_config.json must be shortest_edge, or height and width, got {size}")
    mean, std = _normalisation(config)
    return Preprocessing(
        mean=mean,
        std=std,
        size=cropped or (both if config.get("do_resize") else None),
        resize=resize,
        interpolation=_FILTERS.get(int(config.get("resample") or 0), INTERPOLATIONS[0]),
        channels=len(mean),
        source="preprocessor_config.json",
        half="below",
    )


def _normalisation(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels in [0, 1], of a processor that scales, shifts and normalises those from 0 to 255."""
    factor = 255 * config["rescale_factor"] if config.get("do_rescale") else 255.0
    offset = 1.0 if config.get("do_rescale") and config.get("rescale_offset") else 0.0
    mean, std = (np.atleast_1d(config[key]) if config.get("do_normalize") else np.array(default) for key, default in _PLAIN)
    if config.get("do_normalize") and config.get("include_top"):  # as EfficientNet: divided by std twice
        std = std**2
    return tuple(((offset + mean) / factor).tolist()), tuple((std / factor).tolist())


_PLAIN = (("image_mean", [0.0] * 3), ("image_std", [1.0] * 3))


def _check(what: str, how: Preprocessing, processor: Any) -> None:
    """Raise ValueError unless both make the same of a picture: some processors do more than their configuration says."""
    from PIL import Image

    row, column = np.mgrid[0:300, 0:420]
    picture = Image.fromarray(
        np.stack([row * 255 // 299, column * 255 // 419, (row + column) * 255 // 718], 2).astype(np.uint8)
    )
    theirs = torch.as_tensor(np.asarray(processor(picture, return_tensors="np")["pixel_values"][0]), dtype=torch.float32)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (how.mean, how.std))
    ours = how.picture(picture) / 255
    if ours.shape != theirs.shape or (ours - (theirs * std + mean)).abs().max() > _MOST_DIFFERENCE:
        raise ValueError(
            f"{what}: {type(processor).__name__} makes pictures in a way that rsfast does not repeat; load the model by "
            "MODULE:FACTORY, and make the pictures beforehand"
        )
