"""The paper's GPU memory pool: one chunk of device memory, handed out in blocks of 1 KB.

Section 3.2.1: the chunk is taken of the device once, so that a step asks the driver for nothing. A
list of empty nodes and one of allocated nodes say what is whose. A request takes the front of the
first empty node that is large enough, and what is left of that stays in the list; a free finds the
node by its id and puts it back.

What the paper leaves open is settled here: the empty list is in the order of addresses, and nodes
that touch become one. The released code does both, and without the second a pool that is empty
again could not hold what it held before. There a block is 16 bytes, not 1 KB; here the text holds.
"""

from bisect import bisect_left
from typing import Final, NamedTuple

BLOCK_NBYTES: Final = 1024
"""What every request is rounded up to (section 3.2.1: "1 KB")."""

_END: Final = 1 << 62  # beyond the chunk, so that the last empty node is always large enough


class Node(NamedTuple):
    """A stretch of the chunk, and the block that has it; None if it is empty."""

    address: int
    nbytes: int
    block: int | None


class MemoryPool:
    """First fit in one chunk of memory.

    *allocated* bytes are whole blocks of 1 KB. The *reserved* peak is the highest address in use so
    far: the smallest chunk in which the same requests come out at the same addresses. What it is
    above the allocated peak is lost to fragmentation. Where no empty node of a chunk of
    *limit_nbytes* is large enough, a real pool has run out of memory; this one goes on beyond its
    end, so that the reserved peak shows by how much.
    """

    def __init__(self, limit_nbytes: int | None = None) -> None:
        self.allocated_nbytes = 0
        self.allocated_peak_nbytes = 0
        self.reserved_peak_nbytes = 0
        self._limit = limit_nbytes
        self._allocated: dict[int, Node] = {}
        # The empty list: addresses and sizes apart, for the search looks at sizes alone.
        self._addresses = [0]
        self._sizes = [_END]

    def allocate(self, block: int, nbytes: int) -> None:
        """Give a block *nbytes*, rounded up, at the lowest address where they fit."""
        if not nbytes:
            return
        size = -(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES
        i = self._first_fit(size)
        address = self._addresses[i]
        if self._sizes[i] == size:
            del self._addresses[i], self._sizes[i]
        else:
            self._addresses[i] += size
            self._sizes[i] -= size
        self._allocated[block] = Node(address, size, block)
        self.allocated_nbytes += size
        if self.allocated_nbytes > self.allocated_peak_nbytes:
            self.allocated_peak_nbytes = self.allocated_nbytes
        if address + size > self.reserved_peak_nbytes:
            self.reserved_peak_nbytes = address + size

    def free(self, block: int, nbytes: int) -> None:
        """Put the node of a block back to the empty ones, as one with those that it touches."""
        if not nbytes:
            return
        address, size, _ = self._allocated.pop(block)
        self.allocated_nbytes -= size
        addresses, sizes = self._addresses, self._sizes
        i = bisect_left(addresses, address)  # there is a node after it: the last has no end
        touches_before = i > 0 and addresses[i - 1] + sizes[i - 1] == address
        if address + size == addresses[i]:
            size += sizes[i]
            if touches_before:
                del addresses[i], sizes[i]
                sizes[i - 1] += size
            else:
                addresses[i], sizes[i] = address, size
        elif touches_before:
            sizes[i - 1] += size
        else:
            addresses.insert(i, address)
            sizes.insert(i, size)

    def _first_fit(self, nbytes: int) -> int:
        """Return the index of the first empty node of *nbytes* or more.

        A plain search, as in the paper: training steps leave a hundred empty nodes or so, and most
        requests fit into one of the first few.
        """
        for i, size in enumerate(self._sizes):
            if size >= nbytes:
                return i
        raise AssertionError("the last empty node of a pool has no end")

    # -- as a whole ----------------------------------------------------------------------------

    @property
    def chunk_nbytes(self) -> int:
        """The size of the chunk: the limit, or what it would have to be if that is not enough."""
        return max(self._limit or 0, self.reserved_peak_nbytes)

    @property
    def free_nbytes(self) -> int:
        """The bytes of the chunk that nobody has."""
        return self.chunk_nbytes - self.allocated_nbytes

    @property
    def largest_free_nbytes(self) -> int:
        """The longest stretch of the chunk that nobody has: free bytes beyond it are scattered."""
        return max((node.nbytes for node in self.nodes() if node.block is None), default=0)

    def nodes(self) -> list[Node]:
        """Return the allocated and the empty nodes of the chunk, by address."""
        end = self.chunk_nbytes
        empty = [
            Node(address, min(size, end - address), None)
            for address, size in zip(self._addresses, self._sizes, strict=True)
            if address < end
        ]
        return sorted([*self._allocated.values(), *empty], key=lambda node: node.address)
