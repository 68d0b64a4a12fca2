"""What the compiled CUDA kernels of perturb are made of, and how long an H200 should take for them at best.

``python -m benchmarks.disassembly`` reads rsfast.ops._cuda and writes the table and the predictions under
benchmarks/results, so that a measurement has something to be held against. Needed are nvcc and a cuobjdump: the CUDA
toolkit's, or the one in Triton's package.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
NAMES = ("float32", "float16", "bfloat16", "float64")  # as csrc/jobs.h numbers them
TYPES = NAMES[:3]  # of which predictions are made
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Lanes a clock and multiprocessor at compute capability 9.0, by the CUDA programming guide's table of arithmetic throughput.
# Every instruction takes one of 4 x 32 lanes of issue besides.
PIPES = {
    "fma": (128, r"FFMA|FMUL|FADD"),
    "imad": (64, r"IMAD|HFMA2"),
    "alu": (
        64,
        r"LOP3|IADD3|VIADD|ISETP|FSETP|SEL|FSEL|SHF|LEA|PRMT|MOV|FMNMX|IMNMX|PLOP3|IABS|P2R|R2P|LOP|I2FP|F2FP|I2F|F2I|CS2R",
    ),
    "mufu": (16, r"MUFU"),
    "memory": (32, r"LDG|STG|LDS|STS|LDC|LDL|STL"),
}
ISSUE = 128
MULTIPROCESSORS, CLOCK = 132, 1.98e9  # of an H200 at its highest clock

# The kernels with the options left out: without scale, clamp and a value of each element there is one way through, whose
# instructions can be counted.
PROBE = """
#include "cuda/perturb.h"
namespace rsfast {
template <Type T, bool ChannelsLast>
__global__ void __launch_bounds__(kMostThreads) probe(const __grid_constant__ PerturbGrid grid) {
  PerturbGrid plain = grid;
  plain.job.scale = nullptr;
  plain.job.noise.each = nullptr;
  plain.job.clamp = false;
  if constexpr (ChannelsLast)
    perturb_channels_last<Draw::gaussian, T, true>(this_block(), plain);
  else
    perturb_contiguous<Draw::gaussian, T, true>(this_block(), plain);
}
"""
PROBE += "".join(
    f"template __global__ void probe<Type::{name}, {last}>(const __grid_constant__ PerturbGrid);\n"
    for name in TYPES
    for last in ("false", "true")
)
PROBE += "}  // namespace rsfast\n"


def find_tool(name: str) -> str | None:
    """Return the path of a CUDA tool: on the PATH, or in Triton's package."""
    if found := shutil.which(name):
        return found
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    return shutil.which(name, path=str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # with its modifiers: LDG.E.128
    predicated: bool
    target: int | None  # of a branch


@dataclass(frozen=True)
class Function:
    architecture: str
    name: str
    instructions: tuple[Instruction, ...]

    def names(self) -> list[str]:
        return [instruction.name for instruction in self.instructions]


def parse(text: str) -> list[Function]:
    """Return the functions of ``cuobjdump -sass``."""
    functions, architecture = [], ""
    for part in re.split(r"(?=\tcode for sm_|\s+Function : )", text):
        if found := re.match(r"\tcode for (sm_\d+\w?)", part):
            architecture = found[1]
        if found := re.match(r"\s+Function : (\S+)", part):
            lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)([^;\n]*);", part)
            instructions = []
            for address, predicate, name, operands in lines:
                target = re.search(r"0x([0-9a-f]+)\s*$", operands) if name.startswith("BRA") else None
                conditional = bool(predicate) or bool(re.match(r"\s*!?U?P\d", operands))
                instructions.append(Instruction(int(address, 16), name, conditional, int(target[1], 16) if target else None))
            functions.append(Function(architecture, found[1], tuple(instructions)))
    return functions


def kernel_name(mangled: str) -> tuple[str, str, str, bool, int]:
    """Return (kernel, type, layout, aligned, draw) of a mangled name; "" for the kernel if it is none of perturb's."""
    found = re.search(r"(perturb_kernel|probe)I(?:LNS_4DrawE(\d+)E)?LNS_4TypeE(\d)ELb(\d)E(?:Lb(\d)E)?", mangled)
    if found is None:
        return "", "", "", False, 0
    layout = "channels_last" if found[4] == "1" else "contiguous"
    return found[1], NAMES[int(found[3])], layout, found[5] != "0", int(found[2] or 0)


def way_through(function: Function) -> list[Instruction]:
    """Return the instructions that can be reached without a call: calls are to failed assertions, and to the square root of
    what the noise never takes one of."""
    at = {instruction.address: i for i, instruction in enumerate(function.instructions)}
    starts = {0, *(at[i.target] for i in function.instructions if i.target in at)}
    starts |= {i + 1 for i, one in enumerate(function.instructions) if re.match("BRA|EXIT|RET|CALL", one.name)}
    begins = sorted(start for start in starts if start < len(function.instructions))
    ends = dict(zip(begins, [*begins[1:], len(function.instructions)], strict=True))
    seen, waiting = set(), [0]
    while waiting:
        begin = waiting.pop()
        block = function.instructions[begin : ends[begin]]
        if begin in seen or any(i.name.startswith("CALL") for i in block):
            continue
        seen.add(begin)
        last = block[-1]
        if last.target in at:
            waiting.append(at[last.target])
        if ends[begin] in ends and (last.predicated or not re.match("BRA|EXIT|RET", last.name)):
            waiting.append(ends[begin])
    return [i for begin in sorted(seen) for i in function.instructions[begin : ends[begin]]]


def loops(way: list[Instruction]) -> list[list[Instruction]]:
    """Return the bodies of the loops that hold no other."""
    spans = [(i.target, i.address) for i in way if i.target is not None and i.target <= i.address]
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]
    return [[i for i in way if a <= i.address <= b] for a, b in inner]


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    """Return how many of the instructions each pipe takes; "issue" is all of them."""
    counts: Counter[str] = Counter()
    for instruction in instructions:
        counts["issue"] += 1
        for pipe, (_, pattern) in PIPES.items():
            if re.fullmatch(pattern, instruction.name.split(".")[0]):
                counts[pipe] += 1
    return counts


def per_element(function: Function) -> dict[str, float]:
    """Return the instructions an element of a probe, by pipe."""
    _, kind, layout, *_ = kernel_name(function.name)
    way = way_through(function)
    if layout == "contiguous":  # 16 elements a thread, in a loop or not
        stores = sum(i.name == "STG.E.128" for i in way) * 16 // BYTES[kind]
        total = count(way)
        for body in loops(way):
            for pipe, number in count(body).items():
                total[pipe] += number * (16 // stores - 1)
        return {pipe: number / 16 for pipe, number in total.items()}
    total: Counter[str] = Counter()
    makes = [body for body in loops(way) if any(i.name == "MUFU.RSQ" for i in body)]
    copies = [body for body in loops(way) if any(i.name.startswith("STG.E.128") for i in body)]
    for bodies, unit, mark in ((makes, 2, "MUFU.RSQ"), (copies, 16 // BYTES[kind], "STG.E.128")):
        body = max(
            bodies, key=lambda body: sum(i.name.startswith(mark) for i in body)
        )  # the one that is unrolled, if any is
        elements = unit * sum(i.name.startswith(mark) for i in body)
        for pipe, number in count(body).items():
            total[pipe] += number / elements
    return dict(total)


def best_time(counts: dict[str, float]) -> tuple[float, str]:
    """Return the picoseconds for these instructions if the busiest pipe never waits, and its name."""
    rates = {"issue": ISSUE} | {pipe: lanes for pipe, (lanes, _) in PIPES.items()}
    clocks = {pipe: counts.get(pipe, 0.0) / rate for pipe, rate in rates.items()}
    pipe = max(clocks, key=lambda pipe: clocks[pipe])
    return clocks[pipe] / (MULTIPROCESSORS * CLOCK) * 1e12, pipe


def probes(nvcc: str, cuobjdump: str) -> dict[str, Function]:
    """Return perturb without scale and clamp, compiled for sm_90, by type and layout."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "probe.cu", Path(folder) / "probe.cubin"
        source.write_text(PROBE)
        flags = ["-std=c++17", "-O3", "-fmad=false", "-diag-suppress=1675", "-arch=sm_90", f"-I{ROOT / 'csrc'}"]
        subprocess.run([nvcc, *flags, "-cubin", str(source), "-o", str(binary)], check=True)
        functions = parse(output_of(cuobjdump, "-sass", str(binary)))
    return {" ".join(("perturb", *kernel_name(function.name)[1:3])): function for function in functions}


def words_alone(function: Function) -> dict[str, float]:
    """Return the instructions a word of the kernel that makes Philox words and nothing else."""
    (body,) = loops(way_through(function))
    products = sum(
        i.name.startswith("IMAD.WIDE.U32") for i in body
    )  # 20 a block of 4 words, or less one or two that are known
    return {pipe: number / (4 * max(1, round(products / 20))) for pipe, number in count(body).items()}


def extension() -> Path | None:
    """Return the file of rsfast.ops._cuda, or None."""
    spec = find_spec("rsfast.ops._cuda")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def main() -> None:
    nvcc, cuobjdump, built = shutil.which("nvcc"), find_tool("cuobjdump"), extension()
    if nvcc is None or cuobjdump is None or built is None:
        raise SystemExit("needed are nvcc on the PATH, cuobjdump (CUDA toolkit, or pip install triton) and rsfast.ops._cuda")
    counts = {name: per_element(function) for name, function in sorted(probes(nvcc, cuobjdump).items())}
    floor = next(f for f in parse(output_of(cuobjdump, "-sass", "-arch", "sm_90", str(built))) if "philox_kernel" in f.name)
    counts["Philox words alone"] = words_alone(floor)
    pipes, version = ["issue", *PIPES], re.findall(r"release [\d.]+", output_of(nvcc, "--version"))[-1]
    rates = ", ".join(f"{pipe} {lanes}" for pipe, (lanes, _) in PIPES.items())
    lines = [
        "# What the kernels for sm_90 could reach",
        "",
        f"Instructions an element, sm_90, nvcc {version}: perturb without scale and clamp, rows of whole 16-byte pieces.",
        f"The time is that of an H200 ({MULTIPROCESSORS} processors at {CLOCK / 1e9} GHz) whose busiest pipe never waits:",
        f"a bound from below, not a measurement. Rates: {rates}, issue {ISSUE} lanes a clock and multiprocessor.",
        "",
        f"| kernel | {' | '.join(pipes)} | busiest | ps an element | GB/s written |",
        f"|---|{'---|' * (len(pipes) + 3)}",
    ]
    predictions: dict[str, Any] = {}
    for name, found in counts.items():
        time, pipe = best_time(found)
        predictions[name] = {"ps_per_element": round(time, 4), "instructions": {p: round(found.get(p, 0), 2) for p in pipes}}
        cells = " | ".join(f"{found.get(p, 0):.2f}" for p in pipes)
        lines.append(f"| {name} | {cells} | {pipe} | {time:.3f} | {BYTES.get(name.split()[1], 4) / time * 1e3:.0f} |")
    (RESULTS / "predictions_sm90.json").write_text(json.dumps(predictions, indent=1) + "\n")
    (RESULTS / "predictions_sm90.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
