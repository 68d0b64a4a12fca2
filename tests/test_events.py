"""What a run says of itself while it runs: events in a file, figures beside the bar, a trace."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from rsfast import events, results
from rsfast.batches import Batches
from rsfast.cli import main
from rsfast.events import Log
from rsfast.forward import Forward
from rsfast.meter import Meter
from rsfast.noise import Gaussian

NETS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 4))
"""
BASE = "--model event_nets:net --data data.npz --num-classes 4 --sigma 0.5 --seed 1 --batch-size 50"
FIGURES = ("images", "images_per_second", "samples", "samples_per_second", "model", "kernels", "bounds", "abstained")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("event_nets.py").write_text(NETS)
    np.savez("data.npz", images=np.random.default_rng(0).random((6, 3, 6, 6), dtype=np.float32))


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.parametrize("command", ["certify --n0 20 --n 400", "certify --n0 20 --n 4000 --radius 0.2", "predict --n 300"])
def test_events_of_a_run(command, monkeypatch):
    monkeypatch.setattr(events, "_EVERY", 0)  # after every batch
    assert main(f"{command} {BASE} --out run --log-json log.jsonl".split()) == 0
    first, *progress, last = read("log.jsonl")
    assert (first["event"], last["event"]) == ("start", "end")
    assert {each["event"] for each in progress} == {"progress"}
    assert len(progress) > 5
    for before, after in zip([first, *progress], [*progress, last], strict=True):
        assert before["time"] <= after["time"]
        assert all(before[name] <= after[name] for name in ("seconds", "images", "samples"))
    for each in (*progress, last):
        assert all(each[name] >= 0 for name in FIGURES)
        assert each["model"] + each["kernels"] + each["bounds"] <= 1
        assert each["batch_size"] == 50
        assert each["peak_memory_mib"] > 20
    assert last["model"] > 0 < last["kernels"]
    columns = results.PREDICT_COLUMNS if command.startswith("predict") else results.CERTIFY_COLUMNS
    rows = results.read("run", columns)
    assert last["images"] == len(rows.idx) == first["images_to_do"] == 6
    assert last["abstained"] == pytest.approx((rows.predict == -1).mean())
    drawn = results.read_counts("run").values()
    counted = [each.get("selection", {"n": 0})["n"] + total(each["estimation"]) for each in drawn]
    assert sum(counted) <= last["samples"] <= sum(counted) + 50  # some past the last look
    assert last["samples_per_second"] == pytest.approx(last["samples"] / last["seconds"], rel=0.1)


def total(estimation):
    return estimation["n"] if isinstance(estimation, dict) else sum(each["n"] for each in estimation)


def test_a_resumed_run_goes_on_in_the_same_file():
    assert main(f"certify --n 300 {BASE} --end 6 --out run --log-json log.jsonl".split()) == 0
    table = Path("run/results.tsv")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    assert main(f"certify --n 300 {BASE} --end 6 --out run --log-json log.jsonl --resume".split()) == 0
    starts = [each for each in read("log.jsonl") if each["event"] == "start"]
    assert [each["images_to_do"] for each in starts] == [6, 3]


def test_a_stop_is_told():
    bar, batches = (
        tqdm(total=10, disable=True),
        Batches(
            Forward(lambda batch: batch, 2, torch.device("cpu")),
            Gaussian(1.0),
            seed=1,
            size=4,
            preparation={"backend": "cpu"},
        ),
    )
    with pytest.raises(RuntimeError, match="out of luck"), Log("log.jsonl", bar, batches, 3):
        raise RuntimeError("out of luck")
    assert [(each["event"], each["rank"], each.get("error")) for each in read("log.jsonl")] == [
        ("start", 3, None),
        ("stop", 3, "RuntimeError: out of luck"),
    ]


def test_figures_beside_the_bar(monkeypatch):
    monkeypatch.setattr(events, "_BAR", 0)
    shown = io.StringIO()
    batches = Batches(
        Forward(lambda batch: batch, 2, torch.device("cpu")), Gaussian(1.0), seed=1, size=4, preparation={"backend": "cpu"}
    )
    with tqdm(total=10, file=shown) as bar, Log(None, bar, batches, 0) as log:
        log.row(abstained=True)
        log.row(abstained=False)
        log.after_batch()
    assert "images/s, model 0%, abstained 50%, " in shown.getvalue()


def test_a_file_that_cannot_be_written_is_refused_first(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(f"certify {BASE} --out run --log-json missing/log.jsonl".split())
    assert stopped.value.code == 2
    assert "No such file or directory: 'missing/log.jsonl'" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(("n", "batches"), [(3000, 20), (100, 13)])
def test_a_trace_of_the_first_batches(n, batches, capsys):
    assert main(f"predict --n {n} {BASE} --out run --profile".split()) == 0
    assert f"run/trace.json: the first {batches - (batches == 13)} batches" in capsys.readouterr().err
    names = [event.get("name") for event in json.loads(Path("run/trace.json").read_text())["traceEvents"]]
    assert names.count("aten::conv2d") == min(20, 6 * n // 50)
    assert names.count("rsfast::perturb") >= min(20, 6 * n // 50)


def test_the_meter_adds_up(monkeypatch):
    times = iter([0.0, 1.0, 5.0, 7.5, 10.0, 10.25])
    monkeypatch.setattr("rsfast.meter.time.perf_counter", lambda: next(times))
    meter = Meter()
    for name in ("model", "kernels", "model"):
        with meter(name):
            pass
    assert meter.seconds() == {"model": 1.25, "kernels": 2.5, "bounds": 0.0}


def test_the_meter_waits_for_no_event(monkeypatch):
    """On a GPU, by a fake: an event that has not happened is left for later."""

    class Event:
        happened = False

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def query(self):
            return self.happened

        def elapsed_time(self, end):
            assert end.happened
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    meter = Meter("cuda")
    with meter("model"):
        pass
    assert meter.seconds()["model"] == 0
    Event.happened = True
    assert meter.seconds()["model"] == 1.5
