"""Print what CHANGELOG.md holds of a release: python .github/release_notes.py v0.1.0

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
    if not version or tag != f"v{version[1]}":
        raise ValueError(f"the tag must be v and the version in rsfast/_versions.py, v{version and version[1]}, got {tag!r}")
    _, heading, section = re.split(r"^## (.+)\n", changelog, maxsplit=1, flags=re.MULTILINE)
    if not re.fullmatch(rf"{re.escape(version[1])} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise ValueError(f"CHANGELOG.md's first heading must be '## {version[1]} (YYYY-MM-DD)', got '## {heading}'")
    return re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0].strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: release_notes.py TAG")
    try:
        print(notes(sys.argv[1], (ROOT / "rsfast" / "_versions.py").read_text(), (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        sys.exit(str(error))
