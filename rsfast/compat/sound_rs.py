"""Sound Randomized Smoothing's `Certifier`, for 8-bit images: change its import line."""

from __future__ import annotations

import warnings
from typing import Any

from typing_extensions import Unpack

from .._check import as_real, check_count
from .._extras import import_torchvision
from ..api import sample
from ..engine.forward import Model
from ..engine.modes import device_of
from ..engine.options import SmoothOptions
from ..engine.sampling import check_model, warn_if_hopeless
from ..noise import Gaussian, GridGaussian, Noise
from ..stats import proof
from ..stats.common import check_alpha
from ._shared import chunks, count_classes, first_input, seed_or_random

_INPUTS = 256
"""Inputs that are sampled side by side."""

HEADER = ("true label", "predicted label", "r1", "r2")
"""The first row of what `Certifier.certify` returns."""


class Certifier:
    """Certify 8-bit images so that floating point cannot break the certificate.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, in units of [0, 1], from 2^-9 to 8.
    bits_precision, device, symbolic
        Not used. Noise is drawn from 64 bits an element, on the model's device, from thresholds in exact arithmetic.
    exact : bool
        False is Gaussian noise in float32, whose certificates floating point can break. It warns.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. The item i of a dataset has the input id i, so the same
        call gives the same answer again.
    **options
        scale, shift, dtype, channels_last, backend and progress, as in `rsfast.sample`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    The noise is `GridGaussian`. Noisy images are clamped to [-k, k + 1] with ``k = max(1, int(6 sigma))``, as there: that is
    part of the classifier.

    References
    ----------
    Voracek and Hein, "Sound Randomized Smoothing in Floating-Point Arithmetic", 2023;
    github.com/vvoracek/Sound-Randomized-Smoothing.

    Examples
    --------
    >>> import torch
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), 0.5 - x.mean((1, 2, 3))], dim=1)
    >>> header, row = Certifier(0.25, seed=1).certify(model, [(torch.full((1, 2, 2), 204 / 255), 0)], n=1000, skip=1)
    >>> header[:2], row[:2], 0.5 < row[2] < 0.9
    (('true label', 'predicted label'), (0, 0), True)
    """

    def __init__(
        self,
        sigma: float,
        bits_precision: int = 60,
        device: object = None,
        exact: bool = True,
        symbolic: bool = True,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        if not isinstance(exact, bool):
            raise TypeError(f"exact must be a bool, got {exact!r}")
        self.sigma = as_real("sigma", sigma, above=0)
        self.noise: Noise = GridGaussian(self.sigma) if exact else Gaussian(self.sigma)
        self.k = max(1, int(6 * self.sigma))
        self.seed = seed_or_random(seed)
        self.options: SmoothOptions = {"clamp": (-float(self.k), self.k + 1.0), **options}
        if not exact:
            warnings.warn(
                "exact is False: floating point can break the certificates of Gaussian noise in float32; leave it True",
                UserWarning,
                stacklevel=2,
            )

    def certify(
        self,
        model: Model,
        dataset: Any,
        reuse: bool = True,
        bs: int = 32,
        n0: int = 128,
        n: int = 100_000,
        alpha: float = 0.001,
        path: str | None = None,
        skip: int = 20,
    ) -> list[tuple[Any, ...]]:
        """Return the header, and a row for each image: its label, the class, and two l2 radii by the same samples.

        Parameters
        ----------
        model : callable
            From a batch [B, C, H, W] to logits [B, K].
        dataset : Dataset or str
            Of items (x, label), x in multiples of 1/255; or "cifar10", "cifar100" or "imagenet", which torchvision reads.
        reuse : bool
            Not used: each image has noise of its own, at no cost.
        bs : int
            Batch size.
        n0, n : int
            Samples that choose the class, and samples that bound it; rounded up to whole batches, as there.
        alpha : float
            Failure probability, in (0, 1), of each radius.
        path : str, optional
            Folder of ImageNet's validation images.
        skip : int
            Take each skip-th item.

        Returns
        -------
        list of tuple
            r1 is the radius of the class against the rest, r2 that of the class against the next; in units of [0, 1],
            rounded down. Both are 0.0 where the class is not the label, or nothing is proved.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or an image off the grid of 8 bits.
        ImportError
            If a dataset is named and torchvision is missing.
        """
        check_model("model", model)
        bs, skip, alpha = check_count("bs", bs), check_count("skip", skip), check_alpha(alpha)
        n0, n = (-(-check_count(name, value) // bs) * bs for name, value in (("n0", n0), ("n", n)))
        warn_if_hopeless("certify", n, alpha, proof.smallest_certifiable_n(alpha))
        if isinstance(dataset, str):
            dataset = _named(dataset, path)
        first = first_input(dataset)
        device = device_of(model, first)
        classes = count_classes(model, first.to(device))
        rows: list[tuple[Any, ...]] = [HEADER]
        for chunk in chunks(dataset, skip, _INPUTS, device, classes):
            shared: dict[str, Any] = {"seed": self.seed, "batch_size": bs, "input_ids": chunk.indices, **self.options}
            selection, estimation = (
                sample(model, chunk.x, self.noise, num_classes=classes, n=size, stream=stream, **shared)
                for size, stream in ((n0, "selection"), (n, "estimation"))
            )
            predicted = selection.to("cpu").counts[:, :-1].numpy().argmax(axis=1).tolist()
            radii = [
                [each.radius if each.prediction == label else 0.0 for each, label in zip(found, chunk.labels, strict=True)]
                for rule in ("one_vs_rest", "top_two")
                for found in [proof.certificates(selection, estimation, self.noise, alpha=alpha, rule=rule)]
            ]
            rows += zip(chunk.labels.tolist(), predicted, *radii, strict=True)
        return rows


def _named(name: str, path: str | None) -> Any:
    """Return the test set of this name, read as the original reads it."""
    if name not in ("cifar10", "cifar100", "imagenet") or (name == "imagenet" and path is None):
        raise ValueError(
            f"dataset must be a Dataset of items (x, label), 'cifar10', 'cifar100', or 'imagenet' with a path, got {name!r}"
        )
    torchvision = import_torchvision(f"dataset {name!r}")
    datasets, transforms = torchvision.datasets, torchvision.transforms
    tensor = transforms.ToTensor()
    if name == "imagenet":
        steps = [transforms.Resize(256), transforms.CenterCrop(224), tensor]
        return datasets.ImageFolder(path, transforms.Compose(steps))
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    return kind(root="./data", train=False, download=True, transform=tensor)
