"""The registry of backends: what each can do, which one "auto" prefers, and why one is unavailable."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

import torch

from .._check import check_choice
from .calls import Accumulation, Accumulator, Perturbation, Perturber


class Kernels(Protocol):
    """What a backend's module holds. All backends give the same bits.

    It may also hold `perturber` and `accumulator`, which `Backend` makes of these otherwise, and `noise_of_words` for the
    tests of `ops.words`.
    """

    def perturb(self, job: Perturbation) -> None:
        """Fill ``job.out``, on torch's current stream where it is on a GPU."""

    def accumulate(self, job: Accumulation) -> None:
        """Add every row of the logits to its input's slot."""


class Backend:
    """An entry of the registry.

    Parameters
    ----------
    name : str
        As ``backend=`` takes it.
    load : callable
        Returns the kernels, or raises ImportError. Called when they are first needed.
    devices : tuple of str
        The types of the devices that its tensors may be on; all if it is empty.
    preference : int, optional
        "auto" takes the usable backend with the lowest, and never one with None.
    on_host : bool
        Whether the operators look at the tensors' values before a call. Kernels on a GPU check for themselves: to look at a
        GPU's values from the host is to wait for it.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Kernels],
        *,
        devices: tuple[str, ...] = (),
        preference: int | None = None,
        on_host: bool = False,
    ) -> None:
        self.name, self.devices, self.preference, self.on_host = name, devices, preference, on_host
        self._load = load
        self._kernels: Kernels | None = None
        self._usable: set[torch.device] = set()  # failures are not kept: they may pass

    @property
    def kernels(self) -> Kernels:
        """The kernels, loaded."""
        if self._kernels is None:
            self._kernels = self._load()
        return self._kernels

    def perturber(self, job: Perturbation) -> Perturber:
        """Return the call without its out, rows, samples and stream, which it takes for each batch."""
        kernels = self.kernels
        if make := getattr(kernels, "perturber", None):
            return cast(Perturber, make(job))
        return lambda out, places, stream: kernels.perturb(job.at(out, places, stream))

    def accumulator(self, job: Accumulation) -> Accumulator:
        """Return the call without its logits and rows, which it takes for each batch."""
        kernels = self.kernels
        if make := getattr(kernels, "accumulator", None):
            return cast(Accumulator, make(job))
        return lambda logits, places: kernels.accumulate(job.at(logits, places))

    def unavailable_reason(self, device: torch.device) -> str:
        """Return why the backend cannot run on `device`, or ""."""
        if device in self._usable:
            return ""
        if device.type == "cuda" and device.index is None and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
        reason = self.find_reason(device)
        if not reason:
            self._usable.add(device)
        return reason

    def find_reason(self, device: torch.device) -> str:
        """Find out what `unavailable_reason` returns; a backend with needs of its own overrides it."""
        if self.devices and device.type not in self.devices:
            where = {"cpu": "the CPU", "cuda": "a GPU"}.get(self.devices[0], self.devices[0])
            return f"its tensors must be on {where}, got tensors on '{device}'"
        try:
            _ = self.kernels
        except ImportError as error:
            return str(error)
        return ""


class _Cuda(Backend):
    def find_reason(self, device: torch.device) -> str:
        return super().find_reason(device) or cast(Any, self.kernels).unavailable_reason(device)


class _Triton(Backend):
    def find_reason(self, device: torch.device) -> str:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, to test kernels
        self.devices = ("cpu",) if interpreted else ("cuda",)
        return super().find_reason(device)


BACKENDS: dict[str, Backend] = {}
"""Every backend by its name."""
_preferred: list[str] = []  # what "auto" tries, the first first


def register(backend: Backend) -> None:
    """Add a backend to the registry.

    Raises
    ------
    ValueError
        If its name is taken.
    """
    if backend.name in (*BACKENDS, "auto"):
        raise ValueError(f"name must be one that no backend has, got {backend.name!r}")
    BACKENDS[backend.name] = backend
    order = {name: each.preference for name, each in BACKENDS.items() if each.preference is not None}
    _preferred[:] = sorted(order, key=order.__getitem__)


def _module(name: str) -> Callable[[], Kernels]:
    return lambda: cast(Kernels, import_module(f".{name}", __package__))


register(Backend("reference", _module("reference"), on_host=True))
register(Backend("cpu", _module("cpu"), devices=("cpu",), preference=0, on_host=True))
register(_Cuda("cuda", _module("cuda"), devices=("cuda",), preference=1))  # ROCm calls itself cuda, too
register(_Triton("triton", _module("triton_kernels"), devices=("cuda",), preference=2))


def check_backend(name: object) -> str:
    """Return `name` if it is "auto" or names a backend; raise ValueError if not."""
    return cast(str, check_choice("backend", name, ("auto", *BACKENDS)))


def find(name: str, device: torch.device) -> Backend:
    """Return the backend that `name` means for tensors on `device`; "auto" takes the fastest that can run there.

    Raises
    ------
    ValueError
        If `name` is unknown, or that backend cannot run on `device`.

    Examples
    --------
    >>> find("auto", torch.device("cpu")).name
    'cpu'
    """
    if name != "auto":
        backend = BACKENDS[check_backend(name)]
        if reason := backend.unavailable_reason(device):
            raise ValueError(f"backend must be one that can run on '{device}', got {name!r}: {reason}")
        return backend
    reasons = {}
    for each in _preferred:
        if not (reason := BACKENDS[each].unavailable_reason(device)):
            return BACKENDS[each]
        reasons[each] = reason
    tried = "; ".join(f"{each}: {reason}" for each, reason in reasons.items())
    raise ValueError(
        f"backend must be one that can run on '{device}', got 'auto', and no kernel can ({tried}); move the "
        "tensors to the CPU, or name backend='reference', which is plain PyTorch and slow"
    )


def backend_for(name: str, device: torch.device) -> str:
    """Return the name of the backend that `find` finds."""
    return find(name, device).name
