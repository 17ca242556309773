"""Idle copies: those that nothing comes back from.

A component sends a storage away before it can know whether there will be time, or need, to let the
device's bytes go. Where they stay until the storage dies, or are computed again, the copy has only
kept the link from others, and what dies must wait for it. So it is taken out of what was woven.
"""

from collections.abc import Sequence

from ..schedules import Copy, Discard, Fetch, Instruction, Rerun
from ..traces import Facts


def without_idle_copies(facts: Facts, instructions: Sequence[Instruction]) -> list[Instruction]:
    """Return the instructions without copies that are discarded before they are fetched.

    A copy stays where the storage is computed again while it lasts: what may be dropped was decided
    with it.
    """
    idle: set[int] = set()
    since: dict[int, dict[str, int]] = {}  # by storage and tier, where what may be idle was copied
    for position, step in enumerate(instructions):
        if isinstance(step, Copy):
            since.setdefault(step.storage, {})[step.tier] = position
        elif isinstance(step, Fetch):
            since.get(step.storage, {}).pop(step.tier, None)
        elif isinstance(step, Discard):
            made = since.get(step.storage, {}).pop(step.tier, None)
            if made is not None:
                idle |= {made, position}
        elif isinstance(step, Rerun):
            for s in facts.fresh[step.op]:
                since.pop(s, None)
    return [step for position, step in enumerate(instructions) if position not in idle]
