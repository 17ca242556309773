"""One operation of forward as it is run again: a call with gaps for tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .backend import DrawState
from .calls import Call, Place
from .entries import View
from .operators import EMPTY, operator
from .private import arguments, kernel_of
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


class Made(NamedTuple):
    """A storage that an operation makes, or writes in place: where it is among the results, -1 if
    it is the result and -2 if it is not among them; and the version that it gets."""

    inner: int
    storage: int
    version: int


Captured = tuple[list[Any], dict[str, Any], DrawState]
"""What an operation was called with, its tensors apart, by place and by name; and the state of the
random numbers before it, if it draws any."""


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
        self.recorded: Captured = (call.args, call.kwargs, None)
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
        self.written = [(s, version) for inner, s, version in self.made if inner == -2]
        keys = [each.key for each in self.sources] + [key for (key, _), _ in self.scratch]
        self.named = any(isinstance(key, str) for key in keys)
        self.lists = sorted({each.key for each in self.sources if each.inner >= 0}, key=str)
        self.fixed = call.func.overloadpacket.__name__ in EMPTY
        if self.fixed:
            (result,) = call.results
            self.kernel = kernel_of(torch.ops.aten.empty_strided.default)
            self.recorded = (
                [result.view.shape, result.view.stride],
                {"dtype": result.view.dtype, "device": repeatable.device},
                None,
            )
