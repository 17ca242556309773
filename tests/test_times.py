"""Simulated times are those of the max-plus clocks in `maxplus.py`, to the nanosecond.

Half-duplex links are not max-plus: there the exact times are worked out by hand.
"""

from collections.abc import Iterator
from random import Random

import msgspec
from byhand import by_hand
from maxplus import Times, clock

from superneurons.errors import IllegalSchedule
from superneurons.machines import Machine, find_machine
from superneurons.policies import Decision, decide, find_policy
from superneurons.reports import Report
from superneurons.schedules import (
    Copy,
    Discard,
    Fetch,
    Free,
    Instruction,
    Run,
    Schedule,
    Timing,
    check,
)
from superneurons.sim import play, simulate_schedule
from superneurons.traces import Operation, Storage, Trace, Value, random_trace

ONE_TIER = (
    "baseline",
    "liveness",
    "cache",
    "offload",
    "offload:release=immediate,lookahead=0",
    "offload:release=pressure",
    "offload:tier=peer,release=2+cache:tier=peer",
    "recompute",
    "recompute:strategy=memory",
    "superneurons",
    "liveness+offload:in_flight=20+recompute",
    "recompute:strategy=speed+offload+cache+liveness",
)
TWO_TIERS = (
    "offload:release=pressure+cache:tier=peer",
    "liveness+recompute:strategy=memory+cache:tier=peer+offload",
    "offload:tier=peer,lookahead=0,release=immediate+cache",
)


def random_machine(rng: Random) -> Machine:
    """Return a machine with small tiers and links as slow as the random traces, or far slower."""
    rates = {
        way: f"{rng.choice((1, 7, 30, 100, 1000))}MB/s"
        for way in ("device_to_host", "host_to_device", "device_to_peer", "peer_to_device")
    }
    rates |= {f"{tier}_latency": rng.choice(("0ns", "1ns", "500ns")) for tier in ("host", "peer")}
    rates["copy_issue_time"] = rng.choice(("0ns", "1ns", "90ns", "700ns", "4us"))
    figures = ",".join(f"{key}={value}" for key, value in rates.items())
    return find_machine(f"h200:host_memory=200,peer_memory=300,{figures}")


def cases(policies: tuple[str, ...], seeds: range) -> Iterator[tuple[Trace, Machine, Decision]]:
    """Yield decisions: random traces on random machines, every policy in three budgets."""
    for seed in seeds:
        rng = Random(seed)
        trace = random_trace(rng, rng.randint(1, 20), rng.choice(("everywhere", "saves")))
        machine = random_machine(rng)
        floor = trace.facts.floor_nbytes
        for budget in (None, floor, floor + 60):
            for policy in policies:
                yield trace, machine, decide(find_policy(policy), trace, machine, budget)


def shuffled(rng: Random, trace: Trace, schedule: Schedule) -> Schedule:
    """Return *schedule* with instructions moved about as far as the checker allows.

    So copies leave sooner and fetches come later than any policy would have it.
    """
    free = msgspec.structs.replace(schedule, limit_nbytes=2**50, short_nbytes=0, short_op=-1)
    steps = list(free.instructions)
    for _ in range(30):
        i = rng.randrange(len(steps))
        moved = steps[:i] + steps[i + 1 :]
        moved.insert(max(0, i + rng.randint(-6, 6)), steps[i])
        try:
            check(trace, msgspec.structs.replace(free, instructions=moved))
        except IllegalSchedule:
            continue
        steps = moved
    return msgspec.structs.replace(free, instructions=steps)


def times(report: Report) -> Times:
    """Return what the oracle also knows of a report."""
    return Times(
        report.step_time_ns,
        report.stall_ns,
        report.compute_ns,
        report.copy_out_ns,
        report.copy_in_ns,
    )


def test_simulated_times_are_those_of_the_max_plus_clocks():
    compared = stalled = 0
    for trace, machine, decision in cases(ONE_TIER, range(80)):
        report = play(trace, decision, machine)
        assert times(report) == clock(trace, decision.schedule, machine)
        compared += 1
        stalled += report.stall_ns > 0
    assert compared == 80 * 3 * len(ONE_TIER)
    assert stalled > 500


def test_simulated_times_of_shuffled_schedules_are_those_of_the_max_plus_clocks():
    compared = 0
    for trace, machine, decision in cases(ONE_TIER, range(100, 120)):
        schedule = shuffled(Random(compared), trace, decision.schedule)
        report = simulate_schedule(trace, schedule, machine)
        assert times(report) == clock(trace, schedule, machine)
        compared += schedule.instructions != decision.schedule.instructions
    assert compared > 500


def test_simulated_times_with_two_tiers_are_those_of_the_max_plus_clocks():
    different = []
    for trace, machine, decision in cases(TWO_TIERS, range(80)):
        found = times(play(trace, decision, machine))
        wanted = clock(trace, decision.schedule, machine)
        if found != wanted:
            different.append((trace.name, decision.schedule.policy, found, wanted))
    assert different == []


def test_a_step_takes_at_least_its_computing_its_launches_and_each_copy_lane():
    for trace, machine, decision in cases(ONE_TIER + TWO_TIERS, range(200, 215)):
        report = play(trace, decision, machine)
        assert report.step_time_ns >= report.compute_ns + report.stall_ns
        assert report.step_time_ns >= report.copy_out_ns
        assert report.step_time_ns >= report.copy_in_ns
        launches = sum(op.host_ns or 0 for op in trace.operations)
        copies = sum(isinstance(s, Copy | Fetch) for s in decision.schedule.instructions)
        assert report.step_time_ns >= launches + copies * machine.copy_issue_ns
        assert report.stall_ns == sum(stall.ns for stall in report.stalls)
        timing = Timing(trace, machine)
        runs = [step for step in decision.schedule.instructions if isinstance(step, Run)]
        original = sum(timing.run_ns(run.op, run.algorithm) for run in runs)
        assert report.compute_ns == report.recomputed_ns + original


# -- by hand -------------------------------------------------------------------------------------

# 10 MB/s is 100 ns a byte.
SLOW = (
    "h200:copy_issue_time=0ns,host_latency=0ns,peer_latency=0ns,"
    "device_to_host=10MB/s,host_to_device=10MB/s"
)


def operation(name: str, phase: str, ns: int = 1_000, **values: tuple[str, ...]) -> Operation:
    """Return an operation that the host launches in no time."""
    return Operation(name=name, kind="conv", phase=phase, device_ns=ns, host_ns=0, **values)


def step(operations: tuple[Operation, ...], updated: str = "", **nbytes: int) -> Trace:
    """Return a layer step of activations."""
    return Trace(
        name="by hand",
        places="everywhere",
        times="measured",
        storages=tuple(
            Storage(name=name, kind="activation", nbytes=n) for name, n in nbytes.items()
        ),
        values=(Value(name=f"{updated}'", storage=updated, version=1),) if updated else (),
        operations=operations,
    )


def report_of(trace: Trace, steps: list[Instruction], machine: Machine) -> Report:
    """Play instructions written by hand."""
    return simulate_schedule(trace, by_hand(trace, steps, machine), machine)


def stalls(report: Report) -> list[tuple[str, str, int]]:
    """Return why and for what the compute lane waited, and how long."""
    return [(stall.reason, stall.storage, stall.ns) for stall in report.stalls]


X, Y, Z, G = range(4)
ROUND_TRIP = step(
    (
        operation("f", "forward", writes=("y",)),
        operation("g", "forward", writes=("x",)),
        operation("h", "forward", writes=("z",)),
        operation("b", "backward", reads=("y",), writes=("grad",)),
    ),
    x=100,
    y=40,
    z=1,
    grad=1,
)
CROSSING = [
    Run(0),  # 0 to 1000
    Copy(Y),
    Free(Y),
    Run(1),
    Copy(X),
    Run(2),
    Fetch(Y),
    Run(3),
    Discard(Y),
    Free(X),
    Discard(X),
    Free(Y),
    Free(Z),
    Free(G),
]


def test_each_way_of_a_full_duplex_link_has_its_own_rate():
    # y leaves from 1000 to 5500: 500 of latency, then 40 bytes in 4000; Free(y) waits 4500 for it.
    # g ends at 6500 and x leaves until 17,000; h ends at 7500 and y is fetched until 12,000.
    # So b waits 4500, ends at 13,000, and Free(x) waits another 4000.
    machine = find_machine(SLOW)
    tiers = tuple(
        msgspec.structs.replace(tier, link=msgspec.structs.replace(tier.link, latency_ns=500))
        for tier in machine.tiers
    )
    report = report_of(ROUND_TRIP, CROSSING, msgspec.structs.replace(machine, tiers=tiers))
    assert stalls(report) == [("copy", "y", 4_500), ("fetch", "y", 4_500), ("copy", "x", 4_000)]
    assert (report.step_time_ns, report.copy_out_ns, report.copy_in_ns) == (17_000, 15_000, 4_500)
