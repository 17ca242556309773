"""Which operations' outputs are checkpoints: costly to compute again, so offloaded or kept."""

from typing import Final

from ..errors import InvalidInput
from ..traces import Facts

CHECKPOINT_KINDS: Final = (
    "conv",
    "matmul",
    "attention",
    "embedding",
    "add",
    "fork",
    "concat",
)
"""The kinds that are checkpoints by default; everything else is cheap to recompute."""


OTHER_KINDS: Final = ("norm", "activation", "pool", "dropout", "loss")
"""The kinds that traces of this package have besides."""


def checkpoints(facts: Facts, kinds: tuple[str, ...]) -> list[bool]:
    """Return, for each storage, whether it is a checkpoint: made or written over in forward by one
    of *kinds*.

    After an in-place ReLU a convolution's storage is still the convolution's, and its checkpoint is
    the ReLU's result; a normalization's storage that the shortcut is added to in place is a join's.
    Raises InvalidInput for a kind that neither the trace nor this package knows.
    """
    known = {*CHECKPOINT_KINDS, *OTHER_KINDS, *(op.kind for op in facts.trace.operations)}
    for kind in kinds:
        if kind not in known:
            raise InvalidInput(
                f"no operation of {facts.trace.name!r} is of kind {kind!r}; "
                f"kinds are: {', '.join(sorted(known))}"
            )
    wanted = frozenset(kinds)
    operations = facts.trace.operations
    return [
        any(operations[op].phase == "forward" and operations[op].kind in wanted for op in writers)
        for writers in facts.writers
    ]
