"""Folders of pictures, and folders of class folders in the order of torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._hints import listed
from .dataset import Data
from .pictures import SUFFIXES, Pictures

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_folder(folder: str, preprocessing: Preprocessing | None) -> Data:
    """Find the pictures in a folder: in class folders, whose sorted names are the classes, or without labels in it.

    Files and folders whose names begin with a dot are left out, and so are files that are no pictures by their names.
    Class folders may hold further folders.

    Raises
    ------
    ValueError
        Naming the folder, if it holds no picture, both class folders and pictures, a class folder without pictures, or
        nothing but splits.
    """
    inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    shown = [entry for entry in inside if not entry.name.startswith(".")]
    classes = [entry.name for entry in shown if entry.is_dir()]
    loose = [entry.name for entry in shown if not entry.is_dir() and is_picture(entry.name)]
    if loose and not any(next(pictures_under(folder, name), None) for name in classes):
        return data_of_files(folder, loose, preprocessing, None, None)
    if loose:
        raise ValueError(
            f"{folder} must hold class folders or pictures, got both: {loose[0]} and the folders {listed(classes)}; move one"
        )
    if classes and _SPLITS.issuperset(name.lower() for name in classes):
        raise ValueError(
            f"{folder} must hold class folders or pictures, got the splits {listed(classes)}; name one of these"
        )
    names, labels = labelled(folder, classes)
    if not names:
        what = listed(entry.name for entry in inside)
        raise ValueError(f"{folder} must hold pictures ({', '.join(SUFFIXES)}), in it or in class folders, got {what}")
    if empty := [classes[place] for place in sorted({*range(len(classes))} - {*labels})]:
        raise ValueError(
            f"{folder} must hold pictures in each class folder, got none in {listed(empty)}; move what is no class out of it"
        )
    return data_of_files(folder, names, preprocessing, labels, classes)


def data_of_files(
    folder: str,
    names: Sequence[str],
    preprocessing: Preprocessing | None,
    labels: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> Data:
    """Return the pictures of these names in a folder as data."""
    pictures = Pictures(names, folder, preprocessing)
    pictures.check_sizes()
    of_classes = f" of {len(class_names):,} classes" if class_names else ""
    description = f"{len(names):,} pictures{of_classes} in {folder}"
    return Data(
        pictures,
        labels=labels,
        names=names,
        class_names=class_names,
        digest=names_and_sizes_sha256(folder, names),
        description=description,
    )


def labelled(folder: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the names of all pictures in these class folders, and for each the place of its class."""
    found = [(name, label) for label, one in enumerate(classes) for name in pictures_under(folder, one)]
    return [name for name, _ in found], [label for _, label in found]


def pictures_under(folder: str, name: str, above: Sequence[Path] | None = None) -> Iterator[str]:
    """Yield the paths in `folder` of the pictures under `name`, in ImageFolder's order: a folder's, then those below it."""
    above = [Path(folder).resolve()] if above is None else above
    real = Path(folder, name).resolve()
    if real in above:  # a symbolic link to a folder that it is in
        return
    entries = [entry for entry in os.scandir(Path(folder, name)) if not entry.name.startswith(".")]
    below = sorted(entry.name for entry in entries if entry.is_dir())
    for each in sorted(entry.name for entry in entries if not entry.is_dir() and is_picture(entry.name)):
        yield f"{name}/{each}"
    for each in below:
        yield from pictures_under(folder, f"{name}/{each}", [*above, real])


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def names_and_sizes_sha256(folder: str, names: Sequence[str]) -> str:
    """Return the SHA-256 of the sorted names, each followed by a zero byte, its size in bytes and a line feed.

    A file that is missing, as behind a broken link, has the size -1.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        path = Path(folder, name)
        digest.update(os.fsencode(name) + f"\0{path.stat().st_size if path.exists() else -1}\n".encode())
    return digest.hexdigest()
