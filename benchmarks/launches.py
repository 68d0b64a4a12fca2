"""What the GPU backends launch for a call of perturb or accumulate, found without a GPU: machine code, parameters, grid.

Tensors are where they are on the host, so that `sass.Thread` can follow their addresses.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import re
import shlex
import struct
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.block import Block
from benchmarks.cases import noises
from benchmarks.gpu_cases import DTYPES, Perturb
from benchmarks.gpu_device import find_tool
from benchmarks.report import ROOT
from benchmarks.sass import Function, Instruction, Memory, Thread, host_memory, parse
from rsfast import Tally, ops
from rsfast.ops.calls import Accumulation, Perturbation
from rsfast.ops.registry import Backend

MOST_ROWS = 65535  # of a CUDA grid's second axis

MULTIPROCESSORS, SHARED = 132, 227 << 10  # of an H100 SXM and an H200; bytes that a block may have

# The kernels' grids as csrc makes them. The type's name ends with the template arguments of the kernel.
GRID = """
#include <cstring>
#include <typeinfo>
#include "cuda/accumulate.h"
#include "cuda/perturb.h"
extern "C" const char* launch_of(const rsfast::PerturbJob* job, char* parameters, int64_t* sizes) {
  const rsfast::PerturbGrid g = rsfast::make_grid(*job);
  std::memcpy(parameters, &g, sizeof g);
  sizes[0] = sizeof g, sizes[1] = g.threads, sizes[2] = g.pieces;
  return rsfast::with_kernel(g, [](auto kernel) { return typeid(kernel).name(); });
}
extern "C" void accumulate_launch_of(const rsfast::AccumulateJob* job, int multiprocessors, int64_t shared, char* parameters,
                                     int64_t* sizes) {
  const rsfast::AccumulateGrid g = rsfast::make_grid(*job, multiprocessors, shared);
  std::memcpy(parameters, &g, sizeof g);
  sizes[0] = sizeof g, sizes[1] = g.threads, sizes[2] = g.tiles, sizes[3] = g.head_groups;
}
"""


def cuobjdump(*arguments: str) -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump: install the CUDA toolkit, or Triton, whose package has one")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def extension() -> Path | None:
    """Return the file of rsfast.ops._cuda, or None."""
    spec = find_spec("rsfast.ops._cuda")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@dataclass(frozen=True)
class Launch:
    """A kernel and what it is launched with. `blocks` are blocks by (x, y, z), and how many each stands for."""

    function: Function
    parameters: bytes
    threads: int
    grid: tuple[int, int, int]
    blocks: tuple[tuple[tuple[int, int, int], int], ...]  # of perturb alone
    memory: Memory

    def start(self, block: tuple[int, int, int], number: int) -> Thread:
        special = {f"SR_CTAID.{axis}": place for axis, place in zip("XYZ", block, strict=True)} | {"SR_TID.X": number}
        return Thread(self.function, self.parameters, special, (self.threads, 1, 1, *self.grid), self.memory)

    def thread(self, block: tuple[int, int, int], number: int) -> Thread:
        """Return a thread that has run."""
        return self.start(block, number).run()

    def block(self, block: tuple[int, int, int]) -> Block:
        """Return a block that has run."""
        return Block([self.start(block, number) for number in range(self.threads)]).run()

    def issued(self) -> Counter[Instruction]:
        """Return how many of each instruction all warps issue. A warp issues what its first thread does.

        That is so where later threads of a warp do nothing that the first does not: they may be past the end.
        """
        total: Counter[Instruction] = Counter()
        for block, number in self.blocks:
            for first in range(0, self.threads, 32):
                for instruction, times in self.thread(block, first).issued.items():
                    total[instruction] += times * number
        return total


def reader(tensors: Sequence[torch.Tensor]) -> Memory:
    """Return a Memory of these tensors, which it keeps; what lies outside is an error."""
    by_address = {tensor.data_ptr(): tensor for tensor in tensors}
    starts = sorted(by_address)

    def read(address: int, size: int) -> bytes:
        start = starts[max(0, bisect.bisect(starts, address) - 1)]
        if not start <= address <= start + by_address[start].nbytes - size:
            raise ValueError(f"{size} bytes at {address:#x} belong to no tensor")
        return host_memory(address, size)

    return read


def call_of(case: Perturb) -> Perturbation:
    """Return a case's call as a backend receives it."""
    calls: list[Perturbation] = []
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    channels = torch.linspace(1, 2, case.shape[0])
    on_cpu = Backend("cpu", lambda: SimpleNamespace(perturb=calls.append))
    with patch.dict(ops.BACKENDS, {"cpu": on_cpu}):
        ops.perturb(
            torch.rand(1, *case.shape),
            noises(case.shape)[case.noise],
            seed=12345678901,
            samples=7 + torch.arange(case.batch),
            rows=torch.zeros(case.batch, dtype=torch.int64),
            input_ids=torch.tensor([5]),
            scale=channels if case.scale else None,
            shift=channels if case.scale else None,
            clamp=(0.0, 1.0) if case.clamp else None,
            channels_last=case.channels_last,
            out=torch.empty((case.batch, *case.shape), dtype=DTYPES[case.dtype], memory_format=layout),
            backend="cpu",
        )
    (call,) = calls
    return call


def accumulate_call(logits: torch.Tensor, tally: Tally) -> Accumulation:
    """Return the call of `ops.accumulate` as a backend receives it."""
    calls: list[Accumulation] = []
    with patch.dict(ops.BACKENDS, {"cpu": Backend("cpu", lambda: SimpleNamespace(accumulate=calls.append))}):
        ops.accumulate(logits, tally, backend="cpu")
    (call,) = calls
    return call


def memory_of(call: Perturbation) -> Memory:
    given = (call.x, call.rows, call.input_ids, call.samples, call.scale, call.shift, call.noise.each, *call.noise.tables)
    return reader([tensor for tensor in given if tensor is not None])


# CUDA


@cache
def grid_library() -> ctypes.CDLL:
    """Return GRID, compiled for the host."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "grid.cpp", Path(folder) / "grid.so"
        source.write_text(GRID)
        compiler = shlex.split(sysconfig.get_config_var("CXX") or "c++")
        flags = ["-std=c++17", "-w", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.launch_of.restype = ctypes.c_char_p
    return loaded


@cache
def listings(binary: Path) -> dict[str, str]:
    """Return the kernels' listings for sm_90 in a binary, by name and template arguments."""
    parts = re.split(r"(?=\t\tFunction : )", cuobjdump("-sass", "-arch", "sm_90", str(binary)))
    return {kernel_name(part.split(None, 3)[2]): part for part in parts[1:]}


@cache
def machine_code(binary: Path, name: str) -> Function:
    (function,) = parse(listings(binary)[name])
    return function


def kernel_name(mangled: str) -> str:
    found = re.search(r"([a-z]+_kernel)(?:I(.*)EEv)?", mangled)
    return "" if found is None else f"{found[1]} {found[2] or ''}".strip()


def cuda_launch(call: Perturbation, binary: Path) -> Launch:
    """Return what csrc/cuda/perturb.cu launches for a call, of the kernels in a binary."""
    from rsfast.ops import _cpu, jobs

    job = jobs.perturb_job(call, call.scale, call.shift, jobs.check_extension(_cpu))
    parameters, sizes = ctypes.create_string_buffer(4096), (ctypes.c_int64 * 3)()
    kernel = grid_library().launch_of(ctypes.byref(job), parameters, sizes).decode()
    size, threads, pieces = sizes
    arguments = re.search(r"PerturbKernelI(.*)EE$", kernel)
    assert arguments is not None, kernel
    rows = job.batch
    blocks = tuple(((x, 0, 0), number * rows) for x, number in ((0, pieces - 1), (pieces - 1, 1)) if number)
    grid = pieces, min(rows, MOST_ROWS), -(-rows // MOST_ROWS)
    function = machine_code(binary, f"perturb_kernel {arguments[1]}")
    return Launch(function, parameters.raw[:size], threads, grid, blocks, memory_of(call))


def accumulate_launch(call: Accumulation, binary: Path) -> Launch:
    """Return what csrc/cuda/accumulate.cu launches for a call of float32 logits."""
    from rsfast.ops import jobs

    parameters, sizes = ctypes.create_string_buffer(4096), (ctypes.c_int64 * 4)()
    job = jobs.accumulate_job(call)
    grid_library().accumulate_launch_of(ctypes.byref(job), MULTIPROCESSORS, ctypes.c_int64(SHARED), parameters, sizes)
    size, threads, tiles, head_groups = sizes
    memory = reader([tensor for tensor in call if tensor.numel()])
    function = machine_code(binary, "accumulate_kernel f")
    return Launch(function, parameters.raw[:size], threads, (tiles, head_groups, 1), (), memory)


def philox_launch(rounds: int, binary: Path) -> Launch:
    """Return a launch of the kernel that makes nothing but words, `rounds` blocks of four a thread."""
    threads, grid = 256, 4096
    room = torch.zeros(threads * grid, dtype=torch.int32)
    parameters = struct.pack("<20Q", *range(20)) + struct.pack("<QQ", rounds * threads * grid, room.data_ptr())
    function = machine_code(binary, "philox_kernel")
    return Launch(function, parameters, threads, (grid, 1, 1), (((0, 0, 0), grid),), reader([room]))


# Triton


class TritonLaunch(NamedTuple):
    grid: tuple[int, ...]
    compiled: Any
    parameters: bytes


class Compiler:
    """Stands for a Triton kernel: a launch compiles it for `target` and is added to `launches`, but not run."""

    def __init__(self, kernel: Any, target: Any, launches: list[TritonLaunch]) -> None:
        self.kernel, self.target, self.launches = kernel, target, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *values: Any, **options: Any) -> None:
        import triton
        from triton.compiler import ASTSource

        pointers = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64"}
        pointers |= {torch.int64: "*i64", torch.int32: "*i32"}
        formats = {"fp32": "f", "i32": "i", "u32": "I", "i64": "q", "u64": "Q"}
        signature: dict[str, Any] = {}
        constants: dict[tuple[int], Any] = {}
        hints: dict[tuple[int], Any] = {}
        layout, packed = "", list[Any]()
        for i, param in enumerate(self.kernel.params):
            value = values[i] if i < len(values) else options.pop(param.name)
            special = not param.do_not_specialize and not isinstance(value, (float, tuple))
            if param.is_constexpr or value is None or (special and type(value) is int and value == 1):
                signature[param.name], constants[i,] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[param.name] = pointers[value.dtype]
                if not param.do_not_specialize_on_alignment:
                    hints[i,] = [["tt.divisibility", 16]]
                layout, packed = layout + "Q", [*packed, value.data_ptr()]
            elif isinstance(value, tuple):
                signature[param.name] = ("fp32",) * len(value)
                layout, packed = layout + "f" * len(value), [*packed, *value]
            else:
                signature[param.name] = param.annotation_type or ("fp32" if isinstance(value, float) else "i32")
                layout, packed = layout + formats[signature[param.name]], [*packed, value]
                if special and value % 16 == 0:
                    hints[i,] = [["tt.divisibility", 16]]
        compiled = triton.compile(ASTSource(self.kernel, signature, constants, hints), target=self.target, options=options)
        self.launches.append(TritonLaunch(grid, compiled, struct.pack(f"@{layout}0Q", *packed)))


def triton_launches(module: ModuleType, target: Any, run: Callable[[], None]) -> list[TritonLaunch]:
    """Return what `run` launches of a module's kernels, compiled for a GPUTarget."""
    launches: list[TritonLaunch] = []
    kernels = {name: Compiler(each, target, launches) for name, each in vars(module).items() if name.endswith("_kernel")}
    with patch.multiple(module, **kernels):
        run()
    return launches


def triton_launch(call: Perturbation) -> Launch:
    """Return what rsfast/ops/triton_perturb.py launches for a call, compiled for sm_90 by the Triton that is installed."""
    from triton.backends.compiler import GPUTarget

    from rsfast.ops import triton_perturb

    (launched,) = triton_launches(triton_perturb, GPUTarget("cuda", 90, 32), partial(triton_perturb.perturb, call))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launched.compiled.asm["cubin"])
        file.flush()
        (function,) = parse(cuobjdump("-sass", file.name))
    *others, programs = launched.grid  # the last axis: the tiles of a row, or of a channel of it, of which the last differ
    grid, before = (*launched.grid, 1, 1)[:3], (0,) * len(others)
    blocks = tuple(
        ((*before, place, 0, 0)[:3], number * math.prod(others))
        for place, number in ((0, programs - 1), (programs - 1, 1))
        if number
    )
    threads = 32 * launched.compiled.metadata.num_warps
    return Launch(function, launched.parameters, threads, grid, blocks, memory_of(call))
