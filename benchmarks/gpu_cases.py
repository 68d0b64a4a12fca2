"""What `gpu_gate` measures: the cases of perturb, accumulate and certify, on a GPU and, of tiny sizes, in a dry run.

A case is data: its name in the report (`what`), its sizes, and the fewest bytes that it must read and write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.cases import GRID, IMAGES, NOISE, noises
from benchmarks.networks import cifar_resnet110, resnet50
from rsfast import Softmax, Votes
from rsfast.heads import Head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Perturb:
    """A batch of noisy samples of one input; x is float32 [1, *shape]."""

    images: str
    batch: int
    shape: Shape
    dtype: str
    channels_last: bool
    noise: str = "Gaussian"  # a name of cases.noises
    scale: bool = False  # the model's normalisation, a scale and a shift for each channel
    clamp: bool = False
    timed: bool = True  # else only the bits are checked

    @property
    def what(self) -> str:
        words = ["perturb", self.dtype, "channels_last" if self.channels_last else "contiguous"]
        words[1:1] = [] if self.noise == "Gaussian" else [self.noise]
        words += [name for name in ("scale", "clamp") if getattr(self, name)]
        return f"{' '.join(words)}, {self.images} {self.batch}"

    @property
    def elements(self) -> int:
        return self.batch * math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """x read once, the output written once."""
        return 4 * math.prod(self.shape) + self.elements * DTYPES[self.dtype].itemsize


HEADS: dict[str, tuple[Head, ...]] = {"votes": (Votes(),), "softmax": (Votes(), Softmax()), "204 soft heads": GRID}


@dataclass(frozen=True)
class Accumulate:
    """A batch of float32 logits [batch, classes] into a Tally of one input."""

    classes: int
    batch: int
    heads: str  # a name of HEADS
    histograms: bool = False  # of two tracked classes a soft head
    target: float | None = None  # the least speed, as a multiple of plain torch's

    @property
    def what(self) -> str:
        return (
            f"accumulate, {self.heads}{' with histograms' if self.histograms else ''}, "
            f"K = {self.classes}, batch {self.batch}"
        )

    @property
    def elements(self) -> int:
        return self.batch * self.classes

    @property
    def nbytes(self) -> int:
        """Logits read once; votes and moments read and written once. Histograms are not counted."""
        moments = 2 * 8 * (len(HEADS[self.heads]) - 1) * self.classes
        return 4 * self.batch * self.classes + 2 * (moments + 8 * (self.classes + 2))


@dataclass(frozen=True)
class Certify:
    """Certificates of `images` inputs by an untrained network in bfloat16, channels_last."""

    network: str
    make: Callable[[], nn.Module]
    shape: Shape
    classes: int
    images: int
    n0: int
    n: int
    batch: int
    radius: float | None = None  # sampling of an input stops as soon as this radius is decided
    cuda_graph: bool = False
    compile: bool = False

    @property
    def what(self) -> str:
        extras = [name for name in ("cuda_graph", "compile") if getattr(self, name)]
        extras += [] if self.radius is None else [f"radius = {self.radius:g}"]
        sizes = f"{self.images} image{'s' * (self.images > 1)}, n = {self.n:,}, batch {self.batch}"
        return ", ".join(["certify", self.network, sizes, *extras])


@dataclass(frozen=True)
class Cases:
    """All that is measured."""

    perturb: tuple[Perturb, ...]
    noises: tuple[Perturb, ...]  # other draws than Gaussian's
    accumulate: tuple[Accumulate, ...]
    certify: tuple[Certify, ...]
    compiled: tuple[Certify, ...]  # certify through torch.compile, which takes a minute at first


LAYOUTS = (("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True))  # dtype, channels_last
OPTIONS = ((True, False), (False, True), (True, True))  # scale, clamp
CIFAR, IMAGENET = IMAGES["CIFAR"][1:], IMAGES["ImageNet"][1:]
OTHER_NOISES = [  # but those that an FFT shapes: its last bits depend on the device
    name for name, noise in noises(IMAGENET).items() if noise != NOISE and not noise.parameters(IMAGENET).shaper
]


def perturb_cases(images: Sequence[tuple[str, int, Shape]]) -> tuple[Perturb, ...]:
    """Return Gaussian noise on all of the images; on the last, which are the largest batch, with every option as well."""
    plain = [Perturb(*each, *layout) for each in images for layout in LAYOUTS]
    options = [Perturb(*images[-1], *layout, "Gaussian", *each) for layout in LAYOUTS for each in OPTIONS]
    checked = [Perturb(*images[0], "float16", last, scale=True, clamp=True, timed=False) for last in (False, True)]
    return (*plain, *options, *checked)


def noise_cases(images: str, batch: int, shape: Shape) -> tuple[Perturb, ...]:
    layouts = (("float32", False), ("bfloat16", False), ("bfloat16", True))
    return tuple(Perturb(images, batch, shape, *layout, noise) for noise in OTHER_NOISES for layout in layouts)


def accumulate_cases(*sizes: tuple[int, int, float | None]) -> tuple[Accumulate, ...]:
    """Return the cases of each (classes, batch, target of the grid of heads)."""
    found = []
    for classes, batch, target in sizes:
        found += [Accumulate(classes, batch, "votes"), Accumulate(classes, batch, "softmax", histograms=True)]
        found += [
            Accumulate(classes, batch, "204 soft heads", histograms, None if histograms else target)
            for histograms in (False, True)
        ]
    return tuple(found)


def certify_cases(*one_image: Certify) -> tuple[Certify, ...]:
    """Return what each network is measured with: one image, more, early decisions, and CUDA graphs."""
    found = []
    for one in one_image:
        more = replace(one, n0=max(1, one.n0 // 10), n=one.n // 10)
        found += [one, replace(more, images=16), replace(more, images=64, n=one.n // 40)]
        found += [replace(one, images=16, n0=more.n0, radius=0.5), replace(one, cuda_graph=True)]
    return tuple(found)


def compiled_cases(*one_image: Certify) -> tuple[Certify, ...]:
    return tuple(replace(one, compile=True, cuda_graph=graph) for one in one_image for graph in (False, True))


RESNET110 = Certify("ResNet-110 (CIFAR)", cifar_resnet110, CIFAR, 10, images=1, n0=1000, n=10_000, batch=1000)
RESNET50 = Certify("ResNet-50", resnet50, IMAGENET, 1000, images=1, n0=250, n=10_000, batch=250)
ON_GPU = Cases(
    perturb_cases((("CIFAR", 1000, CIFAR), ("ImageNet", 64, IMAGENET), ("ImageNet", 512, IMAGENET))),
    noise_cases("ImageNet", 64, IMAGENET),
    accumulate_cases((10, 1000, 20), (1000, 256, 30), (21_000, 64, None)),
    certify_cases(RESNET110, RESNET50),
    compiled_cases(RESNET110, RESNET50),
)

SMALL = Certify("small network", lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), (3, 2, 2), 3, 1, 10, 600, 50)
DRY_RUN = Cases(
    perturb_cases((("ImageNet", 2, (3, 6, 6)),)),
    noise_cases("ImageNet", 2, (3, 6, 6))[::5],
    accumulate_cases((3, 4, 20), (30, 3, None)),
    certify_cases(SMALL)[:4],
    (),
)
