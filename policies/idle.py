"""Idle copies: those of storages whose bytes stay on the device until they die.

A component sends a storage away before it can know whether there will be time, or need, to let the
device's bytes go. Where they stay, the copy has only kept the link from others, and what dies must
wait for it. So it is taken out of what was woven.
"""

from collections.abc import Sequence

from ..schedules import Copy, Discard, Fetch, Free, Instruction, Run
from ..traces import Facts


def without_idle_copies(facts: Facts, instructions: Sequence[Instruction]) -> list[Instruction]:
    """Return the instructions without copies that are discarded before their storage was given up
    while somebody, or the graph, still had a use for it, or came back from them."""
    idle: set[int] = set()
    since: dict[int, dict[str, int]] = {}  # by storage and tier, where what may be idle was copied
    place = 0
    for position, step in enumerate(instructions):
        if isinstance(step, Run):
            place = step.op + 1
        elif isinstance(step, Copy):
            since.setdefault(step.storage, {})[step.tier] = position
        elif isinstance(step, Free):
            if place < facts.death[step.storage]:
                since.pop(step.storage, None)
        elif isinstance(step, Fetch):  # what is computed from it may hold it for longer
            since.pop(step.storage, None)
        elif isinstance(step, Discard):
            made = since.get(step.storage, {}).pop(step.tier, None)
            if made is not None:
                idle |= {made, position}
    return [step for position, step in enumerate(instructions) if position not in idle]
