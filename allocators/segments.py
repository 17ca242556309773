"""Segments cut into blocks: the free lists of PyTorch's CUDA caching allocator.

A *segment* is what the device gives at once; it is cut into *blocks*, chained by address. A block
is in use, or free (cached: backed by memory and given to nobody) or, in an expandable segment,
unmapped: addresses without memory behind them. Two free blocks never stand side by side, nor two
unmapped ones: they are one block.

The rules are those of c10/cuda/CUDACachingAllocator.cpp in torch 2.11, default settings, one
stream. Blocks of requests of up to 1 MiB and larger ones never share a segment: there is a pool
for each.
"""

from bisect import bisect_left
from typing import Final

from msgspec import Struct

MIB: Final = 1 << 20
GRAIN_NBYTES: Final = 512
"""What every request is rounded up to."""
SMALL_NBYTES: Final = MIB
"""The largest request of the small pool."""
SMALL_SEGMENT_NBYTES: Final = 2 * MIB
LARGE_SEGMENT_NBYTES: Final = 20 * MIB
OWN_SEGMENT_NBYTES: Final = 10 * MIB
"""From here on a request gets a segment of its own size..."""
SEGMENT_GRAIN_NBYTES: Final = 2 * MIB
"""...rounded up to this."""

# A free block's place in its list is one integer, size above address: comparing tuples takes twice
# as long, and the list is searched for every request. Addresses may be negative: new segments lie
# below those that a process has.
_ADDRESS_BITS: Final = 64
_LOWEST: Final = -1 << 63


class Block(Struct, eq=False):
    """A piece of a segment: its address and size, and the blocks on both sides of it.

    *base* is where the segment begins: the pages of an expandable one are counted from there.
    """

    address: int
    nbytes: int
    base: int
    before: "Block | None" = None
    after: "Block | None" = None
    free: bool = False
    mapped: bool = True

    def cut(self, nbytes: int) -> "Block":
        """Keep the first *nbytes* bytes; return what is left of the block, which has some more."""
        after = self.after
        rest = Block(self.address + nbytes, self.nbytes - nbytes, self.base, self, after)
        rest.mapped = self.mapped
        if after is not None:
            after.before = rest
        self.after = rest
        self.nbytes = nbytes
        return rest

    def take_in(self, neighbour: "Block") -> None:
        """Become one with the block on either side."""
        self.nbytes += neighbour.nbytes
        if neighbour is self.before:
            self.address = neighbour.address
            self.before = neighbour.before
            if self.before is not None:
                self.before.after = self
        else:
            self.after = neighbour.after
            if self.after is not None:
                self.after.before = self


def segment_nbytes(nbytes: int) -> int:
    """Return the size of the segment that is asked for when no free block holds *nbytes*."""
    if nbytes <= SMALL_NBYTES:
        return SMALL_SEGMENT_NBYTES
    if nbytes < OWN_SEGMENT_NBYTES:
        return LARGE_SEGMENT_NBYTES
    return -(-nbytes // SEGMENT_GRAIN_NBYTES) * SEGMENT_GRAIN_NBYTES


class Pool:
    """The free and the unmapped blocks of the small or of the large requests.

    *blocks* are the free ones by size, then address, at the *places* of that order; *unmapped* are
    by address. What a request leaves of a block is cut off from *least_rest_nbytes* on; an
    expandable segment grows and shrinks by whole pages of *page_nbytes*.
    """

    def __init__(self, small: bool, expandable: bool) -> None:
        self.page_nbytes = SMALL_SEGMENT_NBYTES if small else LARGE_SEGMENT_NBYTES
        self.least_rest_nbytes = GRAIN_NBYTES if small or expandable else SMALL_NBYTES + 1
        self.places: list[int] = []
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []

    def first_fit(self, nbytes: int) -> int:
        """Return the index of the smallest free block of *nbytes* or more, the lowest of its size;
        the number of free blocks if there is none."""
        return bisect_left(self.places, (nbytes << _ADDRESS_BITS) + _LOWEST)

    def best_expandable(self, i: int) -> int:
        """Return the index of the block to take in expandable segments, where block *i* fits first.

        A block before unmapped addresses counts with these, for it could grow: so larger blocks
        that cannot grow go first.
        """
        blocks = self.blocks
        room = _room_nbytes(blocks[i])
        while i + 1 < len(blocks) and (next_room := _room_nbytes(blocks[i + 1])) < room:
            i, room = i + 1, next_room
        return i

    def take(self, i: int) -> Block:
        """Take the free block at index *i* out of the list."""
        del self.places[i]
        block = self.blocks.pop(i)
        block.free = False
        return block

    def add(self, block: Block) -> None:
        """Put a block among the free ones, as one with those beside it."""
        before, after = block.before, block.after
        if before is not None and before.free:
            self.remove(before)
            block.take_in(before)
        if after is not None and after.free:
            self.remove(after)
            block.take_in(after)
        block.free = True
        place = (block.nbytes << _ADDRESS_BITS) + block.address
        i = bisect_left(self.places, place)
        self.places.insert(i, place)
        self.blocks.insert(i, block)

    def remove(self, block: Block) -> None:
        """Take a block that is free out of the list."""
        self.take(bisect_left(self.places, (block.nbytes << _ADDRESS_BITS) + block.address))

    def add_unmapped(self, block: Block) -> None:
        """Put a block among the unmapped ones, as one with those beside it."""
        block.mapped = False
        for neighbour in (block.before, block.after):
            if neighbour is not None and not neighbour.mapped:
                self.unmapped.remove(neighbour)
                block.take_in(neighbour)
        i = bisect_left(self.unmapped, block.address, key=lambda other: other.address)
        self.unmapped.insert(i, block)

    def growth_point(self, nbytes: int) -> Block | None:
        """Return the first block of the lowest stretch that *nbytes* fit into once it is mapped.

        A stretch begins with unmapped addresses, or with the free block before them, and goes on
        over free and unmapped blocks. None if there is no such stretch.
        """
        for start in self.unmapped:
            if start.before is not None and start.before.free:
                start = start.before
            room, at = 0, start
            while at.free or not at.mapped:
                room += at.nbytes
                if room >= nbytes:
                    return start
                if at.after is None:
                    break
                at = at.after
        return None


def _room_nbytes(block: Block) -> int:
    after = block.after
    return block.nbytes if after is None or after.mapped else block.nbytes + after.nbytes
