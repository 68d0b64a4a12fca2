"""Run the benchmarks at an earlier commit and here, in turn on this machine, and compare: python -m benchmarks.against.

Each run is `make bench` in a tree of its own: this one, and a worktree in build/against. The report compares the ratios to
what rsfast replaces. Both sides of a ratio are timed in one race, so the drift of the machine is in both. Nothing is gated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TURNS = ("before", "after", "after", "before")  # a drift that is even over the four falls on both alike


def git(tree: Path, *arguments: str) -> str:
    """Return what git prints in `tree`; end the program with its message if it fails."""
    done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)} in {tree}: {done.stderr.strip()}")
    return done.stdout.strip()


def base_of(tree: Path) -> str:
    """Return the tag of the last release before HEAD, or where there is none HEAD's parent."""
    tags = git(tree, "tag", "--list", "v*", "--merged", "HEAD^", "--sort=-creatordate").split()
    return tags[0] if tags else "HEAD^"


def worktree(commit: str) -> Path:
    """Return a worktree of `commit`; one that is there from an earlier call is used again, with its environment."""
    tree = ROOT / "build" / "against" / commit[:12]
    if not tree.exists():
        git(ROOT, "worktree", "add", "--force", "--detach", str(tree), commit)  # also after make clean
    return tree


def measure(tree: Path, into: Path, bench: str) -> dict[str, Any]:
    """Run the benchmarks of `tree`, and return pytest-benchmark's JSON with the table of ratios."""
    command = ["make", "bench", f"BENCH=--benchmark-only --benchmark-json={into} {bench}"]
    if subprocess.run(command, cwd=tree).returncode:
        raise SystemExit(
            f"make bench failed in {tree}: its messages are above. --bench must select benchmarks, got {bench!r}"
        )
    return dict(json.loads(into.read_text()))


def ratios(runs: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, bool]]:
    """Return the median ratio of each row over the runs, and whether less is better."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for run in runs for row in run["table"]):
        found.setdefault((row["what"], row["against"]), []).append(row)
    return {name: (median(row["ratio"] for row in rows), rows[0]["at_most"]) for name, rows in found.items()}


def compared(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: each ratio before and after, and how many times as fast it has become."""
    old, new = ratios(before), ratios(after)
    lines = ["| what | against | before | after | times as fast as before |", "|---|---|---|---|---|"]
    for what, against in sorted(old.keys() | new.keys()):
        was, now = old.get((what, against)), new.get((what, against))
        cells = [f"{each[0]:.3g}" if each else "" for each in (was, now)]
        change = (was[0] / now[0] if now[1] else now[0] / was[0]) if was and now else None
        lines.append(f"| {what} | {against} | {' | '.join(cells)} | {f'{change:.2f}' if change else ''} |")
    return lines


def report(base: str, runs: dict[str, list[dict[str, Any]]], times: str) -> str:
    """Return the report in Markdown; `times` is pytest-benchmark's own comparison."""
    lines = [f"# Benchmarks against {base}", ""]
    for name, (first, *_) in runs.items():
        about = first["machine_info"]
        cpu, commit = about["cpu"].get("brand_raw", "unknown CPU"), first["commit_info"]["id"][:12]
        lines.append(f"- {name}: {commit} on {cpu}, {about['isa']}, {about['threads']} threads, torch {about['torch']}")
    lines += ["", "Ratios are medians of two runs of each commit. Nothing is gated.", "", *compared(**runs)]
    return "\n".join(
        [*lines, "", "<details><summary>Times of all four runs</summary>", "", "```", times, "```", "</details>", ""]
    )


def main() -> None:
    """Measure both commits, and write report.md and the runs as JSON to build/against."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("--base", default="", help="commit or tag to compare with; by default the last release, or HEAD^")
    parser.add_argument("--bench", default="", help="options of pytest, such as '-k perturb'")
    args = parser.parse_args()
    base = args.base or base_of(ROOT)
    trees = {"before": worktree(git(ROOT, "rev-parse", f"{base}^{{commit}}")), "after": ROOT}
    files = [ROOT / "build" / "against" / f"{turn}-{number}.json" for number, turn in enumerate(TURNS)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for turn, file in zip(TURNS, files, strict=True):
        runs[turn].append(measure(trees[turn], file, args.bench))
    compare = [".venv/bin/python", "-m", "pytest_benchmark", "compare", "--group-by=fullname", "--columns=min,median,rounds"]
    times = subprocess.run([*compare, *map(str, files)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    (ROOT / "build" / "against" / "report.md").write_text(report(base, runs, times))


if __name__ == "__main__":
    main()
