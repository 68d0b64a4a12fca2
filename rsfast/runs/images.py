"""The images of a run: a tensor, or a Dataset that worker processes read ahead; and their labels and names."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .. import _hints as hints
from .. import ops
from .._check import as_int
from .._digests import tensor_bytes
from ..engine.inputs import Unreadable
from ..noise import Noise
from . import settings
from .writer import NO_LABEL

_KNOWN_BY = 16  # items of a Dataset without a digest, by which it is known again


class Images:
    """The images of a run, with what is known of each: its label, its name.

    Parameters
    ----------
    images : Tensor or Dataset
        As in `Run`. Of a Dataset, items are read here until one can be: 16 of them at least, if it has no ``digest``.
    labels, workers
        As in `Run`.
    num_classes : int
    noise : Noise
        Images are uint8 only where it takes bytes.

    Attributes
    ----------
    first : tensor ``[1, *shape]``, or all images of a tensor ``[N, *shape]``
        The first that can be read.
    labels : list of int, or None
        Those that are known before an image is read.
    labels_come : bool
        Whether they come with the images, in the items of a Dataset.
    names, class_names : list of str, or None

    Raises
    ------
    TypeError, ValueError
        If `images`, one of its attributes or `labels` is not as in `Run`; no image can be read; or workers could not be
        given the Dataset.
    """

    def __init__(
        self, images: object, labels: Sequence[int] | torch.Tensor | None, num_classes: int, noise: Noise, workers: int = 0
    ) -> None:
        self._noise, self._num_classes = noise, num_classes
        self._workers = settings.check_workers(workers)
        self.names: list[str] | None = None
        self.class_names: list[str] | None = None
        self._read: dict[int, int] = {}  # labels that came with their images
        self.labels_come = False
        self._digest: str | None = None
        self._labels_of = "labels"
        self._items: torch.Tensor | _Items
        if not settings.is_dataset(images):
            self._items = self.first = settings.check_images(images, noise)
            self.labels = settings.check_labels("labels", labels, len(self), num_classes)
            self._workers = 0  # what is in memory needs no reading
            return
        self._items = _Items(images)
        self._take_attributes(images, labels)
        if self._workers:
            _check_picklable(images, self._workers)
        self.first = self._find_first()

    def __len__(self) -> int:
        return len(self._items)

    def _take_attributes(self, images: Any, labels: Sequence[int] | torch.Tensor | None) -> None:
        if not (count := len(self)):
            raise ValueError("images must hold at least one image, got a Dataset of length 0")
        self.names = settings.check_texts("images.names", getattr(images, "names", None), count)
        if labels is None:
            found = [name for name in ("labels", "targets") if getattr(images, name, None) is not None]
            if found:
                self._labels_of = f"images.{found[0]}"
                labels = getattr(images, found[0])
        self.labels = settings.check_labels(self._labels_of, labels, count, self._num_classes, self.title)
        self.class_names = settings.check_texts("images.class_names", getattr(images, "class_names", None))
        self._digest = getattr(images, "digest", None)
        if not isinstance(self._digest, str | None):
            raise TypeError(f"images.digest must be a str, a SHA-256 of the data, got {self._digest!r:.80}")

    def title(self, index: int) -> str:
        """Return what messages call an image."""
        return f"images[{index}]" if self.names is None else f"images[{index}] ({self.names[index]})"

    def name(self, index: int) -> str | None:
        """Return the name of an image, if it has one."""
        return None if self.names is None else self.names[index]

    def label(self, index: int) -> int | None:
        """Return the label of an image, -1 where there are none; None if it comes with the image, which was not read."""
        if self.labels is not None:
            return self.labels[index]
        return self._read.get(index) if self.labels_come else NO_LABEL

    def hint(self) -> str:
        """Return what the axes of the images may be meant to be, where a model fails on them."""
        shape = (len(self), *self.first.shape[1:])
        return hints.axes(shape, "images") if len(shape) > 2 else ""

    def like_first(self, indices: Sequence[int], device: torch.device) -> Iterable[torch.Tensor]:
        """Return as many images as these, all the first, so that none is read."""
        return [self.first[0].to(device)] * len(indices)

    def read(self, indices: Sequence[int], device: torch.device) -> Iterable[torch.Tensor | Unreadable]:
        """Return these images, to be read in order, each on the way to a device; for one that cannot be read, why."""
        return _Reading(self, indices, device)

    def items(self, indices: Sequence[int]) -> Iterator[Any]:
        """Yield what the tensor or the Dataset holds at these places; workers read ahead, if there are any."""
        if not self._workers or isinstance(self._items, torch.Tensor):
            yield from map(self._items.__getitem__, indices)
            return
        loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_size=None,
            sampler=indices,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_group,
            multiprocessing_context="spawn",  # no fork: this process has computed, in threads that a fork would lack
            generator=torch.Generator(),  # else the global one would be drawn from
        )
        try:
            with _interrupts_held():
                reading = iter(loader)
            yield from reading
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise ValueError(
                f"workers must be processes that can read images, got {self._workers}, one of which ended ({error}); they "
                "import the class of images, and the script that started the run: define that class in a module, and start "
                "the run under if __name__ == '__main__'; or take workers = 0"
            ) from error

    def take(self, index: int, item: Any) -> torch.Tensor:
        """Return the image of an item, checked, and keep its label.

        Raises
        ------
        TypeError, ValueError
            Naming the image, if it is no such tensor or has not the shape of the others, or its label is not in range.
        """
        image = self._split(index, item)
        if image.shape != (shape := self.first.shape[1:]):
            raise ValueError(
                f"{self.title(index)} must have shape {list(shape)}, as the first image, got {list(image.shape)}; resize "
                "images to one size, and make all of them grey or all of them colour"
            )
        return image

    def _split(self, index: int, item: Any) -> torch.Tensor:
        title = self.title(index)
        if isinstance(item, (tuple, list)) and item and not isinstance(item[0], (int, float)):
            item, *rest = item
            if rest:
                self._take_label(index, title, rest[0])
        return ops.check_inputs(title, item, single=True, given="item", noise=self._noise)

    def _take_label(self, index: int, title: str, value: object) -> None:
        if self.labels is not None and self._labels_of == "labels":  # they were given, in place of those of the items
            return
        label = as_int(f"label of {title}", value)
        if self.labels is None:
            if not 0 <= label < self._num_classes:
                raise ValueError(f"label of {title} must be from 0 to {self._num_classes - 1}, got {label}")
            self.labels_come = True
            self._read[index] = label
        elif label != self.labels[index]:
            raise ValueError(
                f"label of {title} must be {self.labels[index]}, as in {self._labels_of}, got {label}; pass labels="
            )

    def _find_first(self) -> torch.Tensor:
        why: Unreadable | None = None
        for index in range(len(self)):
            item = self._item(index)
            if not isinstance(item, Unreadable):
                return self._split(index, item)[None]
            why = why or item
        raise ValueError(f"images must hold one that can be read, got none of {len(self)}; {self.title(0)}: {why}")

    def _item(self, index: int) -> Any:
        try:
            return self._items[index]
        except Exception as error:
            hints.add_note(error, f"images raised this when {self.title(index)} was read")
            raise

    def sha256(self) -> str:
        """Return what tells these images and labels from others.

        That is a SHA-256 of all bytes of a tensor. Of a Dataset it is its ``digest``; without one, a SHA-256 of its length,
        its names and its first 16 items, so that nothing shows whether the others are the same. Labels are part of it.
        """
        if self._digest is not None and (self.labels is None or self._labels_of != "labels"):
            return self._digest
        digest = hashlib.sha256()
        if isinstance(self._items, torch.Tensor):
            digest.update(tensor_bytes(self._items))
        elif self._digest is not None:
            digest.update(self._digest.encode())
        else:
            digest.update(repr((len(self), self.names)).encode(errors="surrogatepass"))
            for index in range(min(_KNOWN_BY, len(self))):
                item = self._item(index)
                if not isinstance(item, Unreadable):
                    digest.update(tensor_bytes(self.take(index, item)))
                digest.update(repr((index, self.label(index))).encode())
        digest.update(repr(self.labels).encode())
        return digest.hexdigest()


class _Items(Dataset[Any]):
    """The items of a Dataset, in place of one that cannot be read the error that says why: a worker would wrap it."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._items[index]
        except Unreadable as error:
            return Unreadable(str(error))


class _Reading:
    """Images on the way to a device; those that cannot be read are the errors that say why."""

    def __init__(self, images: Images, indices: Sequence[int], device: torch.device) -> None:
        self._images, self._indices, self._device = images, indices, device

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[torch.Tensor | Unreadable]:
        for index, item in zip(self._indices, self._images.items(self._indices), strict=True):
            yield item if isinstance(item, Unreadable) else self._images.take(index, item).to(self._device)


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _check_picklable(images: object, workers: int) -> None:
    try:
        pickle.Pickler(_Nowhere()).dump(images)
    except Exception as error:  # of a class of the user's: whatever its __getstate__ raises
        raise TypeError(
            f"images must be a Dataset that pickle takes, with workers = {workers}, which are processes of their own, got a "
            f"{type(images).__name__} ({type(error).__name__}: {error}); let it hold no open file, lock or lambda, and "
            "define its class in a module; or take workers = 0"
        ) from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C for a moment; processes that are started meanwhile never see it, as their imports would end in it."""
    resource_tracker.ensure_running()  # here, as it lets all signals through where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_group(_: int) -> None:
    """Take a worker out of the process group of its parent, which goes on for a while when a signal stops the group.

    A worker ends with its parent all the same: it looks every few seconds whether that is there.
    """
    os.setpgrp()


def _as_it_is(item: Any) -> Any:
    return item
