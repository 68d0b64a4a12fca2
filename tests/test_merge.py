"""rsfast merge: of runs over parts of the images, the run over all of them, or a clear refusal that writes nothing."""

import csv
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import integers, largest_file, rows, sidecar, strip_sums

from rsfast.cli import main
from rsfast.runs.layout import CERTIFY_COLUMNS, COUNTS, SIDECAR, SKIPPED, TABLE, Skipped
from rsfast.runs.merge import merge
from rsfast.runs.results import read
from rsfast.runs.writer import RunWriter

# Runs as earlier versions wrote them, and those that `write` makes in a moment.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no check sums", "ignore:.* lacks alpha")

NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(4, 12, generator=generator) * 3)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T

class Other(Net):
    pass
"""
COMMON = "--data data.npz --num-classes 4 --sigma 0.5 --n 400"
SHARDS = ("--start 4 --end 7", "--end 4", "--start 7")  # in no order


@pytest.fixture(autouse=True)
def _folder(workspace):
    workspace("merge_nets", NETS, np.arange(9) % 2 + 1)  # some are predicted


def run(options, command="certify", seed=3, model="Net"):
    assert main(f"{command} --model merge_nets:{model} --seed {seed} {COMMON} {options}".split()) == 0


def shards(options="", command="certify"):
    for number, shard in enumerate(SHARDS):
        run(f"{options} {shard} --out part{number}", command)
    return [f"part{number}" for number in range(len(SHARDS))]


def assert_same_run(found, expected, others=()):
    assert rows(found) == rows(expected)
    assert Path(found, COUNTS).read_bytes() == Path(expected, COUNTS).read_bytes()
    same = sidecar(found) | {name: sidecar(expected)[name] for name in ("command", "started")}
    assert json.dumps(same, indent=2) + "\n" == Path(expected, SIDECAR).read_text()
    skipped = [SKIPPED] if Path(expected, SKIPPED).exists() else []
    assert sorted(file.name for file in Path(found).iterdir()) == sorted([COUNTS, SIDECAR, TABLE, *skipped, *others])
    assert [Path(found, name).read_bytes() for name in skipped] == [Path(expected, name).read_bytes() for name in skipped]


def write(folder, inputs, skipped=(), **more):
    """A run folder in a moment."""
    about = {"command": f"write {folder}", "started": "now", "n": 100, "start": 0, "end": 8, "skip": 1}
    with RunWriter(folder, about | more) as writer:
        for idx in inputs:
            writer.write(idx, 1, SimpleNamespace(prediction=1, radius=idx / 8), idx, {"estimation": {"n": 100 + idx}})
        for idx in skipped:
            writer.skip(Skipped(idx, f"{idx}.png", "no picture"))


@pytest.mark.parametrize(
    ("command", "options"),
    [("certify", ""), ("certify", "--skip 2"), ("certify", "--head softmax:0.5 --radius 0.3"), ("predict", "")],
)
def test_shards_merge_to_the_run_over_all(command, options, capsys):
    run(f"{options} --out whole", command)
    parts = shards(options, command)
    capsys.readouterr()
    assert main(["merge", *parts, "--out", "all"]) == 0
    said = capsys.readouterr()
    assert said.out == f"all: {len(rows('whole')) - 1} images from 3 run folders\n"
    assert said.err == ""
    assert_same_run("all", "whole")
    assert len(set(sidecar("all")["command"])) == 3
    assert "--end 4" in sidecar("all")["command"][0]  # in order of the images
    # The times, too, are those that were taken.
    lines = {line for part in parts for line in Path(part, TABLE).read_text().splitlines()}
    assert set(Path("all", TABLE).read_text().splitlines()) == lines


def test_what_reads_a_run_reads_a_merged_one(capsys):
    run("--out whole")
    merge(shards(), "all")
    for folder in ("whole", "all"):
        assert main(f"recertify {folder} --rule top_two --alpha 0.01 --out {folder}2".split()) == 0
    assert rows("all2") == rows("whole2") != rows("whole")
    said = []
    for folder in ("whole", "all"):
        capsys.readouterr()
        assert main(["analyze", f"run={folder}", f"again={folder}2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_recertified_parts_merge_and_tell_their_sources():
    run("--out whole")
    parts = shards()
    for folder in (*parts, "whole"):
        assert main(f"recertify {folder} --rule top_two --out {folder}-again".split()) == 0
    merge([f"{part}-again" for part in parts], "all")
    assert rows("all") == rows("whole-again")
    assert sidecar("all")["recertified_from"] == ["part1", "part0", "part2"]


def test_one_part_alone_and_merging_what_was_merged():
    first, *rest = shards()
    merge([first], "alone")
    for name in (TABLE, COUNTS, SIDECAR):
        assert Path("alone", name).read_bytes() == Path(first, name).read_bytes()
    merge(rest, "two")
    merge(["two", "alone"], "in steps")
    merge([first, *rest], "at once")
    assert_same_run("in steps", "at once")
    assert {*sidecar("in steps")["command"]} == {*sidecar("at once")["command"]}


def test_where_a_part_was_made_may_differ():
    run("--end 4 --batch-size 50 --out a")
    shutil.move("data.npz", "elsewhere.npz")
    assert main(f"certify --model merge_nets:Net --seed 3 {COMMON} --start 4 --out b --data elsewhere.npz".split()) == 0
    assert merge(["b", "a"], "all") == (list(range(9)), [])
    assert sidecar("all")["data"] == ["data.npz", "elsewhere.npz"]
    assert sidecar("all")["batch_size"] == [50, sidecar("b")["batch_size"]]
    assert sidecar("all")["versions"] == sidecar("a")["versions"]


def test_rows_that_interleave_or_are_in_no_order():
    write("all", range(8))
    write("odd", [5, 1, 7, 3])
    write("even", [0, 2, 6, 4])
    assert merge(["odd", "even"], "merged") == (list(range(8)), [])
    assert_same_run("merged", "all")
    assert Path("merged", TABLE).read_bytes() == Path("all", TABLE).read_bytes()


def test_what_is_missing_is_told_and_can_be_drawn_later(capsys):
    run("--out whole")
    run("--end 3 --out a")
    run("--start 7 --out b")
    # b was stopped: a row was cut off, and the next line of counts.
    table, counts = (Path("b", name).read_bytes() for name in (TABLE, COUNTS))
    Path("b", TABLE).write_bytes(table[:-3])
    Path("b", COUNTS).write_bytes(counts + b'{"idx": 9')
    capsys.readouterr()
    assert main(["merge", "a", "b", "--out", "all"]) == 0
    said = capsys.readouterr()
    assert said.out == "all: 4 images from 2 run folders\n"
    assert said.err == "rsfast merge: warning: idx 3 to 6 are missing\nrsfast merge: warning: idx 8 is missing\n"
    assert rows("all") == [rows("whole")[i] for i in (0, 1, 2, 3, 8)]
    run("--out all --resume")
    merge(["all"], "filled")
    assert_same_run("filled", "whole")


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ("", {"seed": 4}, "seed: 3, 4"),
        ("--n 500", {}, "n: 400, 500"),
        ("--sigma 0.25", {}, "noise: Gaussian(sigma=0.5), Gaussian(sigma=0.25)"),
        ("--head softmax:1", {}, "bound: 'clopper_pearson', 'betting'"),
        ("--skip 2", {}, "skip: 1, 2"),
        ("--channels-last", {}, "channels_last: False, True"),
        ("--mean 0 --std 1", {}, "mean: None, [0.0]"),
        ("", {"model": "Other"}, "model: 'merge_nets:Net', 'merge_nets:Other'"),
        ("", {"command": "predict"}, "bound: 'clopper_pearson', None"),
        ("--start 3", {}, "idx 3 must be in one part, once, got it in b and in a"),
    ],
)
def test_parts_of_other_runs_are_refused(options, more, message, capsys):
    run("--end 4 --out a")
    run(f"--start 4 {options} --out b", **more)
    with pytest.raises(SystemExit) as stopped:
        main(["merge", "b", "a", "--out", "all"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    said = re.sub(r"must be the same in all parts, got (.*) in a/results.json and (.*) in b/results.json", r": \1, \2", said)
    assert f"rsfast merge: error: {message}" in said.replace(" : ", ": ")
    assert not Path("all").exists()


MAY_DIFFER = {  # where a part was made, and which inputs it has
    *("command", "started", "data", "weights", "batch_size", "device", "backend", "versions", "start", "end"),
    *("recertified_from", "counts_sha256"),
}


@pytest.mark.parametrize(
    ("command", "options"),
    [("certify", ""), ("certify", "--clamp 0 1 --mean 0.5 --std 0.5 --head softmax:1"), ("predict", "--clamp 0 1")],
)
def test_no_other_field_of_the_sidecars_may_differ(command, options):
    """Each changed or removed is refused by its name; those of the list may differ."""
    run(f"{options} --end 4 --out a", command)
    run(f"{options} --start 4 --out b", command)
    strip_sums("b")
    of_b = sidecar("b")
    may_lack = {"first_logits", "scale", "shift", "reduced_precision", "mode_fixed", "norm"} | (
        {"clamp"} if of_b["clamp"] is None else set()
    )  # as older runs do
    for name in of_b.keys() - MAY_DIFFER:
        for change in [{name: f"not {of_b[name]}"}] + ([] if name in may_lack else [{}]):
            kept = {field: value for field, value in of_b.items() if field != name}
            Path("b", SIDECAR).write_text(json.dumps(kept | change))
            wanted = f"({name} must be .*, got .* in a/results.json and .* in b/|start, end and skip must be )"
            with pytest.raises(ValueError, match=wanted):
                merge(["a", "b"], "all")
            assert not Path("all").exists()
    for name in of_b.keys() & MAY_DIFFER - {"start", "end"}:
        Path("b", SIDECAR).write_text(json.dumps(of_b | {name: f"not {of_b[name]}"}))
        merge(["a", "b"], f"all but {name}")


@pytest.mark.parametrize("options", ["", "--mean 0.5 --std 0.5"])
def test_parts_from_before_clamp_was_recorded(options):
    """They had no clamp. Their scale and shift follow from mean and std."""
    run(f"{options} --end 4 --out a")
    run(f"{options} --start 4 --out b")
    run(f"{options} --start 4 --clamp 0 1 --out c")
    strip_sums("a")
    added = ("clamp", "scale", "shift", "reduced_precision", "mode_fixed")
    older = {name: value for name, value in sidecar("a").items() if name not in added}
    Path("a", SIDECAR).write_text(json.dumps(older))
    merge(["a", "b"], "all")
    assert sidecar("all").keys() == sidecar("b").keys() - {"reduced_precision", "mode_fixed"}  # nothing tells what a had
    assert sidecar("all")["clamp"] is None
    with pytest.raises(ValueError, match=r"clamp must be .*, got None in a/results.json and \[0.0, 1.0\] in c/results.json"):
        merge(["a", "c"], "none")


def test_parts_of_models_that_compute_something_else_are_refused(monkeypatch):
    """Of the same name and weights; but where they differ in the last bits, the merged run has those of the first part."""
    import merge_nets

    forward = merge_nets.Net.forward
    run("--end 4 --out a")
    monkeypatch.setattr(merge_nets.Net, "forward", lambda net, x: forward(net, x) * (1 + 1e-6))
    run("--start 4 --end 6 --out b")
    monkeypatch.setattr(merge_nets.Net, "forward", lambda net, x: forward(net, x) * 1.05)
    run("--start 6 --out c")
    with pytest.raises(
        ValueError, match=r"first_logits must be those of one model, got .* in a/results.json and .* in c/results.json"
    ):
        merge(["a", "b", "c"], "all")
    assert not Path("all").exists()
    assert sidecar("a")["first_logits"] != sidecar("b")["first_logits"]
    merge(["b", "a"], "all")
    assert sidecar("all")["first_logits"] == sidecar("a")["first_logits"]


def test_logits_that_are_equal_stay_in_a_merged_run(monkeypatch):
    """So that it can be resumed."""
    import merge_nets

    forward = merge_nets.Net.forward
    monkeypatch.setattr(merge_nets.Net, "forward", lambda net, x: forward(net, x)[:, [0, 1, 1, 0]])
    run("--end 3 --out a")
    run("--start 6 --out b")
    merge(["a", "b"], "all")
    assert len(sidecar("all")["first_logits"]) == 4
    run("--out all --resume")
    assert len(rows("all")) == 10


def test_other_data_under_the_same_name_are_refused():
    write("a", [0], data="x.npz", data_sha256="1")
    write("b", [1], data="x.npz", data_sha256="2")
    with pytest.raises(ValueError, match=r"data_sha256 must be .*, got '1' in a/results\.json and '2' in b/results\.json"):
        merge(["a", "b"], "all")


def spoil(name, content):
    return lambda: Path("b", name).write_text(content)


HEADER = "\t".join(CERTIFY_COLUMNS)
ROW = "4\t1\t1\t0.5\t1\t0:00:01"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (Path("b", TABLE).unlink, FileNotFoundError, "b/results.tsv"),
        (Path("b", COUNTS).unlink, ValueError, "b is damaged: counts.jsonl must have a line for each row"),
        (Path("b", SIDECAR).unlink, FileNotFoundError, "b/results.json"),
        (spoil(SIDECAR, "{"), ValueError, "b/results.json must be JSON, got"),
        (
            spoil(SIDECAR, '{"n": 100}'),
            ValueError,
            "b/results.json must be of a run of rsfast certify or predict, got one without start, end and skip",
        ),
        (spoil(SIDECAR, '{"start": 0, "end": 8, "skip": 0}'), ValueError, "b/results.json is damaged: .* got 0, 8 and 0"),
        (spoil(SIDECAR, '{"start": -1, "end": 8, "skip": 1}'), ValueError, "0 <= start <= end .* got -1, 8 and 1"),
        (spoil(SIDECAR, '{"start": 0, "end": 1e30, "skip": 1}'), ValueError, "got 0, 1e[+]30 and 1"),
        (
            spoil(SIDECAR, '{"start": 0, "end": NaN, "skip": 1}'),
            ValueError,
            "b/results.json must be JSON, got other text: numbers must be finite, got NaN",
        ),
        (spoil(TABLE, "idx,label\n"), ValueError, "b/results.tsv, line 1: the header must be .* got b'idx,label"),
        (
            spoil(TABLE, f"{HEADER}\n{ROW}\n4\t1\n"),
            ValueError,
            "b/results.tsv, line 3: the row must have 6 fields, .* got 2",
        ),
        (spoil(TABLE, f"{HEADER}\n4{ROW}\n"), ValueError, "b is damaged: .* line 1 is not of idx 44"),
        (spoil(COUNTS, ""), ValueError, "b is damaged: .* line 1 is not of idx 4"),
        (spoil(COUNTS, '{"idx": 4, "esti\n' * 4), ValueError, "b is damaged: .* line 1 is not of idx 4"),
        (lambda: write("c", [9]), ValueError, r"idx in c/results.tsv must be in range\(0, 8\), as the sidecars say, got 9"),
    ],
)
def test_a_damaged_part_is_named(damage, error, message):
    write("a", range(4))
    write("b", range(4, 8))
    strip_sums("b")
    damage()
    with pytest.raises(error, match=message):
        merge(sorted(file for file in Path().iterdir() if file.is_dir() and len(file.name) == 1), "all")
    assert not Path("all").exists()


def test_bad_arguments():
    write("a", range(4))
    write("empty", [])
    before = {name: Path("a", name).read_bytes() for name in (TABLE, COUNTS, SIDECAR)}
    for parts, out, error, message in (
        ("a", "all", TypeError, "parts must be a sequence of run folders, got 'a'"),
        ([], "all", ValueError, r"parts must hold at least one run folder, got \[\]"),
        (["empty"], "all", ValueError, "parts must have at least one row, got none in empty"),
        (["a", "a"], "all", ValueError, "idx 0 must be in one part, once, got it in a and in a"),
        (["empty", "a"], "a", FileExistsError, "a must be a folder without a run, got one with results.tsv; name"),
    ):
        with pytest.raises(error, match=message):
            merge(parts, out)
    assert not Path("all").exists()
    assert {name: Path("a", name).read_bytes() for name in (TABLE, COUNTS, SIDECAR)} == before


def merge_killed(parts, out, line):
    """Merge in a process of its own, killed before so many lines of the writer; tell whether it came to its end."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.endswith("runs/writer.py"):
            return None
        if event == "line":
            if lines == line:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return trace

    sys.settrace(trace)
    merge(parts, out)
    os._exit(0)


def test_a_merge_that_is_killed_leaves_nothing_to_tidy():
    """Killed anywhere, it is no run; the next call removes what was left, whatever it merges, and nothing else."""
    write("a", range(4))
    write("b", range(4, 7), skipped=[7])
    merge(["a", "b"], "whole")
    mine = {Path("notes.txt"): "mine", Path("merge-old/results.tsv"): "mine too", Path("parts/0-of-2/x"): ""}
    left = set()
    for line in range(0, 10_000, 5):
        out = Path(f"out{line}")
        for file, text in mine.items():
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_text(text)
        if merge_killed(["a", "b"], out, line):
            break
        if not (out / TABLE).exists():
            left.add(len([file for file in out.rglob("*") if file.is_file()]) - len(mine))
            # Other parts than before may come next, too.
            merge(["a", "b"] if line % 2 else ["a"], out)
        else:  # all was in place
            with pytest.raises(FileExistsError):
                merge(["a", "b"], out)
        if line % 2:
            assert_same_run(out, "whole", others={"notes.txt", "merge-old", "parts"})
        assert {name for name in os.listdir(out) if name.startswith(".")} == set()
        for file, text in mine.items():
            assert (out / file).read_text() == text
    else:
        pytest.fail("it never came to its end")
    assert left >= {0, 1, 2, 3, 4}


def test_a_merge_that_raises_leaves_nothing(monkeypatch):
    """Wherever it is among its renames."""
    write("a", range(4), skipped=[5])
    rename, done = Path.rename, []

    def interrupted(stop):
        def call(self, target):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(target)
            return rename(self, target)

        return call

    for stop in range(4):
        done.clear()
        monkeypatch.setattr(Path, "rename", interrupted(stop))
        with pytest.raises(KeyboardInterrupt):
            merge(["a"], "all")
        assert list(Path("all").iterdir()) == []


@pytest.mark.parametrize("end", [10**15, 10**30])
def test_what_is_missing_may_be_more_than_fits_into_memory(end, capsys):
    for name, inputs in (("a", [0, 5, 6]), ("b", [1000])):
        write(name, inputs, end=end, skip=1)
    with pytest.warns(UserWarning, match="lacks alpha"):
        _, missing = merge(["a", "b"], "all")
    assert missing == [range(1, 5), range(7, 1000), range(1001, end)]
    shutil.rmtree("all")
    assert main(["merge", "a", "b", "--out", "all"]) == 0
    assert f"warning: idx 1001 to {end - 1} are missing\n" in capsys.readouterr().err


def rewrite(folder, out, idx, **change):
    """Write a run folder again, with another prediction or radius of one input and the check sums of that."""
    with open(Path(folder, TABLE), newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    with RunWriter(out, sidecar(folder), tuple(table[0])) as writer:
        for row, counts in zip(table, integers(folder), strict=True):
            found = {"prediction": int(row["predict"]), "radius": float(row.get("radius", 0))}
            found |= change if counts["idx"] == idx else {}
            found = SimpleNamespace(**found) if "radius" in row else found["prediction"]
            writer.write(counts.pop("idx"), int(row["label"]), found, 1.0, counts)


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("certify", {"radius": 0.123}),
        ("certify --head softmax:1", {"radius": 1e12}),
        ("certify --radius 0.3", {"radius": 2.5}),
        ("predict --alpha 0.4", {"prediction": 3}),
    ],
)
def test_a_row_that_does_not_follow_from_its_counts_is_refused(command, change, capsys):
    """Its check sum may hold."""
    command, _, options = command.partition(" ")
    run(f"{options} --end 4 --out a", command)
    rewrite("a", "b", 2)
    merge(["b"], "all")
    rewrite("a", "c", 2, **change)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["merge", "c", "--out", "none"])
    assert (
        "error: c is damaged, or a version of rsfast with other bounds wrote it: idx 2 has predict"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        run(f"{options} --end 4 --out c --resume", command)
    assert "idx 2 has predict" in capsys.readouterr().err


def test_a_table_of_another_command_is_refused():
    for command, out in (("certify", "radii"), ("predict", "classes")):
        run(f"--out {out}", command)
        strip_sums(out)
    shutil.copy("radii/results.tsv", "classes/results.tsv")
    with pytest.raises(
        ValueError, match=r"must be of a run of rsfast certify, as results\.tsv is, got one without bound, rule, head, n0"
    ):
        merge(["classes"], "all")
    assert not Path("all").exists()


def test_a_full_disk_leaves_no_run():
    write("a", range(4))
    write("b", range(4, 8))
    for size in range(0, Path("a", TABLE).stat().st_size + 50, 30):
        with largest_file(size), pytest.raises(OSError, match="in writing all; no run was left there; merge again"):
            merge(["a", "b"], "all")
        assert list(Path("all").iterdir()) == []
    merge(["a", "b"], "all")
    assert read("all").idx.tolist() == list(range(8))
