"""One operation as it was logged, and the views that it read."""

from types import CodeType

from ..traces import Precision
from .operators import Operator
from .private import backward_pass
from .storages import Life


class Access:
    """A view that an operation reads: a storage, its version, first byte and size in bytes."""

    __slots__ = ("life", "nbytes", "offset", "version")

    def __init__(self, life: Life, version: int, offset: int, nbytes: int) -> None:
        self.life = life
        self.version = version
        self.offset = offset
        self.nbytes = nbytes


class Logged:
    """One operation: what it read, made, wrote over and updated in passing, bytes and flops.

    *dispatch* is its number among all that was dispatched, views included. *node* is the sequence
    number of its autograd node: the one it makes in forward, the one that runs it in backward.
    *call* tells one call of the program from another: one may run several operations. *result_in*
    is the storage that a plain step would have put the result into. *counted* are the numbers of
    allocations and frees before and after it, and *allocations* their order, as in a trace.
    """

    __slots__ = (
        "allocations",
        "backward_pass",
        "call",
        "counted",
        "dispatch",
        "flops",
        "fresh",
        "inside_nbytes",
        "module",
        "moved_nbytes",
        "node",
        "operator",
        "overwrites",
        "precision",
        "random",
        "reads",
        "result_in",
        "updates",
        "waits",
    )

    def __init__(self, what: Operator) -> None:
        self.operator = what
        self.dispatch = 0
        self.call: tuple[int, CodeType | None, int] = (0, None, 0)
        self.backward_pass = backward_pass()
        self.node = -1
        self.module = ""
        self.reads: list[Access] = []
        self.fresh: list[Life] = []
        self.overwrites: list[Life] = []
        self.updates: list[Life] = []
        self.waits = False
        self.random = False
        self.flops = 0
        self.precision: Precision = "fp32"
        self.moved_nbytes = 0
        self.inside_nbytes = 0
        self.counted = (0, 0)
        self.allocations: tuple[int, ...] = ()
        self.result_in: Life | None = None

    @property
    def backward(self) -> bool:
        """Whether it ran in a backward pass."""
        return self.backward_pass >= 0
