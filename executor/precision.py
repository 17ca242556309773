"""Which units do an operation's arithmetic, by torch's settings."""

from typing import Any

import torch

from ..traces import Precision
from .operators import Operator
from .tensors import tensors_of


def precision_of(what: Operator, args: tuple[Any, ...]) -> Precision:
    """Return which units do an operation's arithmetic: by its first tensor and torch's settings."""
    dtype = next((tensor.dtype for _, tensor in tensors_of(args, {})), torch.float32)
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    if dtype != torch.float32:
        return "fp32"
    return "tf32" if allows_tf32(what.kind) else "fp32"


def allows_tf32(kind: str) -> bool:
    """Return whether torch lets operations of a kind run in TF32, by its new or its old switch."""
    backends: Any = torch.backends
    settings = backends.cudnn if kind in ("conv", "rnn") else backends.cuda.matmul
    precision = getattr(getattr(settings, kind, settings), "fp32_precision", "none")
    if precision in ("tf32", "ieee"):
        return bool(precision == "tf32")
    try:
        return bool(settings.allow_tf32)
    except RuntimeError:  # both switches were used, and they differ
        return False
