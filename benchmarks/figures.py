"""Put the figures of benchmarks/results/ into README and the pages: ``python -m benchmarks.figures``.

A figure is a measured number. Its source is a cell of a table in a Markdown file of that folder. Pages show figures in two
forms, and readers see from where both come:

- In a sentence, ``[3.21](benchmarks/results/cpu_avx512.md "speed of certify, n = 10,000 / times")``. The title holds cells
  by which to find one row of the file, and the column. The text is that cell.
- A table, or a block that shows what a program printed, with a line below it: ``Figures: [cpu_avx512.md](FILE), by `make
  bench`.`` The first cells of each of its rows are those of one row of the file, which gives the others. It may leave rows
  and columns out. A block is the whole block of the file.

``FILE.md#anchor`` means the section of that heading.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

LINK = re.compile(r'\[(?P<text>[^\]]*)\]\((?P<file>[^()\s]+\.md)(?:#(?P<section>[^\s)]+))?\s+"(?P<title>[^"]+)"\)')
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
BLOCK = re.compile(r"^```.*\n(?:(?!```).*\n)*```\n", re.MULTILINE)
SOURCE = re.compile(
    r"\nFigures: \[[^\]]*\]\((?P<file>[^()\s#]+)(?:#(?P<section>[^\s)]+))?\),\s+by\s+(?:`(?P<command>[^`]+)`|hand\b)"
)

Row = dict[str, str]


def pages() -> list[Path]:
    """Return the files whose figures have sources: README and what else people wrote, but for the record of changes."""
    generated = (ROOT / "docs" / "_build", ROOT / "docs" / "gallery")
    docs = [path for path in sorted((ROOT / "docs").rglob("*.md")) if not any(map(path.is_relative_to, generated))]
    return [path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"] + docs


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section(file: Path, anchor: str | None) -> str:
    """Return the text of a file, or of its section with that anchor."""
    text = file.read_text()
    if anchor is None:
        return text
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        if slug(part.partition("\n")[0].lstrip("# ")) == anchor:
            return part
    raise ValueError(f"it must have a section #{anchor}, got none")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def markdown(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [headers, ["---"] * len(headers), *rows])


def rows(text: str) -> Iterator[Row]:
    """Yield the rows of all tables of a text."""
    for table in TABLE.findall(text):
        header, _, *lines = map(cells, table.splitlines())
        yield from (dict(zip(header, line, strict=True)) for line in lines)


def cell(text: str, title: str) -> str:
    """Return the cell that a title names: ``cell / ... / column``."""
    *keys, column = " ".join(title.split()).split(" / ")
    found = [row[column] for row in rows(text) if column in row and set(keys) <= set(row.values())]
    if len(found) != 1:
        raise ValueError(f'"{title}" must name one cell of it, got {len(found)}')
    return found[0]


def renewed_table(table: str, text: str) -> str:
    """Return the table with the cells of those rows of a text that begin with the same cells."""
    header, *_ = lines = table.splitlines()
    columns = cells(header)
    known = [row for row in rows(text) if set(columns) <= row.keys()]
    for place, line in enumerate(lines[2:], 2):
        found, old = known, cells(line)
        for column, value in zip(columns, old, strict=True):
            found = [row for row in found if row[column] == value]
            if len(found) <= 1:
                break
        if len(found) != 1:
            raise ValueError(f"the row {line} must begin as one row of it, got {len(found)}")
        lines[place] = f"| {' | '.join(found[0][column] for column in columns)} |"
    return "\n".join(lines) + "\n"


def block(text: str) -> str:
    """Return the one block of a text."""
    blocks: list[str] = BLOCK.findall(text)
    if len(blocks) != 1:
        raise ValueError(f"it must have one block there, got {len(blocks)}")
    return blocks[0]


def renewed(page: Path) -> str:
    """Return the text of a page with the figures of its files.

    Raises
    ------
    ValueError
        If a file does not have what the page takes from it; it names both.
    """

    def taken(source: re.Match[str], take: Callable[[str], str]) -> str:
        try:
            return take(section(page.parent / source["file"], source["section"]))
        except (OSError, ValueError) as error:
            raise ValueError(f"{page.relative_to(ROOT)} takes figures from {source['file']}: {error}") from error

    def of_link(found: re.Match[str]) -> str:
        new = taken(found, partial(cell, title=found["title"]))
        same = found["text"].split() == new.split()  # a line may end within
        return found[0] if same else found[0].replace(f"[{found['text']}]", f"[{new}]", 1)

    def of_table(found: re.Match[str]) -> str:
        below = SOURCE.match(found.string, found.end())
        return taken(below, partial(renewed_table, found[0])) if below else found[0]

    def of_block(found: re.Match[str]) -> str:
        below = SOURCE.match(found.string, found.end())
        return taken(below, block) if below else found[0]

    return LINK.sub(of_link, BLOCK.sub(of_block, TABLE.sub(of_table, page.read_text())))


def main() -> None:
    """Renew every page, or none if a figure has lost its source."""
    try:
        texts = {page: renewed(page) for page in pages()}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for page, text in texts.items():
        if text != page.read_text():
            page.write_text(text)
            print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
