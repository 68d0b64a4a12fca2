"""Residual networks for 32 x 32 pictures, with the names of parts that published smoothing checkpoints have."""

from __future__ import annotations

import torch
from torch import nn


def _convolution(channels: int, width: int, stride: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)


class _Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1 x 1 convolution where the size changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 1), nn.BatchNorm2d(width)
        same = channels == width and stride == 1
        self.downsample = None if same else nn.Sequential(_convolution(channels, width, stride, 1), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """A residual network of 6 n + 2 layers: a convolution, n blocks each of 16, 32 and 64 channels, a linear layer.

    Parameters
    ----------
    depth : int
        6 n + 2, as 20 or 110.
    num_classes : int

    Raises
    ------
    ValueError
        If `depth` is not as above.

    References
    ----------
    He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition, section 4.2; shortcuts are option B of
    section 4.1.

    Examples
    --------
    >>> CifarResNet(20, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2, such as 20 or 110, got {depth}")
        super().__init__()
        n = depth // 6
        self.conv1, self.bn1 = _convolution(3, 16, 1), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), *(_Block(32, 32, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), *(_Block(64, 64, 1) for _ in range(n - 1)))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def resnet20() -> CifarResNet:
    """Return the net of 20 layers for 10 classes, for ``--model rsfast.loading.cifar_resnet:resnet20``."""
    return CifarResNet(20)


def resnet110() -> CifarResNet:
    """Return the net of 110 layers for 10 classes, for ``--model rsfast.loading.cifar_resnet:resnet110``."""
    return CifarResNet(110)
