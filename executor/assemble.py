"""From the log of one step to a trace: values, operations, and what autograd keeps.

Everything here is arithmetic on what was logged; torch is not asked any more.
"""

from typing import Final

from ..traces import Operation, Recompute, Release, Save, Storage, Trace, Value
from .layout import Layout, Stored
from .logged import Access, Logged
from .operators import EMPTY
from .saves import Kept
from .step import OperationTimes


def assemble(
    layout: Layout, name: str, notes: dict[str, str], times: OperationTimes | None = None
) -> Trace:
    """Return the trace of a logged step.

    Without *times* the trace leaves them to a machine's roofline.
    """
    return _Assembly(layout).trace(name, notes, times)


def replayed_peak_nbytes(trace: Trace) -> int:
    """Return the most requested bytes at once, if everything goes as soon as the program and
    autograd let go of it."""
    facts = trace.facts
    dying = [0] * (facts.op_count + 2)
    for nbytes, death in zip(facts.nbytes, facts.death, strict=True):
        dying[min(death, facts.op_count + 1)] += nbytes
    there = peak = facts.start_nbytes
    for fresh, inside, gone in zip(facts.fresh_nbytes, facts.inside_nbytes, dying, strict=False):
        there += fresh - gone
        peak = max(peak, there + inside)
    return peak


class _Assembly:
    def __init__(self, layout: Layout) -> None:
        self._step = layout.step
        self._layout = layout
        self._values: dict[str, Value] = {}

    def trace(self, name: str, notes: dict[str, str], times: OperationTimes | None) -> Trace:
        """Return the trace."""
        operations = self._operations(times)
        saves = self._saves()
        storages = [
            Storage(
                name=s.name,
                kind=s.kind,
                nbytes=s.nbytes,
                alive_at_start=s.born < 0,
                becomes=s.becomes,
            )
            for s in self._layout.stored
        ]
        ours = {s.life.data for s in self._layout.stored if s.born < 0}
        others = [nbytes for where, nbytes in self._step.blocks.items() if where not in ours]
        storages += [
            Storage(name=f"elsewhere.{i}", kind="other", nbytes=nbytes, alive_at_start=True)
            for i, nbytes in enumerate(others)
        ]
        return Trace(
            name=name,
            places="saves",
            times="roofline" if times is None else "measured",
            storages=tuple(storages),
            values=tuple(self._values.values()),
            operations=tuple(operations),
            releases=tuple(
                Release(storage=s.name, place=s.released if s.released >= 0 else s.dead)
                for s in self._layout.stored
                if s.dead >= 0
            ),
            saves=tuple(saves),
            notes=notes,
        )

    def _operations(self, times: OperationTimes | None) -> list[Operation]:
        unfilled = self._unfilled()
        operations = []
        for i, op in enumerate(self._step.operations):
            target = op.result_in if self._merged(op) else None  # which is read as it is written
            reads = list(
                dict.fromkeys(self._read(each) for each in op.reads if each.life is not target)
            )
            writes = self._layout.writes[i]
            inside = op.inside_nbytes
            works = op.operator.kind in WORKSPACE_KINDS
            operations.append(
                Operation(
                    name=self._layout.labels[i],
                    kind=op.operator.kind,
                    phase=self._layout.phases[i],
                    reads=tuple(reads),
                    writes=tuple(self._value(*each) for each in writes.values),
                    updates=tuple(self._value(*each) for each in writes.updates),
                    device_ns=None if times is None else times.device_ns[i],
                    host_ns=None if times is None else times.host_ns[i],
                    launches=1 if times is None else times.launches[i],
                    workspace_nbytes=inside if works else 0,
                    transient_nbytes=0 if works else inside,
                    allocations=() if self._merged(op) else op.allocations,
                    flops=op.flops,
                    precision=op.precision,
                    moved_nbytes=0 if op.operator.kind == "empty" else op.moved_nbytes,
                    recompute=("opaque" if i in unfilled else _recompute(op)),
                    waits=op.waits or (times is not None and i in times.waits),
                    module=op.module,
                )
            )
        return operations

    def _merged(self, op: Logged) -> bool:
        """Whether an operation's result is in the storage of its first argument."""
        return op.result_in is not None and (
            self._layout.of(op.result_in) is self._layout.of(op.fresh[0])
        )

    def _unfilled(self) -> set[int]:
        """Return the operations that only allocate, and whose bytes are read although nothing that
        was logged has filled them: somebody unseen did, so they cannot be made again."""
        found = set()
        for op in self._step.operations:
            for access in op.reads:
                stored = self._layout.of(access.life)
                born = stored.born
                if (
                    born >= 0
                    and self._layout.version(access) == 0
                    and self._step.operations[born].operator.name in EMPTY
                    and access.nbytes
                ):
                    found.add(born)
        return found

    def _read(self, access: Access) -> str:
        stored = self._layout.of(access.life)
        return self._value(stored, self._layout.version(access), access.offset, access.nbytes)

    def _value(self, stored: Stored, version: int, offset: int = 0, nbytes: int = -1) -> str:
        """Return the name of a version of a storage, or of a view of it; declare it if need be."""
        name = f"{stored.name}@{version}" if version else stored.name
        if nbytes >= 0 and (offset or nbytes < stored.nbytes):
            name += f"[{offset}:{offset + nbytes}]"
        if name != stored.name and name not in self._values:
            view = name.endswith("]")
            self._values[name] = Value(
                name=name,
                storage=stored.name,
                version=version,
                offset=offset if view else 0,
                nbytes=nbytes if view else None,
            )
        return name

    # -- what autograd keeps -----------------------------------------------------------------------

    def _saves(self) -> list[Save]:
        by_storage: dict[int, list[Kept]] = {}
        for kept in self._step.kept:
            by_storage.setdefault(id(self._layout.of(kept.life)), []).append(kept)
        saves = []
        for stored in self._layout.stored:
            if keeps := by_storage.get(id(stored)):
                saves += self._saves_of(stored, keeps)
        return sorted(saves, key=lambda save: save.packed)

    def _saves_of(self, stored: Stored, keeps: list[Kept]) -> list[Save]:
        start = self._step.start
        last = max(keeps, key=self._freed)
        first_asked = min(self._asked(kept) for kept in keeps)
        released = stored.life.released - start
        if stored.born >= 0 and stored.dead >= 0 and 0 <= released <= first_asked:
            stored.released = min(released, stored.dead)
        lost = [kept for kept in keeps if self._gone_by_then(stored, kept)]
        if lost and stored.born >= 0:
            stored.released = -1  # what nobody gets back as it was is none of a policy's business
        saves = []
        for kept in keeps:
            if kept in lost:
                continue
            freed = self._freed(kept)
            if kept is last and stored.released >= 0:
                freed = stored.dead  # the program may hold what it was given back for longer
            value = self._value(stored, self._layout.version(kept), kept.offset, kept.nbytes)
            saves.append(
                Save(
                    value=value,
                    packed=kept.packed - start,
                    unpacked=self._asked(kept),
                    freed=freed,
                    node=kept.asked_by,
                )
            )
        return saves

    def _gone_by_then(self, stored: Stored, kept: Kept) -> bool:
        """Whether what was saved is written over before it is asked for, or let go of unasked:
        running statistics, say, saved for a use that training does not make."""
        overwriter = stored.overwriter(self._layout.version(kept))
        return overwriter is not None and overwriter < self._asked(kept)

    def _asked(self, kept: Kept) -> int:
        return self._freed(kept) if kept.unpacked < 0 else kept.unpacked - self._step.start

    def _freed(self, kept: Kept) -> int:
        end = self._layout.end
        return end if kept.freed < 0 else min(kept.freed - self._step.start, end)


WORKSPACE_KINDS: Final = frozenset({"conv", "matmul", "attention", "rnn"})
"""The kinds whose bytes inside are their libraries' workspace; others' are temporaries."""


def _recompute(op: Logged) -> Recompute:
    """Return how an operation repeats. What came from the host may not be there any more, and
    cuDNN's recurrent networks draw from a state of their own, which is written as they do."""
    from_host = op.operator.kind == "copy" and not op.reads
    draws_unseen = op.operator.kind == "rnn" and op.random
    if op.operator.opaque or op.waits or from_host or draws_unseen:
        return "opaque"
    return "random" if op.random else "pure"
