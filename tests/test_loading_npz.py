"""rsfast.loading.npz: arrays are read as NumPy reads them, and a file that lies is an error before it costs memory."""

import io
import pickle
import random
import re
import struct
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from rsfast.loading.npz import read_arrays

IMAGES = np.arange(60, dtype=np.float32).reshape(5, 3, 4)


def npy(array=IMAGES, version=None):
    """The bytes of a member."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def header(text, data=b"", version=b"\1\0"):
    """The bytes of a member with this header."""
    packed = text if isinstance(text, bytes) else text.encode("latin1")
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(packed)) + packed + data


def declare(shape, dtype="<f4"):
    return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"


def write(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


def patch(path, old, new):
    """Replace bytes in a file, wherever they are."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    "array",
    [
        IMAGES,
        np.asfortranarray(IMAGES),
        IMAGES.astype(">f4"),
        np.asfortranarray(IMAGES.astype(">f4")),
        IMAGES[::-1, :, ::2],
        IMAGES[:0],
        np.float32(3),
        IMAGES.astype(">i8"),
        np.array(["a", "bc"]),
    ],
    ids=lambda array: f"{array.dtype} {array.strides}",
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_saved(tmp_path, array, save):
    save(tmp_path / "a.npz", images=array, other=1)
    arrays, names = read_arrays(str(tmp_path / "a.npz"), ["images", "labels"])
    assert names == ["images", "other"]
    assert list(arrays) == ["images"]
    found = arrays["images"]
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_other_writers(tmp_path, compression, version):
    large = np.arange(1 << 20, dtype=np.float32)  # several chunks
    write(tmp_path / "a.npz", [("x.npy", npy(large, version))], compression)
    np.testing.assert_array_equal(read_arrays(str(tmp_path / "a.npz"), ["x"])[0]["x"], large)


FLOATS = IMAGES.tobytes()
MEMBERS = {
    "no array": (b"text, which is no array", "the magic string is not correct"),
    "nothing": (b"", "EOF"),
    "part of the magic string": (b"\x93NUM", "EOF"),
    "version 3": (npy(version=(3, 0)), "its .npy version must be 1.0 or 2.0, got 3.0"),
    "version 9": (b"\x93NUMPY\x09\0" + npy()[8:], "its .npy version must be 1.0 or 2.0, got 9.0"),
    "10^15 floats": (header(declare((10**15,)), FLOATS), "declares float32 [1000000000000000], 4000000000000000 bytes"),
    "more than fits an integer": (header(declare((10**30, 10**30)), FLOATS), "its header declares float32"),
    "one float less": (header(declare((61,)), FLOATS), "declares float32 [61], 244 bytes, but it holds 240"),
    "one float more": (header(declare((59,)), FLOATS), "declares float32 [59], 236 bytes, but it holds 240"),
    "negative": (header(declare((-6, -10)), FLOATS), "its header declares float32 [-6, -10]"),
    "no width, many": (header(declare((10**15,), "|S0")), "itemsize"),
    "structured": (header(declare((60,), [("a", "<f4"), ("b", "O")]), FLOATS), "must hold numbers, got Python objects"),
    "objects": (npy(np.array([{}, 1])), "must hold numbers, got Python objects"),
    "subarrays": (header(declare((15,), ("<f4", (4,))), FLOATS), ""),
    "unknown type": (header(declare((60,), "<q9"), FLOATS), "descr is not a valid dtype descriptor"),
    "shape of strings": (header(declare(("a",)), FLOATS), "shape is not valid"),
    "shape of floats": (header(declare((60.0,)), FLOATS), "shape is not valid"),
    "keys missing": (header("{'descr': '<f4'}", FLOATS), "Header does not contain the correct keys"),
    "no dictionary": (header("[1, 2]", FLOATS), "Header is not a dictionary"),
    "code": (header("__import__('os').abort()", FLOATS), ""),
    "nested": (header("[" * 5000 + "]" * 5000, FLOATS), ""),
    "parentheses": (header("(" * 9000, FLOATS), ""),
    "escapes": (header(declare((60,)).replace("'descr'", "'\\d'"), FLOATS), "Header does not contain the correct keys"),
    "null": (header(declare((60,)) + "\0", FLOATS), ""),
    "no text": (header(b"\xff\xfe\x80", FLOATS), ""),
    "long header": (header(declare((60,)) + " " * 20000, FLOATS), "its header is damaged (Header info length"),
    "header longer than the file": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + FLOATS, "EOF"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("data", "message"), MEMBERS.values(), ids=MEMBERS)
def test_members_that_lie(tmp_path, data, message):
    file = tmp_path / "a.npz"
    write(file, [("images.npy", data)])
    with pytest.raises(ValueError, match=rf"^{file}: images\.npy: .*{re.escape(message)}") as raised:
        read_arrays(str(file), ["images"])
    assert "allow_pickle" not in str(raised.value)  # which NumPy advises
    assert read_arrays(str(file), ["labels"]) == ({}, ["images"])


def test_archives_that_lie(tmp_path):
    file = tmp_path / "a.npz"

    def fails(message):
        with pytest.raises(ValueError, match=f"^{file}.*{re.escape(message)}"):
            read_arrays(str(file), ["images"])

    data = npy()
    for text in (b"", b"text", b"PK\5\6", data):
        file.write_bytes(text)
        fails("is not an .npz file; it must be one, as numpy.savez writes it")
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(file, [("images.npy", data), ("images.npy", data)])
    fails("images.npy: there must be one of that name, got two")
    write(file, [("images", data), ("images.npy", data)])
    fails("images.npy: there must be one of that name, got two")

    write(file, [("images.npy", data)])
    whole = file.read_bytes()
    directory = whole.index(b"PK\1\2")

    def change(place, new):
        file.write_bytes(whole[:place] + new + whole[place + len(new) :])

    change(directory + 8, b"\1")
    fails("images.npy: RuntimeError: File ")
    change(directory + 10, b"\x63")
    fails("images.npy: NotImplementedError: ")
    change(directory + 10, b"\x08")  # deflated, it says
    fails("images.npy: ")
    change(whole.index(FLOATS), b"\1")
    fails("images.npy: BadZipFile: Bad CRC-32")
    change(30, b"I")  # the name in the local header
    fails("images.npy: BadZipFile: ")
    change(directory + 42, struct.pack("<I", 1 << 30))  # the offset of the member
    fails("")
    for end in (len(whole) - 1, directory + 5, len(whole) // 2, 30):
        file.write_bytes(whole[:end])
        fails("")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_that_are_false_cost_no_memory(tmp_path, compression):
    """The header and the archive agree on 10^9 bytes, and there are 240."""
    file = tmp_path / "a.npz"
    size, count = struct.pack("<I", 10**9 + 128), (10**9) // 4
    head = header(declare((count,)).ljust(118))
    write(file, [("images.npy", head + FLOATS)], compression)
    patch(file, struct.pack("<I", len(head) + len(FLOATS)), size)
    assert len(head) == 128
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"images\.npy: "):
        read_arrays(str(file), ["images"])
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_more_data_than_the_archive_states_is_an_error(tmp_path):
    """As in a bomb, whose size is stated small."""
    file = tmp_path / "a.npz"
    data = npy() + bytes(1 << 24)
    write(file, [("images.npy", data)], zipfile.ZIP_DEFLATED)
    patch(file, struct.pack("<I", len(data)), struct.pack("<I", len(npy())))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"images\.npy: BadZipFile: Bad CRC-32"):
        read_arrays(str(file), ["images"])
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    np.savez(tmp_path / "a.npz", images=np.array([{}]))
    with pytest.raises(ValueError, match="which would have to be unpickled"):
        read_arrays(str(tmp_path / "a.npz"), ["images"])


@pytest.mark.filterwarnings("error")
def test_any_bytes_may_change(tmp_path):
    """The array, or one error."""
    file = tmp_path / "a.npz"
    read = 0
    for save, seed in ((np.savez, 1), (np.savez_compressed, 2)):
        save(file, images=IMAGES, labels=np.arange(5))
        whole, rng = file.read_bytes(), random.Random(seed)
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 1, 1, 4))):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            file.write_bytes(data)
            with suppress(ValueError):
                arrays, _ = read_arrays(str(file), ["images", "labels"])
                read += 1
                assert all(array.nbytes <= IMAGES.nbytes for array in arrays.values())
    assert 0 < read < 700
