"""Shortages: what finds too little room, and a trace in which convolutions need less of it.

A convolution can do with a smaller workspace than it was recorded with (`allocators/occupy.py`).
"""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ..allocators.occupy import CAN_DO_WITH_LESS
from ..schedules import Fetch, Ledger, Rerun, Run, Schedule
from ..traces import Trace
from ..traces.allocations import with_less

GRAIN_NBYTES: Final = 1 << 20
"""What takes less inside takes a multiple of this: algorithms do not differ by a few bytes."""

NOBODY: Final = -1
"""In place of an operation, where no operation takes what is too much."""


def short_alone(trace: Trace, limit: int) -> dict[int, int]:
    """Return the operations that exceed a limit under any schedule, with what is always there, and
    by how many bytes."""
    return {op: nbytes - limit for op, nbytes in trace.facts.demands() if nbytes > limit}


def short_under(trace: Trace, schedule: Schedule) -> dict[int, int]:
    """Return the operations that exceed a schedule's limit, and by how many bytes at worst."""
    if not schedule.short_nbytes:
        return {}
    facts = trace.facts
    ledger = Ledger(facts, schedule.limit_nbytes, schedule.tiers)
    short = {NOBODY: ledger.short}
    for step in schedule.instructions:
        ledger.apply(step)
        if isinstance(step, Run | Rerun):
            op, inside = step.op, facts.inside(step.op, step.algorithm)
        elif isinstance(step, Fetch):
            op, inside = NOBODY, 0
        else:
            continue
        short[op] = max(short.get(op, 0), ledger.device_nbytes + inside - ledger.limit)
    return {op: nbytes for op, nbytes in short.items() if nbytes > 0}


def with_smaller_workspaces(trace: Trace, short: Mapping[int, int]) -> Trace | None:
    """Return a trace in which what is *short* of so many bytes needs as many less inside, or only
    what is no workspace; None if any of it is no convolution, or has no workspace left."""
    if not short:
        return trace
    facts = trace.facts
    operations = list(trace.operations)
    for op, nbytes in short.items():
        if op == NOBODY or operations[op].kind != CAN_DO_WITH_LESS:
            return None
        inside = max(0, facts.inside_nbytes[op] - nbytes) // GRAIN_NBYTES * GRAIN_NBYTES
        less = with_less(operations[op], [facts.nbytes[s] for s in facts.fresh[op]], inside)
        if less == operations[op]:
            return None
        operations[op] = less
    return replace(trace, operations=tuple(operations))


def with_less_inside(leaner: Trace, trace: Trace) -> set[int]:
    """Return the operations that take less inside in a leaner trace than in the other."""
    both = zip(leaner.facts.inside_nbytes, trace.facts.inside_nbytes, strict=True)
    return {op for op, (less, nbytes) in enumerate(both) if less < nbytes}
