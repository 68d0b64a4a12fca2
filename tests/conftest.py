"""What tests share: the instruction sets, comparison of floats by their bits, a disk that is full, sampling unpacked."""

import fcntl
import json
import os
import resource
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rsfast.engine.sampling import Sampling
from rsfast.ops import _cpu
from rsfast.stats.estimates import leading_classes

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The reference's many small operations would mostly wait for each other; tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch, tmp_path_factory):
    """A test leaves no module of its own folders behind, for which the next test would take its own of that name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture(params=_cpu.isas())
def isa(request):
    """Every instruction set that this processor can run, in turn."""
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


@pytest.fixture(params=[*_cpu.isas(), "reference"])
def backend(request):
    """Every implementation in turn: "cpu" on each instruction set, and "reference"."""
    before = _cpu.isa()
    if request.param != "reference":
        _cpu.use_isa(request.param)
    yield "reference" if request.param == "reference" else "cpu"
    _cpu.use_isa(before)


@pytest.fixture
def threads():
    """A function that sets torch's number of threads; the number is put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def made_once(tmp_path_factory, name, make):
    """The folder of that name, which make(folder) fills: of the workers of xdist the first that needs it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = Path(tempfile.mkdtemp(dir=base))
            make(begun)
            begun.rename(folder)
    return folder


def bits(tensor):
    """The bits of a float tensor as integers, in logical order; every NaN becomes the same one."""
    tensor = tensor.detach().resolve_neg()
    tensor = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_bits(found, expected):
    """Fail, naming the first few places, unless both tensors hold the same bits; a NaN equals any NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    different = bits(found) != bits(expected)
    if bool(different.any()):
        places = different.nonzero()[:4].tolist()
        pairs = [(place, found[tuple(place)].item(), expected[tuple(place)].item()) for place in places]
        pytest.fail(f"{int(different.sum())} of {different.numel()} differ: {pairs}")


def poison(shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    """An output full of NaN, so that a place that a kernel leaves out shows."""
    return torch.full(shape, torch.nan, dtype=dtype).contiguous(memory_format=memory_format)


@pytest.fixture
def unprobed(monkeypatch):
    """For tests of what a model is called with: without the few rows that it gets before all others."""
    monkeypatch.setattr(Sampling, "probe", staticmethod(lambda *_: None))


def first_elements(batch):
    """A model of four classes whose rows do not depend on the batch they stand in, to the bit."""
    return batch.flatten(1)[:, :4]


def readers():
    """The threads that read inputs ahead."""
    return [thread for thread in threading.enumerate() if thread.name == "rsfast inputs"]


def notes(error):
    """What a traceback would end with."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class Flushing:
    """The caller's floating-point mode: subnormals are flushed to 0, as torch.set_flush_denormal(True) does."""

    def __enter__(self):
        assert torch.set_flush_denormal(True)

    def __exit__(self, *_):
        torch.set_flush_denormal(False)


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes: a write takes what fits, and the next one fails, as on a full disk.

    Not for long: it holds for this whole process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def figures(monkeypatch):
    """The figures that plot() saves."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def record(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


LINEAR_NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(4, 12, generator=generator) * 3)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T
"""
"""A module for --model: four classes of 12 numbers, the same in every process."""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A function that fills a new directory: a module of networks, and data.npz with an image of 12 numbers a label."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def fill(module, source, labels):
        Path(f"{module}.py").write_text(source)
        images = np.random.default_rng(0).random((len(labels), 3, 2, 2), dtype=np.float32)
        np.savez("data.npz", images=images, labels=labels)

    return fill


def rows(folder):
    """The lines of a run folder's table, without their times."""
    return [line.rsplit("\t", 1)[0] for line in Path(folder, "results.tsv").read_text().splitlines()]


def sidecar(folder):
    return json.loads(Path(folder, "results.json").read_text())


def integers(folder):
    """What the lines of counts hold, without their check sums."""
    lines = map(json.loads, Path(folder, "counts.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "crc32"} for line in lines]


def strip_sums(folder):
    """Make of a run folder one as earlier versions wrote it: without check sums, so that damage is seen by what it does."""
    text = "".join(json.dumps(line) + "\n" for line in integers(folder))
    Path(folder, "counts.jsonl").write_text(text)


def follow(draw, plan, input_ids):
    """Take inputs through a plan piece by piece, without a model and without packing."""
    (stream, samples), *pieces = plan.stages
    active = np.arange(len(input_ids))
    selection, ranges = draw(active, samples, stream, None), []
    tracked = leading_classes(selection) if plan.tracks else None
    found = [None] * len(input_ids)
    for number, (stream, samples) in enumerate(pieces):
        ranges.append(draw(active, samples, stream, tracked))
        if not plan.early and number < len(pieces) - 1:
            continue
        outcomes = plan.evaluate(selection, ranges, [input_ids[i] for i in active])
        for i, outcome in zip(active, outcomes, strict=True):
            found[i] = outcome
        left = np.array([place for place, outcome in enumerate(outcomes) if outcome is None])
        if not len(left):
            break
        active, selection, ranges = active[left], selection.select(left), [tally.select(left) for tally in ranges]
        tracked = tracked if tracked is None else tracked[left]
    return found
