"""What is run again, compiled: operations as calls with gaps for tensors, and recipes made of them.

The schedule says what is run again and when. A recipe says the same for one storage that is asked
for when the schedule does not expect it: from what is saved, and parameters, in one flat list.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..schedules import Copy, Discard, Free, Rerun, Run, Schedule
from .backend import DrawState
from .calls import Call, Place
from .entries import View
from .operators import EMPTY, operator
from .private import Overload, arguments, kernel_of
from .repeatable import Repeatable


class Source(NamedTuple):
    """A tensor that an operation takes: where, of which storage at which version, seen how; and
    autograd's count of its versions when it was recorded, -1 for parameters and buffers. *same*
    says that whoever makes the storage has made a tensor that looks at it like that."""

    key: int | str
    inner: int
    storage: int
    version: int
    view: View
    counter: int
    same: bool


Proof = tuple[int | str, int, int, torch.dtype, Sequence[int], Sequence[int], Any, int]
"""A source as it is compared in forward: key, inner, storage, type, shape, strides, offset and
counter. A plain tuple is unpacked in a third of the time that a named one takes."""

Gap = tuple[int | str, int, int, int, View, bool]
"""A source as a place is filled with it: key, inner, storage, version, view, same."""

Seen = tuple[int, int, Sequence[int], Sequence[int]]
"""A storage that is made in forward: where it is among the results, -1 if it is the result, its
number, and the shape and strides of the tensor."""


class Made(NamedTuple):
    """A storage that an operation makes, or writes in place: where it is among the results, -1 if
    it is the result and -2 if it is not among them; and the version that it gets."""

    inner: int
    storage: int
    version: int


class Captured(NamedTuple):
    """What an operation was called with, its tensors apart, and the state of the random numbers
    before it, if it draws any."""

    args: list[Any]
    kwargs: dict[str, Any]
    state: DrawState


class Code:
    """One operation as it is run again.

    *recorded* is its call as recorded, with None for tensors; *fixed* says that it is used as it
    is. *proofs* and *gaps* are the *sources* as they are compared, and as they are filled in.
    *lists* are the keys of arguments that are lists with tensors in them, *named* says that some
    tensors go by name, *absent* are the places where it may take a tensor and takes none. Of what
    it has *made* (*makes* has the same in plain tuples), *written* is what it writes in place, and
    *whole* are the storages that are then as they were saved.
    """

    __slots__ = (
        "absent",
        "fixed",
        "gaps",
        "kernel",
        "lists",
        "made",
        "makes",
        "name",
        "named",
        "normalizes",
        "op",
        "position",
        "proofs",
        "random",
        "recorded",
        "scratch",
        "sources",
        "trains",
        "whole",
        "written",
    )

    def __init__(self, op: int, call: Call, repeatable: Repeatable) -> None:
        facts, index = repeatable.trace.facts, repeatable.index
        at = dict(zip(facts.reads[op], facts.versions[op], strict=True))
        self.op = op
        self.name = facts.op_names[op]
        self.position = call.position
        self.random = call.random
        self.trains = call.trains
        self.normalizes = bool(operator(call.func).passing)
        self.scratch: list[tuple[Place, View | None]] = call.scratch
        self.kernel: Callable[..., Any] = kernel_of(call.func)
        self.recorded = Captured(call.args, call.kwargs, None)
        self.sources = [
            Source(
                *each.place,
                s := index[each.life.number],
                at[s],
                each.view,
                -1 if facts.alive_at_start[s] else each.version,
                (maker := repeatable.made_by(s)) is not None and maker[1].view == each.view,
            )
            for each in call.tensors
        ]
        self.proofs: list[Proof] = [
            (
                each.key,
                each.inner,
                each.storage,
                each.view.dtype,
                each.view.shape,
                each.view.stride,
                each.view.offset,
                each.counter,
            )
            for each in self.sources
        ]
        self.gaps: list[Gap] = [
            (each.key, each.inner, each.storage, each.version, each.view, each.same)
            for each in self.sources
        ]
        self.made = [
            *(Made(each.inner, index[each.life.number], 0) for each in call.results),
            *(Made(-2, s, at[s] + 1) for s in facts.overwrites[op]),
        ]
        self.absent = [
            i
            for i, argument in enumerate(arguments(call.func))
            if i < len(call.args) and call.args[i] is None and "Tensor" in str(argument.type)
        ]
        self.absent = [i for i in self.absent if (i, -1) not in {e[:2] for e in self.sources}]
        self.makes = [(each.inner, each.storage, each.version) for each in self.made]
        self.whole = [s for _, s, version in self.made if repeatable.saved.get(s) == version]
        self.written = [each for each in self.made if each.inner == -2]
        keys = [each.key for each in self.sources] + [key for (key, _), _ in self.scratch]
        self.named = any(isinstance(key, str) for key in keys)
        self.lists = sorted({each.key for each in self.sources if each.inner >= 0}, key=str)
        self.fixed = call.func.overloadpacket.__name__ in EMPTY
        if self.fixed:
            (result,) = call.results
            self.kernel = kernel_of(torch.ops.aten.empty_strided.default)
            self.recorded = Captured(
                [result.view.shape, result.view.stride],
                {"dtype": result.view.dtype, "device": repeatable.device},
                None,
            )


class Watched(NamedTuple):
    """What is seen at one position of forward: an operation that may run again, if it is one, and
    storages that are made."""

    code: Code | None
    results: list[Seen]


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
    operators up to the last of those, each with its kernel and what is to be seen there.
    """

    def __init__(
        self,
        repeatable: Repeatable,
        schedule: Schedule,
        sequence: Sequence[Overload],
    ) -> None:
        self.repeatable = repeatable
        self.facts = repeatable.trace.facts
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
            code.position: Watched(code, []) for code in self.codes.values()
        }
        for s in sorted(read | self.of.keys()):
            if not self.facts.alive_at_start[s] and (maker := repeatable.made_by(s)) is not None:
                position, result = maker
                watched = self.watched.setdefault(position, Watched(None, []))
                watched.results.append((result.inner, s, result.view.shape, result.view.stride))

        self.expected: list[tuple[Overload, Callable[..., Any], Watched | None]] = [
            (func, kernel_of(func), self.watched.get(at))
            for at, func in enumerate(sequence[: max(self.watched, default=-1) + 1])
        ]
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

    def _recipe(self, s: int) -> Recipe | None:
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
                    if saved.get(source) == at and source not in facts.overwrites[op]:
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
