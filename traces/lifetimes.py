"""How long storages live: what the program holds, what autograd keeps, what policies may do.

In a layer trace the program lets go of a storage after its last use, or where a release says, and
policies may give up its device copy at any time. In a recorded trace (`places: saves`) the program
holds storages as it likes; policies manage the saved ones, from the later of the last pack and the
program's release to the first unpack.
"""

from bisect import bisect_left
from functools import cached_property
from typing import NamedTuple

from .dataflow import Dataflow, fault
from .model import Trace


class _Hold(NamedTuple):
    """What autograd keeps of a storage: places of last pack, first unpack, and letting go."""

    packed: int
    unpacked: int
    freed: int


class Lifetimes:
    """Places of birth and death for every storage of a trace, proved consistent.

    What the attributes mean is told in `Facts`, which takes them over.
    """

    def __init__(self, flow: Dataflow) -> None:
        self._flow = flow
        self._trace: Trace = flow.trace
        self._end = len(flow.op_names)
        count = len(flow.names)
        everywhere = self._trace.places == "everywhere"
        releases = self._releases()
        saves = self._saves()
        self.alive_at_end = [
            storage.becomes is not None or (storage.alive_at_start and s not in releases)
            for s, storage in enumerate(self._trace.storages)
        ]
        self._prove_closed()
        self.needs = list(flow.reads)
        for i, passing in enumerate(flow.updates):
            if passing:
                self.needs[i] += tuple(s for s in passing if s not in self.needs[i])
        self.death = [self._end + 1] * count
        self.managed = [False] * count
        self.packed = [0 if everywhere else -1] * count
        self.absent_from = [self._end + 1] * count
        self.absent_until = [0] * count
        for s in range(count):
            if not self.alive_at_end[s]:
                if everywhere:
                    self._live_everywhere(s, releases.get(s))
                else:
                    self._live_by_saves(s, releases.get(s), saves.get(s))
        self.is_place = [everywhere] * (self._end + 1)
        self.is_place[0] = self.is_place[self._end] = True
        for save in self._trace.saves:
            self.is_place[save.packed] = self.is_place[save.unpacked] = True
        self.leave = [-1] * count
        self.back = [-1] * count
        if everywhere:
            self._find_idle_times()
        for s in range(count):
            if not self.managed[s] or (everywhere and self.leave[s] < 0):
                self.leave[s] = self.back[s] = -1
            elif not everywhere:
                self.leave[s], self.back[s] = self.absent_from[s] - 1, self.absent_until[s]

    def _live_everywhere(self, s: int, release: int | None) -> None:
        done = self._flow.last_use[s] + 1
        if release is not None and release < done:
            self._fault_use_after_release(s, release)
        self.death[s] = max(done, release or 0)
        if not self._trace.storages[s].alive_at_start:
            self.managed[s] = True
            self.absent_from[s] = 0
            self.absent_until[s] = self._end + 1

    def _live_by_saves(self, s: int, release: int | None, hold: _Hold | None) -> None:
        name = self._flow.names[s]
        if release is None:
            fault(
                self._trace,
                "releases",
                f"{name!r} is neither released nor alive at the end; a trace with places: saves "
                "says where the program lets go of each storage",
            )
        self.death[s] = max(release, hold.freed) if hold else release
        unpacked = hold.unpacked if hold else self._end + 1
        uses = self._uses_from(s, release)
        if any(use < unpacked or use >= self.death[s] for use in uses):
            self._fault_use_after_release(s, release)
        if hold is None:
            return
        self.packed[s] = hold.packed
        start = max(release, hold.packed)
        if start < unpacked and not self._trace.storages[s].alive_at_start:
            self.managed[s] = True
            self.absent_from[s], self.absent_until[s] = start, unpacked
            asked = unpacked < min(self._end, self.death[s])  # else it is let go of unasked
            if asked and s not in self.needs[unpacked]:
                self.needs[unpacked] += (s,)

    def _releases(self) -> dict[int, int]:
        flow = self._flow
        places: dict[int, int] = {}
        for i, release in enumerate(self._trace.releases):
            where = f"releases[{i}]"
            s = flow.storage_index.get(release.storage, -1)
            if s < 0:
                fault(self._trace, where, f"releases {release.storage!r}, no storage here")
            if s in places:
                fault(self._trace, where, f"{release.storage!r} is released already")
            if self._trace.storages[s].becomes is not None:
                what = (
                    f"{release.storage!r} outlives the step as {self._trace.storages[s].becomes!r}"
                )
                fault(self._trace, where, f"{what} and cannot be released")
            born = 0 if self._trace.storages[s].alive_at_start else flow.writers[s][0] + 1
            if not born <= release.place <= self._end:
                fault(
                    self._trace,
                    where,
                    f"{release.storage!r} is released at place {release.place}; it lives from "
                    f"{born} and the step ends at {self._end}",
                )
            places[s] = release.place
        return places

    def _saves(self) -> dict[int, _Hold]:
        flow, trace = self._flow, self._trace
        found: dict[int, _Hold] = {}
        if trace.saves and trace.places == "everywhere":
            fault(trace, "saves", "a trace with places: everywhere has no saves")
        for i, save in enumerate(trace.saves):
            where = f"saves[{i}]"
            s, version = flow.values.get(save.value, (-1, 0))
            if s < 0:
                fault(trace, where, f"saves {save.value!r}, no value here")
            freed = save.freed
            if freed is None:  # the consumer may be the end of the step
                freed = min(save.unpacked + 1, self._end)
            if freed > self._end:
                fault(trace, where, f"it is freed at place {freed}; the step ends at {self._end}")
            writers = (
                [-1, *flow.writers[s]] if trace.storages[s].alive_at_start else flow.writers[s]
            )
            if version >= len(writers):
                fault(trace, where, f"saves {save.value!r}, which nobody writes")
            written = writers[version] + 1
            overwritten = writers[version + 1] if version + 1 < len(writers) else self._end
            if not written <= save.packed <= save.unpacked <= min(freed, overwritten):
                fault(
                    trace,
                    where,
                    f"{save.value!r} is packed at {save.packed}, unpacked at {save.unpacked} and "
                    f"freed at {freed}; it is there from place {written} to {overwritten}",
                )
            hold = found.get(s, _Hold(save.packed, save.unpacked, freed))
            found[s] = _Hold(
                max(hold.packed, save.packed),
                min(hold.unpacked, save.unpacked),
                max(hold.freed, freed),
            )
        return found

    def _uses_from(self, s: int, place: int) -> list[int]:
        """Return the operations from *place* on that read or write a storage."""
        if self._flow.last_use[s] < place:
            return []
        uses = self._uses[s]
        return uses[bisect_left(uses, place) :]

    @cached_property
    def _uses(self) -> list[list[int]]:
        """For each storage the operations that read or write it, in order."""
        flow = self._flow
        uses: list[list[int]] = [[] for _ in flow.names]
        for i, (reads, fresh, passing) in enumerate(
            zip(flow.reads, flow.fresh, flow.updates, strict=True)
        ):
            for s in dict.fromkeys(reads + fresh + passing):
                uses[s].append(i)
        return uses

    def _prove_closed(self) -> None:
        start = {s.name: s.nbytes for s in self._trace.storages if s.alive_at_start}
        end: dict[str, int] = {}
        for i, storage in enumerate(self._trace.storages):
            if self.alive_at_end[i]:
                name = storage.becomes or storage.name
                if name in end:
                    fault(self._trace, f"storages[{i}]", f"two storages become {name!r}")
                end[name] = storage.nbytes
        if start != end:
            fault(
                self._trace,
                "storages",
                "the step is not closed: what is alive at its end must have been alive at its "
                f"start; only at the start: {_few(start.items() - end.items())}; "
                f"only at the end: {_few(end.items() - start.items())}",
            )

    def _find_idle_times(self) -> None:
        """Find each storage's last use in forward and its first one after that."""
        flow, leave, back = self._flow, self.leave, self.back
        for i, op in enumerate(self._trace.operations):
            if op.phase == "forward":
                for s in flow.fresh[i]:
                    leave[s] = i
                for s in flow.reads[i]:
                    if back[s] < 0:
                        leave[s] = i
            else:
                for s in flow.reads[i]:
                    if back[s] < 0:
                        back[s] = i

    def _fault_use_after_release(self, s: int, release: int) -> None:
        uses = self._uses_from(s, release)
        use = next((i for i in uses if s not in self.needs[i]), uses[0])
        name = self._flow.names[s]
        number = [each.storage for each in self._trace.releases].index(name)
        fault(
            self._trace,
            f"releases[{number}]",
            f"{name!r} is released at place {release}, but "
            f"{self._flow.op_names[use]!r} (operation {use}) still uses it"
            + ("" if self._trace.places == "everywhere" else " and no save covers that"),
        )


def _few(items: set[tuple[str, int]]) -> str:
    named = [f"{name} ({nbytes} bytes)" for name, nbytes in sorted(items)]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return (", ".join(named[:5]) or "nothing") + more
