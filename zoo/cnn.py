"""A small convolutional network: so little work per operation that launching them is the time."""

import torch
from torch import nn

from .step import Step, image_step

_CONVS_PER_STAGE = 4


def small_cnn(
    batch: int = 4, *, image: int = 32, stages: int = 3, width: int = 32, classes: int = 10
) -> Step:
    """A chain of 12 conv-BN-ReLU layers, fp32, Adam: 676,714 parameters; not a published network.

    Each stage has four of them and ends in a pooling that halves the image; the next one has twice
    the channels. Then dropout and a linear layer.
    """
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    channels = 3
    for i in range(stages):
        for _ in range(_CONVS_PER_STAGE):
            parts += _conv(channels, width << i)
            channels = width << i
        parts.append(nn.MaxPool2d(2))
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels, classes)]
    model = nn.Sequential(*parts)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return image_step(model, optimizer, batch, image, classes)


def _conv(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
