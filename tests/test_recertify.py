"""Certifying a run again from its counts gives what certifying it so at first gives, and tells what is wrong with a run."""

import csv
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import LINEAR_NETS, integers, largest_file, rows, sidecar, strip_sums

from rsfast.cli import main
from rsfast.runs.recertify import recertify
from rsfast.sequences import analysis_ends
from rsfast.stats.common import fine_analysis_ends

# Runs as earlier versions wrote them, and a table whose end was cut off.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no check sums", "ignore:.* was cut off")


@pytest.fixture(autouse=True)
def _folder(workspace):
    workspace("recertify_nets", LINEAR_NETS, np.arange(6) % 4)


def certify(out, options=""):
    base = "certify --model recertify_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --seed 11 --n0 20 --n 500"
    assert main(f"{base} {options} --out {out}".split()) == 0


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("votes", "--rule top_two --alpha 0.05"),
        ("votes", "--rule class_partitioning"),
        ("votes", "--bound hoeffding"),
        ("softmax:0.5", "--rule top_two --bound hoeffding --alpha 0.01"),
        ("clipped:-2:4", "--rule bonferroni"),
        ("softmax:0.5", "--lipschitz 0.25"),
        ("softmax:0.5", "--bound empirical_bernstein"),
        ("votes", "--bound randomized_clopper_pearson"),
    ],
)
def test_as_if_certified_so_at_first(head, options, capsys):
    certify("run", f"--head {head}")
    certify("wanted", f"--head {head} {options}")
    capsys.readouterr()
    assert main(f"recertify run {options} --out again".split()) == 0
    assert capsys.readouterr().out.startswith("again: 6 images in ")
    assert rows("again") == rows("wanted") != rows("run")
    assert integers("again") == integers("run")
    found, wanted = sidecar("again"), sidecar("wanted")
    same = ("alpha", "bound", "rule", "head", "noise", "seed", "n0", "n", "data_sha256", "state_dict_sha256")
    assert {key: found[key] for key in same} == {key: wanted[key] for key in same}
    assert found["recertified_from"] == "run"
    assert found["command"].startswith("rsfast recertify run")


@pytest.mark.parametrize("options", ["--radius 0.4", "--head softmax:0.5 --radius 0.4", "--rtol 0.7"])
def test_runs_that_stopped_early(options, capsys):
    """From their counts, range by range, come the same rows; bounds that hold for one look are refused."""
    certify("run", options)
    with open("run/counts.jsonl") as file:
        estimation = [json.loads(line)["estimation"] for line in file]
    used = [sum(tally["n"] for tally in (ranges if isinstance(ranges, list) else [ranges])) for ranges in estimation]
    assert set(used) <= set((analysis_ends if "softmax" in options else fine_analysis_ends)(500))
    assert min(used) < 500
    assert main(["recertify", "run", "--out", "again"]) == 0
    assert rows("again") == rows("run")
    assert main(["recertify", "run", "--out", "other", "--bound", "betting_sequence", "--alpha", "0.02"]) == 0
    assert rows("other") != rows("run")
    for bound in ("hoeffding", "betting"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(f"recertify run --out refused --bound {bound}".split())
        assert stopped.value.code == 2
        assert "it holds for one analysis, at a number of samples fixed before" in capsys.readouterr().err


def test_histograms_that_are_not_there(capsys):
    certify("run", "--head softmax:1 --bound hoeffding")
    with pytest.raises(SystemExit) as stopped:
        main(["recertify", "run", "--out", "again", "--bound", "betting"])
    assert stopped.value.code == 2
    assert "counts.jsonl, idx 0: estimation must hold histograms of the two classes" in capsys.readouterr().err


def test_defaults_keep_alpha():
    certify("run", "--alpha 0.02 --start 2 --end 5")
    assert recertify("run", "again").idx.tolist() == [2, 3, 4]
    assert rows("again") == rows("run")
    assert sidecar("again")["alpha"] == 0.02


def test_a_line_that_was_cut_off_is_no_obstacle():
    """A run that was killed while it wrote: counts come before rows."""
    certify("run")
    with open("run/counts.jsonl", "a") as file:
        file.write('{"idx": 6, "selection": {"n"')
    recertify("run", "again")
    assert rows("again") == rows("run")


def spoil_counts(change):
    lines = integers("run")
    change(lines)
    with open("run/counts.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def spoil_sidecar():
    data = sidecar("run")
    del data["noise"], data["seed"]
    with open("run/results.json", "w") as file:
        json.dump(data, file)


WRONG = {
    "a negative count": (
        lambda: spoil_counts(lambda lines: lines[1]["estimation"]["counts"].__setitem__(0, -1)),
        "idx 1: counts must be int64",
    ),
    "a count that is no integer": (
        lambda: spoil_counts(lambda lines: lines[1]["estimation"]["counts"].__setitem__(0, 1.5)),
        "idx 1: counts must be int64",
    ),
    "n is not the sum": (
        lambda: spoil_counts(lambda lines: lines[2]["selection"].update(n=3)),
        "idx 2: .*n must be the sum",
    ),
    "a stream missing": (lambda: spoil_counts(lambda lines: lines[3].pop("selection")), "idx 3: it lacks selection"),
    "scores of no head": (
        lambda: spoil_counts(lambda lines: lines[0]["estimation"].update(sums=[[1, 2, 3, 4]])),
        "idx 0: .*sums",
    ),
    "a count of null": (
        lambda: spoil_counts(lambda lines: lines[1]["estimation"]["counts"].__setitem__(0, None)),
        "idx 1: TypeError",
    ),
    "a line missing": (lambda: spoil_counts(lambda lines: lines.pop(2)), "line 3 is not of idx 2"),
    "no idx": (lambda: spoil_counts(lambda lines: lines[0].pop("idx")), "line 1 is not of idx 0"),
    "no JSON": (lambda: Path("run/counts.jsonl").write_text("nonsense\n"), "line 1 is not of idx 0"),
    "half of a line": (
        lambda: Path("run/counts.jsonl").write_text(Path("run/counts.jsonl").read_text().replace('"counts"', '"cou', 1)),
        "idx 0, is not JSON",
    ),
    "votes of another class": (
        lambda: spoil_counts(lambda lines: [swap(line["estimation"]["counts"]) for line in lines]),
        "idx . has predict . and radius .*, and its counts give",
    ),
    "another radius": (lambda: edit_table(3, "radius", "0.9"), "idx 3 has predict . and radius 0.9, and its counts give"),
    "another class": (lambda: edit_table(0, "predict", "3"), "idx 0 has predict 3 and radius"),
    "another sigma": (
        lambda: spoil_sidecar(noise=sidecar("run")["noise"] | {"sigma": 5.0}),
        "idx 0 has predict . and radius .*, and its counts give",
    ),
    "another sidecar": (spoil_sidecar, "results.json must be of a run of rsfast certify, got one without noise, seed"),
    "nested": (
        lambda: Path("run/results.json").write_text('{"a":' * 90_000),
        "results.json must be JSON, got other text: it is nested",
    ),
    "a huge sidecar": (lambda: Path("run/results.json").write_text(" " * (1 << 27 | 1)), "got more than 128 MiB"),
}


def swap(votes):
    """Give the two most voted classes each other's votes."""
    first, second = sorted(range(len(votes)), key=votes.__getitem__)[-2:]
    votes[first], votes[second] = votes[second], votes[first]


def edit_table(idx, column, text):
    """Change a field of the table, and `correct` with it."""
    with open("run/results.tsv", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    found[idx][column] = text
    for row in found:
        row["correct"] = str(int(row["label"] == row["predict"]))
    with open("run/results.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, found[0].keys(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_run_is_told(name, capsys):
    """One that an earlier version wrote, without check sums: by what the damage does."""
    certify("run")
    strip_sums("run")
    spoil, message = WRONG[name]
    spoil()
    for settings in ({}, {"alpha": 0.01}, {"rule": "top_two"}):
        with pytest.raises(ValueError, match=message):
            recertify("run", "again", **settings)
        assert not Path("again").exists()


@pytest.mark.parametrize(("column", "text"), [("predict", "0"), ("radius", "1e-323")])
def test_an_abstention_that_is_changed_is_told(column, text):
    """Although its radius hardly is: as a prediction at radius 0 it would count as certified there."""
    certify("run", "--n 60")
    strip_sums("run")
    (idx, *_) = [int(row.split("\t")[0]) for row in rows("run")[1:] if row.split("\t")[2] == "-1"]
    edit_table(idx, column, text)
    with pytest.raises(ValueError, match=f"idx {idx} has .*, and its counts give predict -1 and radius 0.0"):
        recertify("run", "again")
    assert not Path("again").exists()


def test_a_run_without_check_sums_says_so(capsys):
    certify("run")
    strip_sums("run")
    capsys.readouterr()
    warnings.simplefilter("default")  # until the end of this test
    assert main(["recertify", "run", "--out", "again"]) == 0
    assert capsys.readouterr().err == (
        "rsfast recertify: warning: run has no check sums, which earlier versions did not write; damage may pass unnoticed\n"
    )
    assert rows("again") == rows("run")
    assert main(["recertify", "again", "--out", "third"]) == 0  # which has them
    assert capsys.readouterr().err == ""


def test_a_run_that_is_not_finished_says_so(capsys):
    certify("run")
    for name in ("results.tsv", "counts.jsonl"):
        *lines, _ = Path("run", name).read_text().splitlines(keepends=True)
        Path("run", name).write_text("".join(lines))
    capsys.readouterr()
    assert main(["recertify", "run", "--out", "again"]) == 0
    assert capsys.readouterr().out.startswith("again: 5 of 6 images in ")


def test_a_run_without_a_sidecar():
    certify("run")
    Path("run/results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run/results\.json"):
        recertify("run", "again")


@pytest.mark.parametrize("name", ["results.tsv", "results.json", "counts.jsonl"])
def test_every_byte_of_a_run_counts(name):
    """But for the times, and fields of the sidecar that no certificate rests on, no byte may change."""
    certify("run", "--n 24 --end 3")
    file = Path("run", name)
    whole, believed = file.read_bytes(), []
    recertify("run", "again")
    wanted = rows("again")
    for place in range(0, len(whole), 1 if name == "results.tsv" else 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        shutil.rmtree("again", ignore_errors=True)
        try:
            recertify("run", "again")
        except ValueError:
            assert not Path("again").exists()
        else:
            believed.append(place)
            found = rows("again")
            assert found == wanted[: len(found)]
            assert len(found) >= 2  # of three: without its end the last row was cut off
    lines = whole.decode().splitlines(keepends=True)
    if name == "results.json":
        free = [line for line in lines if line.split('"')[1:2] in (["command"], ["started"], ["data"], ["weights"])]
        free += lines[lines.index('  "first_logits": [\n') :][:5]
        assert len(believed) <= sum(map(len, free))
    else:
        times = [len(line.rpartition("\t")[2]) for line in lines[1:]] if name == "results.tsv" else [1]
        assert len(believed) <= sum(times)


FULL = "in writing again; no run was left there; recertify again once there is space"


def test_a_full_disk_leaves_no_run():
    certify("run")
    Path("again").mkdir()
    Path("again/notes.txt").write_text("mine")
    largest = max(Path("run", name).stat().st_size for name in ("results.json", "counts.jsonl"))
    for size in range(0, largest, largest // 9):
        with largest_file(size), pytest.raises(OSError, match=FULL):
            recertify("run", "again")
        assert [file.name for file in Path("again").iterdir()] == ["notes.txt"]
    recertify("run", "again")
    assert rows("again") == rows("run")
    assert Path("again/notes.txt").read_text() == "mine"
    assert len(list(Path("again").iterdir())) == 4


def test_wrong_uses(capsys):
    certify("run")
    command = "predict --model recertify_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --n 50 --out labels"
    main(command.split())
    for command, message in (
        ("recertify run --out run", "run must be a folder without a run, got one with results.tsv; name another"),
        ("recertify nothing --out again", "No such file or directory: 'nothing/results.json'"),
        ("recertify labels --out again", "labels must be a run of rsfast certify, got one of rsfast predict"),
        ("recertify run --out again --alpha 2", "alpha must be a finite number above 0 and below 1, got 2.0"),
        ("recertify run --out again --rule best", "invalid choice: 'best'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command.split())
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    certify("soft", "--head softmax:1")
    with pytest.raises(ValueError, match=r"bound must be .* with the head Softmax.*, got 'clopper_pearson'"):
        recertify("soft", "again", bound="clopper_pearson")


def spoil_sidecar(**changes):
    data = sidecar("run") | changes
    with open("run/results.json", "w") as file:
        json.dump({name: value for name, value in data.items() if value is not ...}, file)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ("--radius 0.4", {"radius": ...}, "estimation must go with n = "),
        (
            "",
            {"n": 400},
            "estimation must go with n = 400, radius = None and rtol = None in results.json, got ends at [500]",
        ),
        ("--radius 0.4", {"n": 10}, "estimation must go with n = "),
        ("", {"n0": 30}, "idx 0: n0 must be 30, as in results.json, got 20"),
        ("", {"num_classes": 5}, "idx 0: num_classes must be 5, as in results.json, got 4"),
        ("", {"stream_version": 2}, "stream_version in run/results.json must be 1, got 2; read the run with a version"),
        ("", {"stream_version": ...}, "must be of a run of rsfast certify, got one without stream_version"),
        ("", {"n": "x"}, "results.json is damaged: n must be an int from 0 to 2^63, got 'x'"),
        ("", {"seed": None}, "results.json is damaged: seed must be an int, got None"),
        ("", {"bound": ...}, "must be of a run of rsfast certify, got one without bound"),
    ],
)
def test_a_sidecar_that_does_not_fit_the_counts(options, changes, message):
    """Most of all one that hides that sampling stopped early: bounds for one look would be wrong then."""
    certify("run", options)
    strip_sums("run")
    spoil_sidecar(**changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        recertify("run", "again", rule="one_vs_rest")
    assert not Path("again").exists()


@pytest.mark.parametrize(
    "changes", [{"start": "0"}, {"end": ...}, {"skip": 0}, {"noise": {"name": "Gaussian", "sigma": 1e30}}]
)
@pytest.mark.parametrize("alpha", [None, 0.01])
def test_what_could_not_be_read_is_not_written(changes, alpha):
    certify("run")
    strip_sums("run")
    spoil_sidecar(**changes)
    with pytest.raises(ValueError, match=r"run/results\.json is damaged: "):
        recertify("run", "again", alpha=alpha)
    assert not Path("again").exists()


def test_what_is_not_given_is_that_of_the_run():
    certify("run", "--head softmax:0.5 --bound empirical_bernstein --rule top_two --lipschitz 0.5 --alpha 0.02")
    recertify("run", "again")
    assert rows("again") == rows("run")
    same = ("alpha", "bound", "rule", "lipschitz")
    assert {name: sidecar("again")[name] for name in same} == {name: sidecar("run")[name] for name in same}
