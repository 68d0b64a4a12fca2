"""What `load_data` returns: inputs by their numbers, with labels and names, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from .. import ops
from .._check import as_int


class Items(Protocol):
    """Tensors ``[*shape]``, float32 or uint8, by their numbers: a tensor ``[N, *shape]``, or what reads them from files.

    It can be pickled for a worker process, which opens the files again.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Any: ...


class Data(Dataset[torch.Tensor]):
    """Inputs that `load_data` found, each read when it is asked for: a map-style Dataset.

    Parameters
    ----------
    items : Items
        The inputs as they are stored: uint8, which stand for x / 255, or float32.
    labels : sequence of int, optional
        The class of each input.
    names : sequence of str, optional
        The name of each input, such as a path relative to the folder that was named.
    class_names : sequence of str, optional
        The name of each class.
    digest : str, optional
        SHA-256 of what it holds, in hexadecimal: of the files' bytes one after the other, or of a folder of pictures of
        their names and sizes. None where what holds the inputs is not known, as with a factory.
    description : str
        One line for people, such as "50,000 pictures of 1,000 classes in imagenet/val".
    bytes : bool
        Whether uint8 inputs are handed out as they are.

    Examples
    --------
    >>> data = Data(torch.tensor([[0, 51, 255]], dtype=torch.uint8), labels=[2])
    >>> len(data), data[0], data.labels
    (1, tensor([0.0000, 0.2000, 1.0000]), [2])
    """

    def __init__(
        self,
        items: Items,
        *,
        labels: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        digest: str | None = None,
        description: str = "",
        bytes: bool = False,
    ) -> None:
        self.items, self.labels, self.names, self.class_names = items, labels, names, class_names
        self.digest, self.description, self.bytes = digest, description, bytes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> torch.Tensor:
        """Return an input ``[*shape]`` as float32, in [0, 1] if it is stored as uint8; with `bytes` that as it is.

        Raises
        ------
        IndexError
            If there is no input of that number, which counts from 0.
        rsfast.engine.inputs.Unreadable
            If it is a picture that cannot be read.
        """
        x: torch.Tensor = self.items[self._checked(place)]
        return x if self.bytes else ops.as_floats(x)

    def _checked(self, place: int) -> int:
        number = as_int("place", place)
        if not 0 <= number < len(self):
            raise IndexError(f"place must be from 0 to {len(self) - 1}, got {number}")
        return number
