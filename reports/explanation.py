"""Why a step took another time than was simulated: stretch by stretch, cause by cause."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from msgspec import Struct

from ..traces import Trace
from .passage import Foreseen, Stretch

CAUSES: Final = ("host", "hooks", "stall", "again", "kernels")
"""The device waited for the host; it did so while the host was in the executor's hooks; it waited
for copies; it computed again; or it took so long for the operations."""

UNSTEADY: Final = "unsteady"
"""What is beside the sum of all stretches, each as it is usually."""

PHASES: Final = ("forward", "backward", "optimizer")

CLOSE_NS: Final = 30_000
"""A device that is no further behind is waiting for its host, but for the time of a launch."""

TIME_PERCENT: Final = 10
"""What a step time may be off by and be said to be as simulated."""

PEAK_PERCENT: Final = 2
"""The same of a peak."""


class Difference(Struct, frozen=True, kw_only=True):
    """One stretch of a step, simulated and measured, in ns: of all steps that were clocked, the one
    in the middle there.

    *least_ns* and *most_ns* are of all those steps. *host_ns* is what the host took to
    issue it, *hooks_ns* of that in hooks, and *behind_ns* how far the device was behind at its
    beginning, None where the host computes. *causes* add up to *difference_ns*, and *cause* is the
    largest of them.
    """

    operations: list[str]
    phase: str
    simulated_ns: int
    measured_ns: int
    difference_ns: int
    least_ns: int
    most_ns: int
    host_ns: int
    hooks_ns: int
    behind_ns: int | None
    simulated_stall_ns: int
    measured_stall_ns: int
    simulated_again_ns: int
    measured_again_ns: int
    causes: dict[str, int]
    cause: str


class PeakReading(Struct, frozen=True, kw_only=True):
    """The most bytes on the device before any operation of a watched step, as planned and as found,
    and before which operation that was. *different* of *places* had other bytes than planned, at
    *first_op* first. *blocks* are those of the device's allocator at their most, as simulated and
    as counted; None where nobody counts them."""

    planned_nbytes: int
    planned_op: str
    found_nbytes: int
    found_op: str
    places: int
    different: int
    first_op: str | None = None
    planned_blocks_nbytes: int | None = None
    found_blocks_nbytes: int | None = None

    @property
    def percent(self) -> float:
        """How far what was found is from the plan."""
        return _percent(self.found_nbytes - self.planned_nbytes, self.planned_nbytes)


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a step took another time than simulated: *differences* are its stretches in order, and
    the sums of the whole difference *by_cause* and *by_phase*.

    *times* are "measured" ones of a recording or a "roofline". *measured_ns* is the step in the
    middle of those that were clocked, *clocked_ns*. Its stretches, each as it was in the middle,
    are not quite that: what is beside them stands as "unsteady" in both sums, so that they add up.
    *peak* tells of bytes, if a step was watched.
    """

    times: str
    simulated_ns: int
    measured_ns: int
    clocked_ns: list[int]
    by_cause: dict[str, int]
    by_phase: dict[str, int]
    differences: list[Difference]
    peak: PeakReading | None = None

    @property
    def difference_ns(self) -> int:
        """How much longer the step took."""
        return self.measured_ns - self.simulated_ns

    @property
    def percent(self) -> float:
        """The same of the simulated time."""
        return _percent(self.difference_ns, self.simulated_ns)

    def largest(self, count: int) -> list[Difference]:
        """Return the largest differences, whichever way they go."""
        return sorted(self.differences, key=lambda each: -abs(each.difference_ns))[:count]


class _Simulated(NamedTuple):
    """What was simulated of a stretch."""

    work_ns: int
    again_ns: int
    stall_ns: int
    host_ns: int


def explain(
    trace: Trace,
    foreseen: Foreseen,
    steps: Sequence[Sequence[Stretch]],
    peak: PeakReading | None = None,
) -> Explanation:
    """Compare *steps* of *trace* that were clocked with what was foreseen of the same schedule.

    All are of one schedule, and there must be one at least.
    """
    wholes = [sum(stretch.ns for stretch in step) for step in steps]
    middle = sorted(range(len(steps)), key=lambda i: wholes[i])[(len(steps) - 1) // 2]
    seen: dict[tuple[int, int], list[Stretch]] = {}
    for step in steps:
        for stretch in step:
            seen.setdefault((stretch.begin, stretch.end), []).append(stretch)
    sums = [
        list(accumulate(column, initial=0))
        for column in (foreseen.work_ns, foreseen.again_ns, foreseen.stall_ns, foreseen.host_ns)
    ]
    differences = []
    for stretch in steps[middle]:
        # The end of the step is one more place.
        stop = stretch.end + (stretch is steps[middle][-1])
        simulated = _Simulated(*(column[stop] - column[stretch.begin] for column in sums))
        alike = sorted(seen[stretch.begin, stretch.end], key=lambda each: each.ns)
        phase = _phase(trace, foreseen, stretch)
        differences.append(_difference(trace, simulated, alike, phase))
    unsteady = wholes[middle] - sum(each.measured_ns for each in differences)
    return Explanation(
        times=trace.times,
        simulated_ns=sum(each.simulated_ns for each in differences),
        measured_ns=wholes[middle],
        clocked_ns=wholes,
        by_cause={cause: sum(each.causes[cause] for each in differences) for cause in CAUSES}
        | {UNSTEADY: unsteady},
        by_phase={
            phase: sum(each.difference_ns for each in differences if each.phase == phase)
            for phase in PHASES
        }
        | {UNSTEADY: unsteady},
        differences=differences,
        peak=peak,
    )


def _difference(
    trace: Trace, simulated: _Simulated, alike: Sequence[Stretch], phase: str
) -> Difference:
    """Compare the middle one of some stretches, which are in the order of their times."""
    stretch = alike[(len(alike) - 1) // 2]
    whole = sum(simulated)
    causes = _causes(trace, simulated, stretch)
    more = stretch.ns >= whole
    return Difference(
        operations=[op.name for op in trace.operations[stretch.begin : stretch.end]],
        phase=phase,
        simulated_ns=whole,
        measured_ns=stretch.ns,
        difference_ns=stretch.ns - whole,
        least_ns=alike[0].ns,
        most_ns=alike[-1].ns,
        host_ns=stretch.host_ns,
        hooks_ns=stretch.hooks_ns,
        behind_ns=stretch.behind_ns,
        simulated_stall_ns=simulated.stall_ns,
        measured_stall_ns=stretch.stall_ns,
        simulated_again_ns=simulated.again_ns,
        measured_again_ns=stretch.again_ns,
        causes=causes,
        cause=max(CAUSES, key=lambda cause: causes[cause] if more else -causes[cause]),
    )


def _causes(trace: Trace, simulated: _Simulated, stretch: Stretch) -> dict[str, int]:
    """Share out the difference of a stretch; what nothing else explains is the operations' own.

    Nobody sees a GPU's kernels without disturbing the step. So what the device took beyond the
    simulated work is laid to the host as far as the host can have kept it waiting.
    """
    stall = stretch.stall_ns - simulated.stall_ns
    again = stretch.again_ns - simulated.again_ns
    if stretch.behind_ns is None:  # the host computes, so it keeps nobody waiting
        hooks, host = min(stretch.hooks_ns, stretch.ns), 0
    else:
        beyond = stretch.ns - stretch.stall_ns - stretch.again_ns - simulated.work_ns
        waited = min(max(0, beyond), _kept_waiting_ns(trace, stretch, stretch.behind_ns))
        hooks = min(stretch.hooks_ns, max(0, waited - simulated.host_ns))
        host = waited - hooks - simulated.host_ns
    kernels = stretch.ns - sum(simulated) - host - hooks - stall - again
    return dict(zip(CAUSES, (host, hooks, stall, again, kernels), strict=True))


def _kept_waiting_ns(trace: Trace, stretch: Stretch, behind_ns: int) -> int:
    """Return how long the host can have kept the device waiting, which was so far behind when the
    stretch began: while it had done all that came before, and the host had not issued more."""
    operations = range(stretch.begin, stretch.end)
    if behind_ns > CLOSE_NS and not trace.facts.waits.isdisjoint(operations):
        return 0  # it was the host that waited, for a result
    issuing_ns = stretch.host_ns
    if behind_ns + stretch.ns - stretch.host_ns > CLOSE_NS:
        # Behind at the end as well: it had enough to do, from the first kernel on.
        issuing_ns //= max(1, sum(trace.operations[op].launches for op in operations))
    return max(0, issuing_ns - max(0, behind_ns))


def _phase(trace: Trace, foreseen: Foreseen, stretch: Stretch) -> str:
    """Return the phase of a stretch, where it has two that of the most simulated time."""
    spent = dict.fromkeys(PHASES, -1)
    for op in range(stretch.begin, stretch.end):
        phase = trace.operations[op].phase
        spent[phase] = max(0, spent[phase]) + foreseen.work_ns[op]
    if max(spent.values()) < 0:  # no operation: the end of the step, or of its last phase
        return trace.operations[min(stretch.begin, len(trace.operations)) - 1].phase
    return max(spent, key=lambda phase: spent[phase])


def _percent(difference: int, whole: int) -> float:
    return 100 * difference / whole if whole else 0.0
