"""ImageNet (ILSVRC2012) as people have it: folders named by WordNet ids, or the flat validation set and its ground truth."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import open_file
from .._hints import listed
from .dataset import Data
from .folders import data_of_files, labelled

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

_KAGGLE = "ILSVRC/Data/CLS-LOC"  # in its archive
_DEVKIT = "ILSVRC2012_devkit_t12/data"
_WNID = re.compile(r"n\d{8}")
_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_LABELS = {str(label) for label in range(1000)}  # in Caffe's val.txt; others count from 1, or in another order
_MOST_BYTES = 64 << 20  # of a text; that of Kaggle has 2 MB


def read_imagenet(folder: str, split: str, preprocessing: Preprocessing | None) -> Data:
    """Find the pictures of a split; the labels are places in the sorted WordNet ids, which models are trained with.

    The pictures are in `folder`, in its val (or train), or in the folder of that name in Kaggle's archive. They are in a
    folder for each WordNet id, as torchvision puts them, or ``ILSVRC2012_val_00000001.JPEG`` and so on in one folder. Of
    these the ground truth is beside or above them, or in `folder`: Kaggle's ``LOC_val_solution.csv``, Caffe's ``val.txt``,
    ``imagenet_2012_validation_synset_labels.txt``, or the development kit.

    Where ``LOC_synset_mapping.txt`` or ``synset_words.txt`` is there, the ids are those that it lists, also if only some
    have a folder, and it gives the names of classes.

    Raises
    ------
    ValueError
        Naming the folder or the file, if there are no pictures, no ground truth, or one that leaves out a picture.
    """
    roots = [Path(folder, below) for below in (split, f"{_KAGGLE}/{split}", "")]
    for root in filter(Path.is_dir, roots):
        places = list(dict.fromkeys([root, root.parent, Path(folder)]))
        words = _words(places)
        inside = sorted(os.listdir(root))
        wnids = [name for name in inside if _WNID.fullmatch(name) and (root / name).is_dir()]
        names, truth = labelled(str(root), wnids)
        classes = [wnids[place] for place in truth]
        if not names and split == "val" and (names := [name for name in inside if _NAME.fullmatch(name)]):
            classes, wnids = _of_flat(folder, names, places)
        if names:
            known = sorted(words) if wnids and words.keys() >= {*wnids} else wnids
            number = {wnid: place for place, wnid in enumerate(known)}
            labels = [int(each) if each.isdecimal() else number[each] for each in classes]
            class_names = [words.get(wnid, wnid) for wnid in known] or None
            return data_of_files(str(root), names, preprocessing, labels, class_names)
    raise ValueError(
        f"{folder} must hold folders named by WordNet ids, such as {split}/n01440764, or ILSVRC2012_val_00000001.JPEG and "
        f"so on with their ground truth, got {listed(sorted(os.listdir(folder)))}"
    )


def _of_flat(folder: str, names: Sequence[str], places: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Return the classes of the pictures, as WordNet ids or numbers, and all WordNet ids in order, none if numbers."""
    files = [(place / below / name, read) for place in places for name, (below, read) in _TRUTHS.items()]
    found = next(((file, read) for file, read in files if file.is_file()), None)
    if found is None:
        wanted = ", ".join(f"{below}/{name}" if below else name for name, (below, _) in _TRUTHS.items())
        raise ValueError(f"{folder} must hold the ground truth of {names[0]} and so on, got none of {wanted}; put one there")
    file, read = found
    truth = read(file)
    if missing := [name for name in names if name not in truth]:
        raise ValueError(f"{file} must hold the class of every picture, got none of {listed(missing)}")
    classes = {*truth.values()}
    if all(map(_WNID.fullmatch, classes)):
        return [truth[name] for name in names], sorted(classes)
    if file.name != "val.txt" or not classes <= _LABELS:
        wrong = next(text for text in sorted(classes) if not _WNID.fullmatch(text))
        raise ValueError(f"{file} must hold WordNet ids, such as n01440764, or in val.txt labels only, got {wrong!r}")
    return [truth[name] for name in names], []


def _lines(file: Path) -> list[str]:
    with open_file(file) as opened:
        return opened.read(_MOST_BYTES).decode(errors="replace").splitlines()


def _kaggle(file: Path) -> dict[str, str]:
    """Read lines ILSVRC2012_val_00048981,n03995372 85 1 499 272 ..., which go on with boxes."""
    pairs = (line.partition(",") for line in _lines(file))
    return {f"{name}.JPEG": (boxes.split() or [""])[0] for name, _, boxes in pairs if name != "ImageId"}


def _pairs(file: Path) -> dict[str, str]:
    """Read lines ILSVRC2012_val_00000001.JPEG 65, or with a WordNet id."""
    pairs = [line.split() for line in _lines(file)]
    return {Path(pair[0]).name: pair[1] for pair in pairs if len(pair) == 2}


def _in_order(file: Path) -> dict[str, str]:
    """Read a WordNet id or number a line, of pictures 1, 2, ..."""
    return {f"ILSVRC2012_val_{place:08}.JPEG": line.strip() for place, line in enumerate(_lines(file), 1)}


def _devkit(file: Path) -> dict[str, str]:
    """Read the development kit's own number a line, which meta.mat beside it gives the WordNet id of."""
    from scipy.io import loadmat

    meta = file.with_name("meta.mat")
    try:
        with open_file(meta) as opened:
            synsets = loadmat(opened, squeeze_me=True)["synsets"]
        wnids = {str(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets if each["num_children"] == 0}
        return {name: wnids[number] for name, number in _in_order(file).items()}
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{meta} must be that of the development kit ({type(error).__name__}: {error})") from error


_TRUTHS: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {
    "LOC_val_solution.csv": ("", _kaggle),
    "val.txt": ("", _pairs),
    "imagenet_2012_validation_synset_labels.txt": ("", _in_order),
    "ILSVRC2012_validation_ground_truth.txt": (_DEVKIT, _devkit),
}


def _words(places: Sequence[Path]) -> dict[str, str]:
    """Return the first word for each WordNet id, from lines n01440764 tench, Tinca tinca; nothing if there is no file."""
    files = [place / name for place in places for name in ("LOC_synset_mapping.txt", "synset_words.txt")]
    lines = next((_lines(file) for file in files if file.is_file()), [])
    pairs = (line.partition(" ") for line in lines)
    return {wnid: words.partition(",")[0].strip() for wnid, _, words in pairs if _WNID.fullmatch(wnid)}
