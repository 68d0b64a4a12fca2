"""The rows of benchmarks/results/paper.md: what was published or follows from a formula, beside what an example finds."""

import json
import os
import sys
from pathlib import Path

QUICK = os.environ.get("RSFAST_QUICK", "0") != "0"
"""Whether examples take a few seconds, with less data and fewer samples, instead of up to a minute."""

SOURCES = {
    "margin": "The Lipschitz-Variance-Margin Tradeoff (Delattre et al., 2024)",
    "bridging": "Bridging the Theoretical Gap in Randomized Smoothing (Delattre et al., 2025)",
    "article": "Randomized smoothing, an encyclopedia article",
    "augmentation": "Noise-augmented training (TMLR, 2023)",
    "early": "Early decisions (Horvath et al., 2022; Voracek, 2024)",
    "beyond": "What the sources leave open",
}


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def record(source, claim, ours, published=None, note=""):
    """Print a row, and add it to the file of this example in the folder `RSFAST_PAPER`, if that is set.

    Parameters
    ----------
    source : str
        One of `SOURCES`.
    claim : str
        What is measured, and where; the same in quick mode.
    ours, published : float or str
        Numbers get four digits. `published` is what authors report or a formula gives; None if there is no such figure.
    note : str
        Why the two differ, or on what the claim depends.
    """
    assert source in SOURCES, source
    row = {"source": source, "claim": claim, "published": "" if published is None else _text(published), "ours": _text(ours)}
    beside = f"; published: {row['published']}" if row["published"] else ""
    print(f"{claim}: {row['ours']}{beside}{f' ({note})' if note else ''}")
    if folder := os.environ.get("RSFAST_PAPER"):
        with Path(folder, f"{Path(sys.argv[0]).stem}.jsonl").open("a") as file:
            file.write(json.dumps(row | {"note": note}) + "\n")
