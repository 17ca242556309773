"""ConvNeXt (Liu et al. 2022), as torchvision builds it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .step import Step, image_step

_BLOCKS = (3, 3, 9, 3)
_LAYER_SCALE = 1e-6
_STOCHASTIC_DEPTH = 0.1
_EPS = 1e-6


def convnext(batch: int = 64, *, image: int = 224, classes: int = 1000, width: int = 96) -> Step:
    """ConvNeXt-T, fp32, AdamW: 28,589,128 parameters (torchvision `convnext_tiny`).

    With layer scale and stochastic depth of 0.1; *width* is the first stage's channels.
    """
    torch.manual_seed(0)
    model = _ConvNeXt(width, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return image_step(model, optimizer, batch, image, classes)


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of NCHW: a view to NHWC, the norm, a view back."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class _StochasticDepth(nn.Module):
    """Drops a branch for some images of the batch, each with the same probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.survival = 1.0 - probability

    def forward(self, x: Tensor) -> Tensor:
        if self.survival == 1.0 or not self.training:
            return x
        size = (x.shape[0], *(1 for _ in x.shape[1:]))
        noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(self.survival)
        return x * noise.div_(self.survival)


class _Block(nn.Module):
    def __init__(self, channels: int, probability: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1) * _LAYER_SCALE)
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.pointwise = nn.Sequential(
            nn.LayerNorm(channels, eps=_EPS),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.drop = _StochasticDepth(probability)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.drop(self.scale * y)
        out += x
        return out


class _ConvNeXt(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=4), _ChannelNorm(width, eps=_EPS)]
        last = sum(_BLOCKS) - 1
        before = 0
        for i, number in enumerate(_BLOCKS):
            channels = width << i
            if i > 0:
                parts.append(_ChannelNorm(channels // 2, eps=_EPS))
                parts.append(nn.Conv2d(channels // 2, channels, 2, stride=2))
            # The deeper the block, the likelier it is dropped; the first one never is.
            for j in range(before, before + number):
                parts.append(_Block(channels, _STOCHASTIC_DEPTH * j / last))
            before += number
        self.features = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = _ChannelNorm(channels, eps=_EPS)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # torchvision truncates at plus and minus 2, which is never reached; truncating
                # looks at values, and fake tensors have none.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.features(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits
