"""A tier's memory: a few large slabs, out of which blocks are given; never more than a bound.

Pinning memory takes half a second for each GiB, and torch's own pinned allocator rounds sizes up to
powers of two and keeps them for ever. So there are slabs of our own, of such sizes, and free ranges
in them that remember which copies still read or write there.
"""

from collections import deque
from typing import Final

import torch

from .backend import Backend, Ticket

ALIGN: Final = 512
SLAB_NBYTES: Final = 256 << 20
"""What a slab has unless a block needs more, or the bound leaves less."""


class _Range:
    """A free range of a slab, and the copies that may still be busy there."""

    __slots__ = ("slab", "start", "stop", "tickets")

    def __init__(self, slab: int, start: int, stop: int, tickets: tuple[Ticket, ...]) -> None:
        self.slab = slab
        self.start = start
        self.stop = stop
        self.tickets = tickets


class Block:
    """Bytes in a tier. Whoever holds it has them; they go back when nobody does.

    *tickets* are the copies that last wrote or read it: who gets the bytes next comes after them.
    """

    __slots__ = ("_slabs", "_taken", "memory", "nbytes", "tickets")

    def __init__(self, slabs: "Slabs", taken: _Range, memory: torch.Tensor) -> None:
        self._slabs = slabs
        self._taken = taken
        self.memory = memory
        self.nbytes = memory.numel()
        self.tickets = taken.tickets

    def __del__(self) -> None:
        # This can run between any two lines, by the garbage collector: so it only leaves a note.
        self._taken.tickets = self.tickets
        self._slabs._returned.append((self._taken, self.nbytes))


class Slabs:
    """The memory of one *tier*, at most *bound_nbytes* of it.

    *peak_nbytes* is the most that ever was in blocks, *held_nbytes* is in slabs. For one thread.
    """

    def __init__(
        self, backend: Backend, tier: str, bound_nbytes: int, slab_nbytes: int = SLAB_NBYTES
    ) -> None:
        self.bound_nbytes: Final = bound_nbytes
        self._used_nbytes = 0
        self._returned: deque[tuple[_Range, int]] = deque()
        self.peak_nbytes = 0
        self.held_nbytes = 0
        self._backend = backend
        self._tier = tier
        self._slab_nbytes = slab_nbytes
        self._slabs: list[torch.Tensor] = []
        self._free: list[_Range] = []  # by slab and place in it

    @property
    def addresses(self) -> list[int]:
        """Where the slabs begin."""
        return [slab.data_ptr() for slab in self._slabs]

    def take(self, nbytes: int) -> Block | None:
        """Return a block, None if there is no room for it within the bound."""
        self._settle()
        need = max(ALIGN, -(-nbytes // ALIGN) * ALIGN)
        found = self._smallest(need)
        if found is None:
            if not self._grow(need):
                return None
            found = self._smallest(need)
            assert found is not None
        taken = _Range(found.slab, found.start, found.start + need, self._busy(found.tickets))
        if found.stop - found.start == need:
            self._free.remove(found)
        else:
            found.start += need
        self._used_nbytes += nbytes
        self.peak_nbytes = max(self.peak_nbytes, self._used_nbytes)
        memory = self._slabs[taken.slab][taken.start : taken.start + nbytes]
        return Block(self, taken, memory)

    def reserve(self, nbytes: int) -> None:
        """Have at least so many bytes in slabs, if the bound allows, before they are needed."""
        while self.held_nbytes < nbytes and self._grow(ALIGN):
            pass

    def _smallest(self, need: int) -> _Range | None:
        fitting = [each for each in self._free if each.stop - each.start >= need]
        return min(fitting, key=lambda each: each.stop - each.start, default=None)

    def _grow(self, need: int) -> bool:
        """Add a slab with room for *need* bytes; return whether that was possible."""
        nbytes = max(self._slab_nbytes, 1 << (need - 1).bit_length())
        left = self.bound_nbytes - self.held_nbytes
        while nbytes > left and nbytes // 2 >= need:
            nbytes //= 2
        if nbytes > left:
            return False
        try:
            slab = self._backend.memory(self._tier, nbytes)
        except RuntimeError:  # the tier itself has no more: what there is must do
            return False
        self._slabs.append(slab)
        self._free.append(_Range(len(self._slabs) - 1, 0, nbytes, ()))
        self.held_nbytes += nbytes
        return True

    @property
    def used_nbytes(self) -> int:
        """The bytes that are in blocks now."""
        self._settle()
        return self._used_nbytes

    def _settle(self) -> None:
        """Take back what blocks have left behind."""
        while self._returned:
            self._give_back(*self._returned.popleft())

    def _give_back(self, back: _Range, nbytes: int) -> None:
        """Take a range back, and join it with free ones beside it."""
        self._used_nbytes -= nbytes
        back.tickets = self._busy(back.tickets)
        for beside in [each for each in self._free if each.slab == back.slab]:
            if beside.stop == back.start or beside.start == back.stop:
                self._free.remove(beside)
                back.start = min(back.start, beside.start)
                back.stop = max(back.stop, beside.stop)
                back.tickets += self._busy(beside.tickets)
        self._free.append(back)

    def _busy(self, tickets: tuple[Ticket, ...]) -> tuple[Ticket, ...]:
        return tuple(each for each in tickets if not self._backend.ended(each))
