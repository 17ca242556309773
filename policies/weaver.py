"""The weaver: one pass over a trace that asks the parts of a stack what they wish, and weaves that
into the schedule.

It owns what no part may own: deadness (no later need and no hold), restores, and the bytes. Parts
answer with wishes (`policies/base.py`); the weaver places them, skips moot ones and refuses those
that would do harm.

Between two places it cannot act, so it thinks in stretches: at each place it brings and makes room
for all operations up to the next. In a layer trace every operation is a stretch of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Never

from ..errors import PolicyFailed
from ..machines import Machine
from ..schedules import Copy, Discard, Fetch, Free, Instruction, Rerun
from ..traces import Trace
from .base import Component, Part, Wish
from .draft import Draft
from .restores import Pins, Restores
from .walk import Walk


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
        self._deferred: list[Wish] = []
        self._making_room = False

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
                    self._wish(wish)
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
            waiting, self._deferred = self._deferred, []
            for wish in waiting:
                self._wish(wish)
            stretch = range(place, following)
            for op in stretch:
                for hook in self._before:
                    for wish in hook(op):
                        self._wish(wish)
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
                self._wish(wish)
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
            return min(fitting, key=lambda k: operation.algorithms[k - 1].device_ns)
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
            self._wish(Discard(s, tier))

    def _tell_rerun(self, op: int, waiting: int) -> None:
        fresh = self.facts.fresh[op]
        self._walk.dead = [
            s for s in fresh if not self._walk.alive(s) and self.ledger.version[s] >= 0
        ]
        for hook in self._after:
            for wish in hook(op, waiting):
                self._wish(wish)

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
        self._making_room = True
        for self._pins.softly in (True, False):
            if self._ask_for_room(nbytes):
                break
        self._pins.softly = True
        self._making_room = False

    def _ask_for_room(self, nbytes: int) -> bool:
        ledger, limit = self.ledger, self._draft.limit
        for hook in self._room_makers:
            for wish in hook(ledger.device_nbytes + nbytes - limit):
                self._wish(wish)
                if ledger.device_nbytes + nbytes <= limit:
                    return True
        return False

    # -- wishes --------------------------------------------------------------------------------

    def _wish(self, wish: Wish) -> None:
        """Place a wish, or skip it if it is moot or would do harm; between places it waits."""
        if type(wish) is Free:
            if type(wish.storage) is not int or not 0 <= wish.storage < self.facts.storage_count:
                self._refuse(wish)
            self._wish_free(wish)
        elif not self._makes_sense(wish):
            self._refuse(wish)
        elif not self.facts.is_place[self._walk.done + 1]:
            self._deferred.append(wish)
        elif type(wish) is Copy:
            self._wish_copy(wish)
        elif type(wish) is Fetch:
            self._wish_fetch(wish)
        elif type(wish) is Discard:
            self._wish_discard(wish)
        elif type(wish) is Rerun:
            self._wish_rerun(wish.op)

    def _makes_sense(self, wish: object) -> bool:
        """Whether a wish is an instruction about something that exists."""
        if isinstance(wish, Copy | Fetch | Discard):
            number, count = wish.storage, self.facts.storage_count
            if wish.tier not in self.ledger.copies:
                return False
        elif isinstance(wish, Rerun):
            number, count = wish.op, self.facts.op_count
        else:
            return False
        return type(number) is int and 0 <= number < count

    def _refuse(self, wish: object) -> Never:
        facts, tiers = self.facts, ", ".join(self.ledger.copies) or "none"
        raise PolicyFailed(
            f"a part wished for {wish!r}; a wish is a Free, Copy, Fetch, Discard or Rerun; "
            f"storages are numbers below {facts.storage_count}, operations below "
            f"{facts.op_count}, tiers are: {tiers}"
        )

    def _wish_free(self, wish: Free) -> None:
        s, facts, place = wish.storage, self.facts, self._walk.done + 1
        version = self.ledger.version[s]
        if version < 0 or s in self._draft.absent:  # not here, or half computed again
            return
        if self._walk.holds.last[s] <= self._walk.done:
            if not facts.managed[s] and place < facts.death[s]:  # the program's own
                return
            if not facts.is_place[place] and place != facts.death[s]:
                self._deferred.append(wish)
                return
        elif not facts.is_place[place]:
            self._deferred.append(wish)
            return
        elif not self._walk.may_leave(s) or not (
            self._walk.droppable(s) or self._draft.tier_of(s, version)
        ):
            return
        else:
            self._draft.absent[s] = version
        self._draft.free(wish)

    def _wish_copy(self, wish: Copy) -> None:
        s, tier = wish.storage, wish.tier
        facts, ledger = self.facts, self.ledger
        if (
            facts.managed[s]
            and self._draft.resident(s)
            and self._walk.alive(s)
            and facts.packed[s] <= self._walk.done + 1
            and ledger.copies[tier][s] != ledger.version[s]
            and ledger.tier_nbytes[tier] + facts.nbytes[s] <= ledger.capacity[tier]
        ):
            self._draft.copy(wish)

    def _wish_fetch(self, wish: Fetch) -> None:
        s, ahead = wish.storage, self._walk.done + 1
        version = self._draft.absent.get(s, -1)
        if (
            version < 0
            or self._making_room
            or ahead == self.facts.op_count
            or self.ledger.version[s] >= 0  # half computed again
            or self.ledger.copies[wish.tier][s] != version
        ):
            return
        surge = self.facts.fresh_nbytes[ahead] + self.facts.least_inside_nbytes[ahead]
        if self.facts.nbytes[s] + surge <= self._walk.free_nbytes():  # it drives nobody out
            self._draft.fetch(wish)

    def _wish_discard(self, wish: Discard) -> None:
        s, tier = wish.storage, wish.tier
        tiers = self._draft.tiers_of(s)
        if tier not in tiers:
            return
        wanted = self._draft.absent.get(s, -1)
        last = all(self.ledger.copies[t][s] != wanted for t in tiers if t != tier)
        if self.ledger.copies[tier][s] != wanted or not last:
            self._draft.discard(wish)

    def _wish_rerun(self, op: int) -> None:
        if self._making_room or self._restores.busy:
            return
        absent, managed = self._draft.absent, self.facts.managed
        wanted = tuple(  # the program's own are computed again only on the way to others
            s
            for s in self.facts.fresh[op]
            if s in absent and managed[s] and self._walk.droppable(s)
        )
        if wanted and self.facts.fresh_nbytes[op] <= self._walk.free_nbytes():
            self._restores.bring(wanted, self._walk.done + 1)


def _begin(walk: Walk, components: Iterable[Component]) -> Iterator[Part]:
    for component in components:
        begun = component.begin(walk)
        yield from begun if isinstance(begun, tuple) else (begun,)


def _overriding(parts: list[Part], hook: str) -> list[Callable[..., Any]]:
    return [getattr(p, hook) for p in parts if getattr(type(p), hook) is not getattr(Part, hook)]
