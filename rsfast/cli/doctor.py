"""``rsfast doctor``."""

from __future__ import annotations

import argparse

from .arguments import Commands, add_command


def add(commands: Commands) -> None:
    add_command(commands, "doctor", run, "Report versions and test every backend against known answers.")


def run(args: argparse.Namespace) -> int:
    from .. import doctor

    text, healthy = doctor.report()
    print(text)
    return 0 if healthy else 1
