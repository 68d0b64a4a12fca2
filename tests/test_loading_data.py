"""rsfast.loading.data: each name becomes the inputs that its files hold, and a file that will not do is one line."""

import gzip
import os
import pickle
import random
import re
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from rsfast.engine.inputs import Unreadable
from rsfast.loading.data import load_data
from rsfast.loading.preprocessing import Preprocessing

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (4, 3, 5, 6), np.uint8)
FLOATS = RNG.random((4, 3, 5, 6), np.float32)
LABELS = [2, 0, 1, 2]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


def fails(name, message, kind=ValueError, **more):
    """What is wrong with data: one line that begins with its name."""
    with pytest.raises(kind, match=re.escape(message)) as raised:
        load_data(name, **more)
    text = str(raised.value)
    assert text.startswith(f"data {name}")
    assert "\n" not in text
    return text


def again(data):
    """As a worker process gets it."""
    return pickle.loads(pickle.dumps(data))


def check(data, pixels, labels):
    """Inputs that are stored as bytes come as the correctly rounded x / 255, in another process as well."""
    assert len(data) == len(pixels)
    assert data.labels == labels
    assert re.fullmatch("[0-9a-f]{64}", data.digest)
    exact = torch.from_numpy((pixels.astype(np.float64) / 255).astype(np.float32))
    for one in (data, again(data)):
        found = torch.stack([one[place] for place in range(len(one))])
        assert found.dtype == torch.float32
        assert torch.equal(found, exact)
    data.bytes = True
    found = torch.stack([data[place] for place in range(len(data))])
    assert found.dtype == torch.uint8
    assert np.array_equal(found, pixels)


# Files of arrays


def save(name, images, labels=None):
    held = {"images": images} | ({} if labels is None else {"labels": np.array(labels)})
    if name.endswith(".npz"):
        np.savez(name, **held)
    elif name.endswith(".npy"):
        np.save(name, images)
    elif labels is None:
        torch.save(torch.from_numpy(images), name)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in held.items()}, name)


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


# Pictures


def picture(size=(6, 5), mode="RGB", seed=1):
    """Of PIL, by columns and rows."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(array[..., 0] if bands == 1 else array, mode)


def put(path, image, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_class_folders():
    """In the order of ImageFolder: sorted names of folders, in each its files before those of the folders in it."""
    names = ["Zebra/b.png", "Zebra/B.PNG", "Zebra/a/0.png", "ant/x y.bmp", "ant/z.ppm", "bee/1.webp"]
    pixels = [
        put(f"root/{name}", picture(seed=seed), **({"lossless": True} if "webp" in name else {}))
        for seed, name in enumerate(names)
    ]
    for name in (".hidden.png", "notes.txt", "ant/.x.png", "ant/Thumbs.db", ".git/a.png", "ant/._z.ppm"):
        put("other.png", picture())
        Path("root", name).parent.mkdir(exist_ok=True)
        Path("root", name).write_bytes(Path("other.png").read_bytes())
    Path("root/ant/loop").symlink_to(Path("root").resolve())
    Path("root/cow").symlink_to(Path("root/bee").resolve())
    order = [1, 0, 2, 3, 4, 5, 5]
    data = load_data("root", num_classes=4)
    assert data.names == [*(names[place] for place in order[:-1]), "cow/1.webp"]
    assert data.class_names == ["Zebra", "ant", "bee", "cow"]
    assert data.description == "7 pictures of 4 classes in root"
    check(data, np.stack([pixels[place] for place in order]), [0, 0, 0, 1, 1, 2, 3])


@pytest.mark.slow
def test_the_order_is_that_of_torchvision():
    import warnings

    from rsfast.loading.extras import import_torchvision

    with warnings.catch_warnings(action="ignore"):
        import_torchvision("a test")
        from torchvision.datasets import ImageFolder
    for name in ("B/2.png", "B/10.png", "B/c/1.png", "B/C/1.png", "a/é.png", "_/1.jpeg", "a/x.gif"):
        put(f"root/{name}", picture())
    theirs, ours = ImageFolder("root"), load_data("root")
    assert [str(Path(path).relative_to("root")) for path, _ in theirs.samples] == ours.names
    assert theirs.targets == ours.labels
    assert theirs.classes == ours.class_names


def test_a_folder_of_pictures():
    pixels = [put(f"root/{name}", picture(seed=seed)) for seed, name in enumerate(["10.png", "9.png"])]
    Path("root/notes").mkdir()
    Path("root/notes/a.txt").touch()
    data = load_data("root/", num_classes=3)
    assert data.names == ["10.png", "9.png"]
    assert data.class_names is None
    check(data, np.stack(pixels), None)
    before = load_data("root").digest
    Path("root/9.png").rename("root/8.png")
    assert load_data("root").digest != before


def test_folders_that_will_not_do():
    Path("root").mkdir()
    fails("root", "must hold pictures (.jpg, .jpeg, .png, ")
    Path("root/notes.txt").touch()
    fails("root", "got notes.txt")
    put("root/a/1.png", picture())
    Path("root/b").mkdir()
    fails("root", "must hold pictures in each class folder, got none in b")
    put("root/1.png", picture())
    fails("root", "must hold class folders or pictures, got both: 1.png and the folders a, b")
    put("splits/val/a/1.png", picture())
    fails("splits", "must hold class folders or pictures, got the splits val; name one of these")


def test_fewer_folders_than_classes_are_warned_of():
    for name in ("cat", "dog"):
        put(f"root/{name}/1.png", picture())
    with pytest.warns(UserWarning, match="data root holds 2 classes, and num_classes is 1000; label 0 stands for cat"):
        load_data("root", num_classes=1000)
    fails("root", "labels must be from 0 to 0, as num_classes is 1, got 0 to 1", num_classes=1)


def one(path, preprocessing=None):
    data = load_data("root", preprocessing=preprocessing, bytes=True)
    return data[data.names.index(path)]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_pictures_of_all_modes(mode):
    """As Pillow converts them: an alpha channel is left out."""
    name = "a.tif" if mode in ("CMYK", "YCbCr", "LAB") else "a.png"
    put(f"root/{name}", picture().convert(mode) if mode in ("1", "P") else picture(mode=mode))
    with Image.open(f"root/{name}") as opened:
        assert opened.mode == mode
        plain = opened.convert("RGB") if mode == "LAB" else opened
        wanted = [np.asarray(plain.convert(each)) for each in ("RGB", "L")]
    assert np.array_equal(one(name), wanted[0].transpose(2, 0, 1))
    assert np.array_equal(one(name, Preprocessing(channels=1)), wanted[1][None])


@pytest.mark.filterwarnings("error")
def test_a_transparent_palette():
    image = picture().quantize(16)
    image.info["transparency"] = bytes(range(16))
    Path("root").mkdir()
    image.save("root/a.png")
    assert np.array_equal(one("a.png"), np.asarray(image.convert("RGBA").convert("RGB")).transpose(2, 0, 1))


def test_16_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 128, 129, 257], [65535, 65407, 65406, 32768]], np.uint16)
    Path("root").mkdir()
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(values).save(f"root/{name}")
        found = one(name)
        assert found.shape == (3, 2, 4)
        assert found[1].tolist() == [[0, 0, 1, 1], [255, 255, 254, 128]]
    for array, what in ((np.ones((2, 4), np.float32), "floats"), (values.astype(np.int32), "integers of 32 bits")):
        Image.fromarray(array).save("root/b.tif")
        with pytest.raises(Unreadable, match=f"^root/b.tif: it holds {what}, whose range is not known$"):
            one("b.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_are_turned_upright(suffix):
    """All have 5 rows and 6 columns to whoever looks at them, so that they have one size."""
    upright = picture()
    for orientation in range(1, 9):
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, each the inverse of what EXIF says
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright if orientation == 1 else upright.transpose(undo[orientation])
        more = {"lossless": True} if suffix == "webp" else {}
        put(f"root/{orientation}.{suffix}", turned, exif=exif, **more)
    data = load_data("root", bytes=True)
    for place in range(8):
        assert np.array_equal(data[place].movedim(0, -1), np.asarray(upright)), data.names[place]


def test_damaged_exif_leaves_a_picture_as_it_is():
    image = picture()
    put("root/a.png", image, exif=b"Exif\0\0no TIFF header")
    assert np.array_equal(one("a.png").movedim(0, -1), np.asarray(image))


def test_sizes_that_differ():
    put("root/a.png", picture((6, 5)))
    put("root/b.png", picture((5, 6)))
    message = (
        "pictures must have one size where no preprocessing makes it so, got 6 x 5 in root/a.png and 5 x 6 in root/b.png"
    )
    fails("root", message)
    fails("root", message, preprocessing=Preprocessing(resize=4))
    for chosen in (Preprocessing(size=(4, 4), resize=5), Preprocessing(resize=(4, 4)), Preprocessing(size=(4, 4))):
        data = load_data("root", preprocessing=chosen, bytes=True)
        with Image.open("root/b.png") as image:
            assert torch.equal(data[1], chosen.picture(image))
        assert data[0].shape == (3, 4, 4)


def png(width, height):
    """A header that declares a size, and hardly any pixels."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_cannot_be_read():
    """Each is named with the reason; the others are there."""
    put("root/a.png", picture((64, 48)))
    whole = Path("root/a.png").read_bytes()
    put("root/b.jpg", picture((64, 48)))
    jpeg = Path("root/b.jpg").read_bytes()
    broken = {
        "c.png": (whole[: len(whole) // 2], ""),
        "d.jpg": (jpeg[: len(jpeg) // 2], "image file is truncated"),
        "e.png": (b"", "it is none of JPEG, PNG"),
        "f.jpg": (b"<html>", "it is none of JPEG, PNG"),
        "g.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n", "it is none of JPEG, PNG"),
        "h.png": (png(12000, 12000), "it has 12000 x 12000 pixels, more than"),
        "i.png": (png(1 << 30, 1 << 30), "decompression bomb"),
        "j.png": (whole.replace(b"IDAT", b"JDAT"), ""),
    }
    for name, (data, _) in broken.items():
        Path("root", name).write_bytes(data)
    os.mkfifo("root/k.png")
    Path("root/l.png").symlink_to("nowhere")
    messages = {name: message for name, (_, message) in broken.items()}
    messages |= {"k.png": "got a FIFO", "l.png": "No such file or directory"}
    data = load_data("root", preprocessing=Preprocessing(size=(8, 8)))
    assert data.names == ["a.png", "b.jpg", *messages]
    for place, name in enumerate(data.names):
        if name in messages:
            with pytest.raises(Unreadable, match=f"^root/{name}: .*{messages[name]}[^\n]*$"):
                data[place]
        else:
            assert data[place].shape == (3, 8, 8)


def test_unreadable_pictures_have_no_size():
    put("root/a.png", picture())
    Path("root/b.png").write_bytes(b"")
    assert len(load_data("root")) == 2


@pytest.mark.parametrize("name", ["root", "cifar10:root", "hf:root"])
def test_a_missing_library_is_named(monkeypatch, name):
    put("root/a.png", picture())
    Path("root/test_batch").write_bytes(pickle.dumps(batch(CIFAR, [1] * 6)))
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


# Published layouts


CIFAR = RNG.integers(0, 256, (6, 3, 32, 32), np.uint8)


def old_pickle(value):
    """As Python 2 and NumPy 1 wrote it: text as bytes, and NumPy's own functions for an array."""
    if isinstance(value, np.ndarray):
        rows = b"".join(b"K" + bytes([side]) if side < 256 else b"M" + struct.pack("<H", side) for side in value.shape)
        data = value.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01("
            + rows
            + b"tcnumpy\ndtype\n(U\x02u1K\0K\x01tR"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T" + struct.pack("<I", len(data)) + data + b"tb"
        )
    if isinstance(value, dict):
        return b"}(" + b"".join(old_pickle(key) + old_pickle(held) for key, held in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(old_pickle, value)) + b"e"
    return b"K" + bytes([value]) if isinstance(value, int) else b"U" + bytes([len(value)]) + value.encode()


def batch(pixels, labels, key="labels"):
    names = [f"{place}.png" for place in range(len(labels))]
    return {"batch_label": "testing", key: labels, "data": pixels.reshape(-1, 3072), "filenames": names}


WRITERS = {"Python 2": lambda value: b"\x80\x02" + old_pickle(value) + b"."}
WRITERS |= {f"protocol {number}": lambda value, number=number: pickle.dumps(value, number) for number in (2, 4)}
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


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


MNIST = RNG.integers(0, 256, (5, 28, 28), np.uint8)


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


# Hugging Face


@pytest.fixture
def huggingface(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def held(datasets, labels=(1, 0, 1), column="image", label="label", sizes=((6, 5),) * 3):
    features = {column: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])}
    rows = {column: [picture(size, seed=seed) for seed, size in enumerate(sizes)], label: list(labels)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_dataset_of_hugging_face(huggingface):
    pixels = np.stack([np.asarray(picture(seed=seed)).transpose(2, 0, 1) for seed in range(3)])
    for column, label in (("image", "label"), ("img", "fine_label"), ("photo", "kind")):
        held(huggingface, column=column, label=label).save_to_disk(f"{column}_set")
        data = load_data(f"hf:{column}_set", num_classes=2)
        assert data.class_names == ["cat", "dog"]
        assert data.description == f"3 pictures of 2 classes in {column}_set"
        check(data, pixels, [1, 0, 1])
    fails("hf:img_set:test", "img_set must hold the split test, got one data set without splits; leave the split out")


def test_splits_of_hugging_face(huggingface):
    one, two = held(huggingface), held(huggingface, labels=(0, 0, 0))
    huggingface.DatasetDict(train=one, validation=two).save_to_disk("both")
    assert load_data("hf:both").labels == [0, 0, 0]
    train = load_data("hf:both:train")
    assert train.labels == [1, 0, 1]
    assert train.digest != load_data("hf:both").digest
    assert train.description == "3 pictures of 2 classes in both/train"
    Path("both/train/cache-1234.arrow").touch()
    assert load_data("hf:both:train").digest == train.digest
    fails("hf:both:test", "must hold the split test, got train, validation; name one, as in hf:both:train")
    huggingface.DatasetDict(a=one, b=two).save_to_disk("others")
    fails("hf:others", "must hold a split named test or validation, got a, b; name one, as in hf:others:a")
    held(huggingface, labels=(-1, -1, -1)).save_to_disk("secret")
    assert load_data("hf:secret").labels is None


def test_hugging_face_that_will_not_do(huggingface):
    Path("empty").mkdir()
    fails("hf:empty", "empty must be a folder that save_to_disk of Hugging Face's datasets wrote (FileNotFoundError")
    huggingface.Dataset.from_dict({"text": ["a"]}).save_to_disk("texts")
    fails("hf:texts", "texts must hold one column of pictures, named image or img, got the columns text")
    rows = {"image": [picture()], "label": ["cat"]}
    features = huggingface.Features(image=huggingface.Image(), label=huggingface.Value("string"))
    huggingface.Dataset.from_dict(rows, features=features).save_to_disk("words")
    fails("hf:words", "words must hold integers in label, got 'cat'; convert it with class_encode_column('label')")
    held(huggingface, sizes=((6, 5), (6, 5), (5, 6))).save_to_disk("sizes")
    fails("hf:sizes", "got 6 x 5 in sizes/row 0 and 5 x 6 in sizes/row 2")
    features = huggingface.Features(image=huggingface.Image())
    rows = {"image": [{"bytes": b"text", "path": "a.png"}, None]}
    huggingface.Dataset.from_dict(rows, features=features).save_to_disk("broken")
    data = load_data("hf:broken")
    assert data.names is None
    for place, why in enumerate(("it is none of JPEG", "the row holds no picture")):
        with pytest.raises(Unreadable, match=f"^broken/row {place}: {why}"):
            data[place]


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
def factories(monkeypatch):
    Path("own_data.py").write_text(FACTORIES)
    yield
    sys.modules.pop("own_data", None)


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
