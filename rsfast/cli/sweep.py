"""``--sigma`` with several numbers: one run folder for each, then one table and one figure of all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..noise import Noise
from .arguments import noise_in, warn
from .run_options import refuse_runs_in_out
from .sources import Sources, load_sources

if TYPE_CHECKING:
    from ..runs.run import Run

FIGURE = "sweep.svg"
"""File name in the folder that holds the runs."""


def sweep(
    args: argparse.Namespace, check: Callable[[Noise], object], run: Callable[[argparse.Namespace, Noise, Sources], Run]
) -> int:
    """Run a command for each --sigma, with the model and the data loaded once, and return its exit status.

    Parameters
    ----------
    args : Namespace
    check : callable
        Takes the noise of each run before anything is loaded, and raises ValueError where the options do not fit it.
    run : callable
        Makes one run, and returns it.
    """
    each = [(one, noise_in(one)) for one in _each_sigma(args)]
    for one, noise in each:
        check(noise)
        refuse_runs_in_out(one)
    sources = load_sources(args, each[0][1])
    made = [run(one, noise, sources) for one, noise in each]
    if len(each) > 1 and made[0].ranks.rank == 0:
        _print(args, [one for one, _ in each])
    return 0


def _each_sigma(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the arguments of each run: those of one, or for each --sigma those with a folder of its own in --out.

    Raises
    ------
    ValueError
        If a number is there twice, or --out is a run folder.
    """
    if args.sigma is None or len(args.sigma) == 1:
        return [args]
    if twice := [sigma for place, sigma in enumerate(args.sigma) if sigma in args.sigma[:place]]:
        raise ValueError(f"--sigma must be different numbers, got {twice[0]} twice")
    if Path(args.out, "results.json").exists():
        raise ValueError(f"--out must be a folder for one run folder a sigma, got {args.out}, which is a run itself")
    return [
        argparse.Namespace(**vars(args) | {"sigma": [sigma], "out": str(Path(args.out, f"sigma={sigma}"))})
        for sigma in args.sigma
    ]


def _print(args: argparse.Namespace, runs: list[argparse.Namespace]) -> None:
    """Print the table of all runs; where they have radii, with the upper envelope, and draw both into the folder."""
    from .. import results
    from ..runs.plot import plot

    found = {f"sigma={run.sigma[0]}": results.read(run.out) for run in runs}
    certified = all(each.has_radius for each in found.values())
    print(results.table(found, results.round_radii(found), envelope=certified))
    for caveat in results.caveats(found):
        warn(args, caveat)
    if certified:
        try:
            plot(found, Path(args.out, FIGURE), envelope=True)
        except ImportError as error:
            warn(args, str(error))
