"""rsfast.noise.provenance: no sample is counted twice, and none that bounds a score has chosen the class."""

import json

import pytest
import torch

import rsfast
from rsfast import Gaussian, Provenance, Softmax, Tally, Votes, certificates, sample
from rsfast.ops import accumulate

NOISE = Gaussian(0.5)
X = torch.tensor([[0.3, 0.0], [-0.2, 0.1], [0.1, 0.4]])


def model(batch):
    return torch.stack([batch[:, 0], batch[:, 1]], dim=1)


def drawn(n, start=0, stream="estimation", *, noise=NOISE, seed=1, **options):
    return sample(model, X, noise, num_classes=2, n=n, start=start, stream=stream, seed=seed, **options)


def stated(samples, **options):
    arguments = {"noise": NOISE, "seed": 1, "stream": "estimation", "input_ids": [4, 9]} | options
    return Provenance(samples=samples, **arguments)


# What is stated


def test_sample_states_what_it_drew():
    tally = drawn(100, 50, input_ids=[5, 0, 7])
    assert tally.provenance == Provenance(NOISE, 1, "estimation", range(50, 150), [5, 0, 7])
    assert tally.provenance.counts() == tally.n.tolist() == [100] * 3


def test_samples_have_one_form():
    """However the ranges are given: ascending, and as few as can be."""
    whole = stated([range(10), range(20, 30)])
    assert stated([[range(6, 10), range(3), range(3, 6)], [range(20, 30), range(40, 40)]]) == whole
    assert whole.samples == ((range(10),), (range(20, 30),))
    assert stated(range(7)).samples == ((range(7),),) * 2
    assert stated(range(0)).counts() == [0, 0]


def test_sums_unite_and_selections_divide():
    total = stated([range(10), range(5)]) + stated([range(20, 30), range(5, 9)])
    assert total.samples == ((range(10), range(20, 30)), (range(9),))
    assert total.select([1]) == stated([range(9)], input_ids=[9])
    assert Provenance.from_dict(json.loads(json.dumps(total.to_dict()))) == total


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": 0.5}, TypeError, r"^noise must be one of Gaussian.*, got 0\.5"),
        ({"seed": -1}, ValueError, r"^seed must be in .*, got -1"),
        ({"stream": "train"}, ValueError, r"^stream must be one of 'selection', .*, got 'train'"),
        ({"samples": 10}, TypeError, r"^samples must be a range, or a sequence .*, got 10"),
        ({"samples": [range(3)]}, ValueError, "^samples must have one entry for each of 2 input_ids, got 1"),
        ({"samples": range(0, 9, 2)}, TypeError, r"^samples must be a range of step 1, .*, got "),
        ({"samples": [range(3), "ab"]}, TypeError, r"^samples\[1\] must be a range of step 1, .*, got 'ab'"),
        ({"samples": range(-1, 3)}, ValueError, r"^samples must lie in .*, got range\(-1, 3\)"),
        ({"samples": range(1 << 56, (1 << 56) + 1)}, ValueError, "samples must lie in"),
        (
            {"samples": [range(3), [range(4, 9), range(5)]]},
            ValueError,
            r"^samples\[1\] must hold ranges that do not overlap, got ",
        ),
        ({"input_ids": [1, 1 << 32]}, ValueError, r"^input_ids must hold ints .*, got 4294967296"),
        ({"input_ids": [1, True]}, ValueError, r"^input_ids must hold ints .*, got True"),
    ],
)
def test_what_cannot_be_stated(options, error, message):
    with pytest.raises(error, match=message):
        stated(**{"samples": range(10), **options})


# Adding


@pytest.mark.parametrize("start", [0, 99, 40])
def test_no_sample_is_added_twice(start):
    first, second = drawn(100), drawn(100, start)
    with pytest.raises(ValueError, match=rf"both hold samples {start} to 99 of input 0 in the stream 'estimation'"):
        first + second
    with pytest.raises(ValueError, match="both hold samples"):
        drawn(50, 150) + first + drawn(10, 200) + second


def test_overlap_of_one_input_alone_is_refused():
    first, second = drawn(10).select([0, 1]), drawn(10, 10).select([0, 1])
    second.provenance = Provenance(NOISE, 1, "estimation", [range(10, 20), range(5, 15)], [0, 1])
    with pytest.raises(ValueError, match="both hold samples 5 to 9 of input 1"):
        first + second


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"noise": Gaussian(0.25)}, "noise"),
        ({"seed": 2}, "seed"),
        ({"stream": "user"}, "stream"),
        ({"input_ids": [0, 2, 1]}, "input_ids"),
    ],
)
def test_tallies_of_different_sources_are_not_added(options, name):
    with pytest.raises(ValueError, match=f"^two tallies cannot be added: their {name} must agree, got "):
        drawn(10) + drawn(10, **{"start": 10, **options})


def test_a_tally_that_states_nothing_is_not_added_to_one_that_does():
    """But an empty one is where a sum begins."""
    known, unknown = drawn(10), drawn(10, 10)
    unknown.provenance = None
    for a, b in ((known, unknown), (unknown, known)):
        with pytest.raises(ValueError, match="must both state their provenance, got one that does not"):
            a + b
    parts = [drawn(10), drawn(20, 10), drawn(5, 30)]
    total = sum(parts, start=Tally(3, 2))
    assert total.provenance == drawn(35).provenance
    assert total == drawn(35)
    assert (unknown + unknown).provenance is None  # nobody vouches for it


def test_samples_added_by_hand_must_be_those_that_are_stated():
    tally = drawn(10)
    accumulate(torch.tensor([[1.0, 0.0]]), tally, rows=[1])
    message = r"tally\.n\[1\] must be 10, as its provenance states, got 11; add each of these samples once"
    for use in (lambda: tally + drawn(5, 10), lambda: drawn(5, 10) + tally, lambda: rsfast.predictions(tally, 0.01)):
        with pytest.raises(ValueError, match=message):
            use()
    for name, pair in (("estimation", (drawn(10, stream="selection"), tally)), ("selection", (tally, drawn(50, 10)))):
        with pytest.raises(ValueError, match=rf"^{name}\.n\[1\] must be 10, as its provenance states, got 11"):
            certificates(*pair, NOISE, alpha=0.01)


def test_it_goes_where_the_tally_goes(tmp_path):
    tally = drawn(20, heads=[Votes(), Softmax(1.0)]) + drawn(10, 30, heads=[Votes(), Softmax(1.0)])
    assert tally.provenance.samples == ((range(20), range(30, 40)),) * 3
    tally.save(tmp_path / "tally")
    for copy in (tally.to("cpu"), Tally.load(tmp_path / "tally")):
        assert copy == tally
        assert copy.provenance == tally.provenance
    assert tally.select([2, 0]).provenance.input_ids == (2, 0)


def test_it_is_checked_when_it_is_set():
    tally = drawn(10)
    kept = tally.provenance
    with pytest.raises(ValueError, match=r"^provenance must be of 3 inputs, got one of 2"):
        tally.provenance = stated(range(10))
    with pytest.raises(TypeError, match=r"^provenance must be a Provenance or None, got 'sample'"):
        tally.provenance = "sample"
    assert tally.provenance is kept
    with pytest.raises(ValueError, match=r"^provenance must be of 3 inputs, got one of 2"):
        Tally(3, 2, provenance=stated(range(10)))


# Certifying


def test_certificates_take_seed_and_ids_from_the_tallies():
    ids = [5, 0, 7]
    selection, estimation = (drawn(n, stream=s, input_ids=ids, seed=3) for s, n in (("selection", 50), ("estimation", 500)))
    found = certificates(selection, estimation, NOISE, alpha=0.01)
    assert [(each.input_id, each.seed) for each in found] == [(5, 3), (0, 3), (7, 3)]
    assert found == certificates(selection, estimation, NOISE, alpha=0.01, seed=3, input_ids=torch.tensor(ids))


def test_separate_calls_give_inputs_uniforms_of_their_own():
    """Randomized bounds of single inputs are those of all in one call: by id, and not by place."""
    selection, estimation = drawn(50, stream="selection"), drawn(500)
    options = {"alpha": 0.01, "bound": "randomized_clopper_pearson"}
    together = certificates(selection, estimation, NOISE, **options)
    apart = [certificates(selection.select([k]), estimation.select([k]), NOISE, **options)[0] for k in range(3)]
    assert apart == together


@pytest.mark.parametrize("start", [0, 30, 49])
def test_a_selection_from_the_estimation_is_refused(start):
    with pytest.raises(
        ValueError, match=r"^selection and estimation must be independent .*: both hold samples .* stream 'estimation'"
    ):
        certificates(drawn(50), drawn(500, start), NOISE, alpha=0.01)
    with pytest.raises(ValueError, match=r"^selection and estimation must be independent .*: both hold samples"):
        certificates(drawn(50), [drawn(500, 100), drawn(50, start)], NOISE, alpha=0.01)


def test_other_samples_of_one_stream_are_independent():
    found = certificates(drawn(50), drawn(500, 50), NOISE, alpha=0.01)
    assert [each.n for each in found] == [500] * 3


def test_ranges_that_overlap_are_refused():
    selection = drawn(50, stream="selection")
    with pytest.raises(ValueError, match=r"^estimation and estimation must be independent .*: both hold samples 90 to 99"):
        certificates(selection, [drawn(100), drawn(100, 90)], NOISE, alpha=0.01)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"noise": Gaussian(0.25)}, "noise"), ({"seed": 2}, "seed"), ({"input_ids": [0, 2, 1]}, "input_ids")],
)
def test_samples_of_different_sources_do_not_certify(options, name):
    ours, theirs = drawn(50, stream="selection"), drawn(500, **options)
    with pytest.raises(
        ValueError, match=f"^selection and estimation must be independent samples .*: their {name} must agree"
    ):
        certificates(ours, theirs, options.get("noise", NOISE), alpha=0.01)


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (Gaussian(1.0), {}, r"^noise must be Gaussian\(sigma=0\.5\), .*, got Gaussian\(sigma=1\.0\)"),
        (NOISE, {"seed": 2}, "^seed must be 1, with which selection was sampled, got 2"),
        (NOISE, {"input_ids": [1, 2, 3]}, r"^input_ids must be \[0, 1, 2\], with which .*, got \[1, 2, 3\]"),
    ],
)
@pytest.mark.parametrize("vouched", [False, True])
def test_arguments_that_do_not_fit_the_samples(noise, options, message, vouched):
    with pytest.raises(ValueError, match=message):
        certificates(drawn(50, stream="selection"), drawn(500), noise, alpha=0.01, assume_independent=vouched, **options)


def test_samples_of_another_stream_version_do_not_certify():
    tallies = drawn(50, stream="selection"), drawn(500)
    for tally in tallies:
        p = tally.provenance
        tally.provenance = Provenance(p.noise, p.seed, p.stream, p.samples, p.input_ids, rsfast.STREAM_VERSION + 1)
    with pytest.raises(ValueError, match=r"^STREAM_VERSION must be 2, with which selection was sampled, got 1"):
        certificates(*tallies, NOISE, alpha=0.01)


def test_tallies_that_state_nothing_take_a_word_for_it():
    selection, estimation = drawn(50, stream="selection"), drawn(500)
    expected = certificates(selection, estimation, NOISE, alpha=0.01)
    estimation.provenance = None
    with pytest.raises(ValueError, match=r"^estimation\.provenance must state .*, got None; .*assume_independent=True"):
        certificates(selection, estimation, NOISE, alpha=0.01)
    assert certificates(selection, estimation, NOISE, alpha=0.01, assume_independent=True) == expected
    selection.provenance = None
    with pytest.raises(TypeError, match=r"^seed must be an int where no Tally states it, got None"):
        certificates(selection, estimation, NOISE, alpha=0.01, assume_independent=True)
    assert certificates(selection, estimation, NOISE, alpha=0.01, assume_independent=True, seed=1) == expected
