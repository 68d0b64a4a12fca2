"""docs/install.md against pyproject.toml, setup.py and what the package imports: none of them drifts from the others."""

import ast
import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "install.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ELSEWHERE = {"docs", "dev"}  # extras for those who work on rsfast, whose packages the page leaves to pyproject.toml
PACKAGE_OF = {"PIL": "pillow", "art": "adversarial-robustness-toolbox", "sklearn": "scikit-learn", "cycler": "matplotlib"}


def table(heading):
    """The cells of the first table under a heading."""
    _, found, text = PAGE.partition(f"\n{heading}\n")
    assert found
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def codes(cell):
    return re.findall(r"`([^`]+)`", cell)


def imported():
    """The top-level modules of other libraries that the package imports, at the top of a module or where it is used."""
    names = set()
    for path in (ROOT / "rsfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_extra":
                names |= {each.value for each in node.args[:1] if isinstance(each, ast.Constant)}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"rsfast"}


def test_dependencies():
    assert [codes(cells[0]) for cells in table("## Dependencies")] == [[each] for each in PROJECT["dependencies"]]
    assert all(len(cells) == 5 and all(cells) for cells in table("## Dependencies"))


def test_extras():
    rows = {codes(name)[0]: codes(packages) for name, packages, *_ in table("### Extras")}
    wanted = PROJECT["optional-dependencies"]
    assert list(rows) == list(wanted)
    assert {name: packages for name, packages in rows.items() if name not in ELSEWHERE} == {
        name: packages for name, packages in wanted.items() if name not in ELSEWHERE
    }


def test_what_is_imported_is_installed_or_named():
    """By `rsfast`, by an extra for users, or by nobody: Triton comes with PyTorch, and pandas is the user's choice."""
    extras = (each for name, extra in PROJECT["optional-dependencies"].items() if name not in ELSEWHERE for each in extra)
    installed = {re.match(r"[\w-]+", each)[0] for each in (*PROJECT["dependencies"], *extras)}
    found = {PACKAGE_OF.get(name, name) for name in imported()}
    assert {"torch", "matplotlib", "timm", "pillow"} <= found
    assert found - installed == {"triton", "pandas"}


def test_variables_of_the_build():
    assert set(re.findall(r"RSFAST_CUDA\w*", PAGE)) == set(re.findall(r"RSFAST_CUDA\w*", (ROOT / "setup.py").read_text()))
