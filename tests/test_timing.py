"""Where the time of a run goes: what counts as model, kernels and bounds, and which batches a trace holds."""

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from conftest import largest_file

import rsfast
from rsfast.api import Sampling
from rsfast.engine.plan import Prediction
from rsfast.engine.timing import Profile, StageTimer
from rsfast.ops import accumulator, perturber


class Clock:
    """It moves when a test moves it."""

    now = 100.0

    def __call__(self):
        return self.now


def test_blocks_add_up():
    timer = StageTimer(clock=(clock := Clock()))
    for name, seconds in (("model", 2), ("bounds", 1), ("model", 0.5), ("kernels", 4)):
        with timer(name):
            clock.now += seconds
        clock.now += 8
    with suppress(MemoryError), timer("model"):
        clock.now += 16
        raise MemoryError  # what comes of this batch is counted when it is run again
    assert timer.seconds() == {"model": 2.5, "kernels": 4.0, "bounds": 1.0}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.usefixtures("unprobed")
def test_what_is_measured(autocast):
    """60 samples of each of 3 inputs in batches of 50: perturb takes 1 s, a model 10, accumulate 100, bounds 1000."""
    clock = Clock()

    def slowly(function, seconds):
        def slow(*args, **options):
            clock.now += seconds
            return function(*args, **options)

        return slow

    model = slowly(torch.nn.Linear(4, 2).eval(), 10)
    sampling = Sampling(
        model, torch.rand(3, 4), rsfast.Gaussian(0.5), 2, seed=1, batch_size=50, autocast=autocast, backend="cpu"
    )
    with sampling.inputs, sampling.bar(60, "") as bar:
        plan = Prediction(60, 0.01)
        plan.evaluate = slowly(plan.evaluate, 1000)
        sampler = sampling.sampler(plan, bar)
        batches = sampler.batches
        batches.timer = StageTimer(clock=clock)
        batches.perturber = lambda *args, **options: slowly(perturber(*args, **options), 1)
        batches.accumulator = lambda *args, **options: slowly(accumulator(*args, **options), 100)
        seen = []
        sampler.after_batch = lambda: seen.append(sampler.batches.timer.rows)
        assert len(list(sampler)) == 3
    seconds = sampler.batches.timer.seconds()
    assert seen[:4] == [50, 100, 150, 180]
    assert (seconds["model"], seconds["kernels"]) == (4 * 10, 4 * 101)
    assert seconds["bounds"] in (1000, 2000, 3000)
    assert sum(seconds.values()) == clock.now - 100


def test_events_of_a_gpu(monkeypatch):
    """Times are of the device's own stream, in milliseconds, and of what it has finished, in order; nothing waits."""
    stream = SimpleNamespace(now=0, finished=0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, on):
            assert on == ("stream of", torch.device("cuda", 1))
            self.when = stream.now

        def query(self):
            return self.when <= stream.finished

        def elapsed_time(self, end):
            assert end.query()
            return end.when - self.when

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    timer = StageTimer("cuda:1")
    for name, milliseconds in (("kernels", 100), ("model", 2000), ("kernels", 400)):
        with timer(name):
            stream.now += milliseconds
    assert timer.seconds() == {"model": 0, "kernels": 0, "bounds": 0}
    stream.finished = 2100
    assert timer.seconds() == {"model": 2.0, "kernels": 0.1, "bounds": 0}
    stream.finished = stream.now
    with timer("bounds"):
        pass
    assert timer.seconds()["kernels"] == 0.5
    assert timer.seconds()["bounds"] > 0  # on the host's clock


@pytest.mark.parametrize(
    ("count", "text", "traced"),
    [
        (3, "trace of batches 1 to 3 in {}: the warm-up, after which no batch was left to run", 3),
        (5, "trace of batches 1 to 5 in {}: the warm-up, after which no batch was left to run", 5),
        (7, "trace of batches 6 to 7 in {}", 2),
        (25, "trace of batches 6 to 25 in {}", 20),
        (40, "trace of batches 6 to 25 in {}", 20),
    ],
)
def test_the_batches_of_a_trace(count, text, traced, tmp_path):
    file, said = tmp_path / "trace.json", []
    file.write_text("an older trace")
    model = torch.nn.Conv2d(3, 4, 3)
    with Profile(file, said.append) as profile:
        for _ in range(count):
            model(torch.zeros(2, 3, 5, 5))
            profile()
    assert said == [text.format(file)]
    names = [event["name"] for event in json.loads(file.read_text())["traceEvents"]]
    assert names.count("aten::conv2d") == traced


def test_a_trace_that_cannot_be(tmp_path):
    said = []
    with Profile(tmp_path / "none.json", said.append):
        pass
    with largest_file(1000), Profile(tmp_path / "full.json", said.append) as profile:
        torch.zeros(3).add(1)
        profile()
    assert said == ["no trace: no batch was left to run", f"no trace: {tmp_path / 'full.json'} could not be written"]
    assert list(tmp_path.iterdir()) == []
