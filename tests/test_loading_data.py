"""rsfast.loading.data: what names stand for; files of arrays; Datasets of factories; libraries that are missing."""

import os
import pickle
import random
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_files import CIFAR, FLOATS, LABELS, MNIST, PIXELS, WRITERS, again, batch, check, fails, idx, picture, put, save

from rsfast.engine.inputs import Unreadable
from rsfast.loading.data import load_data
from rsfast.loading.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.path.append(str(tmp_path))


# Files of arrays


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pt"])
def test_bytes_and_floats_of_a_file(name):
    labels = None if name == "a.npy" else LABELS
    save(name, PIXELS, labels)
    data = load_data(name, num_classes=3)
    assert data.description == f"4 inputs [3, 5, 6] of uint8, which stand for x / 255, in {name}"
    check(data, PIXELS, labels)
    save(name, FLOATS, labels)
    for bytes in (False, True):
        data = load_data(name, bytes=bytes)
        assert data.description == f"4 inputs [3, 5, 6] of float32 in {name}"
        assert np.array_equal(torch.stack([again(data)[place] for place in range(4)]), FLOATS)
    save("other.pt", FLOATS)
    assert load_data("other.pt").labels is None


def test_every_byte_is_divided_as_it_should_be():
    np.save("a.npy", np.arange(256, dtype=np.uint8).reshape(2, 128))
    check(load_data("a.npy"), np.arange(256, dtype=np.uint8).reshape(2, 128), None)


@pytest.mark.parametrize("change", [lambda x: x.astype(">f4"), np.asfortranarray, lambda x: x[::-1]])
def test_a_mapped_array_in_another_order(change):
    np.save("a.npy", change(FLOATS))
    data = load_data("a.npy")
    assert np.array_equal(torch.stack([data[place] for place in range(4)]), change(FLOATS))


@pytest.mark.parametrize("name", ["a.npy", "a.pt"])
def test_a_mapped_file_is_not_in_memory(name):
    """Of 64 MiB in the file, what is pickled for a worker and what an input holds is little."""
    save(name, np.zeros((1024, 1 << 16), np.uint8))
    data = load_data(name)
    assert len(pickle.dumps(data)) < 1 << 14
    assert data[1023].untyped_storage().nbytes() == 4 << 16


def test_places_are_those_of_a_dataset():
    save("a.npz", PIXELS)
    data = load_data("a.npz")
    for place in (4, -1):
        with pytest.raises(IndexError, match=f"place must be from 0 to 3, got {place}"):
            data[place]
    with pytest.raises(TypeError, match="place must be an int"):
        data[0.0]
    assert data.digest == load_data("./a.npz").digest


FILES = {
    "float64": ("a.npy", FLOATS.astype("f8"), "images must be float32 or uint8, got float64; save images.astype('float32')"),
    "half": ("a.pt", FLOATS.astype("f2"), "images must be float32 or uint8, got float16; save images.float()"),
    "integers": ("a.pt", PIXELS.astype("i8"), "got int64; save pixels from 0 to 255 as uint8"),
    "a vector": ("a.npy", FLOATS.reshape(-1), "images must be [N, ...] and not empty, got [360]"),
    "nothing": ("a.npy", FLOATS[:0], "images must be [N, ...] and not empty, got [0, 3, 5, 6]"),
    "NaN": ("a.npy", np.where(np.arange(4).reshape(4, 1) == 2, np.nan, FLOATS[:, 0, 0]), "NaN or infinity in images[2]"),
    "infinity": ("a.pt", np.full((2, 3), np.inf, "f4"), "NaN or infinity in images[0]"),
    "objects": ("a.npy", np.array([[{}]]), "must hold numbers, got Python objects"),
}


@pytest.mark.parametrize(("name", "images", "message"), FILES.values(), ids=FILES)
def test_images_that_will_not_do(name, images, message):
    save(name, images)
    fails(name, message, (TypeError, ValueError))


def test_labels_that_will_not_do():
    save("a.pt", PIXELS, LABELS)
    fails("a.pt", "labels must be from 0 to 1, as num_classes is 2, got 0 to 2", num_classes=2)
    save("a.pt", PIXELS, [-1, 0, 0, 0])
    fails("a.pt", "labels must be at least 0, got -1 to 0")
    save("a.pt", PIXELS, [0.0, 1.0, 2.0, 1.0])
    fails("a.pt", "labels must be integers [4], got float64 [4]; save labels.reshape(-1).long()")
    torch.save({"x": torch.zeros(2, 3), "y": [1, 0], "epoch": 3}, "a.pt")
    assert load_data("a.pt").labels == [1, 0]
    for held, message in (
        ({"x": torch.zeros(2, 3), "images": torch.zeros(2, 3)}, "must hold images or x, got both"),
        ({"net": torch.zeros(2, 3)}, "must hold images (or x), and may hold labels (or y), got net"),
        ({"x": "text"}, "x must be a dense tensor, got a str"),
        ({"x": torch.zeros(2, 3).to_sparse()}, "x must be a dense tensor, got a Tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, "x must be float32 or uint8, got bfloat16; save x.float()"),
        ([torch.zeros(2, 3)], "must hold a tensor, or a dict with images and labels, got a list"),
    ):
        torch.save(held, "a.pt")
        fails("a.pt", message, (TypeError, ValueError))


def test_files_that_lie():
    """About sizes, and about what they are."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000000), }"
    Path("a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(10))
    fails("a.npy", "its header declares uint8 [1000000, 1000000000], 1000000000000000 bytes, but it holds 10")
    torch.save(torch.zeros(1).expand(10**12, 3), "a.pt")
    fails("a.pt", "images must be no larger than the file, got [1000000000000, 3]; save its clone()")
    torch.save({"x": os.system}, "a.pt")
    fails("a.pt", "is damaged or holds more than tensors")
    save("b.pt", PIXELS)
    whole = Path("b.pt").read_bytes()
    for end, message in ((0, "not a .pt file"), (10, "damaged"), (len(whole) // 2, "damaged"), (len(whole) - 4, "damaged")):
        Path("c.pt").write_bytes(whole[:end])
        fails("c.pt", f"c.pt is {message}")
    for name in ("a.npy", "a.pt", "a.npz"):
        Path(name).write_bytes(b"<!DOCTYPE html>")
        fails(name, "it begins with '<!DOCTYPE html>', so it is text")
    os.mkfifo("fifo.npy")
    fails("fifo.npy", "must be a regular file, got a FIFO")
    fails("missing.pt", "No such file or directory")


# Names


NOTHING = {
    "cifar:here": "'cifar'; cifar must be installed, or a module in the working directory; cifar10: may be meant",
    "imagnet:a/b": "MODULE:FACTORY, got 'imagnet:a/b'; imagenet: may be meant",
    "cifar10:absent": "absent must be a folder, got nothing there",
    "cifar10:file": "file must be a folder, got a file",
    "hf:absent": "absent must be a folder, got nothing there",
    "a/b:c": "must be FILE.npz, FILE.npy, FILE.pt, FOLDER, cifar10:DIR, ",
    "nets.py:f": "must be FILE.npz, FILE.npy, FILE.pt, FOLDER, cifar10:DIR, ",
    "missing": "No such file or directory",
}


@pytest.mark.parametrize(("name", "message"), NOTHING.items())
def test_names_of_nothing(name, message):
    Path("file").touch()
    with pytest.raises(ValueError, match=rf"^data [^\n]*{re.escape(message)}[^\n]*$"):
        load_data(name)


def test_an_empty_name():
    with pytest.raises(ValueError, match=r"^data must be FILE.npz, .* or MODULE:FACTORY, got ''$"):
        load_data("")


@pytest.mark.parametrize("name", ["root", "cifar10:root", "hf:root"])
def test_a_missing_library_is_named(monkeypatch, name):
    put("root/a.png", picture())
    Path("root/test_batch").write_bytes(pickle.dumps(batch(CIFAR, [1] * 6), 2))
    library, extra = ("datasets", "hf") if name == "hf:root" else ("PIL.Image", "vision")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"^data .* needs {library[:3]}\w*: pip install 'rsfast\[{extra}\]'$"):
        load_data(name, preprocessing=Preprocessing())
    monkeypatch.delitem(sys.modules, library)


@pytest.mark.slow
def test_worker_processes_read_the_same():
    """They are spawned, as where the GPU is in use."""
    for seed in range(3):
        put(f"root/{seed}.png", picture(seed=seed))
    save("a.npy", FLOATS)
    save("a.npz", FLOATS)
    data = torch.utils.data.ConcatDataset([load_data(name) for name in ("root", "a.npy", "a.npz")])
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    found = list(loader)
    assert len(found) == len(data) == 11
    for place, x in enumerate(found):
        assert torch.equal(x, data[place])


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "cifar10:.", "mnist:."])
def test_any_bytes_may_change(name):
    """The inputs, or one error."""
    file = {"cifar10:.": "test_batch", "mnist:.": "t10k-images-idx3-ubyte"}.get(name, name)
    if file == name:
        save(name, FLOATS, LABELS)
    elif name == "cifar10:.":
        Path(file).write_bytes(WRITERS["Python 2"](batch(CIFAR[:1], [3])))
    else:
        Path(file).write_bytes(idx(MNIST))
        Path("t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))
    whole, rng, read = Path(file).read_bytes(), random.Random(3), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 4))):
            data[rng.randrange(rng.choice((300, len(data))))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        Path(file).write_bytes(data)
        with suppress(TypeError, ValueError):
            found = load_data(name)
            read += 1
            assert sum(found[place].nbytes for place in range(len(found))) <= 4 * len(whole)
    assert 0 < read < 150


# Factories


FACTORIES = """
import io, numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Pictures(Dataset):
    classes = ["cat", "dog"]
    targets = torch.tensor([1, 0])

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return Image.new("LA", (4, 3), (51, place)), int(self.targets[place])

def cut():
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(data, "BMP")
    return [Image.open(io.BytesIO(data.getvalue()[:-100]))]

def pairs():
    return TensorDataset(torch.full((2, 3), 51, dtype=torch.uint8), torch.tensor([1, 0]))

def floats():
    return TensorDataset(torch.full((2, 3), 7.0))

def doubles():
    return TensorDataset(torch.zeros(2, 3, dtype=torch.float64))

def arrays():
    return [np.zeros((2, 3), dtype=np.float32)]

def none():
    return []

class Stream(IterableDataset):
    def __iter__(self):
        return iter(())

    def __getitem__(self, place):
        return None

def breaks():
    return 1 / 0

def number():
    return 3

def scores():
    dataset = pairs()
    dataset.targets = np.zeros((2, 3), dtype=np.float32)
    return dataset
"""


@pytest.fixture
def factories():
    Path("own_data.py").write_text(FACTORIES)


def test_a_dataset_of_the_users(factories):
    data = load_data("own_data:Pictures", num_classes=2)
    assert (len(data), data.labels, data.class_names, data.digest) == (2, [1, 0], ["cat", "dog"], None)
    assert torch.equal(again(data)[1], torch.full((3, 3, 4), np.float32(0.2)))
    chosen = Preprocessing(size=(2, 2), channels=1)
    assert load_data("own_data:Pictures", preprocessing=chosen, bytes=True)[0].tolist() == [[[51, 51], [51, 51]]]
    pairs = load_data("own_data:pairs")
    assert pairs.labels is None
    x, label = pairs[1]
    assert (x.tolist(), int(label)) == (torch.full((3,), np.float32(0.2)).tolist(), 0)
    assert load_data("own_data:floats")[0].tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("breaks", "own_data.py, line 44: ZeroDivisionError"),
        ("number", "must return a Dataset with __len__ and __getitem__, got a int"),
        ("Stream", "must return a Dataset with __len__ and __getitem__, got a Stream"),
        ("none", "must hold at least one input, got none"),
        ("scores", "must have integers [N] as labels, got torch.float32 [2, 3]"),
        ("absent", "AttributeError"),
    ],
)
def test_factories_that_will_not_do(factories, factory, message):
    fails(f"own_data:{factory}", message, (TypeError, ValueError))


def test_items_that_will_not_do(factories):
    with pytest.raises(Unreadable, match=r"^the picture at \[0\]: image file is truncated"):
        load_data("own_data:cut")[0]
    for name, what in (
        ("doubles", "torch.float64 in [0]; return x.float()"),
        ("arrays", "a ndarray in [0]; return torch.from_numpy(x)"),
    ):
        with pytest.raises(
            TypeError, match=re.escape(f"data must hold float32 or uint8 tensors, or pictures of Pillow, got {what}")
        ):
            load_data(f"own_data:{name}")[0]
