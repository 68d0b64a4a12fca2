"""The registry of heads, and what each declares. The scores themselves are in test_accumulate.py."""

from dataclasses import dataclass

import pytest
import torch

import rsfast
from rsfast.heads import HEADS, ClippedLogits, Pointwise, Softmax, Sparsemax, Votes, from_dict, register
from rsfast.ops import accumulate

EACH = (Votes(), Softmax(0.5), Sparsemax(2.0), ClippedLogits(-1.0, 3.0))


def test_every_head_is_registered_and_comes_back_from_a_dict():
    assert [type(head) for head in EACH] == list(HEADS.values())
    for head in EACH:
        assert from_dict(head.to_dict()) == head
    with pytest.raises(ValueError, match=r"^head must be one of 'Votes', 'Softmax', .*, got 'Sigmoid'$"):
        from_dict({"name": "Sigmoid"})


def test_what_heads_declare():
    """Kernels and files know heads by these numbers: they never change."""
    declared = [(head.kind, head.soft, head.sums_to_one, head.bits, head.slack, head.option) for head in EACH]
    assert declared == [
        (None, False, True, 0, 0, "votes"),
        (0, True, True, 30, 2, "softmax:T"),
        (1, True, True, 30, 2, "sparsemax:T"),
        (2, True, False, 30, 2, "clipped:LOW:HIGH"),
    ]
    assert [head.parameters() for head in EACH[1:]] == [(0, 2, 0, 0), (1, 0.5, 0, 0), (2, 0.25, -1, 3)]
    with pytest.raises(TypeError, match=r"^head must be soft .*, got Votes\(\)$"):
        Votes().parameters()


@pytest.mark.parametrize(
    ("head", "arguments", "error", "message"),
    [
        (Softmax, ("1",), TypeError, "temperature must be a number, got '1'"),
        (Softmax, (True,), TypeError, "temperature must be a number, got True"),
        (Sparsemax, (0,), ValueError, "temperature must be a finite number above 0, got 0"),
        (Sparsemax, (float("inf"),), ValueError, "temperature must be a finite number above 0, got inf"),
        (Softmax, (1e39,), ValueError, "temperature must have a normal float32 for 1/temperature, got 1e[+]39"),
        (ClippedLogits, (0, None), TypeError, "high must be a number, got None"),
        (ClippedLogits, (float("nan"), 1), ValueError, "low must be a finite number, got nan"),
        (ClippedLogits, (1, 1 + 1e-9), ValueError, r"low must be below high, both in float32, got 1 and 1\.000000001"),
        (ClippedLogits, (-3e38, 3e38), ValueError, "low must be below high"),
    ],
)
def test_parameters_are_checked(head, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        head(*arguments)


@dataclass(frozen=True)
class Steps(Pointwise):
    """1 for a logit of at least `low`, else 1/2 for one that is positive, else 0: a head of somebody's own."""

    low: float
    kind = 17
    option = "steps:LOW"
    compiled = False

    def parameters(self):
        return float(self.kind), 1.0, self.low, 0.0

    @staticmethod
    def score(logits, scale, low, high):
        return ((logits > 0).long() + (logits >= low).long()) << 29


@pytest.fixture
def steps():
    yield register(Steps)
    del HEADS["Steps"]


def test_a_head_of_ones_own(steps, tmp_path):
    """One class that is registered goes through the reference backend, files and certificates; kernels refuse it."""
    logits = torch.tensor([[3.0, 1.0, -1.0]]).repeat(200, 1)
    tallies = []
    for stream in ("selection", "estimation"):
        provenance = rsfast.Provenance(rsfast.Gaussian(0.5), 1, stream, range(200), [0])
        tally = rsfast.Tally(1, 3, [Votes(), steps(2.0)], tracked_classes=[[[0, 1]]], provenance=provenance)
        accumulate(logits, tally, backend="reference")
        tally.save(tmp_path / stream)
        tallies.append(rsfast.Tally.load(tmp_path / stream))
        assert tallies[-1] == tally
    assert tally.sums.tolist() == [[[200 << 30, 200 << 29, 0]]]
    assert tally.counts.tolist() == [[200, 0, 0, 0]]
    (certificate,) = rsfast.certificates(*tallies, rsfast.Gaussian(0.5), head=steps(2.0), alpha=0.001)
    assert (certificate.rule, certificate.prediction) == ("top_two", 0)
    assert certificate.radius > 0
    for backend in ("auto", "cpu"):
        with pytest.raises(ValueError, match=rf"^backend must be 'reference' .*, got '{backend}' and "):
            accumulate(logits, tally, backend=backend)


@pytest.mark.parametrize("change", [{"kind": 2}, {"option": "softmax:X"}, {"__name__": "Votes"}])
def test_a_head_like_another_is_not_registered(change):
    like = type("Other", (Steps,), {})
    for name, value in change.items():
        setattr(like, name, value)
    with pytest.raises(ValueError, match=r"^head must have a name, an option and a kind of its own, got "):
        register(like)
    assert len(HEADS) == 4
