"""The emulated device: the CPU, with copies that end as late as they may.

It is for tests and for machines without a GPU, so it does the worst that a GPU could do. A copy
moves its bytes only when somebody waits for it. Bytes that are not there yet are poisoned, and so
is a block that somebody else is about to fill. So a fence that is missing gives wrong numbers.
"""

import ctypes
import weakref
from collections.abc import Sequence
from typing import Final

import torch

from .backend import Backend, Ticket, host_nbytes

POISON: Final = 0xFF
"""Bytes that make every floating-point number a NaN and every index one out of range."""


class Emulated:
    """A copy under way: bytes move when it *ends*, and not before."""

    __slots__ = ("_after", "_block", "_device", "_out", "ended")

    def __init__(
        self, device: torch.UntypedStorage, block: torch.Tensor, out: bool, after: Sequence[Ticket]
    ) -> None:
        self._device: weakref.ref[torch.UntypedStorage] = weakref.ref(device)
        self._block: torch.Tensor | None = block
        self._out = out
        self._after = tuple(after)
        self.ended = False

    def end(self) -> None:
        """Let the copy end: what comes before it on its way ends first."""
        if self.ended:
            return
        self.ended = True
        for ticket in self._after:
            ticket.end()
        block, storage = self._block, self._device()
        assert block is not None
        # As a copy engine does: no operator runs, whoever looks on.
        if storage is None:  # given up without a fence: somebody else's bytes are there by now
            if self._out:
                ctypes.memset(block.data_ptr(), POISON, block.numel())
        elif self._out:
            ctypes.memmove(block.data_ptr(), storage.data_ptr(), block.numel())
        else:
            ctypes.memmove(storage.data_ptr(), block.data_ptr(), block.numel())
        self._block, self._after = None, ()


class EmulatedBackend(Backend):
    """The CPU as a device, its tiers in the same memory. *lost* counts the fetches into bytes that
    were given up without a fence: on a GPU each overwrites what somebody else has there."""

    def __init__(self, tiers: Sequence[str] = ("host", "peer")) -> None:
        super().__init__(torch.device("cpu"), tiers)
        self.lost = 0
        self._under_way: list[tuple[Emulated, weakref.ref[torch.UntypedStorage] | None]] = []

    def memory(self, tier: str, nbytes: int) -> torch.Tensor:
        """Return memory of the CPU, poisoned."""
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def copy_out(
        self, source: torch.Tensor, block: torch.Tensor, tier: str, after: Sequence[Ticket]
    ) -> Emulated:
        """Start a copy out; the block's bytes are gone from here on."""
        for ticket in after:
            ticket.end()
        block.fill_(POISON)
        ticket = Emulated(source.untyped_storage(), block, True, ())
        self._begin(ticket, None)
        return ticket

    def fetch(
        self, block: torch.Tensor, tier: str, after: Sequence[Ticket]
    ) -> tuple[torch.Tensor, Emulated]:
        """Start a copy back into poisoned bytes."""
        back = torch.full((block.numel(),), POISON, dtype=torch.uint8)
        ticket = Emulated(back.untyped_storage(), block, False, after)
        self._begin(ticket, weakref.ref(back.untyped_storage()))
        return back, ticket

    def wait(self, ticket: Emulated) -> None:
        """Let a copy end."""
        ticket.end()

    def ended(self, ticket: Emulated) -> bool:
        """Whether somebody has waited for a copy."""
        return ticket.ended

    def room(self, tier: str) -> int:
        """Return a quarter of the memory: the device and its tiers share it."""
        return host_nbytes() // 4

    def drain(self) -> None:
        """Let all copies end."""
        for ticket, back in self._under_way:
            self.lost += not ticket.ended and back is not None and back() is None
            ticket.end()
        self._under_way.clear()

    def _begin(self, ticket: Emulated, back: weakref.ref[torch.UntypedStorage] | None) -> None:
        self._under_way = [each for each in self._under_way if not each[0].ended]
        self._under_way.append((ticket, back))
