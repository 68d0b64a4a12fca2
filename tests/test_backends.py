"""The registry of backends: what "auto" takes, and that nothing falls back in silence."""

from types import SimpleNamespace

import pytest
import torch

from rsfast import Gaussian
from rsfast.ops import BACKENDS, backend_for, perturb, registry
from rsfast.ops.registry import Backend

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def fill(monkeypatch):
    """A backend that fills batches with a number."""
    monkeypatch.setattr(registry, "_preferred", list(registry._preferred))

    def fill(name, value, **options):
        backend = Backend(name, lambda: SimpleNamespace(perturb=lambda job: job.out.fill_(value)), **options)
        monkeypatch.delitem(BACKENDS, name, raising=False)
        registry.register(backend)
        return backend

    yield fill
    for name in {*BACKENDS} - {"reference", "cpu", "cuda", "triton"}:
        del BACKENDS[name]


def batch(backend):
    return perturb(torch.zeros(1, 2), Gaussian(1.0), seed=0, samples=[0], backend=backend).tolist()


def test_what_the_backends_can_do():
    declared = {name: (each.devices, each.preference, each.on_host) for name, each in BACKENDS.items()}
    assert declared == {
        "reference": ((), None, True),
        "cpu": (("cpu",), 0, True),
        "cuda": (("cuda",), 1, False),
        "triton": (("cuda",), 2, False),
    }


def test_a_backend_of_ones_own(fill):
    """One entry is all it takes: it is found by name, and by "auto" where it is preferred and can run."""
    fill("mine", 7.0, devices=("cpu",))
    assert batch("mine") == [[7.0, 7.0]]
    assert backend_for("auto", CPU) == "cpu"
    fill("first", 8.0, preference=-1)
    assert backend_for("auto", CPU) == backend_for("auto", META) == "first"
    assert batch("auto") == [[8.0, 8.0]]
    fill("elsewhere", 9.0, devices=("meta",), preference=-2)
    assert backend_for("auto", CPU) == "first"
    with pytest.raises(ValueError, match=r"^name must be one that no backend has, got 'cpu'$"):
        registry.register(Backend("cpu", lambda: None))


def test_a_backend_that_cannot_run_is_named_and_tried_again(monkeypatch):
    """A named one is an error, "auto" takes the next; a failure is not kept, as it may pass."""
    attempts = []

    def load():
        attempts.append(1)
        if len(attempts) < 4:
            raise ImportError("it is not built")
        return SimpleNamespace()

    monkeypatch.setitem(BACKENDS, "cpu", Backend("cpu", load, devices=("cpu",)))
    with pytest.raises(ValueError, match=r"^backend must be one that can run on 'cpu', got 'cpu': it is not built$"):
        batch("cpu")
    with pytest.raises(
        ValueError, match=r"^backend must be .* 'cpu', got 'auto', and no kernel can \(cpu: it is not built; cuda: "
    ):
        batch("auto")
    for _ in range(3):
        reason = BACKENDS["cpu"].unavailable_reason(CPU)
        assert reason == ("it is not built" if len(attempts) == 3 else "")
    assert len(attempts) == 4
