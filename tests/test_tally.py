"""Tally: sums of integers that add exactly, survive a file, and refuse what is not theirs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rsfast._check import MAX_SAMPLES
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.heads.bins import BINS
from rsfast.ops import accumulate
from rsfast.ops.tally import Tally

HEADS = (Votes(), Softmax(0.25), Sparsemax(0.1), ClippedLogits(-1.0, 3.0))
TENSORS = ("n", "counts", "sums", "squares")
BIN_TENSORS = ("bin_counts", "bin_sums")
TRACKED = torch.randint(5, (3, 3, 2), generator=torch.Generator().manual_seed(9))


def batch(rows, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=draw) * 2, torch.randint(3, (rows,), generator=draw)


def filled(rows=40, seed=0, heads=HEADS, tracked=None):
    tally = Tally(3, 5, heads, tracked_classes=tracked)
    logits, slots = batch(rows, seed)
    logits[0, 2] = torch.nan
    accumulate(logits, tally, rows=slots)
    return tally


def test_shapes():
    """counts has a place for rows without a vote; sums and squares have one for each head but Votes, in their order."""
    tally = Tally(3, 5, (Softmax(2.0), Votes(), Sparsemax(1.0)))
    assert [tuple(getattr(tally, name).shape) for name in TENSORS] == [(3,), (3, 6), (3, 2, 5), (3, 2, 5)]
    assert all(getattr(tally, name).dtype == torch.int64 and not getattr(tally, name).any() for name in TENSORS)
    assert tally.heads == (Softmax(2.0), Votes(), Sparsemax(1.0))
    assert tally.soft_heads == (Softmax(2.0), Sparsemax(1.0))
    assert (tally.num_inputs, tally.num_classes) == (3, 5)
    assert Tally(1, 2).heads == (Votes(),)
    assert Tally(1, 2, [Softmax(1.0)]).counts.shape == (1, 3)


def test_order_of_heads_changes_places_only():
    tally, reversed_tally = filled(), filled(heads=HEADS[::-1])
    assert torch.equal(tally.sums, reversed_tally.sums.flip(1))
    assert tally != reversed_tally


# Addition


def test_addition():
    """Elementwise, exact beyond 2^53, commutative, associative; 0 is neutral; operands stay as they are."""
    a, b, c = filled(seed=1), filled(33, seed=2), filled(7, seed=3)
    a.sums[0, 0, 0] = a.squares[0, 0, 0] = 2**61 + 1
    b.sums[0, 0, 0] = b.squares[0, 0, 0] = 2**61 + 2
    copies = [tally.to("cpu") for tally in (a, b)]
    total = a + b
    for name in TENSORS:
        assert torch.equal(getattr(total, name), getattr(a, name) + getattr(b, name))
    assert total.sums[0, 0, 0].item() == 2**62 + 3
    assert total == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Tally(3, 5, HEADS) == a
    assert sum([b, c], start=a) == total + c
    assert [a, b] == copies
    total += c
    assert total == a + b + c
    assert a == copies[0]


def test_shards_equal_one_run():
    """A batch cut in 1 to 40 shards, each with a Tally of its own, added in any order."""
    logits, slots = batch(40, seed=4)
    whole = Tally(3, 5, HEADS)
    accumulate(logits, whole, rows=slots)
    for size in (1, 7, 39, 40):
        shards = []
        for i in range(0, 40, size):
            shard = Tally(3, 5, HEADS)
            accumulate(logits[i : i + size], shard, rows=slots[i : i + size])
            shards.append(shard)
        for order in (shards, shards[::-1]):
            assert sum(order, start=Tally(3, 5, HEADS)) == whole


def test_a_sum_goes_on_counting():
    """The result of an addition knows how full it is."""
    a, b = Tally(1, 2), Tally(1, 2)
    a.n[0], b.n[0] = MAX_SAMPLES - 3, 1
    total = a + b
    accumulate(torch.zeros(2, 2), total)
    assert total.n.tolist() == [MAX_SAMPLES]
    with pytest.raises(OverflowError, match=r"^a Tally must hold at most 2\^33 - 1 samples .*, got 8589934591 and 1 more"):
        accumulate(torch.zeros(1, 2), total)


def test_a_sum_beyond_the_cap():
    a, b = Tally(2, 2), Tally(2, 2)
    a.n[1], b.n[1] = MAX_SAMPLES - 3, 4
    with pytest.raises(OverflowError, match=r"^a Tally must hold at most 2\^33 - 1 samples .*, got 8589934592 in the sum"):
        a + b
    b.n[1] = 3
    assert (a + b).n.tolist() == [0, MAX_SAMPLES]


@pytest.mark.parametrize(
    "other",
    [Tally(2, 5, HEADS), Tally(3, 4, HEADS), Tally(3, 5), Tally(3, 5, HEADS[::-1]), Tally(3, 5, (*HEADS[:3], Softmax(1.0)))],
    ids=["inputs", "classes", "heads", "order", "parameters"],
)
def test_addition_of_what_does_not_fit(other):
    for a, b in ((filled(), other), (other, filled())):
        with pytest.raises(ValueError, match=r"^tallies that are added must agree in inputs, classes and heads, got "):
            a + b


def test_addition_of_something_else():
    with pytest.raises(TypeError, match="unsupported operand"):
        filled() + 1
    with pytest.raises(TypeError, match="unsupported operand"):
        sum([filled()])


# Equality, copies


def test_equality():
    """Of all integers and the heads; a Tally equals nothing else and has no hash."""
    tally = filled()
    assert tally == filled()
    for name in TENSORS:
        other = filled()
        getattr(other, name).view(-1)[-1] += 1
        assert tally != other
    assert Tally(3, 5, HEADS) != Tally(2, 5, HEADS)
    assert Tally(3, 5, [Softmax(1.0)]) != Tally(3, 5, [Softmax(2.0)])
    assert Tally(3, 5, [Softmax(1.0)]) != Tally(3, 5, [Sparsemax(1.0)])
    assert tally != "tally"
    with pytest.raises(TypeError, match="unhashable"):
        hash(tally)


def test_to_copies():
    tally = filled()
    copy = tally.to("cpu")
    assert copy == tally
    accumulate(torch.zeros(1, 5), copy, rows=[0])
    assert copy != tally
    assert tally == filled()
    assert all(getattr(copy, name).data_ptr() != getattr(tally, name).data_ptr() for name in TENSORS)


def test_device():
    tally = Tally(3, 5, HEADS, device="meta")
    assert {getattr(tally, name).device.type for name in TENSORS} == {"meta"}


def test_repr():
    tally = Tally(2, 3)
    accumulate(torch.zeros(3, 3), tally, rows=[0, 1, 1])
    assert repr(tally) == "Tally(num_inputs=2, num_classes=3, heads=(Votes(),), n=[1, 2])"
    assert repr(Tally(100, 3)) == "Tally(num_inputs=100, num_classes=3, heads=(Votes(),), n=0..0)"


# Files


def test_round_trip(tmp_path):
    """The same integers and heads, the largest too; and the loaded Tally goes on counting."""
    tally = filled()
    tally.n[2] = MAX_SAMPLES
    tally.counts[2] = torch.tensor([MAX_SAMPLES, 0, 0, 0, 0, 0])
    tally.sums[2] = tally.squares[2] = torch.tensor([MAX_SAMPLES << 30, 0, 0, 0, 0])
    tally.save(tmp_path / "tally.safetensors")
    loaded = Tally.load(tmp_path / "tally.safetensors")
    assert loaded == tally
    assert loaded.heads == HEADS
    assert (loaded.num_inputs, loaded.num_classes) == (3, 5)
    with pytest.raises(OverflowError):
        accumulate(torch.zeros(1, 5), loaded, rows=[2])
    assert Tally.load(str(tmp_path / "tally.safetensors")) == tally


@pytest.mark.parametrize("temperature", [0.1, 1e-7, 1 / 3, 1e30])
def test_parameters_survive_to_the_last_bit(temperature, tmp_path):
    Tally(1, 2, [Softmax(temperature)]).save(tmp_path / "tally")
    assert Tally.load(tmp_path / "tally").heads == (Softmax(temperature),)


def test_saving_leaves_the_old_file_no_part(tmp_path):
    filled(seed=1).save(tmp_path / "tally")
    filled(seed=2).save(tmp_path / "tally")
    assert Tally.load(tmp_path / "tally") == filled(seed=2)


def test_loading_what_is_no_safetensors_file(tmp_path):
    path = tmp_path / "file"
    filled().save(path)
    whole = path.read_bytes()
    for content in (b"", b"not a tally", whole[:-1], whole[:100], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file must be a safetensors file that Tally.save wrote, got another "):
            Tally.load(path)
    with pytest.raises(FileNotFoundError):
        Tally.load(tmp_path / "none")


def test_loading_another_safetensors_file(tmp_path):
    save_file({"n": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other must have format 'rsfast.Tally 1', got None"):
        Tally.load(tmp_path / "other")
    save_file({"n": torch.zeros(1)}, tmp_path / "other", {"format": "rsfast.Tally 2"})
    with pytest.raises(ValueError, match=r"other must have format .*, got 'rsfast.Tally 2'"):
        Tally.load(tmp_path / "other")


def tampered(path, change, tracked=None):
    """Save a Tally, apply change(tensors, metadata), and write the file again."""
    filled(tracked=tracked).save(path)
    tensors, metadata = (
        load_file(path),
        {"format": "rsfast.Tally 1", "heads": json.dumps([head.to_dict() for head in HEADS])},
    )
    change(tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def test_tampering_with_nothing(tmp_path):
    """So that the errors below are of what is changed."""
    tampered(tmp_path / "tally", lambda tensors, metadata: None)
    assert Tally.load(tmp_path / "tally") == filled()


CHANGES = {
    "n too long": (
        r"n must be int64 \[3\], none negative, got \[4\]",
        lambda t, m: t.update(n=torch.zeros(4, dtype=torch.int64)),
    ),
    "n of floats": (r"n must be int64 .*, got \[3\]", lambda t, m: t.update(n=t["n"].double())),
    "no n": (r"n must be int64 .*, got None", lambda t, m: t.pop("n")),
    "counts of int32": (r"counts must be int64 .*, got ", lambda t, m: t.update(counts=t["counts"].int())),
    "sums of one head less": (
        r"sums must be int64 \[3, 3, 5\], .*, got \[3, 2, 5\]",
        lambda t, m: t.update(sums=t["sums"][:, 1:]),
    ),
    "squares transposed": (
        r"squares must be int64 .*, got \[5, 3, 3\]",
        lambda t, m: t.update(squares=t["squares"].transpose(0, 2)),
    ),
    "no squares": (r"squares must be int64 .*, got None", lambda t, m: t.pop("squares")),
    "a head more": (
        r"sums must be int64 \[3, 4, 5\], .*, got \[3, 3, 5\]",
        lambda t, m: m.update(heads=json.dumps([head.to_dict() for head in (*HEADS, Softmax(9.0))])),
    ),
    "an unknown head": (
        r"head must be one of 'Votes', 'Softmax', 'Sparsemax', 'ClippedLogits', got 'Hardmax'",
        lambda t, m: m.update(heads='[{"name": "Hardmax"}]'),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_loading_a_tampered_file(case, tmp_path):
    message, change = CHANGES[case]
    tampered(tmp_path / "tally", change)
    with pytest.raises(ValueError, match=message):
        Tally.load(tmp_path / "tally")


DAMAGED = {
    "no counts": lambda t, m: t.pop("counts"),
    "counts of rank 1": lambda t, m: t.update(counts=t["counts"].flatten()),
    "no heads": lambda t, m: m.pop("heads"),
    "heads of a wrong parameter": lambda t, m: m.update(heads='[{"name": "Softmax", "sigma": 1}]'),
    "heads that are no list": lambda t, m: m.update(heads="3"),
    "negative counts": lambda t, m: t["counts"].sub_(1000),
    "n that is not the sum of counts": lambda t, m: t["n"].add_(1),
    "n beyond the cap": lambda t, m: (t["n"].fill_(2**33), t["counts"].zero_(), t["counts"][:, 0].fill_(2**33)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_loading_a_damaged_file(case, tmp_path):
    tampered(tmp_path / "tally", DAMAGED[case])
    with pytest.raises(ValueError, match=r"tally must be as Tally.save wrote it, got a damaged file"):
        Tally.load(tmp_path / "tally")


# Construction


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"^num_inputs must be an int.*, got 1.0", (1.0, 2)),
        (TypeError, r"^num_inputs must be an int, got True", (True, 2)),
        (TypeError, r"^num_inputs must be an int, got None", (None, 2)),
        (ValueError, r"^num_inputs must be .*, got 0", (0, 2)),
        (ValueError, r"^num_inputs must be .*, got -1", (-1, 2)),
        (TypeError, r"^num_classes must be an int, got '10'", (1, "10")),
        (ValueError, r"^num_classes must be from 2 to 1048576.*, got 1", (1, 1)),
        (ValueError, r"^num_classes must be .*, got 1048577", (1, 2**20 + 1)),
        (TypeError, r"^heads must be a sequence of heads, got Votes\(\); pass \[Votes\(\)\]", (1, 2, Votes())),
        (TypeError, r"^each of heads must be one of Votes, .*, got 'votes'", (1, 2, ["votes"])),
        (TypeError, r"^each of heads must be one of Votes, .*, got <class", (1, 2, [Votes])),
        (ValueError, r"^heads must hold at least one head, .*, got \(\)", (1, 2, [])),
        (ValueError, r"^heads must hold .*none twice, got ", (1, 2, [Votes(), Softmax(1.0), Softmax(1)])),
    ],
)
def test_errors_of_construction(error, message, arguments):
    with pytest.raises(error, match=message):
        Tally(*arguments)


def test_the_limits_of_construction():
    assert Tally(1, 2**20).counts.shape == (1, 2**20 + 1)
    assert Tally(1000, 2).n.shape == (1000,)


def test_integers_and_back():
    for heads in ((Votes(),), (Softmax(1.0), Votes())):
        tally = Tally(2, 3, heads)
        accumulate(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]), tally, rows=[0, 1])
        assert Tally.from_integers([tally.integers(i) for i in range(2)], heads) == tally


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs must hold at least one dict, .*, got \\[\\]"),
        ([{"n": 1}], "each with n, counts, sums, squares"),
        ([{"n": 1, "counts": 1, "sums": [], "squares": []}], "counts must be a list, .*, got 1"),
        ([{"n": 1, "counts": [1.5, 0, 0], "sums": [], "squares": []}], "counts must be int64 .*, got "),
        ([{"n": 2, "counts": [1, 0, 0], "sums": [], "squares": []}], "n must be the sum of counts"),
        ([{"n": 1, "counts": [1, 0, 0], "sums": [[1, 2]], "squares": [[1, 2]]}], "sums must be int64 .*, got \\[1, 1, 2\\]"),
    ],
)
def test_integers_that_are_no_tally(inputs, message):
    with pytest.raises(ValueError, match=message):
        Tally.from_integers(inputs, (Votes(),))


# Histograms


def test_shapes_of_histograms():
    tally = Tally(3, 5, HEADS, tracked_classes=TRACKED)
    assert torch.equal(tally.tracked_classes, TRACKED)
    assert tally.tracked_classes.data_ptr() != TRACKED.data_ptr()
    for name in BIN_TENSORS:
        assert getattr(tally, name).shape == (3, 3, 2, BINS)
        assert getattr(tally, name).dtype == torch.int64
        assert not getattr(tally, name).any()
    for plain in (Tally(3, 5, HEADS), Tally(3, 5, HEADS, tracked_classes=np.zeros((3, 3, 0), dtype=np.int64))):
        assert plain.tracked_classes.shape == (3, 3, 0)
        assert plain.tracked_classes.dtype == torch.int64
        assert plain.bin_counts.shape == plain.bin_sums.shape == (3, 3, 0, BINS)
    assert (
        Tally(3, 5, HEADS, tracked_classes=TRACKED.tolist())
        == Tally(3, 5, HEADS, tracked_classes=TRACKED.int().numpy())
        == tally
    )
    assert Tally(3, 5, HEADS, tracked_classes=TRACKED.transpose(0, 1)).tracked_classes.is_contiguous()
    assert Tally(1, 5, HEADS, tracked_classes=TRACKED[:1], device="meta").bin_sums.device.type == "meta"


@pytest.mark.parametrize(
    ("error", "message", "tracked"),
    [
        (TypeError, r"^tracked_classes must be int64 \[3, 3, C\], C from 0 to 8.*, got 'all'", "all"),
        (TypeError, r"^tracked_classes must be .*, got torch.float64", TRACKED.double()),
        (TypeError, r"^tracked_classes must be .*, got torch.bool", TRACKED > 2),
        (TypeError, r"^tracked_classes must be .*, got \[\[0\], \[1, 2\]\]", [[0], [1, 2]]),
        (ValueError, r"^tracked_classes must have shape \[3, 3, C\], C from 0 to 8, got \[3, 3\]", TRACKED[:, :, 0]),
        (ValueError, r"^tracked_classes must have shape .*, got \[2, 3, 2\]", TRACKED[:2]),
        (ValueError, r"^tracked_classes must have shape .*, got \[3, 2, 2\]", TRACKED[:, :2]),
        (ValueError, r"^tracked_classes must have shape .*, got \[3, 3, 9\]", TRACKED[:, :, :1].repeat(1, 1, 9)),
        (ValueError, r"^tracked_classes must lie in \[0, 5\), got values from 1 to 5", TRACKED * 0 + torch.tensor([1, 5])),
        (ValueError, r"^tracked_classes must lie in .*, got values from -1 to 0", TRACKED * 0 + torch.tensor([0, -1])),
    ],
)
def test_errors_of_tracked(error, message, tracked):
    with pytest.raises(error, match=message):
        Tally(3, 5, HEADS, tracked_classes=tracked)


def test_addition_of_histograms():
    a, b = filled(seed=1, tracked=TRACKED), filled(33, seed=2, tracked=TRACKED)
    total = a + b
    for name in (*TENSORS, *BIN_TENSORS):
        assert torch.equal(getattr(total, name), getattr(a, name) + getattr(b, name))
    assert torch.equal(total.tracked_classes, TRACKED)
    assert total == b + a
    assert total != a
    assert a == filled(seed=1, tracked=TRACKED)


@pytest.mark.parametrize("tracked", [None, TRACKED[:, :, :1], (TRACKED + 1) % 5])
def test_tallies_that_track_other_classes(tracked):
    a, b = filled(tracked=TRACKED), filled(tracked=tracked)
    assert a != b
    for first, second in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=r"^tallies that are added must have equal tracked_classes, got "):
            first + second


def test_equality_and_copies_of_histograms():
    tally = filled(tracked=TRACKED)
    copy = tally.to("cpu")
    assert copy == tally
    for name in (*BIN_TENSORS, "tracked_classes"):
        other = filled(tracked=TRACKED)
        getattr(other, name).view(-1)[-1] += 1
        assert tally != other
        assert getattr(copy, name).data_ptr() != getattr(tally, name).data_ptr()
    accumulate(torch.zeros(1, 5), copy, rows=[0])
    assert tally == filled(tracked=TRACKED)


def test_files_with_histograms_and_without(tmp_path):
    """A file of a tally that tracks nothing holds no more than it did."""
    filled().save(tmp_path / "plain")
    assert set(load_file(tmp_path / "plain")) == set(TENSORS)
    tally = filled(tracked=TRACKED)
    tally.save(tmp_path / "tally")
    assert set(load_file(tmp_path / "tally")) == {*TENSORS, *BIN_TENSORS, "tracked"}
    loaded = Tally.load(tmp_path / "tally")
    assert loaded == tally
    accumulate(torch.zeros(1, 5), loaded, rows=[0])
    assert (loaded.bin_counts.sum(-1) == loaded.n[:, None, None]).all()


def move_a_score(tensors):
    """From the bin that most are in to the next."""
    counts = tensors["bin_counts"][0, 0, 0]
    place = int(counts.argmax())
    counts[place] -= 1
    counts[(place + 1) % BINS] += 1


DAMAGED_HISTOGRAMS = {
    "no bin_counts": (r"bin_counts must be int64 .*, got None", lambda t: t.pop("bin_counts")),
    "no bin_sums": (r"bin_sums must be int64 .*, got None", lambda t: t.pop("bin_sums")),
    "no tracked": (r"it must hold tracked where it holds bin_counts, got none", lambda t: t.pop("tracked")),
    "tracked of floats": (
        r"tracked_classes must be int64 .*, got torch.float64",
        lambda t: t.update(tracked=t["tracked"].double()),
    ),
    "tracked out of range": (
        r"tracked_classes must lie in \[0, 5\), got values from . to 9",
        lambda t: t["tracked"][0, 0].fill_(9),
    ),
    "another class": (r"bin_sums of each tracked class must add up to its sums", lambda t: t["tracked"].add_(1).fmod_(5)),
    "one class less": (
        r"bin_counts must be int64 .*, got \[3, 3, 2, 128\]",
        lambda t: t.update(tracked=t["tracked"][:, :, :1]),
    ),
    "a bin less": (r"bin_sums must be int64 .*, got \[3, 3, 2, 127\]", lambda t: t.update(bin_sums=t["bin_sums"][..., 1:])),
    "negative counts": (r"bin_counts must be int64 .*none negative, got ", lambda t: t["bin_counts"].sub_(1)),
    "a score more": (r"bin_counts of each tracked class must add up to n", lambda t: t["bin_counts"][1, 0, 0, 5].add_(1)),
    "counts that wrap": (r"bin_counts of each tracked", lambda t: t["bin_counts"][1, 0, 0, 5:9].add_(1 << 62)),
    "a score in another bin": (r"bin_sums must lie within", move_a_score),
    "sums of another head": (r"bin_sums must lie within", lambda t: t.update(bin_sums=t["bin_sums"].flip(1))),
    "sums that do not add up": (r"must add up to its sums", lambda t: t["sums"][0, 0].add_(1)),
}


@pytest.mark.parametrize("case", DAMAGED_HISTOGRAMS)
def test_loading_damaged_histograms(case, tmp_path):
    message, change = DAMAGED_HISTOGRAMS[case]
    tampered(tmp_path / "tally", lambda tensors, metadata: change(tensors), TRACKED)
    with pytest.raises(ValueError, match=rf"tally must be as Tally.save wrote it, got a damaged file .*{message}"):
        Tally.load(tmp_path / "tally")


def test_histograms_as_integers():
    """Through JSON and back: only bins that hold a score are written, and none where nothing is tracked."""
    tally = filled(tracked=TRACKED)
    integers = json.loads(json.dumps([tally.integers(i) for i in range(3)]))
    assert set(integers[0]) == {*TENSORS, "tracked", "bins"}
    assert integers[1]["tracked"] == TRACKED[1].tolist()
    for i, h, c in np.ndindex(3, 3, 2):
        for place, count, total in integers[i]["bins"][h][c]:
            assert count == tally.bin_counts[i, h, c, place] > 0
            assert total == tally.bin_sums[i, h, c, place]
        assert len(integers[i]["bins"][h][c]) == (tally.bin_counts[i, h, c] > 0).sum() < 40
    assert Tally.from_integers(integers, HEADS) == tally
    assert Tally.from_integers(integers[1:2], HEADS) == tally.select([1])
    assert set(filled().integers(0)) == set(TENSORS)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"^each of inputs must hold tracked and bins, or none either, got ", lambda inputs: inputs[1].pop("bins")),
        (
            r"^each of inputs must hold tracked and bins, or none either, got ",
            lambda inputs: [each.pop("tracked") for each in inputs],
        ),
        (
            r"^each of inputs must hold tracked and bins, or none either, got ",
            lambda inputs: (inputs[1].pop("tracked"), inputs[1].pop("bins")),
        ),
        (r"^bins must ascend from 0 to 127, got ", lambda inputs: inputs[0]["bins"][0][0].reverse()),
        (r"^bins must ascend from 0 to 127, got ", lambda inputs: inputs[0]["bins"][0][0].append([128, 0, 0])),
        (r"^bins must ascend from 0 to 127, got ", lambda inputs: inputs[0]["bins"][0][0].insert(0, [-1, 0, 0])),
        (r"must add up to n", lambda inputs: inputs[0]["bins"][0][0].pop()),
        (r"bin_counts must be int64 .*, got ", lambda inputs: inputs[0]["bins"][0][0][0].__setitem__(1, 1.0)),
        (r"values to unpack", lambda inputs: inputs[0]["bins"][0][0][0].pop()),
        (r"^tracked_classes must have shape .*, got ", lambda inputs: [each["tracked"].pop() for each in inputs]),
        (
            r"^tracked_classes must lie in .*, got values from . to 7",
            lambda inputs: inputs[0]["tracked"][0].__setitem__(0, 7),
        ),
    ],
)
def test_integers_that_are_no_histograms(message, change):
    tally = filled(tracked=TRACKED)
    integers = [tally.integers(i) for i in range(3)]
    change(integers)
    with pytest.raises(ValueError, match=message):
        Tally.from_integers(integers, HEADS)


# Parts


@pytest.mark.parametrize("tracked", [None, TRACKED])
def test_select(tracked):
    """A copy, in the order asked for, and as if only these inputs had been sampled."""
    tally = filled(tracked=tracked)
    for places in ([2], [0, 2], torch.tensor([2, 0]), range(3), [1, 1], np.array([1])):
        part = tally.select(places)
        assert (part.num_inputs, part.num_classes, part.heads) == (len(places), 5, HEADS)
        for name in (*TENSORS, *BIN_TENSORS, "tracked_classes"):
            assert torch.equal(getattr(part, name), getattr(tally, name)[torch.as_tensor(places)])
    assert tally.select(range(3)) == tally
    part.n += 1
    assert tally == filled(tracked=tracked)


@pytest.mark.parametrize(
    ("error", "message", "places"),
    [
        (TypeError, r"^indices must be int64 \[B\].*, got \[0\.5\]", [0.5]),
        (TypeError, r"^indices must be .*, got torch.bool", torch.tensor([True, False, True])),
        (TypeError, r"^indices must be .*, got None", None),
        (ValueError, r"^indices must have shape \[B\], B at least 1, got \[\]", 1),
        (ValueError, r"^indices must have shape .*, got \[0\]", range(0)),
        (ValueError, r"^indices must lie in \[0, 3\), got values from 0 to 3", [0, 3]),
        (ValueError, r"^indices must lie in .*, got values from -1 to -1", [-1]),
    ],
)
def test_errors_of_select(error, message, places):
    with pytest.raises(error, match=message):
        filled().select(places)


def test_what_a_head_has_as_numpy():
    """On the CPU, int64, by head rather than by place; a head that the tally does not hold is refused."""
    tally = filled(tracked=TRACKED)
    for place, head in enumerate(tally.soft_heads):
        histograms = (each[:, place] for each in (tally.tracked_classes, tally.bin_counts, tally.bin_sums))
        for found, tensor in zip(
            (*tally.head_sums(head), *tally.head_histograms(head)),
            (tally.sums[:, place], tally.squares[:, place], tally.n[:, None], *histograms),
            strict=True,
        ):
            assert found.dtype == np.int64
            assert np.array_equal(found, tensor.numpy())
    votes, squares, trials = tally.head_sums(Votes())
    assert votes is squares
    assert np.array_equal(votes, tally.counts[:, :-1].numpy())
    assert np.array_equal(trials, tally.n[:, None].numpy())
    for method, head in ((tally.head_sums, Softmax(99.0)), (tally.head_histograms, Votes())):
        with pytest.raises(ValueError, match=r"^head must be one of the tally's soft heads .*, got "):
            method(head)


def test_shares():
    tally = Tally(6, 3, [Softmax(1.0)], tracked_classes=torch.arange(6).view(6, 1, 1) % 3)
    for number, part in enumerate(tally.shares(3)):
        part.n += number + 1
        assert part == tally.select(range(2 * number, 2 * number + 2))
    assert tally.n.tolist() == [1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match=r"^count must divide the 6 inputs, got 4"):
        tally.shares(4)
    with pytest.raises(ValueError, match=r"^count must be from 1 to 6, got 0"):
        tally.shares(0)
    with pytest.raises(TypeError, match=r"^count must be an int, got 1.5"):
        tally.shares(1.5)
