"""From timelines to times of operations: what each held the GPU, and what it took to launch."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from statistics import median
from typing import Final, NamedTuple

from .phases import PhaseTimes
from .step import OperationTimes
from .timeline import Activity, Timeline

QUEUED_NS: Final = 4_000
"""An activity that was launched this long before the one ahead of it ended was waiting for it
alone: what lies between the two is the GPU's, not the host's."""


QUEUE_LENGTH: Final = 1_000
"""With so many activities launched and not yet done the queue of launches is full, or nearly so (an
H200's takes 1,022): a launch then waits for an activity to end. Another long launch is slow by
itself."""

GAP_NS: Final = 1_168
"""What lies between two activities that follow at once, where no two did: as on an H200."""


class Attribution(NamedTuple):
    """Times of operations, and how they were come by, for the notes of a trace.

    *gap_ns* is the usual time between two activities that follow at once; *spread* that of the sums
    of several steps, as a share; *scales* what the profiled host times of each phase were
    multiplied by; *gap_scale* the same for what lies between activities; *blocked_ns* what the host
    waited in a profiled step; *same_kernels* whether the steps without marks ran the kernels of the
    one with marks.
    """

    times: OperationTimes
    gap_ns: int
    spread: float
    scales: dict[str, float]
    gap_scale: float
    blocked_ns: int
    same_kernels: bool


def owners(marked: Timeline, number_of: dict[int, int]) -> list[int]:
    """Return for each activity of a marked step the operation that launched it.

    *number_of* gives the operation by the number of its mark. What a view or an unmarked call
    launched belongs to the operation that was begun before it.
    """
    begun = [(begin, number_of[number]) for number, begin, _ in marked.marks if number in number_of]
    starts = [begin for begin, _ in begun]
    return [
        begun[max(0, bisect_right(starts, activity.launch_ns) - 1)][1] if begun else 0
        for activity in marked.activities
    ]


def attribute(
    marked: Timeline,
    plain: Sequence[Timeline],
    number_of: dict[int, int],
    phases: Sequence[str],
    unseen: PhaseTimes,
    step_ns: int,
) -> Attribution:
    """Return the times of the operations, each with its phase in *phases*.

    *marked* is a step in which each dispatch was marked; it tells which activity is whose. *plain*
    are steps without any of our modes, of which medians are taken. *unseen* are the host's times
    in steps without a profiler: the profiled ones are scaled to them, phase by phase, unless the
    host was made to wait there. *step_ns* is what such a step takes: the GPU is busy for no longer,
    so if the profiled activities are, gaps between them are shortened.
    """
    owner = owners(marked, number_of)
    names = [activity.name for activity in marked.activities]
    alike = [t for t in plain if [activity.name for activity in t.activities] == names]
    steps = alike or [marked]
    count = len(phases)
    gap_ns = _usual_gap(steps)
    held, gaps = zip(*(_device_ns(step, owner, count, gap_ns) for step in steps), strict=True)
    device = [median(column) for column in zip(*held, strict=True)]
    between = [median(column) for column in zip(*gaps, strict=True)]
    totals = [sum(each) for each in held]
    gap_scale = _gap_scale(sum(device), sum(between), step_ns)
    hosts, blocked = zip(*(_host_ns(step, owner, count) for step in steps), strict=True)
    host = [median(column) for column in zip(*hosts, strict=True)]
    kernels = Counter(owner)
    waited = {
        phase: median(sum(ns for i, ns in each.items() if phases[i] == phase) for each in blocked)
        for phase in PHASES
    }
    scales = _scales(host, waited, phases, unseen)
    return Attribution(
        OperationTimes(
            [round(d - b * (1 - gap_scale)) for d, b in zip(device, between, strict=True)],
            [round(ns * scales[phases[i]]) for i, ns in enumerate(host)],
            [kernels[i] for i in range(count)],
            waiting(marked, number_of),
        ),
        gap_ns,
        (max(totals) - min(totals)) / max(median(totals), 1),
        scales,
        gap_scale,
        round(sum(waited.values())),
        bool(alike),
    )


PHASES: Final = ("forward", "backward", "optimizer")


def _usual_gap(steps: Sequence[Timeline]) -> int:
    gaps = [
        after.start_ns - before.end_ns
        for step in steps
        for before, after in _neighbours(step)
        if _queued(before, after)
    ]
    return max(0, round(median(gaps))) if gaps else GAP_NS


def _neighbours(step: Timeline) -> list[tuple[Activity, Activity]]:
    return list(zip(step.activities, step.activities[1:], strict=False))


def _queued(before: Activity, after: Activity) -> bool:
    return after.stream == before.stream and after.launched_ns + QUEUED_NS < before.end_ns


def _gap_scale(busy_ns: float, between_ns: float, step_ns: int) -> float:
    """Return what to multiply gaps by, so that the GPU is busy for no longer than a step takes.

    A profiler makes an activity that was waiting begin later: by a microsecond or so on an H200,
    which counts where a recurrent network's kernels follow one another.
    """
    over = busy_ns - step_ns
    return 1.0 if over <= 0 or between_ns <= 0 else max(0.0, 1 - over / between_ns)


def _device_ns(
    step: Timeline, owner: list[int], count: int, gap_ns: int
) -> tuple[list[int], list[int]]:
    """Add up for each operation what its activities held the GPU, and how much of it was gaps.

    An activity holds it until the next one begins, if that was waiting for it: a gap counts, and an
    overlap counts once. Otherwise it is taken to leave the usual gap. (A gap of more than QUEUED_NS
    has another reason than the two kernels.) What runs beside another stream holds it no longer
    than that one alone.
    """
    held, gaps = [0] * count, [0] * count
    busy: dict[int, int] = {}  # by stream, until when
    order = sorted(range(len(step.activities)), key=lambda k: step.activities[k].start_ns)
    for k, following in zip_longest(order, order[1:]):
        activity = step.activities[k]
        ns = activity.ns + gap_ns
        if following is not None and _queued(activity, step.activities[following]):
            until = step.activities[following].start_ns
            ns = min(until - activity.start_ns, activity.ns + QUEUED_NS)
        others = max((end for s, end in busy.items() if s != activity.stream), default=0)
        alone = max(0, ns - max(0, others - activity.start_ns))
        held[owner[k]] += alone
        gaps[owner[k]] += min(alone, max(0, ns - activity.ns))
        busy[activity.stream] = activity.end_ns
    return held, gaps


def waiting(marked: Timeline, number_of: dict[int, int]) -> frozenset[int]:
    """Return the operations that made the host wait for the GPU, before others were launched."""
    begun = [(begin, number_of[number]) for number, begin, _ in marked.marks if number in number_of]
    if not begun or not marked.activities:
        return frozenset()
    starts = [begin for begin, _ in begun]
    last = marked.activities[-1].launch_ns
    return frozenset(
        begun[bisect_right(starts, wait.start_ns) - 1][1]
        for wait in marked.waits
        if starts[0] <= wait.start_ns < last
    )


def _host_ns(step: Timeline, owner: list[int], count: int) -> tuple[list[int], dict[int, int]]:
    """Return what the host took from one operation's last launch to the next one's, without the
    time that it was blocked, and that time by operation."""
    spent = [0] * count
    blocked: dict[int, int] = {}
    if not step.activities:
        return spent, blocked
    calls = sorted(a.launched_ns - a.launch_ns for a in step.activities)
    usual = calls[len(calls) // 10]  # when the queue of launches is full, most calls are blocked
    ends = sorted(a.end_ns for a in step.activities)
    wait_starts = [wait.start_ns for wait in step.waits]
    # A profiler takes its time in the first launch that it sees: up to half a millisecond.
    before = max(step.activities[0].launch_ns, step.activities[0].launched_ns - usual)
    for k, activity in enumerate(step.activities):
        ns = activity.launched_ns - before
        queued = k - bisect_right(ends, activity.launch_ns)
        call_ns = activity.launched_ns - activity.launch_ns
        full = max(0, call_ns - usual) if queued >= QUEUE_LENGTH else 0
        lost = full
        if full:
            blocked[owner[k]] = blocked.get(owner[k], 0) + full
        for i in range(bisect_left(wait_starts, before), len(step.waits)):
            if step.waits[i].start_ns >= activity.launch_ns:
                break
            lost += step.waits[i].ns
            waiter = owner[max(0, k - 1)]  # who had been launched when the wait began
            blocked[waiter] = blocked.get(waiter, 0) + step.waits[i].ns
        spent[owner[k]] += max(0, ns - lost)
        before = max(before, activity.launched_ns)
    return spent, blocked


def _scales(
    host: list[float], waited: dict[str, float], phases: Sequence[str], unseen: PhaseTimes
) -> dict[str, float]:
    """Return for each phase the ratio of unprofiled to profiled host time.

    A phase in which the host waited tells nothing about its speed: it gets the others' ratio.
    """
    there = dict(zip(PHASES, unseen, strict=True))
    spent = {phase: sum(ns for i, ns in enumerate(host) if phases[i] == phase) for phase in PHASES}
    free = [p for p in PHASES if spent[p] > 0 and waited[p] <= 0.02 * spent[p]]
    both = sum(spent[p] for p in free)
    usual = sum(there[p] for p in free) / both if both else 1.0
    return {p: there[p] / spent[p] if p in free else usual for p in PHASES}
