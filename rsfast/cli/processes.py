"""Devices by name, and the processes of torchrun."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous


def find_device(name: str) -> torch.device:
    """Return the device of that name if torch can use it here; errors name --device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        which = f"one of the {found} GPUs that torch sees here" if found else "cpu, as torch sees no GPU here"
        raise ValueError(f"--device must be {which}, got {name!r}")
    return device


def restarts() -> int:
    """Return how often torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join(device_name: str, shard: str | None) -> tuple[torch.device, str | None]:
    """Join the other processes of torchrun, if there are any; return this one's device and what they divide."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and device_name == "cuda":
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = find_device(device_name)
    if world == 1 and not distributed.is_initialized():
        if shard is not None and "WORLD_SIZE" not in os.environ:
            raise ValueError(f"--shard must be given under torchrun only, which starts several processes, got {shard}")
        return device, None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        # Where torchrun has started a job again, its store still holds the addresses of those that died.
        store, rank, world = next(rendezvous("env://"))
        store = PrefixStore(f"rsfast {restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # One that is done waits for the slowest, however long that takes: torchrun ends it where there is no use in that.
        patience = timedelta(days=365)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        atexit.register(distributed.destroy_process_group)
    return device, shard or "inputs"
