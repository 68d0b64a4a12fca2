"""Damaged files of every kind, thousands of them: an answer or a one-line error, and no answer better than the true one."""

import csv
import io
import os
import random
import shutil
import signal
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import LINEAR_NETS, integers

import rsfast
from rsfast.cli import main
from rsfast.engine.inputs import Unreadable
from rsfast.runs import results
from rsfast.runs.environment import Environment

pytestmark = pytest.mark.slow

CERTIFY = "certify --model damage_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --n0 20 --n 60 --batch-size 80"
PREDICT = CERTIFY.replace("certify ", "predict ").replace(" --n0 20", "")
RUNS = {
    "votes": f"{CERTIFY} --seed 1",
    "scores": f"{CERTIFY} --seed 2 --head softmax:1",
    "early": f"{CERTIFY} --seed 3 --radius 0.2",
    "classes": f"{PREDICT} --seed 4 --alpha 0.1",
}
TOKENS = [
    *(
        b"null",
        b"NaN",
        b"1e999",
        b"-1",
        b"1e308",
        b"1e-323",
        b"9" * 30,
        b"true",
        b'"x"',
        b"[]",
        b"{}",
        b"[" * 5000,
        b"\xff\xfe",
    ),
    *(b"\x00", b"\n", b"\t", b"\r\n", b",", b"0.5", b"1", b"2", b"3"),
]


def flip(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def digit(data, rng):
    """Another digit in place of one, as the most harmful damage to a table is."""
    places = [place for place, byte in enumerate(data) if byte in b"0123456789"]
    if not places:
        return flip(data, rng)
    place = rng.choice(places)
    return data[:place] + rng.choice(b"0123456789".replace(data[place : place + 1], b"")).to_bytes() + data[place + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def remove(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randrange(1, 40) :]


def insert(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + rng.choice(TOKENS) + data[place:]


def replace(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + rng.choice(TOKENS) + data[place + rng.randrange(1, 12) :]


def swap(data, rng):
    lines = data.splitlines(keepends=True)
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def repeat(data, rng):
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    return b"".join([*lines[: place + 1], *lines[place:]])


DAMAGE = (flip, digit, digit, cut, remove, insert, replace, swap, repeat)


@pytest.fixture(scope="module")
def _runs(tmp_path_factory):
    """One of each kind, whole; and one that was stopped, with its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("damage")
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        Path("damage_nets.py").write_text(LINEAR_NETS)
        images = np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)
        np.savez("data.npz", images=images, labels=np.arange(5) % 4)
        for name, command in RUNS.items():
            assert main(f"{command} --out {name}".split()) == 0
        yield


def call(command, capsys):
    """What a command prints; None after a one-line error. Anything else that it raises fails the test."""
    capsys.readouterr()
    try:
        status = main(command.split())
    except SystemExit as stopped:
        status = stopped.code
    said, name = capsys.readouterr(), command.split()[0]
    if status == 0:
        return said.out
    assert status == 2
    *warnings, error = said.err.splitlines()
    assert error.startswith(f"rsfast {name}: error: ")
    assert all(line.startswith(f"rsfast {name}: ") for line in warnings)
    return None


def rows(folder):
    with open(Path(folder, "results.tsv"), newline="", errors="replace") as file:
        return {row["idx"]: row for row in csv.DictReader(file, delimiter="\t")}


def assert_no_better(folder, whole):
    """Each row is one of the true run, or less."""
    found, true = rows(folder), rows(whole)
    assert found.keys() <= true.keys()
    for idx, row in found.items():
        assert row["label"] == true[idx]["label"]
        assert (row["predict"], row.get("radius")) == (true[idx]["predict"], true[idx].get("radius"))


def figures(text):
    """Images, and the figures of the last columns, of a table of one run as csv."""
    (row,) = csv.DictReader(io.StringIO(text))
    return {name: float(row[name]) for name in row if name in ("images", "ACR", "accuracy") or name.startswith("r=")}


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("file", ["results.tsv", "results.json", "counts.jsonl"])
def test_run_folders(run, file, capsys):
    rng = random.Random(f"{run} {file}")
    whole = Path(run, file).read_bytes()
    true = figures(call(f"analyze {run} --format csv --radii 0 0.1 0.2 0.4", capsys))
    answers = 0
    for number in range(130):
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree(run, "damaged")
        Path("damaged", file).write_bytes(rng.choice(DAMAGE)(whole, rng))
        for out in ("again", "all"):
            shutil.rmtree(out, ignore_errors=True)
        command = ("analyze", "recertify", "merge", "resume")[number % 4]
        if command == "analyze":
            said = call("analyze damaged --format csv --radii 0 0.1 0.2 0.4", capsys)
            if said is not None:
                found = figures(said)
                images = found.pop("images")  # fewer, if the last was cut off
                for name, value in found.items():
                    assert value * images <= true[name] * true["images"] + 1e-9, name
        elif command == "recertify":
            said = call("recertify damaged --out again", capsys)
            if said is not None:
                assert_no_better("again", run)
        elif command == "merge":
            said = call("merge damaged --out all", capsys)
            if said is not None:
                assert_no_better("all", run)
        else:
            said = call(f"{RUNS[run]} --out damaged --resume", capsys)
            if said is not None:
                assert_no_better("damaged", run)
                assert integers("damaged") == integers(run)
        answers += said is not None
        assert not Path("again", "results.tsv").exists() or said is not None
    assert answers < 100


class Pictures(torch.utils.data.Dataset):
    names = tuple(f"{place}.png" for place in range(5))

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index in (1, 3):
            raise Unreadable("no picture")
        return torch.full((3, 2, 2), index / 5), index % 4


@pytest.mark.usefixtures("_runs")
def test_skipped_images(capsys):
    """No image that has a row is taken for one that could not be read, none is lost, and a run goes on to its true end."""
    import damage_nets

    def certify(out, resume=False):
        options = {"num_classes": 4, "seed": 5, "batch_size": 80, "environment": Environment(say=lambda _: None)}
        run = rsfast.Run(damage_nets.Net(), Pictures(), rsfast.Gaussian(0.5), out, resume=resume, **options)
        return run.certify(n0=20, n=60).skipped

    true = certify("skips")
    whole = Path("skips/skipped.jsonl").read_bytes()
    rng, answers = random.Random(7), 0
    for number in range(120):
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree("skips", "damaged")
        Path("damaged/skipped.jsonl").write_bytes(rng.choice(DAMAGE)(whole, rng))
        for out in ("again", "all"):
            shutil.rmtree(out, ignore_errors=True)
        command, out = (("analyze", "damaged"), ("recertify", "again"), ("merge", "all"), ("resume", "damaged"))[number % 4]
        said: object = None
        if command == "resume":
            with suppress(ValueError):
                said = certify("damaged", resume=True)
                assert sorted(said) == true
        else:
            said = call(f"{command} damaged" + (f" --out {out}" if command != "analyze" else ""), capsys)
        if said is not None:
            assert_no_better(out, "skips")
            assert rows(out).keys() == rows("skips").keys()
            assert set(results.read(out).skipped) <= set(true)
        answers += said is not None
    assert 5 < answers < 90


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("run", ["votes", "early"])
def test_checkpoints(run, capsys, monkeypatch):
    """A run that was stopped ends as the whole one, or not at all."""
    import damage_nets

    rng, forward, calls = random.Random(run), damage_nets.Net.forward, []
    shutil.rmtree("stopped", ignore_errors=True)

    def stopping(net, x):
        calls.append(len(x))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(net, x)

    with monkeypatch.context() as patch:
        patch.setattr(damage_nets.Net, "forward", stopping)
        with pytest.raises(SystemExit) as stopped:
            main(f"{RUNS[run]} --out stopped".split())
    assert stopped.value.code == 143
    whole = Path("stopped/checkpoint.jsonl").read_bytes()
    assert whole.count(b"\n") > 1
    answers = 0
    for _ in range(80):
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree("stopped", "damaged")
        Path("damaged/checkpoint.jsonl").write_bytes(rng.choice(DAMAGE)(whole, rng))
        if call(f"{RUNS[run]} --out damaged --resume", capsys) is not None:
            answers += 1
            assert rows_without_times("damaged") == rows_without_times(run)
            assert integers("damaged") == integers(run)
    assert answers < 40


def rows_without_times(folder):
    return [{**row, "time": ""} for row in rows(folder).values()]


FOREIGN = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(
    f"{idx}\t{idx % 4}\t{idx % 3}\t{idx / 16}\t{int(idx % 4 == idx % 3)}\t0:00:0{idx}\n" for idx in range(9)
)


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("kind", ["certify", "predict"])
def test_tables_of_other_scripts(kind, capsys):
    """These have no check sums; they are read or refused."""
    rng, whole = random.Random(kind), FOREIGN.encode()
    if kind == "predict":
        whole = b"".join(
            b"\t".join(fields[:3] + fields[4:]) for fields in (line.split(b"\t") for line in whole.splitlines(keepends=True))
        )
    answers = 0
    for _ in range(300):
        Path("table.tsv").write_bytes(rng.choice(DAMAGE)(whole, rng))
        answers += call("analyze table.tsv", capsys) is not None
    assert 20 < answers < 280
    for _ in range(30):
        Path("table.tsv").write_bytes(rng.choice(DAMAGE)(whole, rng))
        call("plot table.tsv --out table.svg", capsys)


def archives():
    """Of arrays: as NumPy writes them; compressed; and with a header that says something else."""
    arrays = {"images": np.zeros((3, 3, 2, 2), dtype=np.float32), "labels": np.arange(3)}
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        yield file.getvalue()


def rezip(damage, data, rng):
    """Damage a member of an archive, and give it the check sums of that."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as new:
        chosen = rng.choice(archive.namelist())
        for name in archive.namelist():
            member = archive.read(name)
            new.writestr(name, damage(member[:200], rng) + member[200:] if name == chosen else member)
    return file.getvalue()


@pytest.mark.usefixtures("_runs")
def test_data(capsys):
    rng, answers = random.Random(5), 0
    for whole in archives():
        for number in range(120):
            damage = rng.choice(DAMAGE)
            Path("damaged.npz").write_bytes(rezip(damage, whole, rng) if number % 2 else damage(whole, rng))
            shutil.rmtree("out", ignore_errors=True)
            said = call(CERTIFY.replace("data.npz", "damaged.npz") + " --out out", capsys)
            assert Path("out").exists() == (said is not None)
            answers += said is not None
    assert 0 < answers < 200


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "legacy.pt"])
def test_weights(suffix, capsys):
    import damage_nets

    rng, state = random.Random(suffix), damage_nets.Net().state_dict()
    if suffix == "safetensors":
        safetensors.torch.save_file(state, "whole")
    else:
        torch.save(state, "whole", _use_new_zipfile_serialization=suffix == "pt")
    whole = Path("whole").read_bytes()
    for _ in range(80):
        Path(f"weights.{suffix}").write_bytes(rng.choice(DAMAGE)(whole, rng))
        shutil.rmtree("out", ignore_errors=True)
        said = call(f"{CERTIFY} --weights weights.{suffix} --out out", capsys)
        assert Path("out").exists() == (said is not None)


@pytest.mark.usefixtures("_runs")
def test_tallies():
    """Saved, and damaged: loaded to the same integers, or refused."""
    rng = random.Random(6)
    tally = rsfast.sample(lambda x: x, torch.eye(4), rsfast.Gaussian(0.5), num_classes=4, n=30, seed=1)
    tally.save("tally.safetensors")
    whole = Path("tally.safetensors").read_bytes()
    for _ in range(300):
        Path("tally.safetensors").write_bytes(rng.choice(DAMAGE)(whole, rng))
        with suppress(ValueError):
            rsfast.Tally.load("tally.safetensors")
