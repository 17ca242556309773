"""A schedule compiled for hooks: what is due each time that one of them fires.

An executed step has no log of operations. It knows how many hooks have fired, and the recording
knows at which place each of them did: so every instruction at a place becomes an action of a hook
there. What the program frees itself, and what goes with autograd's graph, needs no action.
"""

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from msgspec import Struct

from ..policies.reserve import Reserved
from ..schedules import Copy, Discard, Fetch, Free, Rerun, Run
from .actions import Action, What, together
from .entries import View
from .reach import Reach
from .recipes import Recipes
from .recording import Recorded

Look = tuple[torch.dtype, Sequence[int]]
"""What a save is told by: its type and shape. Strides may differ from step to step, of a batch."""


class Saved(Struct, frozen=True):
    """What is expected of one save, and the storage that the schedule moves, holds or computes
    from, -1 if it does nothing with it: then its strides and offset are nobody's concern. *counter*
    is autograd's count of its versions, -1 if that is nobody's concern either."""

    dtype: torch.dtype
    shape: Sequence[int]
    view: View
    storage: int
    nbytes: int
    held: bool
    asker: str
    counter: int


Hook = tuple[int, torch.dtype | None, Sequence[int], int, tuple[Action, ...], int]
"""One hook that is expected, as it is compared: n for the pack of save n, with its type, shape, and
the storage that is moved or held (-1: none), or ~n for its unpack; what is due; and which one comes
next. A plain tuple: one with names is unpacked in three times as long, and there are thousands of
hooks."""


class Plan:
    """What a step does by a schedule. *sequence* are the hooks in order: n for the pack of save n,
    ~n for an unpack; *places* are those at which they fire, *due* the actions of each, and *at_end*
    those of the step's end. *hooks* are all of that as it is compared; *reach* says how far they
    are needed. *schedule* and *ledger* are of the trace *proved*: the recorded one, or that with
    smaller workspaces. *kind* is that of the recorded step.

    At a pack actions come after it, at an unpack before it.
    """

    def __init__(self, recorded: Recorded, decided: Reserved) -> None:
        self.trace: Final = recorded.trace
        self.kind: Final = recorded.kind
        self.decided: Final = decided
        self.proved: Final = decided.trace
        self.schedule: Final = decided.schedule
        self.ledger: Final = decided.ledger
        self.names: Final = recorded.trace.facts.names
        self.recipes: Final = Recipes(recorded.repeatable, self.schedule, recorded.sequence)
        self.sequence: Final = [
            fired.number if fired.pack else ~fired.number for fired in recorded.fired
        ]
        self.due: Final[list[tuple[Action, ...]]] = []
        self.at_end: Final[list[Action]] = []
        self.places: Final = [fired.place for fired in recorded.fired]
        self._storages = recorded.storages
        self._held: set[int] = set()
        self._moved: set[int] = set()
        self._actions: dict[int, list[Action]] = {}
        self._last_pack: dict[int, int] = {}
        self._first_unpack: dict[int, int] = {}
        for k, code in enumerate(self.sequence):
            if code >= 0:
                self._last_pack[recorded.storages[code]] = k
            else:
                self._first_unpack.setdefault(recorded.storages[~code], k)
        self._compile()
        nbytes = recorded.trace.facts.nbytes
        self.due.extend(
            together(self._actions.get(k, ()), nbytes) for k in range(len(self.sequence))
        )
        self.saved: Final = [
            Saved(
                view.dtype,
                view.shape,
                view,
                s,
                nbytes[s],
                s in self._held,
                asker,
                counter if s in self.recipes.known else -1,
            )
            if s in self._moved or s in self._held or s in self.recipes.sources
            else Saved(view.dtype, view.shape, view, -1, 0, False, asker, -1)
            for view, s, asker, counter in zip(
                recorded.views, recorded.storages, recorded.askers, recorded.counters, strict=True
            )
        ]
        busy = [
            bool(due) or (code >= 0 and self.saved[code].storage >= 0)
            for code, due in zip(self.sequence, self.due, strict=True)
        ]
        self.reach: Final = Reach(self.sequence, busy)
        self.hooks: Final = self._expected(range(1, len(self.sequence) + 1))
        self._ending: dict[int, list[Hook]] = {}

    @property
    def look(self) -> Look:
        """What the first save looks like: it tells a plan from those of other kinds of steps."""
        return self.saved[0].dtype, self.saved[0].shape

    @property
    def planned(self) -> dict[What, int]:
        """How often each thing is due."""
        found = dict.fromkeys(What, 0)
        for actions in (*self.due, self.at_end):
            for action in actions:
                found[action.what] += len(action.storages)
        return found

    def unread(self, s: int) -> bool:
        """Return whether autograd asks for a storage only as it lets go of it, so that no operation
        reads it: it may have wanted to know a type. No schedule has it there for that."""
        facts = self.trace.facts
        return facts.absent_until[s] >= facts.death[s]

    def hooks_until(self, end: int) -> list[Hook]:
        """Return the hooks as they are compared if none is called for what is saved after *end*."""
        if end not in self._ending:
            self._ending[end] = self._expected(self.reach.following(end))
        return self._ending[end]

    def _expected(self, following: Sequence[int]) -> list[Hook]:
        """Return the hooks as they are compared; *following* says which one comes after each."""
        hooks: list[Hook] = [
            (code, saved.dtype, saved.shape, saved.storage, due, after)
            if code >= 0 and (saved := self.saved[code])
            else (code, None, (), -1, due, after)
            for code, due, after in zip(self.sequence, self.due, following, strict=True)
        ]
        hooks.append((-sys.maxsize, None, (), -1, (), len(hooks)))  # none comes after the last
        return hooks

    def _compile(self) -> None:
        facts = self.trace.facts
        managed = facts.managed
        place = at = 0  # *at* is the hook of the last action: what is in order stays in order
        after: dict[int, int] = {}  # by storage, the hook of its last action
        again: set[int] = set()  # run again, and no entry's
        read_at: dict[int, int] = {}  # by storage, the place at which it was last computed from
        for step in self.schedule.instructions:
            if isinstance(step, Run):
                place = step.op + 1
                continue
            first, last = bisect_left(self.places, place), bisect_right(self.places, place) - 1
            here = first <= last  # whether a hook fires at this place at all
            earliest = max(at, first)
            if isinstance(step, Rerun):
                code = self.recipes.codes[step.op]
                made = [each.storage for each in code.made]
                asked = [
                    self._first_unpack[s]
                    for s in made
                    if s in self._first_unpack and place <= facts.absent_until[s]
                ]
                k = min([earliest, *asked])
                touched = [*made, *facts.reads[step.op]]
                k = max([k, *(after.get(s, 0) for s in touched)])
                after.update(dict.fromkeys(touched, k))
                read_at.update(dict.fromkeys(facts.reads[step.op], place))
                again |= {s for s in made if not managed[s] or place >= facts.death[s]}
                if k < len(self.places):
                    at = max(at, k)
                    action = Action(What.RERUN, (made[0],), ops=(step.op,))
                    self._actions.setdefault(k, []).append(action)
                continue
            s = step.storage
            if isinstance(step, Free) and s in again:
                again.discard(s)
                k = max(earliest, after.get(s, 0))
                if k < len(self.places):
                    at = max(at, k)
                    self._actions.setdefault(k, []).append(Action(What.RERUN, (), ops=(~s,)))
                continue
            if not managed[s]:
                self._hold_for_program(s, read_at, after)
                continue  # the program's own free
            found = self._action_of(step, s, place, read_at)
            if found is None:
                continue  # it goes with the graph
            action = found
            if action.what in (What.COPY, What.DROP):
                # Without a hook it comes sooner: nobody makes or frees anything meanwhile.
                k = max(min(earliest, last) if here else first - 1, self._last_pack[s])
            elif action.what is What.RELEASE:
                k = last
            else:
                k = earliest
                if action.what is What.FETCH:
                    k = min(k, self._first_unpack.get(s, k))
            k = max(k, after.get(s, 0))
            after[s] = k
            if k >= len(self.places) or (place == facts.op_count and action.what is What.RELEASE):
                self.at_end.append(action)
                continue
            at = max(at, k)
            self._moved.add(s)
            self._actions.setdefault(k, []).append(action)
            if action.what is What.DROP:
                look = max(k + 1, bisect_right(self.places, self.places[k]))
                gone = Action(What.LOOK, (s,))
                if look < len(self.places):
                    self._actions.setdefault(look, []).insert(0, gone)
                else:
                    self.at_end.append(gone)

    def _action_of(
        self,
        step: Copy | Discard | Fetch | Free,
        s: int,
        place: int,
        read_at: Mapping[int, int],
    ) -> Action | None:
        """Return what an instruction asks for; None if the graph does it."""
        facts = self.trace.facts
        if isinstance(step, Copy):
            return Action(What.COPY, (s,), step.tier)
        if isinstance(step, Fetch):
            return Action(What.FETCH, (s,), step.tier)
        if isinstance(step, Discard):
            return Action(What.DISCARD, (s,), step.tier)
        if place < facts.absent_until[s]:
            return Action(What.DROP, (s,))
        held = place > facts.death[s] or read_at.get(s, -1) >= facts.death[s]
        if held or place == facts.op_count:
            self._held.add(s)
            return Action(What.RELEASE, (s,))
        return None

    def _hold_for_program(
        self, s: int, read_at: Mapping[int, int], after: Mapping[int, int]
    ) -> None:
        """Hold what the program holds, too, until the last operation that computes from it: the
        graph may have let go of it by then."""
        if s in self.recipes.sources and s in read_at and after[s] < len(self.places):
            self._held.add(s)
            self._actions.setdefault(after[s], []).append(Action(What.RELEASE, (s,)))
