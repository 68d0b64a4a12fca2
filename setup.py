"""Builds rsfast._cpu, its kernels once for each instruction set. Everything else is in pyproject.toml."""

import os
import platform
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# -fno-math-errno and -fno-trapping-math let loops vectorise and change no value; -ffp-contract=off keeps every rounding;
# -fschedule-insns interleaves independent chains (10 to 15% in perturb).
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS += [
    "-fschedule-insns",
    "-fsched-pressure",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wno-maybe-uninitialized",  # GCC 12 warns about its own AVX-512 header
]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = {"baseline": []}
if X86_64:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"]
KERNELS = ["csrc/cpu/perturb.cpp", "csrc/cpu/accumulate.cpp"]


class BuildKernels(build_ext):
    """Compile KERNELS for every instruction set and link the objects into the extension."""

    def build_extension(self, ext):
        if sys.platform == "win32":
            raise CompileError("rsfast needs GCC or Clang, and is built on Linux and macOS only.")
        try:
            for name, flags in INSTRUCTION_SETS.items():
                ext.extra_objects += self.compiler.compile(
                    KERNELS,
                    output_dir=os.path.join(self.build_temp, name),
                    macros=[("RSFAST_ISA", name)],
                    extra_postargs=FLAGS + flags,
                    depends=ext.depends,
                )
            super().build_extension(ext)
        except CompileError as error:
            raise CompileError(
                f"rsfast's kernels could not be compiled ({error}): install a C++17 compiler, GCC 12 or Clang 14 or newer "
                "(Debian: apt install g++; macOS: xcode-select --install), and set CXX to it if it is not the default."
            ) from error


setup(
    ext_modules=[
        Pybind11Extension(
            "rsfast._cpu",
            ["csrc/cpu/module.cpp"],
            depends=["setup.py", *KERNELS, *map(str, sorted(Path("csrc").rglob("*.h")))],
            define_macros=[("RSFAST_X86_64", "1")] if X86_64 else [],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
