"""Simulate: play one training step as a policy says, and report what it cost."""

import simpy

from ..allocators import Allocator, new_allocator, occupy
from ..errors import InvalidSchedule
from ..machines import Machine
from ..notation import format_bytes
from ..policies import Decision, Policy, decide
from ..reports import Report, StallReport
from ..schedules import Copy, Ledger, Rerun, Run, Schedule, Timing, check
from ..traces import Trace
from .device import Device, Observer, Stall


def simulate(
    trace: Trace,
    policy: Policy | str,
    machine: Machine,
    budget: int | None = None,
    observer: Observer | None = None,
) -> Report:
    """Play one step of *trace* on *machine* as *policy* says, in *budget* bytes of device memory.

    A policy may be given by its name, as on the command line. Without a budget the device's memory
    is the limit. A policy that does not fit is reported so. Raises DoesNotFit if no policy could
    fit a given budget, PolicyFailed if this one breaks.
    """
    return play(trace, decide(policy, trace, machine, budget), machine, observer)


def simulate_schedule(
    trace: Trace, schedule: Schedule, machine: Machine, observer: Observer | None = None
) -> Report:
    """Play a schedule that was made before, perhaps for another machine, after proving it.

    It fits if it keeps to its own limit and to this machine's memory. Raises IllegalSchedule, and
    InvalidSchedule if this machine's tiers do not hold what it puts there.
    """
    ledger = check(trace, schedule)
    for tier, nbytes in ledger.tier_peak_nbytes.items():
        there = machine.capacities.get(tier, 0)
        if nbytes > there or (tier in _tiers_used(schedule) and tier not in machine.capacities):
            raise InvalidSchedule(
                f"the schedule puts {format_bytes(nbytes)} into tier {tier!r}; "
                f"machine {machine.name!r} has {format_bytes(there)} there"
            )
    return play(trace, Decision(schedule, ledger), machine, observer)


def _tiers_used(schedule: Schedule) -> set[str]:
    return {step.tier for step in schedule.instructions if isinstance(step, Copy)}


def play(
    trace: Trace, decision: Decision, machine: Machine, observer: Observer | None = None
) -> Report:
    """Play a decision whose schedule has been proved: bytes by order, then times by the clock."""
    schedule, ledger = decision
    limit = min(schedule.limit_nbytes, machine.device_nbytes)
    allocator = new_allocator(machine.allocator, limit)
    calls = occupy(trace, schedule, allocator)
    env = simpy.Environment()
    device = Device(env, trace.facts, Timing(trace, machine), machine.tiers, observer, calls)
    env.run(until=env.process(device.run(schedule.instructions)))
    return _report(trace, schedule, machine, ledger, device, allocator)


def _report(
    trace: Trace,
    schedule: Schedule,
    machine: Machine,
    ledger: Ledger,
    device: Device,
    allocator: Allocator,
) -> Report:
    names = trace.facts.op_names
    reserved = allocator.reserved_peak_nbytes
    peak_op = ledger.step_peak_op
    limit = min(schedule.limit_nbytes, machine.device_nbytes)
    short = max(reserved - limit, schedule.short_nbytes)
    short_op = names[ledger.short_op] if ledger.short_op >= 0 else None
    why = "it fits"
    if short > 0:
        where = f", at {short_op}" if short_op else f" in what {machine.allocator!r} reserves"
        why = (
            f"{schedule.policy}: short of {format_bytes(short)} ({short} bytes) at worst{where}; "
            f"the limit is {format_bytes(limit)}"
        )
        if schedule.full_tiers:
            why += f"; no room was left in: {', '.join(schedule.full_tiers)}"
    return Report(
        trace=trace.name,
        policy=schedule.policy,
        machine=machine.name,
        budget_bytes=schedule.budget_nbytes,
        limit_bytes=limit,
        fits=short <= 0,
        why=why,
        short_bytes=max(short, 0),
        short_op=short_op,
        full_tiers=schedule.full_tiers,
        step_peak_bytes=ledger.step_nbytes[peak_op] if names else 0,
        step_peak_op=names[peak_op] if names else None,
        step_peak_live_tensors=ledger.step_tensors[peak_op] if names else 0,
        strict_peak_bytes=ledger.strict_peak_nbytes,
        device_peak_bytes=ledger.device_peak_nbytes,
        allocated_peak_bytes=allocator.allocated_peak_nbytes,
        reserved_peak_bytes=reserved,
        tier_peak_bytes=ledger.tier_peak_nbytes,
        step_time_ns=device.end_ns,
        compute_ns=device.compute_ns,
        stall_ns=sum(stall.ns for stall in device.stalls),
        copy_out_ns=max((lane.busy_ns for lane in device.out_lanes.values()), default=0),
        copy_in_ns=max((lane.busy_ns for lane in device.in_lanes.values()), default=0),
        copied_out_bytes=ledger.copied_out_nbytes,
        copied_in_bytes=ledger.copied_in_nbytes,
        recomputed_ops=ledger.rerun_ops,
        recomputed_ns=device.recomputed_ns,
        allocator_ns=device.allocator_ns,
        ops=len(names),
        instructions=len(schedule.instructions),
        allocator=machine.allocator,
        times=trace.times,
        op_names=names,
        step_bytes=ledger.step_nbytes,
        step_live_tensors=ledger.step_tensors,
        stalls=_stalls(trace, schedule, device.stalls),
    )


def _stalls(trace: Trace, schedule: Schedule, stalls: list[Stall]) -> list[StallReport]:
    """Name the operation at which each stall occurs: the one that runs, or ran last."""
    names, storages = trace.facts.op_names, trace.facts.names
    found = []
    position = op = 0
    for stall in stalls:
        while position <= stall.position:
            step = schedule.instructions[position]
            if type(step) is Run or type(step) is Rerun:
                op = step.op
            position += 1
        found.append(
            StallReport(
                op=names[op], storage=storages[stall.storage], reason=stall.reason, ns=stall.ns
            )
        )
    return found
