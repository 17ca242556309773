"""What an executed schedule asks of a device: tiers, copies beside the computation, fences.

Two stand behind it: `CudaBackend`, and `EmulatedBackend` for the CPU, which does what a GPU is
allowed to do at its worst. A copy is issued and a `Ticket` comes back; nothing may be assumed of
the copy until somebody waits for the ticket. Waiting makes the *computation* wait, never the host.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from ..allocators.standing import Standing

Ticket = Any
"""What a copy under way is known by; each backend has its own."""

Stamp = Any
"""A moment of the computation; each backend has its own."""

DrawState = Any
"""What random operators draw from at some place; each backend has its own."""


class Backend(ABC):
    """A device with tiers beside it. *nothing* is an empty tensor there, *tiers* are names.

    While *timing* is set, fences and copies are timed, which makes each a little slower. *lags*
    says that the device computes on its own, behind the host that issues.
    """

    lags = False

    def __init__(self, device: torch.device, tiers: Sequence[str]) -> None:
        self.device = device
        self.timing = False
        self.tiers = tuple(tiers)
        self.nothing = torch.empty(0, device=device)

    @abstractmethod
    def begin(self) -> None:
        """A step begins: what is computed from here on is what copies wait for."""

    @property
    def allocator(self) -> str:
        """The model of what the device reserves, by its name in machine files."""
        return "exact"

    def standing(self, addresses: Mapping[int, int]) -> Standing | None:
        """Return how the device's allocator stands, once it has given back what it can; *addresses*
        are those of storages. None where nobody can tell."""
        return None

    def draw_state(self) -> DrawState:
        """Return the state that random operators on the device draw from."""
        return torch.default_generator.get_state()

    def draw_from(self, state: DrawState) -> None:
        """Let random operators draw from a state that there was in this step."""
        torch.default_generator.set_state(state)

    def allocated_nbytes(self) -> int | None:
        """Return the bytes that the device has given out, None where nobody counts them."""
        return None

    def computes_here(self) -> bool:
        """Whether what is computed now is what copies wait for, and not beside it."""
        return True

    @abstractmethod
    def memory(self, tier: str, nbytes: int) -> torch.Tensor:
        """Return new memory in a tier, as bytes. Raises RuntimeError if the tier has no more."""

    @abstractmethod
    def copy_out(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tier: str, after: Sequence[Ticket]
    ) -> Ticket:
        """Start copying bytes from the device into blocks of a tier: pairs of source and block.

        The copies begin when what was computed so far is there and the copies *after* have ended.
        The sources must stay until somebody has waited for the ticket, which is of all of them.
        """

    @abstractmethod
    def fetch(
        self, blocks: Sequence[torch.Tensor], tier: str, after: Sequence[Ticket]
    ) -> tuple[list[torch.Tensor], Ticket]:
        """Allocate on the device and start copying blocks of a tier there; return the bytes.

        The bytes must stay until somebody has waited for the ticket, which is of all of them.
        """

    @abstractmethod
    def wait(self, ticket: Ticket) -> None:
        """Let what is computed from here on wait for a copy: a fence."""

    @abstractmethod
    def ended(self, ticket: Ticket) -> bool:
        """Whether a copy has ended, without waiting for it."""

    @abstractmethod
    def room(self, tier: str) -> int:
        """Return how many bytes a tier could have at most."""

    @abstractmethod
    def drain(self) -> None:
        """Wait, with the host, until all copies have ended."""

    @abstractmethod
    def hold_to(self, nbytes: int) -> None:
        """Have this process take no more than so many bytes of the device, where that can be."""

    @abstractmethod
    def stamp(self) -> Stamp:
        """Mark this moment of the computation: all that was issued so far comes before it."""

    @abstractmethod
    def between_ns(self, begin: Stamp, end: Stamp) -> int:
        """Return the time from one moment of the computation to a later one; the host waits for
        that."""

    @property
    def timed_waits(self) -> int:
        """How many fences have been timed since `waits_ns` was last called."""
        return 0

    def waits_ns(self) -> list[int]:
        """Return what each timed fence has cost since the last call; the host waits for the last of
        them."""
        return []

    def copied_ns(self) -> tuple[int, int]:
        """Return how long copies out and in took since the last call, 0 where that is not measured;
        the host waits for the last of them."""
        return 0, 0


STREAMS: Final = (
    "the step computes on a stream of its own beside the one it began on, where a copy could "
    "overtake it; run the whole step on one stream"
)


def flat(storage: torch.UntypedStorage, device: torch.device) -> torch.Tensor:
    """Return all bytes of a storage as one tensor on them."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


def host_nbytes() -> int:
    """Return the host's memory, all of it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
