"""rsfast.lipschitz: every bound at or above the exact norm of the unrolled operator, and close to it; errors elsewhere."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rsfast.lipschitz
from rsfast.lipschitz import _spectral_norm, lipschitz_bound, published_bridging_radius, smoothed_lipschitz
from rsfast.noise import Gaussian


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


def operator_norm(layer, shape):
    """The largest singular value of a linear (or affine) layer, unrolled."""
    layer = layer.double()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    basis = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        rows = torch.cat([layer(part) for part in basis.split(256)]) - layer(zero)
    return float(torch.linalg.matrix_norm(rows.flatten(1), ord=2))


CONVOLUTIONS = [  # arguments, input shape, how much the bound may exceed the norm
    ((nn.Conv2d, 3, 4, 3), {"padding": 1}, (3, 8, 8), 1.15),
    ((nn.Conv2d, 3, 4, 3), {}, (3, 8, 8), 1.2),
    ((nn.Conv2d, 3, 4, 3), {"padding": 1}, (3, 20, 20), 1.05),
    ((nn.Conv2d, 3, 4, 3), {"padding": "same", "bias": False}, (3, 9, 7), 1.2),
    ((nn.Conv2d, 3, 4, 3), {"padding": 1, "stride": 2}, (3, 9, 8), 1.2),
    ((nn.Conv2d, 3, 4, 3), {"padding": (0, 2), "stride": (1, 3)}, (3, 8, 8), 1.2),
    ((nn.Conv2d, 3, 4, (2, 3)), {"padding": "same", "dilation": (1, 2)}, (3, 8, 8), 1.3),
    ((nn.Conv2d, 4, 6, 3), {"padding": 3, "groups": 2, "dilation": 3}, (4, 10, 10), 1.5),
    ((nn.Conv2d, 6, 6, 3), {"padding": 1, "groups": 6, "stride": 2}, (6, 10, 10), 1.2),
    ((nn.Conv2d, 8, 3, 1), {}, (8, 5, 5), 1.001),
    ((nn.Conv2d, 3, 8, 1), {"stride": 2, "padding": 1}, (3, 6, 6), 1.001),
    ((nn.Conv2d, 2, 2, 2), {"stride": 2}, (2, 6, 6), 1.001),
    ((nn.Conv2d, 2, 2, 3), {"stride": 5}, (2, 13, 13), 1.001),
    ((nn.Conv2d, 2, 3, 5), {}, (2, 5, 5), 2.0),
    ((nn.Conv1d, 3, 5, 5), {"padding": 2}, (3, 40), 1.05),
    ((nn.Conv1d, 3, 5, 4), {"padding": "same"}, (3, 17), 1.2),
    ((nn.Conv3d, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}, (2, 4, 6, 5), 1.3),
]


@pytest.mark.parametrize(("layer", "options", "shape", "slack"), CONVOLUTIONS)
def test_convolutions(layer, options, shape, slack):
    kind, *arguments = layer
    module = kind(*arguments, **options).eval()
    exact = operator_norm(module, shape)
    assert exact <= lipschitz_bound(module, shape) <= slack * exact


def test_convolutions_of_one_sign():
    """Where the worst input is the constant one, and where it is a checkerboard."""
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False).eval()
    for sign in (torch.ones(3, 3), (-1.0) ** (torch.arange(3)[:, None] + torch.arange(3))):
        module.weight.data = sign[None, None].float()
        assert operator_norm(module, (1, 16, 16)) <= lipschitz_bound(module, (1, 16, 16)) <= 9.01


def test_a_large_convolution_is_taken_in_parts(monkeypatch):
    module = nn.Conv2d(3, 4, 3, padding=1, stride=2).eval()
    whole = lipschitz_bound(module, (3, 9, 9))
    monkeypatch.setattr(rsfast.lipschitz, "_MATRIX_ELEMENTS", 100)
    assert lipschitz_bound(module, (3, 9, 9)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 300), (300, 1), (20, 30), (200, 100)])
def test_linear(rows, columns):
    module = nn.Linear(columns, rows).eval()
    exact = operator_norm(module, (columns,))
    assert exact <= lipschitz_bound(module, (columns,)) <= 1.0008 * exact
    assert exact <= lipschitz_bound(module, (7, columns)) <= 1.0008 * exact


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1.0, 1e30, 1e150])
@pytest.mark.parametrize("rank", [1, 5, 40])
def test_spectral_norm_of_known_matrices(rank, scale):
    """Equal singular values, the loosest case, and one; real and complex, and of all sizes."""
    unitary = torch.linalg.qr(torch.randn(40, 40, dtype=torch.complex128))[0]
    matrix = unitary[:, :rank] @ torch.linalg.qr(torch.randn(50, 50, dtype=torch.complex128))[0][:rank] * scale
    batch = torch.stack([matrix * 0.5, matrix, matrix * 0])
    assert scale * (1 - 1e-13) <= _spectral_norm(batch) <= scale * rank ** (0.5**13) * (1 + 1e-9)
    assert _spectral_norm(torch.full((1, 30, 20), scale, dtype=torch.float64)) >= scale * np.sqrt(600) * (1 - 1e-13)


def test_spectral_norm_of_zero():
    assert _spectral_norm(torch.zeros(2, 3, 4, dtype=torch.float64)) == 0
    layer = nn.Linear(3, 2)
    layer.weight.data.zero_()
    assert lipschitz_bound(nn.Sequential(layer, nn.ReLU()).eval(), (3,)) == 0


def test_batch_norm():
    module = nn.BatchNorm2d(5)
    module.weight.data = torch.randn(5)
    module(torch.randn(20, 5, 4, 4) * torch.tensor([0.1, 1, 2, 3, 4]).reshape(1, -1, 1, 1))
    module.eval()
    exact = operator_norm(module, (5, 4, 4))
    assert exact <= lipschitz_bound(module, (5, 4, 4)) <= exact * (1 + 1e-9)
    assert lipschitz_bound(nn.BatchNorm1d(3, affine=False).eval(), (3,)) == pytest.approx(1 / np.sqrt(1 + 1e-5))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.AvgPool2d(2), (2, 8, 8)),
        (nn.AvgPool2d(3, stride=1, padding=1), (2, 8, 7)),
        (nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), (1, 8, 8)),
        (nn.AvgPool2d((3, 2), stride=2, ceil_mode=True), (1, 8, 9)),
        (nn.AvgPool1d(4, stride=3, padding=2), (2, 11)),
        (nn.AvgPool3d(2, stride=1), (1, 4, 4, 4)),
        (nn.AdaptiveAvgPool2d(1), (3, 7, 6)),
        (nn.AdaptiveAvgPool2d((3, None)), (1, 7, 6)),
        (nn.AdaptiveAvgPool1d(3), (2, 7)),
    ],
)
def test_average_pooling(module, shape):
    exact = operator_norm(module, shape)
    assert exact <= lipschitz_bound(module.eval(), shape) <= 1.002 * exact


def gain(module, shape, trials=2000, size=1.0):
    """The largest ratio found of a change of output to one of input, over random points and changes, sparse and dense."""
    x = torch.randn(trials, *shape, dtype=torch.float64)
    change = torch.randn_like(x) * size
    change[::2] *= torch.rand_like(x)[::2] < 0.1
    change.flatten(1)[:, 0] += 1e-3
    with torch.no_grad():
        module = module.double()
        moved = (module(x + change) - module(x)).flatten(1).norm(dim=1)
    return float((moved / change.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize(
    ("module", "shape", "windows"),
    [
        (nn.MaxPool2d(2), (1, 6, 6), 1),
        (nn.MaxPool2d(3, stride=2, padding=1), (1, 7, 7), 4),
        (nn.MaxPool2d(3, stride=1), (1, 7, 7), 9),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), (1, 7, 8), 3),
        (nn.MaxPool2d(2, stride=2, dilation=2), (1, 9, 9), 4),
        (nn.MaxPool2d(2, stride=2, dilation=3), (1, 9, 9), 1),
        (nn.MaxPool1d(5, stride=2, ceil_mode=True), (1, 12), 3),
    ],
)
def test_max_pooling(module, shape, windows):
    """The bound is attained: a peak is seen by every window that holds it."""
    bound = lipschitz_bound(module.eval(), shape)
    assert bound == pytest.approx(np.sqrt(windows))
    peaks = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    assert float(module(peaks).flatten(1).norm(dim=1).max()) == pytest.approx(np.sqrt(windows))
    assert gain(module, shape) <= bound


@pytest.mark.parametrize(
    ("module", "bound"),
    [
        (nn.ReLU(), 1),
        (nn.ReLU(inplace=True), 1),
        (nn.ReLU6(), 1),
        (nn.Hardtanh(), 1),
        (nn.Tanh(), 1),
        (nn.Softplus(), 1),
        (nn.LeakyReLU(0.1), 1),
        (nn.LeakyReLU(-3.0), 3),
        (nn.Sigmoid(), 0.25),
        (nn.Softmax(dim=1), 0.5),
        (nn.Dropout(0.5), 1),
        (nn.Identity(), 1),
        (nn.Flatten(), 1),
    ],
)
def test_elementwise(module, bound):
    assert bound <= lipschitz_bound(module.eval(), (4,)) <= bound * (1 + 1e-9)
    if not isinstance(module, nn.Softmax):
        assert gain(module, (4,), size=0.3) <= bound * (1 + 1e-12)
    else:
        p = torch.tensor([0.5, 0.5], dtype=torch.float64)
        assert torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p), ord=2) == bound
        assert gain(module, (4,), size=0.01) <= bound


class Block(nn.Module):
    """A residual block of the usual kind, in place where that is usual."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(channels, out, 1, stride) if stride > 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.5]).reshape(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.blocks(self.stem((x - self.mean) / self.std))
        x = F.avg_pool2d(x, 4)
        return self.fc(x.view(x.size(0), -1))


def test_residual_network():
    """Nothing found exceeds the bound, at random or along the steepest direction; by hand it is the same product."""
    network = Residual()
    network(torch.rand(50, 3, 8, 8))
    bound = lipschitz_bound(network.eval(), (3, 8, 8))
    assert gain(network, (3, 8, 8), trials=200) < bound
    network.double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    for _ in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0], x).reshape(10, -1)
        slope, direction = torch.linalg.svd(jacobian, full_matrices=False)[1:]
        assert float(slope[0]) < bound
        x = x + 0.3 * direction[0].reshape(x.shape)
    expected = 1 / 0.2
    for part, shape in ((network.stem, (3, 8, 8)), *((block, (8, 8, 8)) for block in network.blocks)):
        if isinstance(part, nn.Conv2d):
            expected *= lipschitz_bound(part, shape)
        else:
            middle = (part.conv1.out_channels, 8 // part.conv1.stride[0], 8 // part.conv1.stride[0])
            branch = lipschitz_bound(part.conv1, shape) * lipschitz_bound(part.bn1, middle)
            branch *= lipschitz_bound(part.conv2, middle) * lipschitz_bound(part.bn2, middle)
            expected *= branch + (1 if part.downsample is None else lipschitz_bound(part.downsample, shape))
    expected *= lipschitz_bound(nn.AvgPool2d(4).eval(), (12, 4, 4)) * lipschitz_bound(network.fc, (12,))
    assert bound == pytest.approx(expected, rel=1e-6)  # 1 / 0.2 is one of float32


def test_sums_concatenations_and_constants():
    """Attained where the branches agree."""

    class Both(nn.Module):
        def forward(self, x):
            return torch.cat((x + x, 3 * x), dim=1) * torch.tensor(2.0) - 1

    exact = operator_norm(Both(), (4,))
    assert exact <= lipschitz_bound(Both().eval(), (4,)) <= exact * (1 + 1e-9)


def custom(function, **parts):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x):
            return function(self, x)

    return Custom().eval()


def modified_later(self, x):
    y = x * 2
    z = y.view(y.size(0), -1)
    y += x
    return z


def negated_sum(self, x):
    y = 3 * x
    y -= x
    y /= 2
    y *= torch.tensor([1.0, -1.0, 0.5, 0.0])
    return y


def test_in_place_operations():
    """3 and 1 add to 4, whatever their signs; halved."""
    assert lipschitz_bound(custom(negated_sum), (4,)) == pytest.approx(2)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda layer, args, out: 2 * out)
    return layer.eval()


def overridden():
    layer = nn.ReLU().eval()
    layer.forward = lambda x: 2 * x
    return layer


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(4)), (4,), "0.1 (LayerNorm)"),
        (nn.GELU(), (4,), "GELU"),
        (nn.Sequential(nn.Sequential(nn.ConvTranspose2d(3, 3, 3))), (3, 4, 4), "0.0.0 (ConvTranspose2d)"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 4, 4), "padding_mode must be 'zeros', got 'circular'"),
        (nn.AvgPool2d(2, divisor_override=1), (3, 4, 4), "divisor_override must be None, got 1"),
        (nn.MaxPool2d(2, return_indices=True), (3, 4, 4), "is not one tensor"),
        (nn.Flatten(0), (4,), "batch"),
        (nn.Softmax(dim=0), (4,), "dim must be given and not be the batch, got 0"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), (4,), "ParametrizedLinear"),
        (hooked(), (4,), "hooks"),
        (overridden(), (4,), "forward of its own"),
        (Doubled(4, 4), (4,), "linear"),
        (custom(lambda self, x: x * x), (4,), "mul has no known Lipschitz bound: it is not linear"),
        (custom(lambda self, x: 1 / x), (4,), "not linear"),
        (custom(lambda self, x: torch.exp(x)), (4,), "exp"),
        (custom(lambda self, x: x.exp()), (4,), "exp"),
        (custom(lambda self, x: x * x.size(0)), (4,), "its factor depends on the input's shape"),
        (custom(lambda self, x: F.linear(x, self.w), w=nn.Parameter(torch.ones(4, 4))), (4,), "linear"),
        (custom(lambda self, x: x * torch.ones(2, 1, 1)), (4,), "repeats"),
        (custom(lambda self, x: torch.cat((x, x))), (4,), "along the batch"),
        (custom(lambda self, x: torch.add(x, x, alpha=2)), (4,), "add"),
        (custom(lambda self, x: x[:, 0]), (4,), "getitem"),
        (custom(lambda self, x: x.view(-1)), (4,), "batch"),
        (custom(lambda self, x: (x, x)), (4,), "output has no known Lipschitz bound: it is not one tensor"),
        (custom(lambda self, x: x if x.sum() > 0 else -x), (4,), "module must be one that torch.fx can trace"),
        (custom(modified_later), (4,), "modified in place"),
    ],
)
def test_what_is_not_known_is_an_error(module, shape, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        lipschitz_bound(module.eval(), shape)


def test_training_mode():
    for module, name in ((nn.Sequential(nn.BatchNorm1d(4)), "module (Sequential)"), (nn.Dropout(), "module (Dropout)")):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be in eval mode, got training mode")):
            lipschitz_bound(module, (4,))
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    module[1].train()
    with pytest.raises(ValueError, match=re.escape("module.1 (BatchNorm1d) must be in eval mode")):
        lipschitz_bound(module, (4,))
    with pytest.raises(ValueError, match="must keep running statistics, got none"):
        lipschitz_bound(nn.BatchNorm1d(4, track_running_stats=False).eval(), (4,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    for module, shape in ((nn.Linear(4, 4), (4,)), (nn.Conv2d(3, 4, 3), (3, 8, 8)), (nn.BatchNorm1d(4), (4,))):
        module.weight.data.view(-1)[1] = value
        with pytest.raises(ValueError, match="must be finite, got entries that are not"):
            lipschitz_bound(module.eval(), shape)


@pytest.mark.parametrize("shape", [(), (0,), (-1, 4), (4.0,)])
def test_input_shape_is_of_positive_integers(shape):
    with pytest.raises(ValueError, match=re.escape(f"input_shape must be one or more positive integers, got {shape!r}")):
        lipschitz_bound(nn.Linear(4, 4).eval(), shape)


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.Linear(4, 4), (5,)), (nn.Conv2d(3, 4, 3), (4, 8, 8)), (nn.Conv2d(3, 4, 3), (3, 2, 2))]
)
def test_input_shape_that_does_not_fit(module, shape):
    with pytest.raises(ValueError, match=re.escape(f"input_shape must fit the module, got {shape!r}")):
        lipschitz_bound(module.eval(), shape)


def test_a_convolution_of_inputs_without_channels():
    """PyTorch would take the batch for the channels."""
    with pytest.raises(ValueError, match=re.escape("0 (Conv2d)")):
        lipschitz_bound(nn.Conv2d(3, 4, 3).eval(), (8, 8))


@pytest.mark.parametrize("sigma", [0.25, 1.0])
@pytest.mark.parametrize("lipschitz", [1e-3, 0.5, 4.0, 1e3])
def test_smoothed_lipschitz_is_the_slope_at_one_half(sigma, lipschitz):
    """Q'(1/2) is its inverse; and it is below both constants that it joins."""
    step = 1e-6
    slope = step / float(Gaussian(sigma).potential(0.5 + step, lipschitz))
    assert smoothed_lipschitz(sigma, lipschitz) == pytest.approx(slope, rel=1e-9)
    assert smoothed_lipschitz(sigma, lipschitz) <= min(lipschitz, 1 / (sigma * np.sqrt(2 * np.pi)))


def test_smoothed_lipschitz_at_extremes():
    assert smoothed_lipschitz(1e-30, 1e-300) == 1e-300
    assert smoothed_lipschitz(1e30, 1e308) == pytest.approx(1 / (np.float32(1e30) * np.sqrt(2 * np.pi)))


def test_published_radius():
    """3.96 at L = 0.1, sigma = 1, p = 0.999; both limits; the multi-class version."""
    assert float(published_bridging_radius(1.0, 0.1, 0.999)) == pytest.approx(3.96, abs=0.005)
    p = np.array([0.1, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(published_bridging_radius(0.5, 1e4, p), Gaussian(0.5).potential(p), rtol=1e-6, atol=1e-12)
    mono = published_bridging_radius(0.5, 1.0, p)
    np.testing.assert_allclose(
        published_bridging_radius(0.5, 1.0, p, 0.25), (mono - published_bridging_radius(0.5, 1.0, 0.25)) / 2
    )
    np.testing.assert_allclose(published_bridging_radius(0.5, 1.0, 1 - p), -mono, rtol=1e-12, atol=1e-12)


def test_wrong_arguments():
    for function in (smoothed_lipschitz, lambda s, value: published_bridging_radius(s, value, 0.9)):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=re.escape(f"lipschitz must be positive and finite, got {value!r}")):
                function(1.0, value)
        with pytest.raises(TypeError, match="lipschitz must be a number, got '1'"):
            function(1.0, "1")
        with pytest.raises(ValueError, match=r"sigma must be .*, got 0"):
            function(0, 1.0)
    for p in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="p must be above 0 and below 1, got"):
            published_bridging_radius(1.0, 1.0, p)
