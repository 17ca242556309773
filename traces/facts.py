"""A trace compiled to integers: what policies, checker and simulator need to know of it.

Operations and storages are numbered in the order of the trace; every list here is indexed by one of
the two numbers. Names stay in files and messages: looking them up in the hot loops costs 1.6 times
as much. Compiling proves the trace consistent on the way.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import msgspec

from .collector import without_collector
from .dataflow import Dataflow
from .lifetimes import Lifetimes
from .model import Trace

SCHEDULED_KINDS: Final = frozenset({"activation", "activation-gradient"})


class Facts:
    """The facts of *trace*. Raises InvalidTrace, with the path to the fault, if it has one.

    Of an operation: *inside_nbytes*, what it takes only while it runs; *reads*, the storages that
    must be there for it, also when it is computed again (an in-place target is one of them), at
    *versions*; *needs*, the same for the original run, with what it updates in passing and what is
    unpacked for it; *fresh*, the storages that it makes, *overwrites*, in place, and *updates*, in
    passing; *rewrites* are both. *waits* are the operations that the host waits for.

    Of a storage: *nbytes*; *scheduled*, whether it counts as the paper's data; *managed*, whether
    policies may give up its device copy, at places from *absent_from* to before *absent_until*;
    *packed*, the place of its last pack (-1: not saved); *writers* in order; *last_use*; *death*,
    the place where the program is done with it, beyond the last place if it outlives the step;
    *leave* and *back*, the operations around its idle time between forward and backward (-1: it
    has none).
    """

    def __init__(self, trace: Trace) -> None:
        with without_collector():
            flow = Dataflow(trace)
            lives = Lifetimes(flow)
        self.trace: Final = trace
        self.op_count: Final = len(trace.operations)
        self.storage_count: Final = len(trace.storages)
        self.names: Final = flow.names
        self.op_names: Final = flow.op_names
        self.storage_index: Final = flow.storage_index
        self.op_index: Final = flow.op_index
        self.reads: Final = flow.reads
        self.versions: Final = flow.versions
        self.needs: Final = lives.needs
        self.fresh: Final = flow.fresh
        self.overwrites: Final = flow.overwrites
        self.updates: Final = flow.updates
        self.rewrites: Final = [
            in_place + passing if passing else in_place
            for in_place, passing in zip(flow.overwrites, flow.updates, strict=True)
        ]
        self.writers: Final = flow.writers
        self.last_use: Final = flow.last_use
        self.nbytes: Final = [storage.nbytes for storage in trace.storages]
        self.alive_at_start: Final = [storage.alive_at_start for storage in trace.storages]
        self.alive_at_end: Final = lives.alive_at_end
        self.scheduled: Final = [
            storage.kind in SCHEDULED_KINDS and not storage.alive_at_start
            for storage in trace.storages
        ]
        self.managed: Final = lives.managed
        self.death: Final = lives.death
        self.packed: Final = lives.packed
        self.absent_from: Final = lives.absent_from
        self.absent_until: Final = lives.absent_until
        self.is_place: Final = lives.is_place
        self.leave: Final = lives.leave
        self.back: Final = lives.back
        self.inside_nbytes: Final = [
            op.workspace_nbytes + op.transient_nbytes for op in trace.operations
        ]
        self.waits: Final = frozenset(i for i, op in enumerate(trace.operations) if op.waits)
        made = self._sum_fresh()
        self.fresh_nbytes: Final = made[0]
        self.fresh_scheduled_nbytes: Final = made[1]
        self.fresh_tensors: Final = made[2]

    def _sum_fresh(self) -> tuple[list[int], list[int], list[int]]:
        """Add up what each operation makes: bytes, scheduled bytes, scheduled storages."""
        data = [n if kept else 0 for n, kept in zip(self.nbytes, self.scheduled, strict=True)]
        nbytes, scheduled = self.nbytes, self.scheduled
        sizes: list[int] = []
        data_sizes: list[int] = []
        tensors: list[int] = []
        for made in self.fresh:
            if len(made) == 1:
                s = made[0]
                sizes.append(nbytes[s])
                data_sizes.append(data[s])
                tensors.append(1 if scheduled[s] else 0)
            else:
                sizes.append(sum(nbytes[s] for s in made))
                data_sizes.append(sum(data[s] for s in made))
                tensors.append(sum(scheduled[s] for s in made))
        return sizes, data_sizes, tensors

    def inside(self, op: int, algorithm: int) -> int:
        """Return the bytes that an operation takes only while it runs: workspace and transients."""
        if algorithm == 0:
            return self.inside_nbytes[op]
        operation = self.trace.operations[op]
        return operation.algorithms[algorithm - 1].workspace_nbytes + operation.transient_nbytes

    @cached_property
    def least_inside_nbytes(self) -> list[int]:
        """For each operation what it takes inside by its leanest algorithm."""
        return [
            min(self.inside(i, algorithm) for algorithm in range(len(op.algorithms) + 1))
            if op.algorithms
            else self.inside_nbytes[i]
            for i, op in enumerate(self.trace.operations)
        ]

    # -- versions and recipes ------------------------------------------------------------------

    def overwriter(self, s: int, version: int) -> int:
        """Return the operation that overwrites that version of a storage; past the end if none."""
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

    # -- by place and by operation -------------------------------------------------------------

    @cached_property
    def program_frees(self) -> dict[int, list[int]]:
        """For each place, the unmanaged storages that the program frees there."""
        frees: dict[int, list[int]] = {}
        for s, place in enumerate(self.death):
            if not self.managed[s] and place <= self.op_count:
                frees.setdefault(place, []).append(s)
        return frees

    @cached_property
    def digest(self) -> str:
        """What identifies the step for a schedule: all that legality and bytes depend on, and so
        neither times nor notes nor an operation's kind, phase and module."""
        trace = self.trace
        operations = trace.operations
        content = (
            trace.places,
            self.op_names,
            [op.recompute for op in operations],
            [(op.workspace_nbytes, op.transient_nbytes) for op in operations],
            [
                (i, [algorithm.workspace_nbytes for algorithm in op.algorithms])
                for i, op in enumerate(operations)
                if op.algorithms
            ],
            trace.storages,
            self.reads,
            self.versions,
            self.fresh,
            self.overwrites,
            self.updates,
            self.death,
            (self.is_place, self.packed, self.absent_from, self.absent_until)
            if trace.places == "saves"
            else (),
        )
        return hashlib.blake2b(msgspec.json.encode(content), digest_size=16).hexdigest()

    @cached_property
    def start_nbytes(self) -> int:
        """The bytes that are on the device when the step begins."""
        return sum(n for n, alive in zip(self.nbytes, self.alive_at_start, strict=True) if alive)

    # -- lower bounds --------------------------------------------------------------------------

    @cached_property
    def scheduled_floor_nbytes(self) -> int:
        """The largest sum of distinct scheduled storages that one operation needs at once."""
        return max(
            (
                made + sum(self.nbytes[s] for s in needs if self.scheduled[s])
                for needs, made in zip(self.needs, self.fresh_scheduled_nbytes, strict=True)
            ),
            default=0,
        )

    @property
    def floor_nbytes(self) -> int:
        """The device bytes that no policy undercuts: the most that one operation needs at once,
        workspace included, with all that policies may not move at that time."""
        return self._floor[1]

    @property
    def floor_op(self) -> int:
        """The operation that sets the floor; -1 if it is what is there at the start."""
        return self._floor[0]

    @cached_property
    def _floor(self) -> tuple[int, int]:
        return max([(-1, self.start_nbytes), *self.demands()], key=lambda demand: demand[1])

    def demands(self) -> Iterator[tuple[int, int]]:
        """Yield operations with what is there while they run, whatever a policy does."""
        everywhere = self.trace.places == "everywhere"
        change = [0] * (self.op_count + 2)  # of what is there whatever a policy does
        for s, nbytes in enumerate(self.nbytes):
            born = 0 if self.alive_at_start[s] else self.writers[s][0]
            stays = [(born, self.death[s])]
            if self.managed[s]:
                stays = [(born, self.absent_from[s]), (self.absent_until[s], self.death[s])]
            for first, end in stays:
                if first < end:
                    change[first] += nbytes
                    change[end] -= nbytes
        there = 0
        for i, inside in enumerate(self.least_inside_nbytes):
            there += change[i]
            used = self.needs[i] + self.fresh[i] if everywhere else ()
            moved = sum(self.nbytes[s] for s in used if self.managed[s])
            yield i, there + moved + inside
