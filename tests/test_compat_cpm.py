"""CPM's two loops: one logs votes, the other certifies from the logs."""

import numpy as np
import pytest
from peer_loops import EVEN, NEAR, ChannelMeans, assert_alike, both, lower, upper
from scipy import stats

from rsfast import Gaussian, certify
from rsfast.compat.cpm import Smooth, load_counts, load_labels
from rsfast.loop2019 import Loop2019

LOG = r"""
from core import Smooth
import json
import numpy as np

smoothed_classifier = Smooth(base_classifier, 3, sigma)
log_f = open(outfile, 'w')
log_f.write("idx\tlabel\tcounts\n")
log_f_N0 = open(outfile_N0, 'w')
log_f_N0.write("idx\tlabel\tcounts\n")
for i in range(len(dataset)):
    (x, label) = dataset[i]
    counts_selection_N0 = smoothed_classifier.log_certify(x, N0, batch)
    counts_selection_N = smoothed_classifier.log_certify(x, N, batch)
    print(f"{i}\t{label}\t{np.argmax(counts_selection_N0.tolist())}")
    log_f_N0.write(f"{i}\t{label}\t{counts_selection_N0.tolist()}\n")
    log_f.write(f"{i}\t{label}\t{counts_selection_N.tolist()}\n")
    answers.append(counts_selection_N)
log_f.close()
log_f_N0.close()
"""

FROM_LOG = r"""
from core_cpm import Smooth

smoothed_classifier = Smooth(base_classifier, num_classes, sigma)
for counts_selection, counts_estimation in logs:
    prediction, radius = smoothed_classifier.certify_from_log_bonferroni(
        counts_selection, counts_estimation, N, N0, alpha, mode=mode)
    answers.append((prediction, radius))
    prediction, radius = smoothed_classifier.certify_from_log_cpm(
        counts_selection, counts_estimation, N, N0, alpha, mode=mode)
    answers.append((prediction, radius))
    prediction, radius = smoothed_classifier.certify_from_log(
        counts_selection, counts_estimation, N, alpha, mode=mode)
    answers.append((prediction, radius))
"""
MODULE = "rsfast.compat.cpm"


class Theirs(Loop2019):
    log_certify = Loop2019.sample_noise

    def certify_from_log(self, selected, counts, n, alpha, mode):
        return self.of_buckets([[int(np.argmax(selected))]], counts, n, alpha, alpha, "Rmono")

    def certify_from_log_bonferroni(self, selected, counts, n, n0, alpha, mode):
        order = np.argsort(-selected, kind="stable")
        return self.of_buckets([[k] for k in order], counts, n, alpha, alpha / self.num_classes, mode)

    def certify_from_log_cpm(self, selected, counts, n, n0, alpha, mode):
        order = [*np.argsort(-selected, kind="stable")]
        buckets, rest = [[order[0]], [order[1]]], order[2:]
        while sum(selected[rest]) > selected[order[1]]:
            buckets.append([rest.pop(0)])
        buckets += [rest] if rest else []
        return self.of_buckets(buckets, counts, n, alpha, alpha / len(buckets), mode)

    def of_buckets(self, buckets, counts, n, alpha, share, mode):
        votes = [int(counts[bucket].sum()) for bucket in buckets]
        if mode == "Rmono":
            radius = self.sigma * self.norm.ppf(lower(votes[0], n, alpha))
        else:
            most = max(upper(each, n, share) for each in votes[1:])
            radius = self.sigma / 2 * (self.norm.ppf(lower(votes[0], n, share)) - self.norm.ppf(most))
        return (-1, 0.0) if radius < 0 else (int(buckets[0][0]), float(radius))


def test_log_loop(monkeypatch, tmp_path):
    """The votes for the first class are alike in distribution (1e-6), and those of the two logs have nothing in common."""
    given = {"base_classifier": ChannelMeans(), "sigma": 0.25, "N0": 300, "N": 300, "batch": 128}
    given |= {"outfile": tmp_path / "N.txt", "outfile_N0": tmp_path / "N0.txt", "dataset": [(NEAR, 2)] * 60 + [(EVEN, 0)]}
    theirs, ours = both(monkeypatch, LOG, "core", MODULE, {"Smooth": Theirs}, **given)
    assert all(counts.dtype.kind == "i" and counts.shape == (3,) and counts.sum() == 300 for counts in ours["answers"])
    assert_alike(*([int(counts[0]) for counts in each["answers"][:60]] for each in (ours, theirs)))
    counts, selected = load_counts(tmp_path / "N.txt"), load_counts(tmp_path / "N0.txt")
    assert counts.tolist() == [each.tolist() for each in ours["answers"]]
    assert load_labels(tmp_path / "N.txt").tolist() == [2] * 60 + [0]
    assert abs(np.corrcoef(counts[:60, 0], selected[:60, 0])[0, 1]) < 0.6


@pytest.mark.parametrize("mode", ["Rmono", "Rmulti"])
def test_from_log_loop(monkeypatch, mode):
    """The same numbers, to what ours rounds down; 10 and 1000 classes, some of which abstain."""
    rng = np.random.default_rng(4)
    for classes in (2, 10, 1000):
        rest = np.full(classes - 2, 1 / max(1, classes - 2))
        chances = [[p, q, *(1 - p - q) * rest] for p, q in ((0.6, 0.4), (0.6, 0.3), (0.45, 0.3), (0.34, 0.33), (0.97, 0.01))]
        logs = [(rng.multinomial(100, p), rng.multinomial(2000, p)) for p in chances[: None if classes > 2 else 1]]
        given = {"base_classifier": ChannelMeans(), "num_classes": classes, "sigma": 0.5}
        given |= {"N": 2000, "N0": 100, "alpha": 0.001}
        theirs, ours = both(monkeypatch, FROM_LOG, "core_cpm", MODULE, {"Smooth": Theirs}, logs=logs, mode=mode, **given)
        for (label, radius), (other, expected) in zip(ours["answers"], theirs["answers"], strict=True):
            assert (label, type(label), type(radius)) == (other, int, float)
            assert radius == pytest.approx(expected, rel=1e-9)
            assert radius <= expected + 1e-12
    assert len({radius for _, radius in ours["answers"]}) > 2


def test_top_two_is_never_below():
    smooth = Smooth(ChannelMeans(), 10, 0.5)
    selected, counts = np.array([60, 30, *[1] * 8, 2][:10]), np.array([1200, 600, *[25] * 8])
    radii = [smooth.certify_from_log_cpm(selected, counts, 2000, 100, 0.001, mode)[1] for mode in ("Rmulti", "top_two")]
    assert 0 < radii[0] < radii[1]


def test_from_log_is_certify():
    smooth = Smooth(ChannelMeans(), 3, 0.25, seed=4)
    [found] = certify(ChannelMeans(), NEAR[None], Gaussian(0.25), num_classes=3, n0=30, n=300, rule="one_vs_rest", seed=4)
    assert smooth.certify(NEAR, 30, 300, 0.001, 100) == tuple(found)
    counts = np.array([found.counts[0], 300 - found.counts[0], 0])
    assert smooth.certify_from_log(counts, counts, 300, 0.001) == tuple(found)


def test_draws_without_a_vote_count():
    smooth, votes = Smooth(ChannelMeans(), 3, 0.25), [900, 0, 0]
    radius = smooth.certify_from_log(votes, votes, 1000, 0.001)[1]
    assert radius == pytest.approx(0.25 * stats.norm.ppf(lower(900, 1000, 0.001)), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.certify_from_log([1, 2], [1, 2, 3], 6, 0.1), ValueError, r"counts_selection must have shape \[3\]"),
        (lambda s: s.certify_from_log([1, 2, 3], [1, 2, 3], 5, 0.1), ValueError, "n must be at least the 6 votes in"),
        (lambda s: s.certify_from_log([0, 0, 0], [1, 2, 3], 6, 0.1), ValueError, "sum of counts_selection must be from"),
        (lambda s: s.certify_from_log_cpm([1, 2, 3], [1, 2, 3], 6, 5, 0.1), ValueError, "N0 must be at least the 6 votes"),
        (lambda s: s.certify_from_log_cpm([1, 2, 3], [1, 2, 3], 5, 6, 0.1), ValueError, "N must be at least the 6 votes"),
        (
            lambda s: s.certify_from_log_cpm([1.0, 2, 3], [1, 2, 3], 6, 6, 0.1),
            TypeError,
            "counts_selection must be an integer",
        ),
        (lambda s: s.certify_from_log_cpm([1, 2, 3], [1, 2, 3], 6, 6, 0.1, "R3"), ValueError, "mode must be one of"),
        (
            lambda s: s.certify_from_log_bonferroni([1, 2, 3], [1, 2, -3], 6, 6, 0.1),
            ValueError,
            "counts_estimation must be at",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(Smooth(ChannelMeans(), 3, 0.25))


@pytest.mark.parametrize(
    "row", ["0\t1\t[1, 2", "0\t1", "0\tone\t[1, 2]", "0\t1\t[1, 2, 3]", "0\t1\t[[1]]", "0\t1\t[1.5, 2]"]
)
def test_logs_that_are_not_read(row, tmp_path):
    (tmp_path / "log.txt").write_text(f"idx\tlabel\tcounts\n0\t1\t[3, 4]\n{row}\n")
    with pytest.raises(ValueError, match=r"log\.txt must hold idx, label and a list of counts, .* in line 3"):
        load_counts(tmp_path / "log.txt")


def test_nothing_in_a_log_is_run(tmp_path):
    (tmp_path / "log.txt").write_text(
        f"idx\tlabel\tcounts\n0\t1\t__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()\n"
    )
    with pytest.raises(ValueError, match="in line 2"):
        load_counts(tmp_path / "log.txt")
    assert not (tmp_path / "x").exists()
