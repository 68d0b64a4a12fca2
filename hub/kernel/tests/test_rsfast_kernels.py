"""The kernels against plain PyTorch, on a GPU. rsfast's own tests run these in Triton's interpreter, which they mend."""

import math

import pytest
import rsfast_kernels
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = 2**63 + 5


def gaussian(elements, sample, input_id, stream):
    """Box-Muller of the counter's words, in float64."""
    blocks = torch.arange(math.ceil(elements / 4))
    words = rsfast_kernels.philox((blocks, sample % 2**32, input_id, stream << 24 | sample >> 32), SEED)
    u = [(word.double() + 0.5) / 2**32 for word in words]
    pairs = [(torch.sqrt(-2 * torch.log(u[i])), 2 * math.pi * (words[i + 1].double() / 2**32)) for i in (0, 2)]
    z = [value for radius, angle in pairs for value in (radius * torch.cos(angle), radius * torch.sin(angle))]
    return torch.stack(z, 1).flatten()[:elements]


@pytest.mark.kernels_ci
@pytest.mark.parametrize("channels_last", [False, True])
def test_gaussian(channels_last):
    x = torch.rand(2, 3, 5, 6, device=DEVICE)
    rows, samples = torch.tensor([1, 0, 1], device=DEVICE), torch.tensor([0, 7, 2**40 + 3], device=DEVICE)
    scale, shift = torch.tensor([4.0, 2.0, 1.0], device=DEVICE), torch.tensor([-2.0, 0.5, 0.0], device=DEVICE)
    keywords = {"rows": rows, "noise_scale": 0.25, "seed": SEED, "scale": scale, "shift": shift}
    found = rsfast_kernels.perturb(x, samples, **keywords, channels_last=channels_last)
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for y, row, sample in zip(found, rows.tolist(), samples.tolist(), strict=True):
        noisy = x[row].double().cpu() + 0.25 * gaussian(90, sample, row, 1).view(3, 5, 6)
        expected = noisy * scale.cpu()[:, None, None] + shift.cpu()[:, None, None]
        torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.kernels_ci
def test_a_row_does_not_depend_on_its_batch():
    x = torch.rand(4, 130, device=DEVICE)
    samples = torch.arange(4, device=DEVICE)
    keywords = {"noise_scale": torch.rand(130, device=DEVICE) + 0.5, "seed": 3, "draw": "laplace"}
    batch = rsfast_kernels.perturb(x, samples, **keywords)
    row = rsfast_kernels.perturb(x, samples[2:3], rows=samples[2:3], **keywords)
    assert torch.equal(batch[2:3], row)
    assert not torch.equal(batch[2], batch[3])


@pytest.mark.kernels_ci
@pytest.mark.parametrize("classes", [10, 2500])
def test_accumulate(classes):
    """Votes exactly, and scores to the 2^-30 that each is rounded by."""
    logits = torch.randn(6, classes, device=DEVICE)
    logits[4, 1] = math.nan
    rows = torch.tensor([0, 1, 1, 0, 1, 0], device=DEVICE)
    n, counts = (
        torch.zeros(2, dtype=torch.int64, device=DEVICE),
        torch.zeros(2, classes + 1, dtype=torch.int64, device=DEVICE),
    )
    sums = torch.zeros(2, 1, classes, dtype=torch.int64, device=DEVICE)
    heads = torch.tensor([[0.0, 1 / 0.5, 0.0, 0.0]], device=DEVICE)
    rsfast_kernels.accumulate(logits, n, counts, rows=rows, heads=heads, sums=sums, squares=torch.zeros_like(sums))
    rsfast_kernels.check_marks(n, 2, classes)
    assert n.tolist() == [3, 3]
    votes = torch.where(logits.isnan().any(1), classes, logits.argmax(1))
    assert torch.equal(counts, torch.zeros_like(counts).index_put_((rows, votes), torch.ones_like(votes), accumulate=True))
    scores = torch.softmax(logits.double() / 0.5, 1).nan_to_num(0.0)
    expected = torch.zeros(2, classes, dtype=torch.float64, device=DEVICE).index_add_(0, rows, scores)
    torch.testing.assert_close(sums[:, 0].double() / 2**30, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.kernels_ci
def test_indices_out_of_range():
    """A row of noise is NaN, and the counts are marked as void."""
    x, samples = torch.rand(2, 8, device=DEVICE), torch.arange(2, device=DEVICE)
    found = rsfast_kernels.perturb(x, samples, rows=samples + 1, noise_scale=1.0, seed=0)
    assert found.isnan().all(1).tolist() == [False, True]
    n, counts = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(2, 9, dtype=torch.int64, device=DEVICE)
    rsfast_kernels.accumulate(x, n, counts, rows=samples + 1)
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\)"):
        rsfast_kernels.check_marks(n, 2, 8)
