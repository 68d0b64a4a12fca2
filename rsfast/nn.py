"""Modules for training classifiers that are then smoothed."""

from __future__ import annotations

import ctypes
import os
import secrets
from multiprocessing.context import get_spawning_popen
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data._utils import worker as _workers
from typing_extensions import Self

from . import ops
from ._check import check_count
from .noise import Gaussian, Noise, philox
from .noise import Mask as _MaskNoise

_WORKERS = 5
"""The stream, in the Philox counter, of the seeds that layers take in a DataLoader's workers. No noise is drawn from it."""

_KEPT = 4096  # forwards that a backward pass may repeat, the latest of all layers


class _Perturb(torch.autograd.Function):
    """`ops.perturb` of a batch, with the gradient of ``x + noise``: that of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, samples: torch.Tensor, source: torch.Tensor, noise: Noise, seed: int) -> Any:
        return ops.perturb(
            x.float(),
            noise,
            seed=seed,
            samples=samples,
            input_ids=source,
            stream="training",
            dtype=x.dtype,
            channels_last=_is_channels_last(x),
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None, None, None, None


_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # float64 would lose digits on its way through float32
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got a {type(x).__name__}")


def _check_batch(name: str, x: torch.Tensor) -> None:
    _check_tensor(name, x)
    if x.ndim < 2 or not x.numel():
        hint = f"; one input needs its batch axis: {name}[None]" if x.ndim == 1 and x.numel() else ""
        raise ValueError(f"{name} must have shape [B, *shape] with at least one element, got {list(x.shape)}{hint}")


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.ndim in (4, 5) and not x.is_contiguous() and x.is_contiguous(memory_format=_LAST[x.ndim])


class _NoiseLayer(nn.Module):
    """Draw noise in training mode, each row of each batch its own, in whichever forward, checkpoint or worker it runs.

    Subclasses define `_with_noise`. What holds of `count`, errors, ranks, checkpoints and workers is in `GaussianNoise`.
    """

    count: torch.Tensor
    _rank_of_sender: int | None = None

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.seed = ops.check_seed(secrets.randbits(64) if seed is None else seed)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __getstate__(self) -> dict[str, Any]:
        """Take along the rank to a process that starts, as a worker that is not forked has no process group; to no file."""
        if get_spawning_popen() is None:
            return dict(self.__dict__)
        of_environment = os.environ.get("RANK")
        rank = _rank() if _has_group() else self._rank_of_sender if of_environment is None else int(of_environment)
        return {**self.__dict__, "_rank_of_sender": rank}

    def _with_noise(self, x: torch.Tensor, samples: torch.Tensor, source: torch.Tensor, seed: int) -> torch.Tensor:
        """Return x with the noise of these samples [B], of inputs with the ids `source` [B], which are all the same."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x ``[B, *shape]`` with noise, of the same type and memory format; x itself in eval mode."""
        _check_tensor("x", x)
        if not self.training:
            return x
        if x.dtype not in _TYPES:
            raise TypeError(f"x must have dtype {', '.join(map(str, _TYPES))}, got {x.dtype}")
        count, seed, source = self.count, self.seed, _source(x.device)
        if (worker := _workers._worker_info) is not None:
            count = _worker_counts.setdefault(self, torch.zeros_like(count))
            if not _has_group():
                source |= _source_of_sender(self._rank_of_sender)
            seed, source = _worker_seed(seed, worker.seed), 1 << 31 | source
        before, after = torch.ops.rsfast.place(count, x.shape[0], seed - (1 << 63))
        samples = before + torch.arange(x.shape[0], device=x.device)
        ids = torch.full_like(samples, source)
        noisy = self._with_noise(x, samples, ids, seed)
        count.copy_(after)
        return noisy


class GaussianNoise(_NoiseLayer):
    """Add Gaussian noise in training mode, each row of each batch its own; do nothing in eval mode.

    Put it before a classifier that is trained to be smoothed. Noise is that of `ops.perturb`, from the stream "training":
    nothing that is drawn here is ever drawn in a certification, whatever the seeds.

    Parameters
    ----------
    sigma : float
        Standard deviation, in the units of the input.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    count : int64 tensor, a buffer
        Rows that have got their noise. It is in the state_dict, so training that resumes goes on with the same bits.

    Raises
    ------
    TypeError, ValueError
        If sigma or seed is out of range; in forward, if x is not float32, float16 or bfloat16 of rank 2 or more.

    RuntimeError
        If a backward pass runs the layer, and which forward it repeats cannot be told.

    Notes
    -----
    The gradient is that of x, and torch.compile makes one graph of it. The noise of each rank under torch.distributed and of
    each replica under DataParallel is its own. On a GPU (an H200) it gave the CPU's bits; several GPUs have not been tried.

    Activation checkpointing (`torch.utils.checkpoint`, reentrant or not, compiled or not) gets the same noise when it
    repeats a forward, and `count` stays. To know the forward again, each one draws a number from torch's CPU generator. So
    ``preserve_rng_state`` must be True, and the latest 4096 forwards can be repeated; RuntimeError tells where that fails.
    A checkpoint within compiled code needs its backward pass before the next forward; torch raises RuntimeError if not. A
    CUDA graph (``mode="reduce-overhead"``) hides from the layer that it repeats: do not checkpoint in one.

    In a worker of a DataLoader the noise comes from `seed`, the worker's own seed and the number of rows before in that
    worker. Noise of each worker and epoch is then its own. It repeats if `torch.manual_seed` (or the loader's generator) and
    the number of workers do. `count` leaves these rows out. Other copies of a layer draw the same noise as it.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, section 4.

    Examples
    --------
    >>> noise = GaussianNoise(0.25, seed=1)
    >>> x = torch.zeros(2, 3)
    >>> noise(x).std() > 0, noise.eval()(x).std() > 0
    (tensor(True), tensor(False))
    """

    def __init__(self, sigma: float, *, seed: int | None = None) -> None:
        sigma = Gaussian(sigma).sigma
        super().__init__(seed)
        self.sigma = sigma

    def _with_noise(self, x: torch.Tensor, samples: torch.Tensor, source: torch.Tensor, seed: int) -> torch.Tensor:
        noisy: torch.Tensor = _Perturb.apply(x, samples, source, Gaussian(self.sigma), seed)  # type: ignore[no-untyped-call]
        return noisy

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, seed={self.seed}"


class Mask(_NoiseLayer):
    """Hide parts of each row at random in training mode, as `rsfast.noise.Mask` does; do nothing in eval mode.

    Put it before a classifier that is trained to be smoothed with that noise. It keeps a part with probability `keep`, and
    puts `fill` in place of the others. Noise is that of `ops.perturb`, from the stream "training".

    On hidden units it is dropout with ``p = 1 - keep``, but for the factor: `torch.nn.Dropout` multiplies what it keeps by
    ``1 / keep``, and this layer leaves it as it is. With ``fill=0``, ``Mask(keep)(h) / keep`` has dropout's distribution.

    Parameters
    ----------
    keep : float
        The chance that a part is kept, from 2^-24 to 1; see `rsfast.noise.Mask`.
    fill : float
        What hides an element, in the units of the input; finite.
    patch : int
        0: parts are elements. p: they are cells of p positions along every axis but the channels', over all channels. The
        rows of x, of shape [channels, height, width], then have at least 3 axes.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    count : int64 tensor, a buffer
        Rows that have been masked. It is in the state_dict, so training that resumes goes on with the same bits.

    Raises
    ------
    TypeError, ValueError
        If a parameter is out of range; in forward, if x is not float32, float16 or bfloat16 of rank 2 or more, or has too
        few axes for a patch.

    RuntimeError
        If a backward pass runs the layer, and which forward it repeats cannot be told.

    Notes
    -----
    The gradient of an element is that of x where it is kept, and 0 where it is hidden, whatever the fill. It may
    be differentiated again. torch.compile makes one graph of it; with a patch the graph breaks here. What `GaussianNoise`
    says of ranks, checkpoints and the workers of a DataLoader holds here, too.

    References
    ----------
    Levine and Feizi, "Robustness Certificates for Sparse Adversarial Attacks by Randomized Ablation", 2020; Srivastava et
    al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.

    Examples
    --------
    >>> mask = Mask(0.25, fill=-1.0, patch=1, seed=1)
    >>> x = torch.zeros(2, 3, 8, 8)
    >>> mask(x).unique(), mask.eval()(x).unique()
    (tensor([-1.,  0.]), tensor([0.]))
    """

    def __init__(self, keep: float, fill: float = 0.0, patch: int = 0, *, seed: int | None = None) -> None:
        noise = _MaskNoise(keep, fill, patch)
        super().__init__(seed)
        self.keep, self.fill, self.patch = noise.keep, ctypes.c_float(noise.fill).value, noise.patch

    def _with_noise(self, x: torch.Tensor, samples: torch.Tensor, source: torch.Tensor, seed: int) -> torch.Tensor:
        _check_batch("x", x)
        kept = ops.perturb(
            torch.ones(1, *x.shape[1:], device=x.device),
            _MaskNoise(self.keep, 0.0, self.patch),
            seed=seed,
            samples=samples,
            rows=torch.zeros_like(samples),
            input_ids=source[:1],
            stream="training",
            dtype=x.dtype,
            channels_last=_is_channels_last(x),
        )
        return torch.where(kept != 0, x, self.fill)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, fill={self.fill}, patch={self.patch}, seed={self.seed}"


class NoisyStateCell(nn.Module):
    """Run a recurrent cell whose state gets Gaussian noise before every step, in training mode.

    It takes the place of its cell: ``h = cell(input, h + z)``, with z fresh at each step and for each row. The first step's
    state of zeros gets noise, too. A long short-term memory has noise on h, and none on c. In eval mode it is the cell.

    Parameters
    ----------
    cell : torch.nn.RNNCell, GRUCell or LSTMCell
        What it computes is left as it is; its parameters are trained.
    sigma : float
        Standard deviation of the noise on each element of the state.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    cell : nn.Module
    noise : GaussianNoise
        It draws the noise, from the stream "training", and its `count` makes training that resumes go on with the same bits.

    Raises
    ------
    TypeError, ValueError
        If cell is none of these, or sigma or seed is out of range; in forward, if input is not [B, input_size].

    Notes
    -----
    For a loss l of ``W h`` the expected loss is that without noise plus ``sigma^2 / 2 tr(W' H W)``, up to terms in
    ``sigma^4``, H the Hessian of l: a penalty on the recurrent weights W. Where H is a multiple of the identity, it is an
    l2 penalty. Each of several steps adds such a term, with H the Hessian of l with respect to the state after that step.
    The later steps are part of this function, so H is seldom a multiple of the identity.

    References
    ----------
    Jim, Giles and Horne, "An Analysis of Noise in Recurrent Neural Networks: Convergence and Generalization", 1996.

    Examples
    --------
    >>> cell = NoisyStateCell(nn.GRUCell(3, 5), 0.1, seed=1)
    >>> h = None
    >>> for step in torch.zeros(7, 2, 3):
    ...     h = cell(step, h)
    >>> h.shape
    torch.Size([2, 5])
    """

    def __init__(self, cell: nn.RNNCellBase, sigma: float, *, seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(cell, nn.RNNCellBase):
            raise TypeError(f"cell must be an nn.RNNCell, nn.GRUCell or nn.LSTMCell, got {cell!r}")
        self.cell, self.noise = cell, GaussianNoise(sigma, seed=seed)

    def forward(self, input: torch.Tensor, state: Any = None) -> Any:
        """Return the cell's next state for an input [B, input_size]: h [B, hidden_size], or (h, c) of an LSTMCell.

        `state` is the one before, of the same form; None stands for zeros.
        """
        _check_tensor("input", input)
        if input.ndim != 2:
            raise ValueError(f"input must have shape [B, input_size], got {list(input.shape)}; one input is input[None]")
        has_c = isinstance(self.cell, nn.LSTMCell)
        if state is None:
            h = input.new_zeros(len(input), self.cell.hidden_size)
            state = (h, h) if has_c else h
        if isinstance(state, torch.Tensor) == has_c or not isinstance(state, (torch.Tensor, tuple, list)):
            raise TypeError(f"state must be {'(h, c)' if has_c else 'a tensor h'}, got a {type(state).__name__}")
        if has_c and len(state) != 2:
            raise ValueError(f"state must be (h, c), got a {type(state).__name__} of length {len(state)}")
        for name, each in zip(("state[0]", "state[1]"), state, strict=True) if has_c else ():
            _check_tensor(name, each)
        return self.cell(input, (self.noise(state[0]), state[1]) if has_c else self.noise(state))


class SmoothedCritic(nn.Module):
    """Average a critic over noisy copies of its input: an estimate of ``E critic(x + noise)``, whose gradients are tame.

    It takes the place of the critic of a generative adversarial network. Gradients reach x and the critic's parameters, and
    may be differentiated again, as a gradient penalty does. It smooths in eval mode, too, as the generator is trained on the
    smoothed critic; ``.critic`` is the one without noise.

    Parameters
    ----------
    critic : nn.Module
        From a batch ``[B, *shape]`` to [B, ...], row by row.
    sigma : float
        Standard deviation of the noise, in the units of x.
    samples : int
        Noisy copies of each x. They make a batch of B times as many rows.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    critic : nn.Module
    samples : int
    noise : GaussianNoise
        It draws the noise, from the stream "training", and its `count` makes training that resumes go on with the same bits.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; in forward, if x is not as `GaussianNoise` takes it, or the critic returns another number of
        rows.

    References
    ----------
    Arjovsky, Chintala and Bottou, "Wasserstein GAN", 2017; Gulrajani et al., "Improved Training of Wasserstein GANs", 2017.

    Examples
    --------
    >>> critic = SmoothedCritic(nn.Linear(2, 1), 0.5, 8, seed=1)
    >>> critic(torch.zeros(4, 2)).shape
    torch.Size([4, 1])
    """

    def __init__(self, critic: nn.Module, sigma: float, samples: int, *, seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(critic, nn.Module):
            raise TypeError(f"critic must be an nn.Module, got {critic!r}")
        self.critic, self.samples = critic, check_count("samples", samples)
        self.noise = GaussianNoise(sigma, seed=seed)

    def extra_repr(self) -> str:
        return f"samples={self.samples}"

    def train(self, mode: bool = True) -> Self:
        """Set the critic's mode; the noise stays."""
        super().train(mode)
        self.noise.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean [B, ...] of the critic over noisy copies of x ``[B, *shape]``."""
        _check_batch("x", x)
        copies = self.noise(x.repeat_interleave(self.samples, dim=0))
        values: torch.Tensor = self.critic(copies)
        if values.ndim == 0 or len(values) != len(copies):
            raise ValueError(f"critic must return {len(copies)} rows for {len(copies)} rows, got shape {list(values.shape)}")
        return values.reshape(len(x), self.samples, *values.shape[1:]).mean(dim=1)


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _has_group() else 0


def _source(device: torch.device) -> int:
    """Return a number of this rank and device, for the place of the input id in the noise stream."""
    return _rank() << 8 | (device.index or 0)


def _source_of_sender(rank: int | None) -> int:
    """Return the rank's part of `_source` in a worker without a process group. Where RANK is the rank, the seed has it."""
    of_environment = os.environ.get("RANK")
    if rank is None or of_environment == str(rank):
        return 0
    return rank << 8 | (of_environment is not None) << 30  # RANK is another's: of a machine with several ranks, say


def _worker_seed(seed: int, of_worker: int) -> int:
    """Return the seed of a layer in a DataLoader's worker: of each worker, epoch and rank another."""
    rank = int(os.environ.get("RANK", "0"))  # a worker that was spawned has no process group
    low, high, *_ = philox((of_worker & 0xFFFFFFFF, of_worker >> 32 & 0xFFFFFFFF, rank, _WORKERS << 24), seed)
    return int(high << 32 | low)


# Of the layers in this worker of a DataLoader: workers that were spawned share the buffers of the main process.
_worker_counts: WeakKeyDictionary[_NoiseLayer, torch.Tensor] = WeakKeyDictionary()

# Of the latest forwards, by the layer and the number that torch's generator gave: the count before it, or None if there were
# several such forwards, and whether it was repeated.
_starts: dict[tuple[int, int], tuple[torch.Tensor | None, bool]] = {}
_starts_lock = Lock()


def _place(count: torch.Tensor, rows: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the count before and after a forward; where a backward pass repeats one, the count before it, and now.

    A checkpoint repeats a forward from the random state in which it first ran, so the next number from torch's generator
    says which forward it is. This is an operator, so that it also runs with every run of a compiled graph.
    """
    repeats = torch._C._current_graph_task_id() != -1  # within a backward pass
    key = layer, int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    with _starts_lock:
        known = key in _starts
        start, repeated = _starts.pop(key, (None, False))
        if not repeats:
            several = known and not repeated and (start is None or int(start) != int(count))
            start = None if several else count.clone()
        _starts[key] = start, repeats
        while len(_starts) > _KEPT:
            del _starts[next(iter(_starts))]
    if not repeats:
        return count.clone(), count + rows
    if start is None:
        raise RuntimeError(
            "a noise layer runs in a backward pass, and cannot tell which forward it repeats, so its noise is unknown; "
            "torch.utils.checkpoint must be called with preserve_rng_state=True, and no two forwards from the same "
            f"torch.manual_seed, nor more than {_KEPT}, may wait for their backward pass"
        )
    return start.clone(), count.clone()


_library: Any = torch.library.Library("rsfast", "FRAGMENT")  # type: ignore[no-untyped-call]
# With this tag a compiled checkpoint, too, repeats it from the same random state.
_library.define("place(Tensor count, SymInt rows, int layer) -> (Tensor, Tensor)", tags=(torch.Tag.nondeterministic_seeded,))
_library.impl("place", _place, "CompositeExplicitAutograd")
torch.library.register_fake(
    "rsfast::place", lambda count, *_: (torch.empty_like(count), torch.empty_like(count)), lib=_library
)
