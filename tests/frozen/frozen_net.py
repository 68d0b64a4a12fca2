"""The model of test_frozen.py: its logits are sums of small multiples of 1/4, so that no machine rounds them."""

import torch

CLASSES, PIXELS = 4, 12


def before_batch():
    """Do nothing; what writes a stopped run puts a function here that sends a signal."""


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        pixel, label = torch.arange(PIXELS)[:, None], torch.arange(CLASSES)
        self.weight = torch.nn.Parameter(((7 * pixel + 5 * label + 3 * pixel * label) % 11 - 5) / 4)
        self.register_buffer("threshold", torch.arange(PIXELS) % 5 / 8 + 0.25)

    def forward(self, x):
        before_batch()
        return (x.flatten(1) > self.threshold).to(self.weight.dtype) @ self.weight


def net():
    return Net()
