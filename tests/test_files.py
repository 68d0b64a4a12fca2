"""rsfast.files: what is opened is a file that ends."""

import io
import os
import socket

import pytest

from rsfast.files import hint_of_text, open_file


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
