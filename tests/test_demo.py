"""rsfast.demo: it runs, and prints what the samples say."""

import re

import pytest
import torch

import rsfast
from rsfast import demo
from rsfast.recertify import recertify

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_a_small_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CAP", 2000)
    demo.run(tmp_path, images=3)
    printed = capsys.readouterr().out
    assert (tmp_path / "certified_accuracy.png").stat().st_size > 10_000
    gains = re.findall(r"^(Votes|Softmax) +(\w+) +(\w+) +(0\.\d{4}) +([+-]\d+\.\d)%$", printed, re.MULTILINE)
    assert [(bound, rule) for _, bound, rule, *_ in gains] == [(bound, rule) for _, bound, rule in demo.COMPARED]
    acr = {row[:3]: float(row[3]) for row in gains}
    assert acr["Votes", "clopper_pearson", "one_vs_rest"] > 0.3
    assert acr["Votes", "randomized_clopper_pearson", "auto"] >= acr["Votes", "clopper_pearson", "auto"]
    assert acr["Softmax", "betting", "auto"] > acr["Softmax", "empirical_bernstein", "auto"]
    assert re.search(r"Decided at radius 0\.5 with at most 2,000 samples an image: [\d,]+ of them on average", printed)
    for run, bound in (("softmax", "betting_sequence"), ("votes", "clopper_pearson")):
        assert len(recertify(tmp_path / run, tmp_path / f"{run} again", bound=bound).idx) == 3
    sidecar = tmp_path / "votes" / "results.json"
    sidecar.write_text(sidecar.read_text().replace('"command": "rsfast demo"', '"command": "rsfast certify"'))
    with pytest.raises(
        FileExistsError, match=r"votes/results\.tsv exists; name another folder, or move that run away first"
    ):
        demo.replace_run(
            tmp_path / "votes",
            rsfast.certify(lambda x: x[:, :2], torch.zeros(1, 2), rsfast.Gaussian(1.0), num_classes=2, n=20, seed=1)[0],
        )
    with pytest.raises(ValueError, match="images is 501; it must be from 1 to 500"):
        demo.run(tmp_path, images=501)
