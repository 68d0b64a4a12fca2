"""The guide's loop of one's own (docs/guide/building-blocks.md): ops and Tally are enough for what sample and certify do."""

import pytest
import torch
from torch import nn

import rsfast

NOISE = rsfast.Gaussian(0.25)
IMAGES = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def first_elements(batch):
    """A model whose rows do not depend on the batch they stand in, to the bit."""
    return batch.flatten(1)[:, :10]


HEADS = [rsfast.Votes(), rsfast.Softmax(0.5)]


def draw(model, images, stream, n, heads=HEADS[:1], tracked=None):
    """As the guide has it, but for its arguments."""
    provenance = rsfast.Provenance(NOISE, seed=1, stream=stream, samples=range(n), input_ids=range(len(images)))
    tally = rsfast.Tally(len(images), 10, heads, tracked_classes=tracked, provenance=provenance)
    for places in torch.arange(len(images) * n).split(256):  # rows of several images share a batch
        rows, samples = places // n, places % n
        batch = rsfast.ops.perturb(images, NOISE, seed=1, stream=stream, rows=rows, samples=samples)
        rsfast.ops.accumulate(model(batch), tally, rows=rows)
    return tally


@pytest.mark.parametrize("n", [1, 100, 257])
@pytest.mark.parametrize("stream", ["selection", "estimation"])
def test_the_loop_gives_the_tally_of_sample(n, stream):
    """Of scores with histograms, too, and at another batch size."""
    tracked = torch.tensor([[[k, 9 - k]] for k in range(4)])
    options = {"num_classes": 10, "n": n, "seed": 1, "stream": stream, "heads": HEADS, "tracked_classes": tracked}
    mine = draw(first_elements, IMAGES, stream, n, HEADS, tracked)
    assert mine == rsfast.sample(first_elements, IMAGES, NOISE, batch_size=100, **options)
    assert mine.n.tolist() == [n] * 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()


def test_the_loop_gives_the_certificates_of_certify():
    """All batches have one shape here, in which a network gives the same bits wherever a row stands."""
    model = network()
    with torch.no_grad():
        selection, estimation = (draw(model, IMAGES, stream, n) for stream, n in (("selection", 64), ("estimation", 640)))
    mine = rsfast.certificates(selection, estimation, NOISE, alpha=0.001, backend="cpu")
    found = rsfast.certify(model, IMAGES, NOISE, num_classes=10, n0=64, n=640, alpha=0.001, seed=1, batch_size=256)
    assert found == mine
    assert any(certificate.radius > 0 for certificate in found)
