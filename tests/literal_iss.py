"""The functions of the script of ISS, and its loop's body as a function, for tests/test_compat_iss.py."""

from functools import cache

import numpy as np
import torch
from peer_loops import lower
from scipy.stats import norm


def _sample_noise(base_classifier, num_classes, x, sigma, batches, batch_size):
    counts = np.zeros(num_classes, dtype=int)
    with torch.no_grad():
        for _ in range(batches):
            rows = x.repeat((batch_size, 1, 1, 1))
            votes = base_classifier(rows + torch.randn_like(rows) * sigma).argmax(1)
            counts += np.bincount(votes.numpy(), minlength=num_classes)
    return counts


def _lower_confidence_bound(NA, N, alpha):
    return lower(NA, N, alpha)


@cache  # for the test's sake
def generate_iss(loss, batch_size, upper, sigma, alpha, loss_type):
    plan, sizes = {}, batch_size * np.arange(1, upper + 1)
    for p in np.arange(501) * 0.001 + 0.5:
        radii = sigma * norm.ppf(lower(sizes * p, sizes, alpha))
        wanted = radii[-1] - loss if loss_type == "absolute" else radii[-1] * (1 - loss)
        plan[p] = 1 + int(np.argmax(radii >= wanted)) if wanted > 0 else 0
    return plan


def find_opt_batchnum(plan, pa_lower, pa_upper):
    shares, found = list(plan), 0
    for end in (pa_lower, pa_upper):
        place = next(number for number, share in enumerate(shares) if min(end, shares[-1]) <= share)
        found = max(found, plan[shares[max(0, place - 1)]], plan[shares[place]])
    return found


def certify(base_classifier, num_classes, x, sigma, n0, max_size, batch_size, alpha, max_loss, loss_type):
    batches = n0 // batch_size
    counts = _sample_noise(base_classifier, num_classes, x, sigma, batches, batch_size)
    top, n = counts.argmax().item(), batches * batch_size
    low, high = lower(counts[top], n, alpha / 2), 1 - lower(n - counts[top], n, alpha / 2)
    best = find_opt_batchnum(generate_iss(max_loss, batch_size, max_size // batch_size, sigma, alpha, loss_type), low, high)
    if not best:
        return -1, low, 0, 0.0
    counts += _sample_noise(base_classifier, num_classes, x, sigma, best - batches, batch_size)
    n = max(best, batches) * batch_size
    p = lower(counts[top], n, alpha)
    return (-1, p, n, 0.0) if p < 0.5 else (top, p, n, sigma * norm.ppf(p))
