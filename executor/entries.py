"""A saved storage while a step runs: on the device, in tiers, or on its way between them.

Autograd's graph owns handles, a handle owns its entry, and an entry its bytes wherever they are;
whoever drives the schedule holds entries weakly. So a graph that goes takes everything along. An
entry that is nowhere, to be computed again, owns the entries that this starts from.

A handle's tensor shares the version counter of what was saved, also while its bytes are away: so a
modification in place after the save is noticed at any time, as autograd itself would.
"""

import weakref
from collections.abc import Sequence
from enum import Enum
from typing import Final

import torch
from msgspec import Struct

from .backend import Backend, Ticket, flat
from .private import negatives, version_of
from .slabs import Block


class View(Struct, frozen=True):
    """How a saved tensor looks at its storage; *conj* and *neg*: at conjugates, at negatives."""

    dtype: torch.dtype
    shape: Sequence[int]
    stride: Sequence[int]
    offset: int | torch.SymInt
    conj: bool
    neg: bool


def view_of(tensor: torch.Tensor) -> View:
    """Return how a tensor looks at its storage."""
    return View(
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def looking(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """Return a tensor on the same bytes that looks at them in that way."""
    if tensor.dtype is not view.dtype:
        there = torch.empty(0, dtype=view.dtype, device=tensor.device)
        there.set_(tensor.untyped_storage(), view.offset, view.shape, view.stride)
    elif (
        tensor.shape == view.shape
        and tensor.stride() == view.stride
        and tensor.storage_offset() == view.offset
    ):
        there = tensor
    else:
        there = tensor.as_strided(view.shape, view.stride, view.offset)
    if there.is_conj() is not view.conj:
        there = there.conj()
    if there.is_neg() is not view.neg:
        there = negatives(there)
    return there


class Where(Enum):
    """Where the device's bytes of an entry are."""

    HERE = "here"  # as they were saved
    AWAY = "away"  # in a tier, or nowhere: to be computed again
    BACK = "back"  # fetched, or computed again


# Asked for at each hook, and in a tenth of the time that an enumeration takes to find them.
HERE: Final = Where.HERE
AWAY: Final = Where.AWAY
BACK: Final = Where.BACK


class Entry:
    """One saved storage, whole: *nbytes* bytes of storage number *number*, saved at *version*."""

    __slots__ = (
        "__weakref__",
        "_aliases",
        "_back",
        "_backend",
        "_copying",
        "_fetching",
        "_original",
        "address",
        "blocks",
        "control",
        "early",
        "kept",
        "nbytes",
        "number",
        "owned",
        "sequence",
        "version",
        "where",
    )

    def __init__(
        self,
        backend: Backend,
        number: int,
        storage: torch.UntypedStorage,
        address: int,
        version: int,
    ) -> None:
        self.number = number
        self.address = address  # -1 once the original is given up, for another may have it then
        self.version = version
        self.nbytes = storage.nbytes()
        self.where: Where = HERE
        self.blocks: dict[str, Block] = {}
        self.owned: tuple[Entry, ...] = ()  # what it is computed from, while it is nowhere
        self.control: torch.Tensor | None = None  # a copy to compare with
        self.kept = False  # a tier had no room, or it could not be computed again, so it stays
        self.sequence = -1  # of the operation that saved it last, among autograd's nodes
        self.early = False  # it was copied while that operation may still have run
        self._backend = backend
        self._original = weakref.ref(storage)
        self._aliases: list[torch.Tensor] = []
        self._back: torch.Tensor | None = None
        self._copying: list[Ticket] = []
        self._fetching: Ticket | None = None

    def add(self, alias: torch.Tensor) -> None:
        """Add a tensor on these bytes, which is a handle's."""
        self._aliases.append(alias)

    @property
    def original(self) -> torch.UntypedStorage | None:
        """The storage that was saved, while anybody holds it."""
        return self._original()

    @property
    def watch(self) -> weakref.ref[torch.UntypedStorage]:
        """What tells whether the storage with the device's bytes is alive."""
        return self._original if self._back is None else weakref.ref(self._back.untyped_storage())

    @property
    def storage(self) -> torch.UntypedStorage:
        """The storage that has the device's bytes now."""
        storage = self._original() if self._back is None else self._back.untyped_storage()
        assert storage is not None
        return storage

    @property
    def intact(self) -> bool:
        """Whether nobody has written to what was saved, as autograd counts that."""
        return bool(version_of(self._aliases[0]) == self.version)

    def tensor(self) -> torch.Tensor:
        """Return some tensor on the bytes, which are on the device."""
        self._arrive()
        return self._aliases[0] if self._back is None else self._back

    def source(self) -> torch.Tensor:
        """Return the bytes to copy."""
        self._arrive()
        return flat(self.storage, self._backend.device)

    def sent(self, block: Block, tier: str, ticket: Ticket) -> None:
        """Take a block that they are being copied to."""
        block.tickets = (ticket,)
        self.blocks[tier] = block
        self._copying.append(ticket)

    def copy(self, block: Block, tier: str) -> None:
        """Start copying to a tier."""
        pair = self.source(), block.memory
        self.sent(block, tier, self._backend.copy_out((pair,), tier, block.tickets))

    def send_again(self, tier: str) -> None:
        """Let a tier's copy be of what the original has now."""
        storage = self._original()
        block = self.blocks[tier]
        if storage is not None:
            pair = flat(storage, self._backend.device), block.memory
            ticket = self._backend.copy_out((pair,), tier, block.tickets)
            block.tickets = (ticket,)
            self._backend.wait(ticket)

    def drop(self) -> None:
        """Give up the device's bytes, behind a fence."""
        if self._copying or self._fetching is not None:
            self._fence()
        nothing = self._backend.nothing
        for alias in self._aliases:
            alias.data = nothing
        self._back = None
        self.where = AWAY
        self.address = -1

    def came(self, back: torch.Tensor, tier: str, ticket: Ticket) -> None:
        """Take bytes that a tier's block is being copied to."""
        block = self.blocks[tier]
        block.tickets = (*block.tickets, ticket)
        self._fetching = ticket
        self.came_again(back)

    def came_again(self, back: torch.Tensor) -> None:
        """Take a tensor on the same bytes, computed again."""
        self._back = back
        self.owned = ()
        self.where = BACK

    def fetch(self, tier: str) -> None:
        """Start copying back from a tier."""
        block = self.blocks[tier]
        (back,), ticket = self._backend.fetch((block.memory,), tier, block.tickets)
        self.came(back, tier, ticket)

    def reuse(self) -> bool:
        """Take the original for what is away, if somebody else has kept it; return whether."""
        storage = self._original()
        if storage is None:
            return False
        self.came_again(flat(storage, self._backend.device))
        return True

    def show(self, alias: torch.Tensor, view: View) -> None:
        """Let a handle's tensor look at the bytes that are back."""
        alias.data = looking(self.tensor(), view)

    def _arrive(self) -> None:
        if self._fetching is not None:
            self._backend.wait(self._fetching)
            self._fetching = None

    def _fence(self) -> None:
        for ticket in self._copying:
            self._backend.wait(ticket)
        self._copying.clear()
        self._arrive()

    def __del__(self) -> None:
        # A copy back that is under way must not end in bytes that are somebody else's by then. One
        # out would do no harm, but for an allocator that unmaps the bytes while they are read.
        for ticket in self._copying:
            if not self._backend.ended(ticket):
                self._backend.wait(ticket)
        if self._fetching is not None:
            self._backend.wait(self._fetching)
