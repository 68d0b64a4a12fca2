"""A Dataset that a user's factory returns, as `Data`: of tensors or of pictures, with labels of its own or in its items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from .. import ops
from .._files import reason
from .._hints import conversion
from ..engine.inputs import Unreadable
from .dataset import Data
from .factories import call_factory
from .pictures import as_8_bit, as_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from .preprocessing import Preprocessing


class UserData(Data):
    """The Dataset that MODULE:FACTORY returns: a map-style one, with a length.

    Labels are its attribute ``labels`` or ``targets``. Without one, an item that is a tuple (input, label) stays one, with
    the input as `Data` gives it. An input is a tensor, float32 or uint8, or a picture of Pillow. Its attributes ``names``,
    ``class_names`` (or ``classes``) and ``digest`` are taken too.
    """

    def __init__(self, spec: str, preprocessing: Preprocessing | None) -> None:
        dataset = call_factory("data", spec)
        if isinstance(dataset, (type, IterableDataset)) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            what = f"the class {dataset.__name__}" if isinstance(dataset, type) else f"a {type(dataset).__name__}"
            raise TypeError(f"data {spec} must return a Dataset with __len__ and __getitem__, got {what}")
        labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
        if labels is not None and ((tensor := torch.as_tensor(labels)).ndim != 1 or tensor.is_floating_point()):
            raise TypeError(f"data {spec} must have integers [N] as labels, got {tensor.dtype} {list(tensor.shape)}")
        super().__init__(
            dataset,
            labels=None if labels is None else tensor.tolist(),
            names=getattr(dataset, "names", None),
            class_names=getattr(dataset, "class_names", getattr(dataset, "classes", None)),
            digest=getattr(dataset, "digest", None),
            description=f"{len(dataset):,} inputs from {spec}",
        )
        self._preprocessing = preprocessing

    def __getitem__(self, place: int) -> Any:
        """Return an input, or (input, label) where the labels are in the items."""
        item = self.items[self._checked(place)]
        pair = isinstance(item, (tuple, list)) and bool(item) and not isinstance(item[0], (int, float))
        x = item[0] if pair else item
        if hasattr(x, "getbands"):  # a picture of Pillow
            x = as_pixels(self._as_8_bit(x, place), self._preprocessing)
        if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float32, torch.uint8):
            what = x.dtype if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
            step = conversion("x", x)
            hint = "" if step is None else f"; return {step}"
            raise TypeError(f"data must hold float32 or uint8 tensors, or pictures of Pillow, got {what} in [{place}]{hint}")
        x = x if self.bytes else ops.as_floats(x)
        return (x, *item[1:]) if pair and self.labels is None and len(item) > 1 else x

    def _as_8_bit(self, image: Image, place: int) -> Image:
        try:
            return as_8_bit(image, self._preprocessing)
        except Exception as error:  # Pillow decodes a picture that was opened only now
            raise Unreadable(f"the picture at [{place}]: {reason(error)}") from error
