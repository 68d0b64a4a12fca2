"""bench: contenders in turn on a clock that the test drives, forecasts against certify itself, and the command line."""

import json
import math
import os
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rsfast
from rsfast import Gaussian, cli
from rsfast.bench.forecast import check_stopping, forecast
from rsfast.bench.limit import at_most
from rsfast.bench.measure import DEFAULT, FORWARD, LOOP, Measurement
from rsfast.bench.race import Race
from rsfast.bench.report import Report
from rsfast.bench.run import bench, pick
from rsfast.bench.subject import Certifying, Change, Subject, loop, random_inputs
from rsfast.bench.twins import Twins, counts_from_run, posterior
from rsfast.engine.inputs import Unreadable
from rsfast.engine.plan import StoppingRule
from rsfast.loop2019 import Loop2019

ROOT = Path(__file__).resolve().parent.parent
PROOF = {"n0": 100, "n": 20_000, "alpha": 0.001}
SIGMA = 0.5


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed(torch.nn.Module):
    """A linear model that takes so many seconds a row: half of them in channels_last, a quarter of that under autocast."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.linear = clock, seconds, torch.nn.Linear(12, 3)

    def forward(self, x):
        faster = 1.0
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            faster *= 2
        if torch.is_autocast_enabled("cpu"):
            faster *= 4
        self.clock.now += len(x) * self.seconds / faster
        return self.linear(x.flatten(1)) + 10  # so large that bfloat16 rounds many to the same


def changes(subject, batch, most):
    """All that are tried but the compiler, which would take real seconds."""
    yield Change("twice the batch", {"batch_size": 2 * batch})
    yield Change("channels_last", {"channels_last": True})
    yield Change("autocast bfloat16", {"autocast": "bfloat16"})
    yield Change("dtype bfloat16", {"dtype": "bfloat16"})
    yield Change("CUDA graph", {"cuda_graph": True})


def measurement(seconds_a_row, n=20_000):
    torch.manual_seed(0)
    clock, said = Clock(), []
    images = random_inputs(4, [3, 2, 2], torch.device("cpu"))
    subject = Subject(Timed(clock, seconds_a_row), images, Gaussian(SIGMA), 3, proof=PROOF | {"n": n})
    return Measurement(subject, clock=clock, say=said.append, single=changes), clock, said


def test_a_drift_cancels_in_ratios():
    """The machine is ten times as slow in the end; the second contender is twice as fast throughout."""
    clock = Clock()

    def run(rows, seconds):
        clock.now += rows * seconds * (1 + 9 * min(1, clock.now / 100))

    race = Race(turn=0.1, clock=clock)
    race.add("first", lambda rows: run(rows, 0.01), 5)
    race.add("second", lambda rows: run(rows, 0.005), 5)
    race.go_on(until=100.0)
    assert race.turns("first") == race.turns("second") > 50
    assert race.ratio("second", "first") == pytest.approx(2, rel=0.05)
    assert race.rate("first") < 50


def test_a_contender_that_fails_takes_no_part():
    def fails(rows):
        raise ArithmeticError(rows)

    race = Race(turn=1.0, clock=Clock())
    with pytest.raises(ArithmeticError):
        race.add("fails", fails, 1)
    assert "fails" not in race


def test_what_is_faster_wins_and_is_put_together():
    measuring, clock, said = measurement(0.001)
    measured = measuring.measure()
    lines = measured.lines
    assert lines["channels_last"].ratio == pytest.approx(2, rel=0.05)
    assert lines["autocast bfloat16"].ratio == pytest.approx(4, rel=0.05)
    assert lines["twice the batch"].ratio == pytest.approx(1, rel=0.03)
    assert lines[DEFAULT].rate == pytest.approx(1000, rel=0.05)
    assert lines[FORWARD].ratio == pytest.approx(1, rel=0.03)
    assert lines[LOOP].rate == pytest.approx(1000, rel=0.05)
    assert measured.best(exact=True).name == "channels_last"
    assert measured.best(exact=False).name == "autocast bfloat16, channels_last"
    assert measured.best(exact=False).ratio == pytest.approx(8, rel=0.05)
    assert measured.skipped["dtype bfloat16"].startswith("dtype must be torch.float32")
    assert measured.skipped["CUDA graph"].startswith("cuda_graph must be False where inputs is on 'cpu'")
    assert lines["channels_last"].agreement == 1.0
    assert 0.9 < lines["autocast bfloat16"].agreement < 1.0
    assert lines["autocast bfloat16"].compared > 100
    assert lines[DEFAULT].memory > 0
    assert set(measured.shares) == {"model", "kernels", "bounds", "rest"}
    assert sum(measured.shares.values()) == pytest.approx(1)
    assert clock.now <= 60
    [first] = [line for line in said if line.startswith("first answer")]
    assert "rsfast as it comes 1,000" in first


@pytest.mark.parametrize("seconds_a_row", [0.001, 0.1, 2.0])
def test_time_is_bounded_however_slow_the_model(seconds_a_row):
    """A first answer comes within 20 s, and the end at a minute; then a turn may still be on its way."""
    measuring, clock, said = measurement(seconds_a_row)
    measured = measuring.measure()
    [first] = [line for line in said if line.startswith("first answer")]
    assert float(first.split()[3]) <= 20
    assert clock.now <= (60 if seconds_a_row < 1 else 120)
    assert measured.lines[DEFAULT].rate == pytest.approx(1 / seconds_a_row, rel=0.05)


def test_nothing_is_changed_where_nothing_is_faster():
    measuring, _, _ = measurement(0.001)
    measuring.subject.model.forward = lambda x: Timed.forward(measuring.subject.model, x.flatten(1))  # one layout
    measuring = Measurement(
        measuring.subject,
        clock=measuring.subject.model.clock,
        say=str,
        single=lambda *_: [Change("channels_last", {"channels_last": True})],
    )
    measured = measuring.measure()
    assert measured.best(exact=True).name == measured.best(exact=False).name == DEFAULT


def report_of(measuring, forecasts=()):
    words = ["rsfast", "certify", "--model", "nets:net", "--data", "data.npz", "--num-classes", "3", "--sigma", "0.5"]
    measured = measuring.measure()
    return Report(measuring.subject, "nets:net", [*words, "--n", "1000", "--out", "run"], 10, measured, forecasts, "")


def test_the_command_runs(tmp_path, monkeypatch):
    """As it is printed, with the batch size and the options that won."""
    measuring, _, _ = measurement(0.001)
    report = report_of(measuring)
    (tmp_path / "nets.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))\n"
    )
    np.savez(tmp_path / "data.npz", images=measuring.subject.images.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = shlex.split(report.command())
    assert cli.main([*words[1:], "--seed", "1"]) == 0
    sidecar = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sidecar["batch_size"] == report.measured.lines[DEFAULT].batch
    assert (sidecar["channels_last"], sidecar["autocast"], sidecar["n"]) == (True, None, 1000)
    assert "--autocast bfloat16" in report.command(exact=False)
    assert report.command() in report.text()


def test_threads_are_a_variable_of_the_command():
    measuring, _, _ = measurement(0.001)
    report = report_of(measuring)
    line = report.measured.lines["channels_last"]
    line.change = Change("1 thread", line.change.options, threads=1)
    assert report.command().startswith("OMP_NUM_THREADS=1 rsfast certify ")


def test_the_text_says_what_is_not_known():
    text = report_of(measurement(0.001)[0]).text()
    assert "give --data or --from-run for a forecast" in text
    assert "No GPU was measured." in text
    assert "Not measured: dtype bfloat16" in text


def test_certifying_draws_the_rows_that_it_counts():
    images = random_inputs(2, [3, 2, 2], torch.device("cpu"))
    rows = []

    def model(x):
        rows.append(len(x))
        return x.flatten(1)[:, :3]

    certifying = Certifying(Subject(model, images, Gaussian(SIGMA), 3), Change("", {"batch_size": 16}))
    certifying(64)
    assert (certifying.rows, sum(rows), set(rows)) == (64, 64, {16})
    assert certifying.seconds["model"] > 0


@pytest.mark.parametrize("shape", [[20], [3, 2, 2]])
def test_the_loop_takes_inputs_of_any_shape(shape):
    images = random_inputs(1, shape, torch.device("cpu"))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 5))
    assert Loop2019(model, 5, 0.25).sample_noise(images[0], 25, 10).sum() == 25


def test_the_loop_normalises_as_certify_does():
    images = random_inputs(1, [3, 2, 2], torch.device("cpu"))
    seen = []

    def model(x):
        seen.append(x)
        return x.flatten(1)[:, :3]

    options = {"scale": [2.0, 4.0, 8.0], "shift": [-1.0, 0.0, 1.0]}
    loop(Subject(model, images, Gaussian(1e-6), 3, options), 4)(4)
    wanted = images[0] * torch.tensor([2.0, 4.0, 8.0])[:, None, None] + torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    assert torch.allclose(seen[0], wanted.expand(4, -1, -1, -1), atol=1e-4)


def test_a_limit_ends_what_takes_too_long():
    def wrapped():
        try:
            while True:
                time.sleep(0.01)
        except TimeoutError as error:
            raise RuntimeError("the compiler's own") from error

    with pytest.raises(TimeoutError, match=r"^not done within 0 s$"), at_most(0.05):
        wrapped()
    with pytest.raises(ArithmeticError), at_most(5):
        raise ArithmeticError


# Shares of 300 images: many are clear, some are near the radius that is asked, some abstain.
SHARES = np.random.default_rng(0).beta(3, 1, size=300)
SHARES = np.stack([SHARES, 0.7 * (1 - SHARES), 0.3 * (1 - SHARES)], axis=1)


def certified(shares, seed, n=PROOF["n"], **stopping):
    twins = Twins(shares, SIGMA)
    options = {"n0": PROOF["n0"], "n": n, "batch_size": 4096, "seed": seed}
    return rsfast.certify(twins, twins.inputs, Gaussian(SIGMA), num_classes=3, **options, **stopping)


def samples_of(certificates):
    return np.mean([each.n0 + each.n for each in certificates])


def test_twins_vote_as_their_images():
    """30 shares on 10,000 votes, each within 5 standard deviations: it fails with probability 2e-5 on another seed."""
    twins = Twins(SHARES[:10], SIGMA)
    tally = rsfast.sample(twins, twins.inputs, Gaussian(SIGMA), num_classes=3, n=10_000, seed=1)
    found = tally.counts[:, :3].numpy() / 10_000
    assert (np.abs(found - SHARES[:10]) < 5 * np.sqrt(SHARES[:10] * (1 - SHARES[:10]) / 10_000) + 1e-9).all()


def test_posterior_keeps_the_mean_and_many_classes_fit():
    shares = posterior(np.array([[5, 90, 5]]), 1000)
    assert shares.mean(axis=0) == pytest.approx([90.5 / 101, 5.25 / 101, 5.25 / 101], abs=1e-3)
    counts = np.ones((2, 1000), dtype=np.int64)
    counts[:, 7] = 1000
    many = posterior(counts, 3)
    assert many.shape == (6, 16)
    assert many.sum(axis=1) == pytest.approx(1)
    assert (posterior(np.array([[100, 0, 0]]), 5)[:, 2] == 0).all()


@pytest.mark.parametrize("stopping", [StoppingRule(radius=0.4), StoppingRule(radius=[0.2, 0.5]), StoppingRule(rtol=0.1)])
def test_forecast_of_samples_is_what_certify_takes(stopping):
    """From 200 votes an image, within 20 %: some 3 standard errors, of the votes and of the samples of both runs."""
    counts = np.random.default_rng(1).multinomial(200, SHARES)
    found = forecast(Gaussian(SIGMA), PROOF, stopping, counts, images=1000, seconds_a_sample=0.01, twins=300)
    taken = samples_of(certified(SHARES, seed=3, **{name: value for name, value in vars(stopping).items() if value}))
    assert found.samples == pytest.approx(taken, rel=0.2)
    assert 0 < found.error < 0.2 * found.samples
    assert found.seconds >= 10 * found.samples  # and what bounds take on this machine


def test_forecast_of_all_samples():
    found = forecast(Gaussian(SIGMA), PROOF, StoppingRule(), None, images=3, seconds_a_sample=1.0, twins=50)
    assert (found.option, found.samples, found.error) == ("", 20_100, 0)
    assert 3 * 20_100 <= found.seconds < 3 * 20_100 * 1.01
    later = forecast(Gaussian(SIGMA), PROOF, StoppingRule(), None, images=3, seconds_a_sample=1.0, start=40_000.0, twins=50)
    assert 40_000 + 3 * 20_100 <= later.seconds < 40_000 + 3 * 20_100 * 1.01


def write_table(path, certificates):
    rows = [
        f"{i}\t0\t{each.prediction}\t{each.radius}\t{int(each.prediction == 0)}\t0:00:01"
        for i, each in enumerate(certificates)
    ]
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect\ttime", *rows]) + "\n")


def test_forecast_from_a_table_of_radii(tmp_path):
    """Its radii give back the shares: the forecast is within 20 % of what certify takes, again some 3 standard errors."""
    write_table(tmp_path / "published.tsv", certified(SHARES, seed=2, rule="one_vs_rest"))
    counts, text = counts_from_run(tmp_path / "published.tsv", Gaussian(SIGMA), 3, n=PROOF["n"], alpha=PROOF["alpha"])
    assert "taken to be of n = 20,000 and alpha = 0.001" in text
    clear = SHARES[:, 0] > 0.55
    assert counts[clear, 0] / 20_000 == pytest.approx(SHARES[clear, 0], abs=0.02)
    found = forecast(Gaussian(SIGMA), PROOF, StoppingRule(radius=0.4), counts, images=1, seconds_a_sample=1.0, twins=300)
    assert found.samples == pytest.approx(samples_of(certified(SHARES, seed=3, radius=0.4)), rel=0.2)


def test_votes_come_from_a_run_folder(tmp_path):
    """Also of one that stopped early, whose radii alone would not do."""
    twins = Twins(SHARES[:5], SIGMA)
    run = rsfast.Run(twins, twins.inputs, Gaussian(SIGMA), tmp_path / "run", num_classes=3, seed=1)
    found = run.certify(n=1000, radius=0.4)
    counts, text = counts_from_run(tmp_path / "run", Gaussian(SIGMA), 3, n=10, alpha=0.5)
    assert text.startswith("the votes of 5 images in ")
    assert counts.shape == (5, 3)
    assert 16 <= counts.sum(axis=1).min() <= counts.sum(axis=1).max() <= 1000
    assert len(found.idx) == 5
    (tmp_path / "run" / "counts.jsonl").unlink()
    with pytest.warns(UserWarning, match="check sums"), pytest.raises(ValueError, match=r"must hold counts\.jsonl"):
        counts_from_run(tmp_path / "run", Gaussian(SIGMA), 3, n=10, alpha=0.5)
    with (
        pytest.warns(UserWarning, match="check sums"),
        pytest.raises(ValueError, match=r"must have sigma 0\.25, got 0\.5; give --sigma 0\.5"),
    ):
        counts_from_run(tmp_path / "run", Gaussian(0.25), 3, n=10, alpha=0.5)


def test_runs_that_do_not_do_are_refused(tmp_path):
    twins = Twins(SHARES[:2], SIGMA)
    run = rsfast.Run(twins, twins.inputs, Gaussian(SIGMA), tmp_path / "predict", num_classes=3, seed=1)
    run.predict(100)
    with pytest.raises(ValueError, match="must be a run of certify, got one of predict"):
        counts_from_run(tmp_path / "predict", Gaussian(SIGMA), 3, n=10, alpha=0.5)
    run = rsfast.Run(twins, twins.inputs, rsfast.Laplace(SIGMA), tmp_path / "laplace", num_classes=3, seed=1)
    run.certify(n=100)
    with pytest.raises(ValueError, match="must be a run with Gaussian noise, got one with Laplace"):
        counts_from_run(tmp_path / "laplace", Gaussian(SIGMA), 3, n=10, alpha=0.5)


def test_a_radius_that_no_votes_prove():
    with pytest.raises(ValueError, match=r"^radius must be at most 1\.\d+, the l2 radius that unanimous votes prove"):
        check_stopping(Gaussian(SIGMA), 3, PROOF, StoppingRule(radius=3.0))
    check_stopping(Gaussian(SIGMA), 3, PROOF, StoppingRule(radius=1.5))


def test_bench_forecasts_from_data():
    measuring, _, _ = measurement(0.0005, n=2000)
    data = random_inputs(50, [3, 2, 2], torch.device("cpu"))
    rules = [StoppingRule(radius=0.1), StoppingRule(rtol=0.3)]
    report = bench(measuring, data, name="net", certify=["rsfast", "certify"], images=100, stopping=rules, twins=100)
    assert [each.option for each in report.forecasts] == ["", "--radius 0.1", "--rtol 0.3"]
    everything, *early = report.forecasts
    assert everything.samples == 2100
    rate = report.measured.best(exact=True).rate
    assert everything.seconds == pytest.approx(100 * 2100 / rate, rel=0.05)
    assert all(100 < each.samples < 2100 for each in early)
    assert report.votes_of.endswith(" votes of each of 50 images")
    found = json.loads(json.dumps(report.to_dict()))
    assert found["contenders"]["channels_last"]["options"]["channels_last"] is True
    assert found["contenders"][FORWARD]["options"] is None
    assert found["samples_an_hour"] == pytest.approx(3600 * rate)
    assert found["forecasts"][1]["option"] == "--radius 0.1"


def test_pick_takes_inputs_from_all_parts():
    data = torch.arange(10.0)[:, None]
    assert pick(data, 3, torch.device("cpu"))[:, 0].tolist() == [0, 4, 9]
    assert len(pick(data, 50, torch.device("cpu"))) == 10
    assert len(pick(data, 1, torch.device("cpu"))) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    device = torch.device("cuda")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).to(device)
    subject = Subject(model, random_inputs(4, [3, 2, 2], device), Gaussian(SIGMA), 3, proof=PROOF)
    measured = Measurement(subject, seconds=5.0, say=str, single=changes).measure()
    assert measured.lines["CUDA graph"].rate > 0
    assert measured.lines["CUDA graph"].agreement == 1.0
    assert all(line.memory > 0 for line in measured.lines.values() if line.change)


class Pictures(torch.utils.data.Dataset):
    """Of three, the first cannot be read; the last may have another shape."""

    def __init__(self, last):
        self.last = last

    def __len__(self):
        return 3

    def __getitem__(self, place):
        if place == 0:
            raise Unreadable("a picture")
        return torch.zeros(3, 2, 2 if place == 1 else self.last)


def test_pick_leaves_out_what_cannot_be_read():
    assert pick(Pictures(2), 3, torch.device("cpu")).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 2, 2\] and \[3, 2, 5\]; give --image-size"):
        pick(Pictures(5), 3, torch.device("cpu"))
    assert len(pick(Pictures(2), 1, torch.device("cpu"))) == 1
    with pytest.raises(ValueError, match="can be read, got none among 1"):
        pick(torch.utils.data.Subset(Pictures(2), [0]), 3, torch.device("cpu"))


NETS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))

def one_logit():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))

def no_logits():
    return lambda x: x
"""
BENCH = ["bench", "--model", "nets:net", "--sigma", "0.5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "data.npz", images=random_inputs(20, [3, 2, 2], torch.device("cpu")).numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --data --shape is required"),
        (["--shape", "3", "2", "2", "--data", "data.npz"], "not allowed with argument"),
        (["--shape", "3", "0"], "must be a positive integer, got '0'"),
        (["--shape", "3", "5", "5"], "model nets:net fails on a batch [1, 3, 5, 5]"),
        (["--shape", "12", "--mean", "0.5"], "mean and std must be given together"),
        (["--shape", "12", "--image-size", "2", "--std", "0.5"], "mean and std must be given together"),
        (["--shape", "12", "--num-classes", "4"], "num_classes must be 3, the logits that model returns a row, got 4"),
        (["--shape", "12", "--radius", "9"], "radius must be at most 1.8"),
        (["--shape", "12", "--rtol", "2"], "rtol must be a finite number above 0 and below 1, got 2.0"),
        (["--shape", "12", "--seconds", "0"], "--seconds must be a finite number above 0, got 0.0"),
        (["--shape", "12", "--sigma", "-1"], "sigma must be"),
        (["--shape", "12", "--from-run", "none"], "none must be a run folder or a table"),
        (["--shape", "12", "--model", "nets:one_logit"], "num_classes must be"),
        (["--shape", "3", "2", "2", "--model", "nets:no_logits"], "model must return shape [1, K] for a batch of 1"),
        (["--data", "none.npz"], "--data none.npz"),
        (["--shape", "12", "--json", "no/such/file.json"], "--json"),
    ],
)
def test_wrong_uses_end_before_anything_is_measured(folder, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        cli.main([*BENCH, *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "first answer" not in error


@pytest.mark.slow
def test_the_command_line(folder):
    """Everything is real here, in a process of its own as a compiler that is interrupted may leave torch's half imported."""
    words = [
        "--data",
        "data.npz",
        "--n",
        "2000",
        "--images",
        "7",
        "--seconds",
        "3",
        "--radius",
        "0.2",
        "--json",
        "found.json",
    ]
    command = [sys.executable, "-m", "rsfast", *BENCH, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "rsfast bench: --num-classes 3, as many logits as the model returns" in ended.stderr
    assert "rsfast bench: first answer, after " in ended.stderr
    found = json.loads((folder / "found.json").read_text())
    assert found["command"] in ended.stdout
    assert found["command"].endswith(found["command"].split("--out run")[1])
    assert "--data data.npz --num-classes 3 --sigma 0.5 --n 2000 --out run --batch-size" in found["command"]
    assert [each["option"] for each in found["forecasts"]] == ["", "--radius 0.2", "--rtol 0.05"]
    assert "CUDA graph" in found["skipped"]


@pytest.mark.slow
def test_the_compiler_is_loaded_before_its_time_begins():
    """An import that a limit cuts off leaves torch broken, and undoing the compilation then fails."""
    code = """
        import torch
        from rsfast import Gaussian
        from rsfast.bench.measure import Measurement
        from rsfast.bench.subject import Change, Subject, random_inputs
        images = random_inputs(1, [3], torch.device("cpu"))
        subject = Subject(torch.nn.Flatten(), images, Gaussian(0.5), 3, proof={"n0": 100, "n": 1000, "alpha": 0.001})
        compiling = [Change("compile", {"compile": True})]
        measured = Measurement(subject, seconds=0.8, single=lambda *_: compiling, say=str).measure()
        assert "--seconds" in measured.skipped["compile"], measured.skipped
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_peak_memory_is_that_since_it_was_forgotten():
    """In a process of its own, which has freed no memory before."""
    code = """
        import torch
        from rsfast.bench.memory import forget_peak, peak
        cpu = torch.device("cpu")
        forget_peak(cpu)
        before = peak(cpu)
        held = torch.ones(32 << 20)  # 128 MiB
        assert 120 <= peak(cpu) - before <= 200, (before, peak(cpu))
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)
