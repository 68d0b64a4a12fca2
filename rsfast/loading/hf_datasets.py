"""Data sets of Hugging Face's library `datasets`, as `save_to_disk` writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .._extras import import_extra
from .._files import sha256
from .._hints import listed
from .dataset import Data
from .pictures import Pictures

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

_SPLITS = ("test", "validation", "val", "valid")  # the first that there is
_LABELS = ("label", "labels", "fine_label")


def read_huggingface(folder: str, split: str | None, preprocessing: Preprocessing | None) -> Data:
    """Map a data set with a column of pictures, and perhaps one of labels, from its folder.

    Raises
    ------
    ImportError
        If there is no `datasets`.
    ValueError
        Naming the folder, if it is not one that `save_to_disk` wrote, has several splits and none of the usual names, or
        has no column, or several, of pictures.
    """
    held, root = _load(folder, split)
    from datasets import ClassLabel, Image

    features = held.features
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    chosen = [name for name in ("image", "img") if name in columns] or columns
    if len(chosen) != 1:
        got = f"several: {listed(columns)}" if columns else f"the columns {listed(features)}"
        raise ValueError(f"{folder} must hold one column of pictures, named image or img, got {got}")
    of_classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    label = next((name for name in (*_LABELS, *of_classes) if name in features), None)
    labels = None if label is None else _labels(folder, label, held)
    pictures = _Rows(folder, split, chosen[0], held, preprocessing)
    pictures.check_sizes()
    class_names = features[label].names if label in of_classes else None
    files = [file for file in sorted(Path(root).glob("*.arrow")) if not file.name.startswith("cache-")]  # of other uses
    classes = f" of {len(class_names):,} classes" if class_names else ""
    return Data(
        pictures,
        labels=None if labels is None or set(labels) == {-1} else labels,  # -1: kept secret
        names=_paths(held, chosen[0]),
        class_names=class_names,
        digest=sha256(*files),
        description=f"{len(held):,} pictures{classes} in {root}",
    )


class _Rows(Pictures):
    """Pictures of a column; each process maps the data set by itself."""

    def __init__(self, folder: str, split: str | None, column: str, held: Any, preprocessing: Preprocessing | None) -> None:
        super().__init__([f"row {place}" for place in range(len(held))], folder, preprocessing)
        self._split, self._column, self._held = split, column, _encoded(held, column)

    def open(self, place: int) -> BinaryIO:
        if self._held is None:
            self._held = _encoded(_load(self._folder, self._split)[0], self._column)
        data = (self._held[place][self._column] or {}).get("bytes")
        if data is None:  # save_to_disk puts the files in, where there were any
            raise ValueError("the row holds no picture")
        return io.BytesIO(data)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}


def _load(folder: str, split: str | None) -> tuple[Any, str]:
    """Return a data set and the folder of its files, which of one split is below `folder`."""
    datasets = import_extra("datasets", "hf", f"data hf:{folder}")
    try:
        held = datasets.load_from_disk(folder)
    except Exception as error:  # a damaged folder can raise anything
        raise ValueError(
            f"{folder} must be a folder that save_to_disk of Hugging Face's datasets wrote ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(held, datasets.DatasetDict):
        if split is not None:
            raise ValueError(f"{folder} must hold the split {split}, got one data set without splits; leave the split out")
        return held, folder
    name = split or next((name for name in _SPLITS if name in held), "")
    if name not in held:
        wanted = f"the split {split}" if split else "a split named test or validation"
        raise ValueError(f"{folder} must hold {wanted}, got {listed(held)}; name one, as in hf:{folder}:{next(iter(held))}")
    return held[name], str(Path(folder, name))


def _labels(folder: str, column: str, held: Any) -> list[int]:
    labels = [*held[column]]
    if wrong := [label for label in labels if type(label) is not int]:
        raise ValueError(
            f"{folder} must hold integers in {column}, got {wrong[0]!r}; convert it with class_encode_column({column!r})"
        )
    return labels


def _encoded(held: Any, column: str) -> Any:
    """Return the data set with its pictures as bytes, not decoded."""
    from datasets import Image

    return held.select_columns([column]).cast_column(column, Image(decode=False))


def _paths(held: Any, column: str) -> Sequence[str] | None:
    """Return the paths that the pictures had, if each has one of its own."""
    paths = [path for chunk in held.data.column(column).chunks for path in chunk.field("path").to_pylist()]
    return paths if len(paths) == len(held) and all(paths) and len(set(paths)) == len(paths) else None
