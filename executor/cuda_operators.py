"""What CUDA runs where the CPU runs something else: the table behind an estimate.

Without a GPU a step can only be followed on the CPU, whose operators are in a few places others
than CUDA's and keep other tensors for backward. Those places, what is put there instead, and what
that keeps:

`scaled_dot_product_attention` in 16 bits without a mask
    (The CPU: a flash attention of its own, or matmul, softmax, dropout and matmul if it drops.)
    `_scaled_dot_product_flash_attention`: query, key, value, output, logsumexp, seed.
the same in 32 bits, or with a mask
    `_scaled_dot_product_efficient_attention`: the same, and the mask.
`dropout`
    (The CPU: a mask of the input's type, scaled.) `native_dropout`: a mask of one byte a number.
`lstm`, `gru`, `rnn_tanh`, `rnn_relu`
    (The CPU: one oneDNN layer after the other.) One operator: input, states, weights, output, and
    cuDNN's reserve.
batch normalization
    `native_batch_norm` keeps what `cudnn_batch_norm` keeps; it is called so in the trace.
an optimizer that may choose
    (The CPU: one parameter after the other.) Its `foreach` form, its step counters on the host.

Not modelled: libraries' workspaces, and what libraries choose by shape.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from ..errors import Unsupported

CUDNN_NAMES: Final = {
    "native_batch_norm": "cudnn_batch_norm",
    "native_batch_norm_backward": "cudnn_batch_norm_backward",
    "rnn": "_cudnn_rnn",
    "rnn_backward": "_cudnn_rnn_backward",
}
"""What operators of an estimate are called on CUDA."""

KEEP_ALL: Final = frozenset({"mse_loss", "smooth_l1_loss", "huber_loss"})
"""Losses whose reduced result stays in the storage of what was reduced; a fake tensor does not."""

RESERVE_GATES: Final = {"lstm": 6, "gru": 5, "rnn_tanh": 2, "rnn_relu": 2}
"""Numbers that cuDNN keeps for each output number of a recurrent layer: gates, cell and output.
An estimate: cuDNN does not say."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Stand in for `torch.nn.functional.scaled_dot_product_attention`, as CUDA runs it."""
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -1e9)
    aten = torch.ops.aten
    if query.dtype in (torch.bfloat16, torch.float16) and attn_mask is None:
        found = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
    else:
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        found = aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, trained, dropout_p, is_causal, scale=scale
        )
    output: torch.Tensor = found[0]
    return output


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """Stand in for `torch.nn.functional.dropout`, as CUDA runs it."""
    if inplace or not training or not 0 < p < 1:
        plain: torch.Tensor = (
            torch.dropout_(input, p, training) if inplace else (torch.dropout(input, p, training))
        )
        return plain
    output: torch.Tensor = torch.ops.aten.native_dropout(input, p, True)[0]
    return output


def _recurrent(kind: str) -> Callable[..., Any]:
    """Return what stands in for `torch.lstm` and its like, on padded batches."""

    def run(
        input: torch.Tensor,
        state: Any,
        weights: Sequence[torch.Tensor],
        biases: bool,
        layers: int,
        drop: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        if not isinstance(input, torch.Tensor) or not isinstance(weights, list | tuple):
            raise Unsupported(
                f"{kind} on packed sequences cannot be estimated; record it on a GPU, or pad"
            )
        hidden = state if isinstance(state, list | tuple) else [state]
        width = hidden[0].shape[-1] * (2 if bidirectional else 1)
        output, _, *last = torch.ops.superneurons.rnn(
            input, list(hidden), list(weights), width, layers * RESERVE_GATES[kind], drop * train
        )
        return (output, *last)

    return run


torch.library.define(
    "superneurons::rnn",
    "(Tensor input, Tensor[] states, Tensor[] weights, int width, int reserved, float dropout)"
    " -> Tensor[]",
    tags=(torch.Tag.nondeterministic_seeded,),
)
torch.library.define(
    "superneurons::rnn_backward",
    "(Tensor gradient, Tensor input, Tensor[] states, Tensor[] weights, Tensor output, "
    "Tensor reserve) -> Tensor[]",
)


def rnn(
    input: torch.Tensor,
    states: list[torch.Tensor],
    weights: list[torch.Tensor],
    width: int,
    reserved: int,
    dropout: float,
) -> list[torch.Tensor]:
    """Stand for a recurrent network as cuDNN runs it: output, reserve, last states. Shapes only."""
    output = input.new_empty((*input.shape[:2], width))
    reserve = input.new_empty(output.nbytes * reserved, dtype=torch.uint8)
    return [output, reserve, *map(torch.empty_like, states)]


def rnn_backward(
    gradient: torch.Tensor,
    input: torch.Tensor,
    states: list[torch.Tensor],
    weights: list[torch.Tensor],
    output: torch.Tensor,
    reserve: torch.Tensor,
) -> list[torch.Tensor]:
    """Stand for its backward: gradients of input, states and weights. Shapes only."""
    return [torch.empty_like(each) for each in (input, *states, *weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    given, states, weights, *_ = inputs
    ctx.states = len(states)
    ctx.set_materialize_grads(False)  # a gradient of the reserve would be as large as that
    ctx.save_for_backward(given, *states, *weights, output[0], output[1])


def _backward(ctx: Any, gradients: list[torch.Tensor | None]) -> tuple[Any, ...]:
    given, *rest = ctx.saved_tensors
    *between, output, reserve = rest
    states, weights = between[: ctx.states], between[ctx.states :]
    gradient = gradients[0] if gradients[0] is not None else torch.zeros_like(output)
    found = torch.ops.superneurons.rnn_backward(gradient, given, states, weights, output, reserve)
    n = 1 + ctx.states
    return found[0], found[1:n], found[n:], None, None, None


torch.library.register_fake("superneurons::rnn", rnn)
torch.library.register_fake("superneurons::rnn_backward", rnn_backward)
torch.library.register_autograd("superneurons::rnn", _backward, setup_context=_keep)


class CudaOperators(TorchFunctionMode):
    """Puts the table's replacements in place of what the program calls, while it is entered.

    A device that the program names is taken for the one that is estimated. What functions of
    torch.nn.functional call among themselves does not pass here, so it is replaced there, too.
    """

    def __enter__(self) -> "CudaOperators":
        for name, instead in _INSIDE.items():
            setattr(torch.nn.functional, name, instead)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for name, plain in _PLAIN.items():
            setattr(torch.nn.functional, name, plain)

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.__format__ and args[0].dim() == 0:
            return format(args[0].item(), args[1])
        args = tuple(_here(each) for each in args)
        if "device" in kwargs:
            kwargs = kwargs | {"device": _here(kwargs["device"])}
        return _INSTEAD.get(func, func)(*args, **kwargs)


def _here(argument: Any) -> Any:
    """Return the device that stands for a CUDA device; anything else as it is."""
    if isinstance(argument, torch.device) and argument.type == "cuda":
        return torch.device("cpu")
    if isinstance(argument, str) and argument.partition(":")[0] == "cuda":
        return "cpu"
    return argument


_PLAIN: Final[dict[str, Any]] = {
    "scaled_dot_product_attention": torch.nn.functional.scaled_dot_product_attention,
    "dropout": torch.nn.functional.dropout,
}
_INSIDE: Final[dict[str, Any]] = {"scaled_dot_product_attention": attention, "dropout": dropout}
_INSTEAD: Final[dict[Any, Callable[..., Any]]] = {
    **{_PLAIN[name]: instead for name, instead in _INSIDE.items()},
    torch.lstm: _recurrent("lstm"),
    torch.gru: _recurrent("gru"),
    torch.rnn_tanh: _recurrent("rnn_tanh"),
    torch.rnn_relu: _recurrent("rnn_relu"),
}
