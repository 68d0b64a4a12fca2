"""A forked child cannot go on with what its parent began: it is told, and whatever else it does with it ends."""

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch

import rsfast
from rsfast.engine.inputs import Inputs

BEGIN = """
import gc, os, signal, sys, torch, rsfast
from rsfast.engine.inputs import Inputs

X = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))
NOISE, VOTES = rsfast.Gaussian(0.5), rsfast.Votes()
torch.set_num_threads(2)
gc.freeze()  # or each child, as it ends, looks through all that is imported

def model(x):
    return (x @ torch.ones(8, 8))[:, :3]

def begun(inputs):
    found = rsfast.certify_each(model, inputs, NOISE, num_classes=3, n=2000, seed=1, progress=True, batch_size=512)
    next(found)
    return found

def read(inputs):
    found = Inputs(inputs)
    next(found)
    return found

CHILDREN = ["go on", "mine.close()", "del mine; gc.collect()", "pass", "mine = [mine]; mine.append(mine); del mine"]
for make in sys.argv[1:]:
    mine = eval(make)
    for code in CHILDREN:
        child = os.fork()
        if not child:
            signal.alarm(120)
            for _ in range(2 * (code == "go on")):
                try:
                    next(mine)
                except RuntimeError as error:
                    print(error, flush=True)
            exec(code.replace("go on", ""))
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0, (make, code)
    print(len(list(mine)), flush=True)
"""
ITERATOR = "the iterator of certify_each"
MADE = {  # what is made, how it is named, and how many are left
    "begun(X)": (ITERATOR, 63),
    "begun(list(X))": (ITERATOR, 63),
    "rsfast.certify_each(model, X, NOISE, num_classes=3, n=50, head=[VOTES])": (ITERATOR, 64),
    "read(list(X))": ("inputs", 63),
}


@pytest.mark.slow
def test_a_child_cannot_go_on_and_ends():
    """It is told, the second time, too; and ends where it closes, drops or leaves it. Its parent goes on."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BEGIN, *MADE], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    lines = iter(done.stdout.splitlines())
    for (what, left), first, second, rest in zip(MADE.values(), lines, lines, lines, strict=True):
        assert first == second
        told = (
            rf"{what} belongs to process (\d+), which made it, and this is process (\d+), forked from that; make another .*"
        )
        parent, child = re.fullmatch(told, first).groups()
        assert parent != child
        assert int(rest) == left


def test_a_tensor_belongs_to_all():
    """No thread reads it, so a child can go on with inputs from it."""
    inputs = Inputs(torch.rand(3, 2))
    next(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of fork where there are threads
        child = os.fork()
    if not child:
        os._exit(len(list(inputs)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_what_certify_each_returns_closes():
    found = rsfast.certify_each(lambda x: x, [torch.rand(3)] * 5, rsfast.Gaussian(0.5), num_classes=3, n=20, seed=1)
    assert iter(found) is found
    next(found)
    found.close()
    assert list(found) == []
