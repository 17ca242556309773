"""The weaver: one pass over a trace that asks the parts of a stack what they wish, and weaves that
into the schedule.

It owns what no part may own: deadness (no later need and no hold), restores (`restores.py`) and the
bytes. Parts answer with wishes, which `wishes.py` places, skips if moot, and refuses if harmful.

Between two places it cannot act, so it thinks in stretches: at each place it brings and makes room
for all operations up to the next. In a layer trace every operation is a stretch of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from ..errors import PolicyFailed
from ..machines import Machine
from ..schedules import Discard, Free, Instruction
from ..traces import Trace
from .base import Component, Part
from .draft import Draft
from .restores import Pins, Restores
from .walk import Walk
from .wishes import Wishes


class Weaver:
    """Weaves the wishes of components into one step of *trace*, in *limit* bytes."""

    def __init__(self, trace: Trace, machine: Machine, limit: int) -> None:
        self.trace = trace
        self.facts = trace.facts
        self._draft = Draft(trace, machine, limit)
        self.ledger = self._draft.ledger
        self._pins = Pins()
        self._walk = Walk(trace, machine, self._draft, self._pins)
        self._restores = Restores(
            self._draft,
            self._pins,
            self._make_room,
            self._choose,
            self._walk.alive,
            self._tell_rerun,
        )
        self._wishes = Wishes(self._walk, self._draft, self._restores)

    def run(self, components: Iterable[Component]) -> list[Instruction]:
        """Walk the whole trace and return the instructions."""
        parts = list(_begin(self._walk, components))
        self._walk.begun()
        self._dying = self._deaths()
        self._before = _overriding(parts, "before")
        self._after = _overriding(parts, "after")
        self._room_makers = _overriding(parts, "make_room")
        self._choosers = _overriding(parts, "choose")
        self._draft.fetched = _overriding(parts, "fetched")
        for part in parts:
            part.start()
        self._has_algorithms = any(op.algorithms for op in self.trace.operations)
        surge = [
            made + inside
            for made, inside in zip(
                self.facts.fresh_nbytes, self.facts.least_inside_nbytes, strict=True
            )
        ]
        if self.facts.program_frees:
            self._free_for_program(0)
        if self.trace.places == "saves":
            self._walk_stretches(surge)
        else:
            self._walk_operations(surge)
        self._close()
        return self._draft.instructions

    def _walk_operations(self, surge: list[int]) -> None:
        """Walk where a driver can act at every operation."""
        ledger, absent, pins = self.ledger, self._draft.absent, self._pins
        needs, before, limit = self.facts.needs, self._before, self._draft.limit
        for op in range(self.facts.op_count):
            for hook in before:
                for wish in hook(op):
                    self._wishes.grant(wish)
            if absent and not absent.keys().isdisjoint(needs[op]):
                self._restores.bring(needs[op], op)
            if ledger.device_nbytes + surge[op] > limit:
                pins.hard = needs[op]
                self._make_room(surge[op])
                pins.hard = ()
            self._run(op)

    def _walk_stretches(self, surge: list[int]) -> None:
        """Walk where a driver can act at some places only: for each, think as far as the next."""
        facts, pins = self.facts, self._pins
        places = [place for place, allowed in enumerate(facts.is_place) if allowed]
        for place, following in pairwise(places):
            waiting, self._wishes.deferred = self._wishes.deferred, []
            for wish in waiting:
                self._wishes.grant(wish)
            stretch = range(place, following)
            for op in stretch:
                for hook in self._before:
                    for wish in hook(op):
                        self._wishes.grant(wish)
            needs = tuple(dict.fromkeys(s for op in stretch for s in facts.needs[op]))
            if not self._draft.absent.keys().isdisjoint(needs):
                self._restores.bring(needs, place)
            pins.hard = needs
            self._make_room(self._most(stretch, surge))
            pins.hard = ()
            for op in stretch:
                self._run(op)

    def _most(self, stretch: range, surge: list[int]) -> int:
        """Return the bytes that a stretch adds at its worst; only the program frees inside it."""
        most = grown = 0
        for op in stretch:
            most = max(most, grown + surge[op])
            grown += self.facts.fresh_nbytes[op]
            for s in self.facts.program_frees.get(op + 1, ()):
                grown -= self.facts.nbytes[s]
        return most

    def _run(self, op: int) -> None:
        facts, draft = self.facts, self._draft
        draft.run(op, self._choose(op) if self._has_algorithms else 0)
        self._walk.done = op
        if draft.in_tiers:
            for s in facts.rewrites[op]:  # what the tiers hold of it is stale
                self._discard_all(s)
        if facts.program_frees:
            self._free_for_program(op + 1)
        self._walk.dead = dead = self._dying.get(op, [])
        if draft.absent:
            for s in dead:  # nobody brings it back
                draft.absent.pop(s, None)
        for hook in self._after:
            for wish in hook(op, None):
                self._wishes.grant(wish)
        if draft.in_tiers:
            for s in dead:  # no tier needs to keep it
                self._discard_all(s)

    def _choose(self, op: int) -> int:
        """Return the algorithm to run by: a part's choice, else the first if its workspace fits,
        else the fastest that does: a workspace drives nobody out."""
        operation = self.trace.operations[op]
        count = len(operation.algorithms)
        if not count:
            return 0
        room = self._walk.free_nbytes() - self.facts.fresh_nbytes[op]
        for chooser in self._choosers:
            algorithm = chooser(op, room - operation.transient_nbytes)
            if algorithm is not None:
                if type(algorithm) is not int or not 0 <= algorithm <= count:
                    raise PolicyFailed(
                        f"a part chose algorithm {algorithm!r} of {operation.name!r}; "
                        f"there are 0 to {count}"
                    )
                return algorithm
        inside = [self.facts.inside(op, algorithm) for algorithm in range(count + 1)]
        if inside[0] <= room:
            return 0
        fitting = [k for k in range(1, count + 1) if inside[k] <= room]
        if fitting:
            return min(fitting, key=lambda k: self._draft.timing.run_ns(op, k))
        return min(range(count + 1), key=inside.__getitem__)

    def _deaths(self) -> dict[int, list[int]]:
        """For each operation, the storages that nobody needs after it."""
        deaths: dict[int, list[int]] = {}
        managed, held = self.facts.managed, self._walk.holds.version
        for s, op in enumerate(self._walk.holds.last):
            if managed[s] or s in held:
                deaths.setdefault(op, []).append(s)
        return deaths

    def _free_for_program(self, place: int) -> None:
        for s in self.facts.program_frees.get(place, ()):
            if self._walk.alive(
                s
            ):  # it will be computed again on the way to a value that was dropped
                self._draft.absent[s] = self.ledger.version[s]
            self._draft.free(Free(s))

    def _discard_all(self, s: int) -> None:
        for tier in self._draft.tiers_of(s):
            self._wishes.grant(Discard(s, tier))

    def _tell_rerun(self, op: int, waiting: int) -> None:
        fresh = self.facts.fresh[op]
        self._walk.dead = [
            s for s in fresh if not self._walk.alive(s) and self.ledger.version[s] >= 0
        ]
        for hook in self._after:
            for wish in hook(op, waiting):
                self._wishes.grant(wish)

    def _close(self) -> None:
        """Free what is left on the device and in the tiers: the step is over."""
        facts, draft = self.facts, self._draft
        for s in range(facts.storage_count):
            if self.ledger.version[s] >= 0 and not facts.alive_at_end[s]:
                draft.free(Free(s))
        for s in sorted(draft.in_tiers):
            for tier in draft.tiers_of(s):
                draft.discard(Discard(s, tier))

    # -- room ----------------------------------------------------------------------------------

    def _make_room(self, nbytes: int) -> None:
        """Ask the parts to give way until *nbytes* are free; at last also what waiting wants."""
        ledger, limit = self.ledger, self._draft.limit
        if not self._restores.bounded or ledger.device_nbytes + nbytes <= limit:
            return
        self._wishes.making_room = True
        for self._pins.softly in (True, False):
            if self._ask_for_room(nbytes):
                break
        self._pins.softly = True
        self._wishes.making_room = False

    def _ask_for_room(self, nbytes: int) -> bool:
        ledger, limit = self.ledger, self._draft.limit
        for hook in self._room_makers:
            for wish in hook(ledger.device_nbytes + nbytes - limit):
                self._wishes.grant(wish)
                if ledger.device_nbytes + nbytes <= limit:
                    return True
        return False


def _begin(walk: Walk, components: Iterable[Component]) -> Iterator[Part]:
    for component in components:
        begun = component.begin(walk)
        yield from begun if isinstance(begun, tuple) else (begun,)


def _overriding(parts: list[Part], hook: str) -> list[Callable[..., Any]]:
    return [getattr(p, hook) for p in parts if getattr(type(p), hook) is not getattr(Part, hook)]
