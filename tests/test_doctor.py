"""The self-test passes on a sound machine, and every one of its known answers can fail."""

import builtins
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rsfast import doctor, ops
from rsfast.engine.allocator import keep_freed_memory
from rsfast.ops import BACKENDS, _cpu, cpu
from rsfast.ops.registry import Backend

VECTORS = Path(__file__).parent / "vectors"


def test_sound_installation_passes():
    text, healthy = doctor.report()
    assert healthy
    assert "FAILED" not in text
    assert text.startswith("rsfast ")
    assert "reference: ok" in text
    for isa in _cpu.isas():
        in_use = " (in use)" if isa == _cpu.isa() else ""
        assert f"cpu, {isa}{in_use}: ok" in text.splitlines()


def test_known_answers_are_those_of_the_vector_files():
    philox = json.loads((VECTORS / "philox.json").read_text())
    of_file = {(*v["counter"], v["key"][0] | v["key"][1] << 32, *v["words"]) for v in philox}
    assert {(*counter, key, *words) for counter, key, words in doctor.PHILOX} == of_file
    normals = {tuple(v["words"]): tuple(map(float, v["z"])) for v in json.loads((VECTORS / "normal.json").read_text())}
    assert len(doctor.NORMALS) >= 5
    for w0, w1, *z in doctor.NORMALS:
        assert z == pytest.approx(normals[w0, w1], rel=1e-15)


def usable_on_the_gpu():
    device = torch.device("cuda")
    return [
        name for name in ("cuda", "triton") if torch.cuda.is_available() and not BACKENDS[name].unavailable_reason(device)
    ]


def altered_philox():
    (counter, key, (first, *rest)), *others = doctor.PHILOX
    return "PHILOX", ((counter, key, (first ^ 1, *rest)), *others)


def altered_normals():
    *others, (w0, w1, z0, z1) = doctor.NORMALS
    return "NORMALS", (*others, (w0, w1, z0, z1 * (1 + 1e-6)))


def altered_checksum(name):
    return "CHECKSUMS", doctor.CHECKSUMS | {name: "0" * 16}


@pytest.mark.parametrize(
    ("failing", "alteration"),
    [
        ("philox", altered_philox()),
        ("normals", altered_normals()),
        *((name, altered_checksum(name)) for name in doctor.CHECKSUMS),
    ],
)
def test_an_altered_answer_fails_on_every_backend_and_nothing_else_does(monkeypatch, failing, alteration):
    monkeypatch.setattr(doctor, *alteration)
    text, healthy = doctor.report()
    assert not healthy
    failed = [line.partition(": FAILED ")[2] for line in text.splitlines() if "FAILED" in line]
    tested = 1 + len(_cpu.isas())
    if failing != "philox":
        tested += len(usable_on_the_gpu())
    assert failed == [failing] * tested


def test_a_kernel_that_is_off_by_one_bit_fails_where_it_is_used(monkeypatch):
    def off_by_one_bit(*args, backend, perturb=ops.perturb, **options):
        out = perturb(*args, backend=backend, **options)
        if backend == "cpu" and _cpu.isa() == "baseline":
            out.view(torch.int32 if out.dtype == torch.float32 else torch.int16)[-1, -1, -1, -1] ^= 1
        return out

    monkeypatch.setattr(ops, "perturb", off_by_one_bit)
    text, healthy = doctor.report()
    assert not healthy
    (line,) = (line for line in text.splitlines() if "FAILED" in line)
    assert line.startswith("cpu, baseline")
    assert line.endswith(f"FAILED {', '.join(name for name in doctor.CHECKSUMS if name.startswith('perturb'))}")


@pytest.mark.parametrize("isa", _cpu.isas())
def test_the_instruction_set_in_use_stays_in_use(monkeypatch, isa):
    before = _cpu.isa()
    try:
        _cpu.use_isa(isa)
        doctor.report()
        assert _cpu.isa() == isa
        monkeypatch.setattr(ops, "accumulate", lambda *_, backend, **__: None if backend == "reference" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            doctor.report()
        assert _cpu.isa() == isa
    finally:
        _cpu.use_isa(before)


def test_a_missing_extension_is_said_and_is_not_healthy(monkeypatch):
    real_import = builtins.__import__

    def without_cpu(name, globals=None, locals=None, fromlist=(), level=0):
        if fromlist and "_cpu" in fromlist:
            raise ImportError("no such shared object")
        return real_import(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without_cpu)
    text, healthy = doctor.report()
    assert not healthy
    assert "cpu: does not load: no such shared object. If it is not built, install rsfast again, " in text
    assert "reference: ok" in text


def test_gpu_backends_are_tested_or_said_to_be_unused():
    text, _ = doctor.report()
    for name in ("cuda", "triton"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name}"))
        if not torch.cuda.is_available():
            assert line.startswith(f"{name}: torch sees no GPU")
        elif name in usable_on_the_gpu():
            assert line.endswith(": ok")
        else:
            assert ": not used: " in line


def test_a_gpu_backend_is_held_to_the_same_answers(monkeypatch):
    """A GPU that is the CPU, a backend "triton" that is the cpu's: ok. One that cannot run is advice, a wrong one fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")

    def not_built():
        raise ImportError("it is not built")

    monkeypatch.setitem(BACKENDS, "cuda", Backend("cuda", not_built))
    monkeypatch.setitem(BACKENDS, "triton", Backend("triton", lambda: cpu))
    text, healthy = doctor.report(gpu="cpu")
    assert healthy
    assert {"cuda: not used: it is not built", "triton, Test GPU: ok"} <= set(text.splitlines())

    def adds_twice(job):
        cpu.accumulate(job)
        cpu.accumulate(job)

    wrong = SimpleNamespace(perturb=cpu.perturb, accumulate=adds_twice, noise_of_words=cpu.noise_of_words)
    monkeypatch.setitem(BACKENDS, "triton", Backend("triton", lambda: wrong))
    text, healthy = doctor.report(gpu="cpu")
    assert not healthy
    assert "triton, Test GPU: FAILED accumulate" in text.splitlines()


def test_a_missing_extra_is_advice_and_healthy(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"rsfast-no-such-package": "plot"})
    text, healthy = doctor.report()
    assert healthy
    assert text.endswith("rsfast-no-such-package: not installed; `pip install 'rsfast[plot]'` installs it")


def test_what_was_done_about_memory_is_said(monkeypatch):
    text, _ = doctor.report()
    assert f"memory: {keep_freed_memory()}" in text.splitlines()
    monkeypatch.setenv("RSFAST_MALLOC", "maybe")
    with pytest.raises(ValueError, match="RSFAST_MALLOC must be 0 or 1, got 'maybe'"):
        doctor.report()


def test_versions_are_of_what_runs():
    versions = doctor.versions()
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert list(versions) == ["rsfast", "python", "torch", "numpy", "scipy"]
    assert json.loads(json.dumps(versions)) == versions
