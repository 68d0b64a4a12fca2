"""rsfast.demo: it runs, and prints what the samples say."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

import rsfast
from rsfast import demo
from rsfast.runs.recertify import recertify

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_a_small_demo(tmp_path, capsys):
    demo.run(tmp_path, images=3, max_samples=2000)
    printed = capsys.readouterr().out
    assert (tmp_path / "certified_accuracy.png").stat().st_size > 10_000
    gains = re.findall(r"^(Votes|Softmax) +(\w+) +(\w+) +(0\.\d{4}) +([+-]\d+\.\d)%$", printed, re.MULTILINE)
    assert [(bound, rule) for _, bound, rule, *_ in gains] == [(bound, rule) for _, bound, rule in demo.COMPARED]
    acr = {row[:3]: float(row[3]) for row in gains}
    assert acr["Votes", "clopper_pearson", "one_vs_rest"] > 0.3
    assert acr["Votes", "randomized_clopper_pearson", "auto"] >= acr["Votes", "clopper_pearson", "auto"]
    assert acr["Softmax", "betting", "auto"] > acr["Softmax", "empirical_bernstein", "auto"]
    assert printed.splitlines()[1].startswith("rsfast decided all 3 test images at l2 radius 0.5 in ")
    assert re.search(r"The 2019 loop takes \d+\.\d s an image \(measured on 3\)\.$", printed, re.MULTILINE)
    assert re.search(
        r"^Both may take 2,000 samples an image, on \d+ threads; rsfast stops at a decision, after [\d,]+ ",
        printed,
        re.MULTILINE,
    )
    assert re.search(r"It certified \d of 3; of the 3 that both decided, \d alike\.$", printed, re.MULTILINE)
    for run, bound in (("softmax", "betting_sequence"), ("votes", "clopper_pearson")):
        assert len(recertify(tmp_path / run, tmp_path / f"{run} again", bound=bound).idx) == 3
    sidecar = tmp_path / "votes" / "results.json"
    sidecar.write_text(sidecar.read_text().replace('"command": "rsfast demo"', '"command": "rsfast certify"'))
    with pytest.raises(
        FileExistsError,
        match=r"votes must be a folder without a run, got one with results\.tsv; name another folder, or move that run away",
    ):
        demo.run(tmp_path)
    for name in ("votes", "softmax"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(
        FileExistsError,
        match=r"without a plot of another run, got one with certified_accuracy\.png; name another folder, or move that file",
    ):
        demo.run(tmp_path)
    assert capsys.readouterr().out == ""  # there was no work before
    with pytest.raises(ValueError, match="images must be from 1 to 500, got 501"):
        demo.run(tmp_path, images=501)


class Instant(demo.Loop2019):
    """A loop that takes no time."""

    def certify(self, *arguments):
        return 7, 0.6


def found(prediction, radius, n):
    kept = rsfast.certify(lambda x: x[:, :2], torch.zeros(1, 2), rsfast.Gaussian(1.0), num_classes=2, n0=100, n=20, seed=1)[
        0
    ]
    return dataclasses.replace(kept, prediction=prediction, radius=radius, n=n)


def test_the_loop_is_timed_on_as_many_images_as_time_allows():
    weights = {name: tensor.numpy() for name, tensor in demo.network().state_dict().items()}
    arguments = weights, np.zeros((5, 1, 8, 8), dtype=np.float32), 1000, 1, 1
    assert len(demo.time_2019(*arguments, make_loop=Instant)[0]) == 5
    assert demo.time_2019(*arguments, most_seconds=0, make_loop=Instant)[0] == [(7, 0.6)]


def test_the_first_line_tells_what_was_measured_from_what_follows():
    ours = [found(7, 0.55, 900), found(7, 0.2, 1900), found(1, 0.7, 2900), found(7, 0.7, 3900)]
    threads = torch.get_num_threads()
    assert demo.decided(ours, 5.84, [(7, 0.9), (-1, 0.0), (2, 0.8)], 5.94) == (
        "rsfast decided all 4 test images at l2 radius 0.5 in 5.8 s. "
        "The 2019 loop takes 5.9 s an image (measured on 3), so about 24 s for all 4.\n"
        f"Both may take 100,000 samples an image, on {threads} threads; rsfast stops at a decision, after 2,500 on average. "
        "It certified 3 of 4; of the 3 that both decided, 2 alike."
    )
