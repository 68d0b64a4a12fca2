"""``jit:FILE`` and ``export:FILE``: whole models in a file, as TorchScript and torch.export write them."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .fixed_batch import FixedBatch
from .loaded import LoadedModel, check_classes, does_not_load


def load_jit(path: str, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return the model in a file that `torch.jit.save` wrote.

    Raises
    ------
    ValueError
        If torch does not read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
            model = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:  # a damaged file can raise anything
        raise does_not_load(f"model jit:{path}", "a file that torch.jit.save wrote", error) from error
    return LoadedModel(model.eval(), num_classes=num_classes)


def load_export(path: str, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return the model in a file that `torch.export.save` wrote; of one with a fixed batch size, one that takes any.

    Raises
    ------
    ValueError
        If torch does not read it, or the model takes other than one tensor.
    """
    from torch.export.passes import move_to_device_pass

    what = f"model export:{path}"
    try:
        program = torch.export.load(path)
    except Exception as error:  # a damaged file can raise anything
        raise does_not_load(what, "a file that torch.export.save wrote", error) from error
    inputs, outputs = (_tensors(program, names) for names in _ends(program))
    if len(inputs) != 1 or len(inputs[0].shape) < 2:
        raise ValueError(f"{what} must take one batch of inputs, got {[list(each.shape) for each in inputs]}")
    own = outputs[0].shape[-1] if len(outputs) == 1 and isinstance(outputs[0].shape[-1], int) else None
    own = check_classes(what, num_classes, own)
    module = move_to_device_pass(program, device).module()
    size = inputs[0].shape[0]
    if not isinstance(size, int):
        return LoadedModel(module, num_classes=own)
    if size == 1:
        warnings.warn(
            f"{what} takes one input at a time; for batches export it anew, with dynamic_shapes=({{0: "
            "torch.export.Dim('batch')},)",
            UserWarning,
            stacklevel=2,
        )
    return LoadedModel(FixedBatch(module, size), num_classes=own)


def _ends(program: Any) -> tuple[Any, Any]:
    """Return the names of what a program takes, and of what it returns."""
    return program.graph_signature.user_inputs, program.graph_signature.user_outputs


def _tensors(program: Any, names: Any) -> list[torch.Tensor]:
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [nodes[name] for name in names if isinstance(nodes.get(name), torch.Tensor)]
