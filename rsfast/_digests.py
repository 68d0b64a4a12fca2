"""SHA-256 of tensors: by that of a module a run knows its model again."""

from __future__ import annotations

import hashlib

import torch


def state_dict_sha256(model: object) -> str | None:
    """Return a digest of the names, types, shapes and bytes of a module's tensors; None for anything else."""
    if not isinstance(model, torch.nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):  # a module may keep other state there too
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements in logical order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
