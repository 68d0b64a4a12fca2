"""`perturber` and `accumulator`, for loops over batches: checked once, and the same bits as `perturb` and `accumulate`."""

import pytest
import torch
from conftest import assert_same_bits
from test_accumulate import HEADS, SLOTS, assert_same, hostile_logits, some_classes, some_rows
from test_perturb import LAYOUTS, TRANSFORMS, TYPES, arguments, poisoned

from rsfast.noise import Gaussian, GridGaussian
from rsfast.ops import accumulate, accumulator, perturb, perturber
from rsfast.ops.tally import Tally

BACKENDS = ("cpu", "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_perturber_is_perturb(transform, backend):
    """Batch after batch of every stream; x as it is at each call."""
    for dtype, (shape, channels_last) in zip(TYPES, LAYOUTS, strict=False):
        given = arguments(shape, transform, dtype, channels_last)
        x, samples, rows = given["x"], torch.tensor(given.pop("samples")), torch.tensor(given.pop("rows"))
        run, places = perturber(**given, backend=backend), torch.stack([rows, rows + 7, samples])
        for stream, count in (("estimation", 8), ("selection", 3), ("user", 0), ("training", 8)):
            out = poisoned((count, *shape), dtype, channels_last)
            run(out, places[:, :count], stream)
            assert_same_bits(out, perturb(**given, samples=samples[:count], rows=rows[:count], stream=stream))
            x.mul_(0.5)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, r"^input_ids must lie in .*, got values from -1 to 0", {"input_ids": [-1, 0, 0]}),
        (ValueError, r"^input_ids must have shape .*\[3\], got \[2\]", {"input_ids": [1, 2]}),
        (TypeError, "^x must have dtype float32", {"x": torch.zeros(3, 2, dtype=torch.float64)}),
        (TypeError, "^noise must be", {"noise": 0.5}),
        (ValueError, "^seed must be", {"seed": -1}),
        (ValueError, r"^scale must be .*\[2\]", {"scale": [1.0, 2.0, 3.0]}),
        (ValueError, "^clamp must be", {"clamp": (1.0, 0.0)}),
        (TypeError, "^dtype must be", {"dtype": torch.int64}),
        (ValueError, "^channels_last must be False", {"channels_last": True}),
        (ValueError, "^backend must be", {"backend": "fast"}),
    ],
)
def test_errors_of_perturber(error, message, changes):
    given = {"x": torch.zeros(3, 2), "noise": Gaussian(0.5), "seed": 1, "input_ids": range(3)} | changes
    with pytest.raises(error, match=message):
        perturber(**given)


def test_perturber_of_bytes():
    images, places, out = (
        torch.arange(6, dtype=torch.uint8).view(1, 6),
        torch.zeros(3, 5, dtype=torch.int64),
        torch.empty(5, 6),
    )
    places[2] = torch.arange(5)
    perturber(images, GridGaussian(0.5), seed=1, input_ids=[0])(out, places, "estimation")
    assert_same_bits(out, perturb(images, GridGaussian(0.5), seed=1, samples=range(5)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_accumulator_is_accumulate(dtype, backend):
    one, other = (Tally(SLOTS, 10, HEADS, tracked_classes=some_classes(10, 2)) for _ in range(2))
    add = accumulator(one, backend=backend)
    for seed, batch in enumerate((17, 0, 1, 300)):
        logits, rows = hostile_logits(10, batch, dtype, seed=seed), some_rows(batch, seed)
        for view in (logits, logits.T.contiguous().T, torch.complex(logits.float(), -logits.float()).conj().imag):
            add(view, torch.stack([rows + SLOTS, rows, rows + SLOTS]))
            accumulate(view, other, rows=rows, backend=backend)
    assert_same(one, other)


@pytest.mark.parametrize(
    ("error", "message", "logits"),
    [
        (ValueError, r"^logits must have shape \[2, 3\], got \[2, 4\]", torch.zeros(2, 4)),
        (ValueError, r"^logits must have shape \[2, 3\], got \[1, 3\]", torch.zeros(1, 3)),
        (TypeError, "^logits must have dtype .*, got torch.int64", torch.zeros(2, 3, dtype=torch.int64)),
        (ValueError, "^logits must be on 'cpu', .*'meta'", torch.zeros(2, 3, device="meta")),
        (TypeError, "^logits must be a dense tensor", torch.zeros(2, 3).to_sparse()),
    ],
)
def test_errors_of_logits(error, message, logits):
    tally = Tally(1, 3)
    with pytest.raises(error, match=message):
        accumulator(tally)(logits, torch.zeros(3, 2, dtype=torch.int64))
    assert tally == Tally(1, 3)


def test_errors_of_accumulator():
    with pytest.raises(TypeError, match=r"^tally must be a Tally, got None"):
        accumulator(None)
    with pytest.raises(ValueError, match=r"^backend must be one of"):
        accumulator(Tally(1, 3), backend="fast")
