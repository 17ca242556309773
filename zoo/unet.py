"""The U-Net (Ronneberger et al. 2015), with padding and batch norm, as milesial/Pytorch-UNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .step import Step

_DEPTH = 4


def unet(batch: int = 8, size: int = 512, *, width: int = 64) -> Step:
    """U-Net for one mask over RGB images, fp32, RMSprop: 31,037,633 parameters.

    That is the count of milesial/Pytorch-UNet with n_channels=3, n_classes=1, bilinear=False. The
    loss is its binary cross entropy, without the Dice term that it adds. *size* is the images'
    height and width, a multiple of 16; *width* the channels at the top, doubled four times.
    """
    torch.manual_seed(0)
    model = _UNet(width)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999)
    images = torch.randn(batch, 3, size, size)
    masks = torch.randint(2, (batch, 1, size, size)).float()
    return Step(model, optimizer, (images,), masks, functional.binary_cross_entropy_with_logits)


def _convs(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class _Up(nn.Module):
    """Twice the size at half the channels, the skip beside it, two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.convs = _convs(channels, channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.convs(torch.cat([skip, self.up(x)], dim=1))
        return out


class _UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width << i for i in range(_DEPTH + 1)]
        self.first = _convs(3, width)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), _convs(each, 2 * each)) for each in widths[:-1]
        )
        self.ups = nn.ModuleList(_Up(each) for each in reversed(widths[1:]))
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        # Not popped: as where each level has a name of its own, all skips live until the end.
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        logits: Tensor = self.last(x)
        return logits
