"""Write rsfast's Triton kernels as a repository for Hugging Face's `kernels`: python hub/export.py FOLDER.

A kernel on the Hub imports the standard library, torch, Triton and itself, and not even NumPy. So this takes from the
package what the kernels need, definition by definition: it starts from what kernel/torch-ext/rsfast_kernels/__init__.py
imports and follows names. The text of what it takes is not changed, so there is no second copy of a kernel to look after.
Annotations are not followed: nothing evaluates them.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "rsfast"
KERNEL = HERE / "kernel"
ALLOWED = {*sys.stdlib_module_names, "torch", "triton"}
"""What a kernel may import. Triton comes with torch, where torch has kernels for a GPU."""


class Uses(ast.NodeVisitor):
    """The names that code evaluates, the attributes of names among them, and the names in annotations."""

    def __init__(self, node: ast.AST):
        self.names: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.annotations: set[str] = set()
        self.visit(node)

    def annotation(self, node: ast.AST | None) -> None:
        self.annotations |= {each.id for each in ast.walk(node or ast.Pass()) if isinstance(each, ast.Name)}

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self.attributes.add((node.value.id, node.attr))
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self.annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.annotation(node.returns)
        for each in (*node.decorator_list, node.args, *node.body):
            self.visit(each)


class Definition(NamedTuple):
    """A statement at the top of a module, with the comments before it and the text after it that documents it."""

    text: str
    uses: Uses


class Module:
    """A module of the package: what it defines, and what it imports under which name."""

    def __init__(self, path: Path):
        self.path = path
        self.definitions: dict[str, Definition] = {}
        self.relative: dict[str, tuple[Path, str]] = {}  # the module and its name for it; "" if it is the module itself
        self.absolute: dict[str, str] = {}  # the statement
        text = path.read_text()
        lines, end = text.splitlines(keepends=True), 0
        self.header = ""
        body = ast.parse(text).body
        for node, following in zip(body, [*body[1:], None], strict=True):
            start, end = end, node.end_lineno or 0
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                self.header = "".join(lines[:end])
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self._imports(node)
            elif names := list(_defined(node)):
                if isinstance(following, ast.Expr) and not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    end = following.end_lineno or 0
                definition = Definition("".join(lines[start:end]), Uses(node))
                if twice := self.definitions.keys() & names:
                    raise ValueError(
                        f"{path}, line {node.lineno}: a name must be defined once, got {', '.join(twice)} again"
                    )
                self.definitions |= dict.fromkeys(names, definition)
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                raise ValueError(
                    f"{path}, line {node.lineno}: a module must only import and define, got {ast.unparse(node)}"
                )

    def _imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = alias.asname or alias.name
            if not isinstance(node, ast.ImportFrom) or not node.level:
                statement = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
                self.absolute[name if alias.asname else name.partition(".")[0]] = ast.unparse(statement)
                continue
            folder = self.path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            inside = folder / f"{alias.name}.py"
            module = folder.with_suffix(".py") if folder.with_suffix(".py").is_file() else folder / "__init__.py"
            self.relative[name] = (inside, "") if inside.is_file() else (module, alias.name)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (each.id for each in ast.walk(target) if isinstance(each, ast.Name))


class Export:
    """What of each module is taken, by the names in it that are needed."""

    def __init__(self, package: Path):
        self.package = package
        self.modules: dict[Path, Module] = {}
        self.taken: dict[Path, dict[str, Definition]] = {}

    def module(self, path: Path) -> Module:
        if path not in self.modules:
            self.modules[path] = Module(path)
        return self.modules[path]

    def origin(self, path: Path, name: str) -> tuple[Path, str]:
        """Return the module that defines what a module calls `name`, and its name there."""
        while name and name in self.module(path).relative:
            path, name = self.module(path).relative[name]
        return path, name

    def take(self, path: Path, name: str) -> None:
        """Take a definition and all that it needs."""
        path, name = self.origin(path, name)
        module, taken = self.module(path), self.taken.setdefault(path, {})
        if name in taken:
            return
        if name not in module.definitions:
            raise ValueError(f"{path} must define {name!r}, which a kernel needs")
        taken[name] = definition = module.definitions[name]
        for each in definition.uses.names:
            if each in module.definitions or (each in module.relative and self.origin(path, each)[1]):
                self.take(path, each)
        for each, attribute in definition.uses.attributes:
            if each in module.relative and not self.origin(path, each)[1]:
                self.take(self.origin(path, each)[0], attribute)

    def text(self, path: Path) -> str:
        """Return a module of the kernel: the imports that it needs, and the definitions that were taken, in their order."""
        module, taken = self.module(path), self.taken[path]
        if not module.header:
            raise ValueError(
                f"{path} must import annotations from __future__: a kernel's annotations may name what it lacks"
            )
        evaluated = {each for definition in taken.values() for each in definition.uses.names}
        named = evaluated | {each for definition in taken.values() for each in definition.uses.annotations}
        absolute = {
            module.absolute[each] for each in named & module.absolute.keys() if _top(module.absolute[each]) in ALLOWED
        }
        for each in evaluated & module.absolute.keys():
            if _top(module.absolute[each]) not in ALLOWED:
                raise ValueError(f"{path} must do without {module.absolute[each]!r} in a kernel: {sorted(taken)}")
        relative = [self._import(path, each) for each in sorted(named & module.relative.keys())]
        imports = [*sorted(absolute), "", *sorted(filter(None, relative))]
        origin = path.relative_to(self.package.parent)
        header = f"# From {origin} by hub/export.py: change it there.\n\n{module.header}"
        chunks = dict.fromkeys(definition.text for definition in module.definitions.values() if definition in taken.values())
        return "\n".join([header, *imports, ""]).rstrip("\n") + "\n" + "".join(chunks)

    def _import(self, path: Path, name: str) -> str:
        """Return the import of a name from where it is defined, or "" where that was not taken: an annotation's."""
        origin, original = self.origin(path, name)
        if origin not in self.taken or (original and original not in self.taken[origin]):
            return ""
        *up, module = Path(os.path.relpath(origin.with_suffix(""), path.parent)).parts
        dots = "." + "." * up.count("..")
        steps = [step for step in up if step != ".."]
        source = dots + ".".join([*steps, module] if original else steps)
        imported = original or module
        return f"from {source} import {imported}" + (f" as {name}" if name != imported else "")


def _top(statement: str) -> str:
    """Return the package that an import statement imports."""
    return statement.split()[1].partition(".")[0]


def export(folder: Path, repo_id: str | None = None) -> None:
    """Write the repository into a new folder: sources for kernel-builder, and its variants under build/.

    Raises
    ------
    ValueError
        If there is something at `folder`, `repo_id` has another form, or the kernels need what a kernel on the Hub may not
        import.
    """
    if folder.exists():
        raise ValueError(f"folder must be the path of a new one, got {folder}, which exists")
    if repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id must be OWNER/NAME, got {repo_id!r}")
    shutil.copytree(KERNEL, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    if repo_id is not None:
        with (folder / "build.toml").open("a") as file:
            file.write(f"\n[general.hub]\nrepo-id = {json.dumps(repo_id)}\n")
    general = tomllib.loads((folder / "build.toml").read_text())["general"]
    name = general["name"].replace("-", "_")
    sources = folder / "torch-ext" / name
    _write_modules(sources)
    unique = _digest(sources)[1]
    for backend in general["backends"]:
        identifier = f"_{name}_{backend}_{unique}"
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(sources, variant)
        (variant / "_ops.py").write_text(_OPS.format(identifier=identifier))
        (variant / name).mkdir()
        (variant / name / "__init__.py").write_text(_COMPATIBLE.format(identifier=identifier))
        metadata = {
            "name": general["name"],
            "id": identifier,
            "version": general["version"],
            "license": general["license"],
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": _digest(variant)[0]},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def _write_modules(sources: Path) -> None:
    """Write what the kernel's __init__.py imports of the package, and what that needs, beside it."""
    found = Export(PACKAGE)
    for node in ast.parse((sources / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module != "_ops":
            for alias in node.names:
                found.take(PACKAGE.joinpath(*(node.module or "").split(".")).with_suffix(".py"), alias.name)
    for path in found.taken:
        target = sources / path.relative_to(PACKAGE)
        target.parent.mkdir(exist_ok=True)
        (target.parent / "__init__.py").touch()
        target.write_text(found.text(path))


def _digest(folder: Path) -> tuple[dict[str, str], str]:
    """Return the SHA-256 of each file, in base64, and 7 digits that name them all."""
    files = {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(folder.rglob("*.py"))
    }
    return files, hashlib.sha256(json.dumps(files).encode()).hexdigest()[:7]


_OPS = '''"""The namespace of this build's operators, which no other build has."""

import torch

ops = getattr(torch.ops, "{identifier}")


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the name of an operator with its namespace."""
    return f"{identifier}::{{op_name}}"
'''

_COMPATIBLE = '''"""The kernel by its own name, for old versions of `kernels` and for tests that import it."""

import importlib.util
import sys
from pathlib import Path

if "{identifier}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{identifier}", Path(__file__).parent.parent / "__init__.py")
    sys.modules["{identifier}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{identifier}"])
globals().update(vars(sys.modules["{identifier}"]))
'''


def main() -> None:
    """Take the arguments from the command line."""
    parser = argparse.ArgumentParser(description="Write the Triton kernels as a repository for Hugging Face's kernels.")
    parser.add_argument("folder", type=Path, help="where to write it; there must be nothing yet")
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="where kernel-builder is to upload it")
    arguments = parser.parse_args()
    try:
        export(arguments.folder, arguments.repo_id)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
