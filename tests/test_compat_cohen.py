"""Cohen et al.'s loop, and those of the projects that share its core.py: SmoothAdv, Consistency, SmoothMix, CAT-RS."""

import pandas
from peer_loops import EVEN, NEAR, ChannelMeans, assert_alike, both
from scipy.stats import binomtest

import rsfast
from rsfast.compat.cohen import Smooth
from rsfast.loop2019 import Loop2019

CERTIFY = r"""
from core import Smooth
import datetime
import io
from time import time

smoothed_classifier = Smooth(base_classifier, num_classes, sigma)
f = io.StringIO()
print("idx\tlabel\tpredict\tradius\tcorrect\ttime", file=f, flush=True)
for i in range(len(dataset)):
    if i % skip != 0:
        continue
    (x, label) = dataset[i]
    before_time = time()
    prediction, radius = smoothed_classifier.certify(x, N0, N, alpha, batch)
    after_time = time()
    correct = int(prediction == label)
    time_elapsed = str(datetime.timedelta(seconds=(after_time - before_time)))
    print("{}\t{}\t{}\t{:.3}\t{}\t{}".format(
        i, label, prediction, radius, correct, time_elapsed), file=f, flush=True)
    answers.append((prediction, radius))
f.seek(0)
"""

PREDICT = r"""
from core import Smooth

smoothed_classifier = Smooth(base_classifier, num_classes, sigma)
for i in range(len(dataset)):
    (x, label) = dataset[i]
    prediction = smoothed_classifier.predict(x, N, alpha, batch)
    answers.append(prediction)
"""


class Theirs(Loop2019):
    ABSTAIN = -1

    def predict(self, x, n, alpha, batch_size):
        counts = self.sample_noise(x, n, batch_size)
        top2 = counts.argsort()[::-1][:2]
        first, second = counts[top2[0]], counts[top2[1]]
        return -1 if binomtest(first, first + second, 0.5).pvalue > alpha else int(top2[0])


def test_certify_loop(monkeypatch):
    """A class that is not even comes out with a chance below 1e-6; `assert_alike` errs with 1e-6."""
    given = {"base_classifier": ChannelMeans(), "num_classes": 3, "sigma": 0.25, "skip": 2}
    dataset = [(NEAR, 0), (NEAR, 1)] * 80 + [(EVEN, 0)] * 10
    given |= {"dataset": dataset, "N0": 30, "N": 300, "alpha": 0.001, "batch": 128}
    theirs, ours = both(monkeypatch, CERTIFY, "core", "rsfast", {"Smooth": Theirs}, **given)
    assert {label for label, _ in ours["answers"][:80]} == {label for label, _ in theirs["answers"][:80]} == {0}
    assert_alike([radius for _, radius in ours["answers"][:80]], [radius for _, radius in theirs["answers"][:80]])
    assert ours["answers"][80:] == theirs["answers"][80:] == [(-1, 0.0)] * 5
    assert {(type(label), type(radius)) for label, radius in ours["answers"]} == {(int, float)}
    table = pandas.read_csv(ours["f"], delimiter="\t")
    assert [*table.columns] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert table["correct"].tolist() == [1] * 80 + [0] * 5


def test_predict_loop(monkeypatch):
    given = {"base_classifier": ChannelMeans(), "num_classes": 3, "sigma": 0.25, "N": 300, "alpha": 1e-6, "batch": 128}
    dataset = [(NEAR, 0)] * 5 + [(EVEN, 0)] * 5
    assert Smooth is rsfast.Smooth
    theirs, ours = both(monkeypatch, PREDICT, "core", "rsfast.compat.cohen", {"Smooth": Theirs}, dataset=dataset, **given)
    assert ours["answers"] == theirs["answers"] == [0] * 5 + [-1] * 5
    assert {type(label) for label in ours["answers"]} == {int}
