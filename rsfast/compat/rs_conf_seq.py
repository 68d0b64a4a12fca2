"""RS_conf_seq's `Certifier`, which decides early whether the label is likely enough: change its import line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from .._check import as_real, check_choice, check_count
from ..engine.forward import Model
from ..engine.modes import device_of
from ..engine.options import SmoothOptions
from ..engine.sampling import Sampling, check_model, draw_tally
from ..noise import Gaussian, Uniform
from ..stats.bounds.beta_binomial import beta_binomial_sequence_lower, beta_binomial_sequence_upper
from ..stats.common import check_alpha, fine_analysis_ends
from ._shared import Chunk, chunks, count_classes, first_input, seed_or_random

_INPUTS = 256
"""Inputs that are sampled side by side."""

_WEIGHT = 8.0
"""Samples that the mixing distribution of the bounds, with the mean targetp, is worth: labels near targetp take longest."""

_NOISES: dict[str, type[Gaussian] | type[Uniform]] = {"gaussian": Gaussian, "uniform": Uniform}


class Certifier:
    """Decide whether the smoothed classifier gives the label a probability above `targetp`, with few samples.

    Parameters
    ----------
    sigma : float
        Standard deviation of Gaussian noise, or half the width of uniform noise, in the units of x.
    noise : str
        "gaussian" or "uniform".
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. The item i of a dataset has the input id i, so the same
        call gives the same answer again.
    **options
        scale, shift, clamp, dtype, channels_last, backend and progress, as in `rsfast.sample`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    No class is selected: the question is about the label, which does not depend on the samples. The bound is
    `sequences.beta_binomial_sequence_lower` and its mirror image, valid at every number of samples at once: both hold
    together with probability 1 - alpha. They are read at `sequences.fine_analysis_ends`. The original rejects at capital
    1 / (2 alpha), after any sample. So it proves only 2 alpha, with about as many samples.

    References
    ----------
    Voracek, "Treatment of statistical estimation problems in randomized smoothing for adversarial robustness", 2024;
    github.com/vvoracek/RS_conf_seq.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> dataset = [(torch.tensor([0.5]), 0), (torch.tensor([0.5]), 1)]
    >>> Certifier(0.5, "gaussian", seed=1).certify(model, dataset, bs=100, skip=1, targetp=0.7)
    {0: (1, 126), 1: (0, 16)}
    """

    def __init__(self, sigma: float, noise: str, *, seed: int | None = None, **options: Unpack[SmoothOptions]) -> None:
        kind = _NOISES[check_choice("noise", noise, tuple(_NOISES))]
        self.noise = kind(as_real("sigma", sigma, above=0))
        self.seed, self.options = seed_or_random(seed), options

    def certify(
        self,
        model: Model,
        dataset: Any,
        bs: int = 32,
        n0: int = 128,
        n: int = 100_000,
        alpha: float = 0.001,
        skip: int = 20,
        targetp: float = 0.8,
    ) -> dict[int, tuple[int, int]]:
        """Return, by the place in the dataset, the decision and the samples that it took.

        Parameters
        ----------
        model : callable
            From a batch ``[B, *shape]`` to logits [B, K].
        dataset : Dataset
            Of items (x, label); or the name that ``get_dataset(name, "test")`` of the script's own module `datasets` takes.
        bs : int
            Batch size.
        n0 : int
            Not used, as there: no class is selected.
        n : int
            The most samples of an input.
        alpha : float
            Probability, in (0, 1), that the decision about an input is wrong.
        skip : int
            Take each skip-th item.
        targetp : float
            In (0, 1). For Gaussian noise and a radius r it is ``Phi(r / sigma)``.

        Returns
        -------
        dict of int to (int, int)
            1 where the label's probability is above targetp, 0 where it is below, -1 where n samples do not decide.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong.
        """
        n, alpha, targetp = check_count("n", n), check_alpha(alpha), as_real("targetp", targetp, above=0, below=1)
        found: dict[int, tuple[int, int]] = {}
        for chunk, sampling in self._samplings(model, dataset, bs, skip):
            found |= zip(chunk.indices, _decisions(chunk, sampling, n, alpha, targetp), strict=True)
        return found

    def certify_ub(self, *args: Any, **kwargs: Any) -> dict[int, tuple[int, int]]:
        """Return what `certify` returns: there it is the same question by a union bound."""
        return self.certify(*args, **kwargs)

    def certify_adaptive(self, *args: Any, **kwargs: Any) -> list[tuple[int, int]]:
        """Return what `certify` returns, as a list: there it is the same question by up to four fixed samples."""
        return list(self.certify(*args, **kwargs).values())

    def certify_vanilla(
        self,
        model: Model,
        dataset: Any,
        bs: int = 32,
        n0: int = 128,
        n: int = 10_000,
        alpha: float = 0.001,
        skip: int = 20,
        targetp: float = 0.8,
    ) -> list[tuple[torch.Tensor, int]]:
        """Return the votes for the label, as a tensor without axes, and the samples: n of each input, in whole batches.

        n0, alpha and targetp are not used, as there; the other parameters are those of `certify`.
        """
        n = check_count("n", n) // (bs := check_count("bs", bs)) * bs
        if not n:
            raise ValueError(f"n must be at least bs = {bs}, as only whole batches count, got less")
        found = []
        for chunk, sampling in self._samplings(model, dataset, bs, skip):
            tally = draw_tally(sampling, chunk.x, _ids(chunk, range(len(chunk.labels))), range(n), "estimation")
            votes = tally.to("cpu").counts.gather(1, torch.from_numpy(chunk.labels)[:, None])[:, 0]
            found += [(count, n) for count in votes]
        return found

    def _samplings(self, model: Model, dataset: Any, bs: int, skip: int) -> Iterator[tuple[Chunk, Sampling]]:
        """Yield the chunks of the dataset, and what samples each."""
        check_model("model", model)
        skip = check_count("skip", skip)
        if isinstance(dataset, str):
            dataset = _named(dataset)
        first = first_input(dataset)
        device = device_of(model, first)
        classes = count_classes(model, first.to(device))
        for chunk in chunks(dataset, skip, _INPUTS, device, classes):
            options: dict[str, Any] = {"input_ids": chunk.indices, **self.options}
            yield chunk, Sampling(model, chunk.x, self.noise, classes, seed=self.seed, batch_size=bs, **options)


def _decisions(chunk: Chunk, sampling: Sampling, n: int, alpha: float, targetp: float) -> list[tuple[int, int]]:
    """Return the decision about each input of a chunk, and the samples that it took."""
    found, a, b = [(-1, n)] * len(chunk.labels), _WEIGHT * targetp, _WEIGHT * (1 - targetp)
    votes, active, start = np.zeros(len(chunk.labels), dtype=np.int64), np.arange(len(chunk.labels)), 0
    for end in fine_analysis_ends(n):
        tally = draw_tally(sampling, chunk.x[_to(active, chunk.x)], _ids(chunk, active), range(start, end), "estimation")
        votes[active] += tally.to("cpu").counts.numpy()[np.arange(len(active)), chunk.labels[active]]
        above = beta_binomial_sequence_lower(votes[active], end, alpha, a=a, b=b) > targetp
        below = beta_binomial_sequence_upper(votes[active], end, alpha, a=a, b=b) < targetp
        for place, decision in zip(active[above | below].tolist(), above[above | below].tolist(), strict=True):
            found[place] = int(decision), end
        active, start = active[~(above | below)], end
        if not len(active):
            break
    return found


def _to(places: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(places, dtype=torch.int64).to(x.device)


def _ids(chunk: Chunk, places: Any) -> torch.Tensor:
    """Return the ids in the noise stream of inputs of a chunk."""
    return _to([chunk.indices[place] for place in places], chunk.x)


def _named(name: str) -> Any:
    """Return the test set that the script's own `datasets.get_dataset` knows by this name."""
    try:
        get_dataset = import_module("datasets").get_dataset
    except (ImportError, AttributeError):
        raise ValueError(
            f"dataset must be a Dataset of items (x, label), or a name for get_dataset of the script's own module datasets, "
            f"got {name!r}, and there is no such function; pass the Dataset"
        ) from None
    return get_dataset(name, "test")
