"""kernels benchmark REPOSITORY: each kernel, and what a loop in plain PyTorch does instead."""

import math

import torch
from kernels.benchmark import Benchmark


class PerturbBenchmark(Benchmark):
    """Noisy copies of one image, normalised. `randn` is what the kernel replaces: its noise has other values.

    The reference of `perturb` is the same noise in float64. It says that the noise is right; nobody would use it for speed.
    """

    seed = 1
    batch = 256
    shape = (3, 224, 224)

    def setup(self):
        self.x = torch.rand(1, *self.shape, device=self.device)
        self.samples = torch.arange(self.batch, device=self.device)
        self.scale, self.shift = torch.full((3,), 4.0, device=self.device), torch.full((3,), -2.0, device=self.device)
        self.out = torch.empty(self.batch, *self.shape, device=self.device)

    def benchmark_perturb(self):
        normalised = {"scale": self.scale, "shift": self.shift}
        self.kernel.perturb(self.x, self.samples, noise_scale=0.25, seed=1, **normalised, out=self.out)

    def verify_perturb(self):
        blocks = torch.arange(math.prod(self.shape) // 4, device=self.device)
        words = self.kernel.philox((blocks, self.samples[:, None], 0, 1 << 24), 1)
        z = []
        for first, second in (words[:2], words[2:]):
            radius = torch.sqrt(-2 * torch.log((first.double() + 0.5) / 2**32))
            angle = second.double() * (2 * math.pi / 2**32)
            z += [radius * torch.cos(angle), radius * torch.sin(angle)]
        noise = torch.stack(z, -1).view(self.out.shape)
        return ((self.x + 0.25 * noise) * 4.0 - 2.0).float()

    def benchmark_randn(self):
        noisy = self.x + 0.25 * torch.randn(self.batch, *self.shape, device=self.device)
        self.out = noisy * self.scale[:, None, None] + self.shift[:, None, None]


class AccumulateBenchmark(Benchmark):
    """Votes and softmax scores of a batch of logits, whose reference is what a loop in plain PyTorch does."""

    seed = 1
    batch = 1024
    classes = 1000

    def setup(self):
        self.logits = torch.randn(self.batch, self.classes, device=self.device)
        self.n = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.counts = torch.zeros(1, self.classes + 1, dtype=torch.int64, device=self.device)
        self.heads = torch.tensor([[0.0, 1.0, 0.0, 0.0]], device=self.device)
        self.sums = torch.zeros(1, 1, self.classes, dtype=torch.int64, device=self.device)
        self.squares = torch.zeros_like(self.sums)

    def benchmark_accumulate(self):
        scores = {"heads": self.heads, "sums": self.sums, "squares": self.squares}
        self.kernel.accumulate(self.logits, self.n, self.counts, **scores)
        moments = [each.double().flatten() / 2**30 for each in (self.sums, self.squares)]
        self.out = torch.cat([self.counts[0, :-1].double(), *moments])

    def verify_accumulate(self):
        scores = torch.softmax(self.logits, 1)
        votes = torch.bincount(self.logits.argmax(1), minlength=self.classes)
        return torch.cat([votes.double(), scores.double().sum(0), scores.double().square().sum(0)])
