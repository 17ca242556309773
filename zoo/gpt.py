"""A decoder-only language model as GPT-2 and GPT-3 have it, in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .step import Step, token_loss


def gpt(
    batch: int = 8,
    length: int = 2048,
    *,
    layers: int = 24,
    width: int = 2048,
    heads: int = 16,
    vocabulary: int = 50304,
) -> Step:
    """GPT of 1.3 B: bf16 parameters, activations and states, AdamW, 1,315,819,520 parameters.

    Layer for layer GPT-2, without its dropout and with its GELU as one operation: with length
    1024, 12 layers, width 768, 12 heads and its vocabulary of 50257 it has the 124,439,808
    parameters of GPT-2 (Hugging Face `gpt2`). The default is GPT-3's 1.3 B (24 x 2048), with 16
    heads of 128 and GPT-2's vocabulary rounded up to a multiple of 128.
    """
    torch.manual_seed(0)
    model = _GPT(length, layers, width, heads, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.1)
    # The target of a token is the next one, so a batch has one token more than is read.
    tokens = torch.randint(vocabulary, (batch, length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Step(model, optimizer, (inputs,), targets, token_loss)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, dtype=dtype)
        self.project = nn.Linear(width, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            each.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for each in self.qkv(x).split(width, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.project(y.transpose(1, 2).reshape(x.shape))
        return out


class _Block(nn.Module):
    """Attention and MLP, each with the norm in front and the sum behind."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, dtype=dtype)
        self.attention = _Attention(width, heads, dtype)
        self.ln2 = nn.LayerNorm(width, dtype=dtype)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class _GPT(nn.Module):
    def __init__(self, length: int, layers: int, width: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        # Asked for layer by layer: converting afterwards would take the fp32 model first.
        dtype = torch.bfloat16
        self.tokens = nn.Embedding(vocabulary, width, dtype=dtype)
        self.positions = nn.Embedding(length, width, dtype=dtype)
        self.blocks = nn.Sequential(*(_Block(width, heads, dtype) for _ in range(layers)))
        self.ln = nn.LayerNorm(width, dtype=dtype)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.tokens(tokens) + self.positions(places))
        return functional.linear(
            self.ln(x), self.tokens.weight
        )  # tied: there is no other output matrix
