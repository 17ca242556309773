"""cudaMalloc and cudaFree for every block: what the paper's pool is measured against (Table 2).

Bytes. Addresses are multiples of 256 at least (CUDA C++ Programming Guide, "Device Memory
Accesses"); of 512 as measured on a Tesla K80 and a GTX TITAN X (CuPy, pull request 176). Memory is
mapped in pages, so nothing is lost between large blocks, only at their ends. The pages' size is not
documented for cudaMalloc: 2 MiB above 1 MiB is what cudaMemGetInfo shows with recent drivers
(JustVugg/colibri, c/qwen36_tier.c), and what PyTorch rounds its own requests to. On a K40c pages
may be smaller. Smaller blocks share pages, here without gaps between them: a lower bound.

Time. A call takes host time, and a cudaFree waits until the device is idle first, copies included.
So it was seen (CuPy, pull request 2898: cudaFree does, cudaMalloc does not); the guide only says
that managing memory by the two makes the GPU synchronize across all streams, and the runtime's
reference that cudaFree may. Under that reading of the guide a cudaMalloc would wait as well.
"""

from typing import Final, NamedTuple

GRAIN_NBYTES: Final = 512
"""What every request is rounded up to."""
PAGE_NBYTES: Final = 2 << 20
"""What the device's memory is mapped in."""
SHARED_NBYTES: Final = 1 << 20
"""The largest request that shares its pages with others."""


class DriverCalls(NamedTuple):
    """What the host asks of the driver at one instruction: *mallocs* before it, *frees* after."""

    mallocs: int
    frees: int


class CudaMalloc:
    """Asks the driver for every block, and gives each back at once; counts the calls.

    *allocated* bytes are requests rounded up to 512, *reserved* ones those of the pages behind
    them. There is no cache to give back from, so a limit changes nothing: the reserved peak shows
    by how much it is exceeded.
    """

    def __init__(self, limit_nbytes: int | None = None) -> None:
        self.allocated_nbytes = 0
        self.allocated_peak_nbytes = 0
        self.reserved_peak_nbytes = 0
        self.mallocs = 0
        self.frees = 0
        self._own_nbytes = 0
        self._shared_nbytes = 0

    @property
    def reserved_nbytes(self) -> int:
        """The pages behind all blocks."""
        return self._own_nbytes + _pages(self._shared_nbytes)

    def allocate(self, block: int, nbytes: int) -> None:
        """Give a block *nbytes*; 0 bytes are not asked for at all."""
        if not nbytes:
            return
        self.mallocs += 1
        self._take(nbytes, 1)
        self.allocated_peak_nbytes = max(self.allocated_peak_nbytes, self.allocated_nbytes)
        self.reserved_peak_nbytes = max(self.reserved_peak_nbytes, self.reserved_nbytes)

    def free(self, block: int, nbytes: int) -> None:
        """Give the *nbytes* of a block back to the device."""
        if not nbytes:
            return
        self.frees += 1
        self._take(nbytes, -1)

    def _take(self, nbytes: int, sign: int) -> None:
        size = -(-nbytes // GRAIN_NBYTES) * GRAIN_NBYTES
        self.allocated_nbytes += sign * size
        if size > SHARED_NBYTES:
            self._own_nbytes += sign * _pages(size)
        else:
            self._shared_nbytes += sign * size


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES
