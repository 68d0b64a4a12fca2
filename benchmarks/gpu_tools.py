"""The sections of `gpu_gate` that run other programs: the build, compute-sanitizer, pytest and Nsight Compute.

Each program's whole output goes to a file of the report's folder, and what matters into a row. Torch is not imported here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec

from benchmarks.gpu_device import find_tool, output_of
from benchmarks.gpu_sections import Job
from benchmarks.report import ABSENT, FAILED, PASSED, ROOT, Row

BUILD = [sys.executable, "setup.py", "build_ext", "--inplace"]
TESTS = (("tests/test_gpu.py", "not triton"), ("tests/test_forward.py", ""), ("tests/test_doctor.py", ""))  # file, -k
TRITON_TESTS = (("tests/test_gpu.py", "triton"), ("tests/test_triton.py", ""))
PYTEST = [sys.executable, "-m", "pytest", "-m", "not noise", "-p", "no:cacheprovider", "--maxfail=20", "--durations=5"]
WORKERS = ["-n", str(min(8, os.cpu_count() or 1))]  # Triton compiles some 300 kernels for tests, a second each
SMALL = [sys.executable, "-m", "benchmarks.gpu_small"]
# A launch timeout of 0 is none: by default the tool gives up, and watches nothing, if the first call of CUDA takes as long
# as it may while torch comes from a cold disk. Calls of CUDA's API that torch tries and that may fail are no fault, and
# neither torch's kernels nor Triton's compilers are watched.
SANITIZER = ["--error-exitcode", "86", "--print-limit", "20", "--launch-timeout", "0", "--report-api-errors", "no"]
SANITIZER += ["--target-processes", "application-only", "--kernel-name"]
NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else a read past a tensor stays within the allocator's block
NCU = ["--clock-control", "none", "--set", "full", "--launch-skip", "2", "--launch-count", "1", "--page", "details"]
METRICS = (
    *("Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "Issue Slots Busy"),
    *("Achieved Occupancy", "Registers Per Thread"),
)


def run(job: Job, log: str, command: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command with its output in a file; return its exit status and the output. The gate limits its time."""
    file = job.folder / f"{re.sub(r'[^a-zA-Z0-9._-]+', '_', log)}.log"
    with file.open("wb") as out:
        out.write(f"{' '.join(command)}\n".encode())
        out.flush()
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=out, stderr=out).returncode
    return code, file.read_text(errors="replace")


# Build


def targets() -> str:
    """Return for which GPUs the built extension holds machine code."""
    built, cuobjdump = sorted((ROOT / "rsfast" / "ops").glob("_cuda*.so")), find_tool("cuobjdump")
    if not built:
        return "rsfast.ops._cuda is not there"
    if cuobjdump is None:
        return "targets unknown: no cuobjdump"
    found = {name for file in built for name in re.findall(r"sm_\d+\w?", output_of(cuobjdump, "--list-elf", str(file)))}
    return f"machine code for {', '.join(sorted(found))}"


def built(job: Job) -> Iterator[Row]:
    if job.report.about.get("skip_build") or job.dry:
        yield Row("build", status=ABSENT, note=f"as it was; {targets()}")
        return
    major, minor = job.report.about["capability"]
    env, began = {"RSFAST_CUDA": "1", "RSFAST_CUDA_TARGETS": f"{major}{minor}"}, time.perf_counter()
    code, text = run(job, "build", BUILD, env)
    seconds = time.perf_counter() - began
    if code:
        print(text[-3000:])
        run(job, "build without CUDA", BUILD, {"RSFAST_CUDA": "0"})  # which the oracle is, and Triton is measured with
    yield Row("build", status=FAILED if code else PASSED, note=f"{targets()}; {seconds:.0f} s, exit status {code}")


def build(job: Job) -> None:
    """Build both extensions in place, for this GPU alone."""
    job.run("build", partial(built, job))


# compute-sanitizer


def sanitized(job: Job, tool: str, kernel: str) -> Iterator[Row]:
    what = f"{tool} {kernel}"
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None or job.dry:
        yield Row(
            what, status=ABSENT, note="no compute-sanitizer on the PATH or in CUDA_HOME" if sanitizer is None else "dry run"
        )
        return
    command = [sanitizer, "--tool", tool, *SANITIZER, f"kernel_substring={kernel}", *SMALL, kernel, job.backend]
    code, text = run(job, f"{what} {job.backend}", command, NO_CACHE)
    told = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    note = f"{'; '.join(told) or 'no summary'}; exit status {code}"
    if not told and (why := re.findall(r"========= .*Error: .*", text)):  # it cannot watch a process here, so it saw nothing
        yield Row(what, status=ABSENT, note=f"{note}; {why[0]}")
        return
    right = code == 0 and "all equal" in text and told and all(" SUMMARY: 0 " in each for each in told)
    yield Row(what, status=PASSED if right else FAILED, note=note if right else f"{note}; {text.strip()[-200:]}")


def sanitizer(job: Job) -> None:
    """Look for wrong accesses and races in small calls of the kernels, with every draw and every way of accumulate."""
    for tool in ("memcheck", "racecheck"):
        for kernel in ("accumulate", "perturb"):
            job.run(f"{tool} {kernel}", partial(sanitized, job, tool, kernel))


# Tests


def tested(job: Job, file: str, names: str) -> Iterator[Row]:
    what = f"{file}, {names}" if names else file
    how = ["--collect-only"] if job.dry else WORKERS if find_spec("xdist") else []
    command = [*PYTEST, *how, *(["-k", names] if names else []), file]
    code, text = run(job, what, command)
    counts = re.findall(
        r"\d+ (?:passed|failed|skipped|deselected|errors?|xfailed|xpassed|tests collected)", text.strip().splitlines()[-1]
    )
    wrong = re.findall(r"^(?:FAILED|ERROR) .*", text, re.MULTILINE)
    note = ", ".join(counts) or f"no counts; last: {text.strip()[-200:]}"
    yield Row(what, status=FAILED if code else PASSED, note="; ".join([note, *(each[:120] for each in wrong[:5])]))


def tests(job: Job) -> None:
    """Run the tests that use a GPU: those of Triton, which compiles a kernel for each combination, or all others."""
    parts = TRITON_TESTS if job.backend == "triton" else TESTS
    for file, names in parts[:1] if job.dry else parts:
        job.run(f"{file} {names}", partial(tested, job, file, names))


# Nsight Compute


def profiled(job: Job, kernel: str, backend: str) -> Iterator[Row]:
    what, tool = f"ncu {kernel}", find_tool("ncu")
    if tool is None or job.dry:
        yield Row(what, backend, status=ABSENT, note="no ncu on the PATH or in CUDA_HOME" if tool is None else "dry run")
        return
    command = [tool, *NCU, "--kernel-name", f"regex:{kernel}", *SMALL, f"large {kernel}", backend]
    code, text = run(job, f"{what} {backend}", command)
    found = {name: re.search(rf"{re.escape(name)}\s+(\S+)\s+([\d.,]+)\s*$", text, re.MULTILINE) for name in METRICS}
    note = ", ".join(f"{name} {match[2]} {match[1]}" for name, match in found.items() if match)
    if note:
        yield Row(what, backend, status=PASSED, note=note)
    else:  # such as ERR_NVGPUCTRPERM: the counters are not for every user
        why = re.findall(r"==ERROR== .*", text) or [text.strip()[-200:]]
        yield Row(what, backend, status=ABSENT, note=f"exit status {code}; {why[0]}")


def ncu(job: Job) -> None:
    """Read the counters of one launch of a kernel; the clocks stay as they are."""
    for kernel in ("perturb", "accumulate"):
        for backend in ("cuda", "triton"):
            job.run(f"ncu {kernel} {backend}", partial(profiled, job, kernel, backend))
