"""The demo: a small network trained on scikit-learn's handwritten digits, how long it takes to decide its test images here
and with the 2019 loop, and its certificates by several bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import nn

from . import api, results
from ._extras import import_extra
from ._progress import progress_bar
from .heads import Head, Softmax, Votes
from .loop2019 import BATCH, Loop2019
from .nn import GaussianNoise
from .noise import Gaussian, radius_label
from .ops.tally import Tally
from .runs.layout import SIDECAR, read_sidecar
from .runs.plot import plot
from .runs.writer import RunWriter, refuse_a_run, remove_run
from .stats.certificate import Certificate
from .stats.common import range_ends
from .stats.estimates import leading_classes
from .stats.proof import certificates
from .stats.registry import BOUNDS

SIGMA, N0, N, ALPHA = 0.25, 100, 10_000, 0.001
DECIDED, CAP = 0.5, 100_000
SECONDS_2019 = 12  # after which the loop starts no further image
_COMMAND = "rsfast demo"  # recorded in its runs, which the next demo replaces
_FIGURE = "certified_accuracy.png"
RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
HEADS: dict[str, Head] = {"votes, Clopper-Pearson": Votes(), "softmax, betting": Softmax(0.5)}
COMPARED: tuple[tuple[Head, str, str], ...] = (
    (Votes(), "clopper_pearson", "one_vs_rest"),
    (Votes(), "clopper_pearson", "auto"),
    (Votes(), "randomized_clopper_pearson", "auto"),
    (Votes(), "betting", "auto"),
    (Votes(), "beta_binomial_sequence", "auto"),
    (Votes(), "betting_sequence", "auto"),
    (Votes(), "clopper_pearson", "class_partitioning"),
    (Votes(), "clopper_pearson", "bonferroni"),
    (Softmax(0.5), "betting", "auto"),
    (Softmax(0.5), "empirical_bernstein", "auto"),
    (Softmax(0.5), "hoeffding", "auto"),
)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return train images float32 [1297, 1, 8, 8] in [0, 1], their labels, 500 test images, their labels."""
    data = import_extra("sklearn.datasets", "demo", "the demo").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order] / 16).float()[:, None]
    labels = torch.from_numpy(data.target[order]).long()
    return images[500:], labels[500:], images[:500], labels[:500]


def network() -> nn.Sequential:
    """Return the untrained network: two convolutions and two linear layers, 0.2 million multiply-adds an image."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16, 96),
        nn.ReLU(),
        nn.Linear(96, 10),
    )


def train(images: torch.Tensor, labels: torch.Tensor, *, seed: int, epochs: int = 30) -> nn.Sequential:
    """Return the network trained under Gaussian noise."""
    torch.manual_seed(seed)
    model, noise = network(), GaussianNoise(SIGMA, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * ceil(len(images) / 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in progress_bar(range(epochs), desc="training", unit="epoch"):
        order = torch.randperm(len(images))
        for begin in range(0, len(images), 128):
            rows = order[begin : begin + 128]
            loss = nn.functional.cross_entropy(model(noise(images[rows])), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def run(out: Path, *, images: int = 200, seed: int = 2026, max_samples: int = CAP) -> None:
    """Train, decide and certify `images` test images, print times and tables, and write runs and plot into `out`.

    To decide an image takes at most `max_samples`.

    Raises
    ------
    ImportError
        If scikit-learn or matplotlib is missing; the message says what to install.
    ValueError
        If images is not from 1 to 500.
    FileExistsError
        If `out` holds another run, or another plot, than those of an earlier demo.
    """
    if not 1 <= images <= 500:
        raise ValueError(f"images must be from 1 to 500, got {images}")
    folders, figure = [out / name.split(",")[0] for name in HEADS], out / _FIGURE
    _check_out(out, folders)
    train_x, train_y, test_x, test_y = digits()
    x, labels = test_x[:images], test_y[:images].tolist()

    began = time.perf_counter()
    model = train(train_x, train_y, seed=seed)
    print(f"Trained on {len(train_x)} digits with noise sigma = {SIGMA} in {time.perf_counter() - began:.1f} s.")

    noise = Gaussian(SIGMA)
    options: dict[str, Any] = {"num_classes": 10, "seed": seed, "progress": True}
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    # A new process: training and sampling change how this one allocates memory, and users of the loop have neither.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        theirs, each = pool.submit(time_2019, weights, x.numpy(), max_samples, seed, torch.get_num_threads()).result()
    began = time.perf_counter()
    early = api.certify(model, x, noise, n0=N0, n=max_samples, alpha=ALPHA, radius=DECIDED, **options)
    print(decided(early, time.perf_counter() - began, theirs, each, max_samples))

    began = time.perf_counter()
    heads = tuple(HEADS.values())
    selection = api.sample(model, x, noise, n=N0, stream="selection", heads=heads, **options)
    tracked = leading_classes(selection)
    ranges = [
        api.sample(model, x, noise, n=end - start, start=start, heads=heads, tracked_classes=tracked, **options)
        for start, end in pairwise([0, *range_ends(N)])
    ]

    def certify(head: Head, bound: str = "auto", rule: str = "auto") -> list[Certificate]:
        most = N if bound in BOUNDS and BOUNDS[bound].sequence else None
        return certificates(
            selection,
            ranges,
            noise,
            head=head,
            alpha=ALPHA,
            bound=bound,
            rule=rule,
            max_samples=most,
            seed=seed,
            backend="cpu",
        )

    certified = {name: certify(head) for name, head in HEADS.items()}
    seconds = (time.perf_counter() - began) / images
    runs = {
        name: _write(folder, HEADS[name], of_head, labels, seconds, selection, ranges)
        for folder, (name, of_head) in zip(folders, certified.items(), strict=True)
    }
    label = radius_label(noise.norm)
    print(f"\n{images} test images, n = {N:,}, alpha = {ALPHA}; certified accuracy at {label} r, ACR the average radius:\n")
    print(results.table(runs, RADII))
    plot(runs, figure, title=f"Handwritten digits, sigma = {SIGMA}, n = {N:,}")
    print("\nFrom the same samples, by bound and rule:\n")
    print(gains({how: certify(*how) for how in COMPARED}, labels))
    print(f"\nPlot: {figure}. Runs: {', '.join(map(str, folders))}.")


def _check_out(out: Path, folders: list[Path]) -> None:
    """Raise FileExistsError if `out` holds another run, or another plot, than those of an earlier demo."""
    for folder in folders:
        if not _is_of_a_demo(folder):
            refuse_a_run(folder)
    if (out / _FIGURE).exists() and not any(map(_is_of_a_demo, folders)):
        raise FileExistsError(
            f"{out} must be a folder without a plot of another run, got one with {_FIGURE}; name another folder, or move "
            "that file away first"
        )


def _write(
    folder: Path,
    head: Head,
    certified: list[Certificate],
    labels: list[int],
    seconds: float,
    selection: Tally,
    ranges: list[Tally],
) -> results.Results:
    """Write the run of one head, each image of which took so many seconds, and return its rows."""
    with replace_run(folder, certified[0]) as writer:
        for i, (certificate, label) in enumerate(zip(certified, labels, strict=True)):
            counts = {
                "selection": integers_of(head, selection, i),
                "estimation": [integers_of(head, tally, i) for tally in ranges],
            }
            writer.write(i, label, certificate, seconds, counts)
    return results.read(folder)


def time_2019(
    weights: dict[str, NDArray[np.float32]],
    images: NDArray[np.float32],
    n: int,
    seed: int,
    threads: int,
    most_seconds: float = SECONDS_2019,
    make_loop: Callable[..., Loop2019] = Loop2019,
) -> tuple[list[tuple[int, float]], float]:
    """Return what the 2019 loop returns of the first images, as many as the time allows, and its seconds an image."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = network().eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    loop, found, began = make_loop(model, 10, SIGMA), list[tuple[int, float]](), time.perf_counter()
    with progress_bar(desc="2019 loop", unit="image") as bar:
        for image in torch.from_numpy(images):
            found.append(loop.certify(image, N0, n, ALPHA, BATCH))
            bar.update()
            if time.perf_counter() - began > most_seconds:
                break
    return found, (time.perf_counter() - began) / len(found)


def decided(
    early: list[Certificate], seconds: float, theirs: list[tuple[int, float]], each: float, max_samples: int = CAP
) -> str:
    """Return how long rsfast took to decide all images, and how long the 2019 loop would take.

    Parameters
    ----------
    early, seconds
        The certificates of all images, and the time that they took.
    theirs, each
        What the 2019 loop returned of the first images, and its time an image.
    max_samples
        How many samples either could take of an image.
    """
    images, timed, used = len(early), len(theirs), sum(certificate.n0 + certificate.n for certificate in early)
    certified = [certificate.prediction if certificate.radius >= DECIDED else None for certificate in early]
    certified_2019 = [prediction if radius >= DECIDED else None for prediction, radius in theirs]
    same = sum(ours == loops for ours, loops in zip(certified, certified_2019, strict=False))
    total = "" if timed == images else f", so about {each * images:,.0f} s for all {images}"
    return (
        f"rsfast decided all {images} test images at {radius_label(early[0].norm)} {DECIDED} in {seconds:.1f} s. "
        f"The 2019 loop takes {each:.1f} s an image (measured on {timed}){total}.\n"
        f"Both may take {max_samples:,} samples an image, on {torch.get_num_threads()} threads; rsfast stops at a decision, "
        f"after {used / images:,.0f} on average. It certified {images - certified.count(None)} of {images}; "
        f"of the {timed} that both decided, {same} alike."
    )


def gains(certified: Mapping[tuple[Head, str, str], list[Certificate]], labels: list[int]) -> str:
    """Return a table of the average certified radius by each head, bound and rule, and what it is of the head's first."""
    rows, first = [], dict[Head, float]()
    for (head, bound, rule), found in certified.items():
        right = [c.radius if c.prediction == label else 0.0 for c, label in zip(found, labels, strict=True)]
        acr = sum(right) / len(right)
        rows.append((type(head).__name__, bound, rule, acr, f"{acr / first.setdefault(head, acr) - 1:+.1%}"))
    return str(tabulate(rows, headers=("head", "bound", "rule", "ACR", "gain"), floatfmt=".4f"))


def integers_of(head: Head, tally: Tally, index: int) -> dict[str, Any]:
    """Return the integers of one input that `head` needs: votes do without the scores of the other."""
    integers = tally.integers(index)
    return integers if head.soft else {"n": integers["n"], "counts": integers["counts"], "sums": [], "squares": []}


def replace_run(folder: Path, certificate: Certificate) -> RunWriter:
    """Return the writer of a run like `certificate`, in place of a run that an earlier demo wrote."""
    if _is_of_a_demo(folder):
        remove_run(folder)
    settings = certificate.to_dict()
    shared = ("n0", "n", "alpha", "rule", "bound", "head", "noise", "norm", "seed", "stream_version", "backend")
    return RunWriter(folder, {**{key: settings[key] for key in shared}, "command": _COMMAND})


def _is_of_a_demo(folder: Path) -> bool:
    return (folder / SIDECAR).exists() and read_sidecar(folder / SIDECAR).get("command") == _COMMAND
