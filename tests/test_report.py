"""Reports: their figures are those of `results`, pages are whole and complete in themselves, and no name becomes HTML."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rsfast
from rsfast import results
from rsfast.cli import main
from rsfast.noise import NORMS
from rsfast.runs.guarantee import command, guarantee, settings
from rsfast.runs.layout import Skipped
from rsfast.runs.pictures import thumbnail
from rsfast.runs.report import MOST_ROWS, SHOWN, by_class, margins, report
from rsfast.runs.results import Results

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
VOID = {"meta", "link", "br", "img", "hr", "input"}
SIDECAR = {
    "command": "rsfast certify --model timm:resnet18 --data data.npz --sigma 0.25 --out run",
    "noise": {"name": "Gaussian", "sigma": 0.25},
    "n": 1000,
    "n0": 100,
    "alpha": 0.001,
    "seed": 7,
    "model": "timm:resnet18",
    "versions": {"rsfast": "0.1.0", "torch": "2.13.0"},
}


def random_run(rows=60, classes=3, seed=1, sidecar=SIDECAR, **more):
    rng = np.random.default_rng(seed)
    label, predict = rng.integers(0, classes, rows), rng.integers(-1, classes, rows)
    radius = np.where(predict == -1, 0.0, rng.gamma(2.0, 0.2, rows))
    return Results(np.arange(rows), label, predict, radius, (predict == label), sidecar=sidecar, **more)


class Page(HTMLParser):
    """The tags of a page, its texts by tag, and the cells of its tables; fails on a tag that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tables, self.sources, self.tags = [], {}, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.texts.setdefault(self.open[-1], []).append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip()

    def text(self, tag):
        return " ".join(" ".join(self.texts.get(tag, [])).split())


def table_with(page, *header):
    """The rows of the only table with such a header."""
    (found,) = [table for table in page.tables if table[0][: len(header)] == list(header)]
    return found[1:]


def test_figures_are_those_of_the_results():
    run = random_run()
    page = Page(report({"run": run}, radii=[0, 0.25, 0.5]))
    (row,) = table_with(page, "run", "images")
    accuracies = results.certified_accuracy(run, [0, 0.25, 0.5])
    assert row[-3:] == [f"{each:.1%}" for each in accuracies]
    assert f"{results.average_certified_radius(run):.3f}" in row
    assert f"{results.abstention_rate(run):.1%}" in row
    rows = table_with(page, "idx", "label", "answer", "l2 radius", "verdict")
    assert [int(each[0]) for each in rows] == run.idx.tolist()
    assert all(float(each[3]) <= radius for each, radius in zip(rows, run.radius, strict=True))
    right = [each[4] == "right" for each in rows]
    assert right == run.correct.tolist()
    assert sum(each[4] == "abstained" for each in rows) == (run.predict == -1).sum()


def test_classes_and_confusion():
    run = random_run(rows=200)
    page = Page(report({"run": run}))
    for number, images, accuracy, abstained, mean in table_with(page, "class", "images", "accuracy", "abstained"):
        mine = run.label == int(number)
        assert int(images) == mine.sum()
        assert accuracy == f"{(run.correct & mine).sum() / mine.sum():.1%}"
        assert abstained == f"{((run.predict == -1) & mine).sum() / mine.sum():.1%}"
        assert float(mean) == pytest.approx(np.where(run.correct, run.radius, 0)[mine].mean(), rel=1e-3)
    matrix = table_with(page, "", "0", "1", "2", "abstained")
    counts = [[int(cell or 0) for cell in row[1:]] for row in matrix]
    assert counts == [[((run.label == i) & (run.predict == j)).sum() for j in (0, 1, 2, -1)] for i in range(3)]


def test_many_classes_have_their_most_frequent_confusions():
    run = random_run(rows=500, classes=30)
    page = Page(report({"run": run}))
    rows = table_with(page, "label", "answer", "images")
    label, answer, count = rows[0]
    pairs = (run.label * 100 + run.predict)[(run.label != run.predict) & (run.predict != -1)]
    assert int(count) == np.unique(pairs, return_counts=True)[1].max()
    assert int(count) == ((run.label == int(label)) & (run.predict == int(answer))).sum()
    assert len(rows) == 30
    assert "rarer ones are left out" in page.text("p")


def test_no_name_becomes_html():
    rows = 6
    run = random_run(
        rows,
        sidecar={**SIDECAR, "command": f"rsfast {HOSTILE}", "model": HOSTILE, "class_names": [HOSTILE] * 3},
        names=[f"{i}{HOSTILE}" for i in range(rows)],
        skipped=[Skipped(9, HOSTILE, HOSTILE)],
    )
    text = report({HOSTILE: run, "b": random_run(rows)}, images={HOSTILE: HOSTILE})
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert HOSTILE in page.texts["h2"]
    assert "alert(2)" in page.text("dd")
    for format in ("markdown", "latex"):
        assert "<script>" not in report({HOSTILE: run}, format).replace("    rsfast <script>", "")


def test_a_page_is_complete_in_itself():
    run = random_run(names=[f"{i}.png" for i in range(60)])
    text = report({"run": run}, images={"run": lambda i: np.full((3, 8, 8), i / 60, dtype=np.float32)})
    sources = Page(text).sources
    assert len([source for source in sources if source.startswith("data:image/png")]) == 2 * SHOWN
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(http" not in text
    assert re.findall(r'\bid="([^"]*)"', text) == list(dict.fromkeys(re.findall(r'\bid="([^"]*)"', text)))


def test_hardest_and_safest():
    """The most surely wrong first; each with the picture of its own idx and its certificate."""
    label = np.zeros(5, dtype=np.int64)
    predict, radius = np.array([0, 1, -1, 0, 1]), np.array([2.0, 0.5, 0, 0.25, 1.5])
    run = Results(np.array([10, 20, 30, 40, 50]), label, predict, radius, predict == label)
    assert margins(run).tolist() == [2.0, -0.5, 0, 0.25, -1.5]
    asked = []

    def picture(idx):
        asked.append(idx)
        return np.full((1, 2, 2), idx, dtype=np.uint8)

    text = report({"run": run}, images={"run": picture})
    assert sorted(set(asked)) == [10, 20, 40, 50]
    captions = [
        " ".join(re.sub("<[^>]*>", " ", each).split()) for each in re.findall(r"<figcaption>.*?</figcaption>", text, re.S)
    ]
    assert captions == [
        "1 wrong radius 1.500000 label 0 idx 50",
        "1 wrong radius 0.5000000 label 0 idx 20",
        "0 right radius 2.000000 idx 10",
        "0 right radius 0.2500000 idx 40",
    ]
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]*)"', text)
    values = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))))[0, 0] for each in pictures]
    assert values == [50, 20, 10, 40]


@pytest.mark.parametrize(
    ("image", "mode", "corner"),
    [
        (torch.full((3, 4, 4), 0.5), "RGB", [128, 128, 128]),
        (np.full((4, 4), 7, dtype=np.uint8), "L", 7),
        (np.full((4, 4, 4), 9, dtype=np.uint8), "RGB", [9, 9, 9]),
        (np.array([[[-1.0, 3.0]]]), "L", 0),
    ],
    ids=["floats", "grey", "alpha", "stretched"],
)
def test_thumbnails(image, mode, corner):
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail(image).partition(",")[2])))
    assert picture.mode == mode
    assert np.asarray(picture)[0, 0].tolist() == corner


def test_large_pictures_are_made_small():
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros((3, 300, 600), dtype=np.uint8)).partition(",")[2])))
    assert picture.size == (128, 64)


def test_reasons_for_no_pictures():
    run = random_run()

    def unreadable(_):
        raise ValueError("a.png is cut off")

    runs = {**dict.fromkeys("abcd", run), "e": replace(run, idx=np.full(60, -1)), "f": run}
    images = {
        "a": "there are none",
        "b": unreadable,
        "c": lambda _: np.zeros(5),
        "d": lambda _: np.full((1, 2, 2), np.nan),
        "e": unreadable,
    }
    page = Page(report(runs, images=images))
    assert "img" not in page.tags
    said = [text for text in page.texts["span"] if text.startswith("No pictures: ")]
    assert said[:2] == ["No pictures: there are none.", "No pictures: a.png is cut off."]
    assert said[2].endswith("got shape [5].")
    assert said[3].endswith("got NaN or infinity.")
    assert "which image is in which row" in said[4]
    assert len(said) == 5


@pytest.mark.slow
def test_every_kind_of_run():
    """Without labels, of predictions, stopped early, of one image, all abstained, without a sidecar, unfinished."""
    run = random_run()
    none = np.full(60, -1)
    kinds = {
        "unlabelled": replace(run, label=none, correct=np.zeros(60, dtype=bool)),
        "predictions": replace(run, radius=np.zeros(60), has_radius=False),
        "stopped": replace(run, sidecar={**SIDECAR, "radius": 0.25}),
        "stopped by rtol": replace(run, sidecar={**SIDECAR, "rtol": 0.1}),
        "one": random_run(rows=1),
        "abstained": replace(run, predict=none, radius=np.zeros(60), correct=np.zeros(60, dtype=bool)),
        "table": replace(run, sidecar=None),
        "unfinished": replace(run, sidecar={**SIDECAR, "start": 0, "end": 100, "skip": 1}),
    }
    text = report(kinds)
    page, (top, *sections) = Page(text), text.split('<section class="run">')
    plain = " ".join(re.sub("<[^>]*>", " ", top).split())
    for note in (
        "unlabelled: no labels: shares of images certified at r, right or wrong",
        "stopped: sampling stopped once l2 radius 0.25 was decided",
        "stopped by rtol: sampling stopped once the l2 radius was known to 0.1 of its size",
        "stopped early, so figures are bounds: stopped, stopped by rtol",
        "unfinished: not finished: 60 of 100 images",
    ):
        assert note in plain
    assert len(table_with(page, "run", "images")) == len(sections) == len(kinds)
    section = dict(zip(kinds, (" ".join(re.sub("<[^>]*>", " ", each).split()) for each in sections), strict=True))
    for name, said in {
        "unlabelled": "By answer",
        "predictions": "no radius is certified",
        "stopped": "accuracy at least",
        "one": "images 1",
        "abstained": "abstained 100.0%",
        "table": "No command is recorded",
        "unfinished": "60 of 100",
    }.items():
        assert said in section[name], name
    assert [row[0] for row in by_class(kinds["unlabelled"]).rows] == [(str(i), i) for i in range(3)]
    assert "svg" not in Page(report({"predictions": kinds["predictions"]})).tags
    for format in ("markdown", "latex"):
        text = report(kinds, format)
        assert all(name in text for name in kinds)


@pytest.mark.slow
def test_a_large_run_has_a_page_of_bounded_size():
    text = report({"run": random_run(50_000, classes=1000)})
    page = Page(text)
    assert len(text) < 600_000
    assert len(table_with(page, "idx", "label")) == MOST_ROWS
    assert f"The first {MOST_ROWS} rows; the run's table has {50_000 - MOST_ROWS} more." in page.text("p")


def test_guarantee_names_every_norm():
    run, texts = random_run(rows=3), []
    for norm in NORMS:
        noise = {name: value for name, value in SIDECAR.items() if name != "noise"}
        text = guarantee(replace(run, sidecar={**noise, "norm": norm}))
        assert text.startswith("Except with probability 0.001 for each image, no change")
        texts.append(text)
    assert len(set(texts)) == len(NORMS)
    assert guarantee(replace(run, sidecar={**SIDECAR, "alpha": 0.0})).startswith("Without any chance of error, no change")
    assert "norm that this table does not state" in guarantee(replace(run, sidecar=None))
    laplace = {**SIDECAR, "noise": {"name": "Laplace", "b": 0.5}}
    assert "no change whose l1 norm (input units)" in guarantee(replace(run, sidecar=laplace))
    assert "most often under Laplace, b = 0.5." in guarantee(replace(run, sidecar=laplace))
    top_five = guarantee(replace(run, sidecar={**SIDECAR, "top_k": 5}))
    assert "moves the answer out of the 5 classes that the model gives most often under Gaussian noise" in top_five
    assert "mean Softmax score" in guarantee(replace(run, sidecar={**SIDECAR, "head": {"name": "Softmax", "t": 0.5}}))


def test_the_command_has_the_seed():
    run = random_run(rows=3)
    assert command(run) == f"{SIDECAR['command']} --seed 7"
    for given in ("rsfast certify --seed 3 --out a", "rsfast certify --seed=3 --out a", "python mine.py"):
        assert command(replace(run, sidecar={**SIDECAR, "command": given})) == given
    assert command(replace(run, sidecar={**SIDECAR, "command": None})) is None
    shown = dict(settings(run))
    assert shown["noise"] == "Gaussian, sigma = 0.25"
    assert shown["versions"] == "rsfast 0.1.0, torch 2.13.0"
    long = dict(settings(replace(run, sidecar={**SIDECAR, "mean": [0.5] * 1000})))["mean"]
    assert len(long) == 300


def test_markdown_and_latex():
    runs = {"a|b_c": random_run(), "d": random_run(seed=2)}
    markdown = report(runs, "markdown", radii=[0, 0.25])
    assert results.table(runs, [0, 0.25], "markdown") in markdown
    assert r"## a\|b\_c" in markdown
    assert "    rsfast certify" in markdown
    latex = report(runs, "latex", radii=[0, 0.25])
    assert results.table(runs, [0, 0.25], "latex") in latex
    assert r"\caption{a|b\_c, by class.}" in latex
    assert latex.count(r"\toprule") == 3
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    text = report({"a_b 50%": random_run()}, "latex")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + text + "\\end{document}"
    (tmp_path / "a.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "a.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_envelope():
    runs = {"a": random_run(), "b": replace(random_run(), radius=random_run().radius * 2)}
    page = Page(report(runs, radii=[0, 0.5], envelope=True))
    rows = table_with(page, "run", "images")
    best = results.envelope(runs, [0, 0.5])
    assert rows[-1][0] == "upper envelope *"
    assert rows[-1][-2:] == [f"{each:.1%}" for each in best]
    assert "chosen for all images at once" in page.text("p")


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^format must be one of 'html', 'markdown', 'latex', got 'pdf'$"):
        report({"run": random_run()}, "pdf")
    with pytest.raises(ValueError, match=r"^results_by_name must hold at least one run, got none$"):
        report({})


def make_run(folder, images):
    model = lambda x: torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1)  # noqa: E731
    np.savez("data.npz", images=images.numpy(), labels=[0, 1, 1])
    about = {"data": "data.npz", "data_sha256": None, "command": "rsfast certify --out run"}
    run = rsfast.Run(model, images, rsfast.Gaussian(0.1), folder, num_classes=2, labels=[0, 1, 1], seed=1, about=about)
    return run.certify(n=200)


@pytest.mark.slow
def test_command(tmp_path, monkeypatch, capsys):
    """Pictures come from the data that the run records; from --data; or there is a reason."""
    monkeypatch.chdir(tmp_path)
    images = torch.stack([torch.full((3, 4, 4), value) for value in (0.9, 0.1, 0.8)])
    make_run("run", images)
    assert main(["report", "run", "--out", "report.html"]) == 0
    page = Page(Path("report.html").read_text())
    assert page.tags.count("img") == 2
    assert page.text("pre") == "rsfast certify --out run --seed 1"
    Path("data.npz").rename("moved.npz")
    main(["report", "run", "--out", "report.html"])
    assert "No pictures: data data.npz" in Page(Path("report.html").read_text()).text("span")
    main(["report", "a=run", "b=run", "--data", "moved.npz", "--out", "report.html", "--envelope", "--radii", "0", "0.1"])
    assert Page(Path("report.html").read_text()).tags.count("img") == 4
    sidecar = json.loads(Path("run/results.json").read_text())
    for name, reason in (("os:getcwd", "which is code that a report does not run"), ("run/results.tsv", "No pictures")):
        Path("run/results.json").write_text(json.dumps({**sidecar, "data": name}))
        main(["report", "run", "--out", "report.html"])
        assert reason in Page(Path("report.html").read_text()).text("span")
    main(["report", "run", "--format", "latex", "--out", "report.tex"])
    assert r"\toprule" in Path("report.tex").read_text()
    for arguments, message in (
        (["--data", "none.npz"], "none.npz"),
        (["--out", "none/report.html"], "--out must be in a folder that exists, got 'none/report.html'"),
    ):
        with pytest.raises(SystemExit):
            main(["report", "run", "--out", "report.html", *arguments])
        assert message in capsys.readouterr().err


def test_pictures_are_shown_as_the_model_saw_them(tmp_path, monkeypatch):
    """Of several sizes, resized and cropped as the run records it; another folder of that name is not shown."""
    from rsfast.loading.data import load_data
    from rsfast.loading.preprocessing import Preprocessing

    monkeypatch.chdir(tmp_path)
    for name, size in (("cat/a", (8, 12)), ("cat/b", (20, 10)), ("dog/c", (10, 10))):
        Path(f"pictures/{name}").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(f"pictures/{name}.png")
    preprocessing = Preprocessing(size=(4, 4), resize=6)
    data = load_data("pictures", preprocessing=preprocessing)
    model = lambda x: torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1)  # noqa: E731
    about = {"data": "pictures", "data_sha256": data.digest, "preprocessing": preprocessing.to_dict()}
    rsfast.Run(model, data, rsfast.Gaussian(0.1), "run", num_classes=2, seed=1, about=about).certify(n=100)
    main(["report", "run", "--out", "report.html"])
    text = Path("report.html").read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', text)
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each, _ in pictures] == [(4, 4)] * 2
    assert "size = [4, 4], resize = 6, interpolation = bicubic" in text  # and nothing of mean and std, which are None
    assert "mean = ," not in text
    assert all(re.fullmatch(r"(cat/a|cat/b|dog/c)\.png \(idx \d\)", name) for _, name in pictures)
    assert {"0 cat", "1 dog"} == {row[2] for row in table_with(Page(text), "idx", "name", "label")}
    Path("pictures/cat/d.png").write_bytes(Path("pictures/cat/a.png").read_bytes())
    main(["report", "run", "--out", "report.html"])
    assert "is not the data of the run: it has another SHA-256" in Page(Path("report.html").read_text()).text("span")
