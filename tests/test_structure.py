"""What may import what, and what may not enter the sources."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rsfast"

# The flow: no module imports one to its right. The Tally stands left of ops, whose backends write into one, and the
# confidence bounds, which know no other module, could stand anywhere. `__init__` is what users import, not part of the flow.
ORDER = [
    "arguments",
    "files",
    "hints",
    "noise",
    "provenance",
    "lipschitz",
    "heads",
    "bounds",
    "sequences",
    "_cpu",
    "_cuda",
    "tally",
    "ops",
    "nn",
    "evidence",
    "rules",
    "certificate",
    "looks",
    "inputs",
    "meter",
    "ranks",
    "modes",
    "forward",
    "probe",
    "batch_size",
    "schedule",
    "batches",
    "sampler",
    "allocator",
    "api",
    "sums",
    "run_folder",
    "run_writer",
    "tables",
    "results",
    "checkpoint",
    "events",
    "replay",
    "recertify",
    "merge",
    "plot",
    "doctor",
    "demo",
    "npz",
    "weights",
    "loading",
    "run",
    "cli",
    "__main__",
]
NO_TORCH = (
    "allocator",
    "arguments",
    "files",
    "npz",
    "noise",
    "provenance",
    "heads",
    "bounds",
    "sequences",
    "evidence",
    "rules",
    "certificate",
    "looks",
    "sums",
    "run_folder",
    "run_writer",
    "tables",
    "results",
    "plot",
)


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """rsfast/ops/cpu.py is of "ops", rsfast/api.py is "api"."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def typing_only(tree):
    """The nodes below `if TYPE_CHECKING:`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.body:
                yield from ast.walk(statement)


def imported(source, place):
    """The modules of rsfast that a source file, at `place` (its package, as a tuple), imports when it runs.

    "" is rsfast itself: its public names, or its version.
    """
    tree = ast.parse(source)
    skipped = set(typing_only(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(place[: len(place) + 1 - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] if base == ["rsfast"] else base for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "rsfast":
                yield "" if len(name) == 1 or name[1].startswith("__") else name[1]


def imports_of(path):
    place = ("rsfast", *path.relative_to(PACKAGE).parts[:-1])
    return set(imported(path.read_text(), place))


def test_the_parser():
    """Every way to write an import, from a module of rsfast and from one of rsfast.ops."""
    source = textwrap.dedent("""
        from __future__ import annotations
        import numpy, rsfast.noise
        from . import one
        from .two import x
        from rsfast import three, __version__
        from rsfast.four.five import y
        if TYPE_CHECKING:
            from .never import z
        def function():
            from .late import w
        """)
    assert set(imported(source, ("rsfast",))) == {"noise", "one", "two", "three", "", "four", "late"}
    deeper = "from . import one\nfrom .two import x\nfrom .. import three\nfrom ..four import y\nimport rsfast"
    assert set(imported(deeper, ("rsfast", "ops"))) == {"ops", "three", "four", ""}


def test_every_module_has_a_place():
    assert {module_name(path) for path in sources()} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", [p for p in sources() if module_name(p) != "__init__"], ids=lambda p: p.stem)
def test_no_module_imports_one_to_its_right(path):
    name = module_name(path)
    allowed = {*ORDER[: ORDER.index(name)], name}
    if name in ("doctor", "demo", "cli", "__main__"):
        allowed.add("")  # they report rsfast's version
    assert imports_of(path) <= allowed


def test_flow_is_not_trivial():
    """The parser sees the imports that are there."""
    assert {"ops", "tally", "noise"} <= imports_of(PACKAGE / "batches.py")
    assert {"sampler", "certificate", "bounds", "ops", "tally"} <= imports_of(PACKAGE / "api.py")
    assert imports_of(PACKAGE / "ops" / "__init__.py") == {"hints", "noise", "tally", "ops"}
    assert imports_of(PACKAGE / "ops" / "cpu.py") == {"ops", "_cpu"}
    assert imports_of(PACKAGE / "bounds.py") == set()


@pytest.mark.parametrize("module", NO_TORCH)
def test_modules_without_torch(module):
    """Nor do they import the kernels or matplotlib, which is imported where a figure is drawn."""
    code = f"import sys, rsfast.{module}; print([n for n in ('torch', 'rsfast._cpu', 'matplotlib') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_public_names():
    """All that rsfast names is there; torch comes with the first that needs it."""
    code = """
        import sys, rsfast
        assert "torch" not in sys.modules
        rsfast.certify
        assert "torch" in sys.modules
        for name in rsfast.__all__:
            getattr(rsfast, name)
        assert set(rsfast.__all__) <= set(dir(rsfast))
        try:
            rsfast.certifi
        except AttributeError as error:
            assert "certifi" in str(error)
        else:
            raise AssertionError
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


# No other arithmetic and no other generator. What a line may not hold, and where.
FORBIDDEN = (
    "fast-math",
    "fast_math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
    "-ffp-contract=on",
    "FP_CONTRACT ON",
    "optimize(",
    "tl.rand",
    "curand",
    "torch.rand",
    "torch.normal",
    ".normal_(",
    ".uniform_(",
    "np.random",
    "std::rand",
    "std::mt19937",
    "std::random_device",
    "<random>",
    "srand(",
)
ALLOWED = {("rsfast/demo.py", "torch.rand"), ("rsfast/demo.py", "np.random")}  # the loop it is compared with, shuffling


def offences(name, text):
    for number, line in enumerate(text.splitlines(), 1):
        for word in FORBIDDEN:
            if word in line and (name, word) not in ALLOWED:
                yield f"{name}:{number}: {word}"


def test_forbidden_words_are_found():
    assert list(offences("setup.py", "FLAGS = []\nFLAGS += ['-O3', '-ffast-math']")) == ["setup.py:2: fast-math"]
    assert list(offences("rsfast/ops/triton_kernels.py", "z = tl.randn(seed, i)")) == [
        "rsfast/ops/triton_kernels.py:1: tl.rand"
    ]
    assert list(offences("rsfast/api.py", "x + torch.randn_like(x)")) == ["rsfast/api.py:1: torch.rand"]


def test_no_forbidden_word():
    files = [ROOT / "setup.py", *sources(), *PACKAGE.rglob("*.pyi")]
    files += [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert {"setup.py", "noise.h", "module.cpp", "accumulate.cpp", "sampler.py", "reference.py"} <= {p.name for p in files}
    found = [line for path in files for line in offences(str(path.relative_to(ROOT)), path.read_text())]
    assert found == []


def test_contraction_is_switched_off():
    """The compiler's default would be to contract a * b + c."""
    assert "-ffp-contract=off" in (ROOT / "setup.py").read_text()


def test_kernels_use_no_mathematics_library():
    """Every function of csrc is made of exactly rounded operations."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "#include <cmath>" not in text, path
            assert "#include <math.h>" not in text, path


def test_python_appears_in_module_cpp_alone():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.name != "module.cpp":
            assert "pybind11" not in path.read_text(), path
