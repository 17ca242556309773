"""Decide within what an allocator reserves: it takes more of the device than is asked for.

A policy counts exact bytes. Where the allocator's own rounding, and what it cannot use of its
segments, come on top of a full budget, the policy is asked again with less. Without knowing the
process, a fresh one is judged; with its standing, what it has becomes the model's start.

A convolution that finds no room for its workspace does not fail: cuDNN takes an algorithm that
needs less, which may be slower and round otherwise. So a schedule that only lacks workspaces runs,
and where exact bytes lack as well, the policy is asked about a step whose convolutions need less.
Both are the last resort of a process whose standing is known, for another schedule with all room
that there was when the step was recorded is better.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..allocators import Allocator, new_allocator, occupy
from ..allocators.caching import CachingAllocator
from ..allocators.occupy import Leaner, Outlook, go_on
from ..allocators.registry import LESS_WASTE
from ..allocators.standing import Standing, Taken
from ..errors import DoesNotFit
from ..machines import Machine
from ..notation import format_bytes
from ..schedules import Ledger, Schedule
from ..traces import Trace
from .base import Policy
from .decide import Decision, decide
from .shortage import (
    NOBODY,
    short_alone,
    short_under,
    with_less_inside,
    with_smaller_workspaces,
)

TRIES: Final = 24
"""How often a policy is asked again with less."""

MARGIN: Final = 200
"""One part in so many of the limit is left where a process is to run by the schedule, for a step
that runs out of memory is worse than one that is asked to take a little less. Of 17 recordings the
model, with each new segment above the others, reserved at most 0.45 % less than torch
(docs/recordings.md; one more was of a network whose libraries take more in their first step). Where
the driver puts the next segment it can only guess (docs/design.md, section 6)."""

CALMER: Final = 8
"""How often a policy is asked again with less where a step runs, but has the allocator give memory
back to the device and take it anew: the driver then waits for all kernels, and the least that the
model does not know of is too much."""

LEANER: Final[tuple[Leaner, ...]] = (lambda nbytes: 0, lambda nbytes: nbytes // 2 >> 20 << 20)
"""What convolutions ask for in place of a workspace: it is not known, so the schedule must run
either way, with no workspace at all and with the largest of half as much again and again."""

LEANER_TRIES: Final = 12
"""How often a policy is asked where convolutions need less, or with less in the end."""


class Reserved(NamedTuple):
    """A proved schedule that an allocator can serve, and the trace that it is of.

    *leaner* are the operations that find no room for their workspace. Some of them may have a
    smaller one in *trace*, or none, than in the trace that was asked about. The ledger, too, knows
    only of that: what the device takes there lies between that and the budget. *peaks* are what
    the allocator takes at most in the process that is to run by it, None if that is not known.
    """

    schedule: Schedule
    ledger: Ledger
    trace: Trace
    leaner: tuple[int, ...] = ()
    peaks: Taken | None = None


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
    even exact bytes do not fit, and not for want of workspaces alone, the schedule says so itself,
    as it does for `decide`. Raises DoesNotFit if none was found that the allocator can serve, and
    what `decide` raises.
    """
    limit = machine.device_nbytes if budget is None else budget
    judge = _Judge(trace, allocator, limit, standing)
    try:
        found = decide(policy, trace, machine, budget)
    except DoesNotFit:
        if leaner := _leaner(policy, trace, machine, budget, judge):
            return leaner
        raise
    if found.schedule.short_nbytes:
        return _leaner(policy, trace, machine, budget, judge) or Reserved(*found, trace)
    given, short = budget, False
    verdict = first = judge.verdict(found.schedule)
    asked = [(verdict, found)]
    while not (verdict.calm or short or _enough(asked)):
        given = _less(given, limit, verdict.over_nbytes)
        made = _fitting(policy, trace, machine, given)
        if isinstance(made, Decision):
            found, verdict = made, judge.verdict(made.schedule)
            asked.append((verdict, found))
        else:
            short = True
    runs = [each for each in asked if not each[0].over_nbytes]
    if runs:
        verdict, found = min(runs, key=lambda each: each[0].late_retries)
        return Reserved(*found, trace, peaks=verdict.peaks)
    for _, found in asked:
        outlook = judge.leaner(found.schedule)
        if outlook and not outlook.over_nbytes:
            return Reserved(*found, trace, outlook.denied)
    if short and (leaner := _leaner(policy, trace, machine, given, judge)):
        return leaner
    raise DoesNotFit(
        f"{policy!r} fits {trace.name!r} into {format_bytes(limit)} byte by byte, but torch's "
        f"allocator ({allocator}) would take {format_bytes(first.over_nbytes)} more for what it "
        f"cannot use of its segments; give more{LESS_WASTE.get(allocator, '')}"
    )


def _leaner(
    policy: Policy, trace: Trace, machine: Machine, budget: int | None, judge: "_Judge"
) -> Reserved | None:
    """Return a schedule for which convolutions that are short of room have smaller workspaces; None
    if that does not help, or if nobody knows the process that they are to run in."""
    if judge.standing is None:
        return None
    given, leaner = budget, trace
    short = short_alone(trace, judge.limit if budget is None else budget)
    for _ in range(LEANER_TRIES):
        less = with_smaller_workspaces(leaner, short)
        if less is None:
            return None
        leaner = less
        made = _fitting(policy, leaner, machine, given)
        if not isinstance(made, Decision):
            short = made
            continue
        outlook = judge.leaner(made.schedule)
        if outlook is None:
            return None
        if not outlook.over_nbytes:
            denied = with_less_inside(leaner, trace).union(outlook.denied)
            return Reserved(*made, leaner, tuple(sorted(denied)))
        given = _less(given, judge.limit, outlook.over_nbytes)
        short = short_alone(leaner, given)
    return None


def _fitting(
    policy: Policy, trace: Trace, machine: Machine, budget: int | None
) -> Decision | dict[int, int]:
    """Return a schedule that fits byte by byte, or what is short of how many bytes."""
    try:
        found = decide(policy, trace, machine, budget)
    except DoesNotFit:
        limit = machine.device_nbytes if budget is None else budget
        return short_alone(trace, limit) or {NOBODY: 0}
    return short_under(trace, found.schedule) or found


def _less(given: int | None, limit: int, over_nbytes: int) -> int:
    """Return what to give next, if what was made of *given* is over by so many bytes."""
    return (limit if given is None else given) - max(over_nbytes // 2, limit // 200)


class _Verdict(NamedTuple):
    """How many bytes beyond the limit would be reserved, 0 if that is enough, how often memory
    would be given back in the steps after the first ones, and the peaks in a process that is
    known."""

    over_nbytes: int
    late_retries: int = 0
    peaks: Taken | None = None

    @property
    def calm(self) -> bool:
        """Whether steps run, and need nothing of the driver in the end."""
        return not (self.over_nbytes or self.late_retries)


class _Leaner(NamedTuple):
    """The operations *denied* a workspace, if convolutions need none; or by how many bytes the
    limit is exceeded all the same."""

    denied: tuple[int, ...]
    over_nbytes: int


def _enough(asked: Sequence[tuple[_Verdict, Decision]]) -> bool:
    runs = sum(not verdict.over_nbytes for verdict, _ in asked)
    return len(asked) > TRIES or runs > CALMER


class _Judge:
    """Puts schedules of a trace to an allocator within a limit."""

    def __init__(self, trace: Trace, name: str, limit: int, standing: Standing | None) -> None:
        self.limit: Final = limit
        self._trace = trace
        self._name = name
        self.standing: Final = standing

    def verdict(self, schedule: Schedule) -> _Verdict:
        """Return how the allocator would serve a schedule."""
        if self.standing is None:
            allocator: Allocator = new_allocator(self._name, self.limit)
            occupy(self._trace, schedule, allocator)
            if isinstance(allocator, CachingAllocator):
                return _Verdict(_over(allocator, self.limit))
            return _Verdict(max(0, allocator.reserved_peak_nbytes - self.limit))
        limit, allocator, outlook = self._run(self.standing, schedule)
        apart = self.standing.apart
        peaks = Taken(
            allocator.allocated_peak_nbytes + apart.allocated_nbytes,
            allocator.reserved_peak_nbytes + apart.reserved_nbytes,
        )
        return _Verdict(_over(allocator, limit), outlook.late_retries, peaks)

    def leaner(self, schedule: Schedule) -> _Leaner | None:
        """Return how it runs if convolutions go on without room for their workspaces, None if
        nobody knows the process."""
        denied: set[int] = set()
        if self.standing is None:
            return None
        for leaner in LEANER:
            limit, allocator, outlook = self._run(self.standing, schedule, leaner)
            if over_nbytes := _over(allocator, limit):
                return _Leaner((), over_nbytes)
            denied |= outlook.denied
        return _Leaner(tuple(sorted(denied)), 0)

    def _run(
        self, standing: Standing, schedule: Schedule, leaner: Leaner | None = None
    ) -> tuple[int, CachingAllocator, Outlook]:
        limit = self.limit - self.limit // MARGIN - standing.apart.reserved_nbytes
        allocator, blocks = standing.allocator(self._trace.facts, limit)
        outlook = go_on(self._trace, schedule, allocator, blocks, leaner)
        return limit, allocator, outlook


def _over(allocator: CachingAllocator, limit: int) -> int:
    """Return how many bytes beyond the limit were reserved, one at least if a request failed. A
    page of an expandable segment may end beyond the limit, as torch's may."""
    return max(1, allocator.reserved_peak_nbytes - limit) if allocator.failures else 0
