"""The Vision Transformer (Dosovitskiy et al. 2020), as torchvision builds it."""

import math

import torch
from torch import Tensor, nn

from .step import Step, image_step

_EPS = 1e-6


def vit(
    batch: int = 64,
    *,
    image: int = 224,
    patch: int = 16,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    classes: int = 1000,
) -> Step:
    """ViT-B/16, fp32, AdamW: 86,567,656 parameters (torchvision `vit_b_16`).

    Dropout is zero there, and is left out here.
    """
    torch.manual_seed(0)
    model = _ViT(image, patch, layers, width, heads, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.3)
    return image_step(model, optimizer, batch, image, classes)


class _Block(nn.Module):
    """Attention and MLP, each with the norm in front and the sum behind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=_EPS)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = y + x
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class _ViT(nn.Module):
    def __init__(
        self, image: int, patch: int, layers: int, width: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        length = (image // patch) ** 2 + 1  # the class token is the one more
        self.positions = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.ln = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, classes)
        # torchvision truncates at plus and minus 2, which is never reached; truncating looks at
        # values, and fake tensors have none.
        nn.init.normal_(self.patches.weight, std=math.sqrt(1 / (3 * patch * patch)))
        nn.init.zeros_(self.head.weight)
        for module in self.modules():
            if isinstance(module, nn.Sequential):
                for layer in module:
                    if isinstance(layer, nn.Linear):
                        nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.ln(self.blocks(x + self.positions))
        logits: Tensor = self.head(x[:, 0])
        return logits
