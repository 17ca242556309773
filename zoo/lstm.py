"""A recurrent language model (Zaremba et al. 2014)."""

import torch
from torch import Tensor, nn

from .step import Step, token_loss

_DROPOUT = 0.5


def lstm(
    batch: int = 64,
    length: int = 128,
    *,
    hidden: int = 1024,
    layers: int = 2,
    vocabulary: int = 10000,
) -> Step:
    """LSTM of two layers, fp32, SGD with clipped gradients: 37,283,600 parameters.

    With 1500 hidden units and the vocabulary of 10000 it has the 66 M parameters of the paper's
    large model: 66,034,000, as `nn.LSTM` has two biases per gate. Each step starts from a state of
    zeros; the paper's carries the state over.
    """
    torch.manual_seed(0)
    model = _LanguageModel(hidden, layers, vocabulary)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    # The target of a token is the next one, so a batch has one token more than is read.
    tokens = torch.randint(vocabulary, (length + 1, batch))
    return Step(model, optimizer, (tokens[:-1],), tokens[1:], token_loss, clip=5.0)


class _LanguageModel(nn.Module):
    def __init__(self, hidden: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.dropout = nn.Dropout(_DROPOUT)
        # nn.LSTM drops between its layers only, and warns where there is nothing between.
        self.lstm = nn.LSTM(hidden, hidden, layers, dropout=_DROPOUT if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.dropout(self.embedding(tokens)))
        logits: Tensor = self.output(self.dropout(x))
        return logits
