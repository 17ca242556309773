"""Lanes and links: where copies queue, and what moves their bytes.

A lane takes transfers one at a time, in the order in which they were put. A full-duplex link leaves
each direction to itself; on a half-duplex link all that is in flight shares the time in equal
parts, planned anew whenever a transfer comes or goes.
"""

from collections import deque
from collections.abc import Generator
from fractions import Fraction
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]


class Transfer:
    """One copy on its way, *inward* or outward: it may start at *ready_ns*, and not before the
    transfer *after* is done; it takes *ns* alone on its link."""

    __slots__ = (
        "_event",
        "after",
        "done_ns",
        "inward",
        "latency_ns",
        "ns",
        "ready_ns",
        "start_ns",
        "storage",
        "tier",
    )

    def __init__(
        self,
        storage: int,
        tier: str,
        inward: bool,
        ready_ns: int,
        latency_ns: int,
        ns: int,
        after: "Transfer | None" = None,
    ) -> None:
        self.storage = storage
        self.tier = tier
        self.inward = inward
        self.after = after
        self.ready_ns = ready_ns
        self.latency_ns = latency_ns
        self.ns = ns
        self.start_ns = -1
        self.done_ns = -1
        self._event: simpy.Event | None = None

    def wait(self, env: simpy.Environment) -> simpy.Event:
        """Return the event of its end; to be asked only while it is not done."""
        if self._event is None:
            self._event = env.event()
        return self._event

    def finish(self, now: int) -> None:
        """Mark it done and wake whoever waits."""
        self.done_ns = now
        if self._event is not None:
            self._event.succeed()


class SharedLink:
    """A half-duplex link: transfers in flight progress at equal parts of its rate."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._left: dict[simpy.Event, Fraction] = {}  # ns of link time that each still needs
        self._settled_ns = 0
        self._plan = 0

    def move(self, ns: int) -> Steps:
        """Move what would take *ns* alone."""
        self._settle()
        done = self._env.event()
        self._left[done] = Fraction(ns)
        self._replan()
        yield done

    def _settle(self) -> None:
        now = int(self._env.now)
        if self._left:
            share = Fraction(now - self._settled_ns, len(self._left))
            for event in self._left:
                self._left[event] -= share
        self._settled_ns = now

    def _replan(self) -> None:
        for event in [event for event, left in self._left.items() if left <= 0]:
            del self._left[event]
            event.succeed()
        self._plan += 1
        if self._left:
            soonest = min(self._left.values()) * len(self._left)
            self._env.process(self._alarm(self._plan, -(-soonest.numerator // soonest.denominator)))

    def _alarm(self, plan: int, ns: int) -> Steps:
        yield self._env.timeout(ns)
        if plan == self._plan:  # nothing came or went meanwhile
            self._settle()
            self._replan()


class Lane:
    """An in-order queue of transfers over one direction of a link, private or *shared*."""

    def __init__(self, env: simpy.Environment, name: str, shared: SharedLink | None) -> None:
        self.name = name
        self.busy_ns = 0
        self.last: Transfer | None = None
        self._env = env
        self._shared = shared
        self._queue: deque[Transfer] = deque()
        self._idle: simpy.Event | None = None
        env.process(self._serve())

    def put(self, transfer: Transfer) -> None:
        """Queue a transfer; its ready time may lie in the future."""
        self._queue.append(transfer)
        self.last = transfer
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    def _serve(self) -> Steps:
        env, queue, shared = self._env, self._queue, self._shared
        while True:
            if not queue:
                self._idle = env.event()
                yield self._idle
            transfer = queue.popleft()
            if transfer.after is not None and transfer.after.done_ns < 0:
                yield transfer.after.wait(env)
            now = int(env.now)
            start = transfer.start_ns = max(now, transfer.ready_ns)
            if shared is None:
                yield env.timeout(start - now + transfer.latency_ns + transfer.ns)
            else:
                yield env.timeout(start - now + transfer.latency_ns)
                yield from shared.move(transfer.ns)
            end = int(env.now)
            self.busy_ns += end - start
            transfer.finish(end)
