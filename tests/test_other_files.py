"""Other people's files in --out survive every command."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import programs
import pytest

from rsfast.cli import main

NETS = """
import torch

def linear():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
"""
BASE = "--model other_nets:linear --data data.npz --num-classes 3 --sigma 0.5 --n 60 --seed 1"
CERTIFY, PREDICT = f"certify {BASE} --n0 10", f"predict {BASE} --alpha 0.1"
OTHERS = (
    *("notes.txt", "results.tsv.bak", "counts.json", "trace.json.gz", ".hidden"),
    *("merge-1/results.tsv", "merge-abcdefgh/data", "merge-keep/results.json", "parts/list.txt", "parts/0-of-2/drawing.svg"),
    *("parts/3-of-4/results.txt", "parts/1-of-2/deeper/results.json", ".rsfast/config", ".rsfast-settings/results.json"),
    *(".rsfast-0123456789abcdef/results.tsv", ".rsfast-1123456789abcdef/results.json", ".rsfast-2123456789abcdef"),
)


@pytest.fixture(autouse=True)
def _folder(workspace):
    workspace("other_nets", NETS, np.arange(6) % 3)
    for start in (0, 3):
        assert main(f"{CERTIFY} --start {start} --end {start + 3} --out part{start}".split()) == 0
    for name in OTHERS:
        file = Path("out", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def assert_others_are_there(*ours):
    """And nothing but these and the files of a run."""
    files = {str(file.relative_to("out")) for file in Path("out").rglob("*") if file.is_file()}
    assert files == {*OTHERS, *ours, "results.tsv", "results.json", "counts.jsonl"}
    for name in OTHERS:
        assert Path("out", name).read_text() == name


@pytest.mark.parametrize(
    "command", [CERTIFY, PREDICT, f"{CERTIFY} --resume", "merge part0 part3", "recertify part0 --rule top_two"]
)
def test_commands(command):
    assert main(f"{command} --out out".split()) == 0
    assert_others_are_there()
    command = command.removesuffix(" --resume")
    if command in (CERTIFY, PREDICT):
        assert main(f"{command} --out out --resume".split()) == 0
        assert_others_are_there()


def test_profile():
    assert main(f"{CERTIFY} --profile --out out".split()) == 0
    assert_others_are_there("trace.json")


@pytest.mark.parametrize(
    "name", ["trace.json", "results.json", "counts.jsonl", "skipped.jsonl", "checkpoint.jsonl", "parts/0-of-2/results.json"]
)
def test_what_has_the_name_of_a_file_of_ours_is_refused(name, capsys):
    Path("out", name).write_text("mine")
    before = {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stopped:
        main(f"{CERTIFY} --profile --out out".split())
    assert stopped.value.code == 2
    assert f"{Path('out', name).parent}" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["inputs", "samples"])
def test_processes_that_share(shard):
    for more in ("", " --resume"):
        command = f"{CERTIFY} --shard {shard} --out out{more}".split()
        assert programs.run_ranks(2, "-m", "rsfast", *command) == [0, 0]
        assert_others_are_there()


def test_a_run_that_was_stopped(monkeypatch):
    """And in the working directory itself."""
    import other_nets
    import torch

    calls = []

    class Stops(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = other_nets.linear()

        def forward(self, x):
            calls.append(len(x))
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return self.model(x)

    monkeypatch.setattr(other_nets, "stops", Stops, raising=False)
    monkeypatch.chdir("out")
    command = CERTIFY.replace("data.npz", "../data.npz").replace("linear", "stops") + " --batch-size 70 --out ."
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 130
    assert Path("checkpoint.jsonl").exists()
    assert main(f"{command} --resume".split()) == 0
    monkeypatch.chdir("..")
    assert_others_are_there()
    assert json.loads(Path("out/results.json").read_text())["end"] == 6
