"""A plain loop with the functions and noises of rs4a, for tests/test_compat_rs4a.py."""

import math

import numpy as np
import torch
from scipy.stats import beta
from torch.distributions import Categorical, Normal


class Gaussian:
    def __init__(self, dim, sigma=None, lambd=None, device="cpu"):
        self.dim, self.lambd = dim, sigma if lambd is None else lambd
        self.sigma = self.lambd

    def sample(self, x):
        return x + self.lambd * torch.randn_like(x)

    def certify_l1(self, p):
        return self.lambd * Normal(0.0, 1.0).icdf(p)

    certify_l2 = certify_l1

    def certify_linf(self, p):
        return self.certify_l2(p) / math.sqrt(self.dim)


class Laplace(Gaussian):
    def __init__(self, dim, sigma=None, lambd=None, device="cpu"):
        super().__init__(dim, None, sigma / math.sqrt(2) if lambd is None else lambd)

    def sample(self, x):
        return x + torch.distributions.Laplace(0.0, self.lambd).sample(x.shape)

    def certify_l1(self, p):
        return -self.lambd * torch.log(2 * (1 - p))

    def certify_l2(self, p):
        return self.certify_l1(p) / math.sqrt(self.dim)

    def certify_linf(self, p):
        return self.certify_l1(p) / self.dim


class Uniform(Laplace):
    def __init__(self, dim, sigma=None, lambd=None, device="cpu"):
        Gaussian.__init__(self, dim, None, sigma / 3**-0.5 if lambd is None else lambd)

    def sample(self, x):
        return x + self.lambd * (2 * torch.rand_like(x) - 1)

    def certify_l1(self, p):
        return 2 * self.lambd * (p - 0.5)


def _counts(model, x, noise, sample_size, noise_batch_size, score):
    total, left = 0.0, sample_size
    while left > 0:
        size = min(left, noise_batch_size)
        rows = x[:, None].expand(len(x), size, *x.shape[1:]).reshape(-1, *x.shape[1:])
        logits = model.forward(noise.sample(rows.flatten(1)).view(rows.shape)).view(len(x), size, -1)
        total = total + score(logits).sum(1)
        left -= size
    return Categorical(probs=total)


def smooth_predict_soft(model, x, noise, sample_size=64, noise_batch_size=512):
    return _counts(model, x, noise, sample_size, noise_batch_size, lambda logits: logits.softmax(-1))


def smooth_predict_hard(model, x, noise, sample_size=64, noise_batch_size=512):
    def votes(logits):
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()

    return _counts(model, x, noise, sample_size, noise_batch_size, votes)


def certify_prob_lb(model, x, top_cats, alpha, noise, sample_size=10**5, noise_batch_size=512):
    probs = smooth_predict_hard(model, x, noise, sample_size, noise_batch_size).probs
    k = probs.gather(1, top_cats[:, None]).detach().cpu().numpy() * sample_size
    lower = np.nan_to_num(beta.ppf(alpha / 2, k, sample_size - k + 1))
    return torch.tensor(lower.squeeze(), dtype=torch.float)
