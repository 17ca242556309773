"""Who reads and writes what, by number: a trace's operations compiled and proved consistent."""

from collections.abc import Sequence
from typing import Never

from ..errors import InvalidTrace
from .allocations import fault_in_order
from .model import Operation, Trace


def fault(trace: Trace, path: str, sentence: str) -> Never:
    """Raise InvalidTrace with the path to the fault inside the trace."""
    raise InvalidTrace(f"trace {trace.name!r}, {path}: {sentence}")


class Dataflow:
    """Operations and storages numbered in the order of the trace, and what flows between them.

    What the attributes mean is told in `Facts`, which takes them over.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.names = [storage.name for storage in trace.storages]
        self.op_names = [op.name for op in trace.operations]
        self.storage_index = self._index("storages", self.names)
        self.op_index = self._index("operations", self.op_names)
        self.values = self._index_values()
        self.reads: list[tuple[int, ...]] = []
        self.versions: list[tuple[int, ...]] = []
        self.fresh: list[tuple[int, ...]] = []
        self.overwrites: list[tuple[int, ...]] = []
        self.updates: list[tuple[int, ...]] = []
        self.writers: list[list[int]] = [[] for _ in self.names]
        self.last_use = [-1] * len(self.names)
        # The version of each storage at this point of the step; -1 before its first write.
        self._present = [0 if storage.alive_at_start else -1 for storage in trace.storages]
        self._compile()

    def _index(self, path: str, names: list[str]) -> dict[str, int]:
        index = {name: number for number, name in enumerate(names)}
        if len(index) < len(names):
            seen: set[str] = set()
            for i, name in enumerate(names):
                if name in seen:
                    fault(self.trace, f"{path}[{i}]", f"two {path} are named {name!r}")
                seen.add(name)
        return index

    def _index_values(self) -> dict[str, tuple[int, int]]:
        """Number the values: (storage, version). A storage's own name is its version 0."""
        values = {name: (s, 0) for s, name in enumerate(self.names)}
        for i, value in enumerate(self.trace.values):
            where = f"values[{i}]"
            s = self.storage_index.get(value.storage, -1)
            if s < 0:
                what = f"value {value.name!r} is of {value.storage!r}"
                fault(self.trace, where, f"{what}, no storage here")
            if value.name in values:
                fault(self.trace, where, f"the name {value.name!r} is taken already")
            end, size = value.offset + (value.nbytes or 0), self.trace.storages[s].nbytes
            if end > size:
                fault(
                    self.trace,
                    where,
                    f"the view {value.name!r} ends at byte {end}, beyond its storage "
                    f"{value.storage!r} of {size} bytes",
                )
            values[value.name] = (s, value.version)
        return values

    def _compile(self) -> None:
        """Walk the operations once. The loop is the price of loading a trace: keep it lean."""
        number = self.values.__getitem__
        present, writers, last_use = self._present, self.writers, self.last_use
        measured, roofline = self.trace.times == "measured", self.trace.times == "roofline"
        for i, op in enumerate(self.trace.operations):
            reads: list[int] = []
            fresh: tuple[int, ...] = ()
            in_place: tuple[int, ...] = ()
            later = 0  # whether any version read is not the first
            try:
                for s, version in map(number, op.reads):
                    if present[s] != version:
                        self._fault_value(i, "reads", op.reads)
                    reads.append(s)
                    last_use[s] = i
                    later |= version
                for s, version in map(number, op.writes):
                    if present[s] + 1 != version or (last_use[s] == i and writers[s][-1:] == [i]):
                        self._fault_value(i, "writes", op.writes)
                    if version:
                        in_place += (s,)
                        reads.append(s)
                        later |= version - 1
                    else:
                        fresh += (s,)
                    present[s] = version
                    writers[s].append(i)
                    last_use[s] = i
            except KeyError:
                self._fault_name(i, op)
            if len(reads) > 1 and len(set(reads)) < len(reads):
                reads = list(dict.fromkeys(reads))
            self.reads.append(tuple(reads))
            self.versions.append(self._versions(op, reads) if later else (0,) * len(reads))
            self.fresh.append(fresh)
            self.overwrites.append(in_place)
            self.updates.append(self._compile_updates(i, op) if op.updates else ())
            if op.allocations:
                self._prove_allocations(i, op, fresh)
            if (op.device_ns is not None) != measured or (roofline and not op.moved_nbytes):
                self._prove_times(i, op)
            if op.algorithms:
                self._prove_algorithms(i, op)
        for s, version in enumerate(present):
            if version < 0:
                fault(self.trace, f"storages[{s}]", f"nothing ever writes {self.names[s]!r}")

    def _versions(self, op: Operation, reads: list[int]) -> tuple[int, ...]:
        """Return the versions at which an operation reads, its in-place targets included."""
        written = (self.values[name] for name in op.writes)
        version_of = {s: version - 1 for s, version in written}
        version_of.update(self.values[name] for name in op.reads)
        return tuple(version_of[s] for s in reads)

    def _compile_updates(self, i: int, op: Operation) -> tuple[int, ...]:
        passing = []
        for name in op.updates:
            s, version = self.values.get(name, (-1, 0))
            if s < 0 or version == 0 or self._present[s] + 1 != version:
                fault(
                    self.trace,
                    f"operations[{i}].updates",
                    f"{op.name!r} updates {name!r}, which is not the next version of a storage "
                    "that is there",
                )
            self._present[s] = version
            self.writers[s].append(i)
            self.last_use[s] = i
            passing.append(s)
        return tuple(passing)

    def _prove_times(self, i: int, op: Operation) -> None:
        """Refuse an operation whose times are not those that the trace says it has."""
        where, times = f"operations[{i}]", self.trace.times
        if times == "measured":
            fault(self.trace, where, f"times are measured, but {op.name!r} has no device_ns")
        if op.device_ns is not None:
            what = f"{op.name!r} has a device_ns, but the trace says times: {times}"
            fault(self.trace, where, f"{what}; measure all or none")
        if times == "roofline" and not op.flops and op.kind != "empty" and self._touched(op):
            what = f"{op.name!r} has neither flops nor moved_nbytes"
            fault(self.trace, where, f"{what}: a roofline makes no time of that")

    def _prove_algorithms(self, i: int, op: Operation) -> None:
        """Refuse an alternative without a time where others have one; without times it has none."""
        times = self.trace.times
        for k, other in enumerate(op.algorithms):
            where = f"operations[{i}].algorithms[{k}]"
            if times == "measured" and other.device_ns is None:
                fault(self.trace, where, f"times are measured, but {other.name!r} has no device_ns")
            if times == "roofline" and other.device_ns is not None:
                what = f"{other.name!r} has a device_ns, but the trace says times: {times}"
                fault(self.trace, where, f"{what}; measure all or none")
            if times == "roofline" and not other.flops and not other.moved_nbytes:
                what = f"{other.name!r} has neither flops nor moved_nbytes"
                fault(self.trace, where, f"{what}: a roofline makes no time of that")

    def _touched(self, op: Operation) -> int:
        """Return the bytes of what an operation reads and writes: none of empty tensors."""
        views = {value.name: value.nbytes for value in self.trace.values}
        total = 0
        for name in op.reads + op.writes:
            nbytes = views.get(name)
            s = self.values[name][0]
            total += self.trace.storages[s].nbytes if nbytes is None else nbytes
        return total

    def _prove_allocations(self, i: int, op: Operation, fresh: tuple[int, ...]) -> None:
        wrong = fault_in_order(op, [self.trace.storages[s].nbytes for s in fresh])
        if wrong is not None:
            fault(self.trace, f"operations[{i}].allocations", f"{op.name!r} {wrong}")

    def _fault_name(self, i: int, op: Operation) -> Never:
        for field, names in (("reads", op.reads), ("writes", op.writes)):
            for k, name in enumerate(names):
                if name not in self.values:
                    where = f"operations[{i}].{field}[{k}]"
                    fault(self.trace, where, f"{op.name!r} {field} {name!r}, no value here")
        raise AssertionError(op)

    def _fault_value(self, i: int, field: str, names: Sequence[str]) -> Never:
        """Tell which of the values that an operation reads or writes is not due, and why."""
        present, name_of = self._present, self.op_names[i]
        for k, name in enumerate(names):
            s, version = self.values[name]
            where = f"operations[{i}].{field}[{k}]"
            if field == "reads" and present[s] < version:
                fault(
                    self.trace,
                    where,
                    f"{name_of!r} reads {name!r}, which nobody has written yet",
                )
            if field == "reads" and present[s] > version:
                fault(self.trace, where, f"{name_of!r} reads {name!r}, which has been overwritten")
            if field == "writes" and self.writers[s][-1:] == [i] and names.index(name) < k:
                fault(self.trace, where, f"{name_of!r} writes {name!r} twice")
            if field == "writes" and present[s] + 1 != version and self.writers[s][-1:] != [i]:
                fault(
                    self.trace,
                    where,
                    f"{name_of!r} writes {name!r}, version {version} of its storage; "
                    f"the next one is version {present[s] + 1}",
                )
        fault(self.trace, f"operations[{i}].{field}", f"{name_of!r} writes one storage twice")
