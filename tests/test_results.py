"""Run folders: what is written is what is read, no radius grows on the way; and the tables that are made of runs."""

import csv
import errno
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from conftest import integers, largest_file, strip_sums

from rsfast.noise import AnisotropicGaussian, Gaussian
from rsfast.noise.base import NOISES, POSITIVE, Noise
from rsfast.runs.layout import PREDICT_COLUMNS, identity, same_logits
from rsfast.runs.plot import plot
from rsfast.runs.results import (
    Results,
    abstention_rate,
    average_certified_radius,
    caveats,
    certified_accuracy,
    clean_accuracy,
    notes,
    read,
    share_decided,
)
from rsfast.runs.summary import table
from rsfast.runs.writer import RunWriter, format_radius

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
SIDECAR = {"n": 100_000, "alpha": 0.001, "noise": {"name": "Gaussian", "sigma": 0.25}}
COUNTS = {"selection": {"n": 100, "counts": [90, 10, 0]}, "estimation": {"n": 1000, "counts": [900, 100, 0]}}


def certificate(prediction, radius):
    return SimpleNamespace(prediction=prediction, radius=radius)


def results(predict, radius, label, correct=None):
    predict, label = np.array(predict), np.array(label)
    correct = predict == label if correct is None else np.array(correct)
    return Results(np.arange(len(predict)), label, predict, np.array(radius, dtype=float), correct)


@pytest.fixture
def example():
    """Ten rows: six certified, of radii 0.25 0.5 0.5 1 1.5 2.25; two wrong with large radii; two abstentions."""
    return results(
        predict=[0, 1, 2, 3, 4, 5, 9, 9, -1, -1],
        label=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        radius=[0.25, 0.5, 0.5, 1.0, 1.5, 2.25, 9.0, 3.0, 0.0, 0.0],
    )


def hostile_radii():
    rng = random.Random(7)
    yield from (
        0.1 + 0.2,
        0.3,
        1e-7,
        4.7999999999,
        0.9999999999999999,
        9.9999999,
        99999995.0,
        1 / 3,
        1.0,
        255.0,
        5e-324,
        1.7e308,
    )
    for exponent in range(-12, 9):
        power = 10.0**exponent
        yield from (power, math.nextafter(power, 0), math.nextafter(power, math.inf))
    for _ in range(5000):
        # A decimal of 7 digits and its neighbours: where rounding to nearest and rounding down part.
        decimal = float(f"{rng.randrange(10**6, 10**7)}e{rng.randrange(-12, 3)}")
        yield from (decimal, math.nextafter(decimal, 0), math.nextafter(decimal, math.inf))
        (bits,) = struct.unpack("d", struct.pack("Q", rng.randrange(1, 0x7FF0 << 48)))
        yield from (rng.uniform(0, 5), rng.expovariate(1), bits, float(np.float32(rng.random())))


def test_written_radius_is_never_above_and_within_a_millionth():
    for radius in hostile_radii():
        written = format_radius(radius)
        # Fraction reads the text and the float exactly, so nothing is rounded on either side.
        assert 0 <= Fraction(radius) - Fraction(written) < Fraction(radius) / 10**6, (radius, written)
        assert float(written) <= radius
        assert len(written.split("E")[0].replace(".", "").lstrip("0")) == 7


def test_a_radius_that_reaches_what_was_asked_is_written_so():
    """Read again it is no smaller, and it is still never above what was proved."""
    rewritten = 0
    for asked in hostile_radii():
        for radius in (asked, math.nextafter(asked, math.inf), asked * (1 + 1e-8), 2 * asked):
            if radius == math.inf:
                continue
            written = format_radius(radius, asked)
            assert float(written) >= asked, (radius, asked)
            assert 0 <= Fraction(radius) - Fraction(written) < Fraction(radius) / 10**6
            rewritten += written != format_radius(radius)
        below = math.nextafter(asked, 0)
        assert format_radius(below, asked) == format_radius(below)
        assert float(format_radius(below, asked)) < asked
    assert rewritten > 5000


@pytest.mark.parametrize("asked", [0.3, 0.1 + 0.2, 8 / 255, 1 / 3, 0.12345678, 1e-7])
def test_every_radius_that_was_proved_counts_at_the_radius_that_was_asked(asked, tmp_path):
    with RunWriter(tmp_path, SIDECAR | {"radius": asked, "rtol": None}) as run:
        for idx, radius in enumerate([math.nextafter(asked, 0), asked, math.nextafter(asked, 9), asked * (1 + 1e-9)]):
            run.write(idx, 1, certificate(1, radius), 0.1, COUNTS)
    found = read(tmp_path)
    assert found.stopping.radius == asked
    assert share_decided(found, asked) == certified_accuracy(found, asked) == 0.75


def test_zero_radius():
    assert format_radius(0.0) == format_radius(-0.0) == format_radius(0) == "0.0"


@pytest.mark.parametrize("radius", [-1e-300, math.nan, math.inf])
def test_a_radius_that_is_none_is_not_written(radius, tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run, pytest.raises(ValueError, match=r"radius must be finite and at least 0, got "):
        run.write(0, 1, certificate(1, radius), 0.0, COUNTS)
    assert (tmp_path / "results.tsv").read_text() == HEADER + "\n"
    assert (tmp_path / "counts.jsonl").read_text() == ""


def test_files_of_a_run(tmp_path):
    folder = tmp_path / "new" / "run"
    with RunWriter(folder, SIDECAR) as run:
        run.write(0, 3, certificate(3, 0.4999999999), 1.5, COUNTS)
        run.write(np.int64(20), np.int64(3), certificate(-1, 0.0), 61, COUNTS)
        run.write(40, 3, certificate(2, 1), 3600, COUNTS)
    assert (folder / "results.tsv").read_bytes().decode() == (
        f"{HEADER}\n0\t3\t3\t0.4999999\t1\t0:00:01.500000\n20\t3\t-1\t0.0\t0\t0:01:01\n40\t3\t2\t1.000000\t0\t1:00:00\n"
    )
    assert json.loads((folder / "results.json").read_text()) == SIDECAR
    assert integers(folder) == [{"idx": idx, **COUNTS} for idx in (0, 20, 40)]


def test_each_row_is_on_disk_at_once(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        assert (tmp_path / "results.tsv").read_text() == HEADER + "\n"
        assert json.loads((tmp_path / "results.json").read_text()) == SIDECAR
        for done in (1, 2, 3):
            run.write(done, 0, certificate(0, 0.5), 0.1, COUNTS)
            assert len(read(tmp_path).idx) == done
            assert (tmp_path / "counts.jsonl").read_text().count("\n") == done


def test_no_row_without_its_counts(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        with pytest.raises(TypeError):
            run.write(0, 0, certificate(0, 0.5), 0.1, {"estimation": object()})
        assert (tmp_path / "results.tsv").read_text() == HEADER + "\n"
        run._table.close()
        with pytest.raises(ValueError, match="closed file"):
            run.write(1, 0, certificate(0, 0.5), 0.1, COUNTS)
    assert [json.loads(line)["idx"] for line in (tmp_path / "counts.jsonl").read_text().splitlines()] == [1]


def fill(folder, counts, resume=False):
    """Write eight rows, but for those that are there."""
    with RunWriter(folder, SIDECAR, resume=resume) as run:
        for idx in range(8):
            if idx not in run.done:
                run.write(idx, 3, certificate(3, 0.5), idx + 1, counts)


def files(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.mark.parametrize("counts", [COUNTS, {}], ids=["full in counts", "full in the table"])
def test_a_full_disk_keeps_whole_rows(counts, tmp_path):
    """Wherever space ends: what is there is read, and resuming ends with the bytes of a run that had space."""
    fill(tmp_path / "whole", counts)
    whole = files(tmp_path / "whole")
    largest = max(map(len, whole.values()))
    kept = set()
    for size in range(0, largest, 3):
        folder = tmp_path / str(size)
        with largest_file(size), pytest.raises(OSError, match="File too large in writing") as error:
            fill(folder, counts)
        assert error.value.errno == errno.EFBIG
        assert f"in writing {folder}; the rows before are kept, and --resume goes on" in str(error.value)
        found = files(folder)
        assert found.get("results.json", whole["results.json"]) == whole["results.json"]
        for name in ("results.tsv", "counts.jsonl"):
            assert whole[name].startswith(found.get(name, b""))
            assert found.get(name, b"").endswith(b"\n") or not found.get(name)
        rows = max(found["results.tsv"].count(b"\n") - 1, 0)
        assert found.get("counts.jsonl", b"").count(b"\n") == rows
        if rows:
            assert read(folder).idx.tolist() == list(range(rows))
        kept.add(rows)
        fill(folder, counts, resume=True)
        assert files(folder) == whole
    assert kept >= set(range(2, 8))


def test_a_row_that_failed_can_be_written_again(tmp_path):
    fill(tmp_path / "whole", COUNTS)
    with RunWriter(tmp_path / "run", SIDECAR) as run:
        for idx in range(8):
            for name in ("counts.jsonl", "results.tsv"):
                size = (tmp_path / "run" / name).stat().st_size
                with largest_file(size + 5), pytest.raises(OSError, match="in writing"):
                    run.write(idx, 3, certificate(3, 0.5), idx + 1, COUNTS)
            run.write(idx, 3, certificate(3, 0.5), idx + 1, COUNTS)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_run_that_did_not_begin_can_begin_again(tmp_path):
    """A disk that is full, or a kill, before there is a sidecar."""
    with largest_file(10), pytest.raises(OSError, match="in writing"):
        RunWriter(tmp_path, SIDECAR)
    assert files(tmp_path) == {"results.tsv": b""}
    (tmp_path / "results.json.new").write_text("{")
    fill(tmp_path, COUNTS)
    assert sorted(files(tmp_path)) == ["counts.jsonl", "results.json", "results.tsv"]


def test_an_error_on_closing_does_not_hide_the_first(tmp_path):
    def raises(error):
        if error:
            raise error

    def run(folder, first):
        with RunWriter(folder, SIDECAR) as run:
            run._files.callback(raises, OSError(errno.EDQUOT, "quota"))
            raises(first)

    with pytest.raises(OSError, match="quota"):
        run(tmp_path / "a", None)
    with pytest.raises(KeyError, match="first"):
        run(tmp_path / "b", KeyError("first"))


ON_A_SMALL_DISK = """
    import errno
    from types import SimpleNamespace
    from rsfast.runs.results import read
    from rsfast.runs.writer import RunWriter

    def write(run, idx):
        run.write(idx, 3, SimpleNamespace(prediction=3, radius=0.5), 1, {"estimation": list(range(400))})

    with RunWriter("whole", {"n": 100}) as run:
        for idx in range(100):
            write(run, idx)
    for name in ("results.json", "results.tsv", "counts.jsonl"):
        with open(f"whole/{name}", "rb") as file:
            whole = {**globals().get("whole", {}), name: file.read()}

    def fill(name):
        with open(f"disk/{name}", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    fill("ballast")
    try:
        RunWriter("disk/run", {"n": 100})
    except OSError as error:
        print(error)
    with open("disk/ballast", "r+b") as file:
        file.truncate(70_000)
    stopped = None
    with RunWriter("disk/run", {"n": 100}, resume=True) as run:
        for idx in range(100):
            try:
                write(run, idx)
            except OSError as error:
                print(error)
                stopped = idx
                break
    assert stopped > 5 and read("disk/run").idx.tolist() == list(range(stopped))
    with open("disk/ballast", "r+b") as file:
        file.truncate(0)
    with RunWriter("disk/run", {"n": 100}, resume=True) as run:
        for idx in range(100):
            if idx not in run.done:
                write(run, idx)
    for name, content in whole.items():
        with open(f"disk/run/{name}", "rb") as file:
            assert file.read() == content, name
"""


def test_a_small_disk_that_fills_up(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs disk && "$@"', "sh"]
    try:
        subprocess.run([*mount, "true"], cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system may be mounted here")
    command = [*mount, sys.executable, "-c", textwrap.dedent(ON_A_SMALL_DISK)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert found.stderr == ""
    first, second = found.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("[Errno 28] No space left on device")
    assert second.endswith("in writing disk/run; the rows before are kept, and --resume goes on once there is space")


def test_unknown_label_is_minus_one_and_never_correct(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        run.write(0, None, certificate(3, 0.5), 0.0, COUNTS)
        run.write(1, None, certificate(-1, 0.0), 0.0, COUNTS)
        run.write(2, -1, certificate(-1, 0.0), 0.0, COUNTS)
    run = read(tmp_path)
    assert run.label.tolist() == [-1, -1, -1]
    assert run.correct.tolist() == [False, False, False]


def test_predictions_have_no_radius(tmp_path):
    with RunWriter(tmp_path, SIDECAR, PREDICT_COLUMNS) as run:
        run.write(0, 3, 3, 1.0, COUNTS)
        run.write(1, 3, -1, 1.0, COUNTS)
        run.write(2, 3, certificate(3, 0.5), 1.0, COUNTS)
    assert (tmp_path / "results.tsv").read_text() == (
        "idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:01\n1\t3\t-1\t0\t0:00:01\n2\t3\t3\t1\t0:00:01\n"
    )


def test_a_class_alone_is_no_certificate(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run, pytest.raises(TypeError, match=r"certificate must have a radius, .* got 3"):
        run.write(0, 3, 3, 1.0, COUNTS)


@pytest.mark.parametrize("name", ["results.tsv", "results.json", "counts.jsonl"])
def test_no_run_is_overwritten(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(
        FileExistsError,
        match=rf"must be a folder without a run, got one with {name}; name another folder, or move that run away first",
    ):
        RunWriter(tmp_path, SIDECAR)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("sidecar", [{"alpha": math.nan}, {"model": object()}])
def test_sidecar_that_is_not_json_leaves_nothing_behind(sidecar, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        RunWriter(tmp_path / "run", sidecar)
    assert not (tmp_path / "run").exists()


def test_read_returns_what_was_written(tmp_path):
    rng = np.random.default_rng(3)
    radii = rng.exponential(size=50)
    with RunWriter(tmp_path, SIDECAR) as run:
        for idx, radius in enumerate(radii):
            run.write(idx * 20, idx % 3, certificate(idx % 4 - 1, float(radius)), 0.1, COUNTS)
    run = read(tmp_path)
    assert run.sidecar == SIDECAR
    assert run.idx.tolist() == [20 * i for i in range(50)]
    assert run.label.tolist() == [i % 3 for i in range(50)]
    assert run.predict.tolist() == [i % 4 - 1 for i in range(50)]
    assert run.correct.tolist() == [i % 3 == i % 4 - 1 for i in range(50)]
    assert (run.radius <= radii).all()
    np.testing.assert_allclose(run.radius, radii, rtol=1e-6)


def test_table_reads_as_the_field_reads_it(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        for label, predict, radius in [(0, 0, 0.5), (1, 1, 1.25), (2, 0, 3.0), (3, -1, 0.0)]:
            run.write(label, label, certificate(predict, radius), 0.1, COUNTS)
    with open(tmp_path / "results.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for r in (0.0, 0.5, 0.75, 1.25, 2.0):
        by_hand = sum(int(row["correct"]) & (float(row["radius"]) >= r) for row in rows) / len(rows)
        assert certified_accuracy(read(tmp_path), r) == by_hand


def test_tables_of_the_2019_script_are_read(tmp_path):
    """Three digits in the radius, a file name without a suffix, Windows line ends, a neighbour that is not its sidecar."""
    file = tmp_path / "sigma_0.25"
    file.write_bytes(f"{HEADER}\r\n0\t3\t3\t0.734\t1\t0:02:01.5\r\n20\t7\t-1\t0.0\t0\t0:02:00\r\n".encode())
    (tmp_path / "results.json").write_text("{}")
    run = read(str(file))
    assert run.radius.tolist() == [0.734, 0.0]
    assert run.correct.tolist() == [True, False]
    assert run.sidecar is None


def test_a_run_is_read_without_its_sidecar_and_by_its_table(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        run.write(0, 1, certificate(1, 0.5), 0.1, COUNTS)
    assert read(tmp_path / "results.tsv").sidecar == SIDECAR
    (tmp_path / "results.json").unlink()
    assert read(tmp_path).sidecar is None


GOOD_ROW = "0\t3\t3\t0.5\t1\t0:00:01"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("1\t3\t3\t0.5\t1", "the row must have 6 fields, separated by tabs, got 5"),
        ("1\t3\t3\t0.5\t1\t0:00:01\t", "the row must have 6 fields, separated by tabs, got 7"),
        ("1 3 3 0.5 1 0:00:01", "the row must have 6 fields, separated by tabs, got 1"),
        ("1.5\t3\t3\t0.5\t1\t0:00:01", "idx must be a 64-bit integer, got '1.5'"),
        ("1\tcat\t3\t0.5\t0\t0:00:01", "label must be a 64-bit integer, got 'cat'"),
        ("1\t3\t99999999999999999999\t0.5\t0\t0:00:01", "predict must be a 64-bit integer, got '99999999999999999999'"),
        ("1\t3\t3\twide\t1\t0:00:01", "radius must be a number, got 'wide'"),
        ("1\t3\t3\t-0.5\t1\t0:00:01", "radius must be finite and at least 0, got '-0.5'"),
        ("1\t3\t3\tnan\t1\t0:00:01", "radius must be finite and at least 0, got 'nan'"),
        ("1\t3\t3\tinf\t1\t0:00:01", "radius must be finite and at least 0, got 'inf'"),
        ("1\t3\t4\t0.5\t1\t0:00:01", "correct must be 0 where label is 3 and predict is 4, got 1"),
        ("1\t-1\t-1\t0.5\t1\t0:00:01", "correct must be 0 where label is -1 and predict is -1, got 1"),
    ],
)
def test_a_malformed_row_is_named(row, what, tmp_path):
    file = tmp_path / "old.tsv"
    file.write_text(f"{HEADER}\n{GOOD_ROW}\n{row}\n{GOOD_ROW}\n")
    with pytest.raises(ValueError, match="line 3: ") as error:
        read(file)
    assert str(error.value).startswith(f"{file}, line 3: {what}")


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "results.tsv").write_text(HEADER + "\n")
    with pytest.raises(ValueError, match=r"results\.tsv must have at least one row, got a header only"):
        read(tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.tsv"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"{", "must be JSON, got "), (b"\xff", "must be JSON, got "), (b"[1]", "must hold an object, got a list")],
)
def test_a_malformed_sidecar_is_named(content, what, tmp_path):
    (tmp_path / "results.tsv").write_text(f"{HEADER}\n{GOOD_ROW}\n")
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        read(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "results.json"))


def test_certified_accuracy_by_hand(example):
    radii = [0, 0.25, 0.2500001, 0.5, 0.75, 1.0, 2.0, 2.25, 2.3, 100]
    assert certified_accuracy(example, radii).tolist() == [0.6, 0.6, 0.5, 0.5, 0.3, 0.3, 0.1, 0.1, 0.0, 0.0]
    assert certified_accuracy(example, 0.5).shape == ()
    assert certified_accuracy(example, [[0.5], [1.0]]).tolist() == [[0.5], [0.3]]
    assert clean_accuracy(example) == 0.6
    assert abstention_rate(example) == 0.2
    assert average_certified_radius(example) == pytest.approx(6.0 / 10, rel=1e-15)


def test_average_certified_radius_is_the_area_under_certified_accuracy(example):
    step = 1 / 1024
    middles = np.arange(step / 2, 3, step)
    assert average_certified_radius(example) == pytest.approx(certified_accuracy(example, middles).sum() * step, rel=1e-12)


def test_certified_accuracy_is_its_definition():
    rng = np.random.default_rng(11)
    label, predict = rng.integers(0, 3, 400), rng.integers(-1, 3, 400)
    run = results(predict, rng.integers(0, 30, 400) / 8, label)
    radii = np.arange(0, 40) / 8
    definition = [np.mean(run.correct & (run.radius >= r)) for r in radii]
    assert certified_accuracy(run, radii).tolist() == definition


def test_an_abstained_or_wrong_row_never_counts():
    """Whatever its radius, and even if a caller says that the abstention is correct."""
    run = results(predict=[-1, -1, 2], label=[0, -1, 1], radius=[5.0, 5.0, 5.0], correct=[True, True, False])
    assert certified_accuracy(run, [0, 1, 5]).tolist() == [0, 0, 0]
    assert average_certified_radius(run) == clean_accuracy(run) == 0


@pytest.mark.parametrize("radii", [-0.1, math.nan, math.inf, [0.5, -1.0]])
def test_radii_that_are_none_are_refused(radii, example):
    with pytest.raises(ValueError, match=r"radii must be finite and at least 0, got "):
        certified_accuracy(example, radii)


def runs(example):
    return {"cohen|0.25": example, "a_b": results([0, -1, 1], [0.5, 0.0, 1.0], [0, 0, 1])}


def test_text_table(example):
    assert table(runs(example), [0, 0.5]).splitlines() == [
        "run           images    ACR    abstained    r=0.0    r=0.5",
        "----------  --------  -----  -----------  -------  -------",
        "cohen|0.25        10  0.600        20.0%    60.0%    50.0%",
        "a_b                3  0.500        33.3%    66.7%    66.7%",
    ]


def test_markdown_table(example):
    lines = table(runs(example), [0.5], "markdown").splitlines()
    assert lines[1].startswith("|:--")
    assert lines[1].endswith("-:|")
    assert [cell.strip() for cell in lines[2].split(" | ")] == [r"| cohen\|0.25", "10", "0.600", "20.0%", "50.0% |"]


def test_latex_table(example):
    text = table(runs(example), [0.5], "latex")
    assert text.startswith("\\begin{tabular}{lrrrr}\n\\toprule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}")
    assert r"a\_b" in text
    assert r"66.7\%" in text


def test_csv_table_is_unrounded(example):
    rows = list(csv.reader(table(runs(example), [0.5, 1 / 3], "csv").splitlines()))
    assert rows[0] == ["run", "images", "sigma", "n", "alpha", "norm", "ACR", "abstained", "r=0.5", f"r={1 / 3}"]
    assert rows[2][:6] == ["a_b", "3", "", "", "", ""]
    assert [float(field) for field in rows[2][6:]] == [0.5, 1 / 3, 2 / 3, 2 / 3]


def early_runs(example):
    def with_sidecar(run, sidecar):
        return Results(run.idx, run.label, run.predict, run.radius, run.correct, sidecar)

    a, b = runs(example).values()
    return {
        "a_b|c": with_sidecar(a, {"radius": 0.5, "rtol": None}),
        "all": with_sidecar(b, {"radius": None, "rtol": None}),
        "d": with_sidecar(b, {"radius": None, "rtol": 0.1}),
    }


AT_LEAST = "With all samples ACR and accuracies are at least, abstentions at most, those shown."


def test_runs_that_stopped_early_are_marked(example):
    """With the share that was decided, of right and wrong predictions alike: 7 of 10."""
    assert table(early_runs(example), [0.5]).splitlines() == [
        "run        images    ACR    abstained    r=0.5",
        "-------  --------  -----  -----------  -------",
        "a_b|c *        10  0.600        20.0%    50.0%",
        "all             3  0.500        33.3%    66.7%",
        "d *             3  0.500        33.3%    66.7%",
        "",
        f"* a_b|c: sampling stopped once radius 0.5 was decided: 70.0% certified at it. {AT_LEAST}",
        "",
        f"* d: sampling stopped once the radius was known to 0.1 of its size. {AT_LEAST}",
    ]
    lines = table(early_runs(example), [0.5], "markdown").splitlines()
    assert lines[2].startswith(r"| a_b\|c \*")
    assert lines[4].startswith(r"| d \*")
    assert lines[6].startswith(r"\* a_b|c: sampling stopped once radius 0.5 was decided: 70.0% certified")
    _, after = table(early_runs(example), [0.5], "latex").split("\n\\end{tabular}\n\n")
    assert after.startswith(r"* a\_b|c: sampling stopped once radius 0.5 was decided: 70.0\% certified")


def test_csv_of_runs_that_stopped_early_has_no_marks(example):
    rows = list(csv.reader(table(early_runs(example), [0.5], "csv").splitlines()))
    assert [row[0] for row in rows] == ["run", "a_b|c", "all", "d"]
    assert {len(row) for row in rows} == {9}
    assert [note.partition(":")[0] for note in notes(early_runs(example))] == ["a_b|c", "d"]


@pytest.mark.parametrize("stopping", [{"radius": "x"}, {"rtol": 2}, {"radius": 0.5, "rtol": 0.1}, {"radius": -1}])
def test_a_goal_that_is_none_is_named(stopping, tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        run.write(0, 1, certificate(1, 0.5), 0.1, COUNTS)
    strip_sums(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(SIDECAR | stopping))
    with pytest.raises(ValueError, match=r"results.json is damaged: (radius|rtol) must be"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "found", "instead"), [("results.tsv", "0.5", "0.6"), ("results.json", "0.25", "2.5")])
def test_a_row_that_is_not_that_of_its_check_sum(name, found, instead, tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        run.write(0, 1, certificate(1, 0.5), 0.1, COUNTS)
        run.write(1, 1, certificate(1, 0.75), 0.1, COUNTS)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace(found, instead))
    with pytest.raises(ValueError, match=r"is damaged: the check sum of idx 0, in line 1 of counts.jsonl, does not fit"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"the settings in results.json; one of these was changed"):
        read(tmp_path / "results.tsv")


def test_a_run_of_several_processes_that_is_not_finished(tmp_path):
    with RunWriter(tmp_path / "parts" / "0-of-2", SIDECAR):
        pass
    with pytest.raises(FileNotFoundError, match=r"has no results.tsv yet, as its run of several processes is not finished"):
        read(tmp_path)


def test_a_run_folder_without_counts_is_read_with_a_warning(tmp_path):
    with RunWriter(tmp_path, SIDECAR) as run:
        run.write(0, 1, certificate(1, 0.5), 0.1, COUNTS)
    (tmp_path / "counts.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"has no counts.jsonl, which holds check sums of its rows"):
        assert read(tmp_path).idx.tolist() == [0]


def run_of(idx, sidecar=None, *, label=1, has_radius=True):
    """All predict 1, with the radius 0.5; idx 0 abstains."""
    idx = np.array(idx)
    label, predict = np.full(len(idx), label), np.where(idx == 0, -1, 1)
    return Results(idx, label, predict, np.where(idx == 0, 0, has_radius / 2), predict == label, sidecar, has_radius)


SETTINGS = {"n": 400, "alpha": 0.01, "noise": {"name": "Gaussian", "sigma": 0.125}, "start": 0, "end": 8, "skip": 2}


def test_settings_are_columns_where_a_run_has_them():
    """In csv always."""
    runs = {"a": run_of([0, 2, 4, 6], SETTINGS), "b": run_of([0, 2, 4], {"n": 400, "alpha": 1e-05})}
    assert table(runs, [0.5]).splitlines() == [
        "run      images    sigma    n    alpha    norm    ACR    abstained    r=0.5",
        "-----  --------  -------  ---  -------  ------  -----  -----------  -------",
        "a             4    0.125  400     0.01      l2  0.375        25.0%    75.0%",
        "b             3        -  400    1e-05       -  0.333        33.3%    66.7%",
    ]
    assert table({"b": runs["b"]}, [0.5]).split()[:6] == ["run", "images", "n", "alpha", "ACR", "abstained"]
    assert table({"b": runs["b"]}, [0.5], "csv").splitlines() == [
        "run,images,sigma,n,alpha,norm,ACR,abstained,r=0.5",
        f"b,3,,400,1e-05,,{1 / 3},{1 / 3},{2 / 3}",
    ]


def test_a_run_that_is_not_finished_shows_what_it_is_to_have():
    run = run_of([0, 2, 4], SETTINGS)
    assert run.images_missing == 1
    for style in ("text", "markdown", "latex"):
        assert "3 of 4" in table({"a": run}, [0], style)
    assert next(csv.DictReader(table({"a": run}, [0], "csv").splitlines()))["images"] == "3"
    assert caveats({"a": run}) == ["a: not finished: 3 of 4 images"]
    assert caveats({"a": run_of([0, 2, 4, 6], SETTINGS)}) == []
    assert run_of([2, 4], SETTINGS | {"start": 1, "end": 5}).images_missing == 0


def test_caveats_name_what_differs_and_a_run_of_each():
    def differ(**runs):
        return [line.removeprefix("runs differ in ") for line in caveats(runs)]

    full = SETTINGS | {"end": 2}
    a = run_of([1, 2], full)
    assert differ(a=a, b=run_of([2, 1], full), c=run_of([1, 2])) == [
        "no norm is stated of c, so it may be another than the l2 of the others"
    ]
    assert differ(a=a, b=a, c=run_of([1, 2], full | {"n": 50, "alpha": 0.5})) == [
        "n: 400 in a, 50 in c",
        "alpha: 0.01 in a, 0.5 in c",
    ]
    assert differ(a=a, b=run_of([1, 2, 3], full)) == ["the number of images: 2 in a, 3 in b"]
    assert differ(a=a, b=run_of([3, 4], full)) == ["images: idx 1 to 2 in a, idx 3 to 4 in b"]
    assert differ(a=run_of([1, 2, 4]), b=run_of([1, 3, 4])) == ["images: a, b do not have the same idx"]
    assert differ(a=run_of([1, 2]), b=run_of([-1, -1])) == []  # unknown
    many = {f"r{n}": run_of([1], {"n": n}) for n in range(1, 7)}
    assert differ(**many) == ["n: 1 in r1, 2 in r2, 3 in r3, 4 in r4, ..."]
    early = {name: run_of([1], {"radius": 0.5}) for name in "ab"}
    assert caveats(early) == ["stopped early, so figures are bounds: a, b"]


def test_predictions_are_compared_with_predictions():
    certified, predicted = run_of([1, 2], {"n": 400}), run_of([1], {"n": 50}, has_radius=False)
    assert caveats({"a": certified, "b": predicted}) == []
    assert caveats({"a": predicted, "b": run_of([1], {"n": 60}, has_radius=False)}) == ["runs differ in n: 50 in a, 60 in b"]


def test_table_of_predictions():
    runs = {
        "a": run_of([0, 1, 2, 3], SETTINGS | {"skip": 1, "end": 5}, has_radius=False),
        "b": run_of([1, 2], has_radius=False),
    }
    assert table(runs, [0, 0.5]).splitlines() == [
        "run      images    sigma    n    alpha    accuracy    abstained",
        "-----  --------  -------  ---  -------  ----------  -----------",
        "a        4 of 5    0.125  400     0.01       75.0%        25.0%",
        "b             2        -    -        -      100.0%         0.0%",
    ]
    assert table(runs, [], "csv").splitlines() == [
        "run,images,sigma,n,alpha,norm,accuracy,abstained",
        "a,4,0.125,400,0.01,,0.75,0.25",
        "b,2,,,,,1.0,0.0",
    ]


def test_table_of_certificates_and_predictions():
    runs = {"a": run_of([0, 1]), "b": run_of([1, 2], has_radius=False)}
    assert table(runs, [0.5]).splitlines() == [
        "run      images    accuracy    ACR    abstained    r=0.5",
        "-----  --------  ----------  -----  -----------  -------",
        "a             2       50.0%  0.250        50.0%    50.0%",
        "b             2      100.0%      -         0.0%        -",
    ]
    assert table(runs, [0.5], "csv").splitlines()[1:] == ["a,2,,,,,0.5,0.25,0.5,0.5", "b,2,,,,,1.0,,0.0,"]


def test_without_labels_shares_are_by_radius():
    """Right or wrong; and an abstention counts at no radius."""
    run = run_of([0, 1, 2, 3], label=-1)
    assert certified_accuracy(run, [0, 0.5, 0.6]).tolist() == [0.75, 0.75, 0]
    assert average_certified_radius(run) == 0.375
    note = "a: no labels: shares of images certified at r, right or wrong, and ACR is their mean radius."
    assert notes({"a": run}) == [note]
    lines = table({"a": run, "b": run_of([0, 1, 2, 3])}, [0.5]).splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["a", "*"], ["b", "4"]]
    assert lines[4:] == ["", f"* {note}"]


def test_notes_name_the_norm():
    stopped = {"norm": "l0", "radius": 3}, {"norm": "mahalanobis", "rtol": 0.5}
    first, second = (notes({"a": run_of([1], settings)})[0].partition(": ")[2] for settings in stopped)
    assert first.startswith("sampling stopped once l0 radius 3 was decided: ")
    assert second.startswith("sampling stopped once the Mahalanobis radius was known to 0.5 of its size. ")
    unlabelled = notes({"a": run_of([1], {"norm": "l1"}, label=-1)})
    assert unlabelled == ["a: no labels: shares of images certified at r, right or wrong, and ACR is their mean l1 radius."]


def test_predictions_without_labels_have_no_accuracy():
    runs = {"a": run_of([0, 1], label=-1, has_radius=False)}
    assert table(runs, []).splitlines()[2:] == ["a *           2           -        50.0%", "", "* a: no labels."]
    assert table(runs, [], "csv").splitlines()[1] == "a,2,,,,,,0.5"


def test_images_without_a_label_among_others_count_as_not_correct():
    """As pandas would have it; but it is said."""
    run = results([0, 1, 1], [0.5, 0.5, 0.5], [0, -1, -1])
    assert certified_accuracy(run, 0.5) == pytest.approx(1 / 3)
    assert notes({"a": run}) == ["a: 2 of 3 images have no label, and count as not correct."]


def test_a_large_average_radius_is_short():
    """Where a damaged table has one."""
    assert "0.500" in table({"a": run_of([1])}, [0])
    large = Results(*[np.arange(2)] * 3, np.full(2, 1.5e308), np.ones(2, dtype=bool))
    assert "1.500e+308" in table({"a": large}, [0])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n": "many"}, "n must be an int from 0 to 2^63, got 'many'"),
        ({"n": 2.5}, "n must be an int from 0 to 2^63, got 2.5"),
        ({"n": True}, "n must be an int from 0 to 2^63, got True"),
        ({"n": [1] * 1000}, "n must be an int from 0 to 2^63, got [1, 1, 1, 1,"),
        ({"alpha": -1}, "alpha must be a number from 0 to 2^63, got -1"),
        ({"alpha": 10**400}, "alpha must be a number from 0 to 2^63, got 1000"),
        ({"noise": "Gaussian"}, "noise must be an object, got 'Gaussian'"),
        ({"noise": {"sigma": "0.25"}}, "sigma must be a number from 0 to 2^63, got '0.25'"),
        ({"start": -1}, "start, end and skip must be integers with 0 <= start <= end and skip >= 1, got -1, "),
        ({"end": None}, "start, end and skip must be integers with 0 <= start <= end and skip >= 1, got "),
        ({"skip": {}}, "start, end and skip must be integers with 0 <= start <= end and skip >= 1, got "),
        ({"skip": 0}, "start, end and skip must be integers with 0 <= start <= end and skip >= 1, got "),
        ({"end": 10.0}, "start, end and skip must be integers with 0 <= start <= end and skip >= 1, got "),
        ({"radius": 10**400}, "radius must be a finite number above 0, got 1000"),
    ],
)
def test_a_damaged_setting_is_named(changes, what, tmp_path):
    (tmp_path / "results.tsv").write_text(f"{HEADER}\n{GOOD_ROW}\n")
    (tmp_path / "results.json").write_text(json.dumps(SETTINGS | changes))
    with pytest.raises(ValueError, match="is damaged") as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'results.json'} is damaged: {what}")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("changes", "missing"), [({"end": 10**15}, 5 * 10**14 - 1), ({"end": 2 * 10**40}, 10**40 - 1), ({"skip": 10**15}, 0)]
)
def test_a_setting_of_any_size_takes_no_memory(changes, missing, tmp_path):
    (tmp_path / "results.tsv").write_text(f"{HEADER}\n{GOOD_ROW}\n")
    (tmp_path / "results.json").write_text(json.dumps(SETTINGS | changes))
    assert read(tmp_path).images_missing == missing


def test_null_is_unknown(tmp_path):
    (tmp_path / "results.tsv").write_text(f"{HEADER}\n{GOOD_ROW}\n")
    (tmp_path / "results.json").write_text(json.dumps(dict.fromkeys([*SETTINGS, "radius", "rtol"])))
    run = read(tmp_path)
    assert (run.sigma, run.n, run.alpha, run.images_missing, bool(run.stopping)) == (None, None, None, 0, False)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="results_by_name must hold at least one run"):
        table({}, [0.5])


def test_unknown_format_is_refused(example):
    with pytest.raises(ValueError, match="format must be one of text, markdown, latex, csv, got 'html'"):
        table({"a": example}, [0.5], "html")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([0, 100], [1, 100], True),
        ([0, 100], [1.01, 100], False),
        ([-100, 100], [-100, 101], True),
        ([-100, 100], [-100, 101.01], False),  # of the largest, although the spread is 200
        ([900, 1000], [901, 1000], True),
        ([900, 1000], [901.01, 1000], False),  # of the spread, although the largest is 1000
        ([1000, 1000], [1001, 1000], True),
        ([1000, 1000], [1001.1, 1000], False),
        ([None, 100, 0], [None, 100.5, 0], True),
        ([None, 100, 0], [100, None, 0], False),
        ([None, None], [None, None], True),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [1e-30, 0.0], False),
        ([1, 2], [1, 2, 3], False),
        ([], [1], False),
    ],
)
def test_logits_are_the_same_to_one_percent(first, second, same):
    assert same_logits({"first_logits": second}, {"first_logits": first}) == same
    for scale in (2.0**-100, 2.0**100):  # whatever their size
        scaled = [[each if each is None else each * scale for each in logits] for logits in (second, first)]
        assert same_logits(*({"first_logits": logits} for logits in scaled)) == same


def test_logits_in_bfloat16_may_differ_by_its_rounding():
    logits = {"first_logits": [1000.0, 1001.0]}, {"first_logits": [1004.0, 1004.0]}
    assert not same_logits(*logits)
    for name in ("dtype", "autocast"):
        assert same_logits(*({**each, name: "bfloat16"} for each in logits))


def test_a_lipschitz_constant_needs_what_it_depends_on(tmp_path):
    """Before scale was recorded it was per unit of the images; since then, of what the model takes."""
    before = {"n": 100, "mean": [0.5], "std": [0.25]}
    added = {"clamp": None, "scale": [4.0], "shift": [-2.0], "reduced_precision": None, "mode_fixed": False}
    for lipschitz in (None, 0.5):
        folder = tmp_path / str(lipschitz)
        with RunWriter(folder, before | {"lipschitz": lipschitz}):
            pass
        again = before | {"lipschitz": lipschitz} | added
        if lipschitz is None:
            RunWriter(folder, again, resume=True)
        else:
            with pytest.raises(ValueError, match=r"scale must be None, as in .*, got \[4.0\]"):
                RunWriter(folder, again, resume=True)


def test_an_error_shows_the_beginning_of_a_long_setting(tmp_path):
    with RunWriter(tmp_path / "run", {"noise": {"name": "Ellipsoid", "sigmas": [0.25] * 10_000}}):
        pass
    with pytest.raises(
        ValueError, match=r"^noise must be {'name': 'Ellipsoid', .*\.\.\., as in .*, got .*; resume"
    ) as caught:
        RunWriter(tmp_path / "run", {"noise": {"name": "Ellipsoid", "sigmas": [0.5] * 10_000}}, resume=True)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["stream_version", "versions", "seed", "noise", "start", "skip", "std", "another"])
def test_identity_is_of_every_field(name):
    """A checkpoint is known by it."""
    run = {"stream_version": 1, "versions": {"rsfast": "0.1.0"}, "seed": 1, "noise": {"sigma": 1}, "start": 0, "skip": 1}
    assert identity(run | {name: {"changed": 1}}) != identity(run)
    assert identity(run | {"command": "x", "started": "now"}) == identity(run)


def test_runs_of_two_norms_are_refused(tmp_path):
    """In a table and a figure, by names; a run whose norm nobody knows goes with any, and predictions have no radius."""
    runs = {"a": run_of([0, 1], {"norm": "l1"}), "b": run_of([0, 1]), "c": run_of([0, 1], {"norm": "l2"})}
    message = "runs must have one norm, got l1 in a and l2 in c; compare them apart"
    with pytest.raises(ValueError, match=message):
        table(runs, [0.5])
    with pytest.raises(ValueError, match=message):
        plot(runs, tmp_path / "figure.png")
    del runs["c"]
    assert [line.split()[2] for line in table(runs, [0.5]).splitlines()] == ["norm", "------", "l1", "-"]
    runs["c"] = run_of([0, 1], {"norm": "l2"}, has_radius=False)
    assert [line.split()[2] for line in table(runs, [0.5]).splitlines()][2:] == ["l1", "-", "-"]
    with pytest.raises(ValueError, match="norm must be that of the runs, 'l1', got 'l2'"):
        plot(runs, tmp_path / "figure.png", norm="l2")


def test_runs_of_a_norm_that_depends_on_their_noise_agree_in_it(tmp_path, monkeypatch):
    """Radii of two ellipsoids, in standard deviations, are in two norms of one name."""

    @dataclass(frozen=True)
    class Ellipsoid(Noise):
        first: float
        second: float

        constraints: ClassVar = {"first": POSITIVE, "second": POSITIVE}
        norm = "mahalanobis"
        norm_fields = ("first",)

    monkeypatch.setitem(NOISES, "Ellipsoid", Ellipsoid)
    one, same, other = (run_of([0, 1], {"noise": Ellipsoid(*each).to_dict()}) for each in ((0.5, 1), (0.5, 2), (0.25, 1)))
    assert "mahalanobis" in table({"a": one, "b": same}, [0.5])
    message = (
        r"runs must have one norm, got mahalanobis \(first = 0.5\) in a and mahalanobis \(first = 0.25\) in b; compare "
    )
    for compare in (lambda runs: table(runs, [0.5]), lambda runs: plot(runs, tmp_path / "figure.png")):
        with pytest.raises(ValueError, match=f"^{message}"):
            compare({"a": one, "b": other})


def test_arrays_of_one_range_are_not_said_to_be_the_same(tmp_path):
    """Two noises that read alike differ in an element, which the messages of analyze and resume name."""
    one, other = AnisotropicGaussian([0.1, 0.2, 0.3]), AnisotropicGaussian([0.1, 0.25, 0.3])
    runs = {"a": run_of([0, 1], {"noise": one.to_dict()}), "b": run_of([0, 1], {"noise": other.to_dict()})}
    first, second = (f"sigmas = 0.1 to 0.3 of shape [3], {each} at [1]" for each in (0.2, 0.25))
    message = f"got mahalanobis ({first}) in a and mahalanobis ({second}) in b; compare them apart"
    with pytest.raises(ValueError, match=re.escape(message)):
        table(runs, [0.5])
    for before, now, texts in (
        (one, other, [first.replace(" = ", "="), second.replace(" = ", "=")]),
        (Gaussian(0.5), Gaussian(0.25), ["sigma=0.5", "sigma=0.25"]),
    ):
        folder = tmp_path / now.name
        with RunWriter(folder, {"noise": before.to_dict()}):
            pass
        must, got = (f"{now.name}({text})" for text in texts)
        with pytest.raises(ValueError, match=re.escape(f"noise must be {must}, as in ") + ".*" + re.escape(f", got {got};")):
            RunWriter(folder, {"noise": now.to_dict()}, resume=True)
    with pytest.raises(ValueError, match=r"must be Gaussian\(sigma=0.5\), as in .*, got AnisotropicGaussian\(sigmas=.*\);"):
        RunWriter(tmp_path / "Gaussian", {"noise": one.to_dict()}, resume=True)


def test_the_norm_of_a_run_is_that_of_its_noise():
    """Earlier versions did not write it."""
    assert [run_of([1], settings).norm for settings in (None, {}, SETTINGS, {"noise": {"name": "Gaussian"}})] == [
        *(None, None, "l2", None)
    ]
    for norm in ("l1", 2):
        with pytest.raises(ValueError, match="norm must be 'l2', that of the noise, got"):
            _ = run_of([1], SETTINGS | {"norm": norm}).norm
