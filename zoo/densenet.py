"""Densely connected networks (Huang et al. 2016), as torchvision builds them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .step import Step, image_step

_BLOCKS = (6, 12, 24, 16)
_BOTTLENECK = 4


def densenet121(
    batch: int = 64, *, image: int = 224, classes: int = 1000, growth: int = 32
) -> Step:
    """DenseNet-121, fp32, SGD with momentum: 7,978,856 parameters (torchvision `densenet121`).

    Not the memory-efficient one: every concatenation and every norm's output is kept. Dropout is
    zero there, and is left out here.
    """
    torch.manual_seed(0)
    model = _DenseNet(growth, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return image_step(model, optimizer, batch, image, classes)


def _normed(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
    )


class _Block(nn.Module):
    """Each layer reads what all before it made, brought together anew."""

    def __init__(self, layers: int, channels: int, growth: int) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth
        self.layers = nn.ModuleList(
            nn.Sequential(
                _normed(channels + i * growth, inner, 1),
                _normed(inner, growth, 3),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class _DenseNet(nn.Module):
    def __init__(self, growth: int, classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        parts: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        for i, layers in enumerate(_BLOCKS):
            if i > 0:
                parts.append(_normed(channels, channels // 2, 1))
                parts.append(nn.AvgPool2d(2))
                channels //= 2
            parts.append(_Block(layers, channels, growth))
            channels += layers * growth
        parts.append(nn.BatchNorm2d(channels))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.features(x), inplace=True)
        x = functional.adaptive_avg_pool2d(x, 1)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
