"""docs/drop-ins.md names what is there."""

import importlib
import re
from pathlib import Path

import rsfast

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "drop-ins.md").read_text()


def runs(line):
    """Whether an import line does, or names what to install of a project whose own package it needs."""
    try:
        exec(line, {})
    except ImportError as error:
        return "pip install" in str(error)
    return True


def test_every_import_line_runs():
    lines = re.findall(r"`(from rsfast[^`]* import [^`]+)`", PAGE)
    assert len(lines) >= 6
    assert all(map(runs, lines))


def test_every_peer_is_in_the_table():
    modules = {path.stem for path in Path(rsfast.__file__).parent.joinpath("compat").glob("[!_]*.py")} - {"cohen"}
    assert modules <= {*re.findall(r"`from rsfast\.compat\.(\w+) import", PAGE)}
    assert importlib.import_module("rsfast.compat.cohen").Smooth is rsfast.Smooth
