"""rsfast._files: what is opened is a file that ends, and what is written is there as a whole or not at all."""

import fcntl
import io
import os
import socket

import pytest
from conftest import largest_file

from rsfast._files import hint_of_text, open_file, write_whole


def test_a_regular_file_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"a\r\nb")
    with open_file(file) as opened:
        assert opened.read() == b"a\r\nb"


def test_what_may_never_end_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path, kind in (("fifo", "a FIFO"), ("socket", "a socket"), ("/dev/zero", "a device")):
            with pytest.raises(ValueError, match=f"^{path} must be a regular file, got {kind}$"):
                open_file(path)


def test_a_folder_and_what_is_missing(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "missing")


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x93NUMPY\x01\x00", "é".encode(), b"text\x00"])
def test_what_is_not_text_gets_no_hint(data):
    assert hint_of_text(io.BytesIO(data)) == ""


def test_a_file_is_written_as_a_whole(tmp_path):
    file = tmp_path / "file"
    for content in (b"old", b"new, and longer"):
        write_whole(file, [content])
        assert file.read_bytes() == content
    (tmp_path / "link").symlink_to(file)
    write_whole(tmp_path / "link", [b"through ", b"a link"])
    assert file.read_bytes() == b"through a link"
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("refused", [False, True])
def test_content_is_on_the_disk_before_the_name_where_fsync_does_not_see_to_it(refused, tmp_path, monkeypatch):
    """As on macOS, whose F_FULLFSYNC some file systems refuse."""
    calls = []

    def full(file, command):
        calls.append(command)
        if refused:
            raise OSError(45, "Operation not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    write_whole(tmp_path / "file", [b"content"])
    assert calls == ([51, "fsync"] if refused else [51])
    assert (tmp_path / "file").read_bytes() == b"content"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with largest_file(100), pytest.raises(OSError, match=r"in writing .*/file$"):
        write_whole(tmp_path / "file", [bytes(50), bytes(1000)])
    with pytest.raises(OSError, match=r"Is a directory in writing .*/folder$"):
        write_whole(tmp_path / "folder", [b"new"])
    with pytest.raises(ValueError, match="must be a regular file, got a FIFO"):
        write_whole(tmp_path / "fifo", [b"new"])
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fifo", "file", "folder"]
