"""`load_data`: the data that a name stands for, in a file, a folder, a data set's published layout or a factory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._check import as_int
from .arrays import read_npy, read_npz, read_pt
from .cifar import CIFAR10, CIFAR100, read_cifar
from .dataset import Data
from .factories import is_factory
from .folders import read_folder
from .hf_datasets import read_huggingface
from .imagenet import read_imagenet
from .mnist import read_mnist
from .preprocessing import Preprocessing
from .user_dataset import UserData

if TYPE_CHECKING:
    Published = Callable[[str, str, Preprocessing | None], Data]

_FILES: Mapping[str, Callable[[str], Data]] = {".npy": read_npy, ".pt": read_pt, ".pth": read_pt}  # all others are .npz


class _Layout(NamedTuple):
    """Of a published data set: what reads it, and its splits, the default first."""

    read: Published
    splits: tuple[str, ...]


_LAYOUTS: Mapping[str, _Layout] = {
    "cifar10": _Layout(partial(read_cifar, CIFAR10), ("test", "train")),
    "cifar100": _Layout(partial(read_cifar, CIFAR100), ("test", "train")),
    "mnist": _Layout(read_mnist, ("test", "train")),
    "imagenet": _Layout(read_imagenet, ("val", "train")),
}
FORMS = "FILE.npz, FILE.npy, FILE.pt, FOLDER, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR, hf:DIR or MODULE:FACTORY"
"""Of names of data."""


def load_data(
    name: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    num_classes: int | None = None,
    bytes: bool = False,
) -> Data:
    """Find data by its name, check it, and return it as a Dataset that reads an input when it is asked for.

    Parameters
    ----------
    name : str or path-like
        One of these:

        - ``FILE.npz``: images (or x), float32 or uint8 ``[N, *shape]``, and perhaps labels (or y), integers [N];
        - ``FILE.npy``: images, which are mapped from the file, not read into memory;
        - ``FILE.pt``: a tensor of images, or a dict as in an .npz file, which torch.save wrote; mapped as well;
        - a folder of class folders, whose sorted names are the classes, as in torchvision's ImageFolder;
        - a folder of pictures, without labels;
        - ``cifar10:DIR``, ``cifar100:DIR``, ``mnist:DIR``, ``imagenet:DIR``: the published files, unpacked, and of them the
          test split, of ImageNet the validation split; ``cifar10:DIR:train`` names the other;
        - ``hf:DIR`` or ``hf:DIR:SPLIT``: what ``save_to_disk`` of Hugging Face's `datasets` wrote; by default the split
          that is named test, or validation;
        - ``MODULE:FACTORY``: a function without arguments that returns a Dataset.
    preprocessing : Preprocessing, optional
        How pictures are resized and cropped, as the model's own in `load_model`; without it pictures must have one size. It
        does not apply to .npz, .npy and .pt files, nor to tensors of a factory: these are inputs as the model takes them.
    num_classes : int, optional
        Labels must be below it.
    bytes : bool
        Whether inputs that are stored as uint8 are returned so, for noise that takes 8-bit images.

    Returns
    -------
    Data
        Inputs ``[*shape]`` as float32; those stored as uint8, as pictures are, are x / 255, so that they lie in [0, 1]. It
        has the attributes `labels`, `names`, `class_names`, `digest` and `description`.

    Raises
    ------
    ImportError
        If a library is missing: Pillow for pictures, `datasets` for ``hf:DIR``.
    TypeError, ValueError
        Beginning with "data" and the name: if there is nothing of that name, or a file is damaged or holds what it should
        not. Files are taken as hostile: nothing is unpickled but tensors, numbers and text.

    Warns
    -----
    UserWarning
        If there are fewer class folders than `num_classes`, so that labels may not be those of the model.

    Notes
    -----
    A picture is turned as its EXIF orientation says, and made RGB by Pillow's ``convert("RGB")``, which leaves out an
    alpha channel, as torchvision and timm do; for a model of one channel it is made grey. 16-bit greys are scaled. One that
    cannot be read raises `rsfast.engine.inputs.Unreadable` when its turn comes, with its name and why.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", images=np.full((2, 3), 51, np.uint8), labels=[1, 0])
    ...     data = load_data(f"{folder}/data.npz", num_classes=2)
    >>> data[0], data.labels
    (tensor([0.2000, 0.2000, 0.2000]), [1, 0])
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"data must be a name or a path, got a {type(name).__name__}")
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            f"preprocessing must be a Preprocessing, as load_model(...).preprocessing, got {preprocessing!r:.80}"
        )
    if num_classes is not None:
        num_classes = as_int("num_classes", num_classes)
    name = os.fspath(name)
    try:
        data = _find(name, preprocessing)
        if not len(data):
            raise ValueError(f"{name} must hold at least one input, got none")
        _check_labels(name, data, num_classes)
    except (OSError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())  # one line
        if text.startswith("data "):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        named = text.startswith((f"{name} ", f"{name}: ", f"{name}/"))
        raise kind(f"data {text if named else f'{name}: {text}'}") from error
    data.bytes = bytes
    return data


def _find(name: str, preprocessing: Preprocessing | None) -> Data:
    form, colon, rest = name.partition(":")
    if not name:
        raise ValueError(f"data must be {FORMS}, got ''")
    if not colon or os.path.exists(name):
        return read_folder(name, preprocessing) if os.path.isdir(name) else _FILES.get(Path(name).suffix, read_npz)(name)
    if form == "hf":
        folder, split = _folder_and_split(rest)
        return read_huggingface(folder, split, preprocessing)
    if form in _LAYOUTS:
        layout = _LAYOUTS[form]
        folder, split = _folder_and_split(rest)
        if split not in (None, *layout.splits):
            raise ValueError(f"its split must be {' or '.join(layout.splits)}, got {split!r}")
        return layout.read(folder, split or layout.splits[0], preprocessing)
    try:
        if is_factory(name):
            return UserData(name, preprocessing)
        raise ValueError(f"data must be {FORMS}, got {name!r}")
    except ValueError as error:
        if near := get_close_matches(form, _LAYOUTS, cutoff=0.8):
            raise ValueError(f"{error}; {near[0]}: may be meant") from error
        raise


def _folder_and_split(rest: str) -> tuple[str, str | None]:
    """Return the folder and the split, if one is named, of DIR or DIR:SPLIT."""
    folder, colon, split = rest.rpartition(":")
    found = (rest, None) if os.path.isdir(rest) or not colon else (folder, split)
    if not os.path.isdir(found[0]):
        raise ValueError(f"{found[0]} must be a folder, got {'a file' if os.path.exists(found[0]) else 'nothing there'}")
    return found


def _check_labels(name: str, data: Data, num_classes: int | None) -> None:
    if data.labels is not None:
        if len(data.labels) != len(data):
            raise ValueError(f"{name} must hold a label for each of {len(data)} inputs, got {len(data.labels)}")
        low, high = min(data.labels), max(data.labels)
        if low < 0 or (num_classes is not None and high >= num_classes):
            wanted = "at least 0" if num_classes is None else f"from 0 to {num_classes - 1}, as num_classes is {num_classes}"
            raise ValueError(f"labels must be {wanted}, got {low} to {high}")
    if data.class_names is not None and num_classes is not None and len(data.class_names) < num_classes:
        warnings.warn(
            f"data {name} holds {len(data.class_names)} classes, and num_classes is {num_classes}; label 0 stands for "
            f"{data.class_names[0]}, and so on, which must be so for the model",
            UserWarning,
            stacklevel=3,
        )
