"""Restores: bringing back what an operation needs, whoever gave it up.

From a tier if one holds it, else by running its producers again, theirs first, on a stack:
chains are thousands of operations long. While something is brought back, what the instruction at
hand needs is pinned hard, and what waiting operations want is pinned softly: given up last, then
brought back once more.
"""

from collections.abc import Callable
from typing import Final

from ..schedules import Fetch, Free
from .draft import Draft

_PATIENCE: Final = 4
"""How often what was restored for a waiting operation may be given up and restored again."""

_CIRCLES: Final = 1000
"""How many reruns, for each storage on the way, one restore may take before it stops giving up."""


class Pins:
    """What may not leave now: *hard*, what the instruction at hand needs; *soft*, what waiting
    operations want, by how many of them. Soft pins are heeded as long as *softly* is set."""

    def __init__(self) -> None:
        self.hard: tuple[int, ...] = ()
        self.softly = True
        self._soft: dict[int, int] = {}

    def pinned(self, s: int) -> bool:
        """Whether a storage is pinned."""
        return s in self.hard or (self.softly and s in self._soft)

    def want(self, storages: tuple[int, ...], change: int) -> None:
        """Count the storages of an operation that waits in (1) or out (-1)."""
        soft = self._soft
        for s in storages:
            count = soft.get(s, 0) + change
            if count:
                soft[s] = count
            else:
                del soft[s]


class _Frame:
    """A storage on its way back: the next link of its chain, and what its operation waits for."""

    __slots__ = ("link", "storage", "waits_for")

    def __init__(self, storage: int) -> None:
        self.storage = storage
        self.link = 0
        self.waits_for: tuple[int, ...] = ()


class Restores:
    """Brings storages back to a draft.

    *pins* says what may not leave, *make_room* frees bytes for what comes, *choose* says by
    which algorithm to rerun, *alive* whether a storage is still needed, and *told* hears of every
    rerun, with the operation that it is for.
    """

    def __init__(
        self,
        draft: Draft,
        pins: Pins,
        make_room: Callable[[int], None],
        choose: Callable[[int], int],
        alive: Callable[[int], bool],
        told: Callable[[int, int], None],
    ) -> None:
        self.bounded = True
        self.busy = False
        self._pins = pins
        self._draft = draft
        self._facts = draft.facts
        self._make_room = make_room
        self._choose = choose
        self._alive = alive
        self._told = told

    def bring(self, needs: tuple[int, ...], waiting: int) -> None:
        """Bring back all that is absent of *needs*, for the operation *waiting*.

        What is computed again comes first: it passes through more bytes than it leaves. If bringing
        one keeps driving out another, the last attempt ignores the limit, and the ledger tells.
        """
        draft, absent = self._draft, self._draft.absent
        self.busy = True
        self._pins.want(needs, 1)
        for attempt in range(_PATIENCE + 1):
            missing = [s for s in needs if s in absent]
            if not missing:
                break
            self.bounded = attempt < _PATIENCE
            missing.sort(key=lambda s: draft.tier_of(s, absent[s]) != "")
            for s in missing:
                if s in absent:
                    self._restore(s, waiting)
        self.bounded = True
        self.busy = False
        self._pins.want(needs, -1)

    def _restore(self, storage: int, waiting: int) -> None:
        facts, draft, absent = self._facts, self._draft, self._draft.absent
        stack = [_Frame(storage)]
        links = 0
        while stack:
            frame = stack[-1]
            s = frame.storage
            if s not in absent:
                self._stop_waiting(stack.pop())
                continue
            if not frame.link and draft.tier_of(s, absent[s]):
                self._fetch(s)
                continue
            links += 1
            if links > _CIRCLES * (len(stack) + 1):
                self.bounded = False
            chain = facts.chain(s, absent[s])
            op = chain[frame.link]
            missing = [r for r in facts.reads[op] if r != s and r in absent]
            if missing:
                if not frame.waits_for:
                    frame.waits_for = facts.reads[op]
                    self._pins.want(frame.waits_for, 1)
                stack.extend(_Frame(r) for r in missing)
                continue
            self._stop_waiting(frame)
            self._rerun(op, s)
            frame.link += 1
            if frame.link == len(chain):
                del absent[s]
                stack.pop()
            self._told(op, waiting)

    def _fetch(self, s: int) -> None:
        self._pins.hard = (s,)
        self._make_room(self._facts.nbytes[s])
        self._pins.hard = ()
        self._draft.fetch(Fetch(s, self._draft.tier_of(s, self._draft.absent[s])))

    def _rerun(self, op: int, target: int) -> None:
        """Run an operation again for *target*; its other outputs come anew, so they go first."""
        facts, draft, version = self._facts, self._draft, self._draft.ledger.version
        for sibling in facts.fresh[op]:
            if version[sibling] >= 0:
                if self._alive(sibling):
                    draft.absent[sibling] = version[sibling]
                draft.free(Free(sibling))
        self._pins.hard = (target, *facts.reads[op])
        self._make_room(facts.fresh_nbytes[op] + facts.least_inside_nbytes[op])
        self._pins.hard = ()
        draft.rerun(op, self._choose(op))
        for sibling in facts.fresh[op]:
            if sibling != target and draft.absent.get(sibling) == version[sibling]:
                del draft.absent[sibling]

    def _stop_waiting(self, frame: _Frame) -> None:
        self._pins.want(frame.waits_for, -1)
        frame.waits_for = ()
