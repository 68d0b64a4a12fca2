"""The examples run, in their quick mode, as the programs that a reader starts; each asserts what it claims."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name != "paper.py")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    """Seeds are fixed, so that chance has no part in it."""
    environment = os.environ | {"RSFAST_QUICK": "1", "RSFAST_PAPER": str(tmp_path), "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, path], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / f"{path.stem}.jsonl").read_text()


def test_there_are_examples():
    assert EXAMPLES
