"""Checkpoints of training for randomized smoothing: architecture, state_dict, and the normalising layer before the net."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .._extras import import_torchvision
from .._hints import listed
from .cifar_resnet import CifarResNet
from .loaded import LoadedModel
from .preprocessing import Preprocessing
from .weights import State, fit_weights, read_weights, unwrapped

_LAYER, _NET = "0.", "1."  # places in Sequential(normalising layer, net)

_CIFAR_NET = re.compile(r"cifar_resnet(\d+)")

CIFAR10 = Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), source="CIFAR-10")
IMAGENET = Preprocessing(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), resize=256, interpolation="bilinear", source="ImageNet"
)
_DATASETS = {"cifar10": CIFAR10, "imagenet": IMAGENET}


def load_checkpoint(path: str, named: LoadedModel | None) -> LoadedModel:
    """Return the model in a checkpoint, as Cohen, Rosenfeld and Kolter (2019), and those who built on them, write it.

    Such a file holds ``arch`` and ``state_dict`` (or ``net``), of ``Sequential(normalising layer, net)``, with the net in
    DataParallel or not. The layer's mean and std are seldom in the file: then they are those that the architecture was
    trained with, of CIFAR-10 or ImageNet.

    Parameters
    ----------
    path : str
    named : LoadedModel, optional
        The net that takes the state_dict; the one of the file's ``arch`` if left out: cifar_resnet20, cifar_resnet110 and
        the like, or a model of torchvision. Its weights are changed.

    Raises
    ------
    ValueError
        If the file cannot be read without unpickling more than tensors, holds no architecture that is known, or does not
        fit the net.
    """
    what = f"checkpoint {path}"
    held = read_weights(what, path)
    about = held if isinstance(held, Mapping) else {}
    net = _build(what, about) if named is None else named
    if not isinstance(net.model, torch.nn.Module):
        raise TypeError(f"model {net.name} must be a torch.nn.Module for a checkpoint, got a {type(net.model).__name__}")
    held, layer = _without_layer(held, net.model.state_dict())
    fit = fit_weights(net.model, net.name, what, held)
    before_net = all(unwrapped(theirs) == _NET + unwrapped(ours) for theirs, ours in fit.names.items())
    how: Preprocessing | None
    if layer is not None:
        how = _normalising(net.preprocessing, layer, "the checkpoint's normalising layer")
    elif before_net and (trained := _trained_with(about)) is not None:
        how = _normalising(net.preprocessing, trained, f"{trained.source}, as the checkpoint has a layer before the net")
    elif before_net or named is not None:
        how = net.preprocessing
        if before_net and how is None:
            warnings.warn(
                f"{what} has a layer before the net; give mean and std if it normalised", UserWarning, stacklevel=3
            )
    else:  # of torchvision without such a layer: then its pictures were normalised as they were read
        how = None if isinstance(net.model, CifarResNet) else net.preprocessing
    return net._replace(preprocessing=how, model=net.model.eval())


def _build(what: str, about: Mapping[str, Any]) -> LoadedModel:
    """Return the net of a file's architecture, with as many classes as the last tensor in the file."""
    if not isinstance(arch := about.get("arch"), str):
        raise ValueError(
            f"{what} must hold arch, the name of an architecture, got {listed(about)}; name the net by model, such as "
            "rsfast.loading.cifar_resnet:resnet110"
        )
    if not any(isinstance(state, Mapping) for state in about.values()):
        raise ValueError(f"{what} must hold a state_dict beside arch, got {listed(about)}")
    tensors = [value for state in about.values() if isinstance(state, Mapping) for value in [*state.values()][-1:]]
    num_classes = next((len(value) for value in tensors if isinstance(value, torch.Tensor) and value.ndim), 0)
    if cifar := _CIFAR_NET.fullmatch(arch):
        return LoadedModel(CifarResNet(int(cifar[1]), num_classes), CIFAR10, num_classes, name=arch)
    models = import_torchvision(what).models
    if arch not in models.list_models(module=models):
        raise ValueError(
            f"{what} must be of an architecture cifar_resnetN, or one of torchvision, got {arch!r}; name the net by model, "
            "as MODULE:FACTORY"
        )
    return LoadedModel(models.get_model(arch, weights=None, num_classes=num_classes), IMAGENET, num_classes, name=arch)


def _trained_with(about: Mapping[str, Any]) -> Preprocessing | None:
    """Return what the pictures of a checkpoint went through in training, by its dataset or else its architecture."""
    arch, dataset = about.get("arch"), about.get("dataset")
    if isinstance(dataset, str) and dataset in _DATASETS:
        return _DATASETS[dataset]
    return (CIFAR10 if _CIFAR_NET.fullmatch(arch) else IMAGENET) if isinstance(arch, str) else None


def _normalising(own: Preprocessing | None, layer: Preprocessing, source: str) -> Preprocessing:
    return replace(own or layer, mean=layer.mean, std=layer.std, source=source)


def _without_layer(held: Any, own: State) -> tuple[Any, Preprocessing | None]:
    """Return what a file holds without the mean and std of a normalising layer, which the net lacks, and these."""
    for entry, state in [("", held), *(held.items() if isinstance(held, Mapping) else ())]:
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            continue
        names = [name for name in state if unwrapped(name).startswith(_LAYER) and name not in own]
        kinds = [name.rpartition(".")[2][:1] for name in names]  # mean, means; std, sds, sigma
        if sorted(kinds) == ["m", "s"] and all(isinstance(state[name], torch.Tensor) for name in names):
            values = dict(zip(kinds, (tuple(state[name].flatten().tolist()) for name in names), strict=True))
            rest = {name: value for name, value in state.items() if name not in names}
            return (held | {entry: rest} if entry else rest), Preprocessing(values["m"], values["s"])
    return held, None
