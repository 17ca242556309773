"""A schedule: one training step with memory decisions woven in."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ..machines import Machine
from ..traces import Trace
from .instructions import Instruction
from .ledger import Ledger


class Schedule(Struct, frozen=True, kw_only=True, eq=False):
    """A flat list of instructions over the trace with that *digest*, and what it promises.

    It runs in *limit_nbytes* of device memory and in the *tiers*' capacities. *budget_nbytes* is
    the limit that was asked for, None if it is simply the machine's memory. A policy that could not
    keep to the limit says by how many bytes it is *short* at worst, and at which operation, and
    which tiers were *full* when they were to take more: that is told, not proved.
    """

    trace: str
    digest: str
    policy: str
    limit_nbytes: int
    budget_nbytes: int | None
    tiers: Mapping[str, int]
    instructions: Sequence[Instruction]
    short_nbytes: int = 0
    short_op: int = -1
    full_tiers: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        trace: Trace,
        machine: Machine,
        budget: int | None,
        policy: str,
        instructions: Sequence[Instruction],
        ledger: Ledger,
    ) -> "Schedule":
        """Return the instructions for *trace* as a schedule; *ledger* is what they lead to."""
        return cls(
            trace=trace.name,
            digest=trace.facts.digest,
            policy=policy,
            limit_nbytes=ledger.limit,
            budget_nbytes=budget,
            tiers=machine.capacities,
            instructions=instructions,
            short_nbytes=ledger.short,
            short_op=ledger.short_op,
            full_tiers=tuple(tier for tier in ledger.capacity if tier in ledger.full),
        )
