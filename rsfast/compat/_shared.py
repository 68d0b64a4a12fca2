"""What several of the peers' interfaces need: a seed, what a model returns, and a dataset in chunks."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import ops
from .._check import as_int
from ..engine.forward import Model
from ..engine.modes import evaluating, modules_of
from ..engine.sampling import check_model


def seed_or_random(seed: object = None) -> int:
    """Return a seed, checked; one from the operating system for None."""
    return ops.check_seed(secrets.randbits(64) if seed is None else seed)


def count_classes(model: Model, x: torch.Tensor) -> int:
    """Return how many logits a model gives for a row of inputs x [I, *shape]: it runs on the first, in eval mode.

    Raises
    ------
    TypeError, ValueError
        If the model cannot be called, or does not return logits [1, K].

    Examples
    --------
    >>> count_classes(torch.nn.Linear(2, 3), torch.zeros(5, 2))
    3
    """
    check_model("model", model)
    with evaluating(modules_of(model)):
        logits = model(ops.as_floats(x[:1]))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"model must return logits [1, K] for one input, got {found}")
    return int(logits.shape[1])


def rounded_down(values: NDArray[np.float64]) -> torch.Tensor:
    """Return float64 values as a float32 tensor, none of them larger than it was.

    Examples
    --------
    >>> rounded_down(np.array([0.1])).double().item() < 0.1
    True
    """
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    return torch.from_numpy(np.where(found > values, np.nextafter(found, np.float32(-np.inf)), found))


class Chunk(NamedTuple):
    """Inputs of a labelled dataset."""

    indices: list[int]
    """Places in the dataset: the inputs' ids in the noise stream."""
    x: torch.Tensor
    """[I, *shape], on the model's device."""
    labels: NDArray[np.int64]


def first_input(dataset: Any) -> torch.Tensor:
    """Return the first input of a dataset with a length, of items (x, label), as a batch of one.

    Raises
    ------
    TypeError, ValueError
        If it holds no item, or other items.

    Examples
    --------
    >>> first_input([(torch.zeros(2), 1)]).shape
    torch.Size([1, 2])
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset must be a Dataset of items (x, label), got a {type(dataset).__name__}")
    if not len(dataset):
        raise ValueError("dataset must hold at least one item (x, label), got none")
    item = dataset[0]
    if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], torch.Tensor):
        raise TypeError(f"dataset must hold items (x, label), x a tensor, got a {type(item).__name__} in dataset[0]")
    return item[0][None]


def chunks(dataset: Any, skip: int, size: int, device: torch.device, num_classes: int) -> Iterator[Chunk]:
    """Yield each skip-th item (x, label) of a dataset with a length, `size` at a time.

    Raises
    ------
    ValueError
        If a label is not in [0, num_classes), or inputs have several shapes.

    Examples
    --------
    >>> pairs = [(torch.zeros(2), 1)] * 5
    >>> [chunk.indices for chunk in chunks(pairs, 2, 2, torch.device("cpu"), 3)]
    [[0, 2], [4]]
    """
    every = range(0, len(dataset), skip)
    for begin in range(0, len(every), size):
        indices = list(every[begin : begin + size])
        pairs = [dataset[index] for index in indices]
        labels = [as_int("label", int(label)) for _, label in pairs]
        for index, (x, _), label in zip(indices, pairs, labels, strict=True):
            if not 0 <= label < num_classes:
                raise ValueError(f"label of dataset[{index}] must be from 0 to {num_classes - 1}, got {label}")
            if x.shape != pairs[0][0].shape:
                raise ValueError(f"dataset[{index}] must have shape {[*pairs[0][0].shape]}, as others, got {[*x.shape]}")
        yield Chunk(indices, torch.stack([x for x, _ in pairs]).to(device), np.array(labels, dtype=np.int64))
