"""Python programs in processes forked from one that has imported torch: each saves the seconds that the imports take."""

import atexit
import multiprocessing
import os
import runpy
import sys
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import patch

from torch.distributed import TCPStore

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ["torch", "torch.distributed.launcher.api", "scipy.stats", "sklearn.datasets", "matplotlib.pyplot"]
_CONTEXT.set_forkserver_preload([*_IMPORTED, "rsfast.api", "rsfast.cli"])


def _python(arguments, folder, environment):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    try:
        if arguments[0] == "-m":
            sys.path.insert(0, str(folder))
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).parent))
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def start(*arguments, folder=".", **environment):
    """Start what ``python ARGUMENTS`` would, FILE or ``-m MODULE`` and its arguments, as a multiprocessing.Process.

    It has its own names, folder and environment; but what it imports may be there already, so this is not for what modules
    do when they are imported. It writes to where the tests' own output goes.
    """
    arguments, environment = [str(each) for each in arguments], {**os.environ, **environment}
    process = _CONTEXT.Process(target=_python, args=(arguments, Path(folder).resolve(), environment))
    with patch.dict(os.environ, MPLBACKEND="agg"):  # for the process that is forked, which the first call starts
        process.start()
    return process


def run(*arguments, **options):
    """Run such a program to its end. Returns its exit status."""
    process = start(*arguments, **options)
    process.join()
    return process.exitcode


@contextmanager
def ranks(count, *arguments):
    """Start such a program in `count` processes, with the variables and the store that torchrun gives; wait for their ends.

    Yields the processes. Where one fails, the others are killed.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    job = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    job |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    processes = [start(*arguments, **job, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    try:
        yield processes
    finally:
        left = {process.sentinel: process for process in processes}
        while left:
            for sentinel in wait(left):
                if left.pop(sentinel).exitcode:
                    for other in left.values():
                        other.kill()


def run_ranks(count, *arguments):
    """Run such a program in `count` processes to their ends. Returns their exit statuses."""
    with ranks(count, *arguments) as processes:
        pass
    return [process.exitcode for process in processes]
