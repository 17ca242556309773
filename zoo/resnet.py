"""Residual networks of bottleneck blocks (He et al. 2015), as torchvision builds them (v1.5)."""

import torch
from torch import Tensor, nn

from .step import Step, image_step

_EXPANSION = 4


def resnet50(batch: int = 128, *, image: int = 224, classes: int = 1000, width: int = 64) -> Step:
    """ResNet-50 v1.5, fp32 NCHW, SGD with momentum: 25,557,032 parameters (torchvision).

    *width* is the number of channels of the first stage's 3 x 3 convolutions.
    """
    return resnet(3, 4, 6, 3, batch, image=image, classes=classes, width=width)


def resnet(
    n1: int,
    n2: int,
    n3: int,
    n4: int,
    batch: int = 16,
    *,
    image: int = 224,
    classes: int = 1000,
    width: int = 64,
) -> Step:
    """ResNet of any depth: n1 to n4 bottleneck blocks, 3 * (n1 + n2 + n3 + n4) + 2 layers.

    3, 4, 23, 3 is ResNet-101 (44,549,160 parameters), 3, 8, 36, 3 ResNet-152 (60,192,808).
    """
    torch.manual_seed(0)
    model = _ResNet((n1, n2, n3, n4), width, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return image_step(model, optimizer, batch, image, classes)


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1; the 3 x 3 has the stride, which is what makes this version 1.5."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * _EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class _ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, int, int, int], width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = width
        stages = []
        for i, number in enumerate(blocks):
            stage = []
            for j in range(number):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(_Bottleneck(channels, width << i, stride))
                channels = (width << i) * _EXPANSION
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits
