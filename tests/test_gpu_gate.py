"""The program that measures on a GPU, as far as a CPU can tell: processes that hang or crash, resuming, what a case makes of
right and wrong results, its arithmetic, and its table."""

import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu_certify, gpu_device, gpu_gate, gpu_measure, gpu_sections, gpu_small, gpu_tools
from benchmarks.cases import noises
from benchmarks.gpu_cases import DRY_RUN, IMAGENET, OTHER_NOISES, Accumulate, Certify, Perturb
from benchmarks.gpu_checks import difference
from benchmarks.gpu_gate import main
from benchmarks.gpu_measure import setting
from benchmarks.gpu_sections import DEVICE_FAULT, ON_GPU, Job, Section
from benchmarks.gpu_sections import DRY_RUN as DRY_SECTIONS
from benchmarks.networks import cifar_resnet110, resnet50
from benchmarks.race import LEAST_ROUNDS, EventClock, HostClock, race, timing
from benchmarks.report import ABSENT, FAILED, MEASURED, PASSED, Report, Row, cells, short
from rsfast import Tally, ops
from rsfast.noise import DRAWS
from rsfast.ops.words import SWEEPS

ROOT = Path(__file__).resolve().parent.parent
ABOUT = {"device": "CPU", "commit": "unknown", "sources": "abc"}


def fake(name, **limits):
    return Section(name, f"tests.gate_sections:{name}", **{"least": 0, "case_limit": 2, **limits})


@pytest.fixture
def about(monkeypatch):
    """What is known of the machine, without asking a process."""
    monkeypatch.setattr(gpu_gate, "describe", lambda env, dry_run: dict(ABOUT))


def gate(folder, *sections, options=()):
    """Run the gate in this process, its sections in theirs; return the exit status and the report."""
    status = main(["--out", str(folder), *options], sections)
    return status, json.loads((folder / "report.json").read_text())


def results(report, section):
    return [(row["what"], row["status"], row["note"]) for row in report["rows"] if row["section"] == section]


def happened(folder):
    return (folder / "happened.txt").read_text().splitlines()


# Sections that end as they should not


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """All sections of gate_sections, one after the other, and what they left."""
    folder = tmp_path_factory.mktemp("ran")
    names = ("good", "hangs", "aborts", "raises", "faults", "not_there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_gate, "describe", lambda env, dry_run: dict(ABOUT))
        status, report = gate(folder, *map(fake, names), options=["--commit", "def"])
    return status, report, folder


def more(case):
    return [(case, MEASURED, ""), (f"{case}, more", MEASURED, "")]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("good", [*more("a"), *more("b")]),
        ("hangs", [*more("a"), ("b", MEASURED, ""), ("b", FAILED, "took longer than 2 s"), *more("c")]),
        ("aborts", [*more("a"), ("b", MEASURED, ""), ("b", FAILED, "its process ended with SIGABRT"), *more("c")]),
        ("raises", [("a", MEASURED, ""), ("a", FAILED, "RuntimeError: wrong | bits"), *more("b")]),
        ("faults", [("a", MEASURED, ""), ("a", FAILED, "ZeroDivisionError: division by zero"), *more("b")]),
        ("not_there", [("not_there", FAILED, "its process ended with status 1")]),
    ],
)
def test_one_case_does_not_stop_the_others(ran, section, expected):
    status, report, _ = ran
    assert results(report, section) == expected
    assert report["sections"][section]["state"] == ("given up" if section == "not_there" else "done")
    assert status == 1


def test_the_report_says_what_ran(ran):
    _, report, folder = ran
    assert report["about"]["commit"] == "def (as told)"
    text = (folder / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| a |")]
    assert len(rows) == 7
    assert "| not_there | given up |" in text
    assert "wrong / bits" in text
    assert happened(folder).count("aborts: c") == 1


def test_a_second_call_repeats_nothing(ran, about, capsys):
    _, report, folder = ran
    before = happened(folder)
    status, again = gate(folder, *map(fake, report["sections"]))
    assert (status, again["rows"]) == (1, report["rows"])
    assert happened(folder) == before
    printed = capsys.readouterr().out
    assert "b FAILED; took longer than 2 s" in printed
    assert printed.splitlines()[-1] == "Left for the next call: nothing"


def test_retry_runs_what_failed(about, tmp_path):
    assert gate(tmp_path, fake("fails_once"))[0] == 1
    (tmp_path / "mended").touch()
    status, report = gate(tmp_path, fake("fails_once"), options=["--retry"])
    assert (status, results(report, "fails_once")) == (0, [*more("b"), *more("a")])
    assert happened(tmp_path) == ["fails_once: a", "fails_once: b", "fails_once: a"]


def test_other_sources_begin_a_new_report(about, tmp_path, monkeypatch, capsys):
    gate(tmp_path, fake("good"), options=["--seed", "1"])
    assert gate(tmp_path, fake("good"))[1]["about"]["seed"] == 1  # the earlier call's
    for number, other in ((1, {"sources": "other"}), (2, {"device": "GPU"})):
        monkeypatch.setattr(gpu_gate, "describe", lambda env, dry_run, other=other: ABOUT | other)
        gate(tmp_path, fake("good"))
        assert (tmp_path / f"before_{number}.md").exists()
        names = " and ".join(("sources", "device")[:number])
        assert f"a new report; the one that was here, of other {names}, is before_{number}.md" in capsys.readouterr().out
    gate(tmp_path, fake("good"), options=["--seed", "2"])
    assert json.loads((tmp_path / "before_3.json").read_text())["about"]["seed"] == 1
    assert len(happened(tmp_path)) == 2 * 4


def test_a_report_on_a_new_machine_builds_again(about, tmp_path, monkeypatch, capsys):
    """What was built stayed on the machine before; all else is in the folder."""
    sections = (replace(fake("good"), name="build"), fake("good"))
    monkeypatch.setattr(gpu_gate, "ROOT", tmp_path)
    (tmp_path / "rsfast" / "ops").mkdir(parents=True)
    assert not gpu_gate.is_built()
    (tmp_path / "rsfast" / "ops" / "_cpu.abi3.so").touch()
    assert gpu_gate.is_built()
    for there, count in ((True, 4), (True, 4), (False, 6)):
        monkeypatch.setattr(gpu_gate, "is_built", lambda there=there: there)
        status, report = gate(tmp_path / "out", *sections)
        assert (status, len(report["rows"]), len(happened(tmp_path / "out"))) == (0, 8, count)
    assert happened(tmp_path / "out")[-2:] == ["build: a", "build: b"]
    printed = capsys.readouterr().out
    for told in (
        "a new report",
        "goes on with 8 rows",
        "goes on with 8 rows, and builds: the extensions are not on this machine",
    ):
        assert f"commit unknown; {told}\n" in printed


# Time


def test_the_budget_ends_a_call_and_the_next_goes_on(about, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_gate, "RESERVE", 0.0)
    sections, began = [fake("slow", limit=60), fake("good")], time.monotonic()
    status, report = gate(tmp_path, *sections, options=["--budget", "2"])
    assert status == 3
    assert time.monotonic() - began < 6
    assert capsys.readouterr().out.endswith("Left for the next call: slow, good\n")
    assert len(report["sections"]["slow"]["finished"]) < 8
    assert not [row for row in report["rows"] if row["status"] == FAILED]
    status, report = gate(tmp_path, *sections)
    assert (status, len(report["rows"])) == (0, 2 * (8 + 2))
    assert len(happened(tmp_path)) in (8 + 2, 8 + 2 + 1)  # at most the case that was cut off began again


def test_a_section_that_takes_too_long_is_given_up(about, tmp_path):
    status, report = gate(tmp_path, fake("slow", limit=1.5), fake("good"))
    assert status == 1
    assert results(report, "slow")[-1] == ("slow", FAILED, "the section took longer than 1.5 s")
    assert [report["sections"][name]["state"] for name in ("slow", "good")] == ["given up", "done"]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("lingers", "done, but its process did not end within 0.5 s"),
        ("crashes_at_its_end", "its process ended with SIGABRT"),
    ],
)
def test_a_process_that_ends_badly_after_its_last_case(about, tmp_path, monkeypatch, name, note):
    monkeypatch.setattr(gpu_gate, "EXIT", 0.5)
    status, report = gate(tmp_path, fake(name))
    assert (status, results(report, name)) == (0, more("a"))
    assert (report["sections"][name]["state"], report["sections"][name]["note"]) == ("done", note)
    assert f"| {name} | done; {note} |" in (tmp_path / "report.md").read_text()


def test_a_section_that_does_not_fit_waits_for_the_next_call(about, tmp_path):
    status, report = gate(tmp_path, fake("hangs", least=1000), fake("good"))
    assert (status, list(report["sections"])) == (3, ["good"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_section_and_leaves_a_report(number, tmp_path):
    code = f"""
from benchmarks import gpu_gate
from benchmarks.gpu_sections import Section
gpu_gate.describe = lambda env, dry_run: {ABOUT}
section = Section("hangs", "tests.gate_sections:hangs", case_limit=60)
raise SystemExit(gpu_gate.main(["--out", {str(tmp_path)!r}], [section]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("b "):
        assert process.poll() is None
    process.send_signal(number)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name}" in rest
    assert rest.endswith("Left for the next call: hangs\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert results(report, "hangs") == [*more("a"), ("b", MEASURED, "")]
    assert report["sections"]["hangs"]["finished"] == ["a"]


# The machine


def test_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_gate, "describe", lambda env, dry_run: {**ABOUT, "device": None})
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr() == ("", "There is no GPU that torch can use here; --dry-run works without.\n")
    assert not (tmp_path / "out").exists()


def test_without_a_package(monkeypatch, capsys, tmp_path):
    real = gpu_device.find_spec
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: None if name in ("tqdm", "setuptools") else real(name))
    found = gpu_device.surroundings(dry_run=False)
    monkeypatch.setattr(gpu_gate, "describe", lambda env, dry_run: found)
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "Install, or bring along on PYTHONPATH: tqdm, setuptools\n"


def test_without_a_home_or_a_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr(gpu_gate.pwd, "getpwuid", lambda uid: {}[uid])
    for name in ("LOGNAME", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    found = gpu_gate.environment(tmp_path)
    assert found["HOME"] == str(tmp_path / "cache")
    assert (found["LOGNAME"], found["TRITON_CACHE_DIR"]) == ("gate", str(tmp_path / "cache" / "triton"))


def program(folder, name, text, monkeypatch):
    """Put a shell script first on the PATH."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize("known", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_clocks(monkeypatch, tmp_path, known):
    answer = 'echo "1980 MHz, 2619 MHz, 0x0, 310.1 W, 45"'
    program(tmp_path, "nvidia-smi", f'case "$*" in *{known}.active*) {answer};; *) exit 2;; esac', monkeypatch)
    assert gpu_device.clocks() == "SM 1980 MHz, memory 2619 MHz, reasons 0x0, 310.1 W, 45 C"


def test_a_machine_without_tools(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert gpu_device.clocks() == ""
    assert gpu_device.find_tool("compute-sanitizer-of-nobody") is None
    monkeypatch.setattr(gpu_device, "find_tool", lambda name: None)
    found = gpu_device.surroundings(dry_run=True)
    assert (found["device"], found["driver"], found["nvcc"]) == ("CPU", "none", "none")


def test_a_tool_in_the_toolkit(monkeypatch, tmp_path):
    (tmp_path / "compute-sanitizer").mkdir()
    program(tmp_path / "compute-sanitizer", "sanitizer-x", "", monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_device.find_tool("sanitizer-x") == str(tmp_path / "compute-sanitizer" / "sanitizer-x")


# The real sections, in a dry run


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The report and the folder of a dry run in this process, but for the tests, which test_tests runs."""
    report = Report(tmp_path_factory.mktemp("dry"))
    report.begin_anew(gpu_device.surroundings(dry_run=True) | {"dry_run": True, "seed": 7})
    for each in DRY_SECTIONS:
        if each.name != "tests cpu":
            gpu_sections.main(str(report.folder), each.name, each.function, each.backend)
    report.load()
    assert {section["state"] for section in report.sections.values()} == {"done"}
    return report


def test_dry_run_measures_every_case(dry_run):
    rows = dry_run.rows
    assert dry_run.failures == []
    measured = {row.what for row in rows if row.status == MEASURED}
    cases = (*(each for each in DRY_RUN.perturb if each.timed), *DRY_RUN.noises, *DRY_RUN.accumulate, *DRY_RUN.certify)
    floors = {f"floor: {name}" for name in ("copy", "fill_", "normal_ float32", "normal_ bfloat16", "Philox words")}
    assert measured == {case.what for case in cases} | floors
    checked = {row.what for row in rows if row.status == PASSED and row.section != "checksums cpu"}
    assert checked == {each.what for each in DRY_RUN.perturb if not each.timed} | {"waits in a run", "trace", "profile"}
    assert {row.what for row in rows if row.section == "checksums cpu"} == {
        "doctor",
        *(f"words of {name}" for name in SWEEPS),
    }
    assert {row.what for row in rows if row.status == ABSENT} >= {"build", "memcheck perturb", "ncu accumulate"}
    for row in rows:
        assert row.targets == {}  # no claim
        assert row.status != MEASURED or 0 < row.low <= row.seconds <= row.high


def test_dry_run_says_so(dry_run):
    text = (dry_run.folder / "report.md").read_text()
    assert text.splitlines()[4] == "Dry run on the CPU with tiny sizes: no claim of speed."
    assert torch.__version__ in text
    assert json.loads((dry_run.folder / "trace_cpu.json").read_text())["traceEvents"]


@pytest.mark.noise
def test_the_whole_dry_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_gate", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Left for the next call: nothing\n")


def test_every_draw_is_measured():
    known = noises(IMAGENET)
    assert {known[name].draw.name for name in ("Gaussian", *OTHER_NOISES)} == set(DRAWS)


def test_sections_name_what_is_there():
    for section in (*ON_GPU, *DRY_SECTIONS):
        module, name = section.function.split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))
        assert 0 < section.least <= section.case_limit <= section.limit


# Cases


PLAIN = Perturb("CIFAR", 2, (3, 2, 2), "bfloat16", True)
GRID = Accumulate(3, 4, "204 soft heads", target=20)


@pytest.fixture
def job(tmp_path):
    report = Report(tmp_path)
    report.about = {"dry_run": True, "seed": 1}
    return Job(report, "section", "cpu")


@pytest.fixture
def claims(job):
    """A job that makes claims, as on a GPU."""
    job.dry = False
    job.report.section(job.name)["rates"] = {"copy": 1e9, "word": 1e-9}
    return job


class Graphs(HostClock):
    """A clock whose graphs make the calls."""

    modes = ("eager", "graph")

    def capture(self, calls):
        return lambda: [call() for call in calls]


def with_times(monkeypatch, times):
    """Let every race end with these times; return the modes."""
    modes = []

    def known(self, contenders, mode="eager"):
        modes.append(mode)
        return {name: timing([times[name]]) for name in contenders}

    monkeypatch.setattr(gpu_measure.Setting, "race", known)
    return modes


TINY = Certify("tiny", lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), (3, 2, 2), 3, 1, 5, 10, 5)


def wrong_element(monkeypatch):
    real = ops.perturb

    def perturb(*arguments, backend, **options):
        out = real(*arguments, backend=backend, **options)
        if backend == "cpu":
            out.view(torch.int16)[-1, -1, -1, -1] ^= 1
        return out

    monkeypatch.setattr(ops, "perturb", perturb)
    return gpu_measure.perturb, PLAIN, "ArithmeticError: differs from backend='reference': 1 elements, such as 23; 0 are NaN"


def left_out(monkeypatch):
    real = ops.perturb

    def perturb(*arguments, backend, **options):
        out = real(*arguments, backend=backend, **options)
        if backend == "cpu":
            out[0, 0, 0, 1] = torch.nan
        return out

    monkeypatch.setattr(ops, "perturb", perturb)
    laplace = replace(PLAIN, noise="Laplace")
    return gpu_measure.other_noise, laplace, "differs from backend='reference': 1 elements, such as 1; 1 are NaN"


def vote_dropped(monkeypatch):
    real = ops.accumulate

    def accumulate(logits, tally, *, backend, **options):
        real(logits, tally, backend=backend, **options)
        if backend == "cpu":
            tally.counts[0, 0] -= 1

    monkeypatch.setattr(ops, "accumulate", accumulate)
    return gpu_measure.accumulate, GRID, "'reference': counts"


def sampled_twice(monkeypatch):
    real = gpu_certify.rsfast.sample

    def sample(*arguments, **options):
        tally = real(*arguments, **options)
        tally.provenance = None  # else the sum is refused
        return tally + tally

    monkeypatch.setattr(gpu_certify.rsfast, "sample", sample)
    return gpu_certify.certify, TINY, "'reference': n, counts"


@pytest.mark.parametrize("harm", [wrong_element, left_out, vote_dropped, sampled_twice])
def test_a_wrong_result_is_reported_and_not_timed(monkeypatch, job, harm):
    measure, case, why = harm(monkeypatch)
    job.run(case.what, lambda: measure(job, setting(dry=True), case))
    [row] = job.report.rows
    assert (row.what, row.status, row.seconds) == (case.what, FAILED, None)
    assert row.note.endswith(why)


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


def test_a_backend_that_is_not_there_is_a_row(job):
    job.backend = "cuda"
    gpu_measure.kernels(job)
    [row] = job.report.rows
    assert (row.backend, row.status) == ("cuda", ABSENT)
    assert "its tensors must be on a GPU" in row.note


def test_philox_words_that_are_not_there_are_a_row(monkeypatch, claims):
    def absent(on, words):
        raise ImportError("rsfast.ops._cuda")

    monkeypatch.setattr(gpu_measure, "philox_words", absent)
    claims.report.section(claims.name)["rates"] = {}
    *_, words = gpu_measure.floors(claims, setting(dry=True))
    assert (words.status, words.note) == (ABSENT, "ImportError: rsfast.ops._cuda")
    rates = claims.report.section(claims.name)["rates"]
    assert gpu_measure.floor(claims, 1000, 10**12) == 1000 / rates["copy"]


def test_a_lost_device_ends_the_process(monkeypatch, job):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit) as ended:
        job.run("case", lambda: [Row("case", seconds=1.0)])
    assert ended.value.code == DEVICE_FAULT
    assert Report(job.folder).section(job.name)["finished"] == ["case"]


def test_ratios_of_perturb(monkeypatch, claims):
    """Of known times: theirs over ours, floor over ours, and bytes."""
    with_times(monkeypatch, {"ours": 4e-8, "torch": 4.8e-7, "normal_": 2e-8, "fill_": 1e-8})
    [row] = gpu_measure.perturb(claims, setting(dry=True), PLAIN)
    assert row.bytes == 12 * 4 + 24 * 2
    assert row.times == {"torch": pytest.approx(12), "normal_": 0.5, "fill_": 0.25}
    assert row.of_floor == pytest.approx(2.4)  # 96 ns of bytes, 24 ns of words
    assert (row.targets, row.missed) == ({"floor": 0.7, "torch": 10.0}, {})


@pytest.mark.parametrize(("noise", "missed"), [("Laplace", {"Gaussian": 1}), ("Splitting", {})])
def test_ratios_of_noises(monkeypatch, claims, noise, missed):
    """Of known times: Gaussian's over the noise's; without a target where there is none."""
    with_times(monkeypatch, {"ours": 3.0, "Gaussian": 2.4})
    [row] = gpu_measure.other_noise(claims, setting(dry=True), replace(PLAIN, noise=noise))
    assert (row.times, row.missed) == ({"Gaussian": pytest.approx(0.8)}, missed)


def test_graphs(monkeypatch, claims):
    """Small cases are timed in graphs, too; accumulate then without torch, which needs the host."""
    on = replace(setting(dry=True), clock=Graphs())
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    rows = [*gpu_measure.perturb(claims, on, replace(PLAIN, channels_last=False)), *gpu_measure.accumulate(claims, on, GRID)]
    assert [(row.mode, sorted(row.times), sorted(row.targets)) for row in rows] == [
        ("eager", ["compiled", "fill_", "normal_", "torch"], []),
        ("graph", ["compiled", "fill_", "normal_", "torch"], ["floor", "torch"]),
        ("eager", ["torch"], ["torch"]),
        ("graph", [], []),
    ]
    assert all(row.seconds > 0 for row in rows)
    monkeypatch.setattr(gpu_measure, "GRAPH_BYTES", 1)
    [row] = gpu_measure.perturb(claims, on, PLAIN)
    assert (row.mode, sorted(row.targets)) == ("eager", ["floor", "torch"])


def test_a_competitor_that_does_not_run_is_left_out(monkeypatch, claims):
    monkeypatch.setattr(gpu_measure, "torch_perturb", lambda x, batch: x.nothing())
    [row] = gpu_measure.perturb(claims, setting(dry=True), PLAIN)
    assert sorted(row.times) == ["fill_", "normal_"]
    assert row.note.startswith("torch: AttributeError")


def test_the_competitor_is_the_same_expression():
    """Without noise it is what perturb computes, options and rounding included."""
    case = replace(PLAIN, scale=True, clamp=True)
    x = torch.rand(1, 3, 2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", torch.zeros)
        found = gpu_measure.expression(case, torch.device("cpu"))(x)
    given = {"x": x, "noise": noises((3, 2, 2))["Gaussian"], "samples": range(2), "seed": 1}
    options = {"scale": gpu_measure.SCALE, "shift": gpu_measure.SHIFT, "clamp": gpu_measure.CLAMP, "dtype": "bfloat16"}
    spread = ops.perturb(**given, **options).float() - found.float()
    assert (found.shape, found.dtype) == ((2, 3, 2, 2), torch.bfloat16)
    assert spread.abs().max() < 4.5 * 0.25 * 4  # noise alone: the values are those of x otherwise


def test_predictions(monkeypatch, job, tmp_path):
    file = tmp_path / "predictions.json"
    known = {PLAIN.what: {"seconds": 2e-7, "seconds_h100": 3e-7}}
    file.write_text(json.dumps({"cpu": known, "cuda": {GRID.what: {"seconds": 1.0}}}))
    monkeypatch.setattr(gpu_measure, "PREDICTIONS", file)
    for device, predicted in (("NVIDIA H200", 2e-7), ("NVIDIA H100 80GB HBM3", 3e-7), ("NVIDIA A100", None)):
        job.report.about["device"] = device
        [first] = gpu_measure.perturb(job, setting(dry=True), PLAIN)
        [second] = gpu_measure.accumulate(job, setting(dry=True), GRID)
        assert (first.predicted, second.predicted) == (predicted, None)


@pytest.mark.parametrize(("more", "status"), [(0, PASSED), (2, FAILED)])
def test_waits_are_counted(monkeypatch, job, more, status):
    """What a run waits once is told; what a batch waits is a failure."""

    def certify(self, n=None):
        if n is not None:
            for _ in range(1 + (more if n == 2 * self.case.n else 0)):
                warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            warnings.warn(
                "the mode does not yet detect all synchronizing operations", UserWarning, stacklevel=1
            )  # torch's, once

    monkeypatch.setattr(gpu_certify.Prepared, "certify", certify)
    [row] = gpu_certify.waits(job, setting(dry=True), TINY)
    assert row.status == status
    assert row.note.startswith(f"1 with n = 10, {1 + more} with twice that; {{'tests/test_gpu_gate.py:")


class Averages(list):
    def table(self, **options):
        return "a table"


def test_the_profile_counts_kernels_once(job):
    """Of a GPU: the operator that launched a kernel has its time, too."""

    def event(key, kind, microseconds):
        device = types.SimpleNamespace(name=kind)
        return types.SimpleNamespace(key=key, device_type=device, self_device_time_total=microseconds)

    events = Averages([event("aten::conv", "CPU", 9e5), event("gemm", "CUDA", 9e5), event("perturb_kernel", "CUDA", 1e5)])
    row = gpu_certify.busy_part(job, events, 2.0, "CUDA")
    assert row.note == "device busy 50% of 2 s, profiled: gemm 90.0%, perturb_kernel 10.0%"
    assert gpu_certify.busy_part(job, Averages(events[:1]), 2.0, "CUDA").status == ABSENT


# Other programs


def test_build(monkeypatch, claims):
    claims.report.about["capability"] = [9, 0]
    check = "import os, sys; sys.exit(os.environ['RSFAST_CUDA'] + os.environ['RSFAST_CUDA_TARGETS'] != '190')"
    fails = "import os, sys; sys.exit('no nvcc' if os.environ['RSFAST_CUDA'] == '1' else 0)"
    for command, status in ((check, PASSED), (fails, FAILED)):
        monkeypatch.setattr(gpu_tools, "BUILD", [sys.executable, "-c", command])
        [row] = gpu_tools.built(claims)
        assert row.status == status
        assert (claims.folder / "build_without_CUDA.log").exists() == (status == FAILED)
    assert "no nvcc" in (claims.folder / "build.log").read_text()
    claims.report.about["skip_build"] = True
    [row] = gpu_tools.built(claims)
    assert (row.status, row.note[:10]) == (ABSENT, "as it was;")


def test_targets(monkeypatch, tmp_path):
    program(
        tmp_path,
        "cuobjdump",
        "echo 'ELF file 1: perturb.sm_90.cubin'; echo 'ELF file 2: perturb.sm_100a.cubin'",
        monkeypatch,
    )
    monkeypatch.setattr(gpu_tools, "ROOT", tmp_path)
    assert gpu_tools.targets() == "rsfast.ops._cuda is not there"
    (tmp_path / "rsfast" / "ops").mkdir(parents=True)
    (tmp_path / "rsfast" / "ops" / "_cuda.so").touch()
    assert gpu_tools.targets() == "machine code for sm_100a, sm_90"


def test_tests(monkeypatch, claims):
    script = "print('....\\nFAILED tests/x.py::y - why\\n3 failed, 12 passed, 1 skipped in 0.1s'); raise SystemExit(1)"
    monkeypatch.setattr(gpu_tools, "PYTEST", [sys.executable, "-c", script])
    [row] = gpu_tools.tested(claims, "x.py", "not triton")
    assert (
        f"raise SystemExit(1) {' '.join(gpu_tools.WORKERS)} -k not triton x.py\n"
        in (claims.folder / "x.py_not_triton.log").read_text()
    )
    assert (row.status, row.note) == (FAILED, "3 failed, 12 passed, 1 skipped; FAILED tests/x.py::y - why")
    monkeypatch.setattr(gpu_tools, "PYTEST", [sys.executable, "-c", "print('12 passed, 4 deselected in 2s')"])
    monkeypatch.setattr(gpu_tools, "find_spec", lambda name: None)
    [row] = gpu_tools.tested(claims, "x.py", "")
    assert (row.status, row.note) == (PASSED, "12 passed, 4 deselected")
    assert "2s') x.py\n" in (claims.folder / "x.py.log").read_text()


@pytest.mark.parametrize(
    ("prints", "code", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors\\nall equal", 0, PASSED),
        ("========= ERROR SUMMARY: 2 errors\\nall equal", 86, FAILED),
        ("========= RACECHECK SUMMARY: 1 hazard displayed\nall equal", 0, FAILED),
        ("========= ERROR SUMMARY: 0 errors", 0, FAILED),  # the calls did not run to their end
        ("========= Error: No attachable process found. compute-sanitizer timed-out.\\nall equal", 0, ABSENT),
        ("========= Error: Device not supported", 1, ABSENT),
        ("all equal", 0, FAILED),
    ],
)
def test_sanitizer(monkeypatch, claims, tmp_path, prints, code, status):
    """It passes only if the tool says so: one that did not watch the process prints no summary."""
    text = f'echo "$@ $PYTORCH_NO_CUDA_MEMORY_CACHING"; printf "{prints}\\n"; exit {code}'
    program(tmp_path, "compute-sanitizer", text, monkeypatch)
    [row] = gpu_tools.sanitized(claims, "memcheck", "perturb")
    assert row.status == status
    assert ("no summary" in row.note) == ("SUMMARY" not in prints)
    log = (claims.folder / "memcheck_perturb_cpu.log").read_text()
    assert "--tool memcheck" in log
    assert "benchmarks.gpu_small perturb cpu 1\n" in log


def test_ncu(monkeypatch, claims, tmp_path):
    lines = "    Duration                 us       192.45\\n    Registers Per Thread register/thread      40"
    program(tmp_path, "ncu", f'printf "{lines}\\n"', monkeypatch)
    [row] = gpu_tools.profiled(claims, "perturb", "cuda")
    assert (row.status, row.note) == (PASSED, "Duration 192.45 us, Registers Per Thread 40 register/thread")
    program(tmp_path, "ncu", 'echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"; exit 1', monkeypatch)
    [row] = gpu_tools.profiled(claims, "perturb", "cuda")
    assert row.status == ABSENT
    assert "ERR_NVGPUCTRPERM" in row.note


def test_calls_for_tools(capsys):
    """Small sizes of every draw and of every way of accumulate, right; a wrong one is not."""
    for what in ("perturb", "accumulate"):
        gpu_small.main(what, "reference")
    assert capsys.readouterr().out == "all equal\nall equal\n"
    with pytest.MonkeyPatch.context() as patch:
        wrong_element(patch)
        with pytest.raises(ArithmeticError):
            gpu_small.main("perturb", "reference")


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
    clock = EventClock(torch.device("cpu"))
    clock._flush.fill_(1)
    assert clock.seconds(lambda: log.append(int(clock._flush.sum()))) == 0.003
    assert log == ["wait", "event", 0, "event", "wait"]
    assert [clock.sets(nbytes) for nbytes in (1, 200, 10**6)] == [64, 20, 8]


def test_targets_that_are_missed():
    row = Row("", times={"torch": 9.9, "loop": 1.0}, targets={"torch": 10, "loop": 1, "floor": 0.7}, of_floor=0.71)
    assert row.missed == {"torch": 10}
    assert replace(row, of_floor=0.69).missed == {"torch": 10, "floor": 0.7}
    assert replace(row, times={}, of_floor=None).missed == {}


def test_a_line_of_the_table():
    row = Row("noise", "cuda", "graph", seconds=1.5e-5, low=1.4e-5, high=2e-3, bytes=6_144_000, of_floor=0.71)
    row = replace(row, predicted=1e-5, times={"torch": 12.345}, targets={"torch": 20}, note="|")
    assert " | ".join(cells(row)) == (
        "noise | cuda | graph | measured | 15 us | 14 us to 2 ms | 6.14 MB | 0.71 | 10 us | 1.5 | torch 12.3 | torch 20 | /"
    )
    assert short(row) == "noise cuda graph 15 us; of floor 0.71; of predicted 1.5; times torch 12.3; missed torch 20; /"
    assert short(Row("w", status=FAILED, note="why")) == "w FAILED; why"


def test_the_larger_floor_counts(claims):
    assert gpu_measure.floor(claims, 2000) == pytest.approx(2e-6)
    assert gpu_measure.floor(claims, 2000, 3000) == pytest.approx(3e-6)
    claims.report.section(claims.name)["rates"] = {}
    [row] = gpu_measure.perturb(claims, setting(dry=True), PLAIN)
    assert row.of_floor is None


def test_a_report_that_is_long_ends_with_what_is_left(tmp_path, capsys):
    report = Report(tmp_path)
    slow = {"of_floor": 0.1, "targets": {"floor": 0.7}}
    report.rows = [Row(f"case {number}", note="x" * 90, **slow) for number in range(300)]
    assert gpu_gate.conclude(report, [fake("good")], 0) == 3
    printed = capsys.readouterr().out
    assert len(printed) < 12_000
    assert "case 299; of floor 0.1; missed floor 0.7" in printed
    assert "Targets not reached:" in printed
    assert printed.endswith("Left for the next call: good\n")


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
