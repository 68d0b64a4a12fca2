"""Many processes, with gloo: the certificates of one, by inputs and by samples; and what is left when one dies."""

import json
import time
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from conftest import integers, rows, sidecar

import rsfast
from rsfast import cli
from rsfast.engine.ranks import Ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NETS = """
import os, time, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        last = torch.nn.Linear(64, 4)
        last.weight.data *= 8
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), last)

    def forward(self, x):
        return self.layers(x)

class Slow(Net):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)

class Dies(Net):
    '''Rank 1 dies in its 150th batch, the first time it is started.'''
    batches = 0

    def forward(self, x):
        time.sleep(0.01)
        Dies.batches += 1
        if Dies.batches == 150 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
            os._exit(3)
        return super().forward(x)
"""
# What every number of ranks must find: with votes, with scores that bet, stopping early, and predictions.
CERTIFY = """
import json, os, torch, rsfast
from pathlib import Path
from torch import distributed
from rank_nets import Net

torch.set_num_threads(1)
ranks = int(os.environ["WORLD_SIZE"])
if ranks > 1:
    distributed.init_process_group("gloo")
model, noise = Net(), rsfast.Gaussian(0.25)
images = torch.rand((7, 3, 6, 6), generator=torch.Generator().manual_seed(1))
options = {"num_classes": 4, "seed": 3, "batch_size": 64}
found = {}
for shard in ("inputs", "samples") if ranks > 1 else (None,):
    certificates = [
        rsfast.certify(model, images, noise, n0=40, n=600, shard=shard, **options),
        rsfast.certify(model, images, noise, n0=40, n=600, head=rsfast.Softmax(1.0), shard=shard, **options),
        rsfast.certify(model, images, noise, n0=40, n=4000, radius=0.1, shard=shard, **options),
        rsfast.certify(model, list(images), noise, n=3000, head=rsfast.Softmax(1.0), rtol=0.3, shard=shard, **options),
    ]
    found[str(shard)] = [[each.to_dict() for each in of_call] for of_call in certificates]
    found[str(shard)].append(rsfast.predict(model, images, noise, n=100, alpha=0.01, shard=shard, **options))
    found[str(shard)].append(rsfast.predict(model, images[:1], noise, n=100, alpha=0.01, shard=shard, **options))
    if shard is not None:  # the seed of one rank is that of all
        seeds = {each.seed for each in rsfast.certify(model, images, noise, num_classes=4, n=20, shard=shard)}
        assert len(seeds) == 1
        for wrong in ({"seed": distributed.get_rank()}, {"n": 20 + distributed.get_rank()}, {"x": distributed.get_rank()}):
            x = images + wrong.pop("x", 0)
            try:
                rsfast.certify(model, x, noise, shard=shard, **{"num_classes": 4, "n": 20, "seed": 3, **wrong})
            except ValueError as error:
                assert "must be the same on all processes, got " in str(error), error
            else:
                raise AssertionError(wrong)
    if shard == "inputs":  # what one raises ends all

        def tires(batch):
            if distributed.get_rank() == 1:
                raise KeyError("tired")
            return model(batch)

        try:
            rsfast.certify(tires, images, noise, n=20, shard=shard, **options)
        except (KeyError, ConnectionAbortedError) as error:
            assert "tired" in str(error), error
        else:
            raise AssertionError
        mine = [each.input_id for each in rsfast.certify_each(model, images, noise, n=20, shard=shard, **options)]
        assert mine == list(range(distributed.get_rank(), 7, ranks))
if ranks == 1 or distributed.get_rank() == ranks - 1:
    Path(f"found{ranks}.json").write_text(json.dumps(found))
if ranks > 1:
    distributed.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("rank_nets.py").write_text(NETS)
    Path("find.py").write_text(CERTIFY)
    images = np.random.default_rng(0).random((9, 3, 6, 6), dtype=np.float32)
    np.savez("data.npz", images=images, labels=np.arange(9) % 4)


def found_by(ranks):
    """What that many processes find."""
    assert programs.run_ranks(ranks, "find.py") == [0] * ranks
    return json.loads(Path(f"found{ranks}.json").read_text())


def test_one_two_and_four_ranks_find_the_same():
    one = found_by(1)["None"]
    assert [len(each) for each in one] == [7, 7, 7, 7, 7, 1]
    assert any(each["radius"] > 0 for each in one[0])
    assert len({each["n"] for each in one[2]}) > 1
    for ranks in (2, 4):
        assert found_by(ranks) == {"inputs": one, "samples": one}


# The command line.

COMMAND = "certify --data data.npz --num-classes 4 --sigma 0.25 --n0 40 --batch-size 50 --seed 3"


def rsfast_certify(options):
    return "-m", "rsfast", *f"{COMMAND} {options}".split()


def torchrun(options, *launch):
    """Run two processes under torchrun. Returns its exit status."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *launch)
    return programs.run(*launch, *rsfast_certify(options))


def certify_in_one(options):
    assert cli.main(f"{COMMAND} {options}".split()) == 0


def contents(folder):
    """The table without its times, the counts, and the settings without what may differ."""
    settings = {name: value for name, value in sidecar(folder).items() if name not in ("command", "started")}
    return rows(folder), integers(folder), settings, sorted(file.name for file in Path(folder).iterdir())


@pytest.mark.parametrize("shard", ["inputs", "samples"])
def test_a_job_that_is_killed_goes_on(shard):
    """The whole job by SIGKILL, in the middle; resumed by as many processes, and by inputs then by others."""
    options = "--model rank_nets:Slow -n 2000 --radius 0.05"
    certify_in_one(f"{options} --out one")
    command = rsfast_certify(f"{options} --out run --shard {shard}")
    with programs.ranks(2, *command) as job:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            tables = [path.read_text().count("\n") for path in Path("run").rglob("results.tsv")]
            if sum(lines - 1 for lines in tables) >= 2:
                break
            time.sleep(0.01)
        for process in job:
            process.kill()
    assert not Path("run/results.tsv").exists() or contents("run")[0] != contents("one")[0]
    assert not any(programs.run_ranks(3 if shard == "inputs" else 2, *command, "--resume"))
    assert contents("run") == contents("one")


def test_a_rank_that_dies():
    """The job ends with what was finished on disk."""
    assert torchrun("--model rank_nets:Dies -n 2000 --out run") != 0
    rows = [path.read_text().splitlines()[1:] for path in Path("run").rglob("results.tsv")]
    assert 0 < sum(map(len, rows)) < 9


@pytest.mark.parametrize("shard", ["inputs", "samples"])
def test_a_rank_that_dies_and_torchrun_starts_again(shard):
    """The job goes on by itself from what was finished."""
    certify_in_one("--model rank_nets:Net -n 2000 --out one")
    assert torchrun(f"--model rank_nets:Dies -n 2000 --shard {shard} --out run", "--max-restarts=1") == 0
    (table, counts, _, files), found = contents("one"), contents("run")
    assert (table, counts) == found[:2]
    assert found[3] == files


class Twins(Ranks):
    """Rank 0 of two, beside one that has the same, but that in one sum it may be at other samples."""

    apart = None

    def gather(self, value):
        return [value, value]

    def all_reduce_sum(self, integers):
        integers.mul_(2)
        if self.apart is not None:
            self.sums.append(len(integers))
            integers[-1] += len(self.sums) == self.apart


@pytest.mark.parametrize("apart", [None, 1, 2])
def test_sums_of_different_samples_are_refused(apart, monkeypatch):
    """The selection's, or the estimation's: they would make one certificate of two inputs, or of two samples."""
    twins = Twins("samples", 0, 2)
    twins.apart, twins.sums = apart, []
    monkeypatch.setattr(Ranks, "find", lambda _: twins)
    x, options = torch.tensor([[0.5, 0.0]]), {"num_classes": 2, "n0": 32, "n": 64, "batch_size": 16, "seed": 1}

    def certify():
        return rsfast.certify(lambda x: x, x, rsfast.Gaussian(0.1), shard="samples", **options)

    if apart is None:
        [found] = certify()
        assert (found.prediction, found.n) == (0, 64)
    else:
        with pytest.raises(RuntimeError, match="shard is 'samples', but processes were at different samples"):
            certify()


def test_wrong_uses(capsys):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    for shard, message in (
        ("inputs", "shard must be None without a process group, got 'inputs'; "),
        ("rows", "shard must be one of 'inputs', 'samples', None, got 'rows'"),
    ):
        with pytest.raises(ValueError, match=message):
            rsfast.certify(model, torch.zeros(1, 4), rsfast.Gaussian(1.0), num_classes=2, shard=shard)
    assert Ranks.find(None) == Ranks(None, 0, 1)
    with pytest.raises(SystemExit) as stopped:
        certify_in_one("--model rank_nets:Net --out run --shard samples")
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == "rsfast certify: error: --shard must be given under torchrun only, which starts several processes, got samples\n"
    )
