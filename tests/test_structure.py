"""What does without torch, what may not enter the sources, and their sizes. What may import what is in pyproject.toml."""

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rsfast.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rsfast"

NO_TORCH = (
    "bounds",
    "sequences",
    "_check",
    "_files",
    "_progress",
    "noise",
    "noise.provenance",
    "heads",
    "heads.bins",
    "stats",
    "bounds",
    "sequences",
    "stats.prediction",
    "stats.proof",
    "stats.registry",
    "engine.options",
    "engine.plan",
    "engine.allocator",
    "results",
    "runs.results",
    "runs.summary",
    "runs.report",
    "runs.plot",
    "runs.writer",
    "loading.npz",
)


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def test_modules_without_torch():
    """Nor do they import the kernels, matplotlib or SciPy, which are imported where they are first used."""
    code = """
        import importlib, sys
        for module in sys.argv[1:]:
            importlib.import_module(f"rsfast.{module}")
            loaded = [name for name in ("torch", "rsfast.ops._cpu", "matplotlib", "scipy") if name in sys.modules]
            assert not loaded, (module, loaded)
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), *NO_TORCH], check=True, cwd=ROOT)


LOADED_BY = """
    import sys
    from rsfast.cli import main
    forbidden = sys.argv[1].split()
    for arguments in sys.argv[2:]:
        try:
            main(arguments.split())
        except SystemExit as ended:
            assert not ended.code, (arguments, ended.code)
        loaded = [name for name in forbidden if name in sys.modules]
        assert not loaded, (arguments, loaded)
    """


def assert_not_loaded(forbidden, *commands, folder):
    """Run the commands in one new process, none of which may load a module that is `forbidden`."""
    command = [sys.executable, "-c", textwrap.dedent(LOADED_BY), forbidden, *commands]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two images, with counts, as runs.results reads it."""
    source = ROOT / "tests" / "frozen" / "runs" / "votes"
    shutil.copytree(source, tmp_path / "run")
    return tmp_path / "run"


def test_help_without_torch(tmp_path):
    """Of every command, and of all: it waits for nothing that computes."""
    names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    assert {"certify", "doctor", "report"} <= set(names)
    helps = ["--version", "--help", *(f"{name} --help" for name in names)]
    assert_not_loaded("torch matplotlib scipy safetensors", *helps, folder=tmp_path)


def test_analyze_without_torch(run):
    """What only reads does not wait for libraries that compute."""
    (run.parent / "run.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0.1\n")
    forbidden = "torch matplotlib scipy safetensors"
    commands = ["analyze run", "analyze run.tsv", "doctor --advisories"]
    assert_not_loaded(forbidden, *commands, folder=run.parent)


def test_plot_and_tables_without_torch(run):
    """A page of HTML takes torch, if it can show the run's pictures: these are read as `certify` reads them."""
    for library in ("matplotlib", "jinja2"):
        pytest.importorskip(library, reason="pip install '.[report]'")
    commands = ["plot run --out curve.svg", "report run --out run.md --format markdown"]
    assert_not_loaded("torch scipy safetensors", *commands, folder=run.parent)
    assert all((run.parent / name).stat().st_size > 0 for name in ("curve.svg", "run.md"))


def test_bounds_and_tests_without_scipy_stats():
    """It takes half a second to import. scipy.special holds all that certificates and predictions take."""
    code = """
        import sys, numpy as np, rsfast
        from rsfast.stats.prediction import prediction
        assert 0.9 < rsfast.bounds.clopper_pearson_lower(1000, 1000, 0.001) < 1
        assert prediction(np.array([1000, 0]), 0.001) == 0
        assert "scipy.special" in sys.modules
        loaded = [name for name in ("torch", "scipy.stats") if name in sys.modules]
        assert not loaded, loaded
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


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
ALLOWED = {  # the loop that is timed, and shuffling
    ("rsfast/loop2019.py", "torch.rand"),
    ("rsfast/demo.py", "torch.rand"),
    ("rsfast/demo.py", "np.random"),
}


def offences(name, text):
    for number, line in enumerate(text.splitlines(), 1):
        for word in FORBIDDEN:
            if word in line and (name, word) not in ALLOWED:
                yield f"{name}:{number}: {word}"


def test_forbidden_words_are_found():
    assert list(offences("setup.py", "FLAGS = []\nFLAGS += ['-O3', '-ffast-math']")) == ["setup.py:2: fast-math"]
    assert list(offences("rsfast/ops/triton_noise.py", "z = tl.randn(seed, i)")) == ["rsfast/ops/triton_noise.py:1: tl.rand"]
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


def test_python_appears_in_the_binding_and_the_modules_alone():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.name not in ("binding.h", "module.cpp"):
            assert not re.search("Python|binding[.]h", path.read_text()), path


# Sizes: at most 500 lines a module and, but for its docstring, 60 a function. What is longer stands here with a reason.
LONGER: dict[str, str] = {}


def too_long(name, text):
    """The module, if it is, and its functions that are."""
    if text.count("\n") > 500:
        yield name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[ast.get_docstring(node) is not None :] or node.body
            if first[0].lineno - node.body[0].lineno + 60 < node.end_lineno - node.lineno + 1:
                yield f"{name}::{node.name}"


def test_what_is_too_long_is_found():
    body = "    x = 1\n"
    assert list(too_long("a.py", f"def f():\n{body * 60}")) == ["a.py::f"]
    assert list(too_long("a.py", f"def f():\n{body * 59}")) == []
    assert list(too_long("a.py", f'def f():\n    """One\n\n    and two."""\n{body * 59}')) == []
    assert list(too_long("a.py", "x = 1\n" * 501)) == ["a.py"]


def test_no_module_and_no_function_is_long():
    """But for those of LONGER; whoever makes one of these shorter takes it out of the list."""
    files = [*sources(), *(ROOT / "benchmarks").glob("*.py"), ROOT / "setup.py"]
    found = {long for path in files for long in too_long(str(path.relative_to(ROOT)), path.read_text())}
    assert found == LONGER.keys()


def private_names_set(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
            yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_private_names_set_by_tests():
    """What a test must change is to be an argument: their number may not grow, and is lowered here when it falls."""
    assert list(private_names_set('patch.setattr(m, "_a", 1); patch.setattr(m, "b", 1)')) == ["_a"]
    found = [(path.name, name) for path in (ROOT / "tests").glob("*.py") for name in private_names_set(path.read_text())]
    assert len(found) <= 6, found
