"""What a plain step does in place where a recorded one does not.

Recording changes two things. The storage's Python object, by which deaths are noticed, is one more
holder: so autograd's engine, which adds gradients into a tensor that nobody else holds, makes a new
sum. And while a dispatch mode is active, which fake tensors cannot do without, torch takes all
tensors for subclasses, which it does not write into. The rules here mark such operations, and the
trace says what a plain step does.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import torch

from .logged import Logged
from .private import holders, is_view, running_node

if TYPE_CHECKING:
    from .log import Log


class PlainRules:
    """The rule for steps without a dispatch mode: the engine's sums of gradients."""

    def __init__(self) -> None:
        self.caveats: set[str] = set()

    def mark(self, log: "Log", op: Logged, args: tuple[Any, ...], result: Any) -> None:
        """Mark *op*, about to be logged, if a plain step would put its result into its first
        argument: which nobody else holds, and which is of the same shape."""
        first = args[0] if args else None
        if len(op.fresh) != 1 or not isinstance(first, torch.Tensor) or not log.here(first):
            return
        life = log.book.find(first)
        if (
            life is not None
            and holders(life.address) == 2  # *first* itself, and the storage's Python object
            and isinstance(result, torch.Tensor)
            and not is_view(first)
            and first.shape == result.shape
            and first.dtype == result.dtype
            and first.stride() == result.stride()
            and self.in_place(log, op, args)
        ):
            op.result_in = life

    def in_place(self, log: "Log", op: Logged, args: tuple[Any, ...]) -> bool:
        """Return whether torch would run *op* in place if recording did not keep it from it."""
        return op.operator.name == "add" and by_engine(op) and is_sum(log, op, args[0])


class ModeRules(PlainRules):
    """The rules for steps under a dispatch mode: formulas of autograd and linear functions, too."""

    def mark(self, log: "Log", op: Logged, args: tuple[Any, ...], result: Any) -> None:
        """Mark *op* as without a mode; note which call of the program it is of."""
        caller = calling_frame()
        op.call = (id(caller), caller.f_code, caller.f_lasti)  # a frame would keep its tensors
        super().mark(log, op, args, result)

    def in_place(self, log: "Log", op: Logged, args: tuple[Any, ...]) -> bool:
        """Return whether torch would run *op* in place without the mode."""
        name, maker = op.operator.name, log.maker(args[0])
        if not op.backward:
            bias = args[1] if name == "add" else None
            return (
                isinstance(bias, torch.Tensor)
                and bias.dim() == 1
                and maker is not None
                and maker is log.operations[-1]
                and maker.operator.kind == "matmul"
                and maker.call == op.call
            )
        if not by_engine(op):
            return False
        node = running_node()
        node_name = "" if node is None else node.name()
        if node_name in OTHER_FORMULAS:
            self.caveats.add(node_name)
        if name == "add":
            return is_sum(log, op, args[0])
        ours = maker is not None and maker.backward and maker.node == op.node
        return ours and name in FORMULAS_IN_PLACE.get(node_name, SCATTERS)


def by_engine(op: Logged) -> bool:
    """Return whether autograd's engine or one of its formulas called, and no Python function."""
    return (
        op.backward
        and not torch.is_grad_enabled()
        and calling_frame().f_code.co_name == "_engine_run_backward"
    )


def is_sum(log: "Log", op: Logged, first: torch.Tensor) -> bool:
    """Return whether an addition is the engine's, of gradients that came to one input.

    What was made in another pass is a gradient that is retained. What the running node has made
    itself is added by its own formula, unless two of its edges lead to the same input.
    """
    maker = log.maker(first)
    if maker is None or maker.backward_pass != op.backward_pass:
        return False
    node = running_node()
    if node is None or maker.node != op.node:
        return True
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    return len(set(edges)) < len(edges)


def calling_frame() -> FrameType:
    """Return the Python frame that called torch: neither ours nor dynamo's around a mode."""
    frame: FrameType = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_HERE) or frame.f_code.co_name in _DYNAMO
    ):
        frame = frame.f_back
    return frame


_HERE: Final = str(Path(__file__).parent)
_DYNAMO: Final = frozenset({"inner", "_fn"})

SCATTERS: Final = frozenset(
    {"index_put", "scatter", "scatter_add", "index_add", "masked_scatter", "index_fill"}
)
"""What formulas run in place on zeros of their own."""

FORMULAS_IN_PLACE: Final = {
    "BinaryCrossEntropyWithLogitsBackward0": frozenset({"sub", "mul", "div"}),
}
"""What single formulas run in place on what they made, by their node's name."""

OTHER_FORMULAS: Final = frozenset(
    {
        "AmaxBackward0",
        "AminBackward0",
        "ClampBackward0",
        "CumprodBackward0",
        "LinalgMatrixExpBackward0",
        "MaxBackward1",
        "MinBackward1",
        "ProdBackward0",
        "ProdBackward1",
        "QuantileBackward0",
        "TakeBackward0",
    }
)
"""Formulas of which torch runs another one under a mode. An estimate with one says so."""
