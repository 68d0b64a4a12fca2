"""Print what CHANGELOG.md holds of a release: python .github/release_notes.py v0.2.0

The tag must be "v" and the version in rsfast/_versions.py. The first heading of the CHANGELOG must be that version and a
date. Otherwise the exit status is 1, and nothing is printed but the reason.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, versions: str, changelog: str) -> str:
    """Return the section of `tag`, without its heading, or raise ValueError if tag, version and heading do not agree."""
    version = re.search(r'^__version__ = "(.+)"$', versions, re.MULTILINE)
    if not version:
        raise ValueError("rsfast/_versions.py must have a line such as '__version__ = \"0.2.0\"', got none")
    if tag != f"v{version[1]}":
        raise ValueError(f"the tag must be 'v{version[1]}', v and the version in rsfast/_versions.py, got {tag!r}")
    first = re.search(r"^(## .+)\n((?:(?!## ).*\n)*)", changelog, re.MULTILINE)
    if not first or not re.fullmatch(rf"## {re.escape(version[1])} \(\d{{4}}-\d\d-\d\d\)", first[1]):
        heading = repr(first[1]) if first else "none"
        raise ValueError(f"CHANGELOG.md's first heading must be '## {version[1]} (YYYY-MM-DD)', got {heading}")
    return first[2].strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .github/release_notes.py TAG")
    try:
        print(notes(sys.argv[1], (ROOT / "rsfast" / "_versions.py").read_text(), (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        sys.exit(str(error))
