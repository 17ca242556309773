"""One logged step, and what was measured of its operations: all that a trace is made of."""

from typing import NamedTuple

from ..traces import Kind, Phase
from .logged import Logged
from .saves import Kept
from .storages import Life


class Known(NamedTuple):
    """What a storage is to the program, by its life's number: name and kind."""

    name: str
    kind: Kind


class Step(NamedTuple):
    """One logged step: operations from *start* on, and what was known at its start and end.

    Lives from number *first* on were entered in the step. *versions* are those of the storages
    that were alive at the start, by number; *known_before* and *known_after* name parameters,
    gradients, states and buffers at both ends; *gradients* names what became a parameter's gradient
    meanwhile. *blocks* are the requested bytes of all blocks that the device's allocator had given
    out at the start, by address; empty where there is no such allocator.
    """

    start: int
    first: int
    operations: list[Logged]
    lives: list[Life]
    kept: list[Kept]
    versions: dict[int, int]
    known_before: dict[int, Known]
    known_after: dict[int, Known]
    gradients: dict[int, str]
    blocks: dict[int, int]


class OperationTimes(NamedTuple):
    """Device and host times in ns and the number of kernels by operation, and the operations that
    the host waited for."""

    device_ns: list[int]
    host_ns: list[int]
    launches: list[int]
    waits: frozenset[int] = frozenset()


def phases_of(operations: list[Logged]) -> list[Phase]:
    """Return the phase of each operation: what comes after the last backward is the optimizer's."""
    last = max((i for i, op in enumerate(operations) if op.backward), default=len(operations))
    return [
        "backward" if op.backward else "optimizer" if i > last else "forward"
        for i, op in enumerate(operations)
    ]
