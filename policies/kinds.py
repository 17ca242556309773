"""Which operations' outputs are checkpoints: costly to compute again, so offloaded or kept."""

from typing import Final

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


def checkpoints(facts: Facts, kinds: tuple[str, ...]) -> list[bool]:
    """Return, for each storage, whether it is a checkpoint: made in forward by one of *kinds*.

    What counts is the operation that made the storage: after an in-place ReLU a convolution's
    storage is still the convolution's, and its checkpoint is the ReLU's result.
    """
    wanted = frozenset(kinds)
    operations = facts.trace.operations
    return [
        bool(writers)
        and operations[writers[0]].phase == "forward"
        and operations[writers[0]].kind in wanted
        for writers in facts.writers
    ]
