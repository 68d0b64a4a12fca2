"""Sampler on a GPU that is not there (fake_device): nothing waits that need not, and nothing is read before it has come."""

import pytest
import torch
from fake_device import CUDA, FakeDevice, accumulator, perturber
from test_packing import COUNT, N0, NOISE, N, X, plainly, plan

from rsfast._progress import progress_bar
from rsfast.engine.batches import Batches, to_device, to_host
from rsfast.engine.forward import Forward
from rsfast.engine.plan import Prediction
from rsfast.engine.ranks import Ranks
from rsfast.engine.sampler import Pacing, Sampler
from rsfast.engine.timing import StageTimer

LAUNCH, BATCH = 1e-4, 1e-3  # seconds that a batch takes on the host and on the device


@pytest.fixture
def device(monkeypatch):
    return FakeDevice(monkeypatch)


def sampler(device, of, size, *, source=None, lag=None, saved=None):
    def model(batch):
        device.now += LAUNCH
        device.run(BATCH)
        return batch.flatten(1)[:, :4]

    with device, device.may_wait():
        timer, how = StageTimer(CUDA), {"backend": "cpu"}
        batches = Batches(Forward(model, 4, CUDA), NOISE, seed=5, size=size, preparation=how, pad=True, timer=timer)
        batches.perturber, batches.accumulator = perturber, accumulator
        pacing, bar = Pacing(lag=lag, clock=lambda: device.now), progress_bar(total=None, disable=True)
        source = enumerate(X) if source is None else source
        return Sampler(of, source, X.shape[1:], None, batches, pacing=pacing, ranks=Ranks(), bar=bar, saved=saved)


def results(outcomes, head):
    found = [each.result for each in outcomes]
    return found if head == "both" else [each for [each] in found]


@pytest.mark.parametrize(
    ("head", "stopping", "lag"), [("votes", "n", 1), ("votes", "n", 5), ("both", "radius", None), ("both", "radius", 2)]
)
def test_nothing_waits_and_nothing_shows(device, head, stopping, lag):
    """And a batch is launched before the Tallies of the one before are waited for."""
    the_sampler = sampler(device, plan(head, stopping), 50, lag=lag)
    with device:
        assert results(the_sampler, head) == plainly(head, stopping)
    assert 2 <= device.events.index("wait") <= (lag or 1) + 1


def test_copies_to_the_device(device):
    """One a batch, one for the rows whose Tallies come back with it, one an input; and one to empty its rows."""
    ends = [0] * (COUNT * (N0 + N) // 40)
    for place in range(COUNT):
        for end in (place * (N0 + N) + N0, (place + 1) * (N0 + N)):
            ends[-(-end // 40) - 1] = 1
    the_sampler = sampler(device, plan("votes", "n"), 40, lag=1)
    with device:
        list(the_sampler)
    assert len(ends) + sum(ends) + COUNT <= device.copies <= len(ends) + sum(ends) + 2 * COUNT


def test_while_tallies_are_evaluated_the_device_has_batches(device, monkeypatch):
    """Where an evaluation takes three batches' time, as many are launched ahead; one after another leaves it idle."""
    idle = {}
    for lag in (1, None):
        device = FakeDevice(monkeypatch)
        of = Prediction(32, 0.01)

        def evaluate(*given, of=of, device=device):
            device.now += 3 * BATCH
            return Prediction.evaluate(of, *given)

        of.evaluate = evaluate
        the_sampler = sampler(device, of, 16, source=enumerate(X.repeat(5, 1, 1)), lag=lag)
        with device:
            idle[lag] = [each.result for each in the_sampler], device.idle
    assert idle[1][0] == idle[None][0]
    assert device.events.count("batch") == 100
    assert idle[1][1] > 0.1 * device.busy > 3 * idle[None][1]


def test_a_checkpoint_while_batches_are_under_way(device):
    """It holds what was launched; a run that goes on from it finds the same."""
    first, saved, held = sampler(device, plan("both", "radius"), 50), [], []

    class Stop(BaseException):  # as a signal, after which nothing is finished
        pass

    def after_batch():
        if device.events.count("batch") == 12:
            with device.may_wait():
                saved.extend(first.unfinished())
            held.extend(first.held())
            raise Stop

    first.after_batch, outcomes = after_batch, []
    with device, pytest.raises(Stop):
        outcomes.extend(first)
    assert any(each["asked"] for each in saved)
    found = {each.input_id: each.result for each in outcomes + held}
    begun = {each["idx"]: each for each in saved}
    left = [(place, X[place]) for place in range(COUNT) if place not in found]
    again = sampler(device, plan("both", "radius"), 50, source=left, saved=begun)
    with device:
        found |= {each.input_id: each.result for each in again}
    assert [found[place] for place in range(COUNT)] == plainly("both", "radius")


def test_the_fake_tells_what_waits(device):
    """Else the tests above would show nothing."""
    with device:
        there = torch.zeros(3, dtype=torch.int64, device=CUDA)
        assert there.device == to_device(torch.zeros(3), CUDA).device == CUDA
        waiting = (
            lambda: bool(there[0] > 0),
            lambda: there.sum().item(),
            lambda: there.cpu(),
            lambda: torch.zeros(3, dtype=torch.int64).copy_(there, non_blocking=True),
            lambda: torch.zeros(3).to(CUDA),
            lambda: torch.zeros(3).to(CUDA, non_blocking=True),
            lambda: there[torch.tensor([1])],
        )
        for each in waiting:
            with pytest.raises(AssertionError):
                each()
        device.run(1.0)
        values, event = to_host(there)
        assert values.tolist() == [-7] * 3
        assert not event.query()
        event.synchronize()
        assert values.tolist() == [0] * 3
        source = torch.zeros(3).pin_memory()
        source.to(CUDA, non_blocking=True)
        source += 1
        with pytest.raises(AssertionError, match="written to while"):
            event.synchronize()
