"""The examples run, in their quick mode, as the programs that a reader starts; each asserts what it claims."""

import json

import programs
import pytest

from benchmarks.paper import FOLDER, RESULTS, examples, page, rows_in, settings

PAPER = json.loads((RESULTS / "paper.json").read_text())


def claims(rows):
    return [(row["source"], row["claim"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", examples())
def test_an_example_runs(name, tmp_path):
    """Seeds are fixed, so that chance has no part in it."""
    assert programs.run(FOLDER / f"{name}.py", folder=tmp_path, **settings(tmp_path, quick=True)) == 0
    found = claims(rows_in(tmp_path, name))
    assert found
    assert found == claims(PAPER[name]["rows"]), f"run python -m benchmarks.paper {name}, which renews paper.md"


def test_the_page_has_what_all_examples_found():
    assert sorted(PAPER) == examples()
    assert (RESULTS / "paper.md").read_text() == page(PAPER)
