"""Models that take batches of one size only, as an exported program or an ONNX file may."""

from __future__ import annotations

import torch

from ..engine.forward import Model


class FixedBatch(torch.nn.Module):
    """Feed a model that takes batches of `size` rows only batches of any size: in parts, the last filled up with zeros.

    Parameters
    ----------
    model : callable
        From ``[size, *shape]`` to [size, K].
    size : int

    Examples
    --------
    >>> FixedBatch(lambda batch: batch.reshape(2, 3), 2)(torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, model: Model, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        missing = -len(batch) % self.size
        full = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch
        return torch.cat([self.model(part) for part in torch.split(full, self.size)])[: len(batch)]
