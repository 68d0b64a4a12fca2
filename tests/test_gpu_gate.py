"""The program that measures on a GPU, as far as a CPU can tell: its dry run, its refusals, its arithmetic and its table."""

import json
import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rsfast
from benchmarks import gpu_gate
from benchmarks.cases import noises
from benchmarks.gpu_gate import DRY_RUN, Gate, Noisy, difference
from benchmarks.networks import cifar_resnet110, resnet50
from benchmarks.race import LEAST_ROUNDS, race, timing
from benchmarks.report import Row, line, show
from rsfast import Tally, ops
from rsfast.noise import DRAWS

ROOT = Path(__file__).resolve().parent.parent


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()


KINDS = ("float32 contiguous", "bfloat16 contiguous", "bfloat16 channels_last")  # of perturb, that are timed

# One case of each kind.
SMALL = replace(
    DRY_RUN, images=(("CIFAR", 2, (3, 2, 2)),), logits=((3, 4, 20),), networks=(("tiny", tiny, (3, 2, 2), 3, 10, 5),)
)


@pytest.fixture
def gate(tmp_path):
    return Gate(SMALL, tmp_path, seed=1)


def run(monkeypatch, folder, plan=SMALL):
    """Run the dry run of a plan in this process; return the exit status and the report."""
    monkeypatch.setattr(gpu_gate, "DRY_RUN", plan)
    code = gpu_gate.main(["--dry-run", "--out", str(folder)])
    return code, json.loads((folder / "gpu_dry_run.json").read_text())


# The whole program


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The output and the folder of the command as a user types it."""
    folder = tmp_path_factory.mktemp("gate")
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_gate", "--dry-run", "--seed", "7", "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before
    return done.stdout, folder


def test_dry_run_measures_every_case(dry_run):
    report = json.loads((dry_run[1] / "gpu_dry_run.json").read_text())
    cases = [
        (f"perturb {kind}, {name} {batch}", 2)  # against torch, and against the floor
        for name, batch, _ in DRY_RUN.images
        for kind in KINDS
    ]
    name, batch, _ = DRY_RUN.noisy
    cases += [(f"perturb {noise} {kind}, {name} {batch}", 1) for noise in gpu_gate.OTHER_NOISES for kind in KINDS]
    cases += [
        (f"accumulate, {heads}, K = {classes}, batch {batch}", 1)
        for classes, batch, _ in DRY_RUN.logits
        for heads in ("204 soft heads", "votes")
    ]
    cases += [(f"certify, {name}, n = {n}, batch {batch}", 2) for name, _, _, _, n, batch in DRY_RUN.networks]
    cases += [("floor: bytes", 1), ("floor: Philox words", 1)]
    found = [row["what"] for row in report["rows"]]
    assert {(what, found.count(what)) for what in found} == {(f"dry run: {what}", count) for what, count in cases}
    assert report["checks"] == {
        "equal": 12 + 21 + 4 + 2,
        "failed": 0,
    }  # Gaussian in 3 dtypes and 2 layouts, though 3 are timed
    for row in report["rows"]:
        assert row["status"] == "measured"
        assert 0 < row["low"] <= row["seconds"] <= row["high"] < math.inf
        assert row["rounds"] == DRY_RUN.rounds


def test_every_draw_is_measured():
    known = noises(gpu_gate.IMAGENET)
    assert {known[name].draw.name for name in ("Gaussian", *gpu_gate.OTHER_NOISES)} == set(DRAWS)


def test_dry_run_claims_nothing(dry_run):
    report = json.loads((dry_run[1] / "gpu_dry_run.json").read_text())
    assert report["about"]["dry_run"] is True
    assert report["about"]["clock"] == "host clock"
    for row in report["rows"]:
        assert row["dry_run"] is True
        assert (row["target"], row["reached"]) == (None, None)
        assert row["what"].startswith("dry run: ")


def test_dry_run_prints_its_table_last(dry_run):
    output, folder = dry_run
    table = (folder / "gpu_dry_run.md").read_text()
    assert output.endswith(table)
    lines = table.splitlines()
    assert lines[0] == "# Ratios on CPU"
    assert lines[2] == "Dry run on the CPU with tiny sizes: no claim of speed."
    assert torch.__version__ in table
    assert "seed 7." in table
    rows = [text for text in lines if text.startswith("|")]
    assert len(rows) == 2 + len(json.loads((folder / "gpu_dry_run.json").read_text())["rows"])
    assert {text.count("|") for text in rows} == {len(gpu_gate.COLUMNS) + 1}


def test_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_gate.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr() == ("", "There is no GPU that torch can use here; --dry-run works without.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["build", "run_tests"])
def test_a_failed_step_does_not_stop_the_measurement(monkeypatch, tmp_path, broken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_gate, "ON_GPU", SMALL)
    for name in ("build", "run_tests"):
        monkeypatch.setattr(gpu_gate, name, lambda limit, name=name: (name != broken, f"{name}, told"))
    assert gpu_gate.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    assert (report["about"]["build"], report["about"]["tests"]) == ("build, told", "run_tests, told")
    assert {row["status"] for row in report["rows"]} == {"measured"}
    left = {"build": "--skip-build", "run_tests": "--skip-tests"}[broken]
    assert gpu_gate.main(["--out", str(tmp_path), left]) == 0


def test_the_commit(monkeypatch, tmp_path):
    """Told by git, and only where git cannot, by the user."""
    monkeypatch.setattr(gpu_gate, "DRY_RUN", replace(SMALL, backends=()))
    told = []
    for answers in ({"rev-parse": "abc", "status": " M file"}, {"rev-parse": "abc"}, {}):
        monkeypatch.setattr("benchmarks.report.output_of", lambda *command, answers=answers: answers.get(command[1], ""))
        gpu_gate.main(["--dry-run", "--out", str(tmp_path), "--commit", "def"])
        table = (tmp_path / "gpu_dry_run.md").read_text()
        told.append(table[table.index("commit ") : table.index(", 20")])
    assert told == ["commit abc (tree dirty)", "commit abc", "commit def (as told)"]


# Wrong results


def flip_a_bit(monkeypatch):
    real = ops.perturb

    def perturb(*arguments, backend, **options):
        out = real(*arguments, backend=backend, **options)
        if backend == "cpu" and out.dtype == torch.bfloat16 and options["channels_last"] and len(out):
            out.view(torch.int16)[-1, -1, -1, -1] ^= 1
        return out

    monkeypatch.setattr(ops, "perturb", perturb)
    return "perturb bfloat16 channels_last, CIFAR 2", "1 elements, such as 23; 0 are NaN"


def leave_one_out(monkeypatch):
    real = ops.perturb

    def perturb(*arguments, backend, **options):
        out = real(*arguments, backend=backend, **options)
        if backend == "cpu" and out.dtype == torch.float32 and len(out):
            out[0, 0, 0, 1] = torch.nan
        return out

    monkeypatch.setattr(ops, "perturb", perturb)
    return "perturb float32 contiguous, CIFAR 2", "1 elements, such as 1; 1 are NaN"


def drop_a_vote(monkeypatch):
    real = ops.accumulate

    def accumulate(logits, tally, *, backend, **options):
        real(logits, tally, backend=backend, **options)
        if backend == "cpu" and tally.soft_heads:
            tally.counts[0, 0] -= 1

    monkeypatch.setattr(ops, "accumulate", accumulate)
    return "accumulate, 204 soft heads, K = 3, batch 4", "'reference': counts"


def sample_twice(monkeypatch):
    real = gpu_gate.rsfast.sample

    def sample(*arguments, **options):
        tally = real(*arguments, **options)
        tally.provenance = None  # else the sum is refused
        return tally + tally

    monkeypatch.setattr(gpu_gate.rsfast, "sample", sample)
    return "certify, tiny, n = 10, batch 5", "'reference': n, counts"


def crash(monkeypatch):
    real = ops.accumulate

    def accumulate(logits, tally, *, backend, **options):
        if backend == "cpu" and tally.soft_heads:
            raise RuntimeError("illegal | access\nsecond line")
        real(logits, tally, backend=backend, **options)

    monkeypatch.setattr(ops, "accumulate", accumulate)
    return "accumulate, 204 soft heads, K = 3, batch 4", "RuntimeError: illegal | access"


@pytest.mark.parametrize("harm", [flip_a_bit, leave_one_out, drop_a_vote, sample_twice, crash])
def test_a_wrong_result_is_reported_and_not_timed(monkeypatch, tmp_path, harm):
    what, why = harm(monkeypatch)
    code, report = run(monkeypatch, tmp_path)
    assert code == 1
    mine = [row for row in report["rows"] if row["what"].startswith(f"dry run: {what}")]
    assert [row["status"] for row in mine] == ["FAILED"]
    assert mine[0]["note"].endswith(why)
    assert mine[0]["seconds"] is None
    assert report["checks"]["failed"] >= 1
    table = (tmp_path / "gpu_dry_run.md").read_text()
    assert "| FAILED |" in table
    # The others were measured all the same.
    parts = {row["what"].split()[2] for row in report["rows"] if row["status"] == "measured"}
    assert parts == {"floor:", "perturb", "accumulate,", "certify,"} - ({"certify,"} if harm is sample_twice else set())


def test_difference():
    x = torch.tensor([[1.0, -0.0], [torch.nan, 4.0]])
    assert difference(x.clone(), x) == ""
    assert difference(x.abs(), x).startswith("1 elements, such as 1;")
    assert difference(x.t(), x) == "torch.float32 [2, 2] of strides (1, 2)"
    assert difference(x.half(), x).startswith("torch.float16")
    a, b = Tally(1, 3), Tally(1, 3)
    assert difference(a, b) == ""
    a.counts[0, 1], a.n[0] = 1, 1
    assert difference(a, b) == "n, counts"


def test_a_backend_that_is_not_there_is_a_row(monkeypatch, tmp_path):
    code, report = run(monkeypatch, tmp_path, replace(SMALL, backends=("cuda", "cpu")))
    assert code == 0
    row = report["rows"][0]
    assert (row["backend"], row["status"], row["seconds"]) == ("cuda", "not measured", None)
    assert "its tensors must be on a GPU" in row["note"]
    assert {row["backend"] for row in report["rows"] if row["what"].startswith("dry run: perturb")} == {"cpu"}
    code, report = run(monkeypatch, tmp_path, replace(SMALL, backends=("cuda",)))
    assert code == 1
    assert [row["status"] for row in report["rows"]] == ["not measured"]


def test_philox_words_that_are_not_there_are_a_row(monkeypatch, gate):
    monkeypatch.setitem(sys.modules, "rsfast.ops._cuda", None)
    monkeypatch.delattr(rsfast.ops, "_cuda", raising=False)
    gate.dry = False
    gpu_gate.measure_floors(gate)
    words = gate.rows[-1]
    assert (words.what, words.status) == ("floor: Philox words", "not measured")
    assert "rsfast.ops._cuda" in words.note
    assert gate.floor(1000, 10**12) == ("floor: bytes", 1000 / gate.bandwidth)


# Arithmetic


def test_percentiles():
    found = timing([float(i) for i in range(10, -1, -1)])
    assert (found.low, found.seconds, found.high, found.rounds) == (2.0, 5.0, 8.0, 11)


class FakeClock:
    """Every call appends its name to `log`; a turn takes as many seconds as calls were made."""

    def __init__(self):
        self.log = []

    def call(self, name):
        return lambda: self.log.append(name)

    def seconds(self, run):
        before = len(self.log)
        run()
        return float(len(self.log) - before)

    def capture(self, calls):
        self.log.append("capture")
        return lambda: [call() for call in calls]


def test_contenders_take_turns():
    clock = FakeClock()
    contenders = {"a": [clock.call("a")] * 2, "b": [clock.call("b")]}
    times = race(clock, contenders, rounds=3, budget=60)
    assert clock.log == ["a", "a", "b"] * 4  # warm-up, then the rounds
    assert (times["a"].seconds, times["b"].seconds) == (1.0, 1.0)  # a call
    assert times["a"].rounds == 3

    clock.log.clear()
    race(clock, contenders, rounds=1, budget=60, mode="graph", warm_up={"a": [clock.call("warm")]})
    assert clock.log == ["warm", "capture", "capture", "a", "a", "b"]


def test_a_race_ends_with_its_budget():
    clock = FakeClock()
    assert race(clock, {"a": [clock.call("a")]}, rounds=100, budget=0)["a"].rounds == LEAST_ROUNDS


def test_the_clock_of_a_gpu(monkeypatch):
    """The cache is emptied before the first event, and milliseconds become seconds."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(L2_cache_size=1000), raising=True
    )
    clock = gpu_gate.EventClock(torch.device("cpu"))
    clock._flush.fill_(1)
    assert clock.seconds(lambda: log.append(int(clock._flush.sum()))) == 0.003
    assert log == ["wait", "event", 0, "event", "wait"]
    assert [clock.sets(nbytes) for nbytes in (1, 200, 10**6)] == [64, 20, 8]


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (Row("", ratio=10.0, target=10), True),
        (Row("", ratio=9.9, target=10), False),
        (Row("", ratio=1.05, target=1.05, at_most=True), True),
        (Row("", ratio=1.06, target=1.05, at_most=True), False),
        (Row("", ratio=9.9), None),
        (Row("", target=10), None),
        (Row("", ratio=10.0, target=10, status="FAILED"), None),
    ],
)
def test_reached(row, reached):
    assert row.reached is reached


def test_a_line_of_the_table():
    row = Row("noise", "torch", "cuda", "graph", ratio=12.345, target=10, seconds=1.5e-5, low=1.4e-5, high=2e-3)
    row = replace(row, bytes=6_144_000, of_floor=0.71, predicted=2.5e-7, note="a|b")
    assert line(row) == (
        "| noise | torch | cuda | graph | 12.3 | at least 10 | yes | 15 us | 14 us to 2 ms | 6.14 MB | 0.71 | 250 ns | a/b |"
    )
    assert line(Row("w", status="FAILED", note="why")) == "| w |  |  |  |  |  | FAILED |  |  |  |  |  | why |"
    assert [show(value, "s") for value in (None, 2.0, 3e-10)] == ["", "2 s", "0.3 ns"]


def test_the_larger_floor_counts(gate):
    gate.bandwidth = 1e9
    assert gate.floor(2000, 10**6) == ("floor: bytes", 2e-6)
    gate.second_a_word = 1e-9
    assert gate.floor(2000, 1000) == ("floor: bytes", 2e-6)
    assert gate.floor(2000, 3000) == ("floor: Philox words", pytest.approx(3e-6))
    assert gate.floor(2000) == ("floor: bytes", 2e-6)


def test_ratios_of_perturb(monkeypatch, gate):
    """Of known times: theirs over ours, floor over ours, and bytes."""
    gate.backends, gate.dry, gate.bandwidth, gate.second_a_word = ["cpu"], False, 1e9, 1e-9
    times = {"cpu": timing([4e-8]), "torch": timing([4.8e-7])}
    monkeypatch.setattr(gate, "race", lambda contenders, mode: times)
    gpu_gate.gate_perturb(gate, Noisy("CIFAR", 2, (3, 2, 2), "bfloat16", True))
    against_torch, against_floor = gate.rows
    assert against_torch.bytes == 12 * 4 + 24 * 2
    assert (against_torch.ratio, against_torch.target, against_torch.reached) == (pytest.approx(12), 10, True)
    assert against_floor.against == "floor: bytes"  # 96 ns, of 24 ns for the words
    assert (against_floor.ratio, against_floor.target) == (pytest.approx(2.4), 0.7)


def test_ratios_of_noises(monkeypatch, gate):
    """Of known times: Gaussian's over the noise's, on the same backend; without a target where there is none."""
    gate.backends, gate.dry = ["cpu", "reference"], False
    times = {"cpu": 2.0, "cpu, Gaussian": 5.0, "reference": 3.0, "reference, Gaussian": 2.4}
    monkeypatch.setattr(gate, "race", lambda contenders, mode: {name: timing([times[name]]) for name in contenders})
    for noise in ("Laplace", "Splitting"):
        gpu_gate.gate_noise(gate, Noisy("CIFAR", 2, (3, 2, 2), "bfloat16", True, noise))
    assert [(row.backend, row.ratio, row.target, row.reached) for row in gate.rows] == [
        ("cpu", 2.5, 1, True),
        ("reference", pytest.approx(0.8), 1, False),
        ("cpu", 2.5, None, None),
        ("reference", pytest.approx(0.8), None, None),
    ]


def test_graphs(gate):
    """Small cases are timed in graphs, too; accumulate then alone, for what torch does on the host fits in no graph."""

    class Clock(gpu_gate.HostClock):
        modes = ("eager", "graph")

        def capture(self, calls):
            return lambda: [call() for call in calls]

    gate.clock, gate.dry = Clock(), False
    gpu_gate.usable_backends(gate)
    gpu_gate.gate_perturb(gate, Noisy("CIFAR", 2, (3, 2, 2), "float32", False))
    gpu_gate.gate_accumulate(gate, 3, 4, gpu_gate.GRID, 20)
    assert [(row.mode, row.ratio is None, row.target) for row in gate.rows] == [
        ("eager", False, None),
        ("eager", False, 0.7),
        ("graph", False, None),
        ("graph", False, 0.7),
        ("eager", False, 20),
        ("graph", True, None),
    ]
    assert all(row.seconds > 0 for row in gate.rows)


def test_predictions(monkeypatch, tmp_path):
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({"perturb bfloat16 channels_last": {"ps_per_element": 2.0}}))
    monkeypatch.setattr(gpu_gate, "PREDICTIONS", file)
    _, report = run(monkeypatch, tmp_path)
    found = {row["what"]: row["predicted"] for row in report["rows"] if row["predicted"] is not None}
    assert found == {"dry run: perturb bfloat16 channels_last, CIFAR 2": pytest.approx(24 * 2e-12)}


# Build and tests


def test_build(monkeypatch):
    for code in (0, 3):
        check = f"import os, sys; sys.exit({code} if os.environ['RSFAST_CUDA'] == '1' else 9)"
        monkeypatch.setattr(gpu_gate, "BUILD", [sys.executable, "-c", check])
        worked, told = gpu_gate.build(limit=60)
        assert worked is (code == 0)
        assert told.startswith("done in" if worked else "FAILED (3) in")
    monkeypatch.setattr(gpu_gate, "BUILD", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert gpu_gate.build(limit=0.1)[0] is False


def test_counts_of_the_tests(monkeypatch, capfd):
    script = "print('....'); print('3 failed, 12 passed, 1 skipped in 0.1s'); raise SystemExit(1)"
    monkeypatch.setattr(gpu_gate, "TESTS", [sys.executable, "-c", script])
    assert gpu_gate.run_tests(limit=60) == (False, "3 failed, 12 passed, 1 skipped; FAILED (1)")
    assert capfd.readouterr().out.startswith("....\n3 failed")
    monkeypatch.setattr(gpu_gate, "TESTS", [sys.executable, "-c", "print('12 passed, 4 deselected in 2s')"])
    assert gpu_gate.run_tests(limit=60) == (True, "12 passed, 4 deselected")
    monkeypatch.setattr(gpu_gate, "TESTS", [sys.executable, "-c", "import time; time.sleep(60)"])
    worked, told = gpu_gate.run_tests(limit=0.1)
    assert not worked
    assert "FAILED (-9)" in told


# Networks


@pytest.mark.parametrize(
    ("make", "shape", "classes", "parameters", "layers"),
    [
        (resnet50, (3, 64, 64), 1000, 25_557_032, 50),  # torchvision's documentation of resnet50
        (cifar_resnet110, (3, 32, 32), 10, 1_727_962, 110),  # He et al. 2015, table 6: 1.7 M
    ],
)
def test_networks(make, shape, classes, parameters, layers):
    torch.manual_seed(0)
    model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    weighted = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    shortcuts = 4 if make is resnet50 else 0  # not counted among the layers
    assert len(weighted) - shortcuts == layers
    assert not any(module.training for module in model.modules())
    x = torch.rand(2, *shape)
    with torch.inference_mode():
        logits = model(x)
        half = model.to(torch.bfloat16).to(memory_format=torch.channels_last)
        rounded = half(x.to(torch.bfloat16, memory_format=torch.channels_last))
    assert logits.shape == rounded.shape == (2, classes)
    assert rounded.dtype == torch.bfloat16
    assert bool(logits.isfinite().all())
    # Eight bits of mantissa through all layers: the same function, roughly.
    assert torch.linalg.vector_norm(rounded.float() - logits) < 0.1 * torch.linalg.vector_norm(logits)


def test_networks_halve_where_the_paper_does():
    """He et al. 2015: maps of 56, 28, 14 and 7 for an image of 224; of 32, 16 and 8 for CIFAR."""
    for model, shape, sizes in ((resnet50(), (3, 224, 224), [56, 28, 14, 7]), (cifar_resnet110(), (3, 32, 32), [32, 16, 8])):
        found = []
        for module in model:
            if type(module).__name__ == "Residual":
                module.register_forward_hook(lambda module, inputs, output, found=found: found.append(output.shape[-1]))
        with torch.inference_mode():
            model(torch.rand(1, *shape))
        assert sorted(set(found), reverse=True) == sizes
        assert found == sorted(found, reverse=True)
