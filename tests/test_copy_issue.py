"""What the host takes to issue a copy or a fetch: it keeps what comes after from being launched."""

from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from byhand import by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from superneurons.machines import Machine, find_machine, machine_names
from superneurons.policies import Decision, decide, find_policy
from superneurons.policies.forecast import Forecast
from superneurons.schedules import (
    Copy,
    Discard,
    Fetch,
    Free,
    Instruction,
    Rerun,
    Run,
    Schedule,
    Timing,
)
from superneurons.sim import Recorder, play, simulate_schedule
from superneurons.traces import Operation, Storage, Trace, find_trace, random_trace

# -- by hand ---------------------------------------------------------------------------------------

# 10 MB/s is 100 ns a byte.
HAND = "h200:host_latency=0ns,device_to_host=10MB/s,host_to_device=10MB/s,copy_issue_time={}ns"


def operation(name: str, ns: int, **fields: object) -> Operation:
    values = {"kind": "conv", "phase": "forward", "host_ns": 10} | fields
    return Operation(name=name, device_ns=ns, **values)


STEP = Trace(
    name="by hand",
    places="everywhere",
    times="measured",
    storages=(
        Storage(name="x", kind="activation", nbytes=8),
        Storage(name="y", kind="activation", nbytes=4),
        Storage(name="z", kind="activation", nbytes=1),
        Storage(name="grad", kind="activation-gradient", nbytes=1),
    ),
    operations=(
        operation("f", 100, writes=("x",)),
        operation("g", 100, writes=("y",)),
        operation("h", 100, writes=("z",)),
        operation("b", 100, phase="backward", reads=("x", "y"), writes=("grad",)),
    ),
)
X, Y, Z, GRAD = range(4)
THERE_AND_BACK = (
    Run(0),
    Copy(X),
    Free(X),
    Run(1),
    Run(2),
    Fetch(X),
    Run(3),
    Discard(X),
    Free(X),
    Free(Y),
    Free(Z),
    Free(GRAD),
)


def played(
    *instructions: Instruction, issue_ns: int, trace: Trace = STEP
) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the time of a step by hand, and its spans by lane and name."""
    machine = find_machine(HAND.format(issue_ns))
    schedule = by_hand(trace, instructions, machine)
    recorder = Recorder(trace)
    report = simulate_schedule(trace, schedule, machine, recorder)
    spans = recorder.timeline(schedule).spans
    return report.step_time_ns, {f"{s.lane} {s.name}": (s.start_ns, s.end_ns) for s in spans}


def test_a_copy_starts_when_it_is_issued_and_the_next_launch_comes_after_it():
    step_ns, spans = played(*THERE_AND_BACK, issue_ns=3_000)
    assert spans == {
        "launch f": (0, 10),
        "compute f": (10, 110),
        "launch copy x": (10, 3_010),
        "copy out to host x": (3_010, 3_810),
        "compute wait for copy of x": (110, 3_810),  # Free(x) is a fence
        "launch g": (3_010, 3_020),
        "compute g": (3_810, 3_910),
        "launch h": (3_020, 3_030),
        "compute h": (3_910, 4_010),
        "launch fetch x": (3_030, 6_030),
        "copy in from host x": (6_030, 6_830),
        "launch b": (6_030, 6_040),
        "compute wait for fetch of x": (6_040, 6_830),
        "compute b": (6_830, 6_930),
    }
    assert step_ns == 6_930


def test_a_copy_still_waits_for_the_compute_lane():
    # f ends at 110; the host has issued the copy at 50 and launched g at 60.
    _, spans = played(*THERE_AND_BACK, issue_ns=40)
    assert spans["launch copy x"] == (10, 50)
    assert spans["copy out to host x"] == (110, 910)
    assert spans["launch g"] == (50, 60)


def test_nothing_is_issued_where_that_takes_no_time():
    _, spans = played(*THERE_AND_BACK, issue_ns=0)
    assert [name for name in spans if name.startswith("launch")] == [
        f"launch {name}" for name in "fghb"
    ]


def test_each_of_several_small_copies_is_issued_by_itself():
    _, spans = played(
        Run(0),
        Run(1),
        Copy(X),
        Copy(Y),
        Run(2),
        Run(3),
        *(Discard(s) for s in (X, Y)),
        *(Free(s) for s in (X, Y, Z, GRAD)),
        issue_ns=1_000,
    )
    assert spans["launch copy x"] == (20, 1_020)
    assert spans["copy out to host x"] == (1_020, 1_820)
    assert spans["launch copy y"] == (1_020, 2_020)
    assert spans["copy out to host y"] == (2_020, 2_420)
    assert spans["launch h"] == (2_020, 2_030)


def test_an_operation_without_a_measured_time_is_launched_after_a_copy_just_the_same():
    bare = tuple(
        msgspec.structs.replace(op, device_ns=None, host_ns=None, moved_nbytes=8)
        for op in STEP.operations
    )
    trace = msgspec.structs.replace(STEP, operations=bare, times="roofline")
    _, spans = played(*THERE_AND_BACK, issue_ns=3_000, trace=trace)
    launch = find_machine("h200").launch_ns
    assert spans["launch copy x"] == (launch, launch + 3_000)
    assert spans["launch g"] == (launch + 3_000, 2 * launch + 3_000)


def test_what_the_host_waits_for_is_issued_no_sooner():
    waits = (msgspec.structs.replace(STEP.operations[0], waits=True), *STEP.operations[1:])
    trace = msgspec.structs.replace(STEP, operations=waits)
    _, spans = played(*THERE_AND_BACK, issue_ns=40, trace=trace)
    assert spans["launch copy x"] == (110, 150)
    assert spans["copy out to host x"] == (150, 950)


# -- whatever the schedule -------------------------------------------------------------------------

POLICIES = (
    "baseline",
    "liveness",
    "offload:release=immediate",
    "liveness+offload",
    "liveness+cache",
    "cache:tier=peer",
    "liveness+offload:release=pressure+recompute",
    "superneurons",
)
TIGHT = find_machine("h200:host_memory=200,peer_memory=300,device_to_host=30MB/s")
randomness = st.randoms(use_true_random=False)
times = st.one_of(st.integers(0, 300), st.integers(0, 10_000))


def issuing(machine: Machine, ns: int) -> Machine:
    return msgspec.structs.replace(machine, copy_issue_ns=ns)


def decided(rng: Random, policy: str) -> tuple[Trace, Decision]:
    trace = random_trace(rng, rng.randint(1, 20), rng.choice(("everywhere", "saves")))
    budget = rng.choice((None, trace.facts.floor_nbytes, trace.facts.floor_nbytes + 40))
    return trace, decide(find_policy(policy), trace, TIGHT, budget)


def transfers(schedule: Schedule) -> int:
    return sum(isinstance(step, Copy | Fetch) for step in schedule.instructions)


@settings(deadline=None, max_examples=300)
@given(randomness, st.sampled_from(POLICIES), times, times)
def test_a_step_gets_longer_with_the_time_of_an_issue_but_by_no_more_than_all_of_them(
    rng, policy, one, other
):
    trace, decision = decided(rng, policy)
    none, less, more = (
        play(trace, decision, issuing(TIGHT, ns)) for ns in (0, min(one, other), max(one, other))
    )
    assert none.step_time_ns <= less.step_time_ns <= more.step_time_ns
    count = transfers(decision.schedule)
    assert more.step_time_ns <= less.step_time_ns + count * abs(one - other)
    assert none.compute_ns == less.compute_ns == more.compute_ns
    assert none.copy_out_ns == less.copy_out_ns == more.copy_out_ns
    if not count:
        assert none.step_time_ns == less.step_time_ns == more.step_time_ns


@settings(deadline=None, max_examples=100)
@given(randomness, st.sampled_from(("baseline", "liveness", "liveness+recompute")), times)
def test_a_step_without_copies_takes_what_it_takes(rng, policy, ns):
    trace, decision = decided(rng, policy)
    assert transfers(decision.schedule) == 0
    report = play(trace, decision, issuing(TIGHT, ns))
    assert report.step_time_ns == play(trace, decision, issuing(TIGHT, 0)).step_time_ns


def test_a_launch_bound_step_is_longer_by_every_issue():
    # Nothing else holds it up: so it is the sum of what the host does.
    trace = find_trace("small-cnn-b4")
    policy = find_policy("liveness+offload:release=immediate")
    none, some = (find_machine(f"h200:copy_issue_time={us}us") for us in (0, 40))
    decision = decide(policy, trace, some)
    longer = play(trace, decision, some).step_time_ns - play(trace, decision, none).step_time_ns
    assert transfers(decision.schedule) > 20
    assert longer == pytest.approx(transfers(decision.schedule) * 40_000, rel=0.05)


# -- what policies foresee -------------------------------------------------------------------------


class Passed:
    """Remembers when the compute lane has passed each instruction."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    def passed(self, position: int, start_ns: int, end_ns: int) -> None:
        self.ends.append(end_ns)

    def nothing(self, *what: object) -> None:
        pass

    stalled = launched = issued = queued = nothing


def foreseen(trace: Trace, schedule: Schedule, machine: Machine) -> Iterator[int]:
    forecast = Forecast(trace.facts, Timing(trace, machine))
    for step in schedule.instructions:
        match step:
            case Run():
                forecast.run(step.op, step.algorithm)
            case Rerun():
                forecast.rerun(step.op, step.algorithm)
            case Free():
                forecast.free(step.storage)
            case Copy():
                forecast.copy(step.storage, step.tier)
            case Fetch():
                forecast.fetch(step.storage, step.tier)
            case Discard():
                forecast.discard(step.storage)
        yield forecast.now_ns


@settings(deadline=None, max_examples=300)
@given(randomness, st.sampled_from(POLICIES), times)
def test_with_one_tier_a_walk_foresees_the_very_times_that_are_simulated(rng, policy, ns):
    trace, decision = decided(rng, policy)
    machine, observer = issuing(TIGHT, ns), Passed()
    play(trace, decision, machine, observer)
    assert list(foreseen(trace, decision.schedule, machine)) == observer.ends


# -- machines --------------------------------------------------------------------------------------


def test_issuing_takes_no_time_on_a_machine_that_does_not_state_it():
    stated = {name: find_machine(name) for name in machine_names()}
    assert {name for name, each in stated.items() if "copy_issue_time" in each.written} == {"h200"}
    assert all(stated[name].copy_issue_ns == 0 for name in stated if name != "h200")


def test_the_command_line_may_state_it():
    assert find_machine("k40c:copy_issue_time=7us").copy_issue_ns == 7_000
