"""What rsfast shows on the demo's digits, but for times: benchmarks/results/demo.md, and the picture of the README.

Run as ``python -m benchmarks.demo``. A busy machine does not change a figure, so this may run beside other work. It takes
some 14 minutes of processor time on a busy machine, most of them for the runs of n = 100,000.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from cpuinfo import get_cpu_info

import rsfast
from benchmarks.figures import markdown
from rsfast import demo
from rsfast.cli import main as rsfast_command

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "demo.md"
PICTURE = ROOT / "docs" / "images" / "certified_accuracy.svg"
QUICK_START = ROOT / "docs" / "quickstart.md"
SEED, IMAGES = 2026, 200
PAIRS = (  # whose average radii are compared: a head, a bound, and the bound that it is compared with
    ("Votes", "randomized_clopper_pearson", "clopper_pearson"),
    ("Votes", "beta_binomial_sequence", "clopper_pearson"),
    ("Softmax", "betting", "empirical_bernstein"),
)
CHANGED = {0.6: 10_000, 0.25: 31_000}  # by sigma: the n with which the changed model is certified anew
HEAD = """# On the demo's digits

`python -m benchmarks.demo` writes this page. It trains the network of `rsfast demo`, and certifies
the same 200 test images, at sigma = 0.25, alpha = 0.001 and seed 2026, unless a row says
otherwise. Nothing here is a time. The bits of training differ between machines, and so do the
figures, a little.
"""


def run_demo(folder: Path) -> str:
    """Run ``rsfast demo`` in full, draw the picture of its two runs, and return what it printed."""
    with redirect_stdout(io.StringIO()) as printed:
        rsfast_command(["demo", "--out", str(folder), "--images", str(IMAGES), "--seed", str(SEED)])
    with mpl.rc_context({"svg.hashsalt": "rsfast"}):  # the same curves are the same file
        runs = [f"votes={folder / 'votes'}", f"softmax scores={folder / 'softmax'}"]
        rsfast_command(["plot", *runs, "--out", str(PICTURE)])
    PICTURE.write_text(re.sub(r" *<dc:date>.*</dc:date>\n", "", PICTURE.read_text()))
    return printed.getvalue()


def accuracy(folder: Path) -> str:
    """Return the share of images that are predicted right with a radius of at least r, of both runs."""
    runs = {"votes": rsfast.results.read(folder / "votes"), "softmax scores": rsfast.results.read(folder / "softmax")}
    shares = {name: rsfast.results.certified_accuracy(run, demo.RADII) for name, run in runs.items()}
    rows = [[radius, *(f"{share[i]:.1%}" for share in shares.values())] for i, radius in enumerate(demo.RADII)]
    return markdown(["r", *shares], rows)


def gains(printed: str) -> str:
    """Return two tables of the average certified radius (ACR): as the demo prints it, and in pairs."""
    found = re.findall(r"^(Votes|Softmax) +(\w+) +(\w+) +(0\.\d{4}) *([+-]\d+\.\d%)$", printed, re.MULTILINE)
    acr = {row[:3]: float(row[3]) for row in found}
    assert len(acr) == len(demo.COMPARED)
    rows = [("Softmax(0.5)" if head == "Softmax" else head, *rest) for head, *rest in found]
    compared = []
    for head, one, other in PAIRS:
        ratio = acr[head, one, "auto"] / acr[head, other, "auto"]
        text = f"{abs(100 * ratio - 100):.1f} % {'larger' if ratio > 1 else 'smaller'}"
        compared.append((f"{head.lower()}, {one} over {other}", text))
    return f"{markdown(['head', 'bound', 'rule', 'ACR', 'gain'], rows)}\n\n{markdown(['what', 'ACR'], compared)}"


def certify(model: torch.nn.Module, x: torch.Tensor, sigma: float = demo.SIGMA, **options: Any) -> list[rsfast.Certificate]:
    return rsfast.certify(model, x, rsfast.Gaussian(sigma), num_classes=10, alpha=demo.ALPHA, seed=SEED, **options)


def mean(values: Iterable[float]) -> float:
    return sum(values := list(values)) / len(values)


def samples(found: list[rsfast.Certificate]) -> float:
    """Return the samples an image, selection included."""
    return mean(each.n0 + each.n for each in found)


def decisions(model: torch.nn.Module, x: torch.Tensor) -> str:
    """Return how many samples it takes to decide one radius, or several, and what that certifies."""
    every = certify(model, x, n=demo.CAP)
    found = certify(model, x, n=demo.CAP, radius=demo.DECIDED)
    radii, some = (0.25, 0.5, 0.75), x[:100]
    rows = [
        ("samples an image", f"{samples(found):,.0f}"),
        ("times fewer than n = 100,000", f"{demo.CAP / samples(found):.1f}"),
        ("certified of 200 images", sum(each.radius >= demo.DECIDED for each in found)),
        ("certified of 200 images with n = 100,000", sum(each.radius >= demo.DECIDED for each in every)),
        *(
            (f"samples an image of 100, radius {r}", f"{samples(certify(model, some, n=demo.CAP, radius=r)):,.0f}")
            for r in radii
        ),
        (
            "samples an image of 100, all three radii",
            f"{samples(certify(model, some, n=demo.CAP, radius=list(radii))):,.0f}",
        ),
    ]
    return markdown(["what", "figure"], rows)


def first_k(model: torch.nn.Module, x: torch.Tensor) -> str:
    found = [certify(model, x, n=demo.N, top_k=top_k) for top_k in (1, 2, 3)]
    return markdown(
        ["k", "mean radius"], [(k, f"{mean(each.radius for each in of_k):.3f}") for k, of_k in enumerate(found, 1)]
    )


def rounded(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model whose weights have 8 bits: 255 levels from minus the largest of a tensor to the largest."""
    changed = deepcopy(model)
    with torch.no_grad():
        for weights in changed.parameters():
            step = weights.abs().max() / 127
            weights.copy_((weights / step).round() * step)
    return changed


def changed(model: torch.nn.Module, x: torch.Tensor) -> str:
    """Return what is kept of the mean radius of n = 100,000 once the weights are rounded, and the runs of a model it takes.

    A pair of `compare` is a run of either model.
    """
    rows, new = [], rounded(model)
    for sigma, anew in CHANGED.items():
        before = certify(model, x, sigma, n=demo.CAP)
        radius = mean(each.radius for each in before)
        compared = rsfast.compare(model, new, x, before, num_classes=10, alpha=demo.ALPHA)
        runs = mean(2 * each.after.n for each in compared) / demo.CAP
        votes = [each.counts[0] / each.n for each in before]
        again = mean(each.radius for each in certify(new, x, sigma, n=anew))
        kept = mean(each.after.radius for each in compared)
        shares = (f"{min(votes):.0%}", f"{torch.tensor(votes).median():.1%}")
        rows.append((sigma, *shares, f"{kept / radius:.1%}", f"{runs:.2f}", f"{anew:,}", f"{again / radius:.1%}"))
    headers = ("sigma", "fewest votes", "median votes", "radius kept", "runs over n", "n anew", "radius kept anew")
    return markdown(headers, rows)


def quick_start() -> str:
    """Return what the first two blocks of Python of the quick start print."""
    blocks = re.findall(r"```python\n(.*?)```", QUICK_START.read_text(), re.DOTALL)
    with redirect_stdout(io.StringIO()) as printed:
        exec("\n".join(blocks[:2]), {})
    return f"```\n{printed.getvalue()}```"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        printed = run_demo(Path(folder))
        curves = accuracy(Path(folder))
    train_x, train_y, test_x, _ = demo.digits()
    model, x = demo.train(train_x, train_y, seed=SEED), test_x[:IMAGES]
    machine = f"{os.cpu_count()} cores of {get_cpu_info()['brand_raw']}, PyTorch {torch.__version__}, {date.today()}."
    sections = {
        "Certified accuracy": f"n = 10,000. `docs/images/certified_accuracy.svg` shows these curves.\n\n{curves}",
        "Bounds and rules": f"n = 10,000; all from the same samples.\n\n{gains(printed)}",
        "Early decisions": f"Radius 0.5, at most 100,000 samples, unless a row says otherwise.\n\n{decisions(model, x)}",
        "Among the first k": f"n = 10,000.\n\n{first_k(model, x)}",
        "Changed models": (
            "40 images, n = 100,000, and weights that are then rounded to 8 bits. The votes are those of the\n"
            f"certified class. A pair counts as two runs.\n\n{changed(model, x[:40])}"
        ),
        "The quick start": f"What the first two blocks of `docs/quickstart.md` print.\n\n{quick_start()}",
    }
    PAGE.write_text("\n".join([HEAD, machine, *(f"\n## {title}\n\n{text}" for title, text in sections.items())]) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
