"""The walk: one pass over a trace that asks the parts of a stack what they wish, and writes the
schedule.

It owns what no part may own: deadness (no later need and no hold), restores, pins, and the bytes.
Parts answer with wishes (`policies/base.py`); the walk places them, skips moot ones and refuses
those that would do harm.

Between two places the walk cannot act, so it thinks in stretches: at each place it brings and makes
room for all operations up to the next. In a layer trace every operation is a stretch of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from ..errors import PolicyFailed
from ..machines import Machine
from ..schedules import Copy, Discard, Fetch, Free, Instruction, Ledger, Rerun
from ..traces import Trace
from .base import Component, Part, Wish
from .draft import Draft
from .forecast import Forecast
from .holds import Holds
from .restores import Restores


class Walk:
    """One walk over *trace* in *limit* bytes.

    For parts: *facts*; *ledger*, to read; *done*, the operation that has run last; *dead*, what
    nobody needs any more since then; *back*, the first operation that needs a storage after its
    idle time; and the methods below. Everything goes by the numbers of the trace.
    """

    def __init__(self, trace: Trace, machine: Machine, limit: int) -> None:
        self.trace = trace
        self.machine = machine
        self.facts = trace.facts
        self.done = -1
        self.dead: list[int] = []
        self._draft = Draft(trace, machine, limit)
        self._restores = Restores(self._draft, self._make_room, self.alive, self._tell_rerun)
        self._owner: dict[int, Part] = {}
        self._wanted: list[int] = []
        self._deferred: list[Wish] = []
        self._heed_soft = True

    # -- for parts, while they begin -----------------------------------------------------------

    def claim(self, storage: int, part: Part) -> bool:
        """Ask to see to a managed storage during its idle time; the first who asks gets it."""
        return self.facts.managed[storage] and self._owner.setdefault(storage, part) is part

    def hold(self, storage: int) -> None:
        """Announce a drop: what *storage* is computed from stays obtainable until it dies."""
        self._wanted.append(storage)

    def forecast(self) -> Forecast:
        """Return the clock of this walk; it runs from the moment that somebody asks for it."""
        return self._draft.forecast()

    # -- for parts, from their start on --------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """What is where, and how many bytes."""
        return self._draft.ledger

    @property
    def back(self) -> list[int]:
        """For each storage the first operation that needs it after its idle time; -1 if none."""
        return self._holds.back

    def resident(self, storage: int) -> bool:
        """Whether a storage is on the device, whole."""
        return self._draft.resident(storage)

    def alive(self, storage: int) -> bool:
        """Whether some operation to come needs a storage."""
        return self._holds.last[storage] > self.done

    def held(self, storage: int) -> bool:
        """Whether the hold of a storage could be promised: it may be dropped in its idle time."""
        return storage in self._holds.version

    def droppable(self, storage: int) -> bool:
        """Whether a storage, as it is now, would come back by recomputation."""
        version = self._draft.absent.get(storage, self.ledger.version[storage])
        return self._holds.version.get(storage, -2) == version

    def pinned(self, storage: int) -> bool:
        """Whether the instruction at hand, or an operation that waits, needs a storage here."""
        return self._restores.pinned(storage, softly=self._heed_soft)

    def may_leave(self, storage: int) -> bool:
        """Whether the device copy of a storage may be given up here, if it can come back."""
        facts, place = self.facts, self.done + 1
        idle = facts.absent_from[storage] <= place < facts.absent_until[storage]
        return (idle or place >= facts.death[storage]) and not self.pinned(storage)

    def free_nbytes(self) -> int:
        """Return how many bytes are free on the device."""
        return self._draft.limit - self.ledger.device_nbytes

    # -- the walk ------------------------------------------------------------------------------

    def run(self, components: Iterable[Component]) -> list[Instruction]:
        """Walk the whole trace and return the instructions."""
        parts = list(_begin(self, components))
        self._holds = Holds(self.facts, self._wanted)
        self._dying = self._deaths()
        self._before = _overriding(parts, "before")
        self._after = _overriding(parts, "after")
        self._room_makers = _overriding(parts, "make_room")
        self._choosers = _overriding(parts, "choose")
        self._draft.fetched = _overriding(parts, "fetched")
        for part in parts:
            part.start()
        ledger = self.ledger
        surge = [ledger.inside(op) + made for op, made in enumerate(self.facts.fresh_nbytes)]
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
        ledger, absent, restores = self.ledger, self._draft.absent, self._restores
        needs, before, limit = self.facts.needs, self._before, self._draft.limit
        for op in range(self.facts.op_count):
            for hook in before:
                for wish in hook(op):
                    self._wish(wish)
            if absent and not absent.keys().isdisjoint(needs[op]):
                restores.bring(needs[op], op)
            if ledger.device_nbytes + surge[op] > limit:
                restores.hard = needs[op]
                self._make_room(surge[op])
                restores.hard = ()
            self._run(op)

    def _walk_stretches(self, surge: list[int]) -> None:
        """Walk where a driver can act at some places only: for each, think as far as the next."""
        facts, restores = self.facts, self._restores
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
                restores.bring(needs, place)
            restores.hard = needs
            self._make_room(self._most(stretch, surge))
            restores.hard = ()
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
        draft.run(op, self._choose(op) if self._choosers else 0)
        self.done = op
        if draft.in_tiers:
            for s in facts.rewrites[op]:  # what the tiers hold of it is stale
                self._discard_all(s)
        if facts.program_frees:
            self._free_for_program(op + 1)
        self.dead = dead = self._dying.get(op, [])
        for hook in self._after:
            for wish in hook(op, None):
                self._wish(wish)
        if dead and (draft.in_tiers or draft.absent):
            for s in dead:  # nobody brings it back, and no tier needs to keep it
                draft.absent.pop(s, None)
                self._discard_all(s)

    def _choose(self, op: int) -> int:
        operation = self.trace.operations[op]
        if operation.algorithms:
            free = self.free_nbytes() - self.facts.fresh_nbytes[op] - operation.transient_nbytes
            for chooser in self._choosers:
                algorithm = chooser(op, free)
                if algorithm is not None:
                    return int(algorithm)
        return 0

    def _deaths(self) -> dict[int, list[int]]:
        """For each operation, the storages that nobody needs after it."""
        deaths: dict[int, list[int]] = {}
        managed, held = self.facts.managed, self._holds.version
        for s, op in enumerate(self._holds.last):
            if managed[s] or s in held:
                deaths.setdefault(op, []).append(s)
        return deaths

    def _free_for_program(self, place: int) -> None:
        for s in self.facts.program_frees.get(place, ()):
            if self.alive(s):  # it will be computed again on the way to a value that was dropped
                self._draft.absent[s] = self.ledger.version[s]
            self._draft.free(Free(s))

    def _discard_all(self, s: int) -> None:
        for tier in self._draft.tiers_of(s):
            self._wish(Discard(s, tier))

    def _tell_rerun(self, op: int, waiting: int) -> None:
        fresh = self.facts.fresh[op]
        self.dead = [s for s in fresh if not self.alive(s) and self.ledger.version[s] >= 0]
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
        for self._heed_soft in (True, False):
            for hook in self._room_makers:
                for wish in hook(ledger.device_nbytes + nbytes - limit):
                    self._wish(wish)
                    if ledger.device_nbytes + nbytes <= limit:
                        self._heed_soft = True
                        return
        self._heed_soft = True

    # -- wishes --------------------------------------------------------------------------------

    def _wish(self, wish: Wish) -> None:
        """Place a wish, or skip it if it is moot or would do harm; between places it waits."""
        if type(wish) is Free:
            self._wish_free(wish)
        elif not isinstance(wish, Copy | Fetch | Discard | Rerun):
            raise PolicyFailed(
                f"a part wished for {wish!r}; a wish is a Free, Copy, Fetch, Discard or Rerun"
            )
        elif not self.facts.is_place[self.done + 1]:
            self._deferred.append(wish)
        elif type(wish) is Copy:
            self._wish_copy(wish)
        elif type(wish) is Fetch:
            self._wish_fetch(wish)
        elif type(wish) is Discard:
            self._wish_discard(wish)
        elif type(wish) is Rerun:
            self._wish_rerun(wish.op)

    def _wish_free(self, wish: Free) -> None:
        s, facts, place = wish.storage, self.facts, self.done + 1
        version = self.ledger.version[s]
        if version < 0 or s in self._draft.absent:  # not here, or half computed again
            return
        if self._holds.last[s] <= self.done:
            if not facts.managed[s] and place < facts.death[s]:  # the program's own
                return
            if not facts.is_place[place] and place != facts.death[s]:
                self._deferred.append(wish)
                return
        elif not facts.is_place[place]:
            self._deferred.append(wish)
            return
        elif not self.may_leave(s) or not (self.droppable(s) or self._draft.tier_of(s, version)):
            return
        else:
            self._draft.absent[s] = version
        self._draft.free(wish)

    def _wish_copy(self, wish: Copy) -> None:
        s, tier = wish.storage, wish.tier
        facts, ledger = self.facts, self.ledger
        if (
            tier in ledger.copies
            and facts.managed[s]
            and self._draft.resident(s)
            and self.alive(s)
            and facts.packed[s] <= self.done + 1
            and ledger.copies[tier][s] != ledger.version[s]
            and ledger.tier_nbytes[tier] + facts.nbytes[s] <= ledger.capacity[tier]
        ):
            self._draft.copy(wish)

    def _wish_fetch(self, wish: Fetch) -> None:
        s, ahead = wish.storage, self.done + 1
        version = self._draft.absent.get(s, -1)
        if version < 0 or self.ledger.copies.get(wish.tier, {s: -2})[s] != version:
            return
        surge = self.facts.fresh_nbytes[ahead] + self.ledger.inside(ahead)
        if self.facts.nbytes[s] + surge <= self.free_nbytes():  # it drives nobody out
            self._draft.fetch(wish)

    def _wish_discard(self, wish: Discard) -> None:
        s, tier = wish.storage, wish.tier
        tiers = self._draft.tiers_of(s)
        if tier not in tiers:
            return
        wanted = self._draft.absent.get(s, -1)
        last = all(self.ledger.copies[t][s] != wanted for t in tiers if t != tier)
        if self.ledger.copies[tier][s] != wanted or not last or self.droppable(s):
            self._draft.discard(wish)

    def _wish_rerun(self, op: int) -> None:
        absent = self._draft.absent
        wanted = tuple(s for s in self.facts.fresh[op] if s in absent and self.droppable(s))
        if wanted and self.facts.fresh_nbytes[op] <= self.free_nbytes():
            self._restores.bring(wanted, self.done + 1)


def _begin(walk: Walk, components: Iterable[Component]) -> Iterator[Part]:
    for component in components:
        begun = component.begin(walk)
        yield from begun if isinstance(begun, tuple) else (begun,)


def _overriding(parts: list[Part], hook: str) -> list[Callable[..., Any]]:
    return [getattr(p, hook) for p in parts if getattr(type(p), hook) is not getattr(Part, hook)]
