"""What the command line is given by name: data, models, weights and devices; and the processes of torchrun."""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import re
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from .._files import open_file
from .._hints import listed, place_of, places
from ..engine.forward import Model
from ..noise import Noise
from .npz import read_arrays
from .weights import load_weights

_ARRAYS = (("images", "x"), ("labels", "y"))  # in --data, under either name
_SPEC = re.compile(r"([\w-]+(?:\.[\w-]+)*)(?<!\.py):(\w+(?:\.\w+)*)")
_PACKAGE = Path(__file__).parent.parent


def load_data(path: str, num_classes: int, noise: Noise) -> tuple[torch.Tensor, list[int] | None]:
    """Return images and labels [N], if it holds any, of an .npz file; errors name --data.

    Images are float32 [N, ...], or uint8 where the noise takes bytes.
    """
    try:
        arrays, found = read_arrays(path, [name for names in _ARRAYS for name in names])
    except OSError as error:
        raise ValueError(f"--data {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"--data {error}") from error
    for names in _ARRAYS:
        if all(name in arrays for name in names):
            raise ValueError(f"--data {path} must hold {names[0]} or {names[1]}, got both; leave one out")
    x, y = (next((name for name in names if name in arrays), "") for names in _ARRAYS)
    if not x:
        raise ValueError(
            f"--data {path} must hold images (or x), and may hold labels (or y), got {listed(found)}; name them so"
        )
    images, labels = arrays[x], arrays.get(y)
    if images.dtype != np.float32 and not (noise.takes_bytes and images.dtype == np.uint8):
        units = ", and the noise is then in units of [0, 1]" if noise.scale < math.inf else ""
        way = {"u": f" / 255{units}", "f": "", "b": ""}.get(images.dtype.kind)
        hint = "" if way is None else f"; save {x}.astype('float32'){way}"
        if images.dtype == np.uint8 and noise.for_bytes:
            hint += f"; or take {noise.for_bytes[1]}, for 8-bit images as they are"
        raise TypeError(f"{x} in --data {path} must be float32, got {images.dtype}{hint}")
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"{x} in --data {path} must be [N, ...] and not empty, got {list(images.shape)}")
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"{x} in --data {path} must be finite, got NaN or infinity in {x}[{finite.argmin()}]")
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{y} in --data {path} must be integers [{len(images)}], got {labels.dtype} {list(labels.shape)}"
                + _way_to_labels(y, labels, len(images))
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{y} in --data {path} must be from 0 to {num_classes - 1}, as --num-classes is {num_classes}, got "
                f"{labels.min()} to {labels.max()}"
            )
    return torch.from_numpy(images), None if labels is None else labels.tolist()


def _way_to_labels(name: str, labels: NDArray[Any], count: int) -> str:
    """Return what to save instead of what is no label an image: what its shape and values suggest, if anything."""
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        return f"; of one-hot labels or scores save {name}.argmax(1)"
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.all(labels == np.trunc(labels)))
    return f"; save {name}.reshape(-1).astype('int64')" if whole and labels.size == count else ""


def find_device(name: str) -> torch.device:
    """Return the device of that name if torch can use it here; errors name --device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device must be one of the {torch.cuda.device_count()} GPUs that torch sees here, got {name!r}")
    return device


def restarts() -> int:
    """Return how often torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join(device_name: str, shard: str | None) -> tuple[torch.device, str | None]:
    """Join the other processes of torchrun, if there are any; return this one's device and what they divide."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and device_name == "cuda":
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = find_device(device_name)
    if world == 1 and not distributed.is_initialized():
        if shard is not None and "WORLD_SIZE" not in os.environ:
            raise ValueError(f"--shard must be given under torchrun only, which starts several processes, got {shard}")
        return device, None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        # Where torchrun has started a job again, its store still holds the addresses of those that died.
        store, rank, world = next(rendezvous("env://"))
        store = PrefixStore(f"rsfast {restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # One that is done waits for the slowest, however long that takes: torchrun ends it where there is no use in that.
        patience = timedelta(days=365)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        atexit.register(distributed.destroy_process_group)
    return device, shard or "inputs"


def load_model(spec: str, weights: str | None, device: torch.device) -> Model:
    """Return what the factory MODULE:FACTORY returns, with the weights in that file, on `device`; errors name the option."""
    if (names := _SPEC.fullmatch(spec)) is None:
        how = "names as Python's import takes them, without a path, .py or brackets"
        raise ValueError(f"--model must be MODULE:FACTORY, such as nets:resnet110, {how}, got {spec!r}")
    module_name, name = names.groups()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing in it stands in for an installed package
    with _naming_mistakes(spec, f"; {module_name} must be installed, or a module in the working directory"):
        module = import_module(module_name)
    with _naming_mistakes(spec, f"; it came from {getattr(module, '__file__', None) or 'Python itself'}"):
        factory = attrgetter(name)(module)
    with _naming_mistakes(spec, "; it must be a function without arguments that returns the model"):
        model: Model = factory()
    if isinstance(model, type) or not callable(model):
        what = f"the class {model.__qualname__}" if isinstance(model, type) else reprlib.repr(model)
        raise TypeError(f"--model {spec} must return a model, callable on a batch, got {what}")
    if weights is not None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"--model {spec} must return a torch.nn.Module for --weights, got a {type(model).__name__}")
        load_weights(model, spec, weights)
    if isinstance(model, torch.nn.Module):
        with _naming_mistakes(spec):
            model.to(device)
    return model


@contextmanager
def _naming_mistakes(spec: str, hint: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises into a ValueError that names --model, and the line or else what to do."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _is_our_own(error)):
            raise
        place = place_of(error)
        raise ValueError(f"--model {spec}: {place}{type(error).__name__}: {error}{'' if place else hint}") from error


def _is_our_own(stop: SystemExit) -> bool:
    """Return whether it was rsfast that stopped within the user's code, as it does when it is terminated."""
    return any(file.is_relative_to(_PACKAGE) and file != Path(__file__) for file, _ in places(stop))


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
