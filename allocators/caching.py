"""The caching allocator of PyTorch: what it reserves, block by block.

It asks the device for segments, cuts them into blocks and keeps what is freed for the next request
of a like size. So it reserves more than is allocated, and what comes back first depends on order.
The rules are in `segments.py`; here is what happens when no free block fits: a new segment; if the
device has none, every segment that is wholly free is given back, and one more try.

An *expandable* allocator has one growing range of addresses for each pool instead, and maps memory
behind it page by page.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from .addresses import Addresses, DriverAddresses
from .segments import (
    GRAIN_NBYTES,
    SMALL_NBYTES,
    Block,
    Pool,
    segment_nbytes,
)

_ROUND: Final = GRAIN_NBYTES - 1
_NO_LIMIT: Final = 1 << 62
_RANGE_NBYTES: Final = 1 << 46
"""The addresses of an expandable segment. Torch takes an eighth more than the device has memory;
addresses cost nothing, and a range that is used up would only be followed by another."""


class Piece(NamedTuple):
    """A block from outside: who has it (None: nobody) and whether there is memory behind it."""

    address: int
    nbytes: int
    block: int | None
    mapped: bool = True


class Request(NamedTuple):
    """A block that was asked for and its bytes."""

    block: int
    nbytes: int


class CachingAllocator:
    """PyTorch's caching allocator on one stream, with its default settings.

    *allocated* bytes are those of blocks in use, rounded; *reserved* bytes those of segments. With
    *limit_nbytes* it may reserve no more than that, as by `set_per_process_memory_fraction`: it
    gives back what it can and tries again (*retries*), and where that does not help (*failures*,
    the first of them *failed*) a real one raises out-of-memory; this one goes on beyond the limit,
    so that it shows by how much. The limit is compared with the segment that a request would get;
    an expandable one maps whole pages, which may end a little beyond it.
    """

    def __init__(
        self,
        limit_nbytes: int | None = None,
        expandable: bool = False,
        addresses: Addresses | None = None,
    ) -> None:
        self.allocated_nbytes = 0
        self.allocated_peak_nbytes = 0
        self.reserved_nbytes = 0
        self.reserved_peak_nbytes = 0
        self.retries = 0
        self.failures = 0
        self.failed: Request | None = None
        self._limit = _NO_LIMIT if limit_nbytes is None else limit_nbytes
        self._expandable = expandable
        self._addresses = DriverAddresses() if addresses is None else addresses
        self._small = Pool(small=True, expandable=expandable)
        self._large = Pool(small=False, expandable=expandable)
        self._used: dict[int, Block] = {}

    def allocate(self, block: int, nbytes: int) -> None:
        """Give a block *nbytes*, rounded up; 0 bytes are not asked for at all."""
        if nbytes:
            self._allocate(block, nbytes, self._new_or_beyond)

    def try_allocate(self, block: int, nbytes: int) -> bool:
        """Do the same if that is possible within the limit; return whether it was."""
        return not nbytes or self._allocate(block, nbytes, self._new)

    def _allocate(
        self, block: int, nbytes: int, new: Callable[[Pool, int, Request], Block | None]
    ) -> bool:
        size = (nbytes + _ROUND) & ~_ROUND
        pool = self._small if size <= SMALL_NBYTES else self._large
        i = pool.first_fit(size)
        if i < len(pool.blocks):
            found: Block | None = pool.take(pool.best_expandable(i) if self._expandable else i)
        else:
            found = new(pool, size, Request(block, nbytes))
        if found is None:
            return False
        if found.nbytes - size >= pool.least_rest_nbytes:
            pool.add(found.cut(size))
        self._used[block] = found
        self.allocated_nbytes += found.nbytes
        if self.allocated_nbytes > self.allocated_peak_nbytes:
            self.allocated_peak_nbytes = self.allocated_nbytes
        return True

    def free(self, block: int, nbytes: int) -> None:
        """Take a block back and keep it for the next one."""
        if not nbytes:
            return
        found = self._used.pop(block)
        self.allocated_nbytes -= found.nbytes
        # A large block is never this small, and a small one is always cut to size.
        (self._small if found.nbytes <= SMALL_NBYTES else self._large).add(found)

    def address(self, block: int) -> int:
        """Return where a block in use is."""
        return self._used[block].address

    def release_cached(self) -> None:
        """Give all segments back in which nothing is in use; of expandable ones, whole pages."""
        for pool in (self._large, self._small):
            for block in list(pool.blocks):
                if self._expandable:
                    self._unmap(pool, block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self._give_back(block.address, block.nbytes)

    # -- new memory ----------------------------------------------------------------------------

    def _new(self, pool: Pool, nbytes: int, _: Request) -> Block | None:
        """Return a block that is in no list, of *nbytes* or more, from the device; None if it has
        no more even when all is given back that can be."""
        found = self._try(pool, nbytes)
        if found is None:
            self.release_cached()
            self.retries += 1
            found = self._try(pool, nbytes)
        return found

    def _new_or_beyond(self, pool: Pool, nbytes: int, request: Request) -> Block:
        """Return the same, beyond the limit if need be."""
        found = self._new(pool, nbytes, request)
        if found is None:
            self.failures += 1
            if self.failed is None:
                self.failed = request
            limit, self._limit = self._limit, _NO_LIMIT
            found = self._try(pool, nbytes)
            self._limit = limit
        if found is None:
            raise AssertionError("a device without a limit has refused memory")
        return found

    def _try(self, pool: Pool, nbytes: int) -> Block | None:
        size = segment_nbytes(nbytes)
        if self.reserved_nbytes + size > self._limit:
            return None
        if self._expandable:
            return self._expand(pool, nbytes)
        address = self._addresses.segment(size)
        if address is None:
            return None
        self._reserve(size)
        return Block(address, size, address)

    def _expand(self, pool: Pool, nbytes: int) -> Block | None:
        """Map as much as it takes for a free block of *nbytes*, and take that block."""
        at = pool.growth_point(nbytes) or self._new_range(pool, nbytes)
        if not at.mapped and not self._map(pool, at, min(nbytes, at.nbytes)):
            return None
        while at.nbytes < nbytes:
            # What follows a free block here is unmapped, or its room would not have sufficed.
            after = at.after
            if after is None or not self._map(pool, after, min(nbytes - at.nbytes, after.nbytes)):
                return None
            at = after
        pool.remove(at)
        return at

    def _new_range(self, pool: Pool, least_nbytes: int) -> Block:
        """Open a range of addresses."""
        nbytes = -(-max(_RANGE_NBYTES, least_nbytes) // pool.page_nbytes) * pool.page_nbytes
        address = self._addresses.range(nbytes)
        block = Block(address, nbytes, address)
        pool.add_unmapped(block)
        return block

    def _map(self, pool: Pool, block: Block, nbytes: int) -> bool:
        """Map the first pages of an unmapped block; what becomes of it is free."""
        nbytes = -(-nbytes // pool.page_nbytes) * pool.page_nbytes
        if not self._addresses.map(block.address, nbytes):
            return False
        self._reserve(nbytes)
        pool.unmapped.remove(block)
        rest = block.cut(nbytes) if nbytes < block.nbytes else None
        block.mapped = True
        if rest is not None:
            pool.add_unmapped(rest)
        pool.add(block)
        return True

    def _reserve(self, nbytes: int) -> None:
        self.reserved_nbytes += nbytes
        if self.reserved_nbytes > self.reserved_peak_nbytes:
            self.reserved_peak_nbytes = self.reserved_nbytes

    def _give_back(self, address: int, nbytes: int) -> None:
        self.reserved_nbytes -= nbytes
        self._addresses.release(address, nbytes)

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Unmap the pages that lie wholly within a free block; a range without any is dropped."""
        page, base = pool.page_nbytes, block.base
        start = base - (base - block.address) // page * page
        end = base + (block.address + block.nbytes - base) // page * page
        if start >= end:
            return
        pool.remove(block)
        self._give_back(start, end - start)
        if block.address + block.nbytes > end:
            pool.add(block.cut(end - block.address))
        if block.address < start:
            first, block = block, block.cut(start - block.address)
            pool.add(first)
        pool.add_unmapped(block)
        if block.before is None and block.after is None:
            pool.unmapped.remove(block)

    # -- as a whole ----------------------------------------------------------------------------

    def adopt(self, pieces: list[Piece], small: bool) -> None:
        """Take over a segment as it stands: all its pieces, by address and without gaps."""
        pool = self._small if small else self._large
        base, before = pieces[0].address, None
        for piece in pieces:
            at = Block(piece.address, piece.nbytes, base, before)
            if before is not None:
                before.after = at
            before = at
            if piece.mapped:
                self._reserve(piece.nbytes)
            if not piece.mapped:
                pool.add_unmapped(at)
            elif piece.block is None:
                pool.add(at)
            else:
                self._used[piece.block] = at
                self.allocated_nbytes += at.nbytes
        self.allocated_peak_nbytes = max(self.allocated_peak_nbytes, self.allocated_nbytes)

    def pieces(self) -> list[Piece]:
        """Return all blocks by address: those in use, the free and the unmapped ones."""
        pools = (self._small, self._large)
        found = [Piece(at.address, at.nbytes, block) for block, at in self._used.items()]
        found += [Piece(at.address, at.nbytes, None) for pool in pools for at in pool.blocks]
        found += [
            Piece(at.address, at.nbytes, None, mapped=False)
            for pool in pools
            for at in pool.unmapped
        ]
        return sorted(found)
