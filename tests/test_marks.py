"""The marks of a void Tally: kernels set them, nothing loses them, and what reads the Tally raises the error of a CPU."""

import re

import pytest
import torch
from conftest import first_elements, integers, rows
from test_accumulate import HEADS, assert_same, hostile_logits, some_classes
from torch import distributed

from rsfast import Gaussian, Softmax, Sparsemax, Tally, Votes, ops
from rsfast.compat import cohen, iss, macer, rs4a, rs_conf_seq, sound_rs
from rsfast.engine.batches import Batches
from rsfast.noise.provenance import Provenance
from rsfast.ops.marks import FULL, ROWS, TRACKED
from rsfast.runs.checkpoint import CHECKPOINT
from rsfast.runs.environment import Environment
from rsfast.runs.run import Run
from rsfast.stats import proof
from rsfast.stats.prediction import predictions

VOID = "as a kernel on a GPU found; the Tally is void, fill a new one"
WORDS = {
    ROWS: (ValueError, f"rows must lie in [0, 2), got another, {VOID}"),
    FULL: (OverflowError, f"a Tally must hold at most 2^33 - 1 samples of an input, got more, {VOID}"),
    TRACKED: (ValueError, f"tracked_classes must lie in [0, 10), got another, {VOID}"),
}


def raises(mark, classes=10):
    error, words = WORDS[mark]
    return pytest.raises(error, match=f"^{re.escape(words.replace('10)', f'{classes})'))}$")


# What a kernel marks: for tests of each backend


def check_wrong_rows(backend, device="cpu"):
    """Rows without an input count nowhere, and void the whole Tally, whether a block has several rows or one."""
    heads = (Votes(), Softmax(1.0), Sparsemax(1.0))
    for classes in (10, 2100):
        logits = hostile_logits(classes, 6, seed=3).to(device)
        tracked = some_classes(classes, 2, heads=heads, slots=2)
        expected, found = (Tally(2, classes, heads, tracked_classes=tracked, device=device) for _ in range(2))
        ops.accumulate(logits[:3], expected, rows=[1, 0, 1], backend="reference")
        given = torch.tensor([1, 0, 1, 2, -1, 2**62], device=device)
        ops.accumulate(logits, found, rows=given, backend=backend)
        expected.n += ROWS
        assert_same(found, expected)
        ops.accumulate(logits[:3], found, rows=given[:3], backend=backend)
        assert (found.n >> 40).tolist() == [1, 1]
        with raises(ROWS, classes):
            found.to("cpu")


def check_many_wrong_rows(backend, device="cpu"):
    """More inputs than a block has threads; and a Tally's n is all that is written where no row has an input."""
    tally = Tally(3000, 3, (Votes(), Softmax(1.0)), device=device)
    ops.accumulate(torch.randn(300, 3, device=device), tally, rows=torch.full((300,), 3000, device=device), backend=backend)
    assert (tally.n == ROWS).all()
    assert not any(tensor.any() for name, tensor in tally.tensors().items() if name != "n")


def check_full(backend, device="cpu"):
    """The last sample that there is room for, and one more: of one input, or two, whose rows are in one run or not."""
    for classes in (3, 2100):
        for given in ([0, 0], [0, 1, 0]):
            tally, ones = Tally(3, classes, device=device), torch.zeros(3, classes, device=device)
            tally.n += 2**33 - 3
            ops.accumulate(ones[: len(given)], tally, rows=given, backend=backend)
            assert int(tally.n.max()) == 2**33 - 1
            ops.accumulate(ones[:1], tally, rows=[0], backend=backend)
            assert (tally.n >> 40).tolist() == [2, 0, 0]
            ops.accumulate(ones[:1], tally, rows=[0], backend=backend)
            assert (tally.n >> 40).tolist() == [2, 0, 0]
            with raises(FULL):
                tally.to("cpu")


def check_wrong_classes(backend, device="cpu"):
    """A histogram of no class stays empty, and voids its input. Also where a row does not vote."""
    heads = (Votes(), Softmax(1.0))
    for classes in (10, 2100):
        for wrong in (classes, -1, 2**62):
            for value in (0.0, torch.nan):
                logits, right = torch.full((2, classes), value, device=device), torch.tensor([[[1, 2]], [[1, 2]]])
                expected, found = (Tally(2, classes, heads, tracked_classes=right, device=device) for _ in range(2))
                ops.accumulate(logits, expected, rows=[0, 1], backend="reference")
                found.tracked_classes[1, 0, 0] = expected.tracked_classes[1, 0, 0] = wrong
                ops.accumulate(logits, found, rows=[0, 1], backend=backend)
                expected.n[1] += TRACKED
                expected.bin_counts[1, 0, 0], expected.bin_sums[1, 0, 0] = 0, 0
                assert_same(found, expected)
                with raises(TRACKED, classes):
                    found.to("cpu")


# What reads a Tally


def marked(mark):
    tally = Tally(2, 10, HEADS[:2], tracked_classes=torch.zeros(2, 1, 1, dtype=torch.int64))
    ops.accumulate(torch.randn(4, 10), tally, rows=[0, 1, 0, 1])
    tally.n[1] |= mark
    return tally


def with_provenance(tally):
    tally.provenance = Provenance(Gaussian(1.0), 1, "user", range(2), [0, 1])
    return tally


READERS = {
    "to": lambda tally: tally.to("cpu"),
    "select": lambda tally: tally.select([0]),
    "integers": lambda tally: tally.integers(1),
    "head_sums": lambda tally: tally.head_sums(Votes()),
    "scores": lambda tally: tally.head_sums(HEADS[1]),
    "head_histograms": lambda tally: tally.head_histograms(HEADS[1]),
    "save": lambda tally: tally.save("never.safetensors"),
    "added": lambda tally: tally + marked(0),
    "added to": lambda tally: marked(0) + tally,
    "certificates": lambda tally: proof.certificates(
        tally, marked(0), Gaussian(1.0), seed=1, alpha=0.1, assume_independent=True
    ),
    "provenance": lambda tally: with_provenance(tally).check_provenance(),
    "predictions": lambda tally: predictions(tally, 0.1),
}


@pytest.mark.parametrize("mark", WORDS)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_void_tally_is_not_read(read, mark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(mark):
        read(marked(mark))
    assert not [*tmp_path.iterdir()]


def test_a_sum_of_very_many_marks_is_void():
    """As processes add up their Tallies: 2^20 of them, with all marks."""
    tally = marked(0)
    tally.n[:] = (ROWS | FULL | TRACKED | 2**33 - 1) * 2**20
    with pytest.raises(ValueError, match=VOID):
        tally.to("cpu")


# A run


@pytest.fixture(params=[None, "samples"])
def shard(request):
    """Tallies where the kernels add, and as a GPU has them: on their way to the host."""
    if request.param:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield request.param
    if request.param:
        distributed.destroy_process_group()


def check_run(at, path, monkeypatch, device="cpu", shard=None):
    """A kernel that voids a Tally ends a run with the error. The checkpoint before, and rows, are good to go on from."""
    calls = iter(range(10**6))  # the first tries the model

    def faulty(tally, *, backend):
        add = ops.accumulator(tally, backend=backend)

        def marking(logits, places):
            add(logits, places)
            if next(calls) == at:
                tally.n |= ROWS

        return marking

    def certify(folder):
        """Whatever the clock says: a checkpoint after every batch."""
        always = Environment(say=lambda _: None, checkpoint_every=0.0, checkpoint_share=0.0)
        images = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        options = {"num_classes": 4, "batch_size": 16, "resume": True, "environment": always}
        options |= {"about": {"model": "model"}, "device": device, "shard": shard}
        run = Run(first_elements, images, Gaussian(0.5), path / folder, seed=3, **options)
        run.certify(n0=20, n=60, alpha=0.1)
        return rows(path / folder), integers(path / folder)

    whole = certify("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "accumulator", staticmethod(faulty))
        with pytest.raises(ValueError, match=VOID):
            certify("run")
    if shard is None:  # else it is due by the clock, so that all processes agree
        assert (path / "run" / CHECKPOINT).exists() == (at > 1)
    assert len(rows(path / "run")) < len(whole[0])
    assert certify("run") == whole


@pytest.mark.parametrize("at", [1, 6, 14])  # the first batch, and one in the middle of the first and of another input
def test_a_run_ends_and_goes_on(at, shard, tmp_path, monkeypatch):
    check_run(at, tmp_path, monkeypatch, shard=shard)


# Drop-ins

PICTURE = torch.full((1, 1, 4), 0.5)
SCORED = {"model": first_elements, "x": PICTURE, "seed": 1}
DROP_INS = {
    "cohen": lambda: cohen.Smooth(first_elements, 4, 0.5, seed=1).predict(PICTURE[0], 50, 0.1, 50),
    "macer": lambda: macer.Smooth(first_elements, 4, 0.5, mode="soft", seed=1)._sample_noise(PICTURE[0], 50, 50),
    "iss": lambda: iss.certify(first_elements, 4, PICTURE[0], 0.5, 50, 500, 50, 0.1, 0.1, "absolute", seed=1),
    "iss, votes": lambda: iss._sample_noise(first_elements, 4, PICTURE[0], 0.5, 1, 50, seed=1),
    "rs4a": lambda: rs4a.smooth_predict_hard(noise=rs4a.Gaussian(4, sigma=0.5), **SCORED),
    "rs4a, scores": lambda: rs4a.smooth_predict_soft(noise=rs4a.Gaussian(4, sigma=0.5), **SCORED),
    "rs4a, one class": lambda: rs4a.certify_prob_lb(
        top_cats=torch.tensor([0]), alpha=0.1, noise=rs4a.Gaussian(4, sigma=0.5), sample_size=50, **SCORED
    ),
    "rs_conf_seq": lambda: rs_conf_seq.Certifier(0.5, "gaussian", seed=1).certify(first_elements, [(PICTURE[0], 0)], skip=1),
    "rs_conf_seq, all": lambda: rs_conf_seq.Certifier(0.5, "gaussian", seed=1).certify_vanilla(
        first_elements, [(PICTURE[0], 0)], skip=1, n=50, bs=50
    ),
    "sound_rs": lambda: sound_rs.Certifier(0.5, seed=1, exact=False).certify(
        first_elements, [(PICTURE[0], 0)], skip=1, n0=50, n=50, bs=50
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("call", DROP_INS.values(), ids=DROP_INS)
def test_drop_ins_read_no_void_tally(call, monkeypatch):
    def faulty(tally, *, backend):
        return lambda logits, places: tally.n.bitwise_or_(ROWS)

    monkeypatch.setattr(Batches, "accumulator", staticmethod(faulty))
    with pytest.raises(ValueError, match=VOID):
        call()
