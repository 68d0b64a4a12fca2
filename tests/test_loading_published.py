"""Published layouts (CIFAR, MNIST, ImageNet) in files made by hand; damaged and hostile ones are one line."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_files import CIFAR, MNIST, WRITERS, again, batch, check, fails, idx, picture, put
from PIL import Image
from scipy.io import savemat

from rsfast.loading.data import load_data
from rsfast.loading.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CLASSES = [f"class{place}" for place in range(10)]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_cifar10_in_python(write):
    root = Path("cifar/cifar-10-batches-py")
    root.mkdir(parents=True)
    (root / "test_batch").write_bytes(write(batch(CIFAR, [3, 9, 0, 1, 2, 3])))
    (root / "batches.meta").write_bytes(write({"label_names": CLASSES, "num_vis": 7}))
    for place in range(5):
        (root / f"data_batch_{place + 1}").write_bytes(write(batch(CIFAR[place : place + 1], [place])))
    for name in ("cifar10:cifar", f"cifar10:{root}", "cifar10:cifar:test"):
        data = load_data(name, num_classes=10)
        assert data.class_names == CLASSES
        assert data.names == [f"{place}.png" for place in range(6)]
        check(data, CIFAR, [3, 9, 0, 1, 2, 3])
    check(load_data("cifar10:cifar:train"), CIFAR[:5], [0, 1, 2, 3, 4])
    fails("cifar10:cifar:val", "its split must be test or train, got 'val'")
    chosen = Preprocessing(size=(8, 8), resize=8)
    found = load_data("cifar10:cifar", preprocessing=chosen, bytes=True)
    wanted = chosen.picture(Image.fromarray(CIFAR[5].transpose(1, 2, 0)))
    assert torch.equal(again(found)[5], wanted)


def test_cifar_in_binary():
    for place, (name, root) in enumerate((("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary"))):
        Path(root).mkdir()
        labels = [3, 9, 0, 1, 2, 5]
        rows = [bytes([7] * place + [label]) + pixels.tobytes() for label, pixels in zip(labels, CIFAR, strict=True)]
        file = Path(root, "test_batch.bin" if name == "cifar10" else "test.bin")
        file.write_bytes(b"".join(rows))
        check(load_data(f"{name}:."), CIFAR, labels)
        file.write_bytes(b"".join(rows)[:-1])
        fails(f"{name}:.", f"must hold rows of {3073 + place} bytes, got")
    Path("cifar-10-batches-bin/test_batch.bin").write_bytes(b"\x0a" + CIFAR[0].tobytes())
    fails("cifar10:.", "test_batch.bin must hold labels from 0 to 9, got 10 to 10")
    Path("cifar-10-batches-bin/test_batch.bin").write_bytes(b"")
    fails("cifar10:.", "must hold labels from 0 to 9, got none")
    Path("cifar-10-batches-bin/batches.meta.txt").write_text("cat\ndog\n\n")
    fails("cifar10:.", "batches.meta.txt must hold 10 names of classes, got 2")


def test_cifar100_in_python():
    Path("cifar-100-python").mkdir()
    held = batch(CIFAR, [99, 0, 1, 2, 3, 4], "fine_labels") | {"coarse_labels": [0] * 6}
    Path("cifar-100-python/test").write_bytes(WRITERS["Python 2"](held))
    Path("cifar-100-python/meta").write_bytes(WRITERS["Python 2"]({"fine_label_names": ["a"] * 100}))
    check(load_data("cifar100:."), CIFAR, [99, 0, 1, 2, 3, 4])
    fails("cifar100:.:train", "must hold cifar-100-python or cifar-100-binary, with train in it, got neither")


class Calls:
    """What a hostile pickle may hold."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def reconstructed(shape, data=b"\0" * 10, code="u1"):
    """A pickle of an array that declares what it likes."""
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01"
        + pickle.dumps(shape, 2)[2:-1]
        + b"cnumpy\ndtype\n(U\x02"
        + code.encode()
        + b"K\0K\x01tR\x89T"
        + struct.pack("<I", len(data))
        + data
        + b"tbu."
    )


HOSTILE = {
    "a function": (
        pickle.dumps({"data": Calls(os.system, "touch made")}),
        "it must hold numbers and text only, got posix.system",
    ),
    "eval": (pickle.dumps(Calls(eval, "open('made', 'w')")), "got builtins.eval"),
    "numpy's load": (
        pickle.dumps(Calls(np.load, "a.npy", None, True)),
        "it must hold numbers and text only, got numpy.load",
    ),
    "a class of ours": (b"crsfast.loading.cifar\n_Array\n.", "got rsfast.loading.cifar._Array"),
    "by a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.", "got numpy.dtype.__new__"),
    "a persistent id": (b"Pname\n.", "UnpicklingError"),
    "10^15 bytes": (reconstructed((10**15,)), "it declares an array uint8 [1000000000000000], but holds 10 bytes"),
    "negative": (reconstructed((-2, -5)), "it declares an array uint8 [-2, -5]"),
    "objects": (reconstructed((10,), code="O8"), "it must hold arrays of integers only, got 'O8'"),
    "bytes that are not there": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc", "download it again"),
    "a method's attribute": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01aK\x01sb.", "download it again"),
    "no dict": (pickle.dumps([1]), "must hold a dict, got a list"),
    "no data": (pickle.dumps({"labels": [1]}), "must hold data, a uint8 array [N, 3072]"),
    "labels of others": (pickle.dumps(batch(CIFAR, [1] * 5), 2), "must hold labels, a list of 6 integers"),
    "labels as text": (pickle.dumps(batch(CIFAR, ["1"] * 6), 2), "must hold labels, a list of 6 integers"),
    "another class": (pickle.dumps(batch(CIFAR, [10] * 6), 2), "must hold labels from 0 to 9, got 10 to 10"),
    "cut off": (pickle.dumps(batch(CIFAR, [1] * 6), 2)[:-40], "download it again"),
    "nothing": (b"", "EOFError"),
    "text": (b"<html>", "download it again"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_pickles_that_will_not_do(data, message):
    Path("test_batch").write_bytes(data)
    fails("cifar10:.", message)
    assert not Path("made").exists()


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("dot", [".", "-"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(below, dot, zipped):
    root = Path("root", below)
    root.mkdir(parents=True)
    for split, labels in (("t10k", [7, 2, 9, 0, 1]), ("train", [1, 0, 9, 2, 7])):
        for what, array in (("images", MNIST), ("labels", np.array(labels, np.uint8))):
            file = root / f"{split}-{what}{dot}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    check(load_data("mnist:root", num_classes=10), MNIST[:, None], [7, 2, 9, 0, 1])
    assert load_data("mnist:root:train").labels == [1, 0, 9, 2, 7]
    found = load_data("mnist:root", preprocessing=Preprocessing(size=(32, 32), resize=32), bytes=True)[0]
    assert found.shape == (3, 32, 32)


def test_mnist_that_will_not_do():
    images, labels = Path("t10k-images-idx3-ubyte"), Path("t10k-labels-idx1-ubyte")
    fails("mnist:.", "must hold t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, also with .gz")
    good = idx(MNIST)
    labels.write_bytes(idx(np.zeros(5, np.uint8)))
    for data, message in (
        (b"", "must be an idx file of bytes with 3 axes, got b''"),
        (b"<html><body>", "it begins with '<html><body>', so it is text"),
        (idx(MNIST[:, 0]), "must be an idx file of bytes with 3 axes"),
        (b"\0\0\x0d\3" + good[4:], "must be an idx file of bytes with 3 axes"),
        (idx(MNIST[:, 1:]), "must declare N x 28 x 28 with N at most 1048576, got [5, 27, 28]"),
        (good[:4] + b"\xff" * 4 + good[8:], "got [4294967295, 28, 28]"),
        (good[:4] + struct.pack(">I", 6) + good[8:], "declares 4704 bytes, but holds 3920"),
        (good + b"\0", "declares 3920 bytes, but holds more"),
        (good[:10], "must be an idx file of bytes with 3 axes"),
        (idx(MNIST[:4]), "mnist:. must hold a label for each of 4 inputs, got 5"),
    ):
        images.write_bytes(data)
        fails("mnist:.", message)
    images.unlink()
    zipped = Path("t10k-images-idx3-ubyte.gz")
    for data in (gzip.compress(good)[:-20], b"text", gzip.compress(good)[:10] + b"\xff" * 40):
        zipped.write_bytes(data)
        fails("mnist:.", "is damaged")
    zipped.write_bytes(gzip.compress(good + bytes(1 << 26)))  # which is not read
    fails("mnist:.", "declares 3920 bytes, but holds more")
    images.write_bytes(good)
    zipped.unlink()
    Path("raw").mkdir()
    for file in (images, labels):
        Path("raw", file).write_bytes(file.read_bytes())
    fails("mnist:.", "must hold one data set, got . and raw; name one of these")


WNIDS = ["n01440764", "n01443537", "n02102040"]
FLAT = [f"ILSVRC2012_val_{place:08}.JPEG" for place in range(1, 5)]


@pytest.mark.parametrize("below", ["", "val", "ILSVRC/Data/CLS-LOC/val"])
def test_imagenet_in_folders(below):
    for place, wnid in enumerate(WNIDS):
        put(Path("root", below, wnid, FLAT[place]), picture(seed=place))
    Path("root/ILSVRC2012_devkit_t12").mkdir()
    data = load_data("imagenet:root", num_classes=3)
    assert (data.labels, data.class_names) == ([0, 1, 2], WNIDS)
    assert data.names == [f"{wnid}/{name}" for wnid, name in zip(WNIDS, FLAT, strict=False)]
    lines = ["n01440764 tench, Tinca tinca", "n01443537 goldfish", "n02102040 English springer, springer", "n01000000 other"]
    Path("root/LOC_synset_mapping.txt").write_text("\n".join(lines))
    data = load_data("imagenet:root")
    assert data.labels == [1, 2, 3]
    assert data.class_names == ["other", "tench", "goldfish", "English springer"]


def devkit(folder):
    """Whose own numbers are not those of the sorted ids."""
    Path(folder).mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [
        (1, WNIDS[2], "springer", 0),
        (2, WNIDS[0], "tench", 0),
        (3, WNIDS[1], "goldfish", 0),
        (4, "n00001740", "entity", 2),
    ]
    savemat(f"{folder}/meta.mat", {"synsets": np.array(rows, dtype=kind)})
    Path(folder, "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n1\n")


TRUTHS = {
    "Kaggle": ("LOC_val_solution.csv", ["ImageId,PredictionString"] + [f"{name[:-5]},{{}} 1 2 3 4" for name in FLAT]),
    "Caffe, by ids": ("val.txt", [f"{name} {{}}" for name in FLAT]),
    "ids in order": ("imagenet_2012_validation_synset_labels.txt", ["{}"] * 4),
    "development kit": ("ILSVRC2012_devkit_t12/data", []),
}
TRUTH = [WNIDS[0], WNIDS[2], WNIDS[1], WNIDS[2]]


@pytest.mark.parametrize(("file", "lines"), TRUTHS.values(), ids=TRUTHS)
@pytest.mark.parametrize("below", ["", "val"])
def test_imagenet_in_one_folder(file, lines, below):
    for name in FLAT:
        put(Path("root", below, name), picture())
    fails("imagenet:root", "must hold the ground truth of ILSVRC2012_val_00000001.JPEG and so on, got none of LOC_val_sol")
    if lines:
        Path("root", file).write_text("\n".join(lines).format(*TRUTH))
    else:
        devkit(Path("root", file))
    data = load_data("imagenet:root")
    assert (data.names, data.labels, data.class_names) == (FLAT, [0, 2, 1, 2], WNIDS)


def test_imagenet_that_will_not_do():
    for name in FLAT:
        put(Path("root", name), picture())
    Path("root/val.txt").write_text("\n".join(f"{name} {place}" for place, name in enumerate(FLAT)))
    Path("root/synset_words.txt").write_text("n01440764 tench, Tinca tinca\n")  # of which it does not speak
    data = load_data("imagenet:root")
    assert (data.labels, data.class_names) == ([0, 1, 2, 3], None)
    for text, message in (
        ("", "val.txt must hold the class of every picture, got none of ILSVRC2012_val_00000001.JPEG"),
        (
            "\n".join(f"{name} cat" for name in FLAT),
            "must hold WordNet ids, such as n01440764, or in val.txt labels only, got 'cat'",
        ),
        ("\n".join(f"{name} 1000" for name in FLAT), "in val.txt labels only, got '1000'"),
    ):
        Path("root/val.txt").write_text(text)
        fails("imagenet:root", message)
    Path("root/val.txt").unlink()
    devkit("root/ILSVRC2012_devkit_t12/data")
    Path("root/ILSVRC2012_devkit_t12/data/meta.mat").write_text("text")
    fails("imagenet:root", "meta.mat must be that of the development kit")
    fails("imagenet:root:train", "must hold folders named by WordNet ids, such as train/n01440764")
