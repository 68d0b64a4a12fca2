"""What the commands' parsers share: the form of errors, the types of arguments, and options made from their declaration."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ..engine.options import Option
from ..heads import HEADS, Head
from ..noise import Gaussian, Noise
from ..noise.text import from_text

_HEADS: dict[str, Callable[..., Head]] = {head.option: head for head in HEADS.values()}
HEAD_OPTIONS = " or".join(", ".join(_HEADS).rsplit(",", 1))
Commands = Any  # argparse's type has no public name


class Parser(argparse.ArgumentParser):
    """One line for an error, where argparse prints the usage too: a screenful for `certify`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", int, integer)  # argparse says "invalid int value", and not what would be valid
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {textwrap.shorten(message, 600)}\n")


def add_command(commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
    """Add a command and return its parser; `run` returns the exit status."""
    parser: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_options(parser: Any, options: Mapping[str, Option]) -> None:
    """Add options as they are declared; those without flags are left out."""
    for name, option in options.items():
        flags = (f"--{name.replace('_', '-')}",) if option.flags is None else option.flags
        if not flags:
            continue
        how: dict[str, Any] = {"action": "store_true"}
        if option.default is not False:
            how = {"type": option.parse, "default": option.default}
            how |= {key: value for key in ("nargs", "choices", "metavar") if (value := getattr(option, key)) is not None}
        parser.add_argument(*flags, dest=name, help=option.help, **how)


def without_defaults(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return options that `options_in` leaves out unless they are given, as deterministic noise takes no others' values."""
    return {
        name: replace(option, default=argparse.SUPPRESS, help=option.help.replace("%(default)s", str(option.default)))
        for name, option in options.items()
    }


def options_in(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options of these names that a command has."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def folder(text: str) -> str:
    if not text:  # an unset variable of the shell, mostly, and not meant to be the working directory
        raise argparse.ArgumentTypeError("must be the name of a folder, got ''")
    return text


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def head(text: str) -> Head:
    name, *parameters = text.split(":")
    try:
        return {form.partition(":")[0]: kind for form, kind in _HEADS.items()}[name](*map(float, parameters))
    except (KeyError, TypeError, ValueError) as error:
        what = f" ({error})" if isinstance(error, ValueError) else ""
        raise argparse.ArgumentTypeError(f"must be {HEAD_OPTIONS}, got {text!r}{what}") from error


def noise(text: str) -> Noise:
    try:
        return from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("noise ")) from error


def noise_in(args: argparse.Namespace) -> Noise:
    """Return what --noise or --sigma says; of several sigmas `sweep.each_sigma` makes one at a time."""
    made: Noise | None = args.noise
    return Gaussian(*args.sigma) if made is None else made


def add_out(parser: Parser) -> None:
    parser.add_argument("--out", type=folder, required=True, metavar="FOLDER", help="run folder to write")


def as_option(args: argparse.Namespace, text: str) -> str:
    """Return an error of the library with the name of an option, --data, in place of the argument's, data, at its start."""
    argument, space, rest = text.partition(" ")
    if argument == "path" and rest.startswith("must ") and hasattr(args, "out"):
        return f"--out {rest}"
    out = getattr(args, "out", None)
    if isinstance(out, str) and text.startswith(f"{Path(out)} must be a folder "):
        return f"--out {text}"
    named = argument in ("data", "model", "weights", "checkpoint") and hasattr(args, argument)
    named = named and not rest.startswith("returned ")  # what a model does is not about its option
    return f"--{argument}{space}{rest}" if named else text


def warn(args: argparse.Namespace, text: str) -> None:
    print(f"{args.parser.prog}: warning: {as_option(args, text)}", file=sys.stderr)
