"""A plain loop with the Certifier of RS_conf_seq, for tests/test_compat_rs_conf_seq.py: it looks after every sample."""

import math

import numpy as np
import torch
from scipy.special import betaln


class Certifier:
    def __init__(self, sigma, noise):
        self.sigma, self.gaussian = sigma, noise == "gaussian"

    def _correct(self, model, x, y, bs):
        rows = x[None].expand(bs, *x.shape)
        z = torch.randn_like(rows) if self.gaussian else 2 * torch.rand_like(rows) - 1
        with torch.no_grad():
            return (model(rows + self.sigma * z).argmax(-1) == y).long()

    def certify(self, model, dataset, bs=32, n0=128, n=100000, alpha=0.001, skip=20, targetp=0.8):
        found = {}
        for index in range(0, len(dataset), skip):
            a = size = 0
            found[index] = (-1, n)
            while size < n and found[index][0] < 0:
                hits = a + np.cumsum(self._correct(model, *dataset[index], bs).numpy())
                trials = size + np.arange(1, bs + 1)
                mixture = betaln(hits + 0.5, trials - hits + 0.5) - betaln(0.5, 0.5)
                ratio = mixture - hits * math.log(targetp) - (trials - hits) * math.log(1 - targetp)
                out = np.flatnonzero((ratio > math.log(1 / alpha / 2)) & (trials <= n))
                if len(out):
                    found[index] = int(hits[out[0]] > targetp * trials[out[0]]), int(trials[out[0]])
                a, size = int(hits[-1]), size + bs
        return found

    def certify_vanilla(self, model, dataset, bs=32, n0=128, n=10000, alpha=0.001, skip=20, targetp=0.8):
        return [
            (sum(self._correct(model, *dataset[index], bs).sum().cpu() for _ in range(n // bs)), n // bs * bs)
            for index in range(0, len(dataset), skip)
        ]
