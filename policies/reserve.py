"""Decide within what an allocator reserves: it takes more of the device than is asked for.

A policy counts exact bytes. Where the allocator's own rounding, and what it cannot use of its
segments, come on top of a full budget, the policy is asked again with less.
"""

from typing import Final

from ..allocators import Allocator, new_allocator, occupy
from ..allocators.caching import CachingAllocator
from ..errors import DoesNotFit
from ..machines import Machine
from ..notation import format_bytes
from ..traces import Trace
from .base import Policy
from .decide import Decision, decide

TRIES: Final = 12
"""How often a policy is asked again with less."""


def decide_reserved(
    policy: Policy, trace: Trace, machine: Machine, budget: int | None, allocator: str
) -> Decision:
    """Return *policy*'s schedule of *trace* with which *allocator* stays within the budget.

    Without a budget the device is the limit. Where even exact bytes do not fit, the schedule says
    so itself, as it does for `decide`. Raises DoesNotFit if none was found that the allocator can
    serve, and what `decide` raises.
    """
    limit = machine.device_nbytes if budget is None else budget
    given, found = budget, decide(policy, trace, machine, budget)
    over = first = _over(trace, found, allocator, limit)
    for _ in range(TRIES):
        if over <= 0 or found.schedule.short_nbytes:
            return found
        given = (limit if given is None else given) - max(over, limit // 200)
        try:
            found = decide(policy, trace, machine, given)
        except DoesNotFit:
            break
        if found.schedule.short_nbytes:
            break
        over = _over(trace, found, allocator, limit)
    raise DoesNotFit(
        f"{policy!r} fits {trace.name!r} into {format_bytes(limit)} byte by byte, but torch's "
        f"allocator ({allocator}) would take {format_bytes(first)} more for what it cannot use of "
        "its segments; give more, or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )


def _over(trace: Trace, decision: Decision, name: str, limit: int) -> int:
    """Return how many bytes beyond the limit an allocator would reserve, 0 if it can do with it."""
    allocator: Allocator = new_allocator(name, limit)
    occupy(trace, decision.schedule, allocator)
    if isinstance(allocator, CachingAllocator) and not allocator.failures:
        return 0  # a page of an expandable segment may end beyond the limit, as torch's may
    return max(0, allocator.reserved_peak_nbytes - limit)
