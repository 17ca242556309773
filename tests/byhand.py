"""Schedules whose instructions a test writes down itself."""

from collections.abc import Sequence

from superneurons.machines import Machine
from superneurons.schedules import Instruction, Schedule
from superneurons.traces import Trace


def by_hand(trace: Trace, instructions: Sequence[Instruction], machine: Machine) -> Schedule:
    """Return a schedule of just these instructions, with all of the machine for it."""
    return Schedule(
        trace=trace.name,
        digest=trace.facts.digest,
        policy="by hand",
        limit_nbytes=machine.device_nbytes,
        budget_nbytes=None,
        tiers=machine.capacities,
        instructions=list(instructions),
    )
