"""``torchvision:NAME``: classification models of torchvision, with the weights that it has by default, or of another tag."""

from __future__ import annotations

from typing import Any

import torch

from .._extras import import_torchvision
from .loaded import LoadedModel, check_classes, check_name, without_weights
from .preprocessing import Preprocessing


def load(name: str, pretrained: bool, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return a model of torchvision by its name there, such as resnet50, or with a tag of weights, resnet50.IMAGENET1K_V1.

    Raises
    ------
    ImportError
        If torchvision is not installed.
    ValueError
        If it has no such model or weights, or these cannot be had.
    """
    what = f"model torchvision:{name}"
    models = import_torchvision(what).models
    architecture, _, tag = name.partition(".")
    check_name(what, architecture, models.list_models(module=models))
    choices = models.get_model_weights(architecture)
    if tag:
        check_name(what, tag, choices.__members__)
    weights = choices[tag] if tag else choices.DEFAULT
    classes = {} if pretrained or num_classes is None else {"num_classes": num_classes}
    try:
        model = models.get_model(architecture, weights=weights if pretrained else None, **classes)
    except OSError as error:
        raise without_weights(what, error) from error
    names = list(weights.meta["categories"])
    own = check_classes(what, num_classes, None if classes else len(names))
    return LoadedModel(model.eval(), _preprocessing(weights), own, names if pretrained else None)


def _preprocessing(weights: Any) -> Preprocessing:
    how = weights.transforms()
    height, width = (how.crop_size * 2)[:2]  # one number stands for both
    return Preprocessing(
        mean=tuple(how.mean),
        std=tuple(how.std),
        size=(height, width),
        resize=how.resize_size[0] if len(how.resize_size) == 1 else tuple(how.resize_size),
        interpolation=how.interpolation.value,
        source=f"torchvision's {weights}",
    )
