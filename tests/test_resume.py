"""rsfast certify --resume: the rows and counts of a run that was never stopped, whatever stopped it; or a clear refusal."""

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rsfast.cli import main
from rsfast.results import RunWriter

NETS = """
import time, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(4, 12, generator=generator) * 3)

    def forward(self, x):
        time.sleep(0.002)
        return x.flatten(1) @ self.weight.T
"""
COMMAND = "certify --model resume_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --n0 20 --n 500 --batch-size 20"
FILES = ("results.tsv", "counts.jsonl")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "resume_nets.py").write_text(NETS)
    images = np.random.default_rng(0).random((8, 3, 2, 2), dtype=np.float32)
    np.savez("data.npz", images=images, labels=np.arange(8) % 4)


def certify(options):
    assert main(f"{COMMAND} {options}".split()) == 0


def contents(folder):
    """The table without its times, and the counts."""
    table = [line.rsplit("\t", 1)[0] for line in Path(folder, "results.tsv").read_text().splitlines()]
    return table, Path(folder, "counts.jsonl").read_text()


def refuse(capsys, options, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        certify(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_cut_off_anywhere():
    """Both files cut at 40 random places that a killed run can leave: counts come before their row, each in one piece."""
    certify("--out whole --seed 3")
    table, counts = (Path("whole", name).read_bytes() for name in FILES)
    ends = [[i + 1 for i, byte in enumerate(data) if byte == ord("\n")] for data in (table, counts)]
    rng = random.Random(4)
    for trial in range(40):
        rows = rng.randrange(8)
        places = (ends[0][rows], ends[1][rows - 1] if rows else 0)
        if rng.random() < 0.5:  # within the next line of counts
            places = (places[0], rng.randint(places[1], ends[1][rows]))
        else:  # within the row that follows it
            places = (rng.randint(places[0], ends[0][rows + 1] - 1), ends[1][rows])
        folder = Path(f"cut{trial}")
        folder.mkdir()
        (folder / "results.json").write_bytes(Path("whole/results.json").read_bytes())
        for name, data, place in zip(FILES, (table, counts), places, strict=True):
            (folder / name).write_bytes(data[:place])
        certify(f"--out {folder} --resume")
        assert contents(folder) == contents("whole")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped(how):
    certify("--out whole --seed 3")
    command = [sys.executable, "-m", "rsfast", *f"{COMMAND} --out run --seed 3".split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})
    table = Path("run/results.tsv")
    deadline = time.monotonic() + 60
    while not (table.exists() and table.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    assert contents("run")[0] == contents("whole")[0][: len(contents("run")[0])]
    assert len(contents("run")[0]) < 9
    certify("--out run --resume")
    assert contents("run") == contents("whole")


def test_a_full_disk():
    """With the limit on the size of files that stands for one: counts of --radius are the largest file."""
    certify("--out whole --seed 3 --radius 0.4")
    size = Path("whole/counts.jsonl").stat().st_size // 2
    limited = f"""
        import resource
        from rsfast.cli import main
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, hard))
        main()
    """
    command = [sys.executable, "-B", "-c", textwrap.dedent(limited), *f"{COMMAND} --out run --seed 3 --radius 0.4".split()]
    process = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})
    assert process.returncode == 2
    assert process.stderr == (
        "rsfast certify: error: [Errno 27] File too large in writing run; "
        "the rows before are kept, and certify --resume goes on once there is space\n"
    )
    assert 2 < len(contents("run")[0]) < 9
    assert main(["analyze", "run"]) == 0
    certify("--out run --resume --radius 0.4")
    assert contents("run") == contents("whole")


def test_a_run_that_is_finished_or_not_begun(capsys):
    certify("--out run --seed 3 --resume")
    before = contents("run")
    certify("--out run --resume")
    assert contents("run") == before
    refuse(capsys, "--out run --seed 3", "exists; name another folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed 4", "with seed 3, this one has 4; to resume it must be the same run"),
        ("--sigma 0.25", "with noise {"),
        ("--n 600", "with n 500, this one has 600"),
        ("--alpha 0.01", "with alpha 0.001, this one has 0.01"),
        ("--radius 0.5", "is of a run with bound 'clopper_pearson'"),
        ("--end 4", "with end 8, this one has 4"),
    ],
)
def test_another_run_is_refused(options, message, capsys):
    certify("--out run --seed 3")
    before = contents("run")
    refuse(capsys, f"--out run --resume {options}", message)
    assert contents("run") == before


def test_damage_is_told(capsys):
    certify("--out run --seed 3")
    Path("run/counts.jsonl").unlink()
    refuse(capsys, "--out run --resume", "run is damaged: counts.jsonl must have a line for each row of results.tsv")
    assert len(Path("run/results.tsv").read_text().splitlines()) == 9
    Path("run/results.json").write_text("{")
    refuse(capsys, "--out run --resume", "results.json is not JSON")


def test_two_processes_on_one_run(capsys):
    certify("--out run --seed 3")
    sidecar = json.loads(Path("run/results.json").read_text())
    with RunWriter("run", sidecar, resume=True) as first:
        assert first.done == set(range(8))
        refuse(capsys, "--out run --resume", "run is being written by another process; wait for it, or name another folder")
