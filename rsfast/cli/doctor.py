"""``rsfast doctor``."""

from __future__ import annotations

import argparse

from .._versions import __version__
from .arguments import Commands, add_command

AFFECTED = 3
"""Exit status where an advisory affects the version or a run, or may affect it."""


def add(commands: Commands) -> None:
    text = "Report versions and test every backend against known answers; or say which advisories affect runs."
    add_argument = add_command(commands, "doctor", run, text).add_argument
    add_argument(
        "--advisories",
        nargs="*",
        metavar="RUN",
        help="test nothing, and say which advisories affect this version of rsfast; or which affect these run folders, or "
        f".json files of certificates. The exit status is 0 if none does, and {AFFECTED} if one does or may",
    )
    add_argument(
        "--advisory-list",
        metavar="FILE",
        help="a newer advisories.json (default: the list of the installed version, which knows of nothing later)",
    )


def run(args: argparse.Namespace) -> int:
    if args.advisories is not None:
        return _advisories(args)
    if args.advisory_list is not None:
        raise ValueError("--advisory-list needs --advisories")
    from .. import doctor

    text, healthy = doctor.report()
    print(text)
    return 0 if healthy else 1


def _advisories(args: argparse.Namespace) -> int:
    from .._files import reason
    from ..runs import recalls
    from ..runs.advisories import LIST, read_advisories

    try:
        listed, advisories = read_advisories(LIST if args.advisory_list is None else args.advisory_list)
    except OSError as error:
        raise ValueError(f"--advisory-list must be a file that can be read, got {error.filename}: {reason(error)}") from None
    found = {run: recalls.of_run(advisories, run) for run in args.advisories}
    if not found:
        found[f"rsfast {__version__}"] = recalls.of_version(advisories, __version__)
    for subject, findings in found.items():
        if not findings:
            print(f"{subject}: affected by no advisory of the list of {listed}, which holds {len(advisories)}")
            continue
        print(f"{subject}: {'' if any(each.sure for each in findings) else 'possibly '}affected by:")
        for each in findings:
            print(*each.lines, sep="\n")
    return AFFECTED if any(found.values()) else 0
