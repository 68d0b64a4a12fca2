"""Smoothed functions: value, gradient and curvature of E f(x + noise), for any scalar function f."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import ops
from ._check import as_int, check_count
from .engine.batch_size import fixed
from .engine.forward import Model
from .engine.modes import evaluating, modules_of
from .engine.sampling import check_model
from .engine.values import check_values
from .noise import Noise, check_noise

_BLOCK = 1 << 18  # elements of noise, in float64, that are weighted at once: no sum depends on the batch size


class Estimate(NamedTuple):
    """A mean over n pairs of samples, and its standard error: float64 tensors of one shape.

    The pairs are independent, so a pair's variance is ``n * standard_error ** 2``.
    """

    mean: torch.Tensor
    standard_error: torch.Tensor


class Smoothed:
    """The function ``g(x) = E f(x + noise)``, estimated by sampling; `smoothed` makes it and states what it takes.

    ``g(x)`` is a tensor for torch.autograd. The methods return estimates with their standard errors.

    Attributes
    ----------
    f, noise, n, seed, batch_size, common_random_numbers
        As given to `smoothed`; seed is the one drawn where it was None.
    """

    def __init__(
        self, f: Model, noise: Noise, n: int, *, seed: int | None, batch_size: int | None, common_random_numbers: bool
    ) -> None:
        self.f, self.noise, self.n = check_model("f", f), check_noise("noise", noise), check_count("n", n)
        if (evaluations := noise.evaluations) is not None:
            raise ValueError(
                f"noise must be random, got {noise!r:.100}; average f over its {evaluations} evaluations yourself: "
                f"ops.perturb(x[None], noise, seed=0, samples=range({evaluations}))"
            )
        if self.n < 2:
            raise ValueError(f"n must be at least 2, as one pair has no standard error, got {self.n}")
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size)
        if not isinstance(common_random_numbers, bool):
            raise TypeError(f"common_random_numbers must be True or False, got {common_random_numbers!r}")
        self.common_random_numbers = common_random_numbers
        self.seed = ops.check_seed(secrets.randbits(64) if seed is None else seed)
        self.count = 0
        self._modules = modules_of(f)

    @property
    def count(self) -> int:
        """The sample index, in the stream "user", at which the next call starts.

        It may be set, to an int from 0 to 2^56: a loop that resumes with the count it was left with goes on with the same
        bits. Anything else raises TypeError or ValueError.
        """
        return self._count

    @count.setter
    def count(self, value: int) -> None:
        value = as_int("count", value)
        if not 0 <= value <= 1 << 56:
            raise ValueError(f"count must be from 0 to 2^56, got {value}")
        self._count = value

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the estimate of g(x) as a float32 tensor without axes, whose gradient is that of `gradient`.

        Value and gradient come from the same samples. f is not differentiated. A backward pass with
        ``create_graph=True``, for a second derivative, raises RuntimeError.
        """
        if torch.is_grad_enabled() and isinstance(x, torch.Tensor) and x.requires_grad:
            result: torch.Tensor = _Autograd.apply(x, self)  # type: ignore[no-untyped-call]
            return result
        return self.value(x).mean.float()

    def value(self, x: torch.Tensor) -> Estimate:
        """Return the estimate of g(x): the mean over pairs of ``(f(x + z) + f(x - z)) / 2``."""
        return _estimate(self._evaluate(self._check(x)).mean(dim=1))

    def gradient(self, x: torch.Tensor) -> Estimate:
        """Return the estimate of the gradient ``[*shape]`` of g at x: ``E (f(x + z) - f(x - z)) / 2 score(z)``.

        Raises
        ------
        TypeError
            If the noise has no score (`Noise.score`); no f is evaluated then.

        Examples
        --------
        >>> from rsfast import Gaussian, smoothed
        >>> g = smoothed(lambda x: x[:, 0] * x[:, 1], Gaussian(0.5), 10_000, seed=1)
        >>> mean, standard_error = g.gradient(torch.tensor([2.0, 3.0]))
        >>> bool(((mean - torch.tensor([3.0, 2.0])).abs() < 4 * standard_error).all())
        True
        """
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: torch.Tensor) -> tuple[Estimate, Estimate]:
        """Return what `value` and `gradient` do, both from one evaluation of f at each point."""
        x = self._check(x)
        self.noise.score(x.new_zeros(0, *x.shape))  # raises before any work
        first, values = self.count, self._evaluate(x)
        return _estimate(values.mean(dim=1)), self._weigh(x, first, (values[:, 0] - values[:, 1]) / 2, self.noise.score)

    def curvature(self, x: torch.Tensor) -> Estimate:
        """Return the estimate of the trace of g's Hessian at x: ``E ((f(x + z) + f(x - z)) / 2 - f(x)) laplacian(z)``.

        f(x) changes no mean, as that of ``laplacian(z)`` is 0 (`Noise.laplacian`), and takes most of the variance away.

        Raises
        ------
        TypeError
            If the noise has no such weight; no f is evaluated then.

        Examples
        --------
        >>> from rsfast import Gaussian, smoothed
        >>> g = smoothed(lambda x: x.square().sum(1), Gaussian(0.5), 10_000, seed=1)
        >>> mean, standard_error = g.curvature(torch.tensor([2.0, 3.0]))
        >>> bool(abs(mean - 4) < 4 * standard_error)
        True
        """
        x = self._check(x)
        self.noise.laplacian(x.new_zeros(0, *x.shape))
        with evaluating(self._modules):
            centre = _check_finite(_check_output(self.f(x[None].clone()), 1).double())
        first, values = self.count, self._evaluate(x)
        return self._weigh(x, first, values.mean(dim=1) - centre, self.noise.laplacian)

    def _check(self, x: torch.Tensor) -> torch.Tensor:
        x = ops.check_inputs("x", x, single=True)
        check_values("x", x, self.noise)
        return x

    def _evaluate(self, x: torch.Tensor) -> torch.Tensor:
        """Return f at both points of every pair, [n, 2] in float64, and move `count` past them."""
        paired, first = self.noise.has_score, self.count
        sources = torch.stack([x, -x]) if paired else x[None]
        values = torch.empty(2 * self.n, dtype=torch.float64, device=x.device)
        size = fixed(x.shape, x.device) if self.batch_size is None else self.batch_size
        with evaluating(self._modules):
            for start in range(0, len(values), size):
                places = torch.arange(start, min(start + size, len(values)), device=x.device)
                rows = places % 2 if paired else torch.zeros_like(places)
                batch = self._perturb(sources, first + (places // 2 if paired else places), rows)
                batch *= (1 - 2 * rows).reshape(-1, *[1] * x.ndim)  # -(-x + z) is x - z, to the bit
                values[start : start + size] = _check_output(self.f(batch), len(places))
        _check_finite(values)
        if not self.common_random_numbers:
            self.count += self.n if paired else 2 * self.n
        return values.reshape(self.n, 2)

    def _weigh(
        self, x: torch.Tensor, first: int, values: torch.Tensor, weight: Callable[[torch.Tensor], torch.Tensor]
    ) -> Estimate:
        """Return the mean of values [n] times the weights of the noise of their pairs, which is drawn again."""
        moments, zero, size = _Moments(), torch.zeros_like(x)[None], max(1, _BLOCK // x.numel())
        for start in range(0, self.n, size):
            block = values[start : start + size]
            samples = torch.arange(first + start, first + start + len(block), device=x.device)
            weights = weight(self._perturb(zero, samples, torch.zeros_like(samples)).double())
            moments.add(block.reshape(-1, *[1] * (weights.ndim - 1)) * weights)
        return moments.estimate()

    def _perturb(self, sources: torch.Tensor, samples: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(len(sources), dtype=torch.int64, device=sources.device)
        return ops.perturb(sources, self.noise, seed=self.seed, samples=samples, rows=rows, input_ids=ids, stream="user")


def smoothed(
    f: Model,
    noise: Noise,
    n: int,
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    common_random_numbers: bool = False,
) -> Smoothed:
    """Return the function ``g(x) = E f(x + noise)`` for any scalar f: it has a gradient even where f jumps.

    ``g(x)`` estimates the value, and its backward pass the gradient, so torch.optim minimises it. ``g.value(x)``,
    ``g.gradient(x)``, ``g.value_and_gradient(x)`` and ``g.curvature(x)`` return an `Estimate`: mean and standard error.

    Parameters
    ----------
    f : callable
        From a batch ``[B, *shape]`` to one finite real number a row, [B]. It is never differentiated. A torch.nn.Module is
        put into eval mode meanwhile.
    noise : Noise
        Its parameters are in the units of x. The value takes any random noise, the gradient `Gaussian`,
        `AnisotropicGaussian` or `Laplace` noise, and the curvature one of the first two. Deterministic noise is an error: f
        can be averaged over all its evaluations.
    n : int
        Pairs of samples that each call takes, at least 2. f is evaluated at 2 n points, at x itself too for the curvature.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. Either way ``g.seed`` has it. Two functions of one seed
        draw the same noise.
    batch_size : int, optional
        Points at which f is evaluated at once; if left out, 2 MiB of noise on a CPU, 4 MiB for vectors, 4 to 32,768 points,
        and elsewhere 16 MiB, 16 to 65,536 points. The results have the same bits for all sizes if f computes each row the
        same in whatever batch it stands.
    common_random_numbers : bool
        False: every call takes fresh samples, those of the stream "user" from ``g.count`` on, as stochastic gradient descent
        needs. True: all calls take the same, from ``g.count`` on, which stays. ``g(x)`` is then one fixed function of x:
        differences ``g(x) - g(y)`` lose most of their noise, and line searches work. All x share the error of one draw.

    Returns
    -------
    Smoothed
        It takes one x at a time: a float32 tensor ``[*shape]``, finite, within ``noise.largest_input`` and
        ``noise.input_range``. A batch of inputs is ``torch.stack([g(x) for x in inputs])``.

    Raises
    ------
    TypeError, ValueError
        Here, if an argument is wrong. When g is called, before f is evaluated, if x is wrong, or if a derivative is asked
        for that the noise cannot give. After that, if f returns anything but B finite real numbers.

    Notes
    -----
    With z the noise and p its density, ``score = -grad log p`` (for Gaussian ``z / sigma^2``, for Laplace ``sign(z) / b``)
    and ``laplacian = (tr p'') / p`` (for Gaussian ``(|z|^2 / sigma^2 - D) / sigma^2``, D the elements of x):

    - value: ``E (f(x + z) + f(x - z)) / 2``;
    - gradient: ``E (f(x + z) - f(x - z)) / 2 score(z)``;
    - trace of the Hessian: ``E ((f(x + z) + f(x - z)) / 2 - f(x)) laplacian(z)``.

    Both points of a pair share z. So what is odd in z adds no noise to the value, and what is even none to the gradient. A
    noise without a score may be no sum at all, so it has no such pairs: its value takes 2 n independent samples.

    For Gaussian noise, ``g(x) - f(x)`` is ``sigma^2 / 2 tr f''(x)`` up to terms in ``sigma^4``: the bias that smoothing
    costs, and a check of ``g.curvature``.

    Numerics: the noise is that of `ops.perturb` in float32. f's numbers are taken as float64, and means and variances are
    computed in float64, in blocks that depend on the shape of x only. Memory beyond a batch is 40 bytes a pair, and about
    twenty float64 tensors of 2 MiB, or of the size of x where that is more.

    References
    ----------
    Stein, "Estimation of the Mean of a Multivariate Normal Distribution", 1981, Lemma 2; Nesterov and Spokoiny, "Random
    Gradient-Free Minimization of Convex Functions", 2017; Chan, Golub and LeVeque, "Algorithms for Computing the Sample
    Variance", 1983.

    Examples
    --------
    A step has no gradient of use. Smoothed, it is the normal distribution function:

    >>> from rsfast import Gaussian
    >>> g = smoothed(lambda x: (x[:, 0] > 0).float(), Gaussian(0.5), 100_000, seed=1)
    >>> x = torch.tensor([0.5], requires_grad=True)
    >>> value = g(x)
    >>> value.backward()
    >>> abs(value.item() - 0.8413) < 0.005, abs(x.grad.item() - 0.4839) < 0.01
    (True, True)
    """
    return Smoothed(f, noise, n, seed=seed, batch_size=batch_size, common_random_numbers=common_random_numbers)


class _Autograd(torch.autograd.Function):
    """The value of a smoothed function, with the gradient that the same samples give."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, g: Smoothed) -> torch.Tensor:
        value, gradient = g.value_and_gradient(x)
        ctx.save_for_backward(gradient.mean.float())
        return value.mean.float()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # torch would take the second derivative for 0
            raise RuntimeError(
                "create_graph must be False where a smoothed function is differentiated, got True; its gradient has no "
                "gradient, and g.curvature estimates the trace of the Hessian"
            )
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None


class _Moments:
    """Mean and sum of squared deviations of samples that come in blocks.

    Each block's are computed in two passes, and merged by the formula of Chan, Golub and LeVeque: nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def add(self, block: torch.Tensor) -> None:
        """Add samples [m, ...]."""
        mean, total = block.mean(dim=0), self.count + len(block)
        shift = mean - self.mean
        self.squares = self.squares + (block - mean).square().sum(dim=0) + shift**2 * (self.count * len(block) / total)
        self.mean = self.mean + shift * (len(block) / total)
        self.count = total

    def estimate(self) -> Estimate:
        squares, mean = torch.as_tensor(self.squares), torch.as_tensor(self.mean)
        return Estimate(mean, (squares / (self.count * (self.count - 1))).sqrt())


def _estimate(values: torch.Tensor) -> Estimate:
    """Return the mean of values [n]."""
    moments = _Moments()
    moments.add(values)
    return moments.estimate()


def _check_output(output: object, rows: int) -> torch.Tensor:
    """Return what f made of a batch; raise TypeError or ValueError unless it is one real number a row."""
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"f must return a tensor [B], got a {type(output).__name__}")
    if output.is_complex():
        raise TypeError(f"f must return real numbers, got {output.dtype}")
    if output.shape != (rows,):
        hint = "; add .squeeze(1)" if output.shape == (rows, 1) else ""
        raise ValueError(f"f must return one number a row, shape [{rows}] here, got {list(output.shape)}{hint}")
    return output


def _check_finite(values: torch.Tensor) -> torch.Tensor:
    """Return what f made of all points; raise ValueError unless it is finite."""
    if not bool((finite := values.isfinite()).all()):
        raise ValueError(f"f must return finite numbers, got {values[~finite][0].item()}")
    return values
