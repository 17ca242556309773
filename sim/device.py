"""The device: it walks a schedule with a local clock and meets the lanes where it must.

Memory is decided by order, so nothing here counts bytes. The compute lane runs ahead on its own
clock; SimPy is entered only to wait for a transfer that is not done. Its clock is never behind
SimPy's, so what it puts into a lane is never in that lane's past.

Operations start when the host has launched them, when the operation before has ended, and when what
they wait for is there. Only the last is a stall. Launches follow one another; the host waits only
for an operation whose result it reads, and in a cudaFree for the whole device. An operation of
several kernels starts with the first, and does not end before the host has launched the last and
that has run; all its kernels are taken as alike.

Each copy out and each fetch takes the host the machine's issue time, among the launches: it starts
no sooner than when it has been issued, and what comes after it is launched or issued later. Frees
and discards take none.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

import simpy
from msgspec import Struct

from ..allocators.cudamalloc import DriverCalls
from ..machines import Tier
from ..schedules import Copy, Discard, Fetch, Instruction, Rerun, Run, Timing
from ..traces import Facts
from .lanes import Lane, SharedLink, Steps, Transfer


class Stall(Struct, frozen=True, gc=False):
    """The compute lane idle at an instruction, for a copy out or a fetch of a storage."""

    position: int
    storage: int
    reason: Literal["copy", "fetch"]
    ns: int


class Observer(Protocol):
    """Whoever wants to see the instructions go by; the simulator works the same without."""

    def passed(self, position: int, start_ns: int, end_ns: int) -> None:
        """The compute lane has passed an instruction, which held it from *start_ns* to *end_ns*."""
        ...

    def stalled(self, stall: Stall, start_ns: int) -> None:
        """The compute lane has waited from *start_ns* on."""
        ...

    def launched(self, op: int, start_ns: int, end_ns: int) -> None:
        """The host has launched an operation."""
        ...

    def issued(self, step: Copy | Fetch, start_ns: int, end_ns: int) -> None:
        """The host has issued a transfer, on a machine where that takes time."""
        ...

    def queued(self, lane: str, storage: int, transfer: Transfer) -> None:
        """A transfer has been queued; its times are known when the step is over."""
        ...


class Device:
    """One device with its copy lanes, about to run a schedule.

    *calls* are those of the driver's allocator, by place in the list. Like launches they take the
    host's time; a free first waits until all lanes are idle.
    """

    def __init__(
        self,
        env: simpy.Environment,
        facts: Facts,
        timing: Timing,
        tiers: Sequence[Tier],
        observer: Observer | None = None,
        calls: Mapping[int, DriverCalls] | None = None,
    ) -> None:
        self._env = env
        self._facts = facts
        self._timing = timing
        self._observer = observer
        self._calls = calls
        self._links = {tier.name: tier.link for tier in tiers}
        self.out_lanes: dict[str, Lane] = {}
        self.in_lanes: dict[str, Lane] = {}
        for tier in tiers:
            shared = SharedLink(env) if tier.link.duplex == "half" else None
            self.out_lanes[tier.name] = Lane(env, f"copy out to {tier.name}", shared)
            self.in_lanes[tier.name] = Lane(env, f"copy in from {tier.name}", shared)
        self.compute_ns = 0
        self.recomputed_ns = 0
        self.allocator_ns = 0
        self.end_ns = 0
        self.stalls: list[Stall] = []
        self._flights: dict[int, list[Transfer]] = {}  # by storage, until the compute lane met them

    def run(self, instructions: Sequence[Instruction]) -> Steps:
        """Run the instructions and wait until all lanes are drained: a SimPy process."""
        facts, timing, observer = self._facts, self._timing, self._observer
        needs, reads, overwrites, rewrites = (
            facts.needs,
            facts.reads,
            facts.overwrites,
            facts.rewrites,
        )
        device_ns, host_ns = timing.device_ns, timing.host_ns
        flights, waits, calls = self._flights, facts.waits, self._calls
        several = timing.launches
        malloc_ns, free_ns = timing.machine.malloc_ns, timing.machine.free_ns
        issue_ns = timing.machine.copy_issue_ns
        now = launched = busy = again = asking = 0
        for position, step in enumerate(instructions):
            before = now
            call = calls.get(position) if calls else None
            if call is not None:
                launched += call.mallocs * malloc_ns
            if type(step) is Run or type(step) is Rerun:
                op = step.op
                launched += host_ns[op]
                count = several.get(op, 1) if several else 1
                ready = launched if count == 1 else launched - host_ns[op] + host_ns[op] // count
                if ready > now:
                    now = ready
                if flights:
                    original = type(step) is Run
                    for s in needs[op] if original else reads[op]:
                        if s in flights:
                            written = rewrites[op] if original else overwrites[op]
                            late = self._landing(s, copies=s in written)
                            now = yield from self._meet(position, late, now)
                ns = timing.run_ns(op, step.algorithm) if step.algorithm else device_ns[op]
                if type(step) is Rerun:
                    again += ns
                before = now
                now += ns
                busy += ns
                if count > 1 and now < launched + ns // count:
                    now = launched + ns // count
                if observer is not None:
                    observer.launched(op, launched - host_ns[op], launched)
                if op in waits and type(step) is Run:
                    launched = now
            elif type(step) is Copy or type(step) is Fetch:
                launched += issue_ns
                if issue_ns and observer is not None:
                    observer.issued(step, launched - issue_ns, launched)
                # The host is later than the compute lane only after calls of the driver, and after
                # transfers that it has issued.
                self._take_off(step, launched if launched > now else now)
            elif step.storage in flights:  # Free and Discard are fences
                tier = step.tier if type(step) is Discard else None
                late = self._landing(step.storage, copies=True, tier=tier)
                now = yield from self._meet(position, late, now)
            if observer is not None:
                observer.passed(position, before, now)
            if call is not None:
                asking += call.mallocs * malloc_ns + call.frees * free_ns
                if call.frees:
                    launched = yield from self._idle(max(now, launched))
                    launched += call.frees * free_ns
        self.compute_ns, self.recomputed_ns, self.allocator_ns = busy, again, asking
        self.end_ns = yield from self._idle(max(now, launched))

    def _idle(self, now: int) -> Generator[simpy.Event, Any, int]:
        """Wait until the copy lanes have done what is in them; return the time after that."""
        for lane in (*self.out_lanes.values(), *self.in_lanes.values()):
            if lane.last is not None:
                if lane.last.done_ns < 0:
                    yield lane.last.wait(self._env)
                now = max(now, lane.last.done_ns)
        return now

    def _take_off(self, step: Copy | Fetch, now: int) -> None:
        """Queue a transfer. What a copy sends must be there: a fetch in flight goes before it."""
        s, tier, link = step.storage, step.tier, self._links[step.tier]
        flying = self._flights.setdefault(s, [])
        nbytes = self._facts.nbytes[s]
        if type(step) is Copy:
            lane, whole = self.out_lanes[tier], link.out_ns(nbytes)
            first = next((each for each in flying if each.inward), None)
        else:
            lane, whole, first = self.in_lanes[tier], link.in_ns(nbytes), None
        transfer = Transfer(
            s, tier, type(step) is Fetch, now, link.latency_ns, whole - link.latency_ns, first
        )
        flying.append(transfer)
        lane.put(transfer)
        if self._observer is not None:
            self._observer.queued(lane.name, s, transfer)

    def _landing(self, s: int, *, copies: bool, tier: str | None = None) -> list[Transfer]:
        """Take a storage's transfers out of the air: fetches, and *copies*; of one tier, or all."""
        flying = self._flights[s]
        met = [t for t in flying if (t.inward or copies) and tier in (None, t.tier)]
        left = [t for t in flying if t not in met]
        if left:
            self._flights[s] = left
        else:
            del self._flights[s]
        return met

    def _meet(
        self, position: int, transfers: list[Transfer], now: int
    ) -> Generator[simpy.Event, Any, int]:
        """Let the compute lane wait for transfers; return the time after that."""
        for transfer in transfers:
            if transfer.done_ns < 0:
                yield transfer.wait(self._env)
            if transfer.done_ns > now:
                reason: Literal["copy", "fetch"] = "fetch" if transfer.inward else "copy"
                stall = Stall(position, transfer.storage, reason, transfer.done_ns - now)
                self.stalls.append(stall)
                if self._observer is not None:
                    self._observer.stalled(stall, now)
                now = transfer.done_ns
        return now
