"""What the tests of rsfast.loading share: small inputs, the files that hold them, and checks of what is read again."""

import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsfast.loading.data import load_data

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (4, 3, 5, 6), np.uint8)
FLOATS = RNG.random((4, 3, 5, 6), np.float32)
LABELS = [2, 0, 1, 2]


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


def picture(size=(6, 5), mode="RGB", seed=1):
    """Of PIL, by columns and rows."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(array[..., 0] if bands == 1 else array, mode)


def put(path, image, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


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


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


MNIST = RNG.integers(0, 256, (5, 28, 28), np.uint8)
