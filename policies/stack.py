"""Stacks: components side by side that do not know one another."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..machines import Machine
from ..schedules import Copy, Instruction, Schedule
from ..traces import Trace
from .base import Component
from .idle import without_idle_copies
from .weaver import Weaver


@dataclass(frozen=True, repr=False)
class Stack:
    """Several components as one policy; the first that claims a storage sees to it."""

    components: tuple[Component, ...]

    @property
    def needs(self) -> frozenset[str]:
        """What the components need of a trace, together."""
        return frozenset().union(*(component.needs for component in self.components))

    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
        """Walk once over the trace with all components: see `Policy.schedule`."""
        limit = machine.device_nbytes if budget is None else budget
        weaver = Weaver(trace, machine, limit)
        woven = weaver.run(self.components)
        instructions = without_idle_copies(trace.facts, woven)
        ledger = weaver.ledger
        ledger.full -= _tiers(woven) - _tiers(instructions)  # idle copies alone had filled them
        return Schedule.of(trace, machine, budget, repr(self), instructions, ledger)

    def __repr__(self) -> str:
        return "+".join(map(repr, self.components))


def _tiers(instructions: Sequence[Instruction]) -> set[str]:
    return {step.tier for step in instructions if isinstance(step, Copy)}
