"""Pictures in folders and in data sets of Hugging Face: their order, labels, colours, orientation, sizes and damage."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_files import check, fails, picture, put
from PIL import Image

from rsfast.engine.inputs import Unreadable
from rsfast.loading.data import load_data
from rsfast.loading.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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

    from rsfast._extras import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
        if (mode, opened.mode) == ("YCbCr", "RGB"):
            pytest.skip("Pillow 12.3 cannot read the YCbCr that it writes")
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
