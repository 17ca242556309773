"""What kind of operation a name stands for, in PyTorch's spelling or in G10's."""

from typing import Final

from ..model import Recompute

# Whole words of a name first: `add` is in `padding`, and `norm` in `normal_`.
_WORDS: Final = {
    "add": "add",
    "addbmm": "matmul",
    "addmm": "matmul",
    "addmv": "matmul",
    "baddbmm": "matmul",
    "bernoulli": "random",
    "bmm": "matmul",
    "cat": "concat",
    "concat": "concat",
    "elu": "activation",
    "erf": "activation",
    "gatherv2": "embedding",
    "linear": "matmul",
    "mm": "matmul",
    "mv": "matmul",
    "normal": "random",
    "rand": "random",
    "randn": "random",
    "stack": "concat",
    "threshold": "activation",
    "uniform": "random",
}
_PARTS: Final = {
    "attention": "attention",
    "conv": "conv",
    "dropout": "dropout",
    "embedding": "embedding",
    "entropy": "loss",
    "gelu": "activation",
    "loss": "loss",
    "matmul": "matmul",
    "norm": "norm",
    "pool": "pool",
    "relu": "activation",
    "sigmoid": "activation",
    "silu": "activation",
    "softmax": "softmax",
    "tanh": "activation",
}
_NO_KIND: Final = {"", "cudnn", "miopen", "mkldnn", "native"}


def kind_of(name: str) -> str:
    """Return the kind of the operation *name*; its own first word if no kind of ours fits."""
    words = name.lower().split("_")
    for word in words:
        if word in _WORDS:
            return _WORDS[word]
    for word in words:
        for part, kind in _PARTS.items():
            if part in word:
                return kind
    return next((word for word in words if word not in _NO_KIND), name)


def recompute_of(kind: str) -> Recompute:
    """Return how an operation of that *kind* can be computed again: random numbers need a state."""
    return "random" if kind in ("dropout", "random") else "pure"
