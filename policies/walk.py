"""The walk: one pass over a trace that asks the parts of a stack what they wish, and writes the
schedule.

It owns what no part may own: deadness (no later need and no hold), restores (whoever dropped a
value, the walk brings it back: from a tier if one holds it, else by running its producers again),
pins, and the bytes. Parts answer with wishes; see `policies/base.py`.

Between two places the walk cannot act, so it thinks in stretches: at each place it brings and makes
room for all operations up to the next. In a layer trace every operation is a stretch of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ..errors import PolicyFailed
from ..machines import Machine
from ..schedules import (
    Copy,
    Discard,
    Fetch,
    Free,
    Instruction,
    Ledger,
    Rerun,
    Run,
    Timing,
)
from ..traces import Trace
from .base import Component, Part, Wish
from .forecast import Forecast
from .holds import Holds

_PATIENCE: Final = 4
"""How often a value that was restored for a waiting operation may be evicted and restored again."""


class Walk:
    """One walk over *trace* in *limit* bytes.

    For parts: *facts*, *ledger* (to read), *dead* (what nobody needs any more since the last
    operation), *done* (that operation), *back* (the first operation that needs a storage after its idle time), and the
    methods below. Everything is indexed by the numbers of the trace.
    """

    def __init__(self, trace: Trace, machine: Machine, limit: int) -> None:
        self.trace = trace
        self.machine = machine
        self.facts = trace.facts
        self.ledger = Ledger(trace.facts, limit, machine.capacities)
        self.instructions: list[Instruction] = []
        self.dead: list[int] = []
        self._limit = limit
        self._place = 0
        self.done = -1
        self._owner: dict[int, Part] = {}
        self._wanted: list[int] = []
        self._absent: dict[int, int] = {}  # alive, not on the device: the version to bring back
        self._in_tiers: set[int] = set()
        self._deferred: list[Wish] = []
        self._hard: tuple[int, ...] = ()
        self._soft: dict[int, int] = {}  # how many waiting operations want a storage
        self._heed_soft = True
        self._bounded = True
        self._forecast: Forecast | None = None

    # -- for parts, while they begin -----------------------------------------------------------

    def claim(self, storage: int, part: Part) -> bool:
        """Ask to see to a managed storage during its idle time; the first who asks gets it."""
        return self.facts.managed[storage] and self._owner.setdefault(storage, part) is part

    def hold(self, storage: int) -> None:
        """Announce a drop: what *storage* is computed from stays obtainable until it dies."""
        self._wanted.append(storage)

    def forecast(self) -> Forecast:
        """Return the clock of this walk; it runs from the moment that somebody asks for it."""
        if self._forecast is None:
            self._forecast = Forecast(self.facts, Timing(self.trace, self.machine))
        return self._forecast

    # -- for parts, at any time after ----------------------------------------------------------

    def resident(self, storage: int) -> bool:
        """Whether a storage is on the device, whole."""
        return self.ledger.version[storage] >= 0 and storage not in self._absent

    def alive(self, storage: int) -> bool:
        """Whether some operation to come needs a storage."""
        return self._holds.last[storage] > self.done

    def held(self, storage: int) -> bool:
        """Whether the hold of a storage could be promised: it may be dropped in its idle time."""
        return storage in self._holds.version

    def droppable(self, storage: int) -> bool:
        """Whether a storage, as it is now, would come back by recomputation."""
        version = self._absent.get(storage, self.ledger.version[storage])
        return self._holds.version.get(storage, -2) == version

    def pinned(self, storage: int) -> bool:
        """Whether the instruction at hand, or an operation that waits, needs a storage here."""
        return storage in self._hard or (self._heed_soft and storage in self._soft)

    def free_bytes(self) -> int:
        """Return how many bytes are free on the device."""
        return self._limit - self.ledger.device_nbytes

    @property
    def back(self) -> list[int]:
        """For each storage the first operation that needs it after its idle time; -1 if none."""
        return self._holds.back

    # -- the walk ------------------------------------------------------------------------------

    def run(self, components: Iterable[Component]) -> None:
        """Walk the whole trace and leave the instructions in *instructions*."""
        parts = list(_begin(self, components))
        self._holds = Holds(self.facts, self._wanted)
        self._dying = self._deaths()
        self._before = _overriding(parts, "before")
        self._after = _overriding(parts, "after")
        self._room_makers = _overriding(parts, "make_room")
        self._choosers = _overriding(parts, "choose")
        self._fetched = _overriding(parts, "fetched")
        for part in parts:
            part.start()
        facts, ledger, absent = self.facts, self.ledger, self._absent
        needs, before, limit = facts.needs, self._before, self._limit
        surge = [ledger.inside(op) + fresh for op, fresh in enumerate(facts.fresh_nbytes)]
        if facts.program_frees:
            self._free_for_program(0)
        if facts.trace.places == "saves":
            self._walk_stretches(surge)
        else:
            for op in range(facts.op_count):
                for hook in before:
                    for wish in hook(op):
                        self._wish(wish)
                if absent and not absent.keys().isdisjoint(needs[op]):
                    self._bring(needs[op], op)
                if ledger.device_nbytes + surge[op] > limit:
                    self._hard = needs[op]
                    self._make_room(surge[op])
                    self._hard = ()
                self._run(op)
        self._close()

    def _walk_stretches(self, surge: list[int]) -> None:
        facts = self.facts
        places = [place for place in range(facts.op_count + 1) if facts.is_place[place]]
        for place, following in zip(places, places[1:], strict=False):
            waiting, self._deferred = self._deferred, []
            for wish in waiting:
                self._wish(wish)
            stretch = range(place, following)
            for op in stretch:
                for hook in self._before:
                    for wish in hook(op):
                        self._wish(wish)
            needs = tuple({s: None for op in stretch for s in facts.needs[op]})
            if not self._absent.keys().isdisjoint(needs):
                self._bring(needs, place)
            self._hard = needs
            self._make_room(self._most(stretch, surge))
            self._hard = ()
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
        facts, ledger = self.facts, self.ledger
        algorithm = self._choose(op) if self._choosers else 0
        self.instructions.append(Run(op, algorithm))
        ledger.run(op, algorithm)
        self.done = op
        self._place = op + 1
        if self._forecast is not None:
            self._forecast.run(op, algorithm)
        if self._in_tiers and facts.overwrites[op]:
            self._discard_stale(facts.overwrites[op])
        if facts.program_frees:
            self._free_for_program(op + 1)
        self.dead = dead = self._dying.get(op, [])
        for hook in self._after:
            for wish in hook(op, None):
                self._wish(wish)
        if dead and (self._in_tiers or self._absent):
            self._bury(dead)

    def _choose(self, op: int) -> int:
        operation = self.trace.operations[op]
        if operation.algorithms:
            free = self.free_bytes() - self.facts.fresh_nbytes[op] - operation.transient_nbytes
            for chooser in self._choosers:
                algorithm = chooser(op, free)
                if algorithm is not None:
                    return int(algorithm)
        return 0

    def _free_for_program(self, place: int) -> None:
        for s in self.facts.program_frees.get(place, ()):
            if self.alive(s):  # somebody will compute it again for a value that was dropped
                self._absent[s] = self.ledger.version[s]
            self._emit_free(Free(s))

    def _deaths(self) -> dict[int, list[int]]:
        deaths: dict[int, list[int]] = {}
        managed, held = self.facts.managed, self._holds.version
        for s, op in enumerate(self._holds.last):
            if managed[s] or s in held:
                deaths.setdefault(op, []).append(s)
        return deaths

    def _bury(self, dead: list[int]) -> None:
        """Forget what has died: nobody brings it back, and no tier needs to keep it."""
        for s in dead:
            self._absent.pop(s, None)
            if s in self._in_tiers:
                for tier, copies in self.ledger.copies.items():
                    if copies[s] >= 0:
                        self._wish(Discard(s, tier))

    def _discard_stale(self, written: tuple[int, ...]) -> None:
        for s in written:
            for tier, copies in self.ledger.copies.items():
                if copies[s] >= 0:
                    self._wish(Discard(s, tier))

    def _close(self) -> None:
        """Free what is left on the device and in the tiers: the step is over."""
        facts, ledger = self.facts, self.ledger
        for s in range(facts.storage_count):
            if ledger.version[s] >= 0 and not facts.alive_at_end[s]:
                self._emit_free(Free(s))
        self._absent.clear()
        for s in sorted(self._in_tiers):
            for tier, copies in ledger.copies.items():
                if copies[s] >= 0:
                    self._emit_discard(Discard(s, tier))

    # -- wishes --------------------------------------------------------------------------------

    def _wish(self, wish: Wish) -> None:
        """Place a wish, or skip it if it is moot or would do harm; between places it waits."""
        if type(wish) is Free:
            self._wish_free(wish)
        elif not isinstance(wish, Copy | Fetch | Discard | Rerun):
            raise PolicyFailed(
                f"a part wished for {wish!r}; a wish is a Free, Copy, Fetch, Discard or Rerun"
            )
        elif not self.facts.is_place[self._place]:
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
        s = wish.storage
        facts, place = self.facts, self._place
        version = self.ledger.version[s]
        if version < 0 or s in self._absent:  # not here, or half computed again
            return
        if self._holds.last[s] > self.done:
            if not facts.is_place[place]:
                self._deferred.append(wish)
                return
            if (
                not (
                    facts.absent_from[s] <= place < facts.absent_until[s] or place >= facts.death[s]
                )
                or self.pinned(s)
                or not (self.droppable(s) or self._tier_of(s, version))
            ):
                return
            self._absent[s] = version
        elif not facts.is_place[place] and place != facts.death[s]:
            self._deferred.append(wish)
            return
        elif not facts.managed[s] and place < facts.death[s]:
            return
        self._emit_free(wish)

    def _wish_copy(self, wish: Copy) -> None:
        s, tier = wish.storage, wish.tier
        facts, ledger = self.facts, self.ledger
        version = ledger.version[s]
        if (
            version < 0
            or s in self._absent
            or not facts.managed[s]
            or not self.alive(s)
            or self._place < facts.packed[s]
            or tier not in ledger.copies
            or ledger.copies[tier][s] == version
        ):
            return
        if ledger.tier_nbytes[tier] + facts.nbytes[s] > ledger.capacity[tier]:
            return
        self.instructions.append(wish)
        ledger.copy(s, tier)
        self._in_tiers.add(s)
        if self._forecast is not None:
            self._forecast.copy(s, tier)

    def _wish_fetch(self, wish: Fetch) -> None:
        s, tier = wish.storage, wish.tier
        ledger = self.ledger
        if s not in self._absent or ledger.copies.get(tier, [-1] * (s + 1))[s] != self._absent[s]:
            return
        ahead = self.done + 1
        surge = self.facts.fresh_nbytes[ahead] + ledger.inside(ahead)
        if self.facts.nbytes[s] + surge <= self.free_bytes():
            self._emit_fetch(wish)

    def _wish_discard(self, wish: Discard) -> None:
        s, tier = wish.storage, wish.tier
        copies = self.ledger.copies.get(tier)
        if copies is None or copies[s] < 0:
            return
        if s in self._absent and copies[s] == self._absent[s] and not self.droppable(s):
            others = [c for t, c in self.ledger.copies.items() if t != tier]
            if all(c[s] != copies[s] for c in others):
                return
        self._emit_discard(wish)

    def _wish_rerun(self, op: int) -> None:
        facts = self.facts
        wanted = [s for s in facts.fresh[op] if s in self._absent and self.droppable(s)]
        if wanted and op <= self.done and facts.fresh_nbytes[op] <= self.free_bytes():
            self._bring(tuple(wanted), self.done + 1)

    # -- room ----------------------------------------------------------------------------------

    def _make_room(self, nbytes: int) -> None:
        """Ask the parts to give way until *nbytes* are free; at last also what waiting wants."""
        ledger, limit = self.ledger, self._limit
        if not self._bounded or ledger.device_nbytes + nbytes <= limit:
            return
        for self._heed_soft in (True, False):
            for hook in self._room_makers:
                for wish in hook(ledger.device_nbytes + nbytes - limit):
                    self._wish(wish)
                    if ledger.device_nbytes + nbytes <= limit:
                        self._heed_soft = True
                        return
        self._heed_soft = True

    # -- restores ------------------------------------------------------------------------------

    def _tier_of(self, s: int, version: int) -> str:
        """Return a tier that holds *version* of a storage; "" if none does."""
        if s in self._in_tiers:
            for tier, copies in self.ledger.copies.items():
                if copies[s] == version:
                    return tier
        return ""

    def _bring(self, needs: tuple[int, ...], waiting: int) -> None:
        """Bring back all that is absent of *needs*, for the operation *waiting*.

        What is computed again comes first: it passes through more bytes than it leaves. If bringing
        one keeps evicting another, the last attempt ignores the limit, and the ledger says so.
        """
        absent = self._absent
        self._want(needs, 1)
        for attempt in range(_PATIENCE + 1):
            missing = [s for s in needs if s in absent]
            if not missing:
                break
            self._bounded = attempt < _PATIENCE
            missing.sort(key=lambda s: self._tier_of(s, absent[s]) != "")
            for s in missing:
                if s in absent:
                    self._restore(s, waiting)
        self._bounded = True
        self._want(needs, -1)

    def _want(self, storages: tuple[int, ...], change: int) -> None:
        """Count the storages of an operation that waits in or out of the soft pins."""
        soft = self._soft
        for s in storages:
            count = soft.get(s, 0) + change
            if count:
                soft[s] = count
            else:
                del soft[s]

    def _restore(self, storage: int, waiting: int) -> None:
        """Bring back one storage: fetch it, or run its producers again, theirs first."""
        facts, absent = self.facts, self._absent
        stack = [_Restore(storage)]
        links = 0
        while stack:
            frame = stack[-1]
            s = frame.storage
            if s not in absent:
                self._unwait(stack.pop())
                continue
            tier = "" if frame.link else self._tier_of(s, absent[s])
            if tier:
                self._hard = (s,)
                self._make_room(facts.nbytes[s])
                self._hard = ()
                self._emit_fetch(Fetch(s, tier))
                continue
            links += 1
            if links > 1000 * (len(stack) + 1):
                self._bounded = False  # it goes in circles: stop evicting, let the ledger tell
            chain = facts.chain(s, absent[s])
            op = chain[frame.link]
            missing = [r for r in facts.reads[op] if r != s and r in absent]
            if missing:
                if not frame.waits_for:
                    frame.waits_for = facts.reads[op]
                    self._want(frame.waits_for, 1)
                stack.extend(_Restore(r) for r in missing)
                continue
            self._unwait(frame)
            self._rerun(op, s)
            frame.link += 1
            if frame.link == len(chain):
                del absent[s]
                stack.pop()
            self._tell_rerun(op, waiting)

    def _unwait(self, frame: "_Restore") -> None:
        self._want(frame.waits_for, -1)
        frame.waits_for = ()

    def _rerun(self, op: int, target: int) -> None:
        facts, ledger = self.facts, self.ledger
        for sibling in facts.fresh[op]:
            if ledger.version[sibling] >= 0:  # all outputs come anew
                if self.alive(sibling):
                    self._absent[sibling] = ledger.version[sibling]
                self._emit_free(Free(sibling))
        self._hard = (target, *facts.reads[op])
        self._make_room(facts.fresh_nbytes[op] + ledger.inside(op))
        self._hard = ()
        self.instructions.append(Rerun(op))
        ledger.rerun(op)
        if self._forecast is not None:
            self._forecast.run(op)
        for sibling in facts.fresh[op]:
            if sibling != target and self._absent.get(sibling) == ledger.version[sibling]:
                del self._absent[sibling]

    def _tell_rerun(self, op: int, waiting: int) -> None:
        self.dead = [s for s in self.facts.fresh[op] if not self.alive(s) and self.resident(s)]
        for hook in self._after:
            for wish in hook(op, waiting):
                self._wish(wish)

    # -- instructions --------------------------------------------------------------------------

    def _emit_free(self, free: Free) -> None:
        self.instructions.append(free)
        self.ledger.free(free.storage)
        if self._forecast is not None:
            self._forecast.free(free.storage)

    def _emit_fetch(self, fetch: Fetch) -> None:
        self.instructions.append(fetch)
        self.ledger.fetch(fetch.storage, fetch.tier)
        self._absent.pop(fetch.storage, None)
        if self._forecast is not None:
            self._forecast.fetch(fetch.storage, fetch.tier)
        for hook in self._fetched:
            hook(fetch.storage)

    def _emit_discard(self, discard: Discard) -> None:
        self.instructions.append(discard)
        self.ledger.discard(discard.storage, discard.tier)
        if all(copies[discard.storage] < 0 for copies in self.ledger.copies.values()):
            self._in_tiers.discard(discard.storage)


class _Restore:
    """A storage on its way back: the next link of its chain, and what its operation waits for."""

    __slots__ = ("link", "storage", "waits_for")

    def __init__(self, storage: int) -> None:
        self.storage = storage
        self.link = 0
        self.waits_for: tuple[int, ...] = ()


def _begin(walk: Walk, components: Iterable[Component]) -> Iterator[Part]:
    for component in components:
        begun = component.begin(walk)
        yield from begun if isinstance(begun, tuple) else (begun,)


def _overriding(parts: list[Part], hook: str) -> list[Callable[..., Any]]:
    return [getattr(p, hook) for p in parts if getattr(type(p), hook) is not getattr(Part, hook)]
