"""What RSFAST_CUDA chooses, that rsfast.ops._cuda can be imported anywhere, and which files a wheel holds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from benchmarks.disassembly import extension

ROOT = Path(__file__).resolve().parent.parent
NO_NVCC = {"PATH": str(Path(sys.executable).parent)}


def extensions(before="", **environment):
    """Return what a build would make, as setup.py describes itself, or the message with which it stops."""
    code = "import setuptools; setuptools.setup = lambda **k: print(*(e.name for e in k['ext_modules'])); import runpy\n"
    code += f"{before}\nrunpy.run_path('setup.py')"
    kept = {name: value for name, value in os.environ.items() if name not in ("RSFAST_CUDA", "CUDA_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, cwd=ROOT
    )
    return done.stderr.strip() if done.returncode else done.stdout.split()


@pytest.fixture(autouse=True)
def _no_nvcc_beside_python():
    if (Path(sys.executable).parent / "nvcc").exists():
        pytest.skip("nvcc lies beside Python")


def test_without_nvcc_there_is_no_cuda_extension():
    assert extensions(**NO_NVCC) == ["rsfast.ops._cpu"]
    assert extensions(**NO_NVCC, RSFAST_CUDA="auto") == ["rsfast.ops._cpu"]


def test_insisting_without_nvcc_is_an_error():
    assert extensions(**NO_NVCC, RSFAST_CUDA="1") == (
        "RSFAST_CUDA=1 needs nvcc in CUDA_HOME/bin or on the PATH: install the CUDA toolkit, or set RSFAST_CUDA=0"
    )


def test_another_choice_is_an_error():
    assert extensions(RSFAST_CUDA="yes") == "RSFAST_CUDA must be 0, 1 or auto, got 'yes'"


def test_setuptools_that_is_too_old_is_an_error():
    """Without this, one that comes with Python 3.11 says that `project.license` has two definitions, and no more."""
    assert extensions("setuptools.__version__ = '65.5.0'", RSFAST_CUDA="0") == (
        "rsfast is built with setuptools 77 or newer, got 65.5.0; upgrade it, or let pip fetch its own for the build"
    )
    assert extensions("setuptools.__version__ = '77.0.0.post1'", RSFAST_CUDA="0") == ["rsfast.ops._cpu"]


def test_cuda_home_and_refusal(tmp_path):
    """An nvcc in CUDA_HOME is taken before one on the PATH; RSFAST_CUDA=0 does not look."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.touch()
    nvcc.chmod(0o755)
    home = {"PATH": f"{NO_NVCC['PATH']}:/bin:/usr/bin", "CUDA_HOME": str(tmp_path)}
    assert extensions(**home) == ["rsfast.ops._cpu", "rsfast.ops._cuda"]
    assert extensions(**home, RSFAST_CUDA="1") == ["rsfast.ops._cpu", "rsfast.ops._cuda"]
    assert extensions(**home, RSFAST_CUDA="0") == ["rsfast.ops._cpu"]
    on_the_path = {"PATH": f"{tmp_path / 'bin'}:{home['PATH']}", "CUDA_HOME": "/nowhere"}
    assert extensions(**on_the_path) == ["rsfast.ops._cpu", "rsfast.ops._cuda"]


@pytest.mark.parametrize(
    ("known", "chosen", "machine", "ptx"),
    [
        ((75, 80, 86, 90, 110, 120), "", (75, 80, 90, 120), (80, 120)),
        ((75, 80, 90), "", (75, 80, 90), (80, 90)),
        ((75, 80, 86, 90), "86", (86,), (86,)),
    ],
)
def test_machine_code_and_ptx(known, chosen, machine, ptx, tmp_path):
    """Machine code of every target that nvcc knows, or that is chosen; PTX of an old and of the newest, for GPUs between."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    codes = "".join(f"sm_{target}\\n" for target in known)
    nvcc.write_text(f"#!/bin/sh\ncase $1 in --list-gpu-code) printf '{codes}';; esac\n")
    nvcc.chmod(0o755)
    command = (
        f"type('', (), {{'include_dirs': [], 'get_ext_fullpath': lambda self, name: {str(tmp_path / '_cuda.so')!r}}})()"
    )
    code = "import setuptools; setuptools.setup = lambda **k: k['cmdclass']['build_ext'].build_cuda("
    code += f"{command}, k['ext_modules'][1]); import runpy; runpy.run_path('setup.py')"
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "RSFAST_CUDA": "1", "RSFAST_CUDA_TARGETS": chosen}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    flags = [word.rpartition("code=")[2] for word in found.stdout.split() if word.startswith("-gencode")]
    assert flags == [*(f"sm_{target}" for target in machine), *(f"compute_{target}" for target in ptx)]


@pytest.mark.skipif(extension() is None, reason="rsfast.ops._cuda is not built")
def test_the_cuda_extension_needs_no_driver_and_no_torch():
    code = "from rsfast.ops import _cuda; print(_cuda.devices())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) == torch.cuda.device_count()
    needed = subprocess.run(["ldd", str(extension())], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    assert not any(name in needed for name in ("libcuda", "libcudart", "torch", "libnv"))


@pytest.mark.skipif(extension() is None or torch.cuda.is_available(), reason="_cuda is not built, or there is a GPU")
def test_without_a_driver_the_reason_is_returned():
    """As with a driver that is older than the toolkit: backend="auto" then goes on to the next backend."""
    from rsfast.ops import _cuda

    for _ in range(2):
        assert "CUDA error" in _cuda.unavailable_reason(0)


def built(kind, folder):
    """Build a wheel of the package, or an editable one, in a copy without setup.py, so that nothing is compiled."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    compiled = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "rsfast", folder / "rsfast", ignore=compiled)
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('.'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return ZipFile(folder / done.stdout.split()[-1])


def test_an_editable_install_is_a_path(tmp_path):
    """Type checkers follow a path to the package and its stubs, and not the import hook that setuptools may write."""
    with built("editable", tmp_path) as wheel:
        files = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert [Path(name).suffix for name in files] == [".pth"]
        assert Path(wheel.read(files[0]).decode().strip()).samefile(tmp_path)


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    """Each module and each file that modules read: stubs, templates, advisories."""
    with built("wheel", tmp_path) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    assert held == {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "rsfast").rglob("*") if path.is_file()}
    assert {"rsfast/py.typed", "rsfast/ops/_cpu.pyi", "rsfast/runs/advisories.json"} <= held
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


@pytest.mark.parametrize(("script", "taken"), [("exit 0", True), ("exit 1", False), (None, False)])
def test_flags_that_only_gcc_has(script, taken, tmp_path):
    """Clang refuses them as unknown. Where there is no compiler, to compile is what says so."""
    compiler = tmp_path / "c++"
    if script:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    command = f"type('', (), {{'compiler': type('', (), {{'compiler_so_cxx': [{str(compiler)!r}]}})}})"
    code = "import setuptools; setuptools.setup = lambda **k: print(k['cmdclass']['build_ext'].takes("
    code += f"{command}, ['-fx'])); import runpy; runpy.run_path('setup.py')"
    environment = {**os.environ, "RSFAST_CUDA": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout == f"{taken}\n"
