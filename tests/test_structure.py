"""What does without torch, and what may not enter the sources. What may import what is in pyproject.toml."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rsfast"

NO_TORCH = (
    "_check",
    "_files",
    "noise",
    "noise.provenance",
    "heads",
    "heads.bins",
    "stats",
    "bounds",
    "sequences",
    "stats.proof",
    "stats.registry",
    "engine.options",
    "engine.plan",
    "engine.allocator",
    "runs.results",
    "runs.plot",
    "runs.writer",
    "cli.npz",
)


def sources():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", NO_TORCH)
def test_modules_without_torch(module):
    """Nor do they import the kernels or matplotlib, which is imported where a figure is drawn."""
    code = f"import sys, rsfast.{module}; print([n for n in ('torch', 'rsfast.ops._cpu', 'matplotlib') if n in sys.modules])"
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
