"""A step by a schedule that is clocked: where its time goes, from place to place.

Each place of the schedule at which hooks fire is stamped once, on the device and on the host, as
are what is computed again and, by the backend, each wait for a copy. All is read when the step is
over. Steps that nobody clocks have none of it.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import NamedTuple

import torch

from ..reports import Stretch
from .actions import Action, What
from .backend import Backend, Stamp
from .entries import Entry, Where
from .hooks import ExecutedStep, Handle
from .phases import Stopwatch
from .plan import Look, Plan
from .slabs import Slabs


class Clocked(NamedTuple):
    """A step that was clocked, by *plan*: its stretches in order, from its beginning to its end."""

    plan: Plan
    stretches: list[Stretch]

    @property
    def ns(self) -> int:
        """The whole step, until nothing is under way any more."""
        return sum(stretch.ns for stretch in self.stretches)


class _Moment(NamedTuple):
    """The first time that a place is reached: the device's stamp, the host's clock, how long hooks
    have taken so far, and how many waits and reruns there have been."""

    place: int
    stamp: Stamp
    host_ns: int
    hooks_ns: int
    waits: int
    reruns: int


class _Rerun(NamedTuple):
    """Something computed again: stamps around it, the host's time, and the waits before it and at
    its end."""

    begin: Stamp
    end: Stamp
    host_ns: int
    waits: tuple[int, int]


class ClockedStep(ExecutedStep):
    """An executed step that is clocked, from when everything is idle until it is so again."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        slabs: Mapping[str, Slabs],
        others: Mapping[Look, Plan] | None = None,
        *,
        constant: bool = False,
        verify: bool = False,
    ) -> None:
        self._moments: list[_Moment] = []
        self._reruns: list[_Rerun] = []
        self._hooks_ns = 0
        self._again = False  # computing again: what that asks for is part of it
        super().__init__(plan, backend, slabs, others, constant=constant, verify=verify)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """As in a step that is not clocked; the clock starts."""
        with self._timing(), super().watched(), Stopwatch(self._end_pass).watch():
            self._backend.drain()
            self._reach(0)
            yield

    def pack(self, tensor: torch.Tensor) -> Handle:
        """As in a step that is not clocked."""
        begin = self._arrive()
        try:
            return super().pack(tensor)
        finally:
            self._hooks_ns += time.perf_counter_ns() - begin

    def unpack(self, handle: Handle) -> torch.Tensor:
        """As in a step that is not clocked."""
        begin = self._arrive()
        try:
            return super().unpack(handle)
        finally:
            self._hooks_ns += time.perf_counter_ns() - begin

    def finish(self) -> None:
        """End the step, and wait until nothing is under way any more."""
        begin = time.perf_counter_ns()
        with self._timing():
            super().finish()
        end = time.perf_counter_ns()
        self._hooks_ns += end - begin
        done = self._backend.stamp()
        waits = self._backend.timed_waits
        self._backend.drain()
        # The host has issued all of it before it waits.
        last = _Moment(-1, self._backend.stamp(), end, self._hooks_ns, waits, len(self._reruns))
        self._moments.append(last)
        self._drained_ns = self._backend.between_ns(done, last.stamp)

    def clocked(self, waits_ns: list[int]) -> Clocked:
        """Return what was measured; *waits_ns* are the waits for copies, in order."""
        backend, count = self._backend, len(self.plan.trace.operations)
        if self._passes != len(self._pass_ends):  # which of them it was, nobody knows
            self._moments = [each for each in self._moments if each.place not in self._after_pass]
        start = self._moments[0]
        stamps_ns = [backend.between_ns(start.stamp, each.stamp) for each in self._moments]
        # No device is ahead of its host: where it is least behind, it has caught up with it. Its
        # first stamp may itself have come late, where others compute on the same GPU.
        lags_ns = [
            ns - (each.host_ns - start.host_ns)
            for ns, each in zip(stamps_ns, self._moments, strict=True)
        ]
        least_ns = min(lags_ns)
        stretches = []
        for (i, here), (j, there) in pairwise(enumerate(self._moments)):
            last = there is self._moments[-1]
            stall_ns = sum(waits_ns[here.waits : there.waits]) + (self._drained_ns if last else 0)
            again_ns = again_host_ns = inside_ns = 0
            for rerun in self._reruns[here.reruns : there.reruns]:
                waited_ns = sum(waits_ns[slice(*rerun.waits)])
                again_ns += backend.between_ns(rerun.begin, rerun.end) - waited_ns
                again_host_ns += rerun.host_ns
                inside_ns += waited_ns
            hooks_ns = there.hooks_ns - here.hooks_ns - again_host_ns
            behind_ns = None
            if backend.lags:
                behind_ns = lags_ns[i] - least_ns
            else:
                hooks_ns -= sum(waits_ns[here.waits : there.waits]) - inside_ns
            stretches.append(
                Stretch(
                    here.place,
                    count if last else there.place,
                    stamps_ns[j] - stamps_ns[i],
                    there.host_ns - here.host_ns,
                    behind_ns,
                    stall_ns,
                    again_ns,
                    max(0, hooks_ns),
                )
            )
        return Clocked(self.plan, stretches)

    def _follow(self, plan: Plan) -> None:
        super()._follow(plan)
        del self._moments[1:]
        self._passes = 0
        self._pass_ends = _pass_ends(plan)
        self._after_pass: set[int] = set()

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Let the backend time waits inside the block."""
        timing, self._backend.timing = self._backend.timing, True
        try:
            yield
        finally:
            self._backend.timing = timing

    def _arrive(self) -> int:
        """A hook fires: stamp its place, if it is the first one there; return the host's clock."""
        places = self.plan.places
        if not self._lost and self._at < len(places):
            self._reach(places[self._at])
        return time.perf_counter_ns()

    def _reach(self, place: int) -> bool:
        if self._moments and place <= self._moments[-1].place:
            return False
        backend = self._backend
        self._moments.append(
            _Moment(
                place,
                backend.stamp(),
                time.perf_counter_ns(),
                self._hooks_ns,
                backend.timed_waits,
                len(self._reruns),
            )
        )
        return True

    def _end_pass(self) -> None:
        """A backward pass has ended, and no hook says so: what follows is forward again, or the
        optimizer."""
        if self._passes < len(self._pass_ends):
            place = self._pass_ends[self._passes]
            if self._reach(place):
                self._after_pass.add(place)
        self._passes += 1

    def _do(self, action: Action) -> None:
        if action.what is What.RERUN:
            with self._computing_again():
                super()._do(action)
        else:
            super()._do(action)

    def _bring(self, entry: Entry) -> None:
        if entry.where is Where.AWAY and not entry.blocks:
            with self._computing_again():
                super()._bring(entry)
        else:
            super()._bring(entry)

    @contextmanager
    def _computing_again(self) -> Iterator[None]:
        if self._again:
            yield
            return
        backend, self._again = self._backend, True
        waits, stamp, host_ns = backend.timed_waits, backend.stamp(), time.perf_counter_ns()
        try:
            yield
        finally:
            self._again = False
            host_ns = time.perf_counter_ns() - host_ns
            self._reruns.append(
                _Rerun(stamp, backend.stamp(), host_ns, (waits, backend.timed_waits))
            )


def _pass_ends(plan: Plan) -> list[int]:
    """Return for each backward pass of a recorded step the place after its last operation."""
    ends, place = [], 0
    for phase, operations in groupby(plan.trace.operations, key=lambda op: op.phase):
        place += len(list(operations))
        if phase == "backward":
            ends.append(place)
    return ends
