"""What a schedule takes, by max-plus clocks: an oracle for machines whose links are full duplex.

With private in-order lanes no event is needed: one clock a lane, moved on by each instruction in
list order. Only the trace and the machine are asked for times; neither SimPy nor `Timing` nor
`Forecast` has a say here. `facts` only numbers what an operation needs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from superneurons.machines import Machine
from superneurons.schedules import Copy, Discard, Fetch, Free, Rerun, Run, Schedule
from superneurons.traces import Trace


class Times(NamedTuple):
    """When the step is over, how long the compute lane stood still, what kept each lane busy."""

    end_ns: int
    stall_ns: int
    compute_ns: int
    copy_out_ns: int
    copy_in_ns: int


def clock(trace: Trace, schedule: Schedule, machine: Machine) -> Times:
    """Return the times of *schedule* on *machine*."""
    assert all(tier.link.duplex == "full" for tier in machine.tiers)
    facts = trace.facts
    launched = now = stalled = computed = 0
    lanes: dict[tuple[type, str], int] = {}  # when each copy lane is through with its queue
    busy: dict[tuple[type, str], int] = {}
    flying: dict[tuple[type, int, str], int] = {}  # (way, storage, tier): when it has arrived

    def meet(ways: Iterable[type], storages: Iterable[int], tiers: Iterable[str]) -> int:
        """Return how long the compute lane waits for these transfers: they fly no more."""
        found = [(way, s, tier) for way in ways for s in storages for tier in tiers]
        ready = max((flying.pop(key) for key in found if key in flying), default=0)
        return max(0, ready - now)

    everywhere = list(machine.capacities)
    for step in schedule.instructions:
        wait = 0
        if isinstance(step, Run | Rerun):
            op = trace.operations[step.op]
            begun, pieces = launched, max(op.launches, 1)
            launched += machine.launch_ns if op.host_ns is None else op.host_ns
            now = max(now, begun + (launched - begun) // pieces)
            original = isinstance(step, Run)
            needs = facts.needs[step.op] if original else facts.reads[step.op]
            written = facts.overwrites[step.op] + (facts.updates[step.op] if original else ())
            wait = max(meet([Fetch], needs, everywhere), meet([Copy], written, everywhere))
            if step.algorithm:
                ns = op.algorithms[step.algorithm - 1].device_ns
            elif op.device_ns is None:
                ns = machine.roofline_ns(op.flops, op.moved_nbytes)
            else:
                ns = op.device_ns
            now = max(now + wait + ns, launched + ns // pieces)
            computed += ns
        elif isinstance(step, Copy | Fetch):
            tier = machine.tier(step.tier)
            assert tier is not None
            launched += machine.copy_issue_ns
            way, nbytes = type(step), facts.nbytes[step.storage]
            rate = tier.link.out_bytes_per_s if way is Copy else tier.link.in_bytes_per_s
            ns = tier.link.latency_ns + -(-nbytes * 10**9 // rate)
            # What a Copy sends must be whole: it may still be on its way in from another tier.
            whole = [at for (w, s, _), at in flying.items() if w is Fetch and s == step.storage]
            start = max(lanes.get((way, step.tier), 0), now, launched, *whole)
            lanes[way, step.tier] = flying[way, step.storage, step.tier] = start + ns
            busy[way, step.tier] = busy.get((way, step.tier), 0) + ns
        elif isinstance(step, Free):
            now += (wait := meet([Copy, Fetch], [step.storage], everywhere))
        elif isinstance(step, Discard):
            now += (wait := meet([Copy, Fetch], [step.storage], [step.tier]))
        stalled += wait
    out, back = (
        max((ns for (way, _), ns in busy.items() if way is kind), default=0)
        for kind in (Copy, Fetch)
    )
    return Times(max(now, *lanes.values(), 0), stalled, computed, out, back)
