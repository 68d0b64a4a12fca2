"""What an error tells a user to write instead works: each expression is evaluated, and then certified."""

import re
from collections import UserDict

import numpy
import pandas
import pytest
import torch
from conftest import notes
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rsfast
from rsfast import Gaussian, Smooth
from rsfast._hints import conversion

IMAGES = torch.rand((4, 3, 8, 6), generator=torch.Generator().manual_seed(0))
PIXELS = (IMAGES * 255).byte().permute(0, 2, 3, 1).numpy()  # [I, H, W, C] of uint8
OPTIONS = {"num_classes": 5, "n": 20, "seed": 1}
torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(48, 5)).eval()


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def pictures():
    return [Image.fromarray(pixels) for pixels in PIXELS]


AS_FLOAT = {"rtol": 0, "atol": 1 / 255}
WHOLE = {  # what is passed for all inputs at once
    "array": IMAGES.numpy(),
    "array of float64": IMAGES.numpy().astype("float64"),
    "array of bytes, channels last": PIXELS,
    "array of float32, channels last": IMAGES.permute(0, 2, 3, 1).numpy(),
    "dict": {"labels": [1, 2, 3, 0], "pixel_values": IMAGES},
    "dict of arrays": {"y": numpy.arange(4), "x": PIXELS},
    "user dict": UserDict(image=IMAGES.double(), names=["a", "b", "c", "d"]),
    "sparse": IMAGES.to_sparse(),
}
EACH = {  # a source of items, one by one
    "dicts": [{"pixel_values": image, "labels": 1} for image in IMAGES],
    "dicts of integers": [{"label": 1, "img": torch.from_numpy(pixels).permute(2, 0, 1)} for pixels in PIXELS],
    "dicts with a label": [({"image": image}, 1) for image in IMAGES],
    "dicts of PIL": [{"image": picture, "label": 1} for picture in pictures()],
    "dicts of lists": [{"pixel_values": image.tolist(), "label": [1]} for image in IMAGES],
    "dicts of dicts": [{"inputs": {"image": image}, "label": 1} for image in IMAGES],
    "arrays": [image.numpy() for image in IMAGES],
    "arrays of float64, labels": [(image.double().numpy(), 1) for image in IMAGES],
    "arrays of bytes": list(PIXELS),
    "PIL": pictures(),
    "PIL of a palette": [picture.convert("P") for picture in pictures()],
    "PIL with alpha, labels": [(picture.convert("RGBA"), 1) for picture in pictures()],
}
CALLS = {
    "certify": lambda x: rsfast.certify(NETWORK, x, Gaussian(0.25), **OPTIONS),
    "certify_each": lambda x: list(rsfast.certify_each(NETWORK, x, Gaussian(0.25), **OPTIONS)),
    "predict": lambda x: rsfast.predict(NETWORK, x, Gaussian(0.25), alpha=0.1, **OPTIONS),
    "tune_head": lambda x: (
        rsfast.tune_head(NETWORK, x, [0, 1, 2, 3], Gaussian(0.25), [rsfast.Votes()], n0=9, **OPTIONS).scores
    ),
}


def step_of(call, x, error=TypeError):
    """What the error says to pass, and the error."""
    with pytest.raises(error) as raised:
        call(x)
    return re.search(r"; pass (.*)$", str(raised.value))[1], str(raised.value)


@pytest.mark.parametrize("source", WHOLE)
@pytest.mark.parametrize("call", CALLS)
def test_what_holds_all_inputs(source, call):
    step, text = step_of(CALLS[call], WHOLE[source])
    assert text.startswith(("inputs must be ", "inputs is "))
    made = eval(step, {"torch": torch, "numpy": numpy, "inputs": WHOLE[source]})
    torch.testing.assert_close(made.contiguous(), IMAGES, **AS_FLOAT)
    assert len(CALLS["certify"](made)) == 4


@pytest.mark.parametrize("kind", [list, Items, iter])
@pytest.mark.parametrize("source", EACH)
@pytest.mark.parametrize("call", ["certify", "certify_each", "predict"])
def test_what_holds_inputs_one_by_one(source, kind, call):
    step, text = step_of(CALLS[call], kind(EACH[source]))
    assert text.startswith("inputs[0] must be a dense float32 tensor [*shape], got a ")
    made = list(eval(step, {"torch": torch, "numpy": numpy, "inputs": kind(EACH[source])}))
    tolerance = 0.7 if "palette" in source else 1 / 255
    torch.testing.assert_close(torch.stack(made), IMAGES, rtol=0, atol=tolerance)
    assert len(CALLS[call](made)) == 4


def test_tuning_needs_a_length():
    """Of a generator, which the first error tells to pass, a second one makes a list."""
    step, _ = step_of(CALLS["tune_head"], EACH["dicts"])
    names = {"torch": torch, "numpy": numpy, "inputs": EACH["dicts"]}
    with pytest.raises(
        TypeError, match=r"^inputs must be a tensor or have a length, .*, got a generator; pass list\(inputs\)$"
    ):
        CALLS["tune_head"](eval(step, names))
    assert CALLS["tune_head"](list(eval(step, names))) == CALLS["tune_head"](IMAGES)


@pytest.mark.parametrize("source", ["dicts", "dicts of integers"])
def test_a_loader_of_dicts(source):
    def loader():
        return DataLoader(Items(EACH[source]), batch_size=3)

    step, text = step_of(CALLS["certify"], loader())
    assert text.startswith("the batch at inputs[0] must be a dense float32 tensor [I, *shape], got a dict; pass (image for ")
    made = list(eval(step, {"torch": torch, "numpy": numpy, "inputs": loader()}))
    torch.testing.assert_close(torch.stack(made), IMAGES, **AS_FLOAT)


@pytest.mark.parametrize("source", [*WHOLE, *EACH, "dataset"])
def test_sample_takes_a_tensor_only(source):
    """What others take one by one is stacked."""
    given = {**WHOLE, **EACH, "dataset": TensorDataset(IMAGES, torch.arange(4))}[source]
    step, _ = step_of(lambda x: rsfast.sample(NETWORK, x, Gaussian(0.25), **OPTIONS), given)
    made = eval(step, {"torch": torch, "numpy": numpy, "inputs": given})
    torch.testing.assert_close(made.contiguous(), IMAGES, rtol=0, atol=0.7 if "palette" in source else 1 / 255)
    rsfast.sample(NETWORK, made, Gaussian(0.25), **OPTIONS)


@pytest.mark.parametrize("method", ["certify", "predict"])
@pytest.mark.parametrize("source", EACH)
def test_smooth(source, method):
    item = EACH[source][0]
    item = item[0] if isinstance(item, tuple) else item
    smooth = Smooth(NETWORK, 5, 0.25, seed=1)
    arguments = (9, 20, 0.1, 10) if method == "certify" else (20, 0.1, 10)
    step, text = step_of(lambda x: getattr(smooth, method)(x, *arguments), item)
    assert re.match(r"^x must be a dense float32 tensor \[\*shape\], got a \w+; pass ", text)
    made = eval(step, {"torch": torch, "numpy": numpy, "x": item})
    getattr(smooth, method)(made, *arguments)


def test_more_conversions():
    """Of what holds no image; and nothing where none is known, or looking fails."""
    grey = Image.fromarray(PIXELS[0]).convert("L")
    for value, shape in (
        (grey, (1, 8, 6)),
        ([0.5, 1.0], (2,)),
        ([1, 2, 3], (3,)),
        ([[1.0], [2.0]], (2, 1)),
        (pandas.DataFrame({"a": [0.1, 0.2, 0.3], "b": [1.0, 2.0, 3.0]}), (3, 2)),
        (numpy.zeros((2, 3), dtype=bool), (2, 3)),
    ):
        made = eval(conversion("x", value), {"torch": torch, "numpy": numpy, "x": value})
        assert (made.shape, made.dtype) == (shape, torch.float32)

    class Hostile:
        @property
        def __array__(self):
            raise RuntimeError

    for value in ("a.png", 5, None, {}, {"a": 1}, [], [None], numpy.array("text"), numpy.float32(1), Hostile(), {1: 2}):
        assert conversion("x", value) is None


def test_numbers_in_lists():
    with pytest.raises(
        TypeError, match=r"^inputs\[0\] must be .*, got a list; pass \(torch.tensor\(item\).float\(\) for item in inputs\)$"
    ):
        CALLS["certify"]([[0.1, 0.2], [0.3, 0.4]])


def test_one_input_without_a_batch_axis():
    """A vector at once, with the next step."""
    for call in CALLS.values():
        with pytest.raises(
            ValueError, match=r"^inputs must have shape .*, got \[7\]; one input needs its batch axis: inputs\[None\]$"
        ):
            call(torch.rand(7))


# Axes that a model fails on


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(144, 5)).eval()
AXES = {
    "image": (IMAGES[0], "inputs of shape [3, 8, 6] are taken as 3 inputs of shape [8, 6]; one image .*: inputs[None]"),
    "grey image": (IMAGES[0, :1], "inputs of shape [1, 8, 6] are taken as 1 inputs of shape [8, 6]; .*: inputs[None]"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), "taken as 4 inputs of shape [8, 6, 3]; images .*: inputs.movedim(-1, 1)"),
    "image, channels last": (
        IMAGES[0].permute(1, 2, 0),
        "taken as 8 inputs of shape [6, 3]; .*: inputs.movedim(-1, 0)[None]",
    ),
    "grey images": (IMAGES[:, 0].repeat(2, 1, 1), "taken as 8 inputs of shape [8, 6]; images .*: inputs[:, None]"),
    "flat": (torch.rand(3, 9), "inputs of shape [3, 9] are taken as 3 inputs of shape [9]; .*: inputs[None]"),
    "each with a batch axis": (
        IMAGES[:, None].unbind(),
        "inputs that are each [1, 3, 8, 6]; .*: (item[0] for item in inputs)",
    ),
    "batches": ([IMAGES, IMAGES], "inputs that are each [4, 3, 8, 6]; .*: (image for batch in inputs for image in batch)"),
    "each channels last": (
        IMAGES.permute(0, 2, 3, 1).unbind(),
        "inputs that are each [8, 6, 3]; .*: (item.movedim(-1, 0) for item in inputs)",
    ),
    "each grey": (IMAGES[:, 0].unbind(), "inputs that are each [8, 6]; .*: (item[None] for item in inputs)"),
}


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", [NETWORK, FLAT], ids=["conv", "linear"])
def test_the_axes_that_a_model_fails_on(case, call, model, monkeypatch):
    """The model's own exception, with a note."""
    monkeypatch.setitem(globals(), "NETWORK", model)
    inputs, said = AXES[case]
    if model is FLAT and case in ("channels last", "each channels last", "each with a batch axis"):
        return  # which it takes, as it has as many elements
    if call == "tune_head":
        labels = [0] * len(inputs)
        run = lambda x: rsfast.tune_head(NETWORK, x, labels, Gaussian(0.25), [rsfast.Votes()], **OPTIONS)  # noqa: E731
    else:
        run = CALLS[call]
    with pytest.raises(RuntimeError) as raised:
        run(inputs)
    assert re.search(re.escape(said).replace(r"\.\*", ".*") + "$", notes(raised.value), re.M)


def test_what_fits_is_not_hinted_at():
    def fails(batch):
        raise RuntimeError("of the model's own")

    with pytest.raises(RuntimeError) as raised:
        rsfast.certify(fails, IMAGES, Gaussian(0.25), **OPTIONS)
    assert notes(raised.value).endswith("inputs of shape [4, 3, 8, 6] are taken as 4 inputs of shape [3, 8, 6]")


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (IMAGES[0, 0], "x of shape [8, 6] is taken as one input of shape [1, 8, 6]"),
        (torch.rand(1, 9), "x of shape [1, 9] is taken as one input of shape [1, 1, 9]; a vector is x[0]"),
        (IMAGES[0].permute(1, 2, 0), "x of shape [8, 6, 3] is taken as one input of shape [8, 6, 3]; .*: x.movedim(-1, 0)"),
        (torch.rand(9), "x of shape [9] is taken as one input of shape [9]"),
    ],
)
def test_the_axes_that_a_smoothed_model_fails_on(x, said):
    smooth = Smooth(NETWORK, 5, 0.25)
    for call in (lambda: smooth.certify(x, 9, 20, 0.1, 10), lambda: smooth.predict(x, 20, 0.1, 10)):
        with pytest.raises(RuntimeError) as raised:
            call()
        assert re.search(re.escape(said).replace(r"\.\*", ".*") + "$", notes(raised.value))
        assert "inputs" not in notes(raised.value)


def test_several_inputs_of_a_smooth():
    with pytest.raises(
        ValueError,
        match=r"^x must be one input, .*, got shape \[4, 3, 8, 6\]; of several call it for each, or rsfast.certify",
    ):
        Smooth(NETWORK, 5, 0.25).certify(IMAGES, 9, 20, 0.1, 10)
