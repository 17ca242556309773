"""The emulated device: the CPU, with copies that end as late as they may.

It is for tests and for machines without a GPU, so it does the worst that a GPU could do. A copy
moves its bytes only when somebody waits for it. Bytes that are not there yet are poisoned, and so
is a block that somebody else is about to fill. So a fence that is missing gives wrong numbers.
"""

import ctypes
import time
import weakref
from collections.abc import Sequence
from typing import Final

import torch

from .backend import Backend, Ticket, host_nbytes

POISON: Final = 0xFF
"""Bytes that make every floating-point number a NaN and every index one out of range."""


class Emulated:
    """Copies under way: bytes move when they *end*, and not before."""

    __slots__ = ("_after", "_moves", "_out", "ended")

    def __init__(
        self,
        moves: Sequence[tuple[torch.UntypedStorage, torch.Tensor]],
        out: bool,
        after: Sequence[Ticket],
    ) -> None:
        self._moves = [(weakref.ref(storage), block) for storage, block in moves]
        self._out = out
        self._after = tuple(after)
        self.ended = False

    @property
    def lost(self) -> int:
        """How many copies would begin or end in bytes that were given up."""
        return sum(storage() is None for storage, _ in self._moves)

    def end(self) -> None:
        """Let the copies end: what comes before them on their way ends first."""
        if self.ended:
            return
        self.ended = True
        for ticket in self._after:
            ticket.end()
        for watch, block in self._moves:
            storage = watch()
            # As a copy engine does: no operator runs, whoever looks on.
            if storage is None:  # given up without a fence: somebody else's bytes are there by now
                if self._out:
                    ctypes.memset(block.data_ptr(), POISON, block.numel())
            elif self._out:
                ctypes.memmove(block.data_ptr(), storage.data_ptr(), block.numel())
            else:
                ctypes.memmove(storage.data_ptr(), block.data_ptr(), block.numel())
        self._moves, self._after = [], ()


class EmulatedBackend(Backend):
    """The CPU as a device, its tiers in the same memory. *lost* counts the copies of bytes that
    were given up without a fence: on a GPU a fetch overwrites what somebody else has there, and a
    copy out reads what may be unmapped by then, which ends the process."""

    def __init__(self, tiers: Sequence[str] = ("host", "peer")) -> None:
        super().__init__(torch.device("cpu"), tiers)
        self.lost = 0
        self._under_way: list[Emulated] = []
        self._waits_ns: list[int] = []

    def begin(self) -> None:
        """Nothing to do: there is one way to compute."""

    def memory(self, tier: str, nbytes: int) -> torch.Tensor:
        """Return memory of the CPU, poisoned."""
        return torch.full((nbytes,), POISON, dtype=torch.uint8, device="cpu")

    def copy_out(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tier: str, after: Sequence[Ticket]
    ) -> Emulated:
        """Start copies out; the blocks' bytes are gone from here on."""
        for ticket in after:
            ticket.end()
        for _, block in pairs:
            block.fill_(POISON)
        return self._begin([(source.untyped_storage(), block) for source, block in pairs], True, ())

    def fetch(
        self, blocks: Sequence[torch.Tensor], tier: str, after: Sequence[Ticket]
    ) -> tuple[list[torch.Tensor], Emulated]:
        """Start copies back into poisoned bytes."""
        back = [self.memory(tier, block.numel()) for block in blocks]
        moves = [(each.untyped_storage(), block) for each, block in zip(back, blocks, strict=True)]
        return back, self._begin(moves, False, after)

    def wait(self, ticket: Emulated) -> None:
        """Let a copy end."""
        if not self.timing:
            ticket.end()
            return
        begin = self.stamp()
        ticket.end()
        self._waits_ns.append(self.stamp() - begin)

    def hold_to(self, nbytes: int) -> None:
        """Nothing to do: the host's memory is not ours to bound."""

    def stamp(self) -> int:
        """Return the host's clock: it computes."""
        return time.perf_counter_ns()

    def between_ns(self, begin: int, end: int) -> int:
        """Return the time between two looks at the clock."""
        return end - begin

    @property
    def timed_waits(self) -> int:
        """How often somebody has waited for a copy."""
        return len(self._waits_ns)

    def waits_ns(self) -> list[int]:
        """Return how long each copy took that somebody waited for, since the last call."""
        waits, self._waits_ns = self._waits_ns, []
        return waits

    def ended(self, ticket: Emulated) -> bool:
        """Whether somebody has waited for a copy."""
        return ticket.ended

    def room(self, tier: str) -> int:
        """Return a quarter of the memory: the device and its tiers share it."""
        return host_nbytes() // 4

    def drain(self) -> None:
        """Let all copies end."""
        for ticket in self._under_way:
            self.lost += ticket.lost
            ticket.end()
        self._under_way.clear()

    def _begin(
        self,
        moves: Sequence[tuple[torch.UntypedStorage, torch.Tensor]],
        out: bool,
        after: Sequence[Ticket],
    ) -> Emulated:
        self._under_way = [each for each in self._under_way if not each.ended]
        self._under_way.append(Emulated(moves, out, after))
        return self._under_way[-1]
