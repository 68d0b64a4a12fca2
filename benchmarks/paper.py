"""What was published beside what the examples find: they run in full, and their rows become results/paper.md.

Run as ``python -m benchmarks.paper``; with names of examples, these run and the rows of the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cpuinfo import get_cpu_info

from benchmarks.figures import markdown
from examples.paper import SOURCES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples"
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """# Published, and ours

Each row is a claim of a source. Its example computes the number and asserts it, on data that
packages carry. "Published" is what the authors report, or what their formula gives. Where it is
empty, the source states no number. `python -m benchmarks.paper` writes this page.
"""


def examples() -> list[str]:
    """Return the names of all examples."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "paper")


def settings(folder: Path, *, quick: bool) -> dict[str, str]:
    """Return the environment in which an example leaves its rows in a folder."""
    return {"RSFAST_QUICK": str(int(quick)), "RSFAST_PAPER": str(folder), "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}


def rows_in(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows that an example has left."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def run(name: str) -> dict[str, Any]:
    """Run an example in full; return its rows, its seconds and where it ran."""
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | settings(Path(folder), quick=False)
        subprocess.run([sys.executable, FOLDER / f"{name}.py"], env=environment, cwd=folder, check=True)
        rows = rows_in(Path(folder), name)
    seconds = round(perf_counter() - began, 1)
    machine = f"{os.cpu_count()} cores of {get_cpu_info()['brand_raw']}, PyTorch {torch.__version__}, {date.today()}"
    return {"rows": rows, "seconds": seconds, "machine": machine}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the page: a table for each source, and one of the examples."""
    parts = [HEAD]
    for source, title in SOURCES.items():
        lines = [
            [
                *(row[column].replace("|", "\\|") for column in ("claim", "published", "ours", "note")),
                f"[{name}](../../examples/{name}.py)",
            ]
            for name, example in found.items()
            for row in example["rows"]
            if row["source"] == source
        ]
        if lines:
            parts.append(f"## {title}\n\n{markdown(['claim', 'published', 'ours', 'note', 'example'], lines)}\n")
    timed = [[name, example["seconds"], example["machine"]] for name, example in found.items()]
    parts.append(f"## How long the examples take\n\n{markdown(['example', 'seconds', 'on'], timed)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or examples()
    if unknown := set(names) - set(examples()):
        parser.error(f"NAME must be one of {', '.join(examples())}, got {', '.join(sorted(unknown))}")
    path = RESULTS / "paper.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found = {name: found[name] for name in examples() if name in found}  # those that are still there
    for name in names:
        print(f"== {name}", flush=True)
        found[name] = run(name)
        path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    (RESULTS / "paper.md").write_text(page(dict(sorted(found.items()))))


if __name__ == "__main__":
    main()
