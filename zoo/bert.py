"""BERT (Devlin et al. 2018) with its masked-language-model head, as Hugging Face has it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .step import Step, token_loss

_POSITIONS = 512
_DROPOUT = 0.1
_EPS = 1e-12
# One token in seven is to be predicted, near the 15 % of the paper and the same in every batch.
_PREDICT_EVERY = 7
_IGNORED = -100


def bert(
    batch: int = 32,
    length: int = 128,
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 30522,
) -> Step:
    """BERT-base for masked tokens, fp32, Adam: 109,514,298 parameters (`BertForMaskedLM`).

    Twelve encoder layers and the head over a tied decoder, no pooler. Dropout is 0.1 everywhere,
    in the attention as well. At most 512 tokens long; no padding, so there is no attention mask.
    """
    torch.manual_seed(0)
    model = _Bert(layers, width, heads, vocabulary)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    tokens = torch.randint(1, vocabulary, (batch, length))  # 0 is the padding
    types = torch.zeros_like(tokens)
    types[:, length // 2 :] = 1
    targets = torch.full_like(tokens, _IGNORED)
    targets[:, ::_PREDICT_EVERY] = tokens[:, ::_PREDICT_EVERY]
    return Step(model, optimizer, (tokens, types), targets, token_loss)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = _DROPOUT if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return y.transpose(1, 2).reshape(x.shape)


class _Residual(nn.Module):
    """What closes either half of a layer: project, drop, add what went in, normalize."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.dropout(self.dense(y)) + x)
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.attended = _Residual(width, width)
        self.dense = nn.Linear(width, 4 * width)
        self.output = _Residual(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attended(self.attention(x), x)
        out: Tensor = self.output(functional.gelu(self.dense(x)), x)
        return out


class _Bert(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(_POSITIONS, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(_DROPOUT)
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=_EPS))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.types(types) + self.positions(places)
        x = self.layers(self.dropout(self.norm(x)))
        # Tied: the decoder has a bias of its own and the weight of the embedding.
        return functional.linear(self.head(x), self.tokens.weight, self.bias)
