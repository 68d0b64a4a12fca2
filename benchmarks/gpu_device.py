"""The machine of a measurement: its device and versions, its clocks, and NVIDIA's tools on it.

    python -m benchmarks.gpu_device [--dry-run]

prints the first as JSON. Nothing here changes a setting of the GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT

QUERY = "clocks.sm,clocks.mem,{reasons}.active,power.draw,temperature.gpu"
REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")  # the name now, and before driver 535


def output_of(*command: str) -> str:
    """Return what a command prints, or "" if it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def clocks() -> str:
    """Return the GPU's clocks, why they are not higher, power and temperature; "" without nvidia-smi."""
    for reasons in REASONS:
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
        query = f"--query-gpu={QUERY.format(reasons=reasons)}"
        found = output_of("nvidia-smi", query, "--format=csv,noheader", "-i", device).splitlines()
        if found and found[0].count(",") == 4:
            sm, memory, reason, power, temperature = (each.strip() for each in found[0].split(","))
            return f"SM {sm}, memory {memory}, reasons {reason}, {power}, {temperature} C"
    return ""


def find_tool(name: str) -> str | None:
    """Return the path of one of NVIDIA's tools: on the PATH, in the CUDA toolkit, or in Triton's package."""
    if found := shutil.which(name):
        return found
    nvcc = shutil.which("nvcc")
    homes = [
        Path(home)
        for home in (os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda")
        if home
    ]
    folders = [
        folder for home in homes for folder in (home / "bin", home / "compute-sanitizer", *home.glob("nsight-compute*"))
    ]
    folders += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    if (triton := find_spec("triton")) is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name, path=os.pathsep.join(map(str, folders)))


def sources() -> str:
    """Return a digest of what is measured: the package, its kernels and their build."""
    digest = hashlib.sha256()
    files = [
        path
        for folder in ("rsfast", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".h", ".cu", ".cpp")
    ]
    for path in sorted([*files, ROOT / "setup.py"]):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def missing() -> list[str]:
    """Return which of the packages are not there that the package, its build and its tests need."""
    pyproject = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no tomllib
    needs = re.findall(r"^dependencies = \[(.*?)\]", pyproject, re.MULTILINE | re.DOTALL)[0]
    names = [name.replace("-", "_") for name in re.findall(r'"([\w-]+)', needs)]
    return [name for name in (*names, "setuptools", "pytest", "mpmath") if find_spec(name) is None]


def surroundings(dry_run: bool) -> dict[str, Any]:
    """Return what the numbers depend on: device, driver, versions, commit."""
    if absent := missing():
        return {"missing": absent}
    import torch

    gpu = not dry_run and torch.cuda.is_available()
    triton = find_spec("triton") is not None and __import__("triton").__version__
    commit = output_of("git", "rev-parse", "HEAD")
    dirty = " (tree dirty)" if commit and output_of("git", "status", "--porcelain") else ""
    return {
        "device": torch.cuda.get_device_name(0) if gpu else "CPU" if dry_run else None,
        "capability": list(torch.cuda.get_device_capability(0)) if gpu else None,
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] or "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": triton or "none",
        "nvcc": " ".join(re.findall(r"V[\d.]+", output_of(find_tool("nvcc") or "nvcc", "--version"))) or "none",
        "python": sys.version.split()[0],
        "commit": commit + dirty if commit else "unknown",
        "sources": sources(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    print(json.dumps(surroundings("--dry-run" in sys.argv[1:])))
