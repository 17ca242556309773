"""A training process as it stands: what its allocator has of the device when a step begins.

`occupy` shows an allocator a process from its start. One that runs has come another way: its first
steps took less, what they left lies in segments that were cut for something else, and there it
stays. So here the model begins with the segments of that process, as torch tells of them.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ..traces import Facts
from ..traces.readers.snapshot_log import Block, Segment
from .caching import CachingAllocator, Piece
from .occupy import WORKSPACE
from .rewind import ranges

_OTHERS: Final = WORKSPACE - (1 << 32)
"""The first number, downwards, of blocks that are no storage's."""


class Taken(NamedTuple):
    """What an allocator has given out in blocks, and what it has of the device for them."""

    allocated_nbytes: int
    reserved_nbytes: int


class Standing(NamedTuple):
    """The segments of a process, and the *stream* that its steps compute on.

    New segments will be *expandable* or not. *addresses* are those of the storages of a trace that
    are alive when a step starts, as far as they are known.
    """

    segments: Sequence[Segment]
    stream: int
    expandable: bool
    addresses: Mapping[int, int]

    @property
    def apart(self) -> Taken:
        """What steps cannot use: segments of other streams, of private pools, or from before the
        setting was changed."""
        ours, everything = _taken(self._ours), _taken(self.segments)
        return Taken(
            everything.allocated_nbytes - ours.allocated_nbytes,
            everything.reserved_nbytes - ours.reserved_nbytes,
        )

    def allocator(self, facts: Facts, limit: int) -> tuple[CachingAllocator, dict[int, int]]:
        """Return an allocator that stands like this, of *limit* bytes without those apart, and the
        blocks of the storages in it.

        A storage that is not at its address has any block of its size that nobody has; what is left
        belongs to others, for good.
        """
        ours = self._ours
        used = [block for segment in ours for block in segment.blocks if block.used]
        storages = self._storages(facts, used)
        others = iter(range(_OTHERS, _OTHERS - len(used), -1))
        number = {block.address: storages.get(block.address, next(others)) for block in used}
        parts = [
            (
                segment.small,
                [
                    Piece(each.address, each.nbytes, number.get(each.address))
                    for each in segment.blocks
                ],
            )
            for segment in ours
        ]
        allocator = CachingAllocator(limit, self.expandable)
        for small, pieces in ranges(parts) if self.expandable else parts:
            allocator.adopt(pieces, small)
        return allocator, {s: s for s in storages.values()}

    @property
    def _ours(self) -> list[Segment]:
        ours = self.stream, (0, 0), self.expandable
        found = [
            each for each in self.segments if (each.stream, each.pool, each.expandable) == ours
        ]
        return sorted(found, key=lambda each: each.address)

    def _storages(self, facts: Facts, used: Sequence[Block]) -> dict[int, int]:
        """Return the storages that are found, by the address of their block."""
        free = {block.address: block.requested_nbytes for block in used}
        found: dict[int, int] = {}
        lost = []
        for s, alive in enumerate(facts.alive_at_start):
            address = self.addresses.get(s, 0)
            if not (alive and facts.nbytes[s]):
                continue
            if free.get(address) == facts.nbytes[s]:
                del free[address]
                found[address] = s
            else:
                lost.append(s)
        by_size: dict[int, list[int]] = {}
        for address, nbytes in sorted(free.items(), reverse=True):
            by_size.setdefault(nbytes, []).append(address)
        for s in lost:
            if there := by_size.get(facts.nbytes[s]):
                found[there.pop()] = s
        return found


def _taken(segments: Sequence[Segment]) -> Taken:
    used = sum(block.nbytes for each in segments for block in each.blocks if block.used)
    return Taken(used, sum(each.nbytes for each in segments))
