"""Allocators: what the device reserves for the bytes that a schedule asks for.

Whether a schedule fits is judged on what its machine's allocator reserves. One that asks the driver
for every block counts its calls; what these take is the device's affair.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from ..errors import UnknownName
from .caching import CachingAllocator
from .cudamalloc import CudaMalloc
from .pool import MemoryPool


class Allocator(Protocol):
    """The interface: blocks come and go by number.

    *allocated_peak_nbytes* is the most that blocks took at once, in the allocator's own rounding,
    *reserved_peak_nbytes* the most that the allocator itself took of the device for them.
    """

    @property
    def allocated_peak_nbytes(self) -> int:
        """The most that blocks took at once."""
        ...

    @property
    def reserved_peak_nbytes(self) -> int:
        """The most that was taken of the device at once."""
        ...

    def allocate(self, block: int, nbytes: int) -> None:
        """Give *nbytes* to a block that has none."""
        ...

    def free(self, block: int, nbytes: int) -> None:
        """Take the *nbytes* of a block back."""
        ...


class ExactBytes:
    """Reserves each byte that is asked for and no more, whatever the limit."""

    def __init__(self, limit_nbytes: int | None = None) -> None:
        self.reserved_peak_nbytes = 0
        self._nbytes = 0

    @property
    def allocated_peak_nbytes(self) -> int:
        """The most that blocks took at once: all that is reserved is allocated."""
        return self.reserved_peak_nbytes

    def allocate(self, block: int, nbytes: int) -> None:
        """Give *nbytes* to a block."""
        self._nbytes += nbytes
        if self._nbytes > self.reserved_peak_nbytes:
            self.reserved_peak_nbytes = self._nbytes

    def free(self, block: int, nbytes: int) -> None:
        """Take the *nbytes* of a block back."""
        self._nbytes -= nbytes


ALLOCATORS: Final[dict[str, Callable[[int | None], Allocator]]] = {
    "exact": ExactBytes,
    "caching": CachingAllocator,
    "caching-expandable": partial(CachingAllocator, expandable=True),
    "pool": MemoryPool,
    "cudamalloc": CudaMalloc,
}


LESS_WASTE: Final = {"caching": ", or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"}
"""What a user can do besides giving more, by the name of the allocator, in words."""


def new_allocator(name: str, limit_nbytes: int | None = None) -> Allocator:
    """Return a fresh allocator by its name in machine files. Raises UnknownName.

    One that caches gives back what it can before it takes more than *limit_nbytes*.
    """
    if name not in ALLOCATORS:
        raise UnknownName(f"no allocator {name!r}; there are: {', '.join(sorted(ALLOCATORS))}")
    return ALLOCATORS[name](limit_nbytes)
