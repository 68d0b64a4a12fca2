"""From certificates to tables, figures, frames and bars, as in a notebook."""

import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
import torch
from tqdm.std import tqdm

import rsfast
from rsfast import Certificate, Gaussian, Softmax, Votes, results
from rsfast._progress import progress_bar
from rsfast.results import from_certificates
from rsfast.runs.plot import plot

HOSTILE = "<script>alert(1)</script>"


def certificate(prediction, radius, input_id, **more):
    fields = {"norm": "l2", "p_lower": 0.8, "p_upper": 0.2, "counts": (90, 7), "n0": 10, "n": 100, "alpha": 0.05}
    fields |= {"rule": "one_vs_rest", "bound": "clopper_pearson", "head": Votes(), "noise": Gaussian(0.5)}
    fields |= {"seed": 0, "stream_version": 1, "input_id": input_id, "max_samples": 100}
    return Certificate(prediction, radius, **{**fields, **more})


FOUND = [certificate(1, 0.5, 10), certificate(0, 0.25, 11), certificate(rsfast.ABSTAIN, 0.0, 12), certificate(1, 0.75, 13)]


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.cells += [""] if tag in ("td", "th") else []

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_certificates_as_results():
    run = from_certificates(FOUND, [1, 1, 0, 1], names=list("abcd"), class_names=["no", "yes"])
    assert run.idx.tolist() == [10, 11, 12, 13]
    assert run.correct.tolist() == [True, False, False, True]
    assert results.certified_accuracy(run, [0, 0.5, 0.6]).tolist() == [0.5, 0.5, 0.25]
    assert (run.sigma, run.n, run.alpha, run.norm) == (0.5, 100, 0.05, "l2")
    assert (run.names, run.class_names) == (list("abcd"), ["no", "yes"])
    assert not run.stopped_early
    assert not from_certificates(FOUND).labelled
    assert from_certificates(iter(FOUND), torch.tensor([1, 1, 0, 1])).correct.tolist() == run.correct.tolist()


def test_settings_that_differ_are_unknown():
    run = from_certificates([FOUND[0], replace(FOUND[1], alpha=0.01, max_samples=200, rule="top_two")])
    assert run.alpha is None
    assert run.n is None
    assert "rule" not in run.sidecar
    assert run.sidecar["bound"] == "clopper_pearson"


def test_an_early_stop_shows():
    run = from_certificates([replace(FOUND[0], max_samples=1000), FOUND[1]], [1, 1])
    assert run.stopped_early
    (note,) = results.notes({"run": run})
    assert note.startswith("run: sampling of some images stopped before all samples were drawn. With all samples ACR")
    assert results.caveats({"run": run}) == ["stopped early, so figures are bounds: run"]


def test_certify_to_table_and_figure(tmp_path):
    model = lambda x: torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1)  # noqa: E731
    images = torch.stack([torch.full((1, 4, 4), value) for value in (0.9, 0.1, 0.8)])
    found = rsfast.certify(model, images, Gaussian(0.1), num_classes=2, n=500, seed=1)
    run = from_certificates(found, [0, 1, 1])
    assert run.radius.tolist() == [each.radius for each in found]
    assert "66.7%" in run.table([0], "latex").replace("\\", "")
    figure = run.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.axes[0].get_ylabel() == "certified accuracy"
    run.plot(tmp_path / "a.pdf", title="three")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert plot({"run": run}, tmp_path / "b.png").axes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "found must hold at least one certificate, got none"),
        (([1],), TypeError, "found must hold certificates, got a int"),
        (([FOUND],), TypeError, r"got a list; of several heads, pass those of one, as \[each\[0\] for each in found\]"),
        (([FOUND[0], replace(FOUND[1], noise=Gaussian(1.0))],), ValueError, "found must hold certificates of one noise"),
        (([FOUND[0], replace(FOUND[1], top_k=2)],), ValueError, "found must hold certificates of one top_k, got 1 and 2"),
        ((FOUND, [1]), ValueError, "labels must be one a certificate, 4 in all, got 1"),
        ((FOUND, [1, 1, 0, 1.5]), TypeError, "labels must be an int, got 1.5"),
        ((FOUND, None, ["a"]), ValueError, "names must be one a certificate, 4 in all, got 1"),
        ((FOUND, [1, 1, 0, 2], None, ["a", "b"]), ValueError, "class_names must name the classes from 0 to 2, got 2 names"),
    ],
    ids=str,
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        from_certificates(*arguments)


def test_rows_and_frames():
    row = FOUND[0].to_row()
    assert all(value is None or isinstance(value, int | float | str) for value in row.values())
    assert (row["count"], row["count_of_next"], row["noise"], row["head"]) == (90, 7, "Gaussian(sigma=0.5)", "Votes()")
    assert row["execution"] == ""
    changed = replace(FOUND[0], execution=rsfast.Execution(autocast="bfloat16", compile=True))
    assert changed.to_row()["execution"] == "autocast = bfloat16, compile = True"
    frame = rsfast.to_frame(FOUND)
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(map(Certificate.to_row, FOUND)))
    assert frame["radius"].tolist() == [0.5, 0.25, 0.0, 0.75]
    assert frame["radius"].dtype == np.float64
    assert frame.columns[:3].tolist() == ["input_id", "prediction", "radius"]
    assert rsfast.to_frame([]).empty


def test_frames_of_several_heads():
    model = lambda x: torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1)  # noqa: E731
    heads = [Votes(), Softmax(0.5)]
    found = rsfast.certify(model, torch.full((2, 1, 2, 2), 0.9), Gaussian(0.1), num_classes=2, n=500, seed=1, head=heads)
    frame = rsfast.to_frame(found)
    assert frame["input_id"].tolist() == [0, 0, 1, 1]
    assert frame["head"].tolist() == ["Votes()", "Softmax(temperature=0.5)"] * 2
    assert frame["radius"].tolist() == [each.radius for of_input in found for each in of_input]
    with pytest.raises(TypeError, match=r"^found must hold certificates, or a list of them for each input, got 'a'$"):
        rsfast.to_frame(["a"])


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame needs pandas, which `pip install pandas` installs"):
        rsfast.to_frame(FOUND)


def test_notebooks_show_tables():
    shown = Cells(FOUND[0]._repr_html_())
    row = FOUND[0].to_row()
    assert shown.cells == [text for pair in row.items() for text in map(str, pair)]
    hostile = Cells(replace(FOUND[0], backend=HOSTILE)._repr_html_())
    assert HOSTILE in hostile.cells
    assert "script" not in hostile.tags
    run = from_certificates(FOUND)
    page = Cells(run._repr_html_())
    assert [cell.strip() for cell in page.cells[:3]] == ["run", "images", "sigma"]
    assert "right or wrong" in page.cells[-1]
    assert "script" not in Cells(replace(run, sidecar={"norm": HOSTILE})._repr_html_()).tags


class InNotebook(tqdm):
    """A bar as a notebook has it, which writes to no terminal."""


InNotebook.__module__ = "tqdm.notebook"


def test_a_notebook_shows_the_bar(capsys):
    assert progress_bar(total=1).disable  # no terminal here
    assert not progress_bar(total=1, make=InNotebook).disable
    assert progress_bar(total=1, make=InNotebook, disable=True).disable
    assert [*progress_bar(range(3), make=InNotebook)] == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
