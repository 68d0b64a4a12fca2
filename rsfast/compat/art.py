"""IBM ART's `PyTorchRandomizedSmoothing`: change the import line of a script, and it draws, counts and bounds here.

To import this module is to import ART: ``pip install 'rsfast[art]'``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._check import as_real, check_count
from ..api import certify, sample
from ..noise import Gaussian
from ..stats.prediction import predictions
from ._shared import seed_or_random

try:
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing as _Original
except ModuleNotFoundError as error:
    raise ImportError("rsfast.compat.art needs ART: pip install 'rsfast[art]'") from error


class _Predict(torch.nn.Module):
    """The base classifier: what ART's `predict` makes of a batch, from its preprocessing to its postprocessing."""

    def __init__(self, estimator: PyTorchRandomizedSmoothing) -> None:
        super().__init__()
        self.network, self.estimator = estimator._model, estimator

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        of_torch = self.estimator.all_framework_preprocessing
        x, _ = self.estimator._apply_preprocessing(batch if of_torch else batch.cpu().numpy(), y=None, fit=False)
        output: torch.Tensor = self.network(torch.as_tensor(x, dtype=batch.dtype, device=batch.device))[-1]
        if self.estimator.postprocessing_defences:
            found = output.cpu().numpy().astype(np.float32)
            output = torch.as_tensor(self.estimator._apply_postprocessing(preds=found, fit=False), device=batch.device)
        return output


class PyTorchRandomizedSmoothing(_Original):  # type: ignore[misc]  # ART has no types
    """ART's class of the same name, with `certify` and `predict` by rsfast; `fit` and the gradients are ART's own.

    Parameters
    ----------
    *args, **kwargs
        Those of ART's class, in its order. Noise has the standard deviation `scale`, in the units of x: it is added before
        ART's own preprocessing, as ART does, and x is not clipped.
    seed : int, optional
        In [0, 2^64), of the noise of `certify` and `predict`; drawn from the operating system if left out.

    Raises
    ------
    TypeError, ValueError
        If seed is not such an int. What else is wrong, at the call that uses it.

    Notes
    -----
    Each input that an object certifies or predicts is the next one in the noise stream. So the same calls in the same order
    give the same answers, whatever the batch size. The noise is made on the model's device, a batch at a time.

    References
    ----------
    github.com/Trusted-AI/adversarial-robustness-toolbox, 1.20; Cohen, Rosenfeld and Kolter, "Certified Adversarial
    Robustness via Randomized Smoothing", 2019.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    >>> _ = network[1].weight.data.copy_(torch.eye(2))
    >>> settings = {"input_shape": (1, 2), "nb_classes": 2, "scale": 0.25, "sample_size": 100, "device_type": "cpu"}
    >>> smoothed = PyTorchRandomizedSmoothing(network, torch.nn.CrossEntropyLoss(), **settings, seed=1)
    >>> x = np.array([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=np.float32)
    >>> predictions, radii = smoothed.certify(x, n=1000, batch_size=100)
    >>> predictions, 0.4 < radii[0] < 0.6, radii[1]
    (array([ 0, -1]), np.True_, np.float64(0.0))
    """

    estimator_params = [*_Original.estimator_params, "seed"]  # noqa: RUF012  # as ART declares its own
    _drawn = 0  # inputs that have had noise

    def __init__(self, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        self.seed = seed_or_random(seed)
        super().__init__(*args, **kwargs)

    def _options(self, x: NDArray[Any]) -> dict[str, Any]:
        """Return the arguments that `certify` and `sample` share, the next ids of the noise stream among them."""
        check_count("sample_size", self.sample_size)
        if not isinstance(x, np.ndarray) or x.ndim < 2:
            found = f"shape {list(x.shape)}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
            raise TypeError(f"x must be an array [N, *shape], got {found}")
        first, self._drawn = self._drawn, self._drawn + len(x)
        return {
            "model": _Predict(self),
            "inputs": torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device),
            "noise": Gaussian(as_real("scale", self.scale, above=0)),
            "num_classes": self.nb_classes,
            "seed": seed_or_random(self.seed),
            "input_ids": range(first, self._drawn),
        }

    def certify(self, x: NDArray[Any], n: int, batch_size: int = 32) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the class [N] at each input, or -1, and the l2 radius [N] in the units of x, or 0.

        Each is wrong with probability at most `alpha`: sigma Phi^-1 of the Clopper-Pearson bound, rounded down.

        Parameters
        ----------
        x : ndarray ``[N, *shape]``
        n : int
            Samples that bound the class. `sample_size` others choose it.
        batch_size : int
        """
        found = certify(
            **self._options(x), n0=self.sample_size, n=n, alpha=self.alpha, rule="one_vs_rest", batch_size=batch_size
        )
        return np.array([each.prediction for each in found]), np.array([each.radius for each in found])

    def predict(self, x: NDArray[Any], batch_size: int = 128, verbose: bool = False, **kwargs: Any) -> NDArray[np.float64]:
        """Return a row [nb_classes] for each input: 1 at its class, or all 0 where `sample_size` votes do not decide.

        Parameters
        ----------
        x : ndarray ``[N, *shape]``
        batch_size : int
        verbose : bool
            Show progress.
        is_abstain : bool
            If False, every row has its 1 at the class of most votes, which promises nothing. True by default.
        """
        is_abstain = kwargs.get("is_abstain")
        if not (is_abstain is None or isinstance(is_abstain, bool)):
            raise ValueError(f"is_abstain must be a bool, got {is_abstain!r}")
        tally = sample(**self._options(x), n=self.sample_size, batch_size=batch_size, progress=verbose)
        if is_abstain is False:
            classes = tally.to("cpu").counts[:, :-1].numpy().argmax(axis=1)
        else:
            classes = np.array(predictions(tally, self.alpha))
        return np.asarray(classes[:, None] == np.arange(self.nb_classes), dtype=np.float64)
