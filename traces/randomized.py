"""Small random steps, for tests: branches, in-place writes, views, odd lifetimes, odd sizes.

With `places="saves"` they look like recorded ones: what backward reads of forward is saved, the
program lets go of things when it likes, and a driver can act only where a hook would fire.
"""

from random import Random
from typing import Final

from ..errors import InvalidInput
from .model import (
    Algorithm,
    Kind,
    Operation,
    Phase,
    Places,
    Recompute,
    Release,
    Save,
    Storage,
    Trace,
    Value,
)

_KINDS: Final = ("conv", "matmul", "norm", "activation", "dropout", "pool", "add")
_RECOMPUTE: Final[tuple[Recompute, ...]] = ("pure",) * 7 + ("random", "random", "opaque")


def randomized(seed: int = 0, ops: int = 12, places: Places = "everywhere") -> Trace:
    """A small random step for tests; *ops* is the number of its forward operations."""
    if ops < 1:
        raise InvalidInput(f"random: a step of {ops} forward operations is none; give at least 1")
    return random_trace(Random(seed), ops, places, f"random:seed={seed},ops={ops},places={places}")


def random_trace(rng: Random, ops: int, places: Places, name: str = "random") -> Trace:
    """Return a random step of *ops* forward operations, their backward and an optimizer."""
    return _Random(rng, ops, places).trace(name)


class _Random:
    """The trace under construction, with what the random program remembers of it."""

    def __init__(self, rng: Random, ops: int, places: Places) -> None:
        self._rng = rng
        self._ops = ops
        self._places = places
        self._storages: list[Storage] = []
        self._values: list[Value] = []
        self._operations: list[Operation] = []
        self._releases: list[Release] = []
        self._saves: list[Save] = []
        self._version: dict[str, int] = {}
        self._nbytes: dict[str, int] = {}
        self._last_use: dict[str, int] = {}
        self._forward: list[str] = []  # activations, oldest first
        self._gradients: list[str] = []

    def trace(self, name: str) -> Trace:
        rng = self._rng
        parameters = [self._store("parameter", alive=True) for _ in range(rng.randint(1, 3))]
        self._parameters = parameters
        self._parameter_gradients = [
            self._store("parameter-gradient", alive=True) for _ in parameters
        ]
        self._statistics = self._store("optimizer-state", alive=True)
        self._batch = self._store("input", alive=True)
        touched = [self._forward_operation(i) for i in range(self._ops)]
        frozen = dict(self._version)  # what backward can still read: the last versions
        for i in reversed(range(self._ops)):
            self._backward_operation(i, [s for s, v in touched[i] if frozen[s] == v])
        for parameter, gradient in zip(parameters, self._parameter_gradients, strict=True):
            reads = [self._current(gradient), self._current(parameter)]
            self._operate("optimizer", "optimizer", reads, [self._next(parameter)])
        self._cross_the_step()
        self._release_all()
        return Trace(
            name=name,
            places=self._places,
            times="measured",
            storages=tuple(self._storages),
            values=tuple(self._values),
            operations=tuple(self._operations),
            releases=tuple(self._releases),
            saves=tuple(self._saves),
            notes={"made": "at random"},
        )

    def _forward_operation(self, i: int) -> list[tuple[str, int]]:
        """Add a forward operation; return the values that its backward may want."""
        rng = self._rng
        sources = self._sample(self._forward or [self._batch], 2)
        reads = [self._seen(source) for source in sources]
        if rng.random() < 0.4:
            reads.append(self._current(rng.choice(self._parameters)))
        if self._forward and rng.random() < 0.25:
            target = rng.choice(sources)
            if rng.random() < 0.5:
                reads = [value for value in reads if self._storage_of(value) != target]
            writes = [self._next(target)]
            outputs = [target]
        else:
            outputs = [self._store("activation") for _ in range(rng.choice((1, 1, 1, 2)))]
            writes = list(outputs)
            self._forward += outputs
        updates = []
        if rng.random() < 0.15:
            passing = [s for s in self._forward if s not in outputs]
            updates = [self._next(rng.choice([self._statistics, *passing[:1]]))]
        recompute = rng.choice(_RECOMPUTE)
        self._operate(rng.choice(_KINDS), "forward", reads, writes, updates, recompute)
        return [
            (s, self._version[s]) for s in dict.fromkeys((*sources, *outputs)) if s in self._forward
        ]

    def _backward_operation(self, i: int, wanted: list[str]) -> None:
        """Add the backward of forward operation *i*, reading some of what is *wanted*."""
        rng = self._rng
        saved = self._sample(wanted, 2) if wanted else []
        reads = [self._seen(s) for s in saved]
        place = len(self._operations)
        if self._places == "saves":
            for s in saved:
                value = self._current(s)
                self._saves.append(
                    Save(value=value, packed=rng.randint(i + 1, self._ops), unpacked=place)
                )
        above = self._sample(self._gradients[-3:], 2) if self._gradients else []
        reads += [self._current(gradient) for gradient in above]
        if above and rng.random() < 0.3:
            writes = [self._next(above[0])]
        else:
            made = self._store("activation-gradient")
            self._gradients.append(made)
            writes = [made]
        if rng.random() < 0.4:
            writes.append(self._next(rng.choice(self._parameter_gradients)))
        self._operate(rng.choice(_KINDS), "backward", list(dict.fromkeys(reads)), writes)

    def _cross_the_step(self) -> None:
        """Sometimes let the step replace a storage: the old one goes, a new one becomes it."""
        if self._rng.random() < 0.3:
            old = self._store("input", alive=True)
            self._releases.append(
                Release(storage=old, place=self._rng.randint(0, len(self._operations)))
            )
            new = self._store("input", becomes=old, nbytes=self._nbytes[old])
            self._operate("copy", "optimizer", [], [new])

    def _release_all(self) -> None:
        rng, end = self._rng, len(self._operations)
        saved = {self._storage_of(save.value): save for save in self._saves}
        for storage in self._storages:
            if storage.alive_at_start or storage.becomes:
                continue
            last = self._last_use[storage.name] + 1
            if self._places == "everywhere":
                if rng.random() < 0.1:
                    self._releases.append(
                        Release(storage=storage.name, place=rng.randint(last, end))
                    )
                continue
            if storage.name in saved and rng.random() < 0.8:  # else the program keeps it itself
                last = (
                    max([i for i in range(self._ops) if self._touches(i, storage.name)], default=0)
                    + 1
                )
            self._releases.append(
                Release(storage=storage.name, place=min(end, last + rng.choice((0, 0, 0, 1, 4))))
            )
        if self._places == "saves":
            self._mend_releases()

    def _mend_releases(self) -> None:
        """A release before backward must not precede a read that no save covers."""
        covered: dict[str, set[int]] = {}
        for save in self._saves:
            covered.setdefault(self._storage_of(save.value), set()).add(save.unpacked)
        mended = []
        for release in self._releases:
            late = [
                i
                for i in range(release.place, len(self._operations))
                if self._touches(i, release.storage) and i not in covered.get(release.storage, ())
            ]
            place = max(late) + 1 if late else release.place
            mended.append(Release(storage=release.storage, place=place))
        self._releases = mended

    def _touches(self, i: int, storage: str) -> bool:
        op = self._operations[i]
        touched = (*op.reads, *op.writes, *op.updates)
        return any(self._storage_of(value) == storage for value in touched)

    # -- pieces --------------------------------------------------------------------------------

    def _operate(
        self,
        kind: str,
        phase: Phase,
        reads: list[str],
        writes: list[str],
        updates: list[str] | None = None,
        recompute: Recompute = "pure",
    ) -> None:
        rng = self._rng
        i = len(self._operations)
        for value in (*reads, *writes, *(updates or ())):
            self._last_use[self._storage_of(value)] = i
        self._operations.append(
            Operation(
                name=f"{phase}{i}",
                kind=kind,
                phase=phase,
                reads=tuple(reads),
                writes=tuple(writes),
                updates=tuple(updates or ()),
                device_ns=rng.randint(0, 2000),
                host_ns=rng.randint(0, 200),
                launches=rng.choice((0, 1, 1, 2, 7)),
                workspace_nbytes=rng.choice((0, 0, 0, 8)),
                transient_nbytes=rng.choice((0, 0, 0, 0, 5)),
                algorithms=tuple(
                    Algorithm(
                        name=f"algorithm{k}",
                        device_ns=rng.randint(0, 2000),
                        workspace_nbytes=rng.choice((0, 4, 32)),
                    )
                    for k in range(rng.choice((0, 0, 1, 2)))
                ),
                recompute=recompute,
            )
        )

    def _store(
        self, kind: Kind, *, alive: bool = False, becomes: str | None = None, nbytes: int = -1
    ) -> str:
        name = f"{kind[:5]}{len(self._storages)}"
        size = self._rng.choice((0, 1, 8, 16, 16, 32, 64)) if nbytes < 0 else nbytes
        self._storages.append(
            Storage(name=name, kind=kind, nbytes=size, alive_at_start=alive, becomes=becomes)
        )
        self._version[name] = 0
        self._nbytes[name] = size
        return name

    def _sample(self, names: list[str], most: int) -> list[str]:
        return self._rng.sample(names, self._rng.randint(1, min(most, len(names))))

    def _current(self, storage: str) -> str:
        version = self._version[storage]
        return f"{storage}@{version}" if version else storage

    def _seen(self, storage: str) -> str:
        """Return the present value of a storage, or sometimes a view of it."""
        nbytes, version = self._nbytes[storage], self._version[storage]
        if nbytes < 2 or self._rng.random() < 0.8:
            return self._current(storage)
        name = f"{storage}@{version}.view{len(self._values)}"
        self._values.append(
            Value(name=name, storage=storage, version=version, offset=1, nbytes=nbytes - 1)
        )
        return name

    def _next(self, storage: str) -> str:
        self._version[storage] += 1
        name = self._current(storage)
        self._values.append(Value(name=name, storage=storage, version=self._version[storage]))
        return name

    def _storage_of(self, value: str) -> str:
        return value.partition("@")[0]
