"""The device: it walks a schedule with a local clock and meets the lanes where it must.

Memory is decided by order, so nothing here counts bytes. The compute lane runs ahead on its own
clock; SimPy is entered only to wait for a transfer that is not done. Its clock is never behind
SimPy's, so what it puts into a lane is never in that lane's past.

Operations start when the host has launched them (launches follow one another, the host never
waits), when the operation before has ended, and when what they wait for is there. Only the last is
a stall.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import simpy
from msgspec import Struct

from ..machines import Tier
from ..schedules import Copy, Fetch, Instruction, Rerun, Run, Timing
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

    def queued(self, lane: str, storage: int, transfer: Transfer) -> None:
        """A transfer has been queued; its times are known when the step is over."""
        ...


class Device:
    """One device with its copy lanes, about to run a schedule."""

    def __init__(
        self,
        env: simpy.Environment,
        facts: Facts,
        timing: Timing,
        tiers: Sequence[Tier],
        observer: Observer | None = None,
    ) -> None:
        self._env = env
        self._facts = facts
        self._timing = timing
        self._observer = observer
        self._links = {tier.name: tier.link for tier in tiers}
        self.out_lanes: dict[str, Lane] = {}
        self.in_lanes: dict[str, Lane] = {}
        for tier in tiers:
            shared = SharedLink(env) if tier.link.duplex == "half" else None
            self.out_lanes[tier.name] = Lane(env, f"copy out to {tier.name}", shared)
            self.in_lanes[tier.name] = Lane(env, f"copy in from {tier.name}", shared)
        self.compute_ns = 0
        self.recomputed_ns = 0
        self.end_ns = 0
        self.stalls: list[Stall] = []

    def run(self, instructions: Sequence[Instruction]) -> Steps:
        """Run the instructions and wait until all lanes are drained: a SimPy process."""
        env, facts, timing, observer = self._env, self._facts, self._timing, self._observer
        needs, reads, overwrites = facts.needs, facts.reads, facts.overwrites
        device_ns, host_ns = timing.device_ns, timing.host_ns
        copying: dict[int, Transfer] = {}
        fetching: dict[int, Transfer] = {}
        now = launched = busy = again = 0
        for position, step in enumerate(instructions):
            before = now
            if type(step) is Run or type(step) is Rerun:
                op = step.op
                launched += host_ns[op]
                if launched > now:
                    now = launched
                if fetching:
                    for s in needs[op] if type(step) is Run else reads[op]:
                        if s in fetching:
                            transfer = fetching.pop(s)
                            if transfer.done_ns < 0:
                                yield transfer.wait(env)
                            now = self._wait(position, "fetch", transfer, now)
                if copying:
                    for s in overwrites[op]:
                        if s in copying:
                            transfer = copying.pop(s)
                            if transfer.done_ns < 0:
                                yield transfer.wait(env)
                            now = self._wait(position, "copy", transfer, now)
                if type(step) is Run:
                    ns = timing.run_ns(op, step.algorithm) if step.algorithm else device_ns[op]
                else:
                    ns = device_ns[op]
                    again += ns
                before = now
                now += ns
                busy += ns
                if observer is not None:
                    observer.launched(op, launched - host_ns[op], launched)
            elif type(step) is Copy:
                transfer = copying[step.storage] = self._transfer(step, now)
                self.out_lanes[step.tier].put(transfer)
                if observer is not None:
                    observer.queued(self.out_lanes[step.tier].name, step.storage, transfer)
            elif type(step) is Fetch:
                transfer = fetching[step.storage] = self._transfer(step, now)
                self.in_lanes[step.tier].put(transfer)
                if observer is not None:
                    observer.queued(self.in_lanes[step.tier].name, step.storage, transfer)
            elif copying or fetching:  # Free and Discard: fences
                s = step.storage
                if s in copying:
                    transfer = copying.pop(s)
                    if transfer.done_ns < 0:
                        yield transfer.wait(env)
                    now = self._wait(position, "copy", transfer, now)
                if s in fetching:
                    transfer = fetching.pop(s)
                    if transfer.done_ns < 0:
                        yield transfer.wait(env)
                    now = self._wait(position, "fetch", transfer, now)
            if observer is not None:
                observer.passed(position, before, now)
        for lane in (*self.out_lanes.values(), *self.in_lanes.values()):
            if lane.last is not None:
                if lane.last.done_ns < 0:
                    yield lane.last.wait(env)
                now = max(now, lane.last.done_ns)
        self.compute_ns, self.recomputed_ns, self.end_ns = busy, again, now

    def _transfer(self, step: Copy | Fetch, now: int) -> Transfer:
        link = self._links[step.tier]
        nbytes = self._facts.nbytes[step.storage]
        whole = link.out_ns(nbytes) if type(step) is Copy else link.in_ns(nbytes)
        return Transfer(step.storage, now, link.latency_ns, whole - link.latency_ns)

    def _wait(
        self, position: int, reason: Literal["copy", "fetch"], transfer: Transfer, now: int
    ) -> int:
        """Account for a wait of the compute lane and return the time after it."""
        if transfer.done_ns > now:
            stall = Stall(position, transfer.storage, reason, transfer.done_ns - now)
            self.stalls.append(stall)
            if self._observer is not None:
                self._observer.stalled(stall, now)
            return transfer.done_ns
        return now
