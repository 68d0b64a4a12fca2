"""The examples run, in their quick mode, as the programs that a reader starts; each asserts what it claims."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper import RESULTS, page

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name != "paper.py")
PAPER = json.loads((RESULTS / "paper.json").read_text())


def claims(rows):
    return [(row["source"], row["claim"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    """Seeds are fixed, so that chance has no part in it."""
    environment = os.environ | {"RSFAST_QUICK": "1", "RSFAST_PAPER": str(tmp_path), "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, path], env=environment, cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in (tmp_path / f"{path.stem}.jsonl").read_text().splitlines()]
    assert claims(rows) == claims(PAPER[path.stem]["rows"]), (
        "benchmarks/results/paper.md lacks them: python -m benchmarks.paper"
    )


def test_the_page_has_what_all_examples_found():
    assert sorted(PAPER) == [path.stem for path in EXAMPLES]
    assert (RESULTS / "paper.md").read_text() == page(PAPER)
