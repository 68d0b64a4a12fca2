"""Self-test: what is installed, and whether every backend and instruction set gives the known bits on this machine."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from . import ops
from ._versions import __version__, versions
from .engine.allocator import keep_freed_memory
from .heads import ClippedLogits, Softmax, Sparsemax, Votes
from .noise import (
    STREAM_VERSION,
    AnisotropicGaussian,
    Gaussian,
    GridGaussian,
    Laplace,
    Mask,
    Noise,
    Splitting,
    Uniform,
    philox,
)
from .ops import words
from .ops.tally import Tally
from .runs.advisories import read_advisories

# (counter, key, words): the three Philox4x32-10 vectors of Random123's kat_vectors, and a counter as rsfast forms it.
PHILOX = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        0xFFFFFFFF_FFFFFFFF,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
    ((7, 100_000, 3, 1 << 24), 20240917, (0xCF7FCAC7, 0x4837BA6C, 0x6C862111, 0x2CA8BB8D)),
)

# (w0, w1, z0, z1): exact Box-Muller to double precision, from tests/vectors/normal.json (mpmath).
NORMALS = (
    (0, 0, 6.7637056350018952, 0.0),
    (0, 0x20000000, 4.7826621204595036, 4.7826621204595036),
    (0xFFFFFFFF, 0xFFFFFFFF, 1.5258789062944089e-5, -2.2322358387904910e-14),
    (0x80000000, 0x60000000, -0.83255461101786870, 0.83255461101786870),
    (3382122079, 847232886, 0.22489939273488374, 0.65368299027047348),
    (556728102, 3219461760, -0.0052156611570296881, -2.0214394099095873),
)

# Calls of perturb that are checked: the type and the noise.
_PERTURB: dict[str, tuple[torch.dtype, Noise]] = {
    "perturb float32": (torch.float32, Gaussian(0.5)),
    "perturb bfloat16": (torch.bfloat16, Gaussian(0.5)),
    "perturb Laplace": (torch.float32, Laplace(0.5)),
    "perturb GridGaussian": (torch.float32, GridGaussian(0.5)),
    "perturb AnisotropicGaussian": (torch.float32, AnisotropicGaussian((1 + np.arange(105.0)).reshape(3, 5, 7) / 64)),
    "perturb Mask": (torch.float32, Mask(0.5, 0.25, patch=2)),
    "perturb Uniform": (torch.float32, Uniform(0.5)),
    "perturb Splitting": (torch.float32, Splitting(0.5)),
    "perturb deterministic Splitting": (torch.float32, Splitting(0.5, deterministic=True)),
}

# Of the fixed calls below. They change with STREAM_VERSION or the definition of a head, and with nothing else.
CHECKSUMS = {
    "perturb float32": "1e619a29ecb8a63d",
    "perturb bfloat16": "9a9d30ee4f09ff98",
    "perturb Laplace": "d4647c5b61edeaf8",
    "perturb GridGaussian": "e7434f56dab90f3a",
    "perturb AnisotropicGaussian": "60deae0e5a2a39bd",
    "perturb Mask": "10c5be83756319cb",
    "perturb Uniform": "22882db6ed80cece",
    "perturb Splitting": "06cc1ec38284d4d6",
    "perturb deterministic Splitting": "9f30a36529067458",
    "accumulate": "d2a201a8a4afde0f",
    "words": "611176bd19d81b18",
}

EXTRAS = {
    **{"matplotlib": "plot", "scikit-learn": "demo", "jinja2": "report", "pillow": "report"},
    **{"timm": "vision", "torchvision": "vision", "datasets": "hf", "transformers": "hf"},
    **{"onnxruntime": "onnx", "adversarial-robustness-toolbox": "art"},
}
"""Libraries that only some commands, models and data need, and the extra that installs each."""


def report(*, gpu: str = "cuda") -> tuple[str, bool]:
    """Return a text about this installation, and whether every backend and instruction set that can run passed its tests.

    Parameters
    ----------
    gpu : str
        The device on which the backends for a GPU are tested.

    Notes
    -----
    Each is held to answers that are part of this module rather than to one another, so a fault that all share shows too.
    """
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"{platform.platform()}, {torch.get_num_threads()} threads, noise stream version {STREAM_VERSION}",
        f"memory: {keep_freed_memory()}",
        f"advisories: {_advisories()}",
    ]
    failures = {"reference": _failures("reference", "cpu")}
    try:
        from .ops import _cpu, cpu
    except ImportError as error:
        lines.append(f"cpu: does not load: {error}. If it is not built, install rsfast again, from its wheel or checkout")
        usable = False
    else:
        usable, in_use = True, _cpu.isa()
        lines.append(f"cpu threads: {cpu.TEAM + ', the team that torch keeps' if cpu.TEAM else 'of its own'}")
        try:
            for isa in _cpu.isas():
                _cpu.use_isa(isa)
                failures[f"cpu, {isa}{' (in use)' if isa == in_use else ''}"] = _failures("cpu", "cpu")
        finally:
            _cpu.use_isa(in_use)
    for name in ("cuda", "triton"):
        if not torch.cuda.is_available():
            lines.append(f"{name}: torch sees no GPU{_if_missing(name)}")
        elif reason := ops.BACKENDS[name].unavailable_reason(torch.device(gpu)):
            lines.append(f"{name}: not used: {reason}")
        else:
            failures[f"{name}, {torch.cuda.get_device_name()}"] = _failures(name, gpu)
    lines += [f"{name}: {'FAILED ' + ', '.join(failed) if failed else 'ok'}" for name, failed in failures.items()]
    for name, extra in EXTRAS.items():
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name}: not installed; `pip install 'rsfast[{extra}]'` installs it")
    return "\n".join(lines), usable and not any(failures.values())


def _advisories() -> str:
    updated, advisories = read_advisories()
    found = [each.id for each in advisories if each.affects_version(__version__)]
    if found:
        return f"AFFECTED by {', '.join(found)}; `rsfast doctor --advisories` says by what"
    return f"no advisory of the list of {updated} affects this version"


def _if_missing(name: str) -> str:
    module = "rsfast.ops._cuda" if name == "cuda" else name
    return "" if find_spec(module) else f", and {module} is not installed"


def _failures(backend: str, device: str) -> list[str]:
    """Return the names of the tests that a backend fails."""
    tests = {name: _perturb(backend, device, *call) == CHECKSUMS[name] for name, call in _PERTURB.items()}
    tests["accumulate"] = _accumulate(backend, device) == CHECKSUMS["accumulate"]
    tests["words"] = _words(backend, device) == CHECKSUMS["words"]
    if backend in ("reference", "cpu"):  # on a GPU the words of Philox do not leave the kernel
        tests["philox"] = all(_philox(backend, counter, key) == known for counter, key, known in PHILOX)
    got, exact = _normals(backend, device), np.array([z for _, _, *z in NORMALS])
    tests["normals"] = bool((np.abs(got - exact) <= np.maximum(2e-7, 4 * np.spacing(np.abs(got)))).all())
    return [name for name, passed in tests.items() if not passed]


def _philox(backend: str, counter: tuple[int, int, int, int], key: int) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    if backend == "reference":
        return tuple(map(int, philox((torch.tensor(c0), torch.tensor(c1), torch.tensor(c2), torch.tensor(c3)), key)))
    from .ops import _cpu

    out = np.zeros(4, dtype=np.uint32)
    _cpu.philox_words(key, c1, c2, c3, c0, 1, out.ctypes.data, 1)
    return tuple(out.tolist())


def _normals(backend: str, device: str) -> NDArray[np.float32]:
    pairs = torch.tensor([pair for *pair, _, _ in NORMALS], device=device).to(torch.int32)
    return words.noise_of_words("gaussian", pairs.view(-1), backend=backend).view(-1, 2).cpu().numpy()


def _words(backend: str, device: str) -> str:
    """Return the checksum of what draws make of the words around each eighth of 2^32, where the parts of draws meet."""
    around = (torch.arange(8, device=device)[:, None] * 2**29 + torch.arange(-128, 128, device=device)).view(-1) % 2**32
    draws = ((each.draw, each.make_words(around)) for each in words.SWEEPS.values())
    return _checksum(*(words.noise_of_words(draw, given, backend=backend) for draw, given in draws))


def _perturb(backend: str, device: str, dtype: torch.dtype, noise: Noise) -> str:
    """Return the checksum of a batch with an odd number of elements, extreme indices and every optional step."""
    out = ops.perturb(
        torch.arange(210.0, device=device).view(2, 3, 5, 7) / 64 - 1,
        noise,
        seed=0x9E3779B97F4A7C15,
        samples=[0, 1, 99_999, (1 << 32) + 5, (1 << 56) - 1],
        rows=[0, 1, 1, 0, 1],
        input_ids=[7, (1 << 32) - 1],
        stream="selection",
        scale=[1.5, 4.0, 3.0],
        shift=[-0.5, 0.25, 0.0],
        clamp=(-2.0, 3.0),
        dtype=dtype,
        channels_last=dtype == torch.bfloat16,
        backend=backend,
    )
    return _checksum(out)


def _accumulate(backend: str, device: str) -> str:
    """Return the checksum of the Tally of 97 rows of exact logits, with ties, masked classes and rows that do not vote."""
    logits = (torch.arange(97 * 11) * 0x9E3779B1 >> 9).remainder(512).sub(256).view(97, 11) / 32
    logits[5, 3], logits[50, 0], logits[70, 2:9], logits[71] = torch.nan, torch.inf, -torch.inf, -torch.inf
    heads, tracked = (Votes(), Softmax(), Sparsemax(2.0), ClippedLogits(-4.0, 4.0)), torch.arange(18).view(3, 3, 2) % 11
    tally = Tally(3, 11, heads, tracked_classes=tracked, device=device)
    ops.accumulate(logits.to(tally.n.device), tally, rows=torch.arange(97, device=tally.n.device) % 3, backend=backend)
    return _checksum(tally.n, tally.counts, tally.sums, tally.squares, tally.bin_counts, tally.bin_sums)


def _checksum(*tensors: torch.Tensor) -> str:
    contents = (tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]
