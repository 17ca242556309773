"""Whose time is what: timelines of the profiler, times of operations, the host's phases.

Small timelines are worked out by hand; two are real, of one small ResNet step with Adam on an H200:
one with marks and one without.
"""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from superneurons.executor import phases as phases_module  # noqa: E402
from superneurons.executor import private  # noqa: E402
from superneurons.executor.attribution import (  # noqa: E402
    GAP_NS,
    PHASES,
    QUEUE_LENGTH,
    QUEUED_NS,
    Attribution,
    attribute,
    owners,
)
from superneurons.executor.phases import PhaseTimes, Stopwatch  # noqa: E402
from superneurons.executor.timeline import (  # noqa: E402
    Activity,
    Marks,
    Timeline,
    Wait,
    read_timeline,
)

DATA = Path(__file__).parent / "data"
LONG = 10**12  # a step that has time for all of it
FREE = PhaseTimes(0, 0, 0)


def on_gpu(start: int, ns: int, launch: int, launched: int, name: str = "k", stream: int = 7):
    return Activity(name, stream, start, ns, launch, launched)


def queued(*pieces: tuple[int, int]) -> list[Activity]:
    """Return activities, (start, ns), that were launched long before, 10 ns apart."""
    return [
        on_gpu(1_000_000 + start, ns, 20 * i, 20 * i + 10, f"k{i}")
        for i, (start, ns) in enumerate(pieces)
    ]


def marked(activities: Sequence[Activity], waits: Sequence[Wait] = ()) -> Timeline:
    """Return a step in which each activity was launched under a mark of its own."""
    marks = [(i, a.launch_ns, a.launched_ns) for i, a in enumerate(activities)]
    return Timeline(list(activities), list(waits), marks)


def plain(activities: Sequence[Activity], waits: Sequence[Wait] = ()) -> Timeline:
    return Timeline(list(activities), list(waits), [])


def of_each(step: Timeline, unseen: PhaseTimes = FREE, phases: Sequence[str] = ()) -> Attribution:
    """Attribute a step whose marks are its operations, one each."""
    count = len(step.activities)
    numbers = {i: i for i in range(count)}
    return attribute(step, [step], numbers, phases or ["forward"] * count, unseen, LONG)


# -- reading a timeline ----------------------------------------------------------------------------


def event(cat: str, name: str, ts: float, dur: float, **args: object) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def test_a_kernel_is_paired_with_the_call_that_launched_it():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("kernel", "gemm", 30.5, 2.25, stream=7, correlation=4),
                event("cuda_runtime", "cudaLaunchKernel", 10.0, 5.125, correlation=4),
            ]
        }
    )
    assert timeline.activities == [Activity("gemm", 7, 30_500, 2_250, 10_000, 15_125)]
    assert timeline.activities[0].end_ns == 32_750
    assert (timeline.waits, timeline.marks) == ([], [])


@pytest.mark.parametrize("category", ["kernel", "gpu_memcpy", "gpu_memset"])
@pytest.mark.parametrize("call", ["cuda_runtime", "cuda_driver"])
def test_kernels_copies_and_fills_are_activities_whoever_launched_them(category, call):
    timeline = read_timeline(
        {
            "traceEvents": [
                event(call, "launch", 1, 1, correlation=9),
                event(category, "work", 5, 1, stream=7, correlation=9),
            ]
        }
    )
    assert [(a.name, a.launch_ns, a.launched_ns) for a in timeline.activities] == [
        ("work", 1_000, 2_000)
    ]


def test_activities_stand_in_the_order_of_their_launches():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("kernel", "second", 30, 1, stream=7, correlation=2),
                event("kernel", "third", 20, 1, stream=8, correlation=3),
                event("kernel", "first", 40, 1, stream=9, correlation=1),
                *(
                    event("cuda_runtime", "cudaLaunchKernel", i, 0.5, correlation=i)
                    for i in (3, 1, 2)
                ),
            ]
        }
    )
    assert [a.name for a in timeline.activities] == ["first", "second", "third"]


def test_two_kernels_of_one_call_stand_in_the_order_in_which_they_ran():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("kernel", "second", 30, 1, stream=7, correlation=2),
                event("kernel", "first", 20, 1, stream=7, correlation=2),
                event("cuda_runtime", "cudaGraphLaunch", 1, 1, correlation=2),
            ]
        }
    )
    assert [a.name for a in timeline.activities] == ["first", "second"]


def test_a_kernel_without_a_call_was_launched_when_it_began():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("kernel", "a", 20, 3, stream=7),
                event("kernel", "b", 30, 3, stream=7, correlation=5),
                event("cuda_runtime", "cudaStreamIsCapturing", 1, 1),
            ]
        }
    )
    assert [(a.launch_ns, a.launched_ns) for a in timeline.activities] == [
        (20_000, 20_000),
        (30_000, 30_000),
    ]


def test_of_a_call_inside_a_call_the_outer_one_counts():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("cuda_runtime", "cudaLaunchKernelExC", 10, 8, correlation=3),
                event("cuda_driver", "cuLaunchKernelEx", 12, 2, correlation=3),
                event("kernel", "a", 30, 1, stream=7, correlation=3),
            ]
        }
    )
    assert [(a.launch_ns, a.launched_ns) for a in timeline.activities] == [(10_000, 18_000)]


def test_calls_in_which_the_host_waited_are_waits():
    names = [
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaEventSynchronize",
        "cuStreamSynchronize",
        "cudaMemcpy",
        "cudaMemcpyAsync",
        "cudaLaunchKernel",
        "cudaMalloc",
    ]
    timeline = read_timeline(
        {
            "traceEvents": [
                event("cuda_runtime", name, 100 - i, 2.5, correlation=i)
                for i, name in enumerate(names)
            ]
        }
    )
    assert timeline.waits == [Wait(96_000 + 1_000 * i, 2_500) for i in range(5)]


def test_marks_are_read_by_number_and_nothing_else_is_one():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("user_annotation", "superneurons:10", 30, 2),
                event("user_annotation", "superneurons:2", 10, 4.5),
                event("gpu_user_annotation", "superneurons:2", 50, 4.5),
                event("user_annotation", "Optimizer.step#Adam.step", 1, 90),
                event("cpu_op", "aten::mm", 1, 90),
                {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
            ]
        }
    )
    assert timeline == Timeline([], [], [(2, 10_000, 14_500), (10, 30_000, 32_000)])


def test_times_of_long_ago_are_read_to_the_nanosecond():
    timeline = read_timeline(
        {
            "traceEvents": [
                event("kernel", "a", 4594926265692.455, 0.832, stream=7, correlation=1),
                event("cuda_runtime", "cudaLaunchKernel", 4594926265660.067, 34.117, correlation=1),
            ]
        }
    )
    assert timeline.activities == [
        Activity("a", 7, 4594926265692455, 832, 4594926265660067, 4594926265694184)
    ]


def test_marks_number_what_is_dispatched_from_nought(monkeypatch):
    names = []

    class Named:
        def __init__(self, name):
            names.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("superneurons.executor.timeline.record_function", Named)
    x = torch.ones(4)
    marks = Marks()
    with private.observed(marks.observe):
        assert (x.view(2, 2) * 2).sum().item() == 8
    assert names == [f"superneurons:{i}" for i in range(4)]  # view, mul, sum, item
    assert marks.count == 4


# -- whose activity --------------------------------------------------------------------------------


def test_what_is_launched_under_a_mark_is_its_operations():
    step = Timeline(
        [on_gpu(100, 1, launch, launch + 1) for launch in (10, 15, 20, 25, 40)],
        [],
        [(0, 10, 19), (1, 20, 30), (2, 40, 50)],
    )
    assert owners(step, {0: 0, 1: 1, 2: 2}) == [0, 0, 1, 1, 2]
    assert owners(step, {0: 5, 1: 3, 2: 4}) == [5, 5, 3, 3, 4]


def test_a_mark_holds_from_its_first_to_its_last_nanosecond():
    step = Timeline(
        [on_gpu(100, 1, launch, launch) for launch in (10, 19, 20, 30)],
        [],
        [(0, 10, 19), (1, 20, 30)],
    )
    assert owners(step, {0: 0, 1: 1}) == [0, 0, 1, 1]


def test_what_a_view_launches_is_the_operation_befores():
    # Mark 1 is of a view: it is no operation.
    step = Timeline(
        [on_gpu(100, 1, launch, launch + 1) for launch in (10, 22, 42)],
        [],
        [(0, 10, 19), (1, 20, 30), (2, 40, 50)],
    )
    assert owners(step, {0: 0, 2: 1}) == [0, 0, 1]


def test_what_is_launched_between_marks_is_the_operation_befores():
    step = Timeline(
        [on_gpu(100, 1, launch, launch + 1) for launch in (10, 35, 42, 60)],
        [],
        [(0, 10, 19), (1, 20, 30), (2, 40, 50)],
    )
    assert owners(step, {0: 0, 1: 1, 2: 2}) == [0, 1, 2, 2]


@pytest.mark.parametrize("launch", [22, 35], ids=["by-a-view", "by-nobody"])
def test_the_operation_before_is_so_even_if_it_launched_nothing_itself(launch):
    # Operation 1 (mark 1) runs on the host alone; mark 2 is of a view.
    step = Timeline(
        [on_gpu(100, 1, 10, 11), on_gpu(200, 1, launch, launch + 1)],
        [],
        [(0, 10, 12), (1, 15, 18), (2, 20, 30)],
    )
    assert owners(step, {0: 0, 1: 1}) == [0, 1]


def test_what_is_launched_before_any_operation_is_the_firsts():
    step = Timeline([on_gpu(100, 1, 5, 6), on_gpu(200, 1, 12, 13)], [], [(0, 10, 19)])
    assert owners(step, {0: 0}) == [0, 0]


def test_no_activity_has_no_owner():
    assert owners(Timeline([], [], [(0, 1, 2)]), {0: 0}) == []
    assert owners(Timeline([on_gpu(1, 1, 1, 1)], [], []), {}) == [0]


# -- device times ----------------------------------------------------------------------------------


def test_kernels_that_follow_at_once_hold_the_gpu_until_the_next_one():
    found = of_each(marked(queued((0, 10_000), (11_000, 20_000), (32_000, 30_000))))
    assert found.gap_ns == 1_000
    assert found.times.device_ns == [11_000, 21_000, 31_000]  # the last leaves the usual gap


def test_the_usual_gap_is_the_median_of_gaps_between_queued_kernels():
    pieces = [(0, 10_000), (10_500, 10_000), (21_500, 10_000), (40_000, 10_000)]
    found = of_each(marked(queued(*pieces)))
    assert found.gap_ns == 1_000  # of 500, 1000 and 8500
    # A gap that is far longer than a launch takes is not all the kernel's.
    assert found.times.device_ns == [10_500, 11_000, 10_000 + QUEUED_NS, 11_000]


def test_kernels_that_overlap_are_counted_once():
    # A kernel may begin before the last blocks of the one ahead have ended.
    found = of_each(marked(queued((0, 10_000), (9_000, 10_000), (18_000, 10_000))))
    assert found.gap_ns == 0
    assert found.times.device_ns == [9_000, 9_000, 10_000]


def test_a_gap_before_a_kernel_that_was_launched_late_is_the_hosts():
    step = marked(
        [
            on_gpu(1_000, 10_000, 0, 100, "a"),
            on_gpu(500_000, 10_000, 499_000, 499_100, "b"),
            on_gpu(900_000, 10_000, 899_000, 899_100, "c"),
        ]
    )
    found = of_each(step)
    assert found.gap_ns == GAP_NS  # none was seen
    assert found.times.device_ns == [10_000 + GAP_NS] * 3


@pytest.mark.parametrize(("early", "held"), [(QUEUED_NS, 10_000 + GAP_NS), (QUEUED_NS + 1, 12_000)])
def test_only_what_was_launched_some_time_before_was_waiting_for_the_gpu_alone(early, held):
    first = on_gpu(100_000, 10_000, 0, 100, "a")
    second = on_gpu(112_000, 5_000, 50_000, first.end_ns - early, "b")
    found = of_each(marked([first, second]))
    assert found.times.device_ns[0] == held


def test_kernels_of_different_streams_do_not_wait_for_each_other():
    first, second = queued((0, 10_000), (30_000, 10_000))
    found = of_each(marked([first, second._replace(stream=8)]))
    assert found.gap_ns == GAP_NS
    assert found.times.device_ns == [10_000 + GAP_NS] * 2


def test_what_runs_beside_another_stream_holds_the_gpu_no_longer_than_that_alone():
    first, second = queued((0, 10_000), (4_000, 10_000))
    found = of_each(marked([first, second._replace(stream=8)]))
    assert found.times.device_ns == [10_000 + GAP_NS, 4_000 + GAP_NS]


def test_an_operation_has_the_time_of_all_its_kernels_and_none_if_it_has_none():
    activities = queued((0, 10_000), (11_000, 20_000), (32_000, 30_000))
    step = Timeline(activities, [], [(0, 0, 30), (1, 35, 36), (2, 40, 50)])
    found = attribute(step, [step], {0: 0, 1: 1, 2: 2}, ["forward"] * 3, FREE, LONG)
    assert found.times.device_ns == [32_000, 0, 31_000]


@pytest.mark.parametrize(
    ("step_ns", "device_ns", "scale"),
    [
        (63_000, [11_000, 21_000, 31_000], 1.0),  # busy for as long as a step takes
        (61_500, [10_500, 20_500, 30_500], 0.5),  # half of the 3 us in between is the profiler's
        (60_000, [10_000, 20_000, 30_000], 0.0),
        (50_000, [10_000, 20_000, 30_000], 0.0),  # what kernels take is not touched
    ],
)
def test_gaps_give_way_where_the_gpu_would_be_busy_for_longer_than_a_step(
    step_ns, device_ns, scale
):
    step = marked(queued((0, 10_000), (11_000, 20_000), (32_000, 30_000)))
    found = attribute(step, [step], {0: 0, 1: 1, 2: 2}, ["forward"] * 3, FREE, step_ns)
    assert found.gap_ns == 1_000
    assert found.times.device_ns == device_ns
    assert found.gap_scale == pytest.approx(scale)


def test_of_several_steps_each_operation_has_its_median():
    pieces = [(0, 10_000), (11_000, 20_000)]
    steps = [
        plain(queued((0, a), (a + 1_000, b)))
        for a, b in ((10_000, 90_000), (12_000, 20_000), (50_000, 30_000))
    ]
    found = attribute(marked(queued(*pieces)), steps, {0: 0, 1: 1}, ["forward"] * 2, FREE, LONG)
    assert found.times.device_ns == [13_000, 31_000]
    assert found.same_kernels


def test_the_spread_is_that_of_the_sums():
    # Sums 40, 50 and 60 microseconds and a gap each: 20 of a median of 50.
    steps = [plain(queued((0, ns))) for ns in (40_000, 50_000, 60_000)]
    found = attribute(marked(queued((0, 1))), steps, {0: 0}, ["forward"], FREE, LONG)
    assert found.spread == pytest.approx(20_000 / (50_000 + GAP_NS))
    assert of_each(marked(queued((0, 5)))).spread == 0.0


def test_steps_whose_kernels_differ_are_left_out():
    same = queued((0, 10_000), (11_000, 20_000))
    other = [same[0]._replace(name="another", ns=77_000), same[1]]
    steps = [plain(other), plain(same), plain(same[:1])]
    found = attribute(marked(same), steps, {0: 0, 1: 1}, ["forward"] * 2, FREE, LONG)
    assert found.same_kernels
    assert found.times.device_ns == [11_000, 21_000]


@pytest.mark.parametrize("steps", [[], ["other"]])
def test_the_marked_step_has_to_do_if_no_other_has_its_kernels(steps):
    same = queued((0, 10_000), (11_000, 20_000))
    others = [plain([same[0]._replace(name=name)]) for name in steps]
    found = attribute(marked(same), others, {0: 0, 1: 1}, ["forward"] * 2, FREE, LONG)
    assert not found.same_kernels
    assert found.times.device_ns == [11_000, 21_000]


def test_a_step_without_kernels_takes_no_time():
    found = attribute(plain([]), [plain([])], {0: 0}, ["forward"], PhaseTimes(5, 6, 7), LONG)
    assert found.times.device_ns == [0]
    assert found.times.host_ns == [0]
    assert (found.gap_ns, found.spread, found.blocked_ns) == (GAP_NS, 0.0, 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(0, 3_000))
def test_kernels_back_to_back_are_divided_without_rest(lengths, gap):
    # Each is so long that all the others are launched before it ends.
    start, pieces = 0, []
    for ns in lengths:
        pieces.append((start, ns + QUEUED_NS))
        start += ns + QUEUED_NS + gap
    found = of_each(marked(queued(*pieces)))
    usual = gap if len(lengths) > 1 else GAP_NS
    assert found.gap_ns == usual
    assert found.times.device_ns == [ns + QUEUED_NS + usual for ns in lengths]
    assert sum(found.times.device_ns) == pieces[-1][0] + pieces[-1][1] + usual


@st.composite
def random_steps(draw) -> Timeline:
    """Return a step on one stream, in order: kernels that overlap, follow or come late."""
    activities, launch, end, start = [], 0, 0, 0
    for i in range(draw(st.integers(1, 25))):
        launch += draw(st.integers(0, 20_000))
        took = draw(st.integers(1, 3_000))
        begins = max(launch + took, start, end - draw(st.integers(0, 50)))
        begins += draw(st.integers(0, 5_000))
        ends = max(end, begins + draw(st.integers(1, 40_000)))
        activities.append(on_gpu(begins, ends - begins, launch, launch + took, f"k{i}"))
        launch, start, end = launch + took, begins, ends
    return marked(activities)


@settings(deadline=None)
@given(random_steps(), st.randoms())
def test_device_time_is_conserved_whoever_owns_it(step, rng):
    count = len(step.activities)
    found = of_each(step)
    total = sum(found.times.device_ns)
    kernels = sum(a.ns for a in step.activities)
    busy, until = 0, 0
    for a in step.activities:
        busy += a.end_ns - max(a.start_ns, until)
        until = a.end_ns
    most = max(QUEUED_NS, found.gap_ns)
    assert busy <= total <= kernels + count * most
    assert all(
        ns <= a.ns + most for ns, a in zip(found.times.device_ns, step.activities, strict=True)
    )
    others = {i: rng.randrange(4) for i in range(count)}
    shared = attribute(step, [step], others, ["forward"] * 4, FREE, LONG)
    assert sum(shared.times.device_ns) == total
    for op in range(4):
        own = sum(ns for i, ns in enumerate(found.times.device_ns) if others[i] == op)
        assert shared.times.device_ns[op] == own


@settings(deadline=None)
@given(random_steps(), st.integers(0, 2**52))
def test_when_a_step_was_profiled_does_not_matter(step, ns):
    later = Timeline(
        [
            a._replace(
                start_ns=a.start_ns + ns, launch_ns=a.launch_ns + ns, launched_ns=a.launched_ns + ns
            )
            for a in step.activities
        ],
        [],
        [(n, begin + ns, end + ns) for n, begin, end in step.marks],
    )
    assert of_each(later) == of_each(step)


# -- host times ------------------------------------------------------------------------------------


def calls(*launches: tuple[int, int], waits: Sequence[Wait] = ()) -> Timeline:
    """Return a step of launches, (begin, end), of kernels that are in nobody's way."""
    return marked(
        [
            on_gpu(10**7 + 10**6 * i, 1_000, begin, end, f"k{i}")
            for i, (begin, end) in enumerate(launches)
        ],
        waits,
    )


def spent(step: Timeline, expected: list[int]) -> list[int]:
    """Return the host's times as profiled: scaled to the sum that is expected, so not at all."""
    found = of_each(step, PhaseTimes(sum(expected), 0, 0))
    assert found.scales["forward"] == 1.0
    return found.times.host_ns


def test_the_host_takes_from_one_launch_to_the_next_for_an_operation():
    expected = [10, 30, 55]
    assert spent(calls((100, 110), (130, 140), (170, 195)), expected) == expected


def test_an_operation_of_several_kernels_takes_the_host_time_of_all_and_one_of_none_nothing():
    step = calls((100, 110), (130, 140), (170, 195))
    numbers = {0: 0, 1: 2, 2: 2}
    found = attribute(step, [step], numbers, ["forward"] * 3, PhaseTimes(95, 0, 0), LONG)
    assert found.times.host_ns == [10, 0, 85]


def test_what_the_host_waited_between_two_launches_is_left_out():
    step = calls((100, 110), (130, 140), (170, 195), waits=[Wait(145, 20)])
    assert spent(step, [10, 30, 35]) == [10, 30, 35]
    assert of_each(step).blocked_ns == 20


def test_a_wait_that_begins_where_a_launch_ended_is_left_out_too():
    step = calls((100, 110), (130, 140), (170, 195), waits=[Wait(140, 20)])
    assert of_each(step).blocked_ns == 20
    assert spent(step, [10, 30, 35]) == [10, 30, 35]


def test_all_waits_between_two_launches_count_and_those_outside_of_all_do_not():
    waits = [Wait(50, 5), Wait(112, 3), Wait(120, 4), Wait(145, 20), Wait(300, 1_000)]
    step = calls((100, 110), (130, 140), (170, 195), waits=waits)
    assert spent(step, [10, 23, 35]) == [10, 23, 35]
    assert of_each(step).blocked_ns == 27


def behind(count: int, last: tuple[int, int], following: tuple[int, int]) -> Timeline:
    """Launches of 10 ns, each of a kernel that starts much later; after *count* of them two more,
    of which the first is given its time."""
    launches = [(100 * i, 100 * i + 10) for i in range(count)]
    late = 10**9
    return marked([on_gpu(late + b, 5, b, e) for b, e in (*launches, last, following)])


def test_a_launch_into_a_full_queue_waited_for_room_in_it():
    step = behind(QUEUE_LENGTH, (100_000, 120_010), (120_100, 120_110))  # 20 us: 10 ns are usual
    found = of_each(step)
    assert found.blocked_ns == 20_000
    assert spent(step, [*[10], *[100] * (QUEUE_LENGTH + 1)]) == [10, *[100] * (QUEUE_LENGTH + 1)]


def test_a_long_launch_into_a_queue_with_room_is_slow_by_itself():
    step = behind(QUEUE_LENGTH - 2, (99_800, 119_810), (119_910, 119_920))
    assert of_each(step).blocked_ns == 0


def test_a_full_queue_is_known_though_most_launches_wait():
    late = 10**12
    launches = [(100_000 * i, 100_000 * i + (5_000 if i < 600 else 60_000)) for i in range(3_000)]
    step = marked([on_gpu(late + b, 5, b, e) for b, e in launches])
    assert of_each(step).blocked_ns == (3_000 - QUEUE_LENGTH) * 55_000


def test_what_a_profiler_does_in_the_first_launch_is_not_the_hosts():
    step = calls((0, 500_010), (500_020, 500_030), (500_040, 500_050))
    assert spent(step, [10, 20, 20]) == [10, 20, 20]
    assert of_each(step).blocked_ns == 0


def test_what_the_host_waits_for_is_booked_on_what_it_waits_for():
    # Forward ends with a wait for its last kernel; backward launches at once after it.
    step = calls((0, 10), (20, 30), (1_000, 1_010), (1_020, 1_030), waits=[Wait(40, 950)])
    phases = ["forward", "forward", "backward", "backward"]
    found = attribute(step, [step], {i: i for i in range(4)}, phases, PhaseTimes(990, 40, 0), LONG)
    assert found.scales["backward"] == pytest.approx(40 / 50)
    assert found.scales["forward"] == found.scales["backward"]
    assert found.times.waits == {1}


def test_a_launch_that_is_somewhat_slow_is_taken_as_work():
    step = calls(*[(100 * i, 100 * i + 10) for i in range(5)], (500, 700), (800, 810))
    expected = [10, 100, 100, 100, 100, 290, 110]
    assert spent(step, expected) == expected
    assert of_each(step).blocked_ns == 0


def test_host_times_never_fall_below_nothing():
    step = calls((100, 110), (130, 140), (170, 195), waits=[Wait(145, 900)])
    assert of_each(step).times.host_ns == [10, 30, 0]


THREE = ("forward", "backward", "optimizer")


def test_each_phase_is_scaled_to_what_it_took_without_a_profiler():
    step = calls((100, 140), (160, 200), (200, 240))  # 40, 60 and 40
    found = of_each(step, PhaseTimes(20, 90, 40), THREE)
    assert found.scales == {"forward": 0.5, "backward": 1.5, "optimizer": 1.0}
    assert found.times.host_ns == [20, 90, 40]


def test_a_phase_in_which_the_host_waited_gets_the_others_scale():
    # 10 of forward's 50 were waiting.
    step = calls((100, 110), (140, 150), (170, 210), (210, 230), waits=[Wait(120, 10)])
    found = of_each(step, PhaseTimes(1_000, 90, 20), ("forward", *THREE))
    assert found.scales == {"forward": 110 / 80, "backward": 1.5, "optimizer": 1.0}
    assert found.times.host_ns == [14, 41, 90, 20]
    assert found.blocked_ns == 10


@pytest.mark.parametrize(("waited", "scale"), [(20, 2.0), (21, 1.0)])
def test_a_phase_may_have_waited_a_fiftieth(waited, scale):
    step = calls((100, 110), (1_090 + waited, 1_100 + waited), waits=[Wait(700, waited)])
    found = of_each(step, PhaseTimes(2_000, 0, 0))
    assert found.scales["forward"] == scale
    assert found.blocked_ns == waited


def test_if_the_host_waited_in_all_phases_the_profiled_times_stand():
    step = calls((100, 110), (140, 150), waits=[Wait(120, 10)])
    found = of_each(step, PhaseTimes(1_000, 0, 0))
    assert set(found.scales.values()) == {1.0}
    assert found.times.host_ns == [10, 30]


def test_a_phase_without_kernels_says_nothing():
    found = of_each(calls((100, 140), (160, 200)), PhaseTimes(200, 777, 888))
    assert found.scales == {"forward": 2.0, "backward": 2.0, "optimizer": 2.0}


def test_of_several_steps_each_operation_has_the_median_of_its_host_times():
    steps = [calls((100, 110), (130, 130 + last)) for last in (20, 40, 90)]  # 10 and 40, 60 or 110
    found = attribute(steps[0], steps, {0: 0, 1: 1}, ["forward"] * 2, PhaseTimes(70, 0, 0), LONG)
    assert found.times.host_ns == [10, 60]


@settings(deadline=None)
@given(random_steps(), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_scaled_phase_adds_up_to_what_it_took(step, forward, backward, optimizer):
    count = len(step.activities)
    phases = [PHASES[min(2, 3 * i // count)] for i in range(count)]
    unseen = dict(zip(PHASES, (forward, backward, optimizer), strict=True))
    found = of_each(step, PhaseTimes(forward, backward, optimizer), phases)
    for phase in PHASES:
        mine = [ns for ns, each in zip(found.times.host_ns, phases, strict=True) if each == phase]
        if mine and found.blocked_ns == 0:
            assert sum(mine) == pytest.approx(unseen[phase], abs=len(mine))


# -- a real step -----------------------------------------------------------------------------------


def raw(name: str) -> list[dict]:
    path = DATA / f"profile-h200-{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


@pytest.fixture(scope="module")
def real_marked() -> Timeline:
    return read_timeline({"traceEvents": raw("marked")})


@pytest.fixture(scope="module")
def real_plain() -> Timeline:
    return read_timeline({"traceEvents": raw("plain")})


MARKS = 355


def test_both_real_steps_ran_the_same_kernels_in_the_same_order(real_marked, real_plain):
    names = [a.name for a in real_plain.activities]
    assert len(names) == 384
    assert [a.name for a in real_marked.activities] == names
    assert {a.stream for a in real_marked.activities + real_plain.activities} == {7}


@pytest.mark.parametrize("name", ["plain", "marked"])
def test_a_real_timeline_has_every_activity_call_and_mark_of_its_file(name):
    events = raw(name)
    timeline = read_timeline({"traceEvents": events})
    there = Counter(event["cat"] for event in events)
    assert len(timeline.activities) == there["kernel"] + there["gpu_memset"]
    assert len(timeline.marks) == (MARKS if name == "marked" else 0)
    assert [number for number, _, _ in timeline.marks] == list(range(len(timeline.marks)))
    assert len(timeline.waits) == sum("Synchronize" in event["name"] for event in events) == 2
    nanoseconds = sum(
        round(1000 * event["dur"]) for event in events if event["cat"] in ("kernel", "gpu_memset")
    )
    assert sum(a.ns for a in timeline.activities) == nanoseconds


def test_a_real_kernel_is_launched_before_it_begins(real_marked, real_plain):
    for a in real_marked.activities + real_plain.activities:
        assert a.launch_ns < a.launched_ns
        assert a.launch_ns < a.start_ns
        assert a.ns > 0


def test_real_kernels_run_in_the_order_of_their_launches(real_marked, real_plain):
    for step in (real_marked, real_plain):
        starts = [a.start_ns for a in step.activities]
        assert starts == sorted(starts)


def test_each_real_kernel_belongs_to_the_mark_around_its_launch(real_marked):
    found = owners(real_marked, {i: i for i in range(MARKS)})
    assert len(found) == 384
    for owner, a in zip(found, real_marked.activities, strict=True):
        (around,) = (n for n, begin, end in real_marked.marks if begin <= a.launch_ns <= end)
        assert owner == around
    assert found == sorted(found)


def real(marked_step: Timeline, steps: Sequence[Timeline], unseen: PhaseTimes = FREE):
    phases = ["forward"] * 120 + ["backward"] * 180 + ["optimizer"] * 55
    return attribute(marked_step, steps, {i: i for i in range(MARKS)}, phases, unseen, LONG)


def test_a_real_steps_device_time_is_that_of_its_kernels_and_their_gaps(real_marked, real_plain):
    found = real(real_marked, [real_plain])
    total = sum(found.times.device_ns)
    kernels = sum(a.ns for a in real_plain.activities)
    assert found.same_kernels
    assert 500 < found.gap_ns < 2_000  # a microsecond or so between two kernels
    assert 0.98 * kernels < total < kernels + 384 * found.gap_ns
    first, last = real_plain.activities[0], real_plain.activities[-1]
    assert total < last.end_ns - first.start_ns + found.gap_ns  # the GPU was idle at times


def test_a_real_operation_has_the_time_of_its_own_kernels(real_marked, real_plain):
    found = real(real_marked, [real_plain])
    own = [0] * MARKS
    count = [0] * MARKS
    owner = owners(real_marked, {i: i for i in range(MARKS)})
    for op, a in zip(owner, real_plain.activities, strict=True):
        own[op] += a.ns
        count[op] += 1
    for ns, mine, kernels in zip(found.times.device_ns, own, count, strict=True):
        assert ns <= mine + 2 * kernels * found.gap_ns
        assert (ns == 0) == (kernels == 0)


def test_the_marks_of_a_real_step_change_little_of_its_device_time(real_marked, real_plain):
    with_marks = sum(real(real_marked, [real_marked]).times.device_ns)
    without = sum(real(real_marked, [real_plain]).times.device_ns)
    assert with_marks == pytest.approx(without, rel=0.03)


def test_if_a_kernel_is_missing_from_a_real_step_the_marked_one_is_taken(real_marked, real_plain):
    short = real_plain._replace(activities=real_plain.activities[:-1])
    found = real(real_marked, [short])
    assert not found.same_kernels
    assert found.times == real(real_marked, [real_marked]).times


def test_equal_real_steps_have_no_spread(real_marked, real_plain):
    once = real(real_marked, [real_plain])
    thrice = real(real_marked, [real_plain] * 3)
    assert thrice == once
    assert once.spread == 0.0
    assert real(real_marked, [real_plain, real_marked]).spread > 0


def test_a_real_host_time_adds_up_to_the_time_between_first_and_last_launch(
    real_marked, real_plain
):
    found = real(real_marked, [real_plain])
    assert set(found.scales.values()) == {0.0}
    first, last = real_plain.activities[0], real_plain.activities[-1]
    calls = sorted(a.launched_ns - a.launch_ns for a in real_plain.activities)
    begin = first.launched_ns - calls[len(calls) // 10]  # the profiler's own part is left out
    host = last.launched_ns - begin - found.blocked_ns
    assert found.blocked_ns < 0.02 * host  # a launch now and then is slow
    unseen = PhaseTimes(5_000_000, 6_000_000, 1_000_000)
    scaled = real(real_marked, [real_plain], unseen)
    assert sum(scaled.times.host_ns) == pytest.approx(sum(unseen), abs=MARKS)
    profiled = sum(ns / scaled.scales[p] for ns, p in zip(unseen, PHASES, strict=True))
    assert profiled == pytest.approx(host, abs=1)


# -- the host's phases -----------------------------------------------------------------------------


class Clock:
    """Stands in for the module time: its time goes by only where a test says so."""

    def __init__(self) -> None:
        self.ns = 1_000

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases_module, "time", clock)
    return clock


class Slow(torch.autograd.Function):
    """Backward takes its time, and does *inside* meanwhile."""

    @staticmethod
    def forward(ctx, x, clock, ns, inside=None):
        ctx.clock, ctx.ns, ctx.inside = clock, ns, inside
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.ns += ctx.ns
        if ctx.inside is not None:
            with torch.enable_grad():
                ctx.inside()
        return gradient * 2, None, None, None


def loss(clock: Clock, ns: int, inside=None):
    return Slow.apply(torch.ones(4, requires_grad=True), clock, ns, inside).sum()


def test_a_step_is_forward_then_backward_then_optimizer(clock):
    watch = Stopwatch()
    with watch.watch():
        assert watch.start() == 1_000
        clock.ns += 30
        loss(clock, 500).backward()
        clock.ns += 7
        assert watch.stop() == PhaseTimes(30, 500, 7)


def test_accumulated_gradients_are_several_passes_with_forward_between(clock):
    watch = Stopwatch()
    with watch.watch():
        watch.start()
        for ns in (500, 600, 700):
            clock.ns += 30
            loss(clock, ns).backward()
        clock.ns += 7
        assert watch.stop() == PhaseTimes(90, 1_800, 7)


def test_a_step_without_a_backward_pass_is_all_forward(clock):
    watch = Stopwatch()
    with watch.watch():
        watch.start()
        clock.ns += 30
        assert watch.stop() == PhaseTimes(30, 0, 0)


def test_gradients_that_are_asked_for_by_grad_are_a_pass_too(clock):
    watch = Stopwatch()
    x = torch.ones(4, requires_grad=True)
    with watch.watch():
        watch.start()
        y = Slow.apply(x, clock, 500).sum()
        clock.ns += 30
        (gradient,) = torch.autograd.grad(y, x)
        clock.ns += 9
        torch.autograd.backward(loss(clock, 40))
        clock.ns += 7
        assert watch.stop() == PhaseTimes(39, 540, 7)
    assert gradient.tolist() == [2.0] * 4


def test_a_second_step_begins_anew(clock):
    watch = Stopwatch()
    for ns in (500, 40):
        with watch.watch():
            clock.ns += 1_000
            watch.start()
            clock.ns += 30
            loss(clock, ns).backward()
            assert watch.stop() == PhaseTimes(30, ns, 0)


def test_a_pass_inside_a_pass_is_counted_once(clock):
    # As a checkpoint does that runs its part again by itself.
    watch = Stopwatch()
    with watch.watch():
        watch.start()
        clock.ns += 30
        loss(clock, 500, inside=lambda: loss(clock, 200).backward()).backward()
        clock.ns += 7
        assert watch.stop() == PhaseTimes(30, 700, 7)


def test_a_pass_that_fails_is_a_pass_all_the_same(clock):
    watch = Stopwatch()

    def fail():
        raise RuntimeError("on purpose")

    with watch.watch():
        watch.start()
        clock.ns += 30
        with pytest.raises(RuntimeError, match="on purpose"):
            loss(clock, 500, inside=fail).backward()
        clock.ns += 7
        assert watch.stop() == PhaseTimes(30, 500, 7)


PLAIN = (torch.autograd.backward, torch.autograd.grad)


def now_there():
    return (torch.autograd.backward, torch.autograd.grad)


def test_torch_is_put_back_as_it_was():
    with Stopwatch().watch():
        assert not set(now_there()) & set(PLAIN)
    assert now_there() == PLAIN


def test_torch_is_put_back_if_the_step_fails():
    with pytest.raises(ZeroDivisionError), Stopwatch().watch():
        raise ZeroDivisionError
    assert now_there() == PLAIN


def test_torch_is_put_back_if_a_backward_pass_fails(clock):
    def fail():
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), Stopwatch().watch():
        loss(clock, 1, inside=fail).backward()
    assert now_there() == PLAIN


def test_what_somebody_else_had_put_there_is_put_back(monkeypatch):
    called = []

    def theirs(*args, **kwargs):
        called.append(1)
        return PLAIN[0](*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", theirs)
    with Stopwatch().watch():
        torch.ones(1, requires_grad=True).sum().backward()
    assert torch.autograd.backward is theirs
    assert called == [1]


def test_a_stopwatch_goes_on_if_the_users_pass_is_told_to_keep_its_graph(clock):
    x = torch.ones(4, requires_grad=True)
    watch = Stopwatch()
    with watch.watch():
        watch.start()
        y = Slow.apply(x, clock, 50).sum()
        y.backward(torch.tensor(2.0), retain_graph=True)
        y.backward(inputs=[x])
        assert watch.stop() == PhaseTimes(0, 100, 0)
    assert x.grad.tolist() == [6.0] * 4


def test_the_real_clock_only_goes_forward():
    watch = Stopwatch()
    with watch.watch():
        begin = watch.start()
        torch.ones(4, requires_grad=True).sum().backward()
        spent = watch.stop()
    assert all(ns >= 0 for ns in spent)
    assert sum(spent) <= watch.now() - begin
