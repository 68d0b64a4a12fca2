"""The workflows of .github: what they run exists, they agree with pyproject.toml, and they ask for no more than they need.

GitHub itself cannot be tried here.
"""

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from rsfast._versions import __version__

yaml = pytest.importorskip("yaml", reason='pip install ".[dev]"')

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / ".github").glob("*.sh"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no tomllib
WRITES = {  # all that any job may write
    ("docs.yml", "deploy"): {"pages", "id-token"},
    ("release.yml", "pypi"): {"attestations", "id-token"},
    ("release.yml", "github"): {"contents"},
}
notes = runpy.run_path(str(ROOT / ".github" / "release_notes.py"))["notes"]


def jobs():
    for path in FILES:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            yield path.name, name, job


JOBS = {f"{file}-{name}": (file, name, job) for file, name, job in jobs()}


def steps(key):
    return [step[key] for _, _, job in jobs() for step in job.get("steps", []) if key in step]


def test_the_workflows_are_there():
    assert {path.name for path in FILES} == {"benchmarks.yml", "ci.yml", "docs.yml", "release.yml", "wheels.yml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_workflow_reads_only_and_has_a_concurrency_group(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]


@pytest.mark.parametrize(("file", "name", "job"), JOBS.values(), ids=JOBS)
def test_every_job_has_a_time_limit_and_few_permissions(file, name, job):
    assert "uses" in job or 0 < job["timeout-minutes"] <= 120
    assert {scope for scope, level in job.get("permissions", {}).items() if level == "write"} == WRITES.get(
        (file, name), set()
    )


def test_actions_are_pinned_to_commits():
    """By hash, with the release in a comment, the same for all uses of an action."""
    lines = [line.split("uses: ")[1] for path in FILES for line in path.read_text().splitlines() if "uses: " in line]
    outside = {line for line in lines if not line.startswith("./")}
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line) for line in outside), outside
    assert len({line.split("@")[0] for line in outside}) == len(outside)


def test_no_checkout_leaves_a_token_behind():
    found = [step for _, _, job in jobs() for step in job.get("steps", []) if "actions/checkout@" in step.get("uses", "")]
    assert found
    assert all(step["with"]["persist-credentials"] is False for step in found)


def absent(command):
    """Yield what a command names that is not here: a target of make, a file of this repository, a module of benchmarks."""
    rules = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    words = shlex.split(command, comments=True)
    for before, word in zip(["", *words], words, strict=False):
        if " " in word:  # what sh -c runs
            yield from absent(word)
        if before == "make" and not re.search(rf"^{re.escape(word)}:", rules, re.MULTILINE):
            yield f"make {word}"
        if re.match(r"(\./)?(\.github|tests|benchmarks|csrc)/", word) and not (ROOT / word).exists():
            yield word
        if before == "-m" and word.startswith("benchmarks.") and not (ROOT / (word.replace(".", "/") + ".py")).exists():
            yield word


def test_what_is_absent_is_found():
    assert list(absent("make nothing && make test")) == ["make nothing"]
    assert list(absent("sh .github/nothing.sh; python -m pytest tests/nothing.py")) == [
        ".github/nothing.sh;",
        "tests/nothing.py",
    ]
    assert list(absent("python -m benchmarks.nothing")) == ["benchmarks.nothing"]
    assert list(absent('sh -c "true && .github/nothing.sh"')) == [".github/nothing.sh"]


def test_every_target_and_script_exists():
    commands = steps("run")
    assert {"make check", "make test-all", "make docs", ".github/oldest.sh"} <= set(commands)
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in SCRIPTS)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    [tried] = re.findall(r'^test-command = "sh {project}/(.+)"$', PYPROJECT, re.MULTILINE)  # by cibuildwheel
    assert [word for command in [*commands, *lines, tried] for word in absent(command)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(path):
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_pythons_agree_with_pyproject():
    """The suite runs on the oldest and on the newest Python that pyproject.toml names, and oldest.sh on the oldest."""
    matrix = JOBS["ci.yml-test"][2]["strategy"]["matrix"]["python"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    [floor] = re.findall(r'^requires-python = ">=(3\.\d+)"', PYPROJECT, re.MULTILINE)
    assert named[0] == matrix[0] == floor
    assert named[-1] == matrix[-1]
    assert set(matrix) <= set(named)
    [oldest] = [v for step in JOBS["ci.yml-oldest"][2]["steps"] if (v := step.get("with", {}).get("python-version"))]
    assert oldest == floor


def test_workflows_satisfy_the_schema():
    """The schema that GitHub's workflows are checked with in editors; the package holds it, so no network is needed."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    for schema, files in (("github-workflows", FILES), ("dependabot", [ROOT / ".github" / "dependabot.yml"])):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


CHANGELOG = "# Changelog\n\n## 0.2.0 (2026-12-01)\n\n### Bounds\n\n- One.\n\n## 0.1.0 (2026-11-01)\n\n- Older.\n"


def test_notes_of_a_release():
    assert notes("v0.2.0", '__version__ = "0.2.0"\n', CHANGELOG) == "### Bounds\n\n- One."


@pytest.mark.parametrize(
    ("tag", "version", "heading", "message"),
    [
        (
            "v0.2.1",
            "0.2.0",
            "0.2.0 (2026-12-01)",
            "must be 'v0.2.0', v and the version in rsfast/_versions.py, got 'v0.2.1'",
        ),
        ("0.2.0", "0.2.0", "0.2.0 (2026-12-01)", "got '0.2.0'"),
        ("v0.2.0", "0.2.0", "0.2.0 (unreleased)", "got '## 0.2.0 (unreleased)'"),
        ("v0.3.0", "0.3.0", "0.2.0 (2026-12-01)", "must be '## 0.3.0 (YYYY-MM-DD)'"),
    ],
)
def test_disagreement_stops_a_release(tag, version, heading, message):
    changelog = CHANGELOG.replace("0.2.0 (2026-12-01)", heading)
    with pytest.raises(ValueError, match=re.escape(message)):
        notes(tag, f'__version__ = "{version}"\n', changelog)


def test_files_without_a_version():
    with pytest.raises(ValueError, match=r"rsfast/_versions\.py must have a line"):
        notes("v0.2.0", "", CHANGELOG)
    with pytest.raises(ValueError, match=r"first heading must be '## 0\.2\.0 \(YYYY-MM-DD\)', got none"):
        notes("v0.2.0", '__version__ = "0.2.0"\n', "# Changelog\n")


def test_notes_of_this_changelog():
    """Once its first heading has a date, it can be released."""
    version = Version(__version__).base_version
    changelog = (ROOT / "CHANGELOG.md").read_text().replace("(unreleased)", "(2026-12-01)", 1)
    assert len(notes(f"v{version}", f'__version__ = "{version}"\n', changelog)) > 100
