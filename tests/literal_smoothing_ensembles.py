"""Plain loops with the classes of smoothing-ensembles, for tests/test_compat_smoothing_ensembles.py."""

import numpy as np
import torch
from peer_loops import lower
from scipy.stats import norm


class SmoothEnsembleAdaptive:
    def __init__(self, base_classifiers, num_classes, sigma, k=None):
        self.base_classifiers, self.num_classes, self.sigma = base_classifiers, num_classes, sigma
        self.k = k or len(base_classifiers)
        self.early = self.further = 0

    def _sample(self, x, num, batch_size):
        counts, left = np.zeros(self.num_classes, dtype=int), num
        with torch.no_grad():
            while left > 0:
                size, left = min(left, batch_size), left - batch_size
                inputs = x.repeat((size, 1, 1, 1))
                inputs = inputs + torch.randn_like(inputs) * self.sigma
                outputs = torch.stack([each(inputs) for each in self.base_classifiers])
                votes = outputs[: self.k].argmax(2)
                agree = (votes == votes[0]).all(0)
                self.early, self.further = self.early + int(agree.sum()), self.further + int(not bool(agree.all()))
                for label in torch.where(agree, votes[0], outputs.sum(0).argmax(1)).tolist():
                    counts[label] += 1
        return counts

    def _decide(self, x, n0, n_list, alpha, beta, batch_size, radius):
        samples = self.early = self.further = 0
        for level, n in enumerate(n_list):
            top = int(self._sample(x, n0, batch_size).argmax())
            a = int(self._sample(x, n, batch_size)[top])
            samples += n0 + n
            if self.sigma * norm.ppf(lower(a, n, alpha / len(n_list))) >= radius:
                return (1, top, level, a / n), samples
            last = level == len(n_list) - 1
            if not last and self.sigma * norm.ppf(1 - lower(n - a, n, beta / (len(n_list) - 1))) < radius:
                break
        return (-1, -1, level, a / n), samples

    def certify(self, x, n0, n_original, n_list, alpha, beta, batch_size, radius_to_certify):
        return self._decide(x, n0, n_list, alpha, beta, batch_size, radius_to_certify)[0]


class SmoothEnsembleAdaptiveKConsensus(SmoothEnsembleAdaptive):
    def certify(self, x, n0, n_original, n_list, alpha, beta, batch_size, radius_to_certify):
        found, samples = self._decide(x, n0, n_list, alpha, beta, batch_size, radius_to_certify)
        return (*found, samples, self.early, self.further)


class SmoothEnsembleKConsensus(SmoothEnsembleAdaptive):
    def certify(self, x, n0, n, alpha, batch_size):
        self.early = self.further = 0
        top = int(self._sample(x, n0, batch_size).argmax())
        a = int(self._sample(x, n, batch_size)[top])
        p = lower(a, n, alpha)
        rest = self.early / (n + n0), self.further, a / n
        return (-1, 0.0, *rest) if p < 0.5 else (top, self.sigma * norm.ppf(p), *rest)
