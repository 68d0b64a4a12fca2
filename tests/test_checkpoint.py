"""Checkpoints alone: what was saved is loaded, and nothing else; a disk that is full or a process that dies loses none."""

import json
from pathlib import Path

import pytest
from conftest import largest_file

from rsfast.runs import checkpoint
from rsfast.runs.checkpoint import CHECKPOINT, load, remove, save

RUN = "ab" * 32
INPUTS = [
    {"idx": 3, "asked": 120, "selection": {"n": 20, "counts": [20, 0, 0]}, "estimation": [{"n": 100, "counts": [99, 1, 0]}]},
    {"idx": 4, "outcome": {"radius": 0.1 + 0.2, "head": "votes"}, "counts": {"estimation": {"n": 500}}},
    {"idx": 5, "outcome": -1, "counts": {}},
]
SAVED = {each["idx"]: each for each in INPUTS}
AGAIN = "remove it, and images without a row begin again"


def test_what_was_saved_is_loaded(tmp_path):
    assert load(tmp_path, RUN) == {}
    save(tmp_path, RUN, INPUTS)
    assert load(tmp_path, RUN) == SAVED
    save(tmp_path, RUN, iter(INPUTS[1:]))
    assert load(tmp_path, RUN) == {4: SAVED[4], 5: SAVED[5]}
    save(tmp_path, RUN, [])
    assert load(tmp_path, RUN) == {}
    (tmp_path / f"{CHECKPOINT}.new").touch()
    remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path)


def test_every_byte_counts(tmp_path):
    """Any byte that is another is told, with its line: none is sampled on. Without the last lines, those begin again."""
    save(tmp_path, RUN, INPUTS)
    file = tmp_path / CHECKPOINT
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        number = whole[:place].count(b"\n") + 1
        with pytest.raises(ValueError, match=AGAIN) as error:
            load(tmp_path, RUN)
        assert str(error.value).startswith(
            (f"{file}, line {number}, is damaged; ", f"{file} must be of this run, got one of another run; ")
        )
        file.write_bytes(whole[:place])
        if place and whole[place - 1 : place + 1].count(b"\n"):  # cut between two lines
            found = load(tmp_path, RUN)
            assert found == {idx: SAVED[idx] for idx in found}
        else:
            with pytest.raises(ValueError, match=f"line {number}, is damaged; {AGAIN}"):
                load(tmp_path, RUN)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, b"7"),
        (1, b'{"idx": 3}'),
        (2, b"[]"),
        (2, b'{"idx": 3, "asked": 120}'),
        (3, b""),
        (3, b'{"idx": 3, "asked": 1e999, "crc32": NaN}'),
        (4, b"\xff\xfe\x00"),
    ],
)
def test_lines_of_another_kind(number, line, tmp_path):
    save(tmp_path, RUN, INPUTS)
    lines = (tmp_path / CHECKPOINT).read_bytes().split(b"\n")
    lines[number - 1] = line
    (tmp_path / CHECKPOINT).write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=f"{CHECKPOINT}, line {number}, is damaged; {AGAIN}"):
        load(tmp_path, RUN)


def test_another_run(tmp_path):
    """Its whole file is refused, and so is a line of it in this one's."""
    save(tmp_path, RUN, INPUTS)
    with pytest.raises(ValueError, match=f"{CHECKPOINT} must be of this run, got one of another run; {AGAIN}"):
        load(tmp_path, "another")
    header, *lines = (tmp_path / CHECKPOINT).read_text().splitlines()
    assert json.loads(header) == {"run": RUN}
    (tmp_path / CHECKPOINT).write_text("\n".join([json.dumps({"run": "another"}), *lines, ""]))
    with pytest.raises(ValueError, match="line 2, is damaged"):
        load(tmp_path, "another")


def test_a_full_disk_keeps_the_older(tmp_path):
    save(tmp_path, RUN, INPUTS[:1])
    long = [{"idx": idx, "asked": 1} for idx in range(5000)]
    for size in (0, 100, 9000):
        with (
            largest_file(size),
            pytest.raises(OSError, match=r"File too large in writing .*; the rows and the checkpoint before"),
        ):
            save(tmp_path, RUN, long)
        assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
        assert load(tmp_path, RUN) == {3: SAVED[3]}


def test_a_death_keeps_the_older(tmp_path, monkeypatch):
    """In the middle of the lines, and before the new file has its name."""
    save(tmp_path, RUN, INPUTS[:1])

    def dying():
        yield from INPUTS
        raise SystemExit

    with pytest.raises(SystemExit):
        save(tmp_path, RUN, dying())
    assert load(tmp_path, RUN) == {3: SAVED[3]}

    def dies(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(SystemExit):
            save(tmp_path, RUN, INPUTS)
    assert load(tmp_path, RUN) == {3: SAVED[3]}
    checkpoint.save(tmp_path, RUN, INPUTS)
    assert load(tmp_path, RUN) == SAVED
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
