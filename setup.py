"""Builds rsfast.ops._cpu, its kernels once for each instruction set, and rsfast.ops._cuda; all else is in pyproject.toml.

RSFAST_CUDA=0 leaves rsfast.ops._cuda out, 1 insists on it, auto (the default) builds it where nvcc is found: in
CUDA_HOME, or on the PATH. RSFAST_CUDA_TARGETS=80,90 builds it for only these compute capabilities.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

if int(__version__.split(".")[0]) < 77:  # they do not know pyproject.toml's form of the licence
    sys.exit(
        f"rsfast is built with setuptools 77 or newer, got {__version__}; upgrade it, or let pip fetch its own for the build"
    )

# -fno-math-errno and -fno-trapping-math let loops vectorise and change no value; -ffp-contract=off keeps every rounding;
# -Wno-uninitialized is for GCC 12, which warns about its own AVX-512 header.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS += ["-fvisibility=hidden", "-g0", "-Wall", "-Wno-uninitialized"]
# They interleave independent chains (10 to 15% in perturb). Clang does so by itself, and refuses the second.
GCC_FLAGS = ["-fschedule-insns", "-fsched-pressure"]
X86_64 = sysconfig.get_platform().endswith(("x86_64", "amd64"))  # what is built for, which need not be this machine
INSTRUCTION_SETS = {"baseline": []}
if X86_64:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"]
CPU_KERNELS = ["csrc/cpu/perturb.cpp", "csrc/cpu/accumulate.cpp"]
CUDA_TARGETS = (75, 80, 90, 100, 120)  # sm_86 and sm_89 run the machine code for sm_80
# Of these also PTX, which a driver compiles for any later GPU: of the oldest that has every instruction that is used, for
# GPUs between the targets such as sm_110, and of the newest.
PTX_TARGETS = (80, 120)
# -fmad=false leaves no contraction to the compiler; -ftz=false and -prec-sqrt=true, the defaults, keep subnormals and round
# square roots as IEEE does; 1675 is about GCC's unroll pragma.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-ftz=false", "-prec-sqrt=true", "-diag-suppress=1675"]
NVCC_FLAGS += ["--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden,-g0,-Wall", "-shared", "-cudart=static"]
HEADERS = sorted(map(str, Path("csrc").rglob("*.h")))
VERSION_FILE = "rsfast/_versions.py"
VERSION = re.search(r'^__version__ = (".+")$', Path(VERSION_FILE).read_text(), re.MULTILINE)[1]  # a string of C++, too


def find_nvcc():
    """Return the path of nvcc, or None if rsfast.ops._cuda is not to be built."""
    choice = os.environ.get("RSFAST_CUDA", "auto")
    if choice not in ("0", "1", "auto"):
        sys.exit(f"RSFAST_CUDA must be 0, 1 or auto, got {choice!r}")
    if choice == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = (home and shutil.which("nvcc", path=str(Path(home) / "bin"))) or shutil.which("nvcc")
    if nvcc is None and choice == "1":
        sys.exit("RSFAST_CUDA=1 needs nvcc in CUDA_HOME/bin or on the PATH: install the CUDA toolkit, or set RSFAST_CUDA=0")
    return nvcc


def cuda_targets():
    """Return the compute capabilities, times ten, that rsfast.ops._cuda is built for: those that this nvcc knows."""
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    chosen = os.environ.get("RSFAST_CUDA_TARGETS")
    if not chosen:
        return [target for target in CUDA_TARGETS if f"sm_{target}" in known]
    if unknown := [target for target in chosen.split(",") if f"sm_{target}" not in known]:
        sys.exit(
            f"RSFAST_CUDA_TARGETS must be targets of nvcc ({NVCC}), such as 80,90, got {chosen!r}: "
            f"it does not know {' and '.join(map(repr, unknown))}"
        )
    return sorted(map(int, chosen.split(",")))


class BuildKernels(build_ext):
    """Compile the CPU's kernels once for each instruction set, and let nvcc build all of the CUDA extension."""

    def build_extension(self, ext):
        if sys.platform == "win32":
            raise CompileError("rsfast must be built by GCC or Clang on Linux or macOS, got Windows")
        if ext.name.endswith("_cuda"):
            self.build_cuda(ext)
            return
        try:
            flags = FLAGS + (GCC_FLAGS if self.takes(GCC_FLAGS) else [])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                kernels = [(source, isa, flags) for source in CPU_KERNELS for isa in INSTRUCTION_SETS]
                ext.extra_objects += [name for names in pool.map(self.compile_kernel, kernels) for name in names]
            super().build_extension(ext)
        except CompileError as error:
            raise CompileError(
                f"rsfast's kernels could not be compiled ({error}): install a C++17 compiler, GCC 12 or Clang 14 or newer, "
                "and Python's headers (Debian: apt install g++ python3-dev; macOS: xcode-select --install), and set CXX to "
                "the compiler if it is not the default."
            ) from error

    def takes(self, flags):
        """Return whether the compiler takes all flags without a warning."""
        command = [*self.compiler.compiler_so_cxx, *flags, "-Werror", "-fsyntax-only", "-x", "c++", os.devnull]
        try:
            return not subprocess.run(command, capture_output=True).returncode
        except OSError:  # there is no compiler, of which the first compilation complains
            return False

    def compile_kernel(self, kernel):
        source, isa, flags = kernel
        folder, macros = os.path.join(self.build_temp, isa), [("RSFAST_ISA", isa)]
        return self.compiler.compile(
            [source], output_dir=folder, macros=macros, extra_postargs=flags + INSTRUCTION_SETS[isa]
        )

    def build_cuda(self, ext):
        """Build machine code for every target that this nvcc knows, and PTX for some of them."""
        targets = cuda_targets()
        flags = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
        portable = sorted({*PTX_TARGETS, targets[-1]}.intersection(targets))
        flags += [f"-gencode=arch=compute_{target},code=compute_{target}" for target in portable]
        built = Path(self.get_ext_fullpath(ext.name))
        built.parent.mkdir(parents=True, exist_ok=True)
        libraries = Path(NVCC).resolve().parent.parent / "lib"  # where the nvcc of PyPI has them, but does not look
        command = [NVCC, *NVCC_FLAGS, *flags, *(f"-I{folder}" for folder in self.include_dirs), *ext.sources]
        command += [f"-DRSFAST_VERSION={VERSION}", f"-L{libraries}", "-o", str(built)]
        print(" ".join(command), flush=True)
        if subprocess.run(command).returncode:
            raise CompileError(
                f"nvcc ({NVCC}) could not build {ext.name}: its messages are above. It needs a host compiler "
                "that it supports (set NVCC_CCBIN to one); RSFAST_CUDA=0 builds without the CUDA kernels."
            )


extensions = [
    Extension(
        "rsfast.ops._cpu",
        ["csrc/cpu/module.cpp"],
        depends=["setup.py", VERSION_FILE, *CPU_KERNELS, *HEADERS],
        define_macros=[("RSFAST_VERSION", VERSION), *([("RSFAST_X86_64", "1")] if X86_64 else [])],
        extra_compile_args=[*FLAGS, "-pthread"],
        extra_link_args=["-pthread"],
        language="c++",
        py_limited_api=True,
    )
]
NVCC = find_nvcc()
if NVCC:
    sources = [f"csrc/cuda/{name}" for name in ("module.cpp", "perturb.cu", "accumulate.cu", "words.cu")]
    depends = ["setup.py", VERSION_FILE, *HEADERS]
    extensions.append(Extension("rsfast.ops._cuda", sources, depends=depends, py_limited_api=True))

# One wheel of a platform is for CPython 3.10 and every later one: csrc/binding.h keeps to the limited API of 3.10.
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels}, options={"bdist_wheel": {"py_limited_api": "cp310"}})
