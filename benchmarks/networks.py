"""The networks that certification papers measure with, in plain torch and with random weights.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015: table 1 (50 layers) and section 4.2 (20 and 110
layers for CIFAR, with the shortcuts of option A, which have no weights). Weights are torch's defaults: only shapes count.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size (but for the stride), and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(channels_out)
    )


class PaddedShortcut(nn.Module):
    """Option A: every other pixel, and new channels of zeros."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x))


def basic_block(channels_in: int, channels: int, stride: int) -> Residual:
    """Return two 3 x 3 convolutions and a shortcut without weights."""
    branch = nn.Sequential(convolution(channels_in, channels, 3, stride), nn.ReLU(), convolution(channels, channels, 3))
    same = stride == 1 and channels_in == channels
    return Residual(branch, nn.Identity() if same else PaddedShortcut(channels - channels_in, stride))


def bottleneck(channels_in: int, channels: int, stride: int) -> Residual:
    """Return 1 x 1, 3 x 3 and 1 x 1 convolutions to 4 * channels; the 3 x 3 one has the stride, as is usual since 2016."""
    branch = nn.Sequential(
        convolution(channels_in, channels, 1),
        nn.ReLU(),
        convolution(channels, channels, 3, stride),
        nn.ReLU(),
        convolution(channels, 4 * channels, 1),
    )
    same = stride == 1 and channels_in == 4 * channels
    return Residual(branch, nn.Identity() if same else convolution(channels_in, 4 * channels, 1, stride))


def cifar_resnet(blocks: int, num_classes: int = 10) -> nn.Sequential:
    """Return the network of 6 * blocks + 2 layers for inputs of 3 x 32 x 32, in eval mode.

    Of 3 blocks a stage it is ResNet-20, with 0.27 M parameters and 40 M multiply-adds an image; of 18 ResNet-110.
    """
    layers: list[nn.Module] = [convolution(3, 16, 3), nn.ReLU()]
    channels_in = 16
    for channels in (16, 32, 64):
        for block in range(blocks):
            layers.append(basic_block(channels_in, channels, stride=2 if block == 0 and channels > 16 else 1))
            channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)).eval()


def cifar_resnet110(num_classes: int = 10) -> nn.Sequential:
    """Return the network of 1.73 M parameters: 253 M multiply-adds an image."""
    return cifar_resnet(18, num_classes)


def resnet50(num_classes: int = 1000) -> nn.Sequential:
    """Return the network of 25.6 M parameters for inputs of 3 x 224 x 224, in eval mode: 4.1 G multiply-adds an image."""
    layers: list[nn.Module] = [convolution(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    channels_in = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers.append(bottleneck(channels_in, channels, stride=2 if block == 0 and channels > 64 else 1))
            channels_in = 4 * channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, num_classes)).eval()
