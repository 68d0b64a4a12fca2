"""What a call costs before its first sample: the import, the command line and certify itself, in fresh processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

import rsfast
from benchmarks.conftest import in_fresh_process, record
from rsfast.demo import network

STARTUP, FIXED = 0.25, 0.5e-3  # seconds
BESIDE_TORCH = 1.1
ROUNDS = 7


class Ran(NamedTuple):
    """A Python process, its own start included: seconds, those of a CPU, and what it printed."""

    seconds: float
    cpu: float
    printed: str


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_python(*arguments: str) -> Ran:
    """Run Python. It may keep bytecode, as pip makes it when it installs: else every import would compile."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = cpu_of_children(), time.perf_counter()
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=env)
    return Ran(time.perf_counter() - began, cpu_of_children() - before, found.stdout)


def write_run(folder: Path) -> None:
    images, noise = torch.rand(3, 1, 8, 8), rsfast.Gaussian(0.25)
    run = rsfast.Run(network().eval(), images, noise, folder, num_classes=10, labels=[0, 1, 2], seed=1)
    run.certify(n0=10, n=100)


def fixed_cost() -> float:
    """Return the seconds of certify of one input and 10 samples: the median of 200 calls, after as many."""
    model, x, seconds = torch.nn.Linear(10, 3).eval(), torch.full((1, 10), 0.5), []
    certify = partial(rsfast.certify, model, x, rsfast.Gaussian(0.25), num_classes=3, n=10, alpha=0.01, seed=1)
    for _ in range(400):
        began = time.perf_counter()
        [found] = certify()
        seconds.append(time.perf_counter() - began)
        assert found.n == 10
    return median(seconds[200:])


def test_startup(tmp_path):
    write_run(tmp_path)
    commands = {
        "import rsfast": ("-c", "import rsfast; print(rsfast.__version__)"),
        "rsfast --help": ("-m", "rsfast", "--help"),
        "rsfast analyze": ("-m", "rsfast", "analyze", str(tmp_path)),
        "import torch": ("-c", "import torch"),
        "import numpy": ("-c", "import numpy"),
        "import torch and rsfast": ("-c", "import torch, rsfast"),
        "import torch and rsfast.certify": ("-c", "import torch; from rsfast import certify"),
    }
    rounds = [{name: run_python(*command) for name, command in commands.items()} for _ in range(ROUNDS + 1)]
    printed = [rounds[0][name].printed for name in commands]
    assert printed[0].strip() == rsfast.__version__
    assert "certify" in printed[1]
    assert tmp_path.name in printed[2]
    seconds = {name: median(each[name].seconds for each in rounds[1:]) for name in commands}
    beside = ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("import torch", "import numpy"))
    for name in list(commands)[:3]:
        detail = f"{seconds[name]:.2f} s with the start of Python; {beside}"
        record(f"start-up, {name}", f"{STARTUP} s", seconds[name] / STARTUP, 1, detail, at_most=True)
    for name in list(commands)[-2:]:
        ratio = median(each[name].cpu / each["import torch"].cpu for each in rounds[1:])
        detail = f"{median(each[name].cpu for each in rounds[1:]):.2f} s of a CPU"
        record(f"start-up, {name}", "import torch alone", ratio, BESIDE_TORCH, detail, at_most=True)


def test_fixed_cost():
    seconds = in_fresh_process(fixed_cost)
    what = "fixed cost of certify, one input, n = 10"
    record(what, f"{FIXED * 1e3} ms", seconds / FIXED, 1, f"{seconds * 1e3:.2f} ms", at_most=True)
