"""What a schedule computes, on symbolic contents: an oracle that knows nothing of the checker.

The content of a storage is a hash of how it came about. A plain execution of the trace, where
nothing is ever freed, says what each operation reads and what the step leaves behind; an execution
of a schedule must show every operation the very same. Values are resolved by name from the trace
itself: neither `Facts` nor `Ledger` nor the checker has a say here.
"""

from collections.abc import Mapping

from superneurons.schedules import Copy, Fetch, Free, Rerun, Run, Schedule
from superneurons.traces import Trace


class Symbolic:
    """A trace whose plain execution is known; `difference` compares schedules with it."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        number = {storage.name: s for s, storage in enumerate(trace.storages)}
        home = {name: (s, 0) for name, s in number.items()}
        home |= {value.name: (number[value.storage], value.version) for value in trace.values}
        # What an operation computes from: its reads and, as a write in place may leave part of
        # the old content standing, what it writes in place.
        self._reads = [
            list(
                dict.fromkeys(
                    [home[v][0] for v in op.reads] + [home[v][0] for v in op.writes if home[v][1]]
                )
            )
            for op in trace.operations
        ]
        self._writes = [[home[v][0] for v in op.writes] for op in trace.operations]
        self._updates = [[home[v][0] for v in op.updates] for op in trace.operations]
        self._unpacked: list[list[int]] = [[] for _ in range(len(trace.operations) + 1)]
        for save in trace.saves:
            self._unpacked[save.unpacked].append(home[save.value][0])
        self._seen: list[list[int | None]] = []
        device = self._start()
        for op in range(len(trace.operations)):
            self._seen.append(self._look(op, device))
            self._run(op, device)
        released = {release.storage for release in trace.releases}
        self._left = {
            s: device[s]
            for s, storage in enumerate(trace.storages)
            if storage.becomes or (storage.alive_at_start and storage.name not in released)
        }

    def difference(self, schedule: Schedule) -> str | None:
        """Return where *schedule* first differs from the plain step; None if it is right."""
        operations, storages = self._trace.operations, self._trace.storages
        device = self._start()
        tiers: dict[str, dict[int, int]] = {tier: {} for tier in schedule.tiers}
        done = 0
        for position, step in enumerate(schedule.instructions):
            where = f"instruction {position}, {step!r}"
            if isinstance(step, Run | Rerun):
                if not 0 <= step.op < len(operations):
                    return f"{where}: there is no such operation"
            elif not 0 <= step.storage < len(storages):
                return f"{where}: there is no such storage"
            if isinstance(step, Run):
                if step.op != done:
                    return f"{where}: operation {done} is next"
                if self._look(done, device) != self._seen[done]:
                    return f"{where}: {self._astray(done, device)}"
                self._run(done, device)
                done += 1
            elif isinstance(step, Rerun):
                if any(s not in device for s in self._reads[step.op]):
                    return f"{where}: reads what is absent"
                opaque = operations[step.op].recompute == "opaque"
                device |= self._compute(step.op, device, position if opaque else None)
            elif isinstance(step, Copy):
                if step.storage not in device or step.tier not in tiers:
                    return f"{where}: nothing to copy, or nowhere to put it"
                tiers[step.tier][step.storage] = device[step.storage]
            elif isinstance(step, Free):
                if device.pop(step.storage, None) is None:
                    return f"{where}: frees what is absent"
            elif isinstance(step, Fetch):
                if step.storage not in tiers.get(step.tier, {}):
                    return f"{where}: nothing to fetch"
                device[step.storage] = tiers[step.tier][step.storage]
            elif tiers.get(step.tier, {}).pop(step.storage, None) is None:
                return f"{where}: nothing to discard"
        if done < len(operations):
            return f"the end: operation {done} has not run"
        for s, content in self._left.items():
            if device.get(s) != content:
                return f"the end: {storages[s].name!r} is not what the step leaves behind"
        return None

    def _start(self) -> dict[int, int]:
        alive = (s for s, storage in enumerate(self._trace.storages) if storage.alive_at_start)
        return {s: hash(("start", s)) for s in alive}

    def _look(self, op: int, device: Mapping[int, int]) -> list[int | None]:
        """Return what operation *op* of the step finds: None where something is absent."""
        return [device.get(s) for s in self._reads[op] + self._updates[op] + self._unpacked[op]]

    def _astray(self, op: int, device: Mapping[int, int]) -> str:
        names = [storage.name for storage in self._trace.storages]
        wanted = self._reads[op] + self._updates[op] + self._unpacked[op]
        return ", ".join(
            f"{names[s]!r} is {'wrong' if s in device else 'absent'}"
            for s, content in zip(wanted, self._seen[op], strict=True)
            if device.get(s) != content
        )

    def _run(self, op: int, device: dict[int, int]) -> None:
        """Run an operation of the step: only such a run updates anything in passing."""
        written = self._compute(op, device, None)
        for k, s in enumerate(self._updates[op]):
            read = tuple(device[r] for r in self._reads[op])
            written[s] = hash(("update", op, k, read, device[s]))
        device |= written

    def _compute(self, op: int, device: Mapping[int, int], salt: int | None) -> dict[int, int]:
        """Return what operation *op* writes; a *salt* makes it different from any other time."""
        read = tuple(device[r] for r in self._reads[op])
        return {s: hash(("write", op, k, read, salt)) for k, s in enumerate(self._writes[op])}


def execute(trace: Trace, schedule: Schedule) -> str | None:
    """Execute *schedule* on symbolic contents: return where it first differs, None if nowhere."""
    return Symbolic(trace).difference(schedule)
