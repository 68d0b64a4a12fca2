"""The documentation: its code runs, its commands parse, its links lead somewhere, and the site looks right in a browser."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import made_once
from test_browser import CHROMIUM, chromium, luminance

import rsfast
from benchmarks.paper import examples
from rsfast.cli import _parser

markdown_it = pytest.importorskip("markdown_it", reason='pip install ".[docs]"')

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATED = (DOCS / "_build", DOCS / "gallery")


def written(pattern):
    """The files of docs/ that people wrote."""
    return [path for path in sorted(DOCS.rglob(pattern)) if not any(map(path.is_relative_to, GENERATED))]


PAGES = [*sorted(ROOT.glob("*.md")), *written("*.md"), *sorted(ROOT.glob("benchmarks/results/*.md"))]
TEXTS = [*written("*.rst"), *sorted(ROOT.glob("examples/*.rst"))]
EXAMPLES = set(examples())
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def tokens(page):
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page, *languages):
    """The line, the language and the text of the page's blocks in these languages."""
    for token in tokens(page):
        if token.type == "fence" and token.info in languages:
            yield token.map[0] + 2, token.info, token.content


def test_blocks_links_and_pictures_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md#c) ![d](e.png)\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n")
    assert list(blocks(page, "python", "py")) == [(4, "python", "x = 1\n")]
    assert [link.attrs["href"] for link in inline(page, "link_open")] == ["b.md#c"]
    assert [picture.content for picture in inline(page, "image")] == ["d"]


@pytest.mark.slow
@each_page
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page are one program; those marked ``py`` are part of another, and only have to be Python."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "docs"}
    for line, language, text in blocks(page, "python", "py"):
        code = compile("\n" * (line - 1) + text, page, "exec", dont_inherit=True)
        if language == "python":
            exec(code, namespace)


def commands(text):
    """The arguments of each command ``rsfast`` in a block of a shell; those with an ellipsis are no whole commands."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        words = list(takewhile(lambda word: word not in ("|", "||", "&&", ";", ">", "2>", "&"), words))
        if "rsfast" in words and "..." not in words:
            before, after = words[: words.index("rsfast")], words[words.index("rsfast") + 1 :]
            if before[-1:] == ["-m"] or all("=" in word for word in before):  # torchrun -m rsfast, NAME=value rsfast
                yield after


def test_commands_are_found():
    text = "$ rsfast certify --sigma 0.5 \\\n  --out run | less\nA=1 rsfast plot x\npip install rsfast\nrsfast ... # no\n"
    assert list(commands(text)) == [["certify", "--sigma", "0.5", "--out", "run"], ["plot", "x"]]
    assert list(commands("torchrun --nproc-per-node 2 -m rsfast doctor > x")) == [["doctor"]]


@each_page
def test_commands_parse(page, capsys):
    for line, _, text in blocks(page, "sh"):
        for arguments in commands(text):
            try:
                _parser().parse_args(arguments)
            except SystemExit as ended:
                if ended.code:
                    pytest.fail(f"line {line}: rsfast {shlex.join(arguments)}: {capsys.readouterr().err}")


def inline(page, kind):
    return [each for token in tokens(page) for each in token.children or () if each.type == kind]


@cache
def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    found, seen = set(), {}
    for opening, heading in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            text = "".join(each.content for each in heading.children if each.type in ("text", "code_inline", "softbreak"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
            seen[slug] = seen.get(slug, 0) + 1
    return found


@each_page
def test_links_lead_somewhere(page):
    for link in inline(page, "link_open"):
        target = urlsplit(unquote(link.attrs["href"]))
        if target.scheme:
            continue
        path = (page.parent / target.path).resolve() if target.path else page
        if path.is_relative_to(DOCS / "gallery"):
            assert path.stem in EXAMPLES | {"index"}, (page, link.attrs["href"])
        else:
            assert path.exists(), (page, link.attrs["href"])
        if target.fragment and path.suffix == ".md":
            assert target.fragment in anchors(path), (page, link.attrs["href"])


@each_page
def test_pictures_have_a_text(page):
    assert all(picture.content for picture in inline(page, "image"))
    assert all(re.search(r'\balt="[^"]', tag) for tag in re.findall(r"<img\b[^>]*>", page.read_text()))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pictures_in_restructured_text_have_a_text(path):
    for _, options in re.findall(r"\.\. (image|figure):: .*\n((?: +:.*\n)*)", path.read_text()):
        assert ":alt: " in options, path


def test_the_gallery_has_every_example_once():
    listed = re.findall(r"^ +examples/(\w+)\.py$", (ROOT / "examples" / "index.rst").read_text(), re.M)
    assert sorted(listed) == sorted(EXAMPLES)


def runs(line):
    """Whether an import line does, or names what to install of a project whose own package it needs."""
    try:
        exec(line, {})
    except ImportError as error:
        return "pip install" in str(error)
    return True


def test_every_drop_in_imports():
    lines = re.findall(r"`(from rsfast[^`]* import [^`]+)`", (DOCS / "drop-ins.md").read_text())
    assert all(map(runs, lines))
    modules = {path.stem for path in (ROOT / "rsfast" / "compat").glob("[!_]*.py")} - {"cohen"}
    assert modules <= {word for line in lines for word in re.findall(r"rsfast\.compat\.(\w+)", line)}
    assert "from rsfast import Smooth" in lines


# The site

VIEWED = ("docs/index", "docs/guide/heads", "docs/reference/certify", "docs/theory/potential")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site without the examples' results."""
    pytest.importorskip("sphinx", reason='pip install ".[docs]"')

    def build(folder):
        source = folder / "source"
        left_out = shutil.ignore_patterns(".*", "_build", "gallery", "build", "dist", "demo", "*.so", "*.egg-info")
        shutil.copytree(ROOT, source, ignore=left_out)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-D", "plot_gallery=0"]
        command += ["-d", folder / "doctrees", ".", folder / "html"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(command, cwd=source, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "site", build) / "html"


class Page(HTMLParser):
    """The ids, links, pictures and resources of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.pictures, self.resources = set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append(attributes)
        self.resources += [
            value for name, value in attributes.items() if name == "src" or (tag == "link" and name == "href")
        ]


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert site / "docs" / "reference" / "certify.html" in found
    assert all(page.links for page in found.values())
    assert any(page.pictures for page in found.values())
    return found


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(unquote(link))
            if target.scheme or target.netloc:
                continue
            other = (path.parent / target.path).resolve() if target.path else path
            assert other.exists(), (path, link)
            if target.fragment and other in pages:
                assert target.fragment in pages[other].ids, (path, link)


@pytest.mark.slow
def test_pictures_of_the_site_have_a_text(pages):
    for path, page in pages.items():
        # A thumbnail stands beside its title, and has the empty text of a picture that adds nothing.
        assert all(picture.get("alt", "") or "_thumb." in picture["src"] for picture in page.pictures), path


@pytest.mark.slow
def test_the_site_needs_no_network(pages):
    for path, page in pages.items():
        assert not [each for each in page.resources if urlsplit(each).netloc], path


@pytest.mark.slow
def test_the_reference_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    found = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert {f"rsfast.{name}" for name in rsfast.__all__} <= found
    commands = {name for name in inventory["std:label"] if name.startswith("rsfast-")}
    assert {"rsfast-certify", "rsfast-report"} <= commands


# Measures pages in frames of two widths, once their formulas are set.
PROBE = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  await frame.contentWindow.MathJax?.startup?.promise;
  const page = frame.contentDocument, look = frame.contentWindow.getComputedStyle(page.body);
  const shown = (each) => each.getBoundingClientRect().width > 0;
  found[frame.id] = {
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    cut: [...page.querySelectorAll("main :is(p, li, dt, dd, h1, h2, h3)")].filter(
      (each) => !each.closest("table, pre") && each.getBoundingClientRect().right > frame.clientWidth
    ).length,
    paper: look.backgroundColor,
    ink: look.color,
    formulas: page.querySelectorAll(".math").length,
    set: [...page.querySelectorAll(".math mjx-container mjx-math")].filter(shown).length,
  };
}
document.body.textContent = JSON.stringify(found);
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; `make browser` installs it")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_in_a_browser(site, dark, tmp_path):
    """On a phone and a desk: nothing is wider than the window, formulas show, and the console is empty."""
    body = "<style>iframe {height: 800px; border: 0}</style>"
    for page in VIEWED:
        for width in (390, 1200):
            body += f'<iframe id="{page} {width}" style="width: {width}px" src="{site.as_uri()}/{page}.html"></iframe>'
    outside = tmp_path / "frames.html"
    outside.write_text(f"<body>{body}<script>addEventListener('load', async () => {{ {PROBE} }})</script></body>")
    arguments = ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    arguments += ["--window-size=1600,900", *["--blink-settings=preferredColorScheme=0"] * dark]
    dom, log = chromium(tmp_path, *arguments, outside.as_uri())
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.S)[1]))
    assert len(found) == 2 * len(VIEWED)
    for name, page in found.items():
        assert page["overflow"] <= 0, name
        assert page["cut"] == 0, name
        low, high = sorted([luminance(page["paper"]), luminance(page["ink"])])
        assert low < 250 < 500 < high, name
        assert (luminance(page["paper"]) < 250) == dark, name
        assert page["set"] == page["formulas"], name
    assert found["docs/theory/potential 390"]["formulas"] > 0
    log = [line for line in log.splitlines() if ":CONSOLE" in line and "[PST]: " not in line]  # the theme's own remarks
    assert log == []
