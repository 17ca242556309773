"""What is run again, compiled: recipes made of operations.

The schedule says what is run again and when. A recipe says the same for one storage that is asked
for when the schedule does not expect it: from what is saved, and parameters, in one flat list.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..schedules import Copy, Discard, Free, Rerun, Run, Schedule
from .code import Code
from .private import Overload, kernel_of
from .repeatable import Repeatable

Seen = tuple[int, int, Sequence[int], Sequence[int]]
"""A storage that is made in forward: where it is among the results, -1 if it is the result, its
number, and the shape and strides of the tensor."""


Watched = tuple[Code | None, list[Seen]]
"""What is seen at one position of forward: an operation that may run again, if it is one, and
storages that are made."""


Expected = tuple[Overload | None, Any, Watched | None]
"""An operator that is to go by in forward, its kernel, and what is to be seen there. None comes
after the last: who gets there has seen that one fail."""


class Recipe(NamedTuple):
    """How one storage is made from *leaves*, which are saved, and parameters: *ops* in order, after
    each of which some *gone* are not needed any more."""

    ops: tuple[int, ...]
    leaves: tuple[int, ...]
    gone: tuple[tuple[int, ...], ...]


class Recipes:
    """All that a schedule may want run again.

    *of* has the recipe of each storage that is dropped without a copy, if there is one, and
    *dropped* are all of those. *codes* are the operations, *sources* the saved storages that they
    start from, and *lasting* the parameters and buffers, by storage, *statistics* the buffers among
    them. *watched* is what is to be seen at some positions of forward, and *expected* are forward's
    operators up to the last of those.
    """

    def __init__(
        self,
        repeatable: Repeatable,
        schedule: Schedule,
        sequence: Sequence[Overload],
    ) -> None:
        self.repeatable = repeatable
        self.facts = repeatable.trace.facts
        self._deeper: dict[tuple[int, frozenset[int]], Recipe | None] = {}
        self.dropped = _dropped(schedule, self.facts.managed, self.facts.absent_until)
        self.of: dict[int, Recipe] = {}
        for s in sorted(self.dropped):
            if (recipe := self._recipe(s)) is not None:
                self.of[s] = recipe
        wanted = {op for recipe in self.of.values() for op in recipe.ops}
        wanted |= {step.op for step in schedule.instructions if isinstance(step, Rerun)}
        self.codes: Mapping[int, Code] = {
            op: Code(op, repeatable.calls[op], repeatable) for op in sorted(wanted)
        }
        read = {each.storage for code in self.codes.values() for each in code.sources}
        self.sources = {s for s in read if s in repeatable.saved}
        self.lasting = {s: repeatable.lasting[s] for s in read if self.facts.alive_at_start[s]}
        self.watched: dict[int, Watched] = {
            code.position: (code, []) for code in self.codes.values()
        }
        for s in sorted(read | self.of.keys()):
            if not self.facts.alive_at_start[s] and (maker := repeatable.made_by(s)) is not None:
                position, result = maker
                _, results = self.watched.setdefault(position, (None, []))
                results.append((result.inner, s, result.view.shape, result.view.stride))

        self.expected: list[Expected] = [
            (func, kernel_of(func), self.watched.get(at))
            for at, func in enumerate(sequence[: max(self.watched, default=-1) + 1])
        ]
        self.expected.append((None, None, None))
        self.known = self.sources | self.of.keys()
        self.statistics = {
            s
            for s, found in self.lasting.items()
            if any(not isinstance(each(), torch.nn.Parameter) for each in found)
        }

    @property
    def current(self) -> bool:
        """Whether all parameters and buffers are there still."""
        return all(each() is not None for found in self.lasting.values() for each in found)

    @property
    def draws(self) -> bool:
        """Whether any of the operations draws random numbers."""
        return any(code.random for code in self.codes.values())

    def deeper(self, s: int, gone: frozenset[int]) -> Recipe | None:
        """Return the recipe of a storage that does without some saved ones, which are *gone*: from
        what they are made of. None if there is none, or if it takes operations that the schedule
        never runs."""
        key = s, gone
        if key not in self._deeper:
            recipe = self._recipe(s, gone)
            known = recipe is not None and self.codes.keys() >= set(recipe.ops)
            self._deeper[key] = recipe if known else None
        return self._deeper[key]

    def _recipe(self, s: int, gone: frozenset[int] = frozenset()) -> Recipe | None:
        """Return the recipe of a storage as it was saved; None if there is none."""
        facts, saved = self.facts, self.repeatable.saved
        if s not in saved:
            return None
        need = {s: saved[s]}
        ops: set[int] = set()
        leaves: set[int] = set()
        todo = [s]
        while todo:
            target = todo.pop()
            for op in facts.chain(target, need[target]):
                if op in ops:
                    continue
                if facts.trace.operations[op].recompute == "opaque":
                    return None
                ops.add(op)
                for source, at in zip(facts.reads[op], facts.versions[op], strict=True):
                    if source == target or facts.alive_at_start[source]:
                        continue
                    saves = saved.get(source) == at and source not in facts.overwrites[op]
                    if saves and source not in gone:
                        leaves.add(source)
                    elif need.get(source, -1) < at:
                        need[source] = at
                        todo.append(source)
        ordered = tuple(sorted(ops))
        last: dict[int, int] = {}
        for op in ordered:
            for source, at in zip(facts.reads[op], facts.versions[op], strict=True):
                if need.get(source, -1) >= at:
                    last[source] = op
            for made in facts.fresh[op]:
                last[made] = op
        return Recipe(
            ordered,
            tuple(sorted(leaves)),
            tuple(tuple(t for t, end in last.items() if end == op and t != s) for op in ordered),
        )


def _dropped(schedule: Schedule, managed: list[bool], until: list[int]) -> set[int]:
    """Return the storages that a schedule gives up somewhere without a copy, to want them again or
    not."""
    copies: dict[int, set[str]] = {}
    found: set[int] = set()
    place = 0
    for step in schedule.instructions:
        if isinstance(step, Run):
            place = step.op + 1
        elif isinstance(step, Copy):
            copies.setdefault(step.storage, set()).add(step.tier)
        elif isinstance(step, Discard):
            copies[step.storage].discard(step.tier)
        elif isinstance(step, Free):
            s = step.storage
            if managed[s] and place < until[s] and not copies.get(s):
                found.add(s)
    return found
