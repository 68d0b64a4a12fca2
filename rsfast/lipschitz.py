"""Lipschitz constants: of a network, an upper bound; of a smoothed score; and the published radius they were used in."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, fx, nn

from . import _special
from ._check import is_int
from .noise import Gaussian, check_lipschitz

_SQUARINGS = 12
_SLACK = 1 + 2.0**-40  # more than the few roundings between two charges of it
_MATRIX_ELEMENTS = 2**22  # of a convolution's transform in memory at a time


def _applied(sigma: float) -> float:
    """Return sigma as the kernels apply it, rounded to float32."""
    return float(np.float32(Gaussian(sigma).sigma))


def smoothed_lipschitz(sigma: float, lipschitz: float) -> float:
    """Return the Lipschitz constant of an L-Lipschitz score with values in [0, 1] after Gaussian smoothing.

    ``L * erf(1 / (2 sqrt(2) L sigma))``, attained by a ramp of slope L at its middle. It is the derivative at 0 of the
    distribution function whose quantile `Gaussian.potential` is.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, as `Gaussian` takes it.
    lipschitz : float
        L, the score's Lipschitz constant in l2; positive and finite.

    Returns
    -------
    float
        Per unit of the input; below L, and below ``1 / (sigma sqrt(2 pi))``. To about 1e-15, relatively, not rounded up.

    Raises
    ------
    TypeError, ValueError
        If sigma or lipschitz is not a number, or out of range.

    References
    ----------
    Delattre et al., "The Lipschitz-Variance-Margin Tradeoff for Enhanced Randomized Smoothing", 2024, Theorem 1, for scores
    of range 1.

    Examples
    --------
    >>> round(smoothed_lipschitz(0.5, 1.0), 4)
    0.6827
    """
    scale = _applied(sigma)
    slope = min(check_lipschitz(lipschitz), 1e8 / scale)  # beyond, the limit is reached to 1e-17, relatively
    return slope * math.erf(1 / max(2 * math.sqrt(2) * slope * scale, 1e-300))


def published_bridging_radius(
    sigma: float, lipschitz: float, p_lower: ArrayLike, p_upper: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the radius of "Bridging the Theoretical Gap in Randomized Smoothing", to compare with, not to certify by.

    ``R(p) = Phi^-1(p) / c`` with c the Lipschitz constant of ``Phi^-1`` of the smoothed score at the centre of the ball
    where the paper's is that over the ball; `Gaussian.potential` is never below it for ``p > 1/2``.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, as `Gaussian` takes it.
    lipschitz : float
        L, the base score's Lipschitz constant in l2; positive and finite.
    p_lower : array_like
        Lower bounds on the class's score, in (0, 1).
    p_upper : array_like, optional
        Upper bounds on every other class's score, in (0, 1); broadcasts with p_lower.

    Returns
    -------
    ndarray of float64
        ``R(p_lower)``, the paper's "mono" radius, or with p_upper ``(R(p_lower) - R(p_upper)) / 2``, its "multi" radius. Not
        rounded down.

    Raises
    ------
    TypeError, ValueError
        If sigma or lipschitz is not a number, or an argument is out of range.

    References
    ----------
    Delattre, Caillon, Barthélemy, Fagnou and Allauzen, "Bridging the Theoretical Gap in Randomized Smoothing", 2025, its
    radii R_monoLip and R_multiLip as its implementation evaluates them, with the ball's radius rho set to 0.

    Examples
    --------
    >>> round(float(published_bridging_radius(1.0, 0.1, 0.999)), 2)
    3.96
    """
    if p_upper is not None:
        mono = [published_bridging_radius(sigma, lipschitz, p) for p in (p_lower, p_upper)]
        return np.asarray((mono[0] - mono[1]) / 2)
    p, scale = np.asarray(p_lower, dtype=np.float64), _applied(sigma)
    if not np.all((p > 0) & (p < 1)):
        raise ValueError(f"p must be above 0 and below 1, got {p!r}")
    z, c, half = _special.ndtri(p), np.abs(Gaussian(sigma).potential(p, lipschitz)), 1 / (2 * lipschitz)
    density = lipschitz * (_special.ndtr((half - c) / scale) - _special.ndtr((-half - c) / scale))
    return np.asarray(z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi) / density)


def _spectral_norm(matrices: Tensor, squarings: int = _SQUARINGS) -> float:
    """Return an upper bound on the largest singular value of any of the matrices [:, m, n], float64 or complex128.

    Gram iteration: ``|A|^2 = |A A*|``, again and again, and at last the Frobenius norm, which is too large by a factor of
    ``sqrt(rank)`` at most, and that under 2^squarings roots: 1.0009 for rank 1000. What the product rounds is at most gamma
    times the product of the absolute values, whose norm is at most the squared Frobenius norm; it is added before each
    root. Matrices whose Frobenius norm shows that another's singular value exceeds it are dropped on the way.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mH
    rank = matrices.shape[-2]
    frobenius = torch.linalg.matrix_norm(matrices)
    largest = float(frobenius.max())
    if squarings == 0 or largest == 0:
        return largest * _SLACK
    scale = 2.0 ** math.frexp(largest)[1]  # dividing by it is exact, but for what underflows, far below gamma
    matrices = matrices[frobenius * math.sqrt(rank) * _SLACK >= largest] / scale
    gamma = (4 * matrices.shape[-1] + 16) * 2.0**-52  # Higham, 2002, 3.1 and 3.6: any order of summation, complex, doubled
    return scale * math.sqrt(_spectral_norm(matrices @ matrices.mH, squarings - 1) + gamma) * _SLACK


def _weight(layer: nn.Module, name: str = "weight") -> Tensor:
    weight: Tensor = getattr(layer, name).detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"the layer's {name} must be finite, got entries that are not")
    return weight


def _linear(layer: Any, shape: torch.Size) -> float:
    if len(shape) < 2:
        raise ValueError(f"its input must have at least 1 dimension without the batch, got {len(shape) - 1}")
    return _spectral_norm(_weight(layer)[None])


def _convolution(layer: Any, shape: torch.Size) -> float:
    """Return a bound on the norm of a zero-padded convolution of inputs of this shape.

    The padded input lies on a torus of its size, on which the convolution's outputs are a subset of those of a circular one,
    which the Fourier transform makes a block of channels for each frequency. Of a stride s every s-th output is kept, which
    adds the s frequencies (per dimension) that it cannot tell apart: they make one block, over ``sqrt(s)``. So the
    largest norm of a block is an upper bound; for a circular convolution it would be the norm.
    Source: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers", 2019, Theorem 6, and Delattre et al.,
    "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", 2023, Theorem 2.
    """
    weight, dims = _weight(layer), len(layer.kernel_size)
    if layer.padding_mode != "zeros":
        raise TypeError(f"its padding_mode must be 'zeros', got {layer.padding_mode!r}")
    if len(shape) != dims + 2:
        raise ValueError(f"its input must have {dims + 1} dimensions without the batch, got {len(shape) - 1}")
    sizes, strides = [], []
    for i, (kernel, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        padding = (
            {"same": dilation * (kernel - 1), "valid": 0}[layer.padding]
            if isinstance(layer.padding, str)
            else (2 * layer.padding[i])
        )
        strides.append(stride if kernel > 1 else 1)  # a kernel of 1 is the same at every frequency
        sizes.append(-(-(shape[2 + i] + padding) // stride) * stride if kernel > 1 else 1)
    taps = torch.cartesian_prod(*(torch.arange(k) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)))
    taps = taps.reshape(-1, dims)
    weight = weight.reshape(layer.groups, -1, *weight.shape[1:2], len(taps))  # [groups, out, in, taps]
    coarse = [n // s for n, s in zip(sizes, strides, strict=True)]
    half = coarse[0] // 2 + 1  # the block of -f is the conjugate of the block of f
    frequencies = torch.cartesian_prod(*(torch.arange(n) for n in [half, *coarse[1:]])).reshape(-1, 1, dims)
    aliases = torch.tensor(list(itertools.product(*(range(0, n, m) for n, m in zip(sizes, coarse, strict=True)))))
    # What the transform rounds: (taps + 64) units for each of a block's sums, with the angle's 40 among them.
    rounding = (
        (len(taps) + 64) * 2.0**-52 * float(torch.linalg.matrix_norm(weight.abs().sum(3)).max()) * math.sqrt(len(aliases))
    )
    largest = 0.0
    for part in torch.split(frequencies, max(1, _MATRIX_ELEMENTS // (weight.numel() // len(taps) * len(aliases)))):
        cycles = ((part + aliases)[..., None, :] * taps % torch.tensor(sizes)) / torch.tensor(sizes, dtype=torch.float64)
        angle = 2 * math.pi * cycles.sum(-1)  # [frequencies, aliases, taps]
        blocks = torch.einsum("goit,fat->fgoai", weight.to(torch.complex128), torch.polar(torch.ones_like(angle), angle))
        largest = max(largest, _spectral_norm(blocks.flatten(3).flatten(0, 1)))
    return (largest + rounding) / math.sqrt(len(aliases))


def _batch_norm(layer: Any, shape: torch.Size) -> float:
    if layer.running_var is None:
        raise ValueError("it must keep running statistics, got none")
    scale = (_weight(layer, "running_var") + layer.eps).rsqrt()
    return float((scale if layer.weight is None else scale * _weight(layer).abs()).max())


def _entry(value: Any, i: int) -> Any:
    """Return a layer's setting for the i-th dimension."""
    return value[i] if isinstance(value, tuple | list) else value


def _average_pool(layer: Any, shape: torch.Size) -> float:
    """Return a bound on the norm of average pooling: a Kronecker product of one averaging matrix for each dimension."""
    if getattr(layer, "divisor_override", None) is not None:
        raise TypeError(f"its divisor_override must be None, got {layer.divisor_override!r}")
    dims = int(type(layer).__name__[-2])
    norm = 1.0
    for i, size in enumerate(shape[-dims:]):
        identity = torch.eye(size, dtype=torch.float64)[:, None]
        if hasattr(layer, "output_size"):
            output_size = _entry(layer.output_size, i)
            rows = F.adaptive_avg_pool1d(identity, size if output_size is None else output_size)
        else:
            kernel, stride, padding = (_entry(v, i) for v in (layer.kernel_size, layer.stride, layer.padding))
            rows = F.avg_pool1d(identity, kernel, stride, padding, layer.ceil_mode, layer.count_include_pad)
        norm *= _spectral_norm(rows[:, 0][None])
    return norm


def _max_pool(layer: Any, shape: torch.Size) -> float:
    """Return the square root of the number of windows that an element can lie in: none moves more than its largest move."""
    windows = 1
    for i in range(int(type(layer).__name__[-2])):
        kernel, stride, dilation = (_entry(v, i) for v in (layer.kernel_size, layer.stride, layer.dilation))
        windows *= -(-kernel * math.gcd(stride, dilation) // stride)
    return math.sqrt(windows)


def _softmax(layer: Any, shape: torch.Size) -> float:
    """Return 1/2: by Gershgorin's discs the Jacobian diag(p) - p p' has norm at most max 2 p (1 - p)."""
    if layer.dim is None or layer.dim % len(shape) == 0:
        raise TypeError(f"its dim must be given and not be the batch, got {layer.dim!r}")
    return 0.5


def _constant(value: float) -> Callable[[Any, torch.Size], float]:
    return lambda layer, shape: value


_LAYERS: dict[type[nn.Module], Callable[[Any, torch.Size], float]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _average_pool),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
    **dict.fromkeys((nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _constant(1.0)),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softplus), _constant(1.0)),
    nn.Linear: _linear,
    nn.LeakyReLU: lambda layer, shape: max(1.0, abs(layer.negative_slope)),
    nn.Sigmoid: _constant(0.25),
    nn.Softmax: _softmax,
}

# Functions and methods that are a layer, their arguments those of its constructor.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape"), nn.Flatten),
    F.leaky_relu: nn.LeakyReLU,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
_SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub)
_PRODUCTS, _QUOTIENTS = (operator.mul, operator.imul, torch.mul), (operator.truediv, operator.itruediv, torch.div)
_SHAPES = ("size", "dim")  # methods whose result does not depend on the tensor's values


class _Proxy(fx.Proxy):
    """Records ``y += x`` as what it is: fx makes it ``y = y + x``, which leaves the other names of y as they were."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Bounds(fx.Interpreter):
    """Runs a graph on a batch of zeros and keeps, for each value, a Lipschitz constant of it as a function of the input.

    What does not depend on the input has 0. Shapes are constants: no layer's output shape depends on its input's values.
    """

    batch = 3

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.bounds: dict[fx.Node, float] = {}
        self.versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        name = f"{n.target} ({type(layer).__name__})" if layer is not None else getattr(n.target, "__name__", n.target)
        try:
            for source in n.all_input_nodes:
                if self.versions.get(source) != getattr(self.env[source], "_version", None):
                    raise TypeError(f"its argument {source.name} was modified in place before")
            self.bounds[n] = self._bound(n, layer) * _SLACK
        except (TypeError, ValueError) as error:
            raise type(error)(f"the layer {name} has no known Lipschitz bound: {error}") from error
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.versions[n] = value._version
        if self.bounds[n] and not (isinstance(value, Tensor) and value.shape[:1] == (self.batch,)):
            raise TypeError(f"the output of the layer {name} is not one tensor with the batch as its first dimension")
        return value

    def _bound(self, n: fx.Node, layer: nn.Module | None) -> float:
        if n.op == "placeholder":
            if self.bounds:
                raise TypeError("it must be the only input, got a second one")
            return 1.0
        sources = [self.bounds[source] for source in n.all_input_nodes]
        if not any(sources):  # a parameter, a number, or made of these
            return 0.0
        if n.op == "output":
            if not isinstance(n.args[0], fx.Node):
                raise TypeError("it is not one tensor")
            return sources[0]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        target: Any = n.target if layer is None else None
        if target in _SHAPES or (target is getattr and args[1] == "shape"):
            return 0.0
        if target in (torch.cat, torch.concat):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if dim % args[0][0].ndim == 0:
                raise TypeError("it joins along the batch")
            return math.hypot(*(self.bounds[source] for source in n.args[0]))  # type: ignore[union-attr, index]
        if target in _FUNCTIONS:
            kind = _FUNCTIONS[target]
            layer = nn.Flatten() if kind is nn.Flatten else kind(*args[1:], **kwargs)
        if layer is not None:
            return sources[0] * _layer_bound(layer, args[0].shape)
        if kwargs or len(args) != 2 or target not in (*_SUMS, *_PRODUCTS, *_QUOTIENTS):
            raise TypeError("it is not one of those known")
        bounds = [self.bounds[a] if isinstance(a, fx.Node) else 0.0 for a in n.args]
        (shape, other) = (torch.as_tensor(a).shape for a in args)
        if any(
            b and torch.Size(np.broadcast_shapes(shape, other)) != s for b, s in zip(bounds, (shape, other), strict=True)
        ):
            raise TypeError("it repeats one argument to the shape of the other")
        if target in _SUMS:
            return sum(bounds)
        constant = 1 if bounds[0] else 0
        if bounds[constant] or (target in _QUOTIENTS and constant == 0):
            raise TypeError("it is not linear in the input")
        if isinstance(n.args[constant], fx.Node) and not isinstance(args[constant], Tensor):
            raise TypeError("its factor depends on the input's shape")
        factor = torch.as_tensor(args[constant]).to("cpu", torch.float64).abs()
        return bounds[1 - constant] * float((1 / factor if target in _QUOTIENTS else factor).max())


def _layer_bound(layer: nn.Module, shape: torch.Size) -> float:
    if type(layer) not in _LAYERS:  # not isinstance: a subclass may compute something else
        raise TypeError("it is not one of those known")
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        raise TypeError("it has hooks or a forward of its own")
    if not math.isfinite(bound := _LAYERS[type(layer)](layer, shape)):
        raise ValueError(f"it would be {bound!r}")
    return bound


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int]) -> float:
    """Return an upper bound, in l2, on the Lipschitz constant of a network in eval mode.

    The product of its layers' bounds along each path, added where paths are added, and the root of the sum of squares where
    they are concatenated. The paths are those of `torch.fx`'s symbolic trace; what is not known is an error.

    Parameters
    ----------
    module : nn.Module
        The network, in eval mode. Known: Linear; Conv1d, 2d, 3d with zero padding; BatchNorm1d, 2d, 3d; average, adaptive
        average and max pooling; ReLU, ReLU6, LeakyReLU, Hardtanh, Tanh, Softplus, Sigmoid, Softmax; Identity, Flatten,
        Dropout; the functions and methods for some of these; sums, differences, concatenation, and products with constants.
    input_shape : sequence of int
        Shape of one input, without the batch.

    Returns
    -------
    float
        Output per unit of the module's input, rounded up. It is of the real-number function that the weights define; what a
        forward pass rounds comes on top of it and is not bounded by any constant. Append Softmax for the constant of a score
        vector, which `certify` takes as it is: that multiplies by the largest ``|scale|``.

    Raises
    ------
    TypeError
        If the network cannot be traced, or holds a layer or function that is not known, which the error names.
    ValueError
        If the network is in training mode, input_shape does not fit it, or a layer's weights are not finite.

    Notes
    -----
    Linear: Gram iteration in float64, whose rounding is bounded and added; too large by less than 0.1% (1000 units).
    Convolution: the same for each frequency of a circular convolution on a torus that holds the padded input, of whose
    outputs the layer's are a subset; tight for large inputs. Average pooling: the same on its matrix. Max pooling: the
    square root of the number of windows that share an element. BatchNorm: the largest factor. The product over layers is
    far above a trained network's Lipschitz constant as a rule.

    References
    ----------
    Szegedy et al., "Intriguing Properties of Neural Networks", 2014, section 4.3, for the product; Delattre et al.,
    "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", 2023, Theorem 1, for the iteration.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = network[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]])), network[2].weight.fill_(1.0)
    >>> round(lipschitz_bound(network, (2,)), 2)  # 3 times the square root of 2
    4.24
    """
    shape = tuple(input_shape)
    if not shape or not all(is_int(length) and length > 0 for length in shape):
        raise ValueError(f"input_shape must be one or more positive integers, got {input_shape!r}")
    for name, part in module.named_modules():
        if part.training:
            raise ValueError(
                f"module{name and '.' + name} ({type(part).__name__}) must be in eval mode, got training mode; call eval()"
            )
    root = nn.Sequential(module).eval()
    try:
        graph = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:  # whatever the network's forward raises when given a proxy
        raise TypeError(f"module must be one that torch.fx can trace, got {type(module).__name__}: {error}") from error
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    bounds = _Bounds(graph)
    with torch.no_grad():
        try:
            bounds.run(torch.zeros(bounds.batch, *map(int, shape), dtype=like.dtype, device=like.device))
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"input_shape must fit the module, got {input_shape!r}: {error}") from error
    return bounds.bounds[next(iter(reversed(graph.graph.nodes)))]
