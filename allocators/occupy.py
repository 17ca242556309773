"""A training process on an allocator: what a schedule asks for, step after step.

Memory is decided by order, so an allocator sees allocations and frees in instruction order, without
a clock. One that caches never forgets: where a block goes depends on all that went before. So it
is shown a process from its start: parameters and batch, a first step in which gradients and the
optimizer's states appear, and further steps until one takes nothing more of the device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ..schedules import Fetch, Free, Instruction, Rerun, Run, Schedule
from ..traces import Facts, Trace
from .caching import CachingAllocator
from .cudamalloc import CudaMalloc, DriverCalls
from .registry import Allocator

WORKSPACE: Final = -1
"""The block of what an operation takes inside at once, there only while it runs; its temporaries
follow it."""

LEAST_STEPS: Final = 3
MOST_STEPS: Final = 6
"""So many steps of a process are shown, fewer if one takes nothing more of the device."""

NEXT_STEPS: Final = 10
"""So many steps of a process that goes on are shown, unless one fails. Within a limit the first may
take all of it, and where blocks lie goes on to change."""

EARLY_STEPS: Final = 4
"""After so many of them a process has found its way, if it ever does."""

Leaner = Callable[[int], int]
"""What a convolution asks for where there is no room for a workspace of so many bytes: less, and 0
in the end. cuDNN then takes an algorithm that needs less, and torch goes on with that one."""

CAN_DO_WITH_LESS: Final = "conv"
"""The kind of operations that do."""

_MADE_LATE: Final = frozenset({"optimizer-state", "parameter-gradient"})


class Outlook(NamedTuple):
    """How a process went on: the convolutions that were *denied* their workspace, and how often the
    allocator gave memory back for a request after the early steps (*late_retries*)."""

    denied: set[int]
    late_retries: int


def occupy(trace: Trace, schedule: Schedule, allocator: Allocator) -> dict[int, DriverCalls]:
    """Put the allocations and frees of a schedule to *allocator*, in instruction order.

    Return the calls of the driver by their place in the list: `CudaMalloc` makes one for every
    block. The other allocators hold on to their memory, and in step after step make none.
    """
    process = Process(trace.facts, allocator)
    if isinstance(allocator, CudaMalloc):
        process.begin()
        return process.counted_step(schedule.instructions, allocator)
    if not isinstance(allocator, CachingAllocator):
        process.begin()
        process.step(schedule.instructions)
        return {}
    process.begin_fresh()
    process.step(schedule.instructions)
    for k in range(1, MOST_STEPS):
        before = allocator.reserved_peak_nbytes
        process.repeat()
        allocator.allocated_peak_nbytes = allocator.allocated_nbytes
        process.step(schedule.instructions)
        if k + 1 >= LEAST_STEPS and allocator.reserved_peak_nbytes == before:
            break
    return {}


def go_on(
    trace: Trace,
    schedule: Schedule,
    allocator: CachingAllocator,
    blocks: Mapping[int, int],
    leaner: Leaner | None = None,
) -> Outlook:
    """Put the next steps of a process to an allocator in which it has left something.

    *blocks* are those of storages that are there already, 0 or above. All convolutions must get
    their workspace unless *leaner* says what they ask for instead.
    """
    process = Process(trace.facts, allocator, leaner)
    process.begin(blocks)
    process.step(schedule.instructions)
    early = 0
    for k in range(1, NEXT_STEPS):
        if allocator.failures:
            break
        if k == EARLY_STEPS:
            early = allocator.retries
        process.repeat()
        process.step(schedule.instructions)
    return Outlook(process.denied, allocator.retries - early)


class Process:
    """A training process: which block each storage has, from step to step.

    *denied* are the operations that did not get their workspace.
    """

    def __init__(self, facts: Facts, allocator: Allocator, leaner: Leaner | None = None) -> None:
        self.denied: set[int] = set()
        self._facts = facts
        self._allocator = allocator
        self._leaner = leaner
        self._block: dict[int, int] = {}  # of the storages that are there
        self._blocks = 0
        self._late: set[int] = set()  # storages that come with their first use
        self._becomes = {
            s: facts.storage_index[storage.becomes]
            for s, storage in enumerate(facts.trace.storages)
            if storage.becomes is not None
        }

    def begin(self, blocks: Mapping[int, int] | None = None) -> None:
        """Begin with all that is there when a step starts; *blocks* are there already."""
        if blocks:
            self._block |= blocks
            self._blocks = max(blocks.values()) + 1
        for s, alive in enumerate(self._facts.alive_at_start):
            if alive and s not in self._block:
                self._allocate(s)

    def begin_fresh(self) -> None:
        """Begin with what is there before the first step of all.

        What the last step left behind is not, unless this one uses it; gradients and the states of
        the optimizer come with their first use.
        """
        facts = self._facts
        used = {s for needs in facts.needs for s in needs}
        replaced = set(self._becomes.values())
        for s, storage in enumerate(facts.trace.storages):
            if not storage.alive_at_start or (s in replaced and s not in used):
                continue
            if storage.kind in _MADE_LATE and s not in replaced and s in used:
                self._late.add(s)
            else:
                self._allocate(s)

    def repeat(self) -> None:
        """Go on to the next step: what this one left behind is what that one finds."""
        left = {old: self._block.pop(s) for s, old in self._becomes.items() if s in self._block}
        self._block |= left

    def step(self, instructions: Sequence[Instruction]) -> None:
        """Run one step."""
        for step in instructions:
            self._follow(step)

    def counted_step(
        self, instructions: Sequence[Instruction], driver: CudaMalloc
    ) -> dict[int, DriverCalls]:
        """Run one step; return the calls of the driver by place in the list."""
        calls: dict[int, DriverCalls] = {}
        mallocs, frees = driver.mallocs, driver.frees
        for position, step in enumerate(instructions):
            self._follow(step)
            if (driver.mallocs, driver.frees) != (mallocs, frees):
                calls[position] = DriverCalls(driver.mallocs - mallocs, driver.frees - frees)
                mallocs, frees = driver.mallocs, driver.frees
        return calls

    def _follow(self, step: Instruction) -> None:
        if type(step) is Run or type(step) is Rerun:
            op = step.op
            if self._late:
                for s in self._late.intersection(self._facts.needs[op]):
                    self._late.remove(s)
                    self._allocate(s)
            order = self._facts.trace.operations[op].allocations
            if order and not step.algorithm:
                self._in_order(op, order)
            else:
                self._at_once(op, step.algorithm)
        elif type(step) is Free:
            self._free(step.storage)
        elif type(step) is Fetch:
            self._allocate(step.storage)

    def _at_once(self, op: int, algorithm: int) -> None:
        facts = self._facts
        for s in facts.fresh[op]:
            self._allocate(s)
        inside = facts.inside(op, algorithm) if algorithm else facts.inside_nbytes[op]
        if inside:
            inside = self._work(op, WORKSPACE, inside)
            self._allocator.free(WORKSPACE, inside)

    def _in_order(self, op: int, order: tuple[int, ...]) -> None:
        allocator, nbytes = self._allocator, self._facts.nbytes
        results = iter(self._facts.fresh[op])
        temporaries: list[int] = []
        for k, entry in enumerate(order):
            if entry > 0:
                block = WORKSPACE - len(temporaries)
                if order[k + 1] == -len(temporaries) - 1:
                    entry = self._work(op, block, entry)
                else:
                    allocator.allocate(block, entry)
                temporaries.append(entry)
            elif entry < 0:
                allocator.free(WORKSPACE - (-entry - 1), temporaries[-entry - 1])
            else:
                self._allocate(next(s for s in results if nbytes[s]))
        for s in results:  # of no bytes
            self._allocate(s)

    def _work(self, op: int, block: int, nbytes: int) -> int:
        """Give an operation what it takes and gives back at once; return how much that is."""
        allocator = self._allocator
        lean = self._leaner
        if (
            lean is None
            or not isinstance(allocator, CachingAllocator)
            or self._facts.trace.operations[op].kind != CAN_DO_WITH_LESS
        ):
            allocator.allocate(block, nbytes)
            return nbytes
        while not allocator.try_allocate(block, nbytes):
            self.denied.add(op)
            nbytes = lean(nbytes)
        return nbytes

    def _allocate(self, s: int) -> None:
        self._block[s] = self._blocks
        self._allocator.allocate(self._blocks, self._facts.nbytes[s])
        self._blocks += 1

    def _free(self, s: int) -> None:
        block = self._block.pop(s, -1)
        if block >= 0:
            self._allocator.free(block, self._facts.nbytes[s])
