"""A plain loop with the Certifier of Sound Randomized Smoothing, for tests/test_compat_sound_rs.py."""

import math
from collections import Counter

import torch
from scipy.stats import beta, norm


class Certifier:
    def __init__(self, sigma, bits_precision=60, device=None, exact=True, symbolic=True):
        self.k, self.sigma = max(1, int(6 * sigma)), sigma

    def certify(self, model, dataset, reuse=True, bs=32, n0=128, n=100000, alpha=0.001, path=None, skip=20):
        model.eval()
        n0, n = math.ceil(n0 / bs) * bs, math.ceil(n / bs) * bs
        rows = [("true label", "predicted label", "r1", "r2")]
        for index in range(0, len(dataset), skip):
            x, y = dataset[index]
            counts = Counter(), Counter()
            with torch.no_grad():
                for batch in range((n0 + n) // bs):
                    noise = (255 * self.sigma * torch.randn(bs, *x.shape)).round() / 255
                    votes = model((noise + x).clip(-self.k, self.k + 1)).argmax(-1)
                    counts[batch >= n0 // bs].update(votes.tolist())
            predicted = counts[0].most_common(1)[0][0]
            (top, a), (_, b) = [*counts[1].most_common(2), (None, 0)][:2]
            right = float(top == predicted == y)
            r1 = norm.ppf(beta.ppf(alpha, a, n - a + 1)) * self.sigma * right
            low, high = beta.ppf(alpha / 2, a, n - a + 1), beta.ppf(1 - alpha / 2, b + 1, n - b)
            rows.append((y, predicted, r1, (norm.ppf(low) - norm.ppf(high)) * self.sigma / 2 * right))
        return rows
