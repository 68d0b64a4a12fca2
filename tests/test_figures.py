"""Figures in README and the pages: each comes from a file of benchmarks/results/ and a command, and agrees with the file."""

import json
import re
from importlib.util import find_spec

import pytest

from benchmarks import coverage
from benchmarks.figures import BLOCK, LINK, RESULTS, ROOT, SOURCE, TABLE, cells, main, pages, renewed, section
from rsfast.cli import COMMANDS

PAGES = pages()
FILES = sorted(RESULTS.glob("*.md"))
BY_HAND = {"by_hand.md", "cpu_xeon.md"}  # what no command writes
NO_FIGURES = {  # tables of numbers that were not measured, or that are the record of what ran
    "CONTRIBUTING.md": {"Python"},  # versions
    "ARCHITECTURE.md": {"stream"},  # numbers of streams
    "docs/faq.md": {"alpha"},  # a formula: the block below computes it
    "docs/guide/heads.md": {"head"},  # formulas
}
# What looks like a measured number in a sentence.
MEASURED = re.compile(
    r"\d ?(?:(?:x|\u00d7) (?:as|faster|slower|smaller)|times (?:as|faster|fewer|the (?:model|runs|time))"
    r"|% (?:larger|smaller|faster|slower|of the (?:mean|average))"
    r"|(?:ms|us|s) an? )"
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def exists(command):
    """Whether there is a command: a target of make, a module, a command of rsfast."""
    if found := re.fullmatch(r"make ([\w-]+)(?: [A-Z]+=.+)?", command):
        return re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    if found := re.match(r"python -m ([\w.]+)( |$)", command):
        return find_spec(found[1]) is not None
    found = re.match(r"rsfast (--help|\w+)", command)
    names = {"--help", *(command.__name__.rpartition(".")[2] for command in COMMANDS)}
    return found is not None and found[1] in names


def commands(text):
    return [" ".join(found.split()) for found in re.findall(r"`((?:make|python -m|rsfast)\s[^`]+)`", text)]


def test_commands_are_found():
    assert commands("`make\nbench`, `rsfast plot x --out y` or `x`") == ["make bench", "rsfast plot x --out y"]
    assert all(map(exists, ["make bench BENCH=x", "python -m benchmarks.paper", "python -m build", "rsfast plot x --out y"]))
    assert not any(map(exists, ["make benches", "python -m benchmarks.papers", "rsfast draw", "ls"]))


@each_page
def test_figures_are_those_of_their_files(page):
    assert renewed(page) == page.read_text(), "run make figures"


@each_page
def test_figures_come_from_results_and_commands(page):
    text = page.read_text()
    assert all(exists(command) for command in commands(text) if not command.startswith("rsfast"))  # those: test_docs.py
    for found in [*LINK.finditer(text), *SOURCE.finditer(text)]:
        file = (page.parent / found["file"]).resolve()
        assert file in FILES, found[0]
    for found in SOURCE.finditer(text):
        file = page.parent / found["file"]
        if found["command"]:  # the file names it, too
            command = " ".join(found["command"].split())
            text_of_file = section(file, found["section"] if file.name in BY_HAND else None)
            assert any(named.startswith(command) for named in commands(text_of_file)), found[0]
        else:
            assert file.name in BY_HAND, found[0]


def unsourced(name, text):
    """Yield what looks measured and names no file: a table of numbers, and a number in a sentence."""
    for found in TABLE.finditer(text):
        header, *lines = found[0].splitlines()
        values = [cell for line in lines[1:] for cell in cells(line)[1:]]
        numbers = any(re.match(r"(?:\*\*|about |~)?[-+]?\d[\d.,]*(?:[ %*]|$)", cell) for cell in values)
        if numbers and not SOURCE.match(text, found.end()) and cells(header)[0] not in NO_FIGURES.get(name, ()):
            yield header
    rest = LINK.sub("", text)
    yield from (found[0] for found in re.finditer(r"\[\*{0,2}\d[^\]]*\]\(\S*results/[^)]*\)", rest))  # of no cell
    prose = BLOCK.sub("", LINK.sub("", TABLE.sub(lambda table: "" if SOURCE.match(text, table.end()) else table[0], text)))
    yield from (found[0] for found in MEASURED.finditer(" ".join(prose.split())))


def test_what_lacks_a_source_is_found():
    table, source = "| what | times |\n|---|---|\n| a | 1.5 |\n", "\nFigures: [a](a.md), by `make bench`.\n"
    assert list(unsourced("", table)) == ["| what | times |"]
    assert list(unsourced("", table + source)) == []
    assert list(unsourced("", "It is 3.5\ntimes as fast.")) == ["5 times as"]
    assert list(unsourced("", 'It is [3.5](a.md "b / c") times as fast.')) == []
    assert list(unsourced("", "It is 3.5x as fast, or 2.5\u00d7 faster.")) == ["5x as", "5\u00d7 faster"]
    for unnamed in ("[3.5](results/a.md)", "[3.5](results/a.md 'b / c')", "[**3.5**](results/a.md)"):
        assert list(unsourced("", unnamed)) == [unnamed]
    for number in ("**1.5**", "about 1.5", "~1.5"):
        assert list(unsourced("", table.replace("1.5", number))) == ["| what | times |"]
    assert list(unsourced("docs/faq.md", table.replace("what", "alpha"))) == []


@each_page
def test_every_figure_has_a_source(page):
    assert list(unsourced(str(page.relative_to(ROOT)), page.read_text())) == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_files_name_their_command(file):
    """Before their first table or section."""
    if file.name == "README.md":
        return
    head = re.split(r"^(?:\||## )", file.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    if file.name in BY_HAND:
        assert "by hand" in head.lower()
    else:
        assert commands(head)
    assert all(map(exists, commands(file.read_text())))


def test_by_hand_says_when_and_at_which_commit():
    for part in (RESULTS / "by_hand.md").read_text().split("\n## ")[1:]:
        assert re.search(r"\b[0-9a-f]{7}\b", part), part
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", part), part


def test_every_picture_names_its_command():
    """In the paragraph below it; and every picture is shown."""
    shown = set()
    for page in PAGES:
        for found in re.finditer(r"!\[[^\]]*\]\(([^)\s]+)\)\n\n((?:.+\n)+)", page.read_text()):
            shown.add((page.parent / found[1]).resolve())
            assert commands(found[2]), found[0]
            assert all(map(exists, commands(found[2]))), found[0]
    assert shown == set((ROOT / "docs" / "images").iterdir())


def test_both_files_of_coverage_agree():
    rows = json.loads((RESULTS / "coverage.json").read_text())
    assert (RESULTS / "coverage.md").read_text() == coverage.HEAD + coverage.table([coverage.Row(**row) for row in rows])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A page and a file."""
    monkeypatch.setattr("benchmarks.figures.ROOT", tmp_path)
    file = "# Head\n\n| what | n | times |\n|---|---|---|\n| a | 1 | 1.5 |\n| a | 2 | 2.5 |\n| b | 1 | 3.5 |\n\n## More\n\n"
    (tmp_path / "file.md").write_text(file + "| what | times |\n|---|---|\n| a | 4.5 |\n\n```\nprinted\n```\n")

    def write(text):
        (tmp_path / "page.md").write_text(text)
        return renewed(tmp_path / "page.md")

    return write


def test_a_number_in_a_sentence(site):
    assert site('[9](file.md "b / times") or [9\nx](file.md\n"a / 2 /\n  times")') == (
        '[3.5](file.md "b / times") or [2.5](file.md\n"a / 2 /\n  times")'
    )
    assert site('[9](file.md#more "a / times")') == '[4.5](file.md#more "a / times")'
    for wrong, count in (("a / times", 3), ("c / times", 0), ("a / time", 0)):
        with pytest.raises(
            ValueError, match=rf'^page\.md takes figures from file\.md: "{wrong}" must name one cell of it, got {count}$'
        ):
            site(f'[9](file.md "{wrong}")')
    with pytest.raises(ValueError, match=r"^page\.md takes figures from file\.md: it must have a section #less, got none$"):
        site('[9](file.md#less "a / times")')
    with pytest.raises(ValueError, match=r"^page\.md takes figures from other\.md: .*No such file"):
        site('[9](other.md "a / times")')


def test_a_table(site):
    source = "\nFigures: [file.md](file.md), by `make bench`.\n"
    table = "| what | n | times |\n|---|---|---|\n| a | 2 | {} |\n| b | {} | {} |\n"
    assert site(table.format(9, 9, 9) + source) == table.format(2.5, 1, 3.5) + source
    fewer = "| what | times |\n|---|---|\n| b | {} |\n"
    assert site(fewer.format(9) + source) == fewer.format(3.5) + source
    assert site(fewer.format(9) + "\nNot sourced.\n") == fewer.format(9) + "\nNot sourced.\n"
    with pytest.raises(
        ValueError, match=r"^page\.md takes figures from file\.md: the row \| c \| 9 \| must begin as one row of it, got 0$"
    ):
        site(fewer.format(9).replace("b", "c") + source)


def test_what_a_program_printed(site):
    page = "```python\nx\n```\n\nText.\n\n```\n{}\n```\n\nFigures: [file.md](file.md#more), by hand.\n"
    assert site(page.format("old")) == page.format("printed")
    with pytest.raises(ValueError, match=r"file\.md: it must have one block there, got 0$"):
        site(page.format("old").replace("#more", "#head"))


def test_a_lost_figure_renews_no_page(site, tmp_path, capsys):
    stale, renewed_text = '[9](file.md "b / times")', '[3.5](file.md "b / times")'
    assert site(stale) == renewed_text
    lost = tmp_path / "z.md"
    lost.write_text('[9](file.md "c / times")')
    with pytest.raises(SystemExit, match=r"^z\.md takes figures from file\.md: "):
        main()
    assert (tmp_path / "page.md").read_text() == stale
    lost.unlink()
    main()
    assert (tmp_path / "page.md").read_text() == renewed_text
    assert capsys.readouterr().out == "renewed page.md\n"
