"""The storages of a trace, from those of a logged step: found, named, and paired with the next
step's."""

from collections import Counter
from functools import cached_property
from typing import Final, NamedTuple

from ..errors import InvalidInput
from ..traces import Kind
from .logged import Access, Logged
from .saves import Kept
from .step import Known, Step, phases_of
from .storages import Life


class Stored:
    """A storage of the trace: a life, or several that a plain step keeps in one storage.

    *born* is -1 if it is alive at the start, *dead* -1 if it is alive at the end; *writers* are the
    operations that write it, in order, and *released* is the place where the program lets go of it
    before autograd does, -1 if it does not.
    """

    __slots__ = ("becomes", "born", "dead", "kind", "life", "name", "nbytes", "released", "writers")

    def __init__(self, life: Life, born: int, dead: int) -> None:
        self.life = life
        self.nbytes = life.nbytes
        self.born = born
        self.dead = dead
        self.released = -1
        self.name = ""
        self.kind: Kind = "activation"
        self.becomes: str | None = None
        self.writers: list[int] = []

    @property
    def version(self) -> int:
        """The version that it has after its writers so far."""
        return len(self.writers) - (0 if self.born < 0 else 1)

    def overwriter(self, version: int) -> int | None:
        """Return the operation that overwrites a version, None if there is none."""
        k = version if self.born < 0 else version + 1
        return self.writers[k] if k < len(self.writers) else None


class Writes(NamedTuple):
    """What an operation writes, as storages with the versions that they get: results and what it
    overwrites, and apart from them what it updates in passing."""

    values: list[tuple[Stored, int]]
    updates: list[tuple[Stored, int]]


class Layout:
    """The storages of a step's trace, found, named and closed: by life, and in *stored*.

    *writes* and *phases* are by operation. What the program goes on to hold may take *kept_nbytes*
    at most: it counts as dead when the step ends. Raises InvalidInput if the step is not closed.
    """

    def __init__(self, step: Step, kept_nbytes: int = 0) -> None:
        self.step: Final = step
        self.end: Final = len(step.operations)
        self.phases: Final = phases_of(step.operations)
        self.stored: list[Stored] = []
        self.writes: list[Writes] = []
        self._of: dict[int, Stored] = {}  # by life's number
        self._offset: dict[int, int] = {}  # from a life's versions to its storage's
        self._find_storages()
        self._name_storages()
        self._close(kept_nbytes)

    def of(self, life: Life) -> Stored:
        """Return the storage that a life is of."""
        return self._of[life.number]

    @property
    def by_life(self) -> dict[int, Stored]:
        """All storages by the numbers of their lives."""
        return self._of

    def version(self, access: Access | Kept) -> int:
        """Return which version of its storage was read or saved."""
        return access.version + self._offset[access.life.number]

    def addresses(self) -> dict[str, int]:
        """Return by name where each storage that the next step finds was at the end of this one."""
        follows = {s.becomes: s.life.data for s in self.stored if s.becomes is not None}
        return {s.name: follows.get(s.name, s.life.data) for s in self.stored if s.born < 0}

    def _find_storages(self) -> None:
        step = self.step
        for life in step.lives:
            if life.number in step.versions or (life.born < 0 and life.number >= step.first):
                self._add(life, -1, -step.versions.get(life.number, 0))
        for i, op in enumerate(step.operations):
            updates = [self._write(self.of(life), i) for life in op.updates]
            values = []
            for life in op.fresh:
                whole = op.result_in
                if whole is not None and self._in_place(i, whole, life):
                    stored = self.of(whole)
                    values.append(self._write(stored, i))
                    self._of[life.number] = stored
                    self._offset[life.number] = stored.version
                    stored.dead = self._place(life.dead)
                    stored.life = life
                else:
                    values.append(self._write(self._add(life, i, 0), i))
            values += [self._write(self.of(life), i) for life in op.overwrites]
            self.writes.append(Writes(values, updates))

    @staticmethod
    def _write(stored: Stored, i: int) -> tuple[Stored, int]:
        stored.writers.append(i)
        return stored, stored.version

    def _add(self, life: Life, born: int, offset: int) -> Stored:
        stored = Stored(life, born, self._place(life.dead))
        self._of[life.number] = stored
        self._offset[life.number] = offset
        self.stored.append(stored)
        return stored

    def _place(self, dead: int) -> int:
        """Return a place of this step for one of the log; -1 for what did not happen in it."""
        place = dead - self.step.start
        return place if dead >= 0 and place <= self.end else -1

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
        step, taken = self.step, Counter[str]()
        labels = self.labels
        for stored in self.stored:
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
        if self.phases[i] == "optimizer":
            return "optimizer-state"
        from_host = op.operator.kind == "copy" and not op.reads
        return "input" if from_host else "activation"

    def _close(self, kept_nbytes: int) -> None:
        """Pair what the step leaves behind with what it found and let go of: the next step's.

        Raises InvalidInput with the difference if storages of more bytes have no partner.
        """
        left = [s for s in self.stored if s.born >= 0 and s.dead < 0]
        gone = [s for s in self.stored if s.born < 0 and s.dead >= 0]
        for by in (lambda s: (s.name.partition("~")[0], s.nbytes), lambda s: s.nbytes):
            there: dict[object, list[Stored]] = {}
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
        if not gone and sum(new.nbytes for new in left) <= kept_nbytes:
            for new in left:
                new.dead = self.end
        elif left or gone:
            raise InvalidInput(
                "the recorded step is not closed: what is alive at its end must have been alive "
                f"at its start; only at the start: {_few(gone)}; only at the end: {_few(left)}; "
                "run more warm-up steps, or do not keep tensors from one step to the next"
            )

    @cached_property
    def labels(self) -> list[str]:
        """Name the operations: module path, operator, and a number if there are several."""
        labels, count = [], Counter[str]()
        for op in self.step.operations:
            plain = op.operator.name.strip("_")
            label = f"{op.module}.{plain}" if op.module else plain
            if op.backward and "backward" not in plain:
                label += ".backward"
            count[label] += 1
            labels.append(label if count[label] == 1 else f"{label}#{count[label]}")
        return labels


def _few(stored: list[Stored]) -> str:
    named = [f"{s.name} ({s.nbytes} bytes)" for s in stored]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return (", ".join(named[:5]) or "nothing") + more
