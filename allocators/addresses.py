"""Addresses: where the device's driver puts what an allocator takes of it.

Of free blocks of one size torch takes the one with the lowest address. So what is reserved depends
on where segments lie, and only the driver knows that.
"""

from typing import Protocol

from .segments import SEGMENT_GRAIN_NBYTES


class Addresses(Protocol):
    """The interface to what gives the device's memory: the driver, or the log of one."""

    def segment(self, nbytes: int) -> int | None:
        """Return the address of a new segment; None if the device has no *nbytes* left."""
        ...

    def range(self, nbytes: int) -> int:
        """Return the address of a new range of *nbytes* addresses, with no memory behind them."""
        ...

    def map(self, address: int, nbytes: int) -> bool:
        """Put memory behind addresses; false if the device has no *nbytes* left."""
        ...

    def release(self, address: int, nbytes: int) -> None:
        """Take a segment, or the memory behind addresses, back."""
        ...


class DriverAddresses:
    """Gives a segment the addresses below those of all others (an H200's driver puts it there or in
    a gap, but not above: docs/design.md, section 6), and a range, of which there are few, those
    above; the device never runs out."""

    def __init__(self) -> None:
        self._low = 0
        self._high = 0

    def segment(self, nbytes: int) -> int:
        """Return the address of a new segment."""
        self._low -= -(-nbytes // SEGMENT_GRAIN_NBYTES) * SEGMENT_GRAIN_NBYTES
        return self._low

    def range(self, nbytes: int) -> int:
        """Return the address of a new range of addresses."""
        self._high += nbytes
        return self._high - nbytes

    def map(self, address: int, nbytes: int) -> bool:
        """Put memory behind addresses."""
        return True

    def release(self, address: int, nbytes: int) -> None:
        """Take memory back."""
