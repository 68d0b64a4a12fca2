"""certify(lipschitz=): in which units, where it is refused, and that no radius exceeds the true distance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import strip_sums
from torch import nn

import rsfast
from rsfast import Execution, Gaussian, Softmax, certify, certify_each, lipschitz_bound, tune_head
from rsfast.cli import main
from rsfast.engine.forward import reduced_precision
from rsfast.engine.modes import modules_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPTIONS = {"num_classes": 2, "n0": 50, "n": 2000, "head": Softmax(1.0), "seed": 3}
X = torch.tensor([[0.9, 0.1, 0.25]])


class Halves(nn.Module):
    """Two classes, split by the hyperplane <w, z> = b of what the module takes."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.6, -0.3, 0.2], [-0.6, 0.3, -0.2]]))
            self.linear.bias.copy_(torch.tensor([-bias, bias]))

    def forward(self, z):
        return self.linear(z.flatten(1))


def distance(x, scale, shift, bias):
    """From x to the hyperplane, in the units of x: by symmetry the smoothed classifier's is the same one."""
    w = np.array([0.6, -0.3, 0.2]) * scale
    return abs(x @ w + np.array([0.6, -0.3, 0.2]) @ shift - bias) / np.linalg.norm(w)


def given(kind, constant, scale):
    """A constant as a user may have it: per unit of the module's input, or of the inputs, where that is not more."""
    return {"bound": constant, "float": float(constant), "inputs": constant * min(1.0, np.abs(scale).max())}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bound", "float", "inputs"])
@pytest.mark.parametrize(
    "scale", [14.0, -9.0, 0.25, (2.0, 11.0, 1.0), (0.5, 0.25, 0.125), None], ids=lambda scale: str(scale)
)
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_no_radius_exceeds_the_distance(kind, scale, sigma):
    """100 certificates, each wrong with probability 0.001: more than 4 wrong ones have probability below 1e-7.

    A constant that ignores a scale of 14 gives both sides of a boundary a radius of many times the distance.
    """
    bias, shift = 0.7, np.array([0.3, -0.2, 0.1])
    model = Halves(bias).eval()
    constant = lipschitz_bound(nn.Sequential(model, nn.Softmax(1)).eval(), (3,))
    scales = np.broadcast_to(1.0 if scale is None else scale, 3)
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(5)) / float(np.abs(scales).max())
    found = certify(
        model, x, Gaussian(sigma), lipschitz=given(kind, constant, scales), scale=scale, shift=shift.tolist(), **OPTIONS
    )
    radii = np.array([certificate.radius for certificate in found])
    true = np.array([distance(each, scales, shift, bias) for each in x.double().numpy()])
    assert (radii > true).sum() <= 4
    assert (radii > 0).sum() > 10
    plain = certify(model, x, Gaussian(sigma), scale=scale, shift=shift.tolist(), **OPTIONS)
    assert all(ours.radius >= theirs.radius for ours, theirs in zip(found, plain, strict=True))


def test_the_constant_per_unit_of_inputs_is_recorded_and_used_by_all():
    model, noise, options = Halves().eval(), Gaussian(0.25), {**OPTIONS, "scale": 8.0, "lipschitz": 0.25}
    [found] = certify(model, X, noise, **options)
    assert 2.0 <= found.lipschitz <= 2.0 * (1 + 2**-50)
    assert list(certify_each(model, X, noise, **options)) == [found]
    options.pop("scale")
    [same] = certify(model, X * 8, Gaussian(2.0), **options)  # in the units of the module
    assert found.radius == pytest.approx(same.radius / 8, rel=1e-3)
    heads = {"heads": [options.pop("head")]}
    tuned = tune_head(model, X, [0], noise, **heads, **options, scale=8.0)
    wrong = tune_head(model, X, [0], noise, **heads, **options | {"lipschitz": 0.25 / 8}, scale=8.0)
    assert tuned.scores[Softmax(1.0)] < wrong.scores[Softmax(1.0)]


def test_what_the_model_takes_is_recorded():
    """Clamp, scale and shift are part of the classifier; however they are given, the same ones are recorded as the same."""
    images, options = torch.rand(1, 2, 2, 2), {"num_classes": 2, "n0": 5, "n": 20, "seed": 1}

    def execution(**preparation):
        [found] = certify(lambda batch: batch.flatten(1)[:, :2], images, Gaussian(0.25), **options, **preparation)
        assert rsfast.Certificate.from_dict(json.loads(json.dumps(found.to_dict()))) == found
        return found.execution

    assert execution() == Execution()
    assert execution(clamp=(0, 1)) == Execution(clamp=(0.0, 1.0))
    assert execution(clamp=(0.1, float("inf"))).clamp == (float(np.float32(0.1)), float("inf"))
    channels = execution(scale=[2.0, 0.1], shift=[0.0, -0.3])
    assert channels == Execution(scale=(2.0, 0.1), shift=(0.0, -0.3))
    assert channels == execution(scale=torch.tensor([2.0, 0.1]), shift=torch.tensor([0.0, -0.3]))
    alike = [execution(scale=s, shift=t) for s, t in ((0.1, -0.3), ([0.1, 0.1], [-0.3, -0.3]), (torch.tensor(0.1), -0.3))]
    assert len(set(alike)) == 1
    assert execution(shift=0.5) == Execution(scale=(1.0,), shift=(0.5,))
    assert execution(scale=0.1) != execution(scale=0.2)


def test_every_call_refuses_what_is_below_float32():
    """Before a model runs, and only where there is a constant."""

    def fails(batch):
        raise AssertionError("the model ran")

    options, noise = {**OPTIONS, "lipschitz": 0.5}, Gaussian(0.25)
    for low in ({"dtype": torch.float16}, {"dtype": torch.bfloat16}, {"autocast": torch.bfloat16}):
        (name,) = low
        for call in (certify, certify_each):
            with pytest.raises(ValueError, match=rf"^lipschitz must be None .*, got 0.5 with {name} = b?float16"):
                call(fails, X, noise, **options, **low)
        plain = {name: value for name, value in options.items() if name != "head"}
        with pytest.raises(ValueError, match=rf"^lipschitz must be None .*, got 0.5 with {name} = b?float16"):
            tune_head(fails, X, [0], noise, [Softmax(1.0)], **plain, **low)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast = bfloat16"):
        certify(fails, X, noise, **options)
    [found] = certify(lambda x: x[:, :2], X, noise, **OPTIONS, dtype=torch.bfloat16)
    assert found.radius > 0


class WithBuffer(Halves):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Halves().bfloat16(), "bfloat16 parameters or buffers"),
        (lambda: Halves().half(), "float16 parameters or buffers"),
        (lambda: nn.Sequential(nn.Identity(), nn.Linear(3, 2).to(torch.float8_e4m3fn)), "float8_e4m3fn parameters"),
        (WithBuffer, "bfloat16 parameters or buffers"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(Halves(), {nn.Linear}, dtype=torch.qint8),
            r"modules of torch\.ao\.nn\.quantized\.dynamic\.modules\.linear",
        ),
        (lambda: nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)]), "int8 parameters"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*:UserWarning")
def test_a_model_below_float32_is_refused(make, what):
    with pytest.raises(ValueError, match=f"lipschitz must be None .*, got 0.5 with .*{what}"):
        certify(make().eval(), X, Gaussian(0.25), lipschitz=0.5, **OPTIONS)


def test_a_model_of_float32_and_more_is_not_refused():
    """Nor are a mask and a count, which BatchNorm keeps, too."""
    model = nn.Sequential(nn.BatchNorm1d(3), Halves()).eval()
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    model.register_buffer("of_float64", torch.ones(3, dtype=torch.float64))
    assert reduced_precision(modules_of(model), CPU) == ()
    assert certify(model, X, Gaussian(0.25), lipschitz=0.5, **OPTIONS)[0].execution == Execution()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_below_float32_are_refused(dtype):
    """Of a function nothing else shows that it computes so."""

    def model(batch):
        return batch[:, :2].to(dtype)

    with pytest.raises(ValueError, match=rf"model must return float32 logits with lipschitz, .*, got {dtype}"):
        certify(model, X, Gaussian(0.25), lipschitz=0.5, **OPTIONS)
    assert certify(model, X, Gaussian(0.25), **OPTIONS)[0].radius > 0


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_precision_of_products_is_recorded_and_refused(precision):
    model = Halves().eval()
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(ValueError, match=r"lipschitz must be None .*, got 0.5 with .*mkldnn.matmul.fp32_precision"):
            certify(model, X, Gaussian(0.25), lipschitz=0.5, **OPTIONS)
        [found] = certify(model, X, Gaussian(0.25), **OPTIONS)
        assert found.execution != Execution()
        assert reduced_precision(modules_of(model), CUDA) != ()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert certify(model, X, Gaussian(0.25), lipschitz=0.5, **OPTIONS)[0].execution == Execution()


def test_tf32_of_convolutions_is_of_a_gpu(monkeypatch):
    """It is on by default, and does nothing on a CPU."""
    assert any("cudnn" in each for each in reduced_precision(modules_of(Halves()), CUDA))
    assert reduced_precision(modules_of(Halves()), CPU) == ()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert reduced_precision(modules_of(Halves()), CUDA) == ()
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        assert reduced_precision(modules_of(Halves()), CUDA) == ("the environment's NVIDIA_TF32_OVERRIDE = 1",)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("value", "refused"), [("BF16", True), ("any", True), ("strict", False), ("", False)])
def test_the_mode_of_onednn(monkeypatch, value, refused):
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        monkeypatch.setenv(name, value)
        assert (reduced_precision(modules_of(Halves()), CPU) != ()) == refused
        monkeypatch.delenv(name)


@pytest.mark.parametrize("setting", ["matmul", "conv"])
def test_the_settings_of_onednn(setting):
    settings = getattr(torch.backends.mkldnn, setting)
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        assert reduced_precision(modules_of(Halves()), CPU) == (f"torch.backends.mkldnn.{setting}.fp32_precision = bf16",)
    finally:
        settings.fp32_precision = before


def test_the_tensors_of_a_subclass_are_looked_at():
    """As of a quantized parameter, which says that its dtype is float32."""
    inner = {"values": torch.ones(2, dtype=torch.uint8), "factor": torch.ones(2)}
    tensor = SimpleNamespace(__tensor_flatten__=lambda: (list(inner), None), **inner)
    model = nn.Module()
    model.parameters = lambda recurse: [tensor]
    assert reduced_precision(modules_of(model), CPU) == ("uint8 parameters or buffers",)


NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 12, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        return (x.flatten(1).to(self.weight.dtype) @ self.weight.T).float()

def low():
    return Net().bfloat16()
"""


@pytest.fixture
def _folder(workspace):
    workspace("lipschitz_nets", NETS, np.arange(6) % 4)


def command(out, options, factory="Net"):
    base = f"certify --model lipschitz_nets:{factory} --data data.npz --num-classes 4 --sigma 0.5 --seed 11 --n0 20 --n 500"
    return f"{base} --head softmax:0.5 --bound empirical_bernstein --out {out} {options}".split()


def fail(capsys, arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("options", "factory", "what"),
    [
        ("--dtype bfloat16", "Net", "dtype = bfloat16"),
        ("--autocast bfloat16", "Net", "autocast = bfloat16"),
        ("", "low", "bfloat16 parameters or buffers"),
    ],
)
def test_the_command_line_and_recertify_refuse(capsys, tmp_path, options, factory, what):
    error = fail(capsys, command("run", f"{options} --lipschitz 0.25", factory))
    assert "lipschitz must be None" in error
    assert what in error
    assert not (tmp_path / "run").exists()
    assert main(command("run", options, factory)) == 0
    error = fail(capsys, ["recertify", "run", "--out", "again", "--lipschitz", "0.25"])
    assert "lipschitz must be None" in error
    assert what in error
    assert not (tmp_path / "again").exists()
    assert main(["recertify", "run", "--out", "again", "--alpha", "0.01"]) == 0


def radii(folder):
    return rsfast.runs.results.read(folder).radius.tolist()


@pytest.mark.usefixtures("_folder")
def test_the_command_line_and_recertify_know_the_scale(tmp_path):
    """--std 0.25 makes a constant of the network four times as large; the run records what was given."""
    for out, options in {
        "scaled": "--mean 0.5 --std 0.25 --lipschitz 0.1",
        "plain": "--mean 0.5 --std 0.25",
        "larger": "--mean 0.5 --std 0.25 --lipschitz 0.4",
    }.items():
        assert main(command(out, options)) == 0
    sidecar = json.loads((tmp_path / "scaled" / "results.json").read_text())
    assert (sidecar["lipschitz"], sidecar["scale"], sidecar["shift"]) == (0.1, [4.0], [-2.0])
    assert sidecar["clamp"] is sidecar["reduced_precision"] is None
    assert main(["recertify", "plain", "--out", "again", "--lipschitz", "0.1"]) == 0
    assert radii("again") == radii("scaled")
    assert sum(radii("scaled")) > sum(radii("larger")) > sum(radii("plain")) > 0
    images = torch.from_numpy(np.load("data.npz")["images"])
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    found = certify(
        lambda x: x.flatten(1) @ weight.T,
        images,
        Gaussian(0.5),
        num_classes=4,
        n0=20,
        n=500,
        head=Softmax(0.5),
        bound="empirical_bernstein",
        seed=11,
        scale=4.0,
        shift=-2.0,
        lipschitz=0.1,
    )
    assert found[0].lipschitz == pytest.approx(0.4)
    assert [certificate.radius for certificate in found] == pytest.approx(radii("scaled"), abs=1e-5)


@pytest.mark.usefixtures("_folder")
def test_a_run_that_did_not_record_its_scale_is_refused(capsys, tmp_path):
    assert main(command("run", "--mean 0.5 --std 0.25")) == 0
    strip_sums(tmp_path / "run")
    sidecar = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in ("clamp", "scale", "shift", "reduced_precision"):
        del sidecar[name]
    (tmp_path / "run" / "results.json").write_text(json.dumps(sidecar))
    error = fail(capsys, ["recertify", "run", "--out", "again", "--lipschitz", "0.25"])
    assert "must have scale, which lipschitz refers to" in error
    assert main(["recertify", "run", "--out", "again"]) == 0
