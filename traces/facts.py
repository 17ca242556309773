"""A trace compiled to integers, and proved consistent on the way.

Operations and storages are numbered in the order of the trace; every list below is indexed by one
of the two numbers. Names stay in files and messages: looking them up in the hot loops of policies
and simulator costs 1.6 times as much.
"""

import hashlib
from functools import cached_property
from typing import Final, Never

import msgspec

from ..errors import InvalidTrace
from .model import Operation, Trace

SCHEDULED_KINDS: Final = frozenset({"activation", "activation-gradient"})


class Facts:
    """What policies, checker and simulator need to know of a trace.

    Of an operation: *reads* (storages that must be there for it, also when it is computed again;
    an in-place target is one of them) at *versions*; *needs* (the same for the original run: with
    what it updates in passing and what is unpacked for it); *fresh* (storages that it makes),
    *overwrites* (in place) and *updates*.

    Of a storage: *nbytes*, *scheduled* (it counts as the paper's data), *managed* (policies may
    give up its device copy, at places from *absent_from* to before *absent_until*), *packed* (the
    place of its last pack, -1 if it is not saved), *writers* in order, *last_use*, *death* (the place where the program is done with it; beyond the last place
    if it outlives the step), *leave* and *back* (the operations around its idle time between
    forward and backward, -1 if it has none).
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.op_count: Final = len(trace.operations)
        self.storage_count: Final = len(trace.storages)
        self.op_names: Final = [op.name for op in trace.operations]
        self.names: Final = [storage.name for storage in trace.storages]
        self.nbytes: Final = [storage.nbytes for storage in trace.storages]
        self.alive_at_start: Final = [storage.alive_at_start for storage in trace.storages]
        self.scheduled: Final = [
            storage.kind in SCHEDULED_KINDS and not storage.alive_at_start
            for storage in trace.storages
        ]
        self._index_names()
        self._compile_operations()
        self._compile_lifetimes()
        self._compile_idle_times()

    # -- names ---------------------------------------------------------------------------------

    def _index_names(self) -> None:
        trace = self.trace
        self.storage_index: Final = {name: s for s, name in enumerate(self.names)}
        if len(self.storage_index) < self.storage_count:
            self._fault_duplicate("storages", self.names)
        self.op_index: Final = {name: i for i, name in enumerate(self.op_names)}
        if len(self.op_index) < self.op_count:
            self._fault_duplicate("operations", self.op_names)
        self._values: Final = {name: (s, 0) for s, name in enumerate(self.names)}
        for i, value in enumerate(trace.values):
            where = f"values[{i}]"
            s = self.storage_index.get(value.storage)
            if s is None:
                self._fault(where, f"value {value.name!r} is of {value.storage!r}, no storage here")
            if value.name in self._values:
                self._fault(where, f"the name {value.name!r} is taken already")
            end = value.offset + (value.nbytes or 0)
            if end > self.nbytes[s]:
                self._fault(
                    where,
                    f"the view {value.name!r} ends at byte {end}, beyond its storage "
                    f"{value.storage!r} of {self.nbytes[s]} bytes",
                )
            self._values[value.name] = (s, value.version)

    # -- operations ----------------------------------------------------------------------------

    def _compile_operations(self) -> None:
        values = self._values
        nbytes, scheduled = self.nbytes, self.scheduled
        present = [0 if alive else -1 for alive in self.alive_at_start]
        writers: list[list[int]] = [[] for _ in self.names]
        last_use = [-1] * self.storage_count
        all_reads: list[tuple[int, ...]] = []
        all_versions: list[tuple[int, ...]] = []
        all_fresh: list[tuple[int, ...]] = []
        overwrites: list[tuple[int, ...]] = []
        updates: list[tuple[int, ...]] = []
        fresh_nbytes: list[int] = []
        fresh_scheduled: list[int] = []
        fresh_tensors: list[int] = []
        for i, op in enumerate(self.trace.operations):
            reads: list[int] = []
            versions: list[int] = []
            for name in op.reads:
                found = values.get(name)
                if found is None or present[found[0]] != found[1]:
                    self._fault_read(i, name, present)
                s = found[0]
                if s not in reads:
                    reads.append(s)
                    versions.append(found[1])
                    last_use[s] = i
            fresh: list[int] = []
            in_place: tuple[int, ...] = ()
            size = data = tensors = 0
            for name in op.writes:
                found = values.get(name)
                if found is None or present[found[0]] + 1 != found[1]:
                    self._fault_write(i, name, present)
                s, version = found
                if writers[s] and writers[s][-1] == i:
                    self._fault(f"operations[{i}].writes", f"{op.name!r} writes {name!r} twice")
                if version:
                    in_place += (s,)
                    if s not in reads:
                        reads.append(s)
                        versions.append(version - 1)
                else:
                    fresh.append(s)
                    size += nbytes[s]
                    if scheduled[s]:
                        data += nbytes[s]
                        tensors += 1
                present[s] = version
                writers[s].append(i)
                last_use[s] = i
            passing = self._compile_updates(i, op, present, writers, last_use) if op.updates else ()
            all_reads.append(tuple(reads))
            all_versions.append(tuple(versions))
            all_fresh.append(tuple(fresh))
            overwrites.append(in_place)
            updates.append(passing)
            fresh_nbytes.append(size)
            fresh_scheduled.append(data)
            fresh_tensors.append(tensors)
        self.reads: Final = all_reads
        self.versions: Final = all_versions
        self.fresh: Final = all_fresh
        self.overwrites: Final = overwrites
        self.updates: Final = updates
        self.fresh_nbytes: Final = fresh_nbytes
        self.fresh_scheduled_nbytes: Final = fresh_scheduled
        self.fresh_tensors: Final = fresh_tensors
        self.writers: Final = writers
        self.last_use: Final = last_use
        for s, present_version in enumerate(present):
            if present_version < 0:
                self._fault(f"storages[{s}]", f"nothing ever writes {self.names[s]!r}")

    def _compile_updates(
        self,
        i: int,
        op: Operation,
        present: list[int],
        writers: list[list[int]],
        last_use: list[int],
    ) -> tuple[int, ...]:
        passing = []
        for name in op.updates:
            found = self._values.get(name)
            if found is None or found[1] == 0 or present[found[0]] + 1 != found[1]:
                self._fault(
                    f"operations[{i}].updates",
                    f"{op.name!r} updates {name!r}, which is not the next version of a storage "
                    "that is there",
                )
            s, present[found[0]] = found
            writers[s].append(i)
            last_use[s] = i
            passing.append(s)
        return tuple(passing)

    # -- lifetimes -----------------------------------------------------------------------------

    def _compile_lifetimes(self) -> None:
        trace, count = self.trace, self.op_count
        everywhere = trace.places == "everywhere"
        releases = self._releases()
        saves = self._saves()
        self.alive_at_end: Final = [
            storage.becomes is not None or (storage.alive_at_start and s not in releases)
            for s, storage in enumerate(trace.storages)
        ]
        self._prove_closed()
        self.death: Final = [0] * self.storage_count
        self.managed: Final = [False] * self.storage_count
        self.absent_from: Final = [count + 1] * self.storage_count
        self.absent_until: Final = [0] * self.storage_count
        self.packed: Final = [0 if everywhere else -1] * self.storage_count
        self.needs: Final = list(self.reads)
        for i, passing in enumerate(self.updates):
            if passing:
                self.needs[i] += passing
        for s in range(self.storage_count):
            done = self.last_use[s] + 1
            if self.alive_at_end[s]:
                self.death[s] = count + 1
                continue
            release = releases.get(s)
            if everywhere:
                if release is not None and release < done:
                    self._fault_use_after_release(s, release)
                self.death[s] = max(done, release or 0)
                if not self.alive_at_start[s]:
                    self.managed[s] = True
                    self.absent_from[s], self.absent_until[s] = 0, count + 1
                continue
            if release is None:
                self._fault(
                    "releases",
                    f"{self.names[s]!r} is neither released nor alive at the end; "
                    "a trace with places: saves says where the program lets go of it",
                )
            packed, unpacked, freed = saves.get(s, (0, count + 1, 0))
            self.death[s] = max(release, freed)
            if s in saves:
                self.packed[s] = packed
            if done > self.death[s] or any(
                release <= use < unpacked for use in self._uses_from(s, release)
            ):
                self._fault_use_after_release(s, release)
            start = max(release, packed)
            if s in saves and start < unpacked and not self.alive_at_start[s]:
                self.managed[s] = True
                self.absent_from[s], self.absent_until[s] = start, unpacked
                if unpacked < count and s not in self.needs[unpacked]:
                    self.needs[unpacked] += (s,)
                    self.last_use[s] = max(self.last_use[s], unpacked)
        self.is_place: Final = [everywhere] * (count + 1)
        self.is_place[0] = self.is_place[count] = True
        for save in trace.saves:
            self.is_place[save.packed] = self.is_place[save.unpacked] = True

    def _releases(self) -> dict[int, int]:
        places: dict[int, int] = {}
        for i, release in enumerate(self.trace.releases):
            where = f"releases[{i}]"
            s = self.storage_index.get(release.storage)
            if s is None:
                self._fault(where, f"releases {release.storage!r}, no storage here")
            if s in places:
                self._fault(where, f"{release.storage!r} is released already")
            born = 0 if self.alive_at_start[s] else self.writers[s][0] + 1
            if not born <= release.place <= self.op_count:
                self._fault(
                    where,
                    f"{release.storage!r} is released at place {release.place}; "
                    f"it lives from {born} and the step ends at {self.op_count}",
                )
            places[s] = release.place
        return places

    def _saves(self) -> dict[int, tuple[int, int, int]]:
        """For each saved storage: last pack, first unpack, last hold of autograd."""
        found: dict[int, tuple[int, int, int]] = {}
        if self.trace.saves and self.trace.places == "everywhere":
            self._fault("saves", "a trace with places: everywhere has no saves")
        for i, save in enumerate(self.trace.saves):
            where = f"saves[{i}]"
            value = self._values.get(save.value)
            if value is None:
                self._fault(where, f"saves {save.value!r}, no value here")
            s, version = value
            freed = save.unpacked + 1 if save.freed is None else save.freed
            freed = min(freed, self.op_count)
            written = self.version_writer(s, version) + 1
            overwritten = self.overwriter(s, version)
            if not written <= save.packed <= save.unpacked <= min(freed, overwritten):
                self._fault(
                    where,
                    f"{save.value!r} is packed at {save.packed}, unpacked at {save.unpacked} and "
                    f"freed at {freed}; it is there from place {written} to {overwritten}",
                )
            packed, unpacked, last = found.get(s, (0, self.op_count + 1, 0))
            found[s] = (
                max(packed, save.packed),
                min(unpacked, save.unpacked),
                max(last, freed),
            )
        return found

    def _uses_from(self, s: int, place: int) -> list[int]:
        if self.last_use[s] < place:
            return []
        return [i for i in range(place, self.last_use[s] + 1) if s in self.needs[i]]

    def _prove_closed(self) -> None:
        start = {
            storage.name: storage.nbytes
            for storage in self.trace.storages
            if storage.alive_at_start
        }
        end: dict[str, int] = {}
        for i, storage in enumerate(self.trace.storages):
            if self.alive_at_end[i]:
                name = storage.becomes or storage.name
                if name in end:
                    self._fault(f"storages[{i}]", f"two storages become {name!r}")
                end[name] = storage.nbytes
        if start != end:
            lost = sorted(start.items() - end.items())
            left = sorted(end.items() - start.items())
            self._fault(
                "storages",
                "the step is not closed: what is alive at its end must have been alive at its "
                f"start; only at the start: {_few(lost)}; only at the end: {_few(left)}",
            )

    # -- idle times ----------------------------------------------------------------------------

    def _compile_idle_times(self) -> None:
        leave = [-1] * self.storage_count
        back = [-1] * self.storage_count
        if self.trace.places == "everywhere":
            for i, op in enumerate(self.trace.operations):
                if op.phase == "forward":
                    for s in self.fresh[i]:
                        leave[s] = i
                    for s in self.reads[i]:
                        if back[s] < 0:
                            leave[s] = i
                else:
                    for s in self.reads[i]:
                        if back[s] < 0:
                            back[s] = i
        for s in range(self.storage_count):
            if not self.managed[s]:
                leave[s] = back[s] = -1
            elif self.trace.places == "saves":
                leave[s], back[s] = self.absent_from[s] - 1, self.absent_until[s]
            elif leave[s] < 0:
                back[s] = -1
        self.leave: Final = leave
        self.back: Final = back

    # -- derived on demand ---------------------------------------------------------------------

    def version_writer(self, s: int, version: int) -> int:
        """Return the operation that writes *version* of storage *s*; -1 if it is there at the start."""
        k = version - 1 if self.alive_at_start[s] else version
        return self.writers[s][k] if 0 <= k < len(self.writers[s]) else -1

    def overwriter(self, s: int, version: int) -> int:
        """Return the operation that overwrites *version* of storage *s*; past the end if none does."""
        k = version if self.alive_at_start[s] else version + 1
        writers = self.writers[s]
        return writers[k] if k < len(writers) else self.op_count + 1

    def chain(self, s: int, version: int) -> list[int]:
        """Return the operations that write storage *s*, first to *version*, in order."""
        return self.writers[s][: version if self.alive_at_start[s] else version + 1]

    def unreachable(self, s: int, place: int) -> bool:
        """Whether a driver at *place* has no hold of *s*: neither lasting nor packed by then."""
        return not self.alive_at_start[s] and not 0 <= self.packed[s] <= place

    def unpacked_source(self, s: int, version: int, place: int) -> int:
        """Return a source of *s* that autograd has not packed by *place*; -1 if there is none.

        Sources are what computing that version again starts from: what is saved, or there from
        the start. Storages that live only inside the program are computed again on the way.
        """
        todo, seen = [(s, version)], {s}
        while todo:
            for op in self.chain(*todo.pop()):
                for source, at in zip(self.reads[op], self.versions[op], strict=True):
                    if source in seen or self.alive_at_start[source]:
                        continue
                    seen.add(source)
                    if self.packed[source] < 0:
                        todo.append((source, at))
                    elif self.packed[source] > place:
                        return source
        return -1

    @cached_property
    def program_frees(self) -> dict[int, list[int]]:
        """For each place, the unmanaged storages that the program frees there."""
        frees: dict[int, list[int]] = {}
        for s, place in enumerate(self.death):
            if not self.managed[s] and place <= self.op_count:
                frees.setdefault(place, []).append(s)
        return frees

    @cached_property
    def leaving(self) -> dict[int, list[int]]:
        """For each operation, the storages whose idle time begins after it."""
        found: dict[int, list[int]] = {}
        for s, i in enumerate(self.leave):
            if i >= 0:
                found.setdefault(i, []).append(s)
        return found

    @cached_property
    def overwritten(self) -> set[int]:
        """The storages that are written more than once."""
        return {s for s, writers in enumerate(self.writers) if self.alive_at_start[s] or writers[1:]}

    @cached_property
    def digest(self) -> str:
        """What identifies the step for a schedule: everything but times and notes."""
        trace = self.trace
        content = msgspec.json.encode(
            (
                trace.places,
                self.op_names,
                [op.recompute for op in trace.operations],
                [op.workspace_nbytes + op.transient_nbytes for op in trace.operations],
                [[a.workspace_nbytes for a in op.algorithms] for op in trace.operations],
                trace.storages,
                self.reads,
                self.versions,
                self.fresh,
                self.overwrites,
                self.updates,
                trace.releases,
                trace.saves,
            )
        )
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    @cached_property
    def floor_nbytes(self) -> int:
        """The largest sum of distinct storages and workspace that one operation needs at once,
        with all that is there from the start of the step: no policy can run in less."""
        lasting = [s for s in range(self.storage_count) if self.alive_at_start[s]]
        base = sum(self.nbytes[s] for s in lasting if self.death[s] > self.op_count)
        return base + max((need for _, need in self._demands()), default=0)

    @cached_property
    def floor_op(self) -> int:
        """The operation that sets the floor; -1 in an empty trace."""
        return max(self._demands(), key=lambda demand: demand[1], default=(-1, 0))[0]

    @cached_property
    def scheduled_floor_nbytes(self) -> int:
        """The largest sum of distinct scheduled storages that one operation needs at once."""
        return max(
            (
                sum(self.nbytes[s] for s in needs if self.scheduled[s])
                + self.fresh_scheduled_nbytes[i]
                for i, needs in enumerate(self.needs)
            ),
            default=0,
        )

    def _demands(self) -> list[tuple[int, int]]:
        lasting = [a and d > self.op_count for a, d in zip(self.alive_at_start, self.death, strict=True)]
        demands = []
        for i, op in enumerate(self.trace.operations):
            least = min((a.workspace_nbytes for a in op.algorithms), default=op.workspace_nbytes)
            need = self.fresh_nbytes[i] + min(least, op.workspace_nbytes) + op.transient_nbytes
            need += sum(self.nbytes[s] for s in self.needs[i] if not lasting[s])
            demands.append((i, need))
        return demands

    # -- faults --------------------------------------------------------------------------------

    def _fault(self, path: str, sentence: str) -> Never:
        raise InvalidTrace(f"trace {self.trace.name!r}, {path}: {sentence}")

    def _fault_duplicate(self, path: str, names: list[str]) -> Never:
        seen: set[str] = set()
        for i, name in enumerate(names):
            if name in seen:
                self._fault(f"{path}[{i}]", f"two {path} are named {name!r}")
            seen.add(name)
        raise AssertionError(names)

    def _fault_read(self, i: int, name: str, present: list[int]) -> Never:
        position = self.trace.operations[i].reads.index(name)
        what = f"{self.op_names[i]!r} reads {name!r}"
        found = self._values.get(name)
        if found is None:
            why = "no value here"
        elif present[found[0]] < found[1]:
            why = "which nobody has written yet"
        else:
            why = "which has been overwritten"
        self._fault(f"operations[{i}].reads[{position}]", f"{what}, {why}")

    def _fault_write(self, i: int, name: str, present: list[int]) -> Never:
        position = self.trace.operations[i].writes.index(name)
        what = f"{self.op_names[i]!r} writes {name!r}"
        found = self._values.get(name)
        if found is None:
            why = "no value here"
        else:
            why = f"version {found[1]}, but the next version of its storage is {present[found[0]] + 1}"
        self._fault(f"operations[{i}].writes[{position}]", f"{what}, {why}")

    def _fault_use_after_release(self, s: int, release: int) -> Never:
        use = next((i for i in self._uses_from(s, release)), self.last_use[s])
        self._fault(
            "releases",
            f"{self.names[s]!r} is released at place {release}, but {self.op_names[use]!r} "
            f"(operation {use}) still uses it and no save covers that",
        )


def _few(items: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name} ({nbytes} bytes)" for name, nbytes in items[:5])
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return (shown or "nothing") + more
