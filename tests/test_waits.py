"""The host that waits for an operation's result launches nothing meanwhile.

Times by hand, and for random steps the longest path through what has to come before what: events
and delays between them, without a clock that moves.
"""

import json
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import msgspec
import pytest
from byhand import by_hand
from click.testing import CliRunner

from superneurons.cli import main
from superneurons.machines import Machine, find_machine
from superneurons.policies import Decision, decide, find_policy
from superneurons.policies.forecast import Forecast
from superneurons.reports import Report
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
    check,
)
from superneurons.sim import Recorder, play, simulate, simulate_schedule
from superneurons.traces import Operation, Storage, Trace, random_trace, read_trace, write_trace

# 100 ns a byte
MACHINE = "h200:copy_issue_time=0ns,host_latency=0ns,device_to_host=10MB/s,host_to_device=10MB/s"

POLICIES = (
    "baseline",
    "liveness",
    "superneurons",
    "offload:release=immediate,lookahead=0",
    "offload:release=pressure+recompute:strategy=memory",
    "recompute:strategy=speed",
    "liveness+offload:tier=peer+cache",
)

# -- the longest path ------------------------------------------------------------------------------


class Before(NamedTuple):
    """What an event comes after: another event and a delay."""

    event: int
    ns: int


class Found(NamedTuple):
    end_ns: int
    stall_ns: int
    compute_ns: int


def longest(trace: Trace, schedule: Schedule, machine: Machine) -> Found:
    """Return the times of *schedule*: each event comes as late as the latest before it.

    Events are numbered as they are made, each after those that it depends on; event 0 is the start.
    Links must be full duplex.
    """
    facts = trace.facts
    events: list[list[Before]] = [[]]
    at: list[int] = [0]

    def event(*before: Before) -> int:
        events.append(list(before))
        at.append(max(at[b.event] + b.ns for b in before))
        return len(at) - 1

    compute = host = 0
    computed = stalled = 0
    lanes: dict[tuple[type, str], int] = {}
    flying: list[tuple[type, int, str, int]] = []  # way, storage, tier, event of its end

    def landing(
        ways: tuple[type, ...], storages: tuple[int, ...], tiers: list[str]
    ) -> list[Before]:
        met = [f for f in flying if f[0] in ways and f[1] in storages and f[2] in tiers]
        flying[:] = [f for f in flying if f not in met]
        return [Before(end, 0) for _, _, _, end in met]

    everywhere = list(machine.capacities)
    for step in schedule.instructions:
        if isinstance(step, Run | Rerun):
            op = trace.operations[step.op]
            original = isinstance(step, Run)
            host_ns = machine.launch_ns if op.host_ns is None else op.host_ns
            pieces = max(op.launches, 1)
            first = event(Before(host, host_ns // pieces))
            host = event(Before(host, host_ns))
            needs = facts.needs[step.op] if original else facts.reads[step.op]
            written = facts.overwrites[step.op] + (facts.updates[step.op] if original else ())
            late = landing((Fetch,), needs, everywhere) + landing((Copy,), written, everywhere)
            ready = event(Before(compute, 0), Before(first, 0))
            start = event(Before(ready, 0), *late)
            stalled += at[start] - at[ready]
            ns = op.device_ns
            if step.algorithm:
                ns = op.algorithms[step.algorithm - 1].device_ns
            elif ns is None:
                ns = machine.roofline_ns(op.flops, op.moved_nbytes, op.precision)
            computed += ns
            compute = event(Before(start, ns), Before(host, ns // pieces))
            if op.waits and original:
                host = event(Before(compute, 0))
        elif isinstance(step, Copy | Fetch):
            tier = machine.tier(step.tier)
            assert tier is not None
            assert tier.link.duplex == "full"
            way, nbytes = type(step), facts.nbytes[step.storage]
            ns = tier.link.out_ns(nbytes) if way is Copy else tier.link.in_ns(nbytes)
            whole = [
                Before(end, 0)
                for w, s, _, end in flying
                if way is Copy and w is Fetch and s == step.storage
            ]
            lane = lanes.get((way, step.tier), 0)
            host = event(Before(host, machine.copy_issue_ns))
            start = event(Before(lane, 0), Before(compute, 0), Before(host, 0), *whole)
            lanes[way, step.tier] = end = event(Before(start, ns))
            flying.append((way, step.storage, step.tier, end))
        else:
            assert isinstance(step, Free | Discard)
            tiers = [step.tier] if isinstance(step, Discard) else everywhere
            late = landing((Copy, Fetch), (step.storage,), tiers)
            after = event(Before(compute, 0), *late)
            stalled += at[after] - at[compute]
            compute = after
    return Found(max(at[i] for i in (compute, *lanes.values())), stalled, computed)


def found(report: Report) -> Found:
    return Found(report.step_time_ns, report.stall_ns, report.compute_ns)


def waiting(rng: Random, trace: Trace, share: float) -> Trace:
    """Return *trace* with some operations that the host waits for."""
    operations = tuple(
        msgspec.structs.replace(op, waits=rng.random() < share) for op in trace.operations
    )
    return msgspec.structs.replace(trace, operations=operations)


def launching_once(trace: Trace) -> Trace:
    """Return *trace* with operations of one kernel each."""
    operations = tuple(msgspec.structs.replace(op, launches=1) for op in trace.operations)
    return msgspec.structs.replace(trace, operations=operations)


def cases(seeds: range) -> Iterator[tuple[Trace, Machine, Decision]]:
    for seed in seeds:
        rng = Random(seed)
        plain = random_trace(rng, rng.randint(1, 20), rng.choice(("everywhere", "saves")))
        trace = waiting(rng, plain, rng.choice((0.1, 0.5, 1.0)))
        rate = rng.choice((1, 30, 1000))
        machine = find_machine(
            "h200:host_memory=200,peer_memory=300,host_latency=1ns,"
            f"device_to_host={rate}MB/s,host_to_device={rng.choice((7, 100))}MB/s,"
            f"launch_time={rng.choice((0, 40, 4000))}ns,"
            f"copy_issue_time={rng.choice((0, 40, 4000))}ns"
        )
        floor = trace.facts.floor_nbytes
        for budget in (None, floor + 30):
            for policy in POLICIES:
                yield trace, machine, decide(find_policy(policy), trace, machine, budget)


def test_simulated_times_of_steps_that_wait_are_those_of_the_longest_path():
    compared = later = stalled = 0
    for trace, machine, decision in cases(range(60)):
        report = play(trace, decision, machine)
        assert found(report) == longest(trace, decision.schedule, machine)
        plain = waiting(Random(0), trace, 0.0)
        unwaited = play(plain, decision, machine)
        assert report.step_time_ns >= unwaited.step_time_ns
        assert report.compute_ns == unwaited.compute_ns
        assert report.device_peak_bytes == unwaited.device_peak_bytes
        compared += 1
        later += report.step_time_ns > unwaited.step_time_ns
        stalled += report.stall_ns > 0
    assert compared == 60 * 2 * len(POLICIES)
    assert later > 300
    assert stalled > 150


def test_if_the_host_waits_for_everything_launches_and_work_alternate():
    for seed in range(20):
        rng = Random(seed)
        trace = launching_once(waiting(rng, random_trace(rng, 12, "everywhere"), 1.0))
        machine = find_machine("h200:launch_time=700ns")
        report = simulate(trace, find_policy("baseline"), machine)
        host = sum(700 if op.host_ns is None else op.host_ns for op in trace.operations)
        assert report.step_time_ns == host + report.compute_ns


# -- by hand ---------------------------------------------------------------------------------------


def operation(name: str, device_ns: int, host_ns: int | None, **fields: object) -> Operation:
    values = {"kind": "conv", "phase": "forward", "writes": (name,)} | fields
    return Operation(name=name, device_ns=device_ns, host_ns=host_ns, **values)


def chain(*operations: Operation) -> Trace:
    return Trace(
        name="by hand",
        places="everywhere",
        times="measured",
        storages=tuple(Storage(name=op.name, kind="activation", nbytes=8) for op in operations),
        operations=operations,
    )


def seen(trace: Trace, machine: str = MACHINE) -> dict[str, tuple[int, int]]:
    """Return begin and end of everything that the baseline does, by lane and name."""
    on = find_machine(machine)
    decision = decide(find_policy("baseline"), trace, on, None)
    recorder = Recorder(trace)
    play(trace, decision, on, recorder)
    spans = recorder.timeline(decision.schedule).spans
    return {f"{span.lane} {span.name}": (span.start_ns, span.end_ns) for span in spans}


def test_a_host_that_does_not_wait_runs_ahead():
    trace = chain(operation("a", 1_000, 10), operation("b", 100, 20), operation("c", 50, 30))
    assert seen(trace) == {
        "launch a": (0, 10),
        "launch b": (10, 30),
        "launch c": (30, 60),
        "compute a": (10, 1_010),
        "compute b": (1_010, 1_110),
        "compute c": (1_110, 1_160),
    }


def test_a_host_that_waits_launches_the_next_one_when_the_result_is_there():
    trace = chain(
        operation("a", 1_000, 10), operation("b", 100, 20, waits=True), operation("c", 50, 30)
    )
    assert seen(trace) == {
        "launch a": (0, 10),
        "launch b": (10, 30),
        "compute a": (10, 1_010),
        "compute b": (1_010, 1_110),
        "launch c": (1_110, 1_140),
        "compute c": (1_140, 1_190),
    }


def test_waiting_for_the_last_operation_costs_nothing():
    plain = chain(operation("a", 1_000, 10), operation("b", 100, 20))
    last = chain(operation("a", 1_000, 10), operation("b", 100, 20, waits=True))
    assert seen(plain) == seen(last)


def test_waiting_for_a_device_that_waits_for_the_host_costs_what_the_work_took():
    # The device is idle already when b is launched: after the wait c starts 50 later than it would.
    fast = chain(
        operation("a", 5, 100), operation("b", 50, 100, waits=True), operation("c", 5, 100)
    )
    times = seen(fast)
    assert times["compute b"] == (200, 250)
    assert times["launch c"] == (250, 350)
    assert times["compute c"] == (350, 355)


def test_a_wait_for_an_operation_that_takes_no_time_still_drains_the_device():
    trace = chain(
        operation("a", 1_000, 10), operation("item", 0, 5, waits=True), operation("c", 50, 30)
    )
    times = seen(trace)
    assert times["compute item"] == (1_010, 1_010)
    assert times["launch c"] == (1_010, 1_040)


def test_each_wait_counts():
    trace = chain(*(operation(name, 100, 10, waits=True) for name in "abcd"))
    assert simulate(trace, find_policy("baseline"), find_machine(MACHINE)).step_time_ns == 4 * 110


def test_the_launch_time_of_the_machine_counts_after_a_wait():
    trace = chain(operation("a", 1_000, None, waits=True), operation("b", 10, None))
    times = seen(trace, "h200:launch_time=7us")
    assert times["compute a"] == (7_000, 8_000)
    assert times["launch b"] == (8_000, 15_000)


def test_a_wait_by_roofline_takes_the_rooflines_time():
    operations = (
        operation("a", None, 0, moved_nbytes=4_160_000, waits=True),  # 1000 ns at 4160 GB/s
        operation("b", None, 10, moved_nbytes=4_160),
    )
    trace = msgspec.structs.replace(chain(*operations), times="roofline")
    times = seen(trace, "h200")
    assert times["compute a"] == (0, 1_000)
    assert times["launch b"] == (1_000, 1_010)


FETCHED = Trace(
    name="by hand",
    places="everywhere",
    times="measured",
    storages=(
        Storage(name="x", kind="activation", nbytes=40),
        Storage(name="y", kind="activation", nbytes=8),
        Storage(name="grad", kind="activation-gradient", nbytes=8),
    ),
    operations=(
        operation("f", 1_000, 0, writes=("x",)),
        operation("g", 100, 0, writes=("y",)),
        operation("b", 1_000, 0, phase="backward", reads=("x",), writes=("grad",), waits=True),
        operation("o", 10, 50, phase="optimizer", reads=("grad", "x"), writes=()),
    ),
)
X, Y, GRAD = range(3)


def played(
    *instructions: Instruction, trace: Trace = FETCHED
) -> tuple[Report, list[tuple[str, int, int]]]:
    """Play instructions written by hand; return the report and the launches."""
    machine = find_machine(MACHINE)
    schedule = by_hand(trace, instructions, machine)
    recorder = Recorder(trace)
    report = simulate_schedule(trace, schedule, machine, recorder)
    spans = recorder.timeline(schedule).spans
    return report, [(s.name, s.start_ns, s.end_ns) for s in spans if s.lane == "launch"]


def test_a_wait_is_as_long_as_the_stall_of_what_it_waits_for():
    # x is out from 1000 to 5000; Free(x) waits for that; g runs from 5000 to 5100, and x comes back
    # from then to 9100; b ends at 10,100.
    report, launches = played(
        Run(0),
        Copy(X),
        Free(X),
        Run(1),
        Fetch(X),
        Run(2),
        Run(3),
        Discard(X),
        Free(X),
        Free(Y),
        Free(GRAD),
    )
    assert [(s.reason, s.ns) for s in report.stalls] == [("copy", 4_000), ("fetch", 4_000)]
    assert launches[-1] == ("o", 10_100, 10_150)
    assert report.step_time_ns == 10_160


def test_a_wait_does_not_hold_up_transfers():
    # The copy of y is put into its lane when the device comes by, whatever the host waits for.
    report, _ = played(
        Run(0), Run(1), Run(2), Copy(Y), Run(3), Free(Y), Discard(Y), Free(X), Free(GRAD)
    )
    # b ends at 2100; y is out from 2100 to 2900; o is launched at 2150 and ends at 2160.
    assert report.step_time_ns == 2_900
    assert report.stall_ns == 740


def test_an_operation_that_is_computed_again_is_not_waited_for_again():
    trace = chain(operation("a", 1_000, 10, waits=True), operation("b", 100, 10))
    read = operation("c", 50, 10, phase="backward", reads=("a",), writes=("c",))
    trace = msgspec.structs.replace(
        trace,
        operations=(*trace.operations, read),
        storages=(*trace.storages, Storage(name="c", kind="activation-gradient", nbytes=8)),
    )
    report, launches = played(
        Run(0), Free(0), Run(1), Rerun(0), Run(2), Free(0), Free(1), Free(2), trace=trace
    )
    # a until 1010; b launched then until 1020 and done at 1120; a again launched at 1030, from 1120
    # to 2120; c launched at 1040.
    assert launches == [
        ("a", 0, 10),
        ("b", 1_010, 1_020),
        ("a", 1_020, 1_030),
        ("c", 1_030, 1_040),
    ]
    assert report.step_time_ns == 2_170


# -- what policies think of it ---------------------------------------------------------------------


def test_the_time_that_a_walk_foresees_without_transfers_is_the_one_that_is_simulated():
    for seed in range(20):
        rng = Random(seed)
        trace = waiting(rng, random_trace(rng, 12, "saves"), rng.choice((0.0, 0.3)))
        machine = find_machine("h200:launch_time=700ns")
        forecast = Forecast(trace.facts, Timing(trace, machine))
        for op in range(trace.facts.op_count):
            forecast.run(op)
        report = simulate(trace, find_policy("baseline"), machine)
        assert forecast.now_ns == report.step_time_ns


# -- what waiting is not ---------------------------------------------------------------------------


def test_waiting_changes_no_bytes_and_so_no_schedule():
    rng = Random(5)
    plain = random_trace(rng, 15, "saves")
    waits = waiting(rng, plain, 0.5)
    assert waits.facts.digest == plain.facts.digest
    machine = find_machine("h200")
    decision = decide(find_policy("superneurons"), plain, machine, None)
    check(waits, decision.schedule)


def test_a_trace_file_keeps_what_the_host_waits_for(tmp_path):
    trace = waiting(Random(3), random_trace(Random(3), 10, "saves"), 0.5)
    path = tmp_path / "step.json"
    write_trace(trace, path)
    again = read_trace(path)
    assert [op.waits for op in again.operations] == [op.waits for op in trace.operations]
    assert again.facts.waits == {i for i, op in enumerate(trace.operations) if op.waits}
    assert 0 < len(again.facts.waits) < len(trace.operations)
    written = json.loads(path.read_text())["operations"]
    assert [op.get("waits") for op in written] == [
        True if op.waits else None for op in trace.operations
    ]


@pytest.mark.parametrize("waits", ["yes", 1])
def test_a_trace_file_says_waits_with_true_or_false(waits, tmp_path):
    path = tmp_path / "step.json"
    write_trace(chain(operation("a", 1, 1)), path)
    content = json.loads(path.read_text())
    content["operations"][0]["waits"] = waits
    path.write_text(json.dumps(content))
    result = CliRunner().invoke(main, ["simulate", str(path), "--machine", "h200"])
    assert result.exit_code == 2
    assert "operations[0].waits: Expected `bool`" in result.stderr


def test_the_command_line_counts_waits(tmp_path):
    path = tmp_path / "step.yaml"
    write_trace(
        chain(
            operation("a", 1_000, 10), operation("b", 100, 20, waits=True), operation("c", 50, 30)
        ),
        path,
    )
    result = CliRunner().invoke(
        main, ["simulate", str(path), "--machine", "h200", "--policy", "liveness", "--json"]
    )
    (report,) = json.loads(result.stdout)
    assert report["step_time_ns"] == 1_190
