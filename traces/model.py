"""A trace: one training step as data.

*Storages* hold the bytes. A *value* is a version of a storage, or a view of one: writing in place
makes the next version of the same storage, and a view costs nothing. *Operations* stand in issue
order and name the values that they read and write. A *place* is a position between operations,
given as the number of operations that were issued before it: 0 is the start of the step.

All sizes are integer bytes and all times integer nanoseconds. `docs/trace-format.md` explains
each field in one sentence.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from .facts import Facts

FORMAT: Final = "superneurons-trace/1"

Natural = Annotated[int, Meta(ge=0)]
Kind = Literal[
    "input",
    "parameter",
    "parameter-gradient",
    "optimizer-state",
    "activation",
    "activation-gradient",
    "other",
]
Phase = Literal["forward", "backward", "optimizer"]
Recompute = Literal["pure", "random", "opaque"]
Places = Literal["everywhere", "saves"]
Times = Literal["roofline", "measured", "none"]
Precision = Literal["fp32", "tf32", "half"]


class Storage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bytes on the device, under one name.

    A storage that is *alive_at_start* is there before the step and, unless it is released, after
    it. One that the step leaves behind *becomes* the storage of that name in the next step.
    """

    name: str
    kind: Kind
    nbytes: Natural
    alive_at_start: bool = False
    becomes: str | None = None


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A named version of a storage, or a view of it: *nbytes* bytes from *offset* on.

    A storage's own name stands for its version 0, whole; only other values need declaring.
    """

    name: str
    storage: str
    version: Natural = 0
    offset: Natural = 0
    nbytes: Natural | None = None


class Algorithm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Another way to run an operation: its time on the device and the workspace it needs."""

    name: str
    device_ns: Natural
    workspace_nbytes: Natural = 0


class Operation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation of the step.

    A write to a storage that is there already is in place. *updates* are values that are written
    in passing (running statistics): nothing in *writes* depends on them, and a recomputation
    leaves them alone. *recompute* tells whether running it again gives the same values: "pure";
    "random", if its generator state is restored; "opaque", never.

    The host *waits* for one whose result it reads (`loss.item()`). *precision* says which of a
    machine's rates its flops run at: "tf32" and "half" (16 bits) are those of tensor cores.

    *device_ns* is None where no time was measured: the machine's roofline over *flops* and
    *moved_nbytes* then gives it. *host_ns* None means the machine's launch cost. One that
    *launches* several kernels begins with the first of them, before the host is through with it.

    *allocations* tells in which order it asks for memory, where that is known: 0 stands for the
    next of the storages that it makes, n for a temporary of n bytes, -k gives the k-th temporary
    back. Without it, results come first and what is inside at once.
    """

    name: str
    kind: str
    phase: Phase
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()
    device_ns: Natural | None = None
    host_ns: Natural | None = None
    launches: Natural = 1
    workspace_nbytes: Natural = 0
    transient_nbytes: Natural = 0
    allocations: tuple[int, ...] = ()
    flops: Natural = 0
    precision: Precision = "fp32"
    moved_nbytes: Natural = 0
    algorithms: tuple[Algorithm, ...] = ()
    recompute: Recompute = "pure"
    waits: bool = False
    module: str = ""


class Release(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The place where the program lets go of a storage, whatever autograd still keeps."""

    storage: str
    place: Natural


class Save(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A value that autograd keeps for backward.

    It is *packed* at a place in forward, *unpacked* at the place where its consumer asks for it,
    and let go of at the place *freed*: right after the consumer, unless given. *node* names the
    consumer in autograd's graph.
    """

    value: str
    packed: Natural
    unpacked: Natural
    freed: Natural | None = None
    node: str = ""


class Trace(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    dict=True,
    eq=False,
):
    """One training step.

    *places* says where a driver can act: at every operation, or only where a saved-tensor hook
    fires. *times* says whether device times were measured, come from a machine's roofline, or are
    not known, and *machine* on which machine, by its built-in name, they were measured ("" if it
    has none). *notes* tell where the trace comes from, in any words.
    """

    name: str
    places: Places
    times: Times
    machine: str = ""
    storages: tuple[Storage, ...]
    operations: tuple[Operation, ...]
    values: tuple[Value, ...] = ()
    releases: tuple[Release, ...] = ()
    saves: tuple[Save, ...] = ()
    notes: dict[str, str] = {}

    @cached_property
    def facts(self) -> "Facts":
        """The trace compiled to integers, and proved consistent. Raises InvalidTrace."""
        from .facts import Facts

        return Facts(self)

    @property
    def has(self) -> frozenset[str]:
        """What a policy may ask for: "phases", "saves", "sizes", "times", "workspaces"."""
        facts = {"sizes"} if self.times == "none" else {"sizes", "times"}
        if {op.phase for op in self.operations} >= {"forward", "backward"}:
            facts.add("phases")
        if self.saves:
            facts.add("saves")
        if any(op.algorithms for op in self.operations):
            facts.add("workspaces")
        return frozenset(facts)
