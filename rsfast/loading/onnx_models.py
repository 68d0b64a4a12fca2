"""``onnx:FILE``: models that ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._extras import import_extra
from .fixed_batch import FixedBatch
from .loaded import LoadedModel, check_classes, does_not_load
from .preprocessing import Preprocessing

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxModel:
    """From a batch to logits by ONNX Runtime; batches of another device go through the host's memory.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        Of a model with one input.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        (taken,), (returned, *_) = session.get_inputs(), session.get_outputs()
        self._taken, self._returned, self._dtype = taken.name, returned.name, _TYPES[taken.type]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        array = batch.detach().cpu().contiguous().float().numpy().astype(self._dtype, copy=False)
        (logits,) = self._session.run([self._returned], {self._taken: array})
        return torch.from_numpy(logits).to(batch.device)


def load(path: str, num_classes: int | None, device: torch.device) -> LoadedModel:
    """Return the model in an ONNX file, on the CPU, or on a GPU by ONNX Runtime's provider for CUDA.

    A file of a fixed batch size is fed in parts of that size. Where it fixes height and width, pictures are made so.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    ValueError
        If it does not read the file, has no provider for the device, or the model takes other than one batch of floats.
    """
    what = f"model onnx:{path}"
    runtime = import_extra("onnxruntime", "onnx", what)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            raise ValueError(f"{what}: onnxruntime here has no CUDA; pip install onnxruntime-gpu, or take device cpu")
        providers = [("CUDAExecutionProvider", {"device_id": device.index or 0}), *providers]
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # of onnxruntime's own kinds
        raise does_not_load(what, "an ONNX model", error) from error
    taken = session.get_inputs()
    if len(taken) != 1 or taken[0].type not in _TYPES or len(taken[0].shape) < 2:
        got = ", ".join(f"{each.name} {each.type} {each.shape}" for each in taken)
        raise ValueError(f"{what} must take one batch of floats, got {got}")
    size, *shape = taken[0].shape
    classes = session.get_outputs()[0].shape[-1:]
    own = check_classes(what, num_classes, classes[0] if classes and isinstance(classes[0], int) else None)
    model = OnnxModel(session)
    return LoadedModel(FixedBatch(model, size) if isinstance(size, int) else model, _pictures(shape), own)


def _pictures(shape: list[Any]) -> Preprocessing | None:
    """Return how pictures are made where the model takes one size only; what values it takes, the file does not say."""
    if len(shape) != 3 or not all(isinstance(each, int) for each in shape) or shape[0] not in (1, 3):
        return None
    channels, height, width = shape
    resize = height if height == width else (height, width)
    return Preprocessing(size=(height, width), resize=resize, channels=channels, source="the input of the ONNX file")
