"""``timm:NAME``: models of timm, with the weights, preprocessing and classes that its configurations name."""

from __future__ import annotations

import math
from typing import Any

import torch

from .._extras import import_extra, import_torchvision
from .loaded import OWN_WEIGHTS, LoadedModel, check_classes, check_name, without_weights
from .preprocessing import Preprocessing

_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # names that are not in timm's own list begin so


def load(name: str, pretrained: bool, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return a model of timm by its name there, such as resnet18 or resnet18.a1_in1k.

    Raises
    ------
    ImportError
        If timm is not installed.
    ValueError
        If it has no such model, or the weights cannot be had.
    """
    what = f"model timm:{name}"
    import_torchvision(what)
    timm = import_extra("timm", "vision", what)
    if not name.startswith(_ELSEWHERE):
        _check(timm, what, name, pretrained)
    classes = {} if pretrained or num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(name, pretrained=pretrained, **classes)
    except OSError as error:
        raise without_weights(what, error) from error
    own = check_classes(what, num_classes, model.num_classes)
    return LoadedModel(
        model.eval(), _preprocessing(timm, what, model), own, _class_names(timm, model) if pretrained else None
    )


def _check(timm: Any, what: str, name: str, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    check_name(what, architecture, timm.list_models())
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag:
        check_name(what, name, (f"{architecture}.{each}" for each in tags))
    elif pretrained and not timm.models.is_model_pretrained(name):
        raise ValueError(f"{what} has no published weights; {OWN_WEIGHTS}")


def _preprocessing(timm: Any, what: str, model: Any) -> Preprocessing:
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    squash = config["crop_mode"] == "squash"
    if not squash and (config["crop_mode"] != "center" or height != width):
        raise ValueError(
            f"{what} must be fed pictures cropped from the centre to a square, got crop_mode {config['crop_mode']} to "
            f"{height} x {width}; load it by MODULE:FACTORY, and resize the pictures beforehand"
        )
    scaled = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        size=(height, width),
        resize=(scaled[0], scaled[1]) if squash else scaled[0],
        interpolation=config["interpolation"],
        channels=channels,
        source="timm's pretrained_cfg",
    )


def _class_names(timm: Any, model: Any) -> list[str] | None:
    """Return the descriptions of ImageNet's classes, where the model's are a known part of these."""
    subset = timm.data.infer_imagenet_subset(model)
    if not subset:
        return None
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(place) for place in range(info.num_classes())]
