"""What people and programs look for in a repository: one version everywhere, a citation, forms for issues, advisories."""

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from rsfast._versions import __version__
from rsfast.runs.advisories import Advisory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_there_is_one_version():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rsfast._versions.__version__"}
    assert str(Version(__version__)) == __version__  # in the form in which files are named
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited == __version__
    newest, when = re.findall(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert newest == Version(__version__).base_version
    assert when == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", when)


def test_the_citation_agrees_with_the_licence():
    text = (ROOT / "CITATION.cff").read_text()
    (author,) = re.findall(r"^  - name: (.+)$", text, re.M)
    assert f"Copyright (c) 2026 {author}\n" in (ROOT / "LICENSE").read_text()
    assert text.startswith("cff-version: 1.2.0\n")
    assert "\nlicense: MIT\n" in text


def test_the_advisory_that_the_page_shows_is_valid():
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "releasing.md").read_text(), re.S)
    assert Advisory.from_dict(json.loads(shown)).id == "RSFAST-2030-001"


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms(form):
    """GitHub refuses a form with an id twice, and one without these; all ask for what the self-test says."""
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    read = yaml.safe_load(form.read_text())
    assert read.keys() == {"name", "description", "labels", "body"}
    fields = [each for each in read["body"] if each["type"] != "markdown"]
    ids = [each["id"] for each in fields]
    assert len(set(ids)) == len(ids)
    assert "doctor" in ids
    assert all(each["attributes"]["label"] for each in fields)


def test_forms_name_the_private_way():
    assert [form.stem for form in FORMS] == ["bug", "feature", "wrong_certificate"]
    for name in ("bug", "wrong_certificate"):
        assert "SECURITY.md" in (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text()
