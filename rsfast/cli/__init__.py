"""The command line, a module for each command: ``rsfast demo | bench | certify | predict | recertify ...``.

Commands import what they need (torch takes seconds), so that ``--help`` and ``analyze`` do without it.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._versions import __version__
from . import analyze, bench, certify, demo, doctor, merge, plot, predict, recertify, report
from .arguments import Parser, as_option, warn

if TYPE_CHECKING:
    from ..runs.environment import Environment

COMMANDS = (demo, bench, certify, predict, recertify, merge, analyze, plot, report, doctor)
"""Modules with a function ``add(commands)``, which adds the command's parser and sets ``run``, in the order of the help."""


def _parser() -> Parser:
    parser = Parser(prog="rsfast", description="Certify classifiers by randomized smoothing.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"rsfast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None, *, environment: Environment | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if left out.
    environment : Environment, optional
        What a run takes from its surroundings, as in `Run`.

    Raises
    ------
    SystemExit
        With code 2, after one line on stderr, for a mistake in the arguments or the files they name; with code 130 if
        interrupted, 143 if terminated.
    """
    argv = sys.argv[1:] if argv is None else argv
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # here, so that the command's name stands before it
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.command_line, args.environment = shlex.join(["rsfast", *argv]), environment
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: args.parser.exit(143, f"{args.parser.prog}: terminated\n"))

    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is UserWarning:
            warn(args, str(message))  # one line, without the place in the source
        else:
            show_others(message, category, *place, **more)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            status: int = args.run(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        args.parser.error(as_option(args, str(error)))
    except KeyboardInterrupt as stopped:  # or a run's `Stopped`, which has a number and a text
        number = getattr(stopped, "number", signal.SIGINT)
        args.parser.exit(128 + number, f"{args.parser.prog}: {stopped if stopped.args else 'interrupted'}\n")
    return status
