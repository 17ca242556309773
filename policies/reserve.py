"""Decide within what an allocator reserves: it takes more of the device than is asked for.

A policy counts exact bytes. Where the allocator's own rounding, and what it cannot use of its
segments, come on top of a full budget, the policy is asked again with less. Without knowing the
process, a fresh one is judged; with its standing, what it has becomes the model's start.

A convolution that finds no room for its workspace does not fail: cuDNN takes an algorithm that
needs less, which may be slower and round otherwise. So a schedule that only lacks workspaces runs.
It is the last resort of a process whose standing is known, for another one that finds all room that
it had when it was recorded is better.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..allocators import Allocator, new_allocator, occupy
from ..allocators.caching import CachingAllocator
from ..allocators.occupy import Leaner, Outlook, go_on
from ..allocators.standing import Standing
from ..errors import DoesNotFit
from ..machines import Machine
from ..notation import format_bytes
from ..schedules import Ledger, Schedule
from ..traces import Trace
from .base import Policy
from .decide import Decision, decide

TRIES: Final = 24
"""How often a policy is asked again with less."""

MARGIN: Final = 200
"""One part in so many of the limit is left where a process is to run by the schedule, for a step
that runs out of memory is worse than one that is asked to take a little less. Of 17 recordings the
model reserved at most 0.45 % less than torch (docs/recordings.md; one more was of a network whose
libraries take more in their first step). It cannot know where the driver puts the next segment."""

CALMER: Final = 8
"""How often a policy is asked again with less where a step runs, but has the allocator give memory
back to the device and take it anew: the driver then waits for all kernels, and the least that the
model does not know of is too much."""

LEANER: Final[tuple[Leaner, ...]] = (lambda nbytes: 0, lambda nbytes: nbytes // 2 >> 20 << 20)
"""What convolutions ask for in place of a workspace: it is not known, so the schedule must run
either way, with no workspace at all and with the largest of half as much again and again."""


class Reserved(NamedTuple):
    """A proved schedule that an allocator can serve; *leaner* operations, those of the trace that
    find no room for their workspace."""

    schedule: Schedule
    ledger: Ledger
    leaner: tuple[int, ...] = ()


def decide_reserved(
    policy: Policy,
    trace: Trace,
    machine: Machine,
    budget: int | None,
    allocator: str,
    standing: Standing | None = None,
) -> Reserved:
    """Return *policy*'s schedule of *trace* with which *allocator* stays within the budget.

    Without a budget the device is the limit. *standing* is the process that is to run by it. Where
    even exact bytes do not fit, the schedule says so itself, as it does for `decide`. Raises
    DoesNotFit if none was found that the allocator can serve, and what `decide` raises.
    """
    limit = machine.device_nbytes if budget is None else budget
    judge = _Judge(trace, allocator, limit, standing)
    given, found = budget, decide(policy, trace, machine, budget)
    verdict = first = judge.verdict(found.schedule)
    asked = [(verdict, found)]
    while not verdict.calm and not found.schedule.short_nbytes and not _enough(asked):
        less = max(verdict.over_nbytes // 2, limit // 200)
        given = (limit if given is None else given) - less
        try:
            found = decide(policy, trace, machine, given)
        except DoesNotFit:
            break
        if found.schedule.short_nbytes:
            break
        verdict = judge.verdict(found.schedule)
        asked.append((verdict, found))
    else:
        if verdict.calm or found.schedule.short_nbytes:
            return Reserved(*found)
    runs = [each for each in asked if not each[0].over_nbytes]
    if runs:
        return Reserved(*min(runs, key=lambda each: each[0].late_retries)[1])
    for _, found in asked:
        leaner = judge.leaner(found.schedule)
        if leaner:
            return Reserved(*found, leaner)
    raise DoesNotFit(
        f"{policy!r} fits {trace.name!r} into {format_bytes(limit)} byte by byte, but torch's "
        f"allocator ({allocator}) would take {format_bytes(first.over_nbytes)} more for what it "
        "cannot use of its segments; give more, or set "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )


class _Verdict(NamedTuple):
    """How many bytes beyond the limit would be reserved, 0 if that is enough, and how often memory
    would be given back in the steps after the first ones."""

    over_nbytes: int
    late_retries: int = 0

    @property
    def calm(self) -> bool:
        """Whether steps run, and need nothing of the driver in the end."""
        return not (self.over_nbytes or self.late_retries)


def _enough(asked: Sequence[tuple[_Verdict, Decision]]) -> bool:
    runs = sum(not verdict.over_nbytes for verdict, _ in asked)
    return len(asked) > TRIES or runs > CALMER


class _Judge:
    """Puts schedules of a trace to an allocator within a limit."""

    def __init__(self, trace: Trace, name: str, limit: int, standing: Standing | None) -> None:
        self.limit: Final = limit
        self._trace = trace
        self._name = name
        self._standing = standing

    def verdict(self, schedule: Schedule) -> _Verdict:
        """Return how the allocator would serve a schedule."""
        if self._standing is None:
            allocator: Allocator = new_allocator(self._name, self.limit)
            occupy(self._trace, schedule, allocator)
            if isinstance(allocator, CachingAllocator):
                return _Verdict(_over(allocator, self.limit))
            return _Verdict(max(0, allocator.reserved_peak_nbytes - self.limit))
        over_nbytes, outlook = self._run(self._standing, schedule)
        return _Verdict(over_nbytes, outlook.late_retries)

    def leaner(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the convolutions without which room for their workspaces it runs, () if not."""
        denied: set[int] = set()
        if self._standing is not None:
            for leaner in LEANER:
                over_nbytes, outlook = self._run(self._standing, schedule, leaner)
                if over_nbytes:
                    return ()
                denied |= outlook.denied
        return tuple(sorted(denied))

    def _run(
        self, standing: Standing, schedule: Schedule, leaner: Leaner | None = None
    ) -> tuple[int, Outlook]:
        limit = self.limit - self.limit // MARGIN - standing.apart_nbytes
        allocator, blocks = standing.allocator(self._trace.facts, limit)
        outlook = go_on(self._trace, schedule, allocator, blocks, leaner)
        return _over(allocator, limit), outlook


def _over(allocator: CachingAllocator, limit: int) -> int:
    """Return how many bytes beyond the limit were reserved, one at least if a request failed. A
    page of an expandable segment may end beyond the limit, as torch's may."""
    return max(1, allocator.reserved_peak_nbytes - limit) if allocator.failures else 0
