"""--log-json, the progress bar's figures and --profile: events parse and add up, and a watched run is the same run."""

import io
import json
import signal
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tqdm

from rsfast.cli import main
from rsfast.engine.ranks import Ranks
from rsfast.engine.timing import StageTimer
from rsfast.runs import results
from rsfast.runs.environment import Environment
from rsfast.runs.events import Log
from rsfast.runs.layout import CERTIFY_COLUMNS, PREDICT_COLUMNS

NETS = """
import os, signal, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(4, 12, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T

class Small(Net):  # for a device on which at most eight rows fit
    def forward(self, x):
        if len(x) > 8:
            raise RuntimeError("CUDA out of memory")
        return super().forward(x)

class Stopped(Net):  # by SIGTERM in its tenth batch, or by another error
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 11 and os.path.exists("stop"):
            os.remove("stop")
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls == 11 and os.path.exists("fail"):
            raise TypeError("the model's own words")
        return super().forward(x)
"""
OPTIONS = "--data data.npz --num-classes 4 --sigma 0.5 --seed 3 --batch-size 50"
CERTIFY = f"certify --model event_nets:Net {OPTIONS} --n0 20 --n 300 --out run"
IMAGES = 8


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "event_nets.py").write_text(NETS)
    images = np.random.default_rng(0).random((IMAGES, 3, 2, 2), dtype=np.float32)
    np.savez("data.npz", images=images, labels=np.arange(IMAGES) % 4)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ALL_EVENTS = Environment(event_every=0.0)


def certify(options, command=CERTIFY, environment=None):
    assert main(f"{command} {options}".split(), environment=environment) == 0


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def drawn(folder):
    """Samples of all images, from counts.jsonl."""
    return sum(
        counts[piece]["n"]
        for counts in read(f"{folder}/counts.jsonl")
        for piece in ("selection", "estimation")
        if piece in counts
    )


@pytest.mark.parametrize(
    ("command", "columns", "samples"),
    [
        (CERTIFY, CERTIFY_COLUMNS, 320 * IMAGES),
        (f"predict --model event_nets:Net {OPTIONS} --n 40 --alpha 0.01 --out run", PREDICT_COLUMNS, 40 * IMAGES),
    ],
)
def test_figures_add_up(command, columns, samples):
    certify("--log-json run/log.jsonl", command, ALL_EVENTS)
    found, run = read("run/log.jsonl"), results.read("run")
    batches = -(-samples // 50)
    assert [event["event"] for event in found] == ["start", *["progress"] * batches, "end"]
    start, end = found[0], found[-1]
    assert (start["images"], start["done_before"], start["batch_size"]) == (IMAGES, 0, 50)
    assert (start["device"], start["backend"], start["threads"]) == ("cpu", "cpu", torch.get_num_threads())
    assert start["command"].startswith(f"rsfast {command.split()[0]} ")
    assert start["versions"]["torch"] == torch.__version__
    assert end["images_done"] == len(run.idx) == IMAGES
    assert end["samples"] == drawn("run") == samples
    abstained = (run.predict == -1).mean()
    assert 0 < abstained < 1  # else this would not show
    assert end["abstained"] == pytest.approx(abstained, abs=1e-4)
    for event in found:
        shares = [event[f"share_{name}"] for name in ("model", "kernels", "bounds", "rest")]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert datetime.fromisoformat(event["time"]).utcoffset().total_seconds() == 0
        assert event["host_mib"] > 50
        assert "gpu_peak_mib" not in event
    assert [event["samples"] for event in found[1:-1]] == [min(50 * i, samples) for i in range(1, batches + 1)]
    for name in ("time", "seconds", "images_done"):
        values = [event[name] for event in found]
        assert values == sorted(values)


@pytest.mark.slow
def test_a_run_that_is_watched_is_the_same_run(capfd):
    certify("--log-json log.jsonl --profile")
    assert "rsfast certify: trace of batches 6 to 25 in run/trace.json\n" in capfd.readouterr().err
    names = [event["name"] for event in json.loads(Path("run/trace.json").read_text())["traceEvents"]]
    assert names.count("aten::matmul") == 20
    Path("run").rename("watched")
    certify("")
    assert Path("run/counts.jsonl").read_bytes() == Path("watched/counts.jsonl").read_bytes()
    assert not Path("run/trace.json").exists()
    assert [event["event"] for event in read("log.jsonl")] == ["start", "progress", "end"]


@pytest.mark.usefixtures("unprobed")
def test_a_run_that_is_stopped_and_goes_on():
    """Not one sample is drawn twice, and the log goes on in the same file."""
    command = CERTIFY.replace("Net", "Stopped")
    Path("stop").touch()
    with pytest.raises(SystemExit) as stopped:
        certify("--log-json log.jsonl", command)
    assert stopped.value.code == 143
    certify("--resume --log-json log.jsonl", command)
    found = read("log.jsonl")
    assert [event["event"] for event in found] == ["start", "progress", "checkpoint", "stop", "start", "progress", "end"]
    (_, _, checkpoint, stop, again, _, end) = found
    assert stop["why"] == "terminated"
    assert stop["samples"] == 10 * 50
    assert checkpoint["unfinished"] > 0
    assert again["done_before"] == stop["images_done"]
    assert again["images"] == end["images_done"] == IMAGES - stop["images_done"]
    assert stop["samples"] + end["samples"] == drawn("run") == 320 * IMAGES


def test_an_error_is_told():
    Path("fail").touch()
    with pytest.raises(SystemExit):
        certify("--log-json log.jsonl", CERTIFY.replace("Net", "Stopped"))
    stop = read("log.jsonl")[-1]
    assert (stop["event"], stop["why"]) == ("stop", "TypeError: the model's own words")


def test_memory_that_ran_out(capsys):
    certify("--log-json log.jsonl", CERTIFY.replace("Net", "Small"))
    assert capsys.readouterr().err.startswith("rsfast certify: warning: memory ran out")
    found = read("log.jsonl")
    assert [event["event"] for event in found] == ["start", "memory", "progress", "end"]
    assert [event["batch_limit"] for event in found] == [None, 7, 7, 7]
    assert found[-1]["samples"] == 320 * IMAGES


@pytest.mark.parametrize(("file", "why"), [("data.npz/log.jsonl", "File exists"), (".", "Is a directory")])
def test_a_file_that_cannot_be_written_is_refused(file, why, capsys):
    with pytest.raises(SystemExit) as stopped:
        certify(f"--log-json {file}")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"rsfast certify: error: log_json must be a file that can be written, or - for stderr, got {file} ({why})\n"
    )
    assert not Path("run").exists()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_log_without_space_does_not_end_the_run(capsys):
    certify("--log-json /dev/full")
    assert capsys.readouterr().err == (
        "rsfast certify: warning: log_json: No space left on device in writing /dev/full; the run goes on without it\n"
    )
    assert drawn("run") == 320 * IMAGES


def test_stderr(capsys):
    certify("--log-json -")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["start", "progress", "end"]


def test_several_processes_have_files_of_their_own():
    for rank in (0, 1):
        with Log("folder/log.jsonl", Ranks("samples", rank, 2)).running():
            pass
        assert [event["rank"] for event in read(f"folder/log.{rank}.jsonl")] == [rank, rank]
    assert len(list(Path("folder").iterdir())) == 2


class Bar:
    """A bar that shows itself when it is told to."""

    disable, last_print_t = False, 1.0

    def __init__(self, total=400, n=0):
        self.postfixes, self.total, self.n = [], total, n

    def set_postfix_str(self, text, refresh):
        assert not refresh
        self.postfixes.append(text)


def watched(device="cpu"):
    return SimpleNamespace(limit=50, timer=StageTimer(), forward=SimpleNamespace(device=torch.device(device)))


def test_how_often():
    """An event at once and then every ten seconds, of batches of four; new figures where the bar has shown the old ones."""
    clock, bar, batches = SimpleNamespace(now=100.0), Bar(), watched()
    spent = {"model": 0, "kernels": 0, "bounds": 0}
    batches.timer = SimpleNamespace(rows=0, seconds=lambda: spent)
    log = Log("log.jsonl", Ranks(), clock=lambda: clock.now)
    with log.running(), log.watching(bar, batches):
        for batch in range(8):
            clock.now += 4
            spent["model"] += 3
            spent["bounds"] += 1
            batches.timer.rows += 50
            bar.last_print_t += batch in (3, 4)
            log.batch()
        log.image(0)
        assert len(bar.postfixes) == 3
    assert len(bar.postfixes) == 4  # and the last ones, for the bar that stays
    found = read("log.jsonl")
    assert [(e["event"], e["seconds"]) for e in found] == [
        ("start", 0),
        ("progress", 4),
        ("progress", 16),
        ("progress", 28),
        ("end", 32),
    ]
    assert (found[-1]["images_per_second"], found[-1]["samples_per_second"]) == (0.03125, 12.5)
    assert [found[-1][f"share_{name}"] for name in ("model", "kernels", "bounds", "rest")] == [0.75, 0, 0.25, 0]


def estimates(rows, totals=None, bar=None, ranks=None, images=4):
    """What is left after each second, in which so many rows are drawn, and in which the bar's total may become another."""
    clock, batches, bar = SimpleNamespace(now=100.0), watched(), bar or Bar()
    log, found = Log(None, ranks or Ranks(), clock=lambda: clock.now), []
    with log.running(images=images), log.watching(bar, batches):
        found.append(log.figures()["seconds_left"])
        for second, more in enumerate(rows):
            clock.now += 1
            batches.timer.rows += more
            bar.total = totals[second] if totals else bar.total
            found.append(log.figures()["seconds_left"])
        for _ in range(images):
            log.image(0)
    return [*found, log.figures()["seconds_left"]]


def test_seconds_left():
    """By the share of samples that were drawn: those that a run drew before count for nothing."""
    assert estimates([100] * 4) == [None, 3, 2, 1, 0, 0]
    assert estimates([50, 150, 200], bar=Bar(total=1000, n=600)) == [None, 7, 2, 0, 0]
    assert estimates([], images=0) == [0, 0]


def test_seconds_left_where_images_are_decided_early():
    """Samples that are spared count, too: half of the images took an eighth of all samples."""
    assert estimates([50, 50], totals=[250, 100]) == [None, 1, 0, 0]


def test_seconds_left_of_processes_that_share_samples():
    """Each draws its part of what all have."""
    assert estimates([50] * 4, ranks=Ranks("samples", 0, 2)) == [None, 3, 2, 1, 0, 0]
    assert estimates([100] * 4, ranks=Ranks("inputs", 0, 2)) == [None, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("options", ["", "--radius 0.1", "--rtol 0.5"])
def test_totals_of_a_run(options):
    """At the end nothing is left, whether images stop early or not, and before each batch something."""
    certify(f"--log-json log.jsonl {options}", CERTIFY.replace("--out", "--batch-size 40 --out"), ALL_EVENTS)
    start, *between, end = read("log.jsonl")
    assert {event["images_total"] for event in (start, *between, end)} == {IMAGES}
    assert (start["seconds_left"], end["seconds_left"]) == (None, 0)
    assert all(event["seconds_left"] > 0 for event in between[:-1])
    assert options or between[-1]["seconds_left"] == 0  # else the last batch is looked at later


def test_totals_of_a_run_that_goes_on():
    command = CERTIFY.replace("Net", "Stopped")
    Path("stop").touch()
    with pytest.raises(SystemExit):
        certify("--log-json log.jsonl", command)
    certify("--resume --log-json log.jsonl", command)
    certify("--resume --log-json log.jsonl", command)
    ends = [event for event in read("log.jsonl") if event["event"] in ("stop", "end")]
    left = IMAGES - ends[0]["images_done"]
    assert [event["images_total"] for event in ends] == [IMAGES, left, 0]
    assert [event["seconds_left"] for event in ends[1:]] == [0, 0]
    assert ends[0]["seconds_left"] > 0


def test_a_bar_that_is_silent_costs_nothing():
    bar, log = Bar(), Log(None, Ranks())
    bar.disable, log.figures = True, lambda: pytest.fail("nobody asked")
    with log.running():
        manager = log.watching(bar, watched())
        manager.__enter__()
        log.batch()
    assert bar.postfixes == []


def test_the_bar_shows_the_figures():
    shown = io.StringIO()

    class Shown(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": shown, "ncols": 200})

    certify("--log-json log.jsonl", environment=Environment(bar=Shown))
    end, last = read("log.jsonl")[-1], shown.getvalue().rsplit("\r", 1)[-1]
    assert " images/s, model " in last
    assert f"abstained {end['abstained']:.0%}, {end['host_mib']} MiB]" in last


def test_peak_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {torch.device("cuda", 1): 5 << 20}[device])
    log = Log("log.jsonl", Ranks())
    with log.running(), log.watching(Bar(), watched("cuda:1")):
        log.batch()
    assert [event.get("gpu_peak_mib") for event in read("log.jsonl")] == [None, 5, 5]
