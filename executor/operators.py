"""What is known of each operator of torch before it runs: its kind, what it writes, how it repeats.

Taken from the operator's schema and tags where they are right, and from the small tables here where
they are not or do not say.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch.utils.flop_counter import flop_registry

from .private import Overload, arguments


class Operator:
    """An operator as the log needs it.

    *written* are the positions and names of the arguments that it writes in place; *passing* those
    that it updates in passing, although the schema may call it a write or not mention it at all;
    *fills* tells that it writes without reading what was there, *shapes_only* that of its arguments
    only the shape counts, and *rebinds* that what it "writes" merely gets another storage;
    *waits* tells that the host waits for its result.
    """

    __slots__ = (
        "draws_by",
        "fills",
        "flops",
        "kind",
        "name",
        "opaque",
        "passing",
        "random",
        "rebinds",
        "shapes_only",
        "waits",
        "written",
    )

    def __init__(self, overload: Overload) -> None:
        packet = overload.overloadpacket
        self.name: str = packet.__name__
        self.kind: str = kind_of(self.name)
        schema = arguments(overload)
        written = {
            key
            for i, argument in enumerate(schema)
            if argument.alias_info is not None and argument.alias_info.is_write
            for key in (i, argument.name)
        }
        self.passing: frozenset[int | str] = frozenset(
            key
            for i, argument in enumerate(schema)
            if argument.name in RUNNING_STATISTICS and self.name in UPDATES_STATISTICS
            for key in (i, argument.name)
        )
        self.written: frozenset[int | str] = frozenset(written - self.passing)
        self.fills: bool = self.name in FILLS
        self.rebinds: bool = self.name == "set_"
        self.shapes_only: bool = (
            self.name in EMPTY or self.name.endswith("_like") or (self.name.startswith("new_"))
        )
        self.draws_by: tuple[str, int] | None = RANDOM_UNLESS_ZERO.get(self.name)
        self.random: bool = torch.Tag.nondeterministic_seeded in overload.tags
        self.opaque: bool = overload.namespace not in OUR_NAMESPACES or self.name in WAITS
        self.waits: bool = self.name in WAITS
        self.flops: Callable[..., int] | None = _FLOPS.get(self.name) or flop_registry.get(packet)


@cache
def operator(overload: Overload, name: str = "") -> Operator:
    """Return what is known of an operator; by another *name*, if it stands for another one."""
    found = Operator(overload)
    found.name = name or found.name
    return found


def _recurrent_flops(input: Any, *rest: Any, **_: Any) -> int:
    """Return the flops of a recurrent network: each weight is used once for each element."""
    weights = next(each for each in rest if isinstance(each, list | tuple) and each[0].dim() == 2)
    steps = input.numel() // input.shape[-1]
    return int(2 * steps * sum(weight.numel() for weight in weights if weight.dim() == 2))


def _recurrent_backward_flops(first: Any, *rest: Any, **_: Any) -> int:
    given = rest[0] if isinstance(rest[0], torch.Tensor) else first
    return 2 * _recurrent_flops(given, *rest)


_FLOPS: Final[dict[str, Callable[..., int]]] = {
    "_cudnn_rnn": _recurrent_flops,
    "rnn": _recurrent_flops,
    "_cudnn_rnn_backward": _recurrent_backward_flops,
    "rnn_backward": _recurrent_backward_flops,
}

OUR_NAMESPACES: Final = frozenset({"aten", "prims", "superneurons"})
"""Operators of other libraries are opaque: whether they repeat exactly is not known."""

RUNNING_STATISTICS: Final = frozenset({"running_mean", "running_var"})
UPDATES_STATISTICS: Final = frozenset(
    {
        "native_batch_norm",  # the first three declare no write, yet write in training
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_native_batch_norm_legit",
        "_batch_norm_with_update",
        "batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_update_stats",
    }
)
WAITS: Final = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero"})

RANDOM_UNLESS_ZERO: Final = {
    "_scaled_dot_product_flash_attention": ("dropout_p", 3),
    "_scaled_dot_product_efficient_attention": ("dropout_p", 5),
    "_scaled_dot_product_cudnn_attention": ("dropout_p", 5),
    "_scaled_dot_product_flash_attention_for_cpu": ("dropout_p", 3),
    "_cudnn_rnn": ("dropout", 11),
    "rnn": ("dropout", 5),
}
"""Operators that draw random numbers only if this argument, at this position, is not zero."""


def draws(what: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether this call of an operator draws random numbers."""
    if not what.random:
        return False
    if what.draws_by is not None:
        name, position = what.draws_by
        return bool(kwargs.get(name, args[position] if len(args) > position else 0))
    return True


EMPTY: Final = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
)
"""Operators that only allocate: no kernel runs, and what is there is not known."""

FILLS: Final = frozenset(
    {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "_foreach_zero_"}
)

_KINDS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("wait", tuple(WAITS)),
    ("empty", tuple(EMPTY)),
    ("attention", ("attention",)),
    ("conv", ("convolution", "conv_depthwise", "slow_conv")),
    (
        "rnn",
        ("rnn", "rnn_backward", "cudnn_rnn", "miopen_rnn", "mkldnn_rnn", "lstm_cell", "gru_cell"),
    ),
    ("matmul", ("addmm", "baddbmm", "bmm", "mm", "addmv", "mv", "dot", "_scaled_mm", "linear")),
    ("embedding", ("embedding",)),
    ("norm", ("batch_norm", "layer_norm", "group_norm", "rms_norm", "local_response_norm")),
    ("dropout", ("dropout", "bernoulli")),
    (
        "loss",
        ("nll_loss", "cross_entropy", "mse_loss", "l1_loss", "huber_loss", "kl_div", "ctc_loss"),
    ),
    ("loss", ("log_softmax",)),
    ("softmax", ("softmax",)),
    ("pool", ("max_pool", "avg_pool", "upsample", "interpolate")),
    (
        "activation",
        ("relu", "gelu", "silu", "sigmoid", "tanh", "threshold", "elu", "hardtanh", "hardswish"),
    ),
    ("concat", ("cat", "stack")),
    ("copy", ("_to_copy", "copy_", "clone", "contiguous", "_copy_from")),
    ("fill", ("zeros", "ones", "full", "fill", "zero", "arange", "scalar_tensor", "ones_like")),
)
_WHOLE: Final = frozenset(
    {"rnn", "rnn_backward", "mm", "mv", "dot", "cat", "stack", "copy_", "clone"}
)
_ARITHMETIC: Final = ("add", "mul", "sub", "div", "rsub", "neg", "addcmul", "addcdiv", "lerp")


@cache
def kind_of(name: str) -> str:
    """Return the kind of an operator by its name, `elementwise` if no table has it."""
    plain = name.strip("_")
    if name.startswith(("_foreach_", "_fused_")):
        return "optimizer" if name.startswith("_fused_") else "foreach"
    for kind, names in _KINDS:
        for each in names:
            if (plain == each.strip("_")) if each in _WHOLE else (each in name):
                return kind
    if plain == "add":
        return "add"
    return "elementwise"
