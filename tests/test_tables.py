"""Tables that others wrote: read by their columns' names, to the figures that pandas gives, or refused with their line."""

import os
import random
import re
import warnings

import numpy as np
import pytest

from rsfast.runs.results import abstention_rate, average_certified_radius, certified_accuracy, clean_accuracy, read
from rsfast.runs.tables import EmptyTable, read_table

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
ROWS = ("3\t5\t5\t0.4375\t1\t12.5", "4\t0\t-1\t0.0\t0\t0:00:09.5", "9\t2\t7\t1.5\t0\t0:01:00")


def put(path, *lines, end="\n", last=True, encoding="utf-8"):
    path.write_bytes((end.join(lines) + (end if last else "")).encode(encoding))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "table.tsv"


def figures(run):
    return run.label.tolist(), run.predict.tolist(), run.radius.tolist(), run.correct.tolist()


EXPECTED = ([5, 0, 2], [5, -1, 7], [0.4375, 0.0, 1.5], [True, False, False])


def with_column(name, value, place):
    """The table with one column more, before the one at `place`."""
    lines = []
    for line, field in zip((HEADER, *ROWS), (name, *[value] * 3), strict=True):
        fields = line.split("\t")
        fields.insert(place, field)
        lines.append("\t".join(fields))
    return lines


def edited(edit):
    return [HEADER, *(edit(row) for row in ROWS)]


VARIANTS = {
    "a column first": with_column("", "17", 0),  # the index that pandas writes
    "a column in between": with_column("radius_proxy", "9.5", 3),
    "a column last": with_column("radius proved", "1", 6),
    "a column of text": with_column("file", "a, b's “c”.png", 2),
    "columns in another order": ["\t".join(reversed(line.split("\t"))) for line in (HEADER, *ROWS)],
    "neither idx nor time": ["\t".join(line.split("\t")[1:5]) for line in (HEADER, *ROWS)],
    "integers as floats": edited(lambda row: re.sub(r"^(\d+)\t(\d+)\t(-?\d+)", r"\1.0\t\2.\t\3.0e0", row)),
    "signs": edited(lambda row: row.replace("\t5", "\t+5")),
    "spaces around numbers": edited(lambda row: row.replace("\t", " \t  ")),
    "True and False": edited(lambda row: re.sub(r"\t([01])\t(?=[^\t]*$)", lambda m: f"\t{m[1] == '1'}\t", row)),
    "TRUE and false": edited(lambda row: re.sub(r"\t1\t(?=[^\t]*$)", "\tTRUE\t", row).replace("\t0\t0:", "\tfalse\t0:")),
    "1.0 and 0.0": edited(lambda row: re.sub(r"\t([01])\t(?=[^\t]*$)", r"\t\1.0\t", row)),
    "quotes": ["\t".join(f'"{field}"' for field in line.split("\t")) for line in (HEADER, *ROWS)],
    "blank lines at the end": [HEADER, *ROWS, "", "  ", ""],
    "blank lines elsewhere": [HEADER, "", ROWS[0], "", *ROWS[1:]],
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_the_same_figures(name, encoding, end, file):
    put(file, *VARIANTS[name], end=end, encoding=encoding)
    run = read(file)
    assert figures(run) == EXPECTED
    assert run.has_radius
    assert run.idx.tolist() == ([-1, -1, -1] if name == "neither idx nor time" else [3, 4, 9])
    assert run.seconds == (None if name == "neither idx nor time" else 82.0)


def test_figures_are_those_of_pandas(file):
    """Tables at random: of predictions, too, and of a column more."""
    pandas = pytest.importorskip("pandas")
    rng = random.Random(13)
    for _ in range(150):
        styles = {
            "label": rng.choice(["{}", "{}.0", " {}"]),
            "predict": rng.choice(["{}", "{}.00", "{} "]),
            "radius": rng.choice(["{}", "{:.3}", "{:e}", " {}"]),
            "idx": rng.choice(["{}", "{}.0"]),
            "time": "{}",
            "basePredict": "{}",
            "min_sigma": "{:.4f}",
            "radius proved": "{}",
        }
        names = ["label", "predict", "correct", *rng.sample(["idx", "time", "basePredict", "min_sigma"], rng.randrange(5))]
        predictions = rng.random() < 0.3
        if not predictions:
            names += ["radius", *rng.sample(["radius proved"], rng.randrange(2))]
        rng.shuffle(names)
        truths = rng.choice([(0, 1), (False, True), (0.0, 1.0), ("FALSE", "TRUE")])
        lines = ["\t".join(names)]
        for idx in range(rng.randrange(1, 40)):
            label, predict = rng.randrange(3), rng.randrange(-1, 3)
            row = {"label": label, "predict": predict, "idx": 20 * idx, "time": rng.choice(["15.4", "0:02:32.7"])}
            row |= {"radius": rng.expovariate(1), "basePredict": label, "min_sigma": rng.random(), "radius proved": 1}
            fields = {name: styles[name].format(value) for name, value in row.items()}
            fields["correct"] = str(truths[label == predict])
            lines.append("\t".join(fields[name] for name in names))
        lines += [""] * rng.randrange(3)
        put(file, *lines, end=rng.choice(["\n", "\r\n"]), encoding=rng.choice(["utf-8", "utf-8-sig"]))
        run, frame = read(file), pandas.read_csv(file, delimiter="\t")
        correct = frame["correct"].astype(bool) & (frame["predict"] != -1)
        assert len(run.idx) == len(frame)
        assert run.has_radius != predictions
        assert clean_accuracy(run) == pytest.approx(correct.mean(), rel=1e-15)
        assert abstention_rate(run) == pytest.approx((frame["predict"] == -1).mean(), rel=1e-15)
        if not predictions:
            radii = [0, 0.1, 0.5, 1, frame["radius"].max()]
            theirs = [(correct & (frame["radius"] >= r)).mean() for r in radii]
            assert certified_accuracy(run, radii).tolist() == pytest.approx(theirs, rel=1e-15)
            assert average_certified_radius(run) == pytest.approx((frame["radius"] * correct).mean(), rel=1e-14)


def test_predictions_are_known_by_their_header(file):
    run = read(put(file, "idx\tlabel\tbasePredict\tpredict\tcorrect\ttime", "0\t2\t1\t2\t1\t1.5", "7\t1\t1\t-1\t0\t2"))
    assert not run.has_radius
    assert run.idx.tolist() == [0, 7]
    assert run.predict.tolist() == [2, -1]
    assert run.radius.tolist() == [0, 0]
    assert run.seconds == 3.5


@pytest.mark.parametrize(
    ("header", "lacks"),
    [
        ("radius\taccuracy", "label, predict, correct"),
        ("epoch\tlr\ttrain loss\ttestacc", "label, predict, correct, radius"),
        ("idx\tlabel\tpredict\tcertified_radius\tcorrect\ttime", "radius"),
        ("idx\tlabel\tpredict\tRadius\tcorrect", "radius"),
        ("idx\tlabel\tpredict\tradius\ttime", "correct"),
        ("idx\tlabel \tpredict\tradius\tcorrect", "label"),
        ("idx,label,predict,radius,correct,time", "label, predict, correct, radius"),
    ],
)
def test_a_header_that_lacks_a_column_is_refused_with_what_it_has(header, lacks, file):
    put(file, header, "0\t1\t1\t0.5\t1\t0")
    with pytest.raises(ValueError, match="line 1: the header is ") as error:
        read(file)
    has = ", ".join(map(repr, header.split("\t")))
    assert str(error.value) == (
        f"{file}, line 1: the header is {has}; it lacks {lacks}. A table must have the columns label, predict, correct and, "
        "unless it is of predictions, radius, separated by tabs"
    )


@pytest.mark.parametrize("name", ["radius", "label", "min_sigma"])
def test_a_column_that_is_there_twice_is_refused(name, file):
    put(file, f"{name}\t{HEADER}\tmin_sigma", *(f"1\t{row}\t0.5" for row in ROWS))
    with pytest.raises(ValueError, match=rf"line 1: the header has the column '{name}' 2 times; each must be there once"):
        read(file)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("1\t3\t3\t0.5\t1\t0\t9", "the row must have 6 fields, separated by tabs, got 7"),
        ("\t\t\t\t\t", "idx must be a 64-bit integer, got ''"),
        ("1\t3.5\t3\t0.5\t0\t0", "label must be a 64-bit integer, got '3.5'"),
        ("1\t3\t1_0\t0.5\t0\t0", "predict must be a number, got '1_0'"),
        ("1\t3\t٣\t0.5\t0\t0", "predict must be a number, got '٣'"),
        ("1\t3\t1e30\t0.5\t0\t0", "predict must be a 64-bit integer, got '1e30'"),
        ("1\t3\tnan\t0.5\t0\t0", "predict must be a 64-bit integer, got 'nan'"),
        ("1\t3\t3\t1_0.5\t1\t0", "radius must be a number, got '1_0.5'"),
        ("1\t3\t3\t\t1\t0", "radius must be a number, got ''"),
        ("1\t3\t3\t1e999\t1\t0", "radius must be finite and at least 0, got '1e999'"),
        ("1\t3\t3\t-1e-9\t1\t0", "radius must be finite and at least 0, got '-1e-9'"),
        ("1\t3\t3\t0.5\tyes\t0", "correct must be 0 or 1, got 'yes'"),
        ("1\t3\t3\t0.5\t0.5\t0", "correct must be 0 or 1, got '0.5'"),
        ("1\t3\t2\t0.5\tTrue\t0", "correct must be 0 where label is 3 and predict is 2, got 1"),
        ('1\t3\t2\t0.5\t0\t"', "the line must be fields separated by tabs, got "),
        ("1\t3\t2\t0.5\t0\t" + "9" * (1 << 20), "the line must have at most 1048576 characters, got more"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(row, what, file):
    put(file, HEADER, "", ROWS[0], row, ROWS[1])
    with pytest.raises(ValueError, match="line 4: ") as error:
        read(file)
    assert str(error.value).startswith(f"{file}, line 4: {what}")


@pytest.mark.parametrize("columns", [range(6), range(5), (1, 2, 4)])
@pytest.mark.parametrize("last", [True, False])
def test_a_whole_last_row_without_a_newline_counts(columns, last, file):
    lines = ["\t".join(line.split("\t")[i] for i in columns) for line in (HEADER, *ROWS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(put(file, *lines, last=last)).idx) == 3


@pytest.mark.parametrize("cut", ["1", "15\t", "15\t2\t0\t1.", "15\t2\t0\t1.25", "15\t2\t2\t1.25\t", "15\t2\t0\t1.25\t0"])
def test_a_row_that_was_cut_off_is_left_out(cut, file):
    """Where rows end with a newline, the same is refused."""
    put(file, HEADER, *ROWS, cut, last=False)
    with pytest.warns(UserWarning, match=rf"^{re.escape(str(file))}: the last row was cut off; it is left out$"):
        assert figures(read(file)) == EXPECTED
    put(file, HEADER, *ROWS, cut)
    with pytest.raises(ValueError, match=r"line 5: the row must have 6 fields, separated by tabs, got \d"):
        read(file)


def test_in_a_run_folder_a_row_without_a_newline_was_cut_off(tmp_path):
    """As resuming it takes it; a table alone may end so."""
    put(tmp_path / "results.tsv", HEADER, *ROWS, last=False)
    with pytest.warns(UserWarning, match=r"results\.tsv: the last row was cut off"):
        assert len(read(tmp_path).idx) == 2
    assert len(read(tmp_path / "results.tsv").idx) == 3
    (tmp_path / "results.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"results\.tsv: the last row was cut off"):
        assert len(read(tmp_path / "results.tsv").idx) == 2


@pytest.mark.parametrize("content", ["", HEADER, f"{HEADER}\n", f"{HEADER}\n3\t5\t5"])
@pytest.mark.filterwarnings("ignore:.*cut off")
def test_a_table_without_rows_is_known(content, file):
    file.write_text(content)
    with pytest.raises(EmptyTable, match=rf"^{re.escape(str(file))} must have "):
        read(file)


def test_a_run_folder_whose_header_was_cut_off_has_no_rows(tmp_path):
    (tmp_path / "results.tsv").write_text("idx\tlab")
    with pytest.raises(EmptyTable, match="must have a header and rows, got neither"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (HEADER.encode("utf-16"), "line 1: the line holds NUL characters; the table must be text in UTF-8"),
        (b"\x80\x02}q\x00X", "line 1: the line holds NUL characters"),
        (b"\n" + HEADER.encode(), "line 1: the header is ''; it lacks label, "),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "line 1: the header is "),
        (b"x" * (3 << 20), "line 1: the line must have at most 1048576 characters, got more"),
    ],
    ids=["UTF-16", "pickle", "blank", "PNG", "one long line"],
)
def test_a_file_of_another_kind_is_refused(content, what, file):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        read(file)
    assert len(str(error.value)) < 500


def test_a_file_without_line_ends_is_not_read_whole(file):
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 34)
    with pytest.raises(ValueError, match="at most 1048576 characters"):
        read(file)


def test_a_table_that_may_never_end_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "results.tsv")
    for path in (tmp_path, tmp_path / "results.tsv"):
        with pytest.raises(ValueError, match=r"results\.tsv must be a regular file, got a FIFO"):
            read(path)
    with pytest.raises(ValueError, match="/dev/zero must be a regular file, got a device"):
        read("/dev/zero")


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["15.4", "0"], 15.4),
        (["0:02:32.717239", "0:00:01"], 153.717239),
        (["1 day, 0:00:01.5", "2 days, 1:01:00"], 86401.5 + 2 * 86400 + 3660),
        (["15.4", ""], None),
        (["15.4", "nan"], None),
        (["15.4", "soon"], None),
    ],
)
def test_seconds_are_the_sum_of_the_times(times, seconds, file):
    put(file, HEADER, *(f"{i}\t1\t1\t0.5\t1\t{time}" for i, time in enumerate(times)))
    assert read_table(file).seconds == (None if seconds is None else pytest.approx(seconds, rel=1e-15))


def test_radii_at_the_ends_of_the_floats(file):
    put(file, HEADER, *(f"{i}\t1\t1\t{radius}\t1\t0" for i, radius in enumerate(["1e-323", "1.7e308", "1.7e308", "-0.0"])))
    run = read(file)
    assert run.radius.tolist() == [1e-323, 1.7e308, 1.7e308, 0.0]
    assert not np.signbit(run.radius).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert average_certified_radius(run) == 0.85e308
