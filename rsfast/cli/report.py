"""``rsfast report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .analyze import add_envelope, add_radii, add_runs, read_runs
from .arguments import Commands, add_command

if TYPE_CHECKING:
    from ..results import Results
    from ..runs.report import Images


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "Write a page on runs: what they certify, tables, figures, the hardest and the safest images.",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--format",
        choices=("html", "markdown", "latex"),
        default="html",
        help="html: one page, complete in itself; markdown and latex (booktabs): tables for a paper (default: html)",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="where pictures are, as of certify (default: what the run records, if it can be read)"
    )
    add_radii(parser)
    add_envelope(parser)
    add_runs(parser)


def run(args: argparse.Namespace) -> int:
    from .._files import write_whole
    from ..runs.report import report

    if not Path(args.out).parent.is_dir():
        raise ValueError(f"--out must be in a folder that exists, got {args.out!r}")
    runs = read_runs(args)
    images = {name: _images(each, args.data) for name, each in runs.items()} if args.format == "html" else {}
    text = report(runs, args.format, radii=args.radii, envelope=args.envelope, images=images)
    write_whole(args.out, [text.encode(errors="backslashreplace")])
    return 0


def _images(run: Results, named: str | None) -> Images | str:
    """Return what gives the picture of an idx; or why there is none, unless the user has named the data."""
    sidecar = run.sidecar or {}
    name = named or sidecar.get("data")
    if not isinstance(name, str) or not run.has_radius:
        return "the run records no data that can be read by name; --data names it"
    from ..loading.data import FORMS, load_data

    form, colon, _ = name.partition(":")
    if named is None and colon and f"{form}:DIR" not in FORMS and not Path(name).exists():
        # A run folder may come from elsewhere, and a name in it must not import a module.
        return f"the run records its data as {name}, which is code that a report does not run; --data names it"
    from ..loading.preprocessing import Preprocessing

    recorded = sidecar.get("preprocessing")  # pictures are shown as the model saw them
    try:
        how = Preprocessing.from_dict(recorded) if isinstance(recorded, dict) else None
        data = load_data(name, preprocessing=how)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if named is not None:
            raise
        return str(error)
    if sidecar.get("data_sha256") not in (None, data.digest):
        return f"{name} is not the data of the run: it has another SHA-256"
    picture: Images = data.__getitem__
    return picture
