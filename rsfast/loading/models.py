"""Models by name: one entry for each library and kind of file that they come from."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from difflib import get_close_matches

import torch

from .._check import as_int
from .._files import reason, sha256
from . import hf_models, onnx_models, program_models, timm_models, torchvision_models
from .checkpoints import load_checkpoint
from .factories import FACTORY, call_factory, is_factory, naming_mistakes
from .loaded import LoadedModel as LoadedModel
from .loaded import check_classes
from .weights import load_weights

HUBS: dict[str, Callable[[str, bool, int | None, torch.device], LoadedModel]] = {
    "timm": timm_models.load,
    "torchvision": torchvision_models.load,
    "hf": hf_models.load,
}
"""From a name, whether with its published weights, the number of classes or None, and the device."""

FILES: dict[str, Callable[[str, int | None, torch.device], LoadedModel]] = {
    "onnx": onnx_models.load,
    "jit": program_models.load_jit,
    "export": program_models.load_export,
}
"""From a path, the number of classes or None, and the device: models that hold their weights."""

FORMS = "MODULE:FACTORY, timm:NAME, torchvision:NAME, hf:FOLDER_OR_NAME, onnx:FILE, jit:FILE or export:FILE"
"""What a model's name may be."""

RANDOM = "random"
"""What `weights` is for an untrained model: initialised from a fixed seed, so that it is the same model each time."""


def load_model(
    name: str | None = None,
    *,
    weights: str | None = None,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Return a model by name, with what is known of its pictures and classes.

    Parameters
    ----------
    name : str, optional
        ``MODULE:FACTORY``, a function without arguments that returns the model; ``timm:NAME``, ``torchvision:NAME`` or
        ``hf:FOLDER_OR_NAME``; or ``onnx:FILE``, ``jit:FILE`` or ``export:FILE``. It may be left out with a checkpoint that
        names its architecture.
    weights : str, optional
        A file with the model's state_dict: .safetensors, or what `torch.save` wrote. "random" leaves a model of timm,
        torchvision or Hugging Face untrained, the same each time. By default the library's published weights are taken.
    checkpoint : str, optional
        A file as the published code for randomized smoothing writes it, with ``arch`` and ``state_dict``; the normalising
        layer before its net becomes part of `preprocessing`.
    num_classes : int, optional
        K. Without it the model says; with weights of one's own, it says how many classes the model is built for.
    device : torch.device or str
        Where the model is put.

    Returns
    -------
    LoadedModel
        Its ``options`` are what `certify` takes of it.

    Notes
    -----
    Weights and checkpoints are read without running code. Factories and files of torch.jit and torch.export are programs:
    name only those that you trust.

    Raises
    ------
    ImportError
        If a library is missing, with the line to install it.
    TypeError, ValueError
        Beginning with the argument's name, if the model cannot be found or loaded.

    Examples
    --------
    >>> loaded = load_model("rsfast.loading.cifar_resnet:resnet20", num_classes=10)
    >>> loaded.name, loaded.options
    ('rsfast.loading.cifar_resnet:resnet20', {'num_classes': 10})
    """
    for what, value in (("model", name), ("weights", weights), ("checkpoint", checkpoint)):
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"{what} must be a name or a path, got a {type(value).__name__}")
    if num_classes is not None and (num_classes := as_int("num_classes", num_classes)) < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if weights is not None and checkpoint is not None:
        raise ValueError(f"weights and checkpoint must not both be given, got {weights} and {checkpoint}; leave one out")
    if name is None and checkpoint is None:
        raise ValueError(f"model must be given: {FORMS}; or a checkpoint that names its architecture")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch, such as 'cpu' or 'cuda:0', got {device!r}") from error
    if name is None:
        loaded = load_checkpoint(str(checkpoint), None)
        check_classes(f"checkpoint {checkpoint}", num_classes, loaded.num_classes)
    else:
        published = weights is None and checkpoint is None
        loaded = _named(name, published, weights, num_classes, device)._replace(name=name)
        if checkpoint is not None:
            loaded = load_checkpoint(checkpoint, loaded)
        elif weights not in (None, RANDOM):
            load_weights(_module(loaded), name, str(weights))
    file = checkpoint or weights
    if file not in (None, RANDOM):
        loaded = loaded._replace(weights_sha256=sha256(str(file)))
    if isinstance(loaded.model, torch.nn.Module):
        with naming_mistakes("model", loaded.name):
            loaded.model.to(device)
    return loaded


def _named(name: str, published: bool, weights: str | None, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return the model of that name, with its published weights or as its library initialises it."""
    kind, colon, rest = name.partition(":")
    if kind in FILES and colon:
        if not published:
            raise ValueError(f"model {name} holds its weights; leave weights and checkpoint out")
        try:
            digest = sha256(rest)
        except (OSError, ValueError) as error:
            raise ValueError(f"model {name}: {reason(error)}") from error
        return FILES[kind](rest, num_classes, device)._replace(weights_sha256=digest)
    if kind in HUBS and colon:
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(0)  # of the weights that are not loaded
        try:
            return HUBS[kind](rest, published, num_classes, device)
        finally:
            torch.default_generator.set_state(state)
    if weights == RANDOM:
        raise ValueError(f"weights must be a file for model {name}, got {RANDOM!r}; its factory says what it starts from")
    if not is_factory(name):
        others = ", ".join(f"{each}:..." for each in (*HUBS, *FILES))
        raise ValueError(f"model must be {FACTORY}, or one of {others}, got {name!r}")
    try:
        model = call_factory("model", name)
    except ValueError as error:
        if near := get_close_matches(kind, [*HUBS, *FILES], cutoff=0.8):
            raise ValueError(f"{error}; {near[0]}: may be meant") from error
        raise
    if isinstance(model, type) or not callable(model):
        got = f"the class {model.__qualname__}" if isinstance(model, type) else reprlib.repr(model)
        raise TypeError(f"model {name} must return a model, callable on a batch, got {got}")
    return LoadedModel(model, num_classes=num_classes)


def _module(loaded: LoadedModel) -> torch.nn.Module:
    if not isinstance(loaded.model, torch.nn.Module):
        raise TypeError(
            f"model {loaded.name} must return a torch.nn.Module for weights, got a {type(loaded.model).__name__}"
        )
    return loaded.model
