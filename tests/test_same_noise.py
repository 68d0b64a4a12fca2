"""The page "Same noise everywhere": each promise has a block that runs (tests/test_docs.py), and names tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guide" / "same-noise.md"
ITEM = re.compile(r"\[(test_\w+\.py)\]\(\.\./\.\./tests/\1\):((?:[,\s]+`test_\w+`)+)")  # a file, and tests in it
LINK = re.compile(r"\[`(test_\w+)`\]\(\.\./\.\./tests/(test_\w+\.py)\)")


def named(text):
    """The file and the name of each test that a text names."""
    for file, tests in ITEM.findall(text):
        yield from ((file, test) for test in re.findall(r"`(\w+)`", tests))
    yield from ((file, test) for test, file in LINK.findall(text))


@cache
def names_in(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def promises():
    """The title and the text of each promise."""
    _, _, text = PAGE.read_text().partition("\n## What rsfast promises\n")
    sections = text.partition("\n## ")[0].split("\n### ")[1:]
    return [section.split("\n", 1) for section in sections]


def test_names_are_found():
    text = "- [test_a.py](../../tests/test_a.py): `test_b`,\n  `test_c`, of `d`\n[`test_e`](../../tests/test_f.py)"
    assert list(named(text)) == [("test_a.py", "test_b"), ("test_a.py", "test_c"), ("test_f.py", "test_e")]


def test_every_named_test_exists():
    text = PAGE.read_text()
    found = list(named(text))
    assert len(found) == len(re.findall(r"`test_\w+`", text)) > 20  # none is written otherwise
    assert not [(file, test) for file, test in found if test not in names_in(file)]


@pytest.mark.parametrize(("title", "text"), promises(), ids=lambda value: value.split("\n")[0])
def test_every_promise_has_a_block_and_a_test(title, text):
    assert "```python\n" in text
    assert "assert torch.equal" in text or "assert rest + first == whole" in text or "assert hashlib" in text
    assert list(named(text))


def test_all_promises_are_found():
    assert len(promises()) == 8
