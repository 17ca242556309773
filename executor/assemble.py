"""From the log of one step to a trace: names, versions, lifetimes, and what a plain step does.

Everything here is arithmetic on what was logged; torch is not asked any more.
"""

from bisect import bisect_left
from collections import Counter
from functools import cached_property
from typing import Final, NamedTuple

from ..errors import InvalidInput
from ..traces import Kind, Operation, Phase, Recompute, Release, Save, Storage, Trace, Value
from .log import Access, Logged
from .operators import EMPTY
from .saves import Kept
from .storages import Life


class Known(NamedTuple):
    """What a storage is to the program, by its life's number: name and kind."""

    name: str
    kind: Kind


class Step(NamedTuple):
    """One logged step: operations from *start* on, and what was known at its start and end.

    Lives from number *first* on were entered in the step. *versions* are those of the storages
    that were alive at the start, by number; *known_before* and *known_after* name parameters,
    gradients, states and buffers at both ends; *gradients* names what became a parameter's gradient
    meanwhile. *blocks* are the requested bytes of all blocks that the device's allocator had given
    out at the start, by address; empty where there is no such allocator.
    """

    start: int
    first: int
    operations: list[Logged]
    lives: list[Life]
    kept: list[Kept]
    versions: dict[int, int]
    known_before: dict[int, Known]
    known_after: dict[int, Known]
    gradients: dict[int, str]
    blocks: dict[int, int]


class OperationTimes(NamedTuple):
    """Device and host times in ns by operation, and the operations that the host waited for."""

    device_ns: list[int]
    host_ns: list[int]
    waits: frozenset[int] = frozenset()


def assemble(
    step: Step, name: str, notes: dict[str, str], times: OperationTimes | None = None
) -> Trace:
    """Return the trace of a logged step. Raises InvalidInput if the step is not closed.

    Without *times* the trace leaves them to a machine's roofline.
    """
    return _Assembly(step).trace(name, notes, times)


def phases_of(operations: list[Logged]) -> list[Phase]:
    """Return the phase of each operation: what comes after the last backward is the optimizer's."""
    last = max((i for i, op in enumerate(operations) if op.backward), default=len(operations))
    return [
        "backward" if op.backward else "optimizer" if i > last else "forward"
        for i, op in enumerate(operations)
    ]


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


class _Stored:
    """A storage of the trace: a life, or several that a plain step keeps in one storage."""

    __slots__ = ("becomes", "born", "dead", "kind", "life", "name", "nbytes", "released", "version")

    def __init__(self, life: Life, born: int) -> None:
        self.life = life
        self.nbytes = life.nbytes
        self.born = born  # place of birth, -1: alive at the start
        self.dead = -1  # -1: alive at the end
        self.released = -1
        self.name = ""
        self.kind: Kind = "activation"
        self.becomes: str | None = None
        self.version = 0


class _Assembly:
    def __init__(self, step: Step) -> None:
        self._step = step
        self._end: Final = len(step.operations)
        self._of: dict[int, _Stored] = {}  # by life's number
        self._offset: dict[int, int] = {}  # from a life's versions to its storage's
        self._stored: list[_Stored] = []
        self._phases = phases_of(step.operations)
        self._values: dict[str, Value] = {}
        self._written_first: dict[int, int] = {}
        self._find_storages()
        self._name_storages()
        self._close()

    # -- storages ----------------------------------------------------------------------------------

    def _find_storages(self) -> None:
        step = self._step
        for life in step.lives:
            if life.number in step.versions or (life.born < 0 and life.number >= step.first):
                stored = self._add(life, -1)
                self._offset[life.number] = -step.versions.get(life.number, 0)
        for i, op in enumerate(step.operations):
            for life in (*op.overwrites, *op.updates):
                self._of[life.number].version += 1
            for life in op.fresh:
                whole = op.result_in
                if whole is not None and self._in_place(i, whole, life):
                    stored = self._of[whole.number]
                    stored.version += 1
                    self._of[life.number] = stored
                    self._offset[life.number] = stored.version
                    stored.dead = self._place(life.dead)
                    stored.life = life
                else:
                    self._add(life, i)
                    self._offset[life.number] = 0

    def _add(self, life: Life, born: int) -> _Stored:
        stored = _Stored(life, born)
        stored.dead = self._place(life.dead)
        self._of[life.number] = stored
        self._stored.append(stored)
        return stored

    def _place(self, dead: int) -> int:
        """Return a place of this step for one of the log; -1 for what did not happen in it."""
        place = dead - self._step.start
        return place if dead >= 0 and place <= self._end else -1

    def _in_place(self, i: int, whole: Life, result: Life) -> bool:
        """Whether a plain step would have made *result* in the storage *whole*: nobody else held
        it, so it died with the sum."""
        stored = self._of.get(whole.number)
        return (
            stored is not None
            and stored.born >= 0
            and whole.nbytes == result.nbytes
            and self._place(whole.dead) == i + 1
        )

    def _name_storages(self) -> None:
        step, taken = self._step, Counter[str]()
        labels = self._labels
        for stored in self._stored:
            number = stored.life.number
            before, after = step.known_before.get(number), step.known_after.get(number)
            gradient = step.gradients.get(number)
            if stored.born < 0:
                known = before or after
                if known is None:
                    kind: Kind = "input" if stored.dead < 0 else "activation"
                    known = Known("input" if stored.dead < 0 else "left", kind)
                stored.name, stored.kind = known
            elif gradient is not None:
                stored.name, stored.kind = f"{gradient}.grad", "parameter-gradient"
            elif after is not None:
                stored.name, stored.kind = after
            else:
                op = step.operations[stored.born]
                stored.name = labels[stored.born]
                stored.kind = self._kind_of_result(stored.born, op)
            taken[stored.name] += 1
            if taken[stored.name] > 1:
                stored.name += f"~{taken[stored.name]}"

    def _kind_of_result(self, i: int, op: Logged) -> Kind:
        if op.backward:
            return "activation-gradient"
        if self._phases[i] == "optimizer":
            return "optimizer-state"
        from_host = op.operator.kind == "copy" and not op.reads
        return "input" if from_host else "activation"

    def _close(self) -> None:
        """Pair what the step leaves behind with what it found and let go of: the next step's.

        Raises InvalidInput with the difference if a storage has no partner.
        """
        left = [s for s in self._stored if s.born >= 0 and s.dead < 0]
        gone = [s for s in self._stored if s.born < 0 and s.dead >= 0]
        for by in (lambda s: (s.name.partition("~")[0], s.nbytes), lambda s: s.nbytes):
            there: dict[object, list[_Stored]] = {}
            for old in gone:
                there.setdefault(by(old), []).append(old)
            still = []
            for new in left:
                partners = there.get(by(new))
                if partners:
                    old = partners.pop(0)
                    gone.remove(old)
                    new.becomes = old.name
                    if old.name == "left" or old.name.startswith("left~"):
                        old.kind = new.kind
                else:
                    still.append(new)
            left = still
        if left or gone:
            raise InvalidInput(
                "the recorded step is not closed: what is alive at its end must have been alive "
                f"at its start; only at the start: {_few(gone)}; only at the end: {_few(left)}; "
                "run more warm-up steps, or do not keep tensors from one step to the next"
            )

    # -- the trace ---------------------------------------------------------------------------------

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
            for s in self._stored
        ]
        ours = {s.life.data for s in self._stored if s.born < 0}
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
                for s in self._stored
                if s.dead >= 0
            ),
            saves=tuple(saves),
            notes=notes,
        )

    @cached_property
    def _labels(self) -> list[str]:
        """Name the operations: module path, operator, and a number if there are several."""
        labels, count = [], Counter[str]()
        for op in self._step.operations:
            plain = op.operator.name.strip("_")
            label = f"{op.module}.{plain}" if op.module else plain
            if op.backward and "backward" not in plain:
                label += ".backward"
            count[label] += 1
            labels.append(label if count[label] == 1 else f"{label}#{count[label]}")
        return labels

    def _operations(self, times: OperationTimes | None) -> list[Operation]:
        present = {id(s): 0 for s in self._stored if s.born < 0}
        unfilled = self._unfilled()
        operations = []
        for i, op in enumerate(self._step.operations):
            target = op.result_in if self._merged(op) else None  # which is read as it is written
            reads = list(
                dict.fromkeys(self._read(each) for each in op.reads if each.life is not target)
            )
            writes, updates = [], []
            for life in op.fresh:
                stored = self._of[life.number]
                present[id(stored)] = version = present.get(id(stored), -1) + 1
                writes.append(self._value(stored, version))
            for life in op.overwrites:
                stored = self._of[life.number]
                present[id(stored)] += 1
                writes.append(self._value(stored, present[id(stored)]))
            for life in op.updates:
                stored = self._of[life.number]
                present[id(stored)] += 1
                updates.append(self._value(stored, present[id(stored)]))
            inside = op.inside_nbytes
            works = op.operator.kind in WORKSPACE_KINDS
            operations.append(
                Operation(
                    name=self._labels[i],
                    kind=op.operator.kind,
                    phase=self._phases[i],
                    reads=tuple(reads),
                    writes=tuple(writes),
                    updates=tuple(updates),
                    device_ns=None if times is None else times.device_ns[i],
                    host_ns=None if times is None else times.host_ns[i],
                    workspace_nbytes=inside if works else 0,
                    transient_nbytes=0 if works else inside,
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
            self._of[op.result_in.number] is self._of[op.fresh[0].number]
        )

    def _unfilled(self) -> set[int]:
        """Return the operations that only allocate, and whose bytes are read although nothing that
        was logged has filled them: somebody unseen did, so they cannot be made again."""
        found = set()
        for op in self._step.operations:
            for access in op.reads:
                stored = self._of[access.life.number]
                born = stored.born
                if (
                    born >= 0
                    and self._version(access) == 0
                    and self._step.operations[born].operator.name in EMPTY
                    and access.nbytes
                ):
                    found.add(born)
        return found

    def _version(self, access: "Access | Kept") -> int:
        return access.version + self._offset[access.life.number]

    def _read(self, access: Access) -> str:
        stored = self._of[access.life.number]
        return self._value(stored, self._version(access), access.offset, access.nbytes)

    def _value(self, stored: _Stored, version: int, offset: int = 0, nbytes: int = -1) -> str:
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
            by_storage.setdefault(id(self._of[kept.life.number]), []).append(kept)
        saves = []
        for stored in self._stored:
            keeps = by_storage.get(id(stored), ())
            if keeps:
                saves += self._saves_of(stored, keeps)
        return sorted(saves, key=lambda save: save.packed)

    def _saves_of(self, stored: _Stored, keeps: "list[Kept]") -> list[Save]:
        start = self._step.start
        last = max(keeps, key=lambda kept: self._freed(kept))
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
            value = self._value(stored, self._version(kept), kept.offset, kept.nbytes)
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

    def _gone_by_then(self, stored: _Stored, kept: Kept) -> bool:
        """Whether what was saved is written over before it is asked for, or let go of unasked:
        running statistics, say, saved for a use that training does not make."""
        return self._overwritten_by(stored, self._version(kept)) < self._asked(kept)

    def _asked(self, kept: Kept) -> int:
        return self._freed(kept) if kept.unpacked < 0 else kept.unpacked - self._step.start

    def _freed(self, kept: Kept) -> int:
        return self._end if kept.freed < 0 else min(kept.freed - self._step.start, self._end)

    def _overwritten_by(self, stored: _Stored, version: int) -> int:
        """Return the operation that overwrites a version of a storage; past the end if none."""
        writers = self._writers.get(id(stored), ())
        later = bisect_left(writers, (version + 1,))
        return writers[later][1] if later < len(writers) else self._end + 1

    @cached_property
    def _writers(self) -> dict[int, list[tuple[int, int]]]:
        """For each storage, by identity, the versions after the first with their operations."""
        writers: dict[int, list[tuple[int, int]]] = {}
        for i, op in enumerate(self._step.operations):
            for life in (*op.fresh, *op.overwrites, *op.updates):
                found = writers.setdefault(id(self._of[life.number]), [])
                stored = self._of[life.number]
                version = found[-1][0] + 1 if found else (0 if stored.born >= 0 else 1)
                found.append((version, i))
        return writers


WORKSPACE_KINDS: Final = frozenset({"conv", "matmul", "attention", "rnn"})
"""The kinds whose bytes inside are their libraries' workspace; others' are temporaries."""


def _recompute(op: Logged) -> Recompute:
    """Return how an operation repeats. What came from the host may not be there any more."""
    from_host = op.operator.kind == "copy" and not op.reads
    if op.operator.opaque or op.waits or from_host:
        return "opaque"
    return "random" if op.random else "pure"


def _few(stored: list[_Stored]) -> str:
    named = [f"{s.name} ({s.nbytes} bytes)" for s in stored]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return (", ".join(named[:5]) or "nothing") + more
