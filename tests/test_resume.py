"""--resume: the rows and counts of a run that was never stopped, whatever stopped it; or a clear refusal."""

import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import integers, largest_file, strip_sums
from torch import distributed

from rsfast import cli
from rsfast.engine.sampling import Sampling
from rsfast.runs.checkpoint import CHECKPOINT, load, save
from rsfast.runs.environment import Environment
from rsfast.runs.layout import identity
from rsfast.runs.writer import RunWriter, locked

NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 4)
        self.net = torch.nn.Sequential(*layers)
        self.net[-1].weight.data *= 6
        self.batches, self.at = 0, {}

    def forward(self, x):
        self.batches += 1
        self.at.get(self.batches, lambda: None)()
        return self.net(x.float())

net = Net()
def model():
    return net

another_name = model
"""
OPTIONS = "--model resume_nets:model --data data.npz --num-classes 4 --sigma 0.5 --batch-size 20"
VOTES = f"certify {OPTIONS} --n0 20 --n 300"
EARLY = f"certify {OPTIONS} --n0 20 --n 2000 --radius 0.4"
SOFT = f"certify {OPTIONS} --n0 20 --n 300 --head softmax:1"
PREDICT = f"predict {OPTIONS} --n 300"
PART = f"{VOTES} --start 1 --end 8 --skip 2"
FILES = ("results.tsv", "counts.jsonl")
EVERY_BATCH = Environment(checkpoint_every=0.0, checkpoint_share=0.0)


@pytest.fixture(autouse=True)
def net(tmp_path, monkeypatch):
    """The model of every run in this process, in a folder of its own; with a checkpoint after every batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "resume_nets.py").write_text(NETS)
    images = np.random.default_rng(4).integers(0, 2, (8, 3, 4, 4)).astype(np.float32)  # decided soon, under EARLY
    np.savez("data.npz", images=images, labels=np.arange(8) % 4)
    return importlib.import_module("resume_nets").net


def go(command, options="", environment=EVERY_BATCH):
    assert cli.main([*command.split(), *options.split()], environment=environment) == 0


def stop(command, options="", environment=EVERY_BATCH):
    """The exit status of a run that does not come to its end."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), *options.split()], environment=environment)
    return stopped.value.code


def rows(folder):
    return [line.rsplit("\t", 1)[0] for line in Path(folder, "results.tsv").read_text().splitlines()]


def contents(folder):
    """All files, but for the times in the table, and the command and the start in the sidecar."""
    assert sorted(file.name for file in Path(folder).iterdir()) == ["counts.jsonl", "results.json", "results.tsv"]
    sidecar = json.loads(Path(folder, "results.json").read_text())
    del sidecar["command"], sidecar["started"]
    return rows(folder), Path(folder, "counts.jsonl").read_bytes(), sidecar


def refuse(capsys, command, options, message):
    capsys.readouterr()
    assert stop(command, options) == 2
    assert message in capsys.readouterr().err


def send(*signals):
    """What a model does to be told to stop while it runs."""
    return lambda: [os.kill(os.getpid(), number) for number in signals]


def stopped_at(net, batch, command=VOTES, options="--seed 3", numbers=(signal.SIGTERM,)):
    """The exit status of a run, into the folder run, that is stopped in this batch; the first one tries the model."""
    net.batches, net.at = 0, {batch: send(*numbers)}
    status = stop(command, f"--out run {options}")
    assert net.batches == batch
    net.at = {}
    return status


# Killed


KILLS = """
    import json, os, random, signal, sys, time
    from contextlib import redirect_stderr, redirect_stdout
    import rsfast
    from rsfast.cli import main
    from rsfast.runs.environment import Environment

    HERE = os.path.dirname(rsfast.__file__)
    NAMES = ["runs/" + name for name in ("run.py", "rows.py", "merge.py", "checkpoint.py", "writer.py", "layout.py")]
    FILES = [os.path.join(HERE, name) for name in (*NAMES, "engine/sampler.py")]
    assert all(map(os.path.exists, FILES))

    def run(argv, delay=None, line=None):
        # In a process of its own, killed after so many seconds, or before so many lines of FILES. Whether it came to its
        # end, and the lines that it ran.
        pid = os.fork()
        if pid == 0:
            places = []
            def trace(frame, event, _):
                if event == "line":
                    if len(places) == line:
                        os.kill(os.getpid(), signal.SIGKILL)
                    places.append((frame.f_code.co_filename, frame.f_lineno))
                return trace
            if delay is None:
                sys.settrace(lambda frame, *_: trace if frame.f_code.co_filename in FILES else None)
            with open(os.devnull, "w") as sys.stdout, open("messages", "w") as sys.stderr:
                status = main(argv, environment=Environment(checkpoint_every=0.0, checkpoint_share=1.0))
            sys.settrace(None)
            with open("places", "w") as file:
                json.dump(places, file)
            os._exit(status)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL), (status, open("messages").read())
        return status == 0

    rng, commands = random.Random(int(sys.argv[1])), json.loads(sys.argv[3])
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        assert main([*commands[0], "--out", "first"]) == 0  # imports all that the others then need not import
    for number, command in enumerate(commands):
        began = time.monotonic()
        assert run([*command, "--out", f"whole{number}"])
        seconds = time.monotonic() - began
        with open("places") as file:
            places = [tuple(place) for place in json.load(file)]
        distinct = sorted(set(places))
        killed = count = 0
        while killed < int(sys.argv[2]):
            argv = [*command, "--resume", "--out", f"run{number}-{count}"]
            place = rng.choice(distinct)  # the first time before any line that is ever run, each as likely as the others
            how = {"line": rng.choice([at for at, each in enumerate(places) if each == place])}
            while not run(argv, **how):
                killed += 1
                how = rng.choice([{"line": rng.randrange(2 * len(places))}, {"delay": rng.uniform(0, 2 * seconds)}])
            count += 1
        print(killed)
"""


@pytest.mark.slow
def test_killed_at_random_moments():
    """SIGKILL again and again until a run comes to its end, at least 21 times, with a checkpoint after nearly every batch.

    A network with convolutions, in float32: early stops, a soft head with betting, and predict.
    """
    commands = [[*command.split(), "--seed", "3"] for command in (EARLY, SOFT, PREDICT)]
    argv = [sys.executable, "-c", textwrap.dedent(KILLS), "1", "7", json.dumps(commands)]
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) >= 7
    for number in range(3):
        folders = list(Path().glob(f"run{number}-*"))
        assert folders
        for folder in folders:
            assert contents(folder) == contents(f"whole{number}"), folder


def test_cut_off_anywhere():
    """Both files cut at random places that a killed run can leave: counts come before their row, each in one piece."""
    go(VOTES, "--out whole --seed 3")
    table, counts = (Path("whole", name).read_bytes() for name in FILES)
    ends = [[i + 1 for i, byte in enumerate(data) if byte == ord("\n")] for data in (table, counts)]
    rng = random.Random(4)
    for trial in range(12):
        number = rng.randrange(8)
        places = (ends[0][number], ends[1][number - 1] if number else 0)
        if rng.random() < 0.5:  # within the next line of counts
            places = (places[0], rng.randint(places[1], ends[1][number]))
        else:  # within the row that follows it
            places = (rng.randint(places[0], ends[0][number + 1] - 1), ends[1][number])
        folder = Path(f"cut{trial}")
        folder.mkdir()
        shutil.copy("whole/results.json", folder)
        for name, data, place in zip(FILES, (table, counts), places, strict=True):
            (folder / name).write_bytes(data[:place])
        go(VOTES, f"--out {folder} --resume")
        assert contents(folder) == contents("whole")


# Told to stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"),
    [
        (VOTES, signal.SIGINT),
        (SOFT, signal.SIGTERM),
        (EARLY, signal.SIGTERM),
        (PREDICT, signal.SIGINT),
        (PART, signal.SIGTERM),
    ],
)
@pytest.mark.usefixtures("unprobed")
def test_a_signal_saves_all_samples(command, number, net, capsys):
    """The batch that is under way is finished, and no sample that was drawn is drawn again."""
    go(command, "--out whole --seed 3")
    batches, outcomes = net.batches, 0
    for batch in np.linspace(2, batches - 1, 4).astype(int).tolist():
        capsys.readouterr()
        assert stopped_at(net, batch, command, numbers=[number]) == 128 + number
        said = re.fullmatch(
            rf"rsfast {command.split()[0]}: (interrupted|terminated); rows in run: (\d); samples of other images are saved; "
            r"--resume goes on\n",
            capsys.readouterr().err,
        )
        assert said[1] == {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
        assert int(said[2]) == len(rows("run")) - 1
        outcomes += Path("run", CHECKPOINT).read_text().count('"outcome"')
        go(command, "--out run --resume")
        assert capsys.readouterr().err == ""
        assert net.batches <= batches + 3  # one more tries the model; early, batches are filled with other speculations
        assert contents("run") == contents("whole")
        shutil.rmtree("run")
    assert outcomes or command != EARLY  # images that were decided before one that comes before them


@pytest.mark.parametrize("where", ["model", "checkpoint"])
def test_a_second_signal_stops_at_once(where, net, monkeypatch, capsys):
    go(VOTES, "--out whole --seed 3")
    net.batches, before = 0, []

    def twice():
        before.append(Path("run", CHECKPOINT).read_bytes())
        send(signal.SIGTERM, signal.SIGINT)()

    fsync = os.fsync
    with monkeypatch.context() as patch:
        if where == "model":
            net.at = {70: twice}
        else:
            patch.setattr(os, "fsync", lambda file: twice() if net.batches == 70 else fsync(file))
        assert stop(VOTES, "--out run --seed 3") == 130
    assert capsys.readouterr().err == (
        f"rsfast certify: interrupted; rows in run: {len(rows('run')) - 1}; --resume goes on\n"
    )
    assert net.batches == 70
    assert [Path("run", CHECKPOINT).read_bytes()] == before
    net.at = {}
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")


# What was saved


def test_without_a_checkpoint(net, capsys):
    """Removed, or not yet made: rows are kept, and other images begin again. A run that is new says nothing of that."""
    go(VOTES, "--out whole --seed 3 --resume")
    assert capsys.readouterr().err == ""
    stopped_at(net, 90)
    before = rows("run")
    assert len(before) > 1
    Path("run", CHECKPOINT).unlink()
    capsys.readouterr()
    go(VOTES, "--out run --resume")
    assert capsys.readouterr().err == "rsfast certify: no checkpoint in run; images without a row begin again\n"
    assert rows("run")[: len(before)] == before
    assert contents("run") == contents("whole")


@pytest.mark.usefixtures("unprobed")
def test_a_checkpoint_that_is_not_of_this_run(net, capsys):
    """Damaged or from elsewhere, it is refused before anything is drawn, and nothing is lost; removed, the run goes on."""
    go(VOTES, "--out whole --seed 3")
    stopped_at(net, 90, options="--seed 4")
    theirs = Path("run", CHECKPOINT).read_bytes()
    shutil.rmtree("run")
    stopped_at(net, 90)
    checkpoint = Path("run", CHECKPOINT)
    mine = checkpoint.read_bytes()
    cut = (
        f"{checkpoint}, line {mine.count(10)}, is damaged; remove it, and images without a row begin again (JSONDecodeError"
    )
    other = f"{checkpoint} must be of this run, got one of another run; remove it, and images without a row begin again"
    for data, message in ((mine[:-9], cut), (b"", f"{checkpoint}, line 1, is damaged"), (theirs, other)):
        checkpoint.write_bytes(data)
        before = {file: file.read_bytes() for file in Path("run").iterdir()}
        net.batches = 0
        refuse(capsys, VOTES, "--out run --resume", message)
        assert net.batches == 1
        assert {file: file.read_bytes() for file in Path("run").iterdir()} == before
    checkpoint.write_bytes(mine)  # and put back as it was, it serves
    go(VOTES, "--out run --resume")
    assert net.batches < 90
    assert contents("run") == contents("whole")


def progress():
    """How many samples a run has of each image that has no row; of those that are decided without end."""
    identity = json.loads(Path("run", CHECKPOINT).read_text().splitlines()[0])["run"]
    saved = load(Path("run"), identity)
    assert not saved.keys() & {int(row.split("\t")[0]) for row in rows("run")[1:]}
    return {idx: each.get("asked", math.inf) for idx, each in saved.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("unprobed")
def test_stopped_twice(net):
    """The second time all that was saved the first time is there, also of images decided before one that comes before."""
    go(EARLY, "--out whole --seed 3")
    batches, decided = net.batches, 0
    for batch in range(4, batches, 4):
        stopped_at(net, batch, EARLY)
        before = progress()
        stopped_at(net, 2, EARLY, "--resume")
        written = {int(row.split("\t")[0]) for row in rows("run")[1:]}
        after = progress()
        assert all(idx in written or after[idx] >= drawn for idx, drawn in before.items())
        decided += math.inf in before.values() and math.inf in after.values()
        go(EARLY, "--out run --resume")
        assert contents("run") == contents("whole")
        shutil.rmtree("run")
    assert decided


@pytest.mark.usefixtures("unprobed")
def test_images_whose_turn_has_not_come_again(net):
    """As a checkpoint of several processes may hold, more than one image that is half sampled."""
    go(VOTES, "--out whole --seed 3")
    stopped_at(net, 42)
    lines = Path("run", CHECKPOINT).read_text().splitlines()
    shutil.rmtree("run")
    stopped_at(net, 24)
    with open(Path("run", CHECKPOINT), "a") as file:
        file.write(lines[-1] + "\n")
    before = progress()
    assert sum(0 < drawn < 320 for drawn in before.values()) == 2
    stopped_at(net, 2, options="--resume")
    after = progress()
    assert before.keys() == after.keys()
    assert sum(after.values()) == sum(before.values()) + 20
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")


@pytest.mark.parametrize("command", [EARLY, SOFT], ids=["early", "betting"])
@pytest.mark.usefixtures("unprobed")
def test_a_checkpoint_that_is_older_than_rows(command, net):
    """Of images that have rows by now it is not used, nor saved again."""
    go(command, "--out whole --seed 3")
    batches = net.batches
    stopped_at(net, batches // 3, command)
    older = Path("run", CHECKPOINT).read_bytes()
    before = rows("run")
    stopped_at(net, batches // 2, command, "--resume")
    assert len(rows("run")) > len(before)
    Path("run", CHECKPOINT).write_bytes(older)
    stopped_at(net, 2, command, "--resume")
    progress()
    go(command, "--out run --resume")
    assert contents("run") == contents("whole")


@pytest.mark.parametrize("batch", [10, 90])
def test_a_full_disk_for_a_checkpoint(batch, net, capsys):
    """The rows and the checkpoint before are kept, whether the checkpoint fails or, later, a row."""
    go(SOFT, "--out whole --seed 3")
    batches, before, limits = net.batches, [], ExitStack()

    def fill():
        before.extend([rows("run"), Path("run", CHECKPOINT).read_bytes()])
        limits.enter_context(largest_file(len(before[1]) // 2))

    net.batches, net.at = 0, {batch: fill}
    with limits:
        assert stop(SOFT, "--out run --seed 3") == 2
    message = capsys.readouterr().err
    assert "File too large in writing run" in message
    assert "--resume goes on once there is space" in message
    assert net.batches == batch
    assert rows("run") == before[0]
    assert Path("run", CHECKPOINT).read_bytes() == before[1]
    net.at = {}
    go(SOFT, "--out run --resume")
    assert net.batches <= batches + 3
    assert contents("run") == contents("whole")


def test_a_full_disk_for_rows(capsys):
    """With the limit on the size of files that stands for one: counts of --radius are the largest file."""
    seldom = Environment(checkpoint_every=1e9)
    go(EARLY, "--out whole --seed 3")
    with largest_file(Path("whole/counts.jsonl").stat().st_size // 2):
        assert stop(EARLY, "--out run --seed 3", seldom) == 2
    assert capsys.readouterr().err == (
        "rsfast certify: error: [Errno 27] File too large in writing run; "
        "the rows before are kept, and --resume goes on once there is space\n"
    )
    assert 2 < len(rows("run")) < 9
    assert cli.main(["analyze", "run"]) == 0
    go(EARLY, "--out run --resume")
    assert contents("run") == contents("whole")


# The same run, or none


@pytest.mark.usefixtures("unprobed")
def test_a_run_that_is_finished(net, capsys):
    go(VOTES, "--out run --seed 3")
    before = {file: file.read_bytes() for file in Path("run").iterdir()}
    net.batches = 0
    go(VOTES, "--out run --resume")
    assert net.batches == 1
    assert {file: file.read_bytes() for file in Path("run").iterdir()} == before
    refuse(capsys, VOTES, "--out run --seed 3", "run must be a folder without a run, got one with results.tsv; name another")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed 4", "seed must be 3, as in run/results.json, got 4"),
        ("--sigma 0.25", "noise must be Gaussian(sigma=0.5), as in run/results.json, got Gaussian(sigma=0.25);"),
        ("--n 600", "n must be 300, as in run/results.json, got 600"),
        ("--alpha 0.01", "alpha must be 0.001, as in run/results.json, got 0.01"),
        ("--radius 0.5", "bound must be 'clopper_pearson'"),
        ("--end 4", "end must be 8, as in run/results.json, got 4"),
        ("--batch-size 10", "batch_size must be 20, as in run/results.json, got 10"),
        ("--num-classes 5", "num_classes must be 4, the logits that model returns a row, got 5"),
        ("--head softmax:1", "bound must be 'clopper_pearson', as in run/results.json, got 'betting'"),
    ],
)
def test_another_run_is_refused(options, message, net, capsys):
    stopped_at(net, 90)
    before = {file: file.read_bytes() for file in Path("run").iterdir()}
    refuse(capsys, VOTES, f"--out run --resume {options}", message)
    assert {file: file.read_bytes() for file in Path("run").iterdir()} == before


def test_auto_is_the_batch_size_of_the_run(net, monkeypatch):
    """As a search may find another one each time."""
    go(VOTES, "--out whole --seed 3")
    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "find_batch_size", staticmethod(lambda *_, **__: 20))
        stopped_at(net, 70, options="--seed 3 --batch-size auto")
        patch.setattr(Sampling, "find_batch_size", staticmethod(lambda *_, **__: 30))
        go(VOTES, "--out run --resume --batch-size auto")
    assert contents("run") == contents("whole")


def test_damage_is_told(capsys):
    go(VOTES, "--out run --seed 3")
    for name, message in (
        ("counts.jsonl", "run is damaged: counts.jsonl must have a line for each row of results.tsv"),
        ("results.tsv", "run is damaged: it must hold results.tsv, got results.json only"),
    ):
        Path("run", name).rename("away")
        before = {file: file.read_bytes() for file in Path("run").iterdir()}
        refuse(capsys, VOTES, "--out run --resume", message)
        assert {file: file.read_bytes() for file in Path("run").iterdir()} == before
        Path("away").rename(Path("run", name))
    Path("run/results.json").write_text("{")
    refuse(capsys, VOTES, "--out run --resume", "results.json must be JSON, got")


# Two processes


def test_two_processes_on_one_run(net, capsys):
    stopped_at(net, 90)
    with RunWriter("run", json.loads(Path("run/results.json").read_text()), resume=True) as first:
        assert len(first.done) == len(rows("run")) - 1
        refuse(capsys, VOTES, "--out run --resume", "run is being written by another process; wait for it, or name another")


@pytest.mark.usefixtures("unprobed")
def test_a_process_that_was_still_writing(net):
    """Rows are read once the run is locked: those that another process wrote until then are not written again."""
    go(VOTES, "--out whole --seed 3")
    stopped_at(net, 40)

    class Late(RunWriter):
        def __init__(self, folder, sidecar, *args, **kwargs):
            shutil.copytree("whole", folder, dirs_exist_ok=True)
            super().__init__(folder, sidecar, *args, **kwargs)

    net.batches = 0
    go(VOTES, "--out run --resume", Environment(writer=Late))
    assert net.batches == 1
    assert contents("run") == contents("whole")


@pytest.fixture
def _of_a_job():
    """Runs as of a job under torchrun, of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_of_a_job")
@pytest.mark.parametrize("step", range(6))
def test_killed_while_parts_are_merged(step, monkeypatch):
    """Before each step that changes a file: three renames, and the removal of the parts, file by file."""
    go(VOTES, "--out whole --seed 3")
    unlink, rename, steps = Path.unlink, Path.rename, []
    others = ("merge-old/results.tsv", "parts/notes.txt", "parts/0-of-9/x", "parts/0-of-1/notes.txt", "notes.txt")

    class Killed(BaseException):
        pass

    def counting(function):
        def call(*args, **kwargs):
            if len(steps) == step:
                raise Killed
            steps.append(function)
            return function(*args, **kwargs)

        return call

    def merging(*names):  # the first file of the merged run moves
        for file in others:  # somebody else's, who may have put them there meanwhile
            Path("run", file).parent.mkdir(parents=True, exist_ok=True)
            Path("run", file).write_text("mine")
        patch.setattr(Path, "rename", counting(rename))
        patch.setattr(Path, "unlink", counting(unlink))
        return names[0].rename(names[1])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", merging)
        with pytest.raises(Killed):
            go(VOTES, "--out run --seed 3")
    go(VOTES, "--out run --resume")
    for file in others:
        assert Path("run", file).read_text() == "mine"
    for name in ("merge-old", "parts", "notes.txt"):
        file = Path("run", name)
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert contents("run") == contents("whole")


@pytest.mark.usefixtures("_of_a_job")
def test_parts_of_another_number_of_processes(net, capsys):
    """They are gone on from, each image from where most was drawn of it; not while another job writes them."""
    go(VOTES, "--out whole --seed 3")
    batches = net.batches
    for batch, part in ((30, "0-of-3"), (70, "0-of-2"), (20, "1-of-3")):
        stopped_at(net, batch)
        Path("run/parts/0-of-1").rename(part)
        Path("run/parts").rmdir()
    for part in ("0-of-3", "0-of-2", "1-of-3"):
        shutil.move(part, f"run/parts/{part}")
    Path("run/parts/2-of-3").mkdir()  # of a process that was killed before it wrote anything
    with locked(Path("run/parts/0-of-2")):
        refuse(capsys, VOTES, "--out run --resume", "run/parts/0-of-2 is being written by another process; wait for it")
    net.batches = 0
    go(VOTES, "--out run --resume")
    assert capsys.readouterr().err == ""
    assert net.batches <= batches - 70 + 3
    assert contents("run") == contents("whole")


@pytest.mark.usefixtures("_of_a_job")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": 2}, "skip must be 2, as in run/parts/1-of-2/results.json, got 1"),
        ({"stream_version": 2}, "stream_version must be 2, as in run/parts/1-of-2/results.json, got 1"),
        ({"first_logits": [1.0, 2.0, 3.0, 4.0]}, "first_logits in run/parts/1-of-2/results.json is [1.0, 2.0, 3.0, 4.0]"),
    ],
)
def test_every_part_is_of_this_run(change, message, net, capsys):
    """Not the first of them alone."""
    stopped_at(net, 30)
    shutil.copytree("run/parts/0-of-1", "run/parts/1-of-2")
    sidecar = Path("run/parts/1-of-2/results.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | change))
    refuse(capsys, VOTES, "--out run --resume", message)


# What a model is known by, and what is none of a run


def test_a_model_that_computes_something_else_is_refused(net, capsys):
    """Its state_dict and name are those of the run: only what it returns tells."""
    stopped_at(net, 90)
    before = contents_with_checkpoint("run")
    hook = net.register_forward_hook(lambda module, arguments, logits: -logits)
    refuse(capsys, VOTES, "--out run --resume", "model must be that of the run in run, got resume_nets:model, whose logits")
    assert contents_with_checkpoint("run") == before
    hook.remove()
    net.register_forward_hook(lambda module, arguments, logits: logits * (1 + 1e-5))  # as another machine may have it
    go(VOTES, "--out run --resume")


def test_a_model_that_returns_infinity_is_known_again(net, capsys):
    net.register_forward_hook(lambda module, arguments, logits: logits.index_fill(1, torch.tensor([2]), torch.inf))
    go(VOTES, "--out whole --seed 3")
    said = capsys.readouterr().err
    assert said.startswith("rsfast certify: warning: model returned NaN, or a largest logit")
    assert "in 300 of the samples of input 0" in said
    stopped_at(net, 90)
    assert json.loads(Path("run/results.json").read_text())["first_logits"][2] is None
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")


def plain(logits):
    return logits


def tiny(logits):
    return logits * 1e-12


def offset(logits):
    return 100 + logits


def constant(logits):
    return torch.full_like(logits, -3.0)


def zero(logits):
    return torch.zeros_like(logits)


@pytest.mark.parametrize(
    ("returned", "change", "same"),
    [
        (plain, lambda logits: logits * 1.05, False),
        (plain, lambda logits: logits * 0.97, False),
        (plain, lambda logits: logits * 1.005, True),
        (plain, lambda logits: logits.roll(1, 1), False),
        (tiny, lambda logits: logits * 1.05, False),
        (tiny, lambda logits: logits * 1.005, True),
        (tiny, lambda logits: logits.roll(1, 1), False),
        (tiny, lambda logits: logits * 0, False),
        (offset, lambda logits: logits.roll(1, 1), False),  # where all logits are within 10 % of each other
        (offset, lambda logits: logits * (1 + 1e-5), True),
        (constant, lambda logits: logits * 1.05, False),
        (constant, lambda logits: logits * (1 + 1e-5), True),
        (zero, lambda logits: logits + 1e-9, False),
        (zero, lambda logits: logits, True),
    ],
)
def test_a_model_is_the_same_to_one_percent(returned, change, same, net, capsys):
    """Rounding may differ, as another machine may have it; whatever the size of the logits is."""
    hook = net.register_forward_hook(lambda module, arguments, logits: returned(logits))
    stopped_at(net, 90)
    before = contents_with_checkpoint("run")
    hook.remove()
    net.register_forward_hook(lambda module, arguments, logits: change(returned(logits)))
    if same:
        go(VOTES, "--out run --resume")
    else:
        refuse(capsys, VOTES, "--out run --resume", "run/results.json is [")
        assert contents_with_checkpoint("run") == before


def rewrite(**changes):
    """Change fields of the sidecar; those that become ... are removed."""
    sidecar = json.loads(Path("run/results.json").read_text()) | changes
    kept = {name: value for name, value in sidecar.items() if value is not ...}
    Path("run/results.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("recorded", [[1.0, 2.0], "x", None, [[0.0] * 4] * 2, {}])
def test_logits_that_cannot_be_compared_are_refused(recorded, net, capsys):
    stopped_at(net, 90)
    rewrite(first_logits=recorded)
    refuse(capsys, VOTES, "--out run --resume", f"first_logits in run/results.json is {recorded}")


def test_a_run_from_before_logits_were_recorded(net, capsys):
    stopped_at(net, 90)
    rewrite(first_logits=...)
    capsys.readouterr()
    go(VOTES, "--out run --resume")
    assert capsys.readouterr().err == (
        "rsfast certify: warning: run/results.json has no first_logits, so nothing shows whether the model still "
        "computes the same\n"
    )


# Every field of the sidecar, and every option


def another(value):
    """A value of the same kind, or of another kind where there is no value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return value[1:]
    return {} if value is None else {**value, "more": 1}


MAY_DIFFER = {"command", "started", "data", "weights"}
"""Fields that say nothing of a run that their neighbours do not: paths of files, whose hashes are there too."""

ALL_SET = "--seed 3 --clamp -2 2 --mean 0.5 --std 2 --weights weights.pt --autocast bfloat16"


@pytest.mark.parametrize(
    ("command", "options"), [(SOFT, ALL_SET), (EARLY, "--seed 3"), (PREDICT, ALL_SET)], ids=["soft", "early", "predict"]
)
def test_no_field_of_the_sidecar_may_differ(command, options, net, capsys):
    """But for a few, each changed or removed is refused by its name, and nothing is written."""
    torch.save(net.state_dict(), "weights.pt")
    stopped_at(net, 12, command, options)
    sidecar = json.loads(Path("run/results.json").read_text())
    options = f"--out run --resume {options}"
    assert {"start", "end", "skip", "clamp", "mean", "std", "device", "backend", "stream_version"} <= sidecar.keys()
    may_lack = {"first_logits", "scale", "shift", "reduced_precision", "mode_fixed", "norm"} | (
        {"clamp"} if sidecar["clamp"] is None else set()
    )  # as older runs do
    for name in sidecar.keys() - MAY_DIFFER:
        for value in [another(sidecar[name])] + ([] if name in may_lack else [...]):
            rewrite(**sidecar | {name: value})
            before = contents_with_checkpoint("run")
            refuse(capsys, command, options, "first_logits in run" if name == "first_logits" else f"{name} must be ")
            assert contents_with_checkpoint("run") == before
    rewrite(**sidecar | {name: another(sidecar[name]) for name in MAY_DIFFER})
    go(command, options)


@pytest.mark.parametrize("options", ["", "--mean 0.5 --std 2"])
def test_a_run_from_before_clamp_was_recorded_goes_on(options, net):
    """With its checkpoint. It had no clamp, so a run with one is refused; its scale and shift follow from mean and std."""
    go(VOTES, f"--out whole --seed 3 {options}")
    stopped_at(net, 90, options=f"--seed 3 {options}")
    strip_sums("run")
    saved = load(Path("run"), recorded_identity())
    rewrite(clamp=..., scale=..., shift=..., reduced_precision=..., mode_fixed=...)
    save(Path("run"), recorded_identity(), saved.values())
    net.batches = 0
    go(VOTES, f"--out run --resume {options}")
    assert net.batches < 90
    assert rows("run") == rows("whole")
    assert integers("run") == integers("whole")


def recorded_identity():
    return identity(json.loads(Path("run/results.json").read_text()))


def test_a_clamp_is_refused_in_a_run_without(net, capsys):
    stopped_at(net, 90)
    refuse(capsys, VOTES, "--out run --resume --clamp 0 1", "clamp must be None, as in run/results.json, got [0.0, 1.0]")
    rewrite(clamp=..., scale=..., shift=..., reduced_precision=..., mode_fixed=...)
    refuse(capsys, VOTES, "--out run --resume --clamp 0 1", "clamp must be None, as in run/results.json, got [0.0, 1.0]")


CHANGED = {  # options that change results, and a value that the run does not have
    "--model": "resume_nets:another_name",
    "--weights": "weights.pt",
    "--data": "other.npz",
    "--sigma": "0.25",
    "--noise": "laplace:0.5",
    "--alpha": "0.01",
    "--clamp": "0 1",
    "--mean": "0.5 --std 1",
    "--std": "2 --mean 0",
    "--seed": "4",
    "--batch-size": "10",
    "--start": "1",
    "--end": "4",
    "--max": "4",
    "--skip": "2",
    "--dtype": "float16",
    "--channels-last": "",
    "--autocast": "bfloat16",
    "--compile": "",
    "--backend": "reference",
    "--n": "600",
    "--n0": "30",
    "--head": "softmax:2",
    "--bound": "hoeffding",
    "--rule": "top_two",
    "--lipschitz": "1",
    "--top-k": "2",
    "--radius": "0.5",
    "--rtol": "0.1",
}
UNCHANGED = {  # those that do not; and those that no CPU can run, or other tests hold
    *("--help", "--out", "--resume", "--log-json", "--profile"),
    *("--shard", "--device", "--cuda-graph", "--num-classes"),
    *("--workers", "--image-size", "--checkpoint"),
}


@pytest.mark.parametrize("command", [SOFT, PREDICT], ids=["certify", "predict"])
def test_no_option_that_changes_results_may_differ(command, net, capsys):
    with np.load("data.npz") as data:
        np.savez("other.npz", images=data["images"], labels=data["labels"][::-1])
    torch.save(net.state_dict(), "weights.pt")
    stopped_at(net, 12, command)
    before = contents_with_checkpoint("run")
    capsys.readouterr()
    assert stop(f"{command.split()[0]} --help") == 0
    options = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out.partition("\n\n")[0])) | {"--max"}
    assert options - UNCHANGED <= CHANGED.keys()
    for name in sorted(options - UNCHANGED):
        refuse(
            capsys,
            command.replace("--sigma 0.5", "") if name == "--noise" else command,
            f"--out run --resume {name} {CHANGED[name]}",
            "resume with the same settings, or name another folder",
        )
        assert contents_with_checkpoint("run") == before
    go(command, "--out run --resume")


def test_a_run_of_another_noise_stream_is_refused(net, capsys):
    stopped_at(net, 90)
    rewrite(stream_version=2)
    refuse(capsys, VOTES, "--out run --resume", "stream_version must be 2, as in run/results.json, got 1")


@pytest.mark.parametrize("change", [{"seed": 4}, {"stream_version": 2}])
def test_a_seed_that_was_changed_is_refused(change, net, capsys):
    """Although it is taken from the sidecar where none is given: the logits that are recorded are of an image with noise."""
    stopped_at(net, 90)
    Path("run", CHECKPOINT).unlink()
    rewrite(**change)
    refuse(capsys, VOTES, "--out run --resume", "first_logits in run/" if "seed" in change else "stream_version must be 2")


def test_rows_of_other_images_are_refused(capsys):
    go(PART, "--out run --seed 3")
    strip_sums("run")
    for name, idx in (("results.tsv", "{}\t"), ("counts.jsonl", '"idx": {}')):
        *lines, last = Path("run", name).read_text().splitlines(keepends=True)
        Path("run", name).write_text("".join([*lines, last.replace(idx.format(6), idx.format(5), 1)]))
    assert [row.split("\t")[0] for row in rows("run")] == ["idx", "2", "4", "5"]
    refuse(capsys, PART, "--out run --resume", "idx in run/results.tsv must be in range(2, 8, 2), got 5; resume the same")


def test_a_fifo_in_place_of_a_new_file_does_not_hang(net):
    """A regression hangs."""
    go(VOTES, "--out whole --seed 3")
    Path("run").mkdir()
    for name in ("results.json.new", "checkpoint.jsonl.new"):
        os.mkfifo(Path("run", name))
    stopped_at(net, 90)
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")
    assert len(list(Path("run").iterdir())) == 3


def test_rows_with_other_labels_than_the_data_are_refused(capsys):
    go(VOTES, "--out run --seed 3")
    strip_sums("run")
    table = Path("run/results.tsv")
    head, first, *rest = table.read_text().splitlines(keepends=True)
    idx, label, predict, radius, _, time = first.split("\t")
    other = predict if predict != label else str((int(label) + 1) % 3)
    table.write_text("".join([head, "\t".join((idx, other, predict, radius, str(int(predict == other)), time)), *rest]))
    message = f"labels[{idx}] must be {other}, as in run/results.tsv, got {label}; resume with the same data"
    refuse(capsys, VOTES, "--out run --resume", message)


def contents_with_checkpoint(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_the_same_data_under_another_name(net):
    go(VOTES, "--out whole --seed 3")
    stopped_at(net, 90)
    shutil.copy("data.npz", "copy.npz")
    go(VOTES.replace("data.npz", "copy.npz"), "--out run --resume")
    assert contents("run") == contents("whole")


def test_counts_that_are_cut_off_cost_a_row(net):
    """As a power failure may leave them; counts that lack more are damage."""
    go(VOTES, "--out whole --seed 3")
    stopped_at(net, 90)
    assert len(rows("run")) > 3
    counts = Path("run/counts.jsonl")
    counts.write_bytes(counts.read_bytes()[:-5])
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")


def test_one_process_of_torchrun_may_share(monkeypatch):
    go(VOTES, "--out whole --seed 3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    go(VOTES, "--out run --seed 3 --shard inputs")
    assert contents("run") == contents("whole")


def test_a_model_that_raises_leaves_its_rows(net, capsys):
    def tire():
        raise KeyError("tired")

    go(VOTES, "--out whole --seed 3")
    net.batches, net.at = 0, {90: tire}
    with pytest.raises(KeyError, match="tired"):
        cli.main(f"{VOTES} --out run --seed 3".split())
    net.at = {}
    told = f"rsfast certify: rows in run: {len(rows('run')) - 1}; --resume goes on from the last checkpoint\n"
    assert told in capsys.readouterr().err
    go(VOTES, "--out run --resume")
    assert contents("run") == contents("whole")


def test_no_folder(capsys):
    refuse(capsys, VOTES.replace("certify", "certify --out="), "", "argument --out: must be the name of a folder, got ''")
