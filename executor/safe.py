"""Safe mode: whatever a step makes and saves goes to the host at once, and comes back on demand.

So a step that does not fit can run, slowly, before there is a schedule for it. Its log is that of a
plain step: what comes back goes on with the life of what was sent.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch

from ..errors import Unsupported
from .backend import STREAMS, Backend
from .entries import Entry, View, Where, view_of
from .log import Log
from .private import address, backward_pass, running_node, version
from .saves import COMPILED, Kept, Saves
from .slabs import Slabs
from .storages import Life
from .unseen import Unseen


class Fired(NamedTuple):
    """A hook that fired: for save *number*, packed or unpacked, at a *place*."""

    pack: bool
    number: int
    place: int


class SafeSaves(Saves):
    """Saved-tensor hooks that send away what a logged step saves of its own.

    *fired* are the hooks in order; *views*, *counters*, *lives* and *askers* are by number what was
    packed, at which version as autograd counts them, and the node that asked for it first; a life
    is None for what is not on the device. What finds no room in the tier stays, and
    *stayed_nbytes* says so.
    """

    def __init__(
        self, log: Log, slabs: Mapping[str, Slabs], backend: Backend, unseen: Unseen
    ) -> None:
        self._unseen = unseen
        self.fired: list[Fired] = []
        self.views: list[View] = []
        self.counters: list[int] = []
        self.lives: list[Life | None] = []
        self.askers: list[str] = []
        self.stayed_nbytes = 0
        self._slabs = slabs[TIER]
        self._backend = backend
        self._sent: weakref.WeakValueDictionary[tuple[int, int], Entry] = (
            weakref.WeakValueDictionary()
        )
        self._entry_of: weakref.WeakKeyDictionary[Any, tuple[int, Entry | None]] = (
            weakref.WeakKeyDictionary()
        )
        super().__init__(log)

    def _pack(self, tensor: torch.Tensor) -> Any:
        log = self._log
        if not self._backend.computes_here():
            raise Unsupported(STREAMS)
        if log.problem or (log.here(tensor) and log.lacks_bytes(tensor)):
            handle = super()._pack(tensor)
            self._entry_of[handle] = (-1, None)
            return handle
        if log.here(tensor) and backward_pass() < 0:
            self._unseen.look(tensor)
        handle = super()._pack(tensor)
        number = len(self.views)
        self.fired.append(Fired(True, number, log.place()))
        self.views.append(view_of(tensor))
        self.counters.append(version(tensor))
        self.askers.append("")
        kept = handle.kept
        self.lives.append(None if kept is None else kept.life)
        entry = None
        if kept is not None and kept.life.born >= self._start and kept.life.nbytes:
            entry = self._send(handle.tensor, kept)
        self._entry_of[handle] = (number, entry)
        return handle

    def _send(self, alias: torch.Tensor, kept: Kept) -> Entry | None:
        key = (kept.life.number, version(alias))
        entry = self._sent.get(key)
        log = self._log
        log.quiet = True
        try:
            if entry is None:
                block = self._slabs.take(kept.life.nbytes)
                if block is None:
                    self.stayed_nbytes += kept.life.nbytes
                    return None
                storage = alias.untyped_storage()
                entry = Entry(self._backend, -1, storage, address(storage), key[1])
                entry.copy(block, TIER)
                self._sent[key] = entry
            entry.add(alias)
            entry.drop()
        finally:
            log.quiet = False
        kept.life.keeps -= 1  # it does not hold the bytes
        return entry

    def _unpack(self, handle: Any) -> torch.Tensor:
        node = running_node()
        if node is not None and "CompiledFunction" in node.name():
            raise Unsupported(COMPILED)
        log = self._log
        number, entry = self._entry_of[handle]
        self.fired.append(Fired(False, number, log.place()))
        tensor: torch.Tensor = super()._unpack(handle)
        if entry is not None:
            log.quiet = True
            try:
                self._bring(entry, handle.kept.life)
                entry.show(tensor, self.views[number])
                tensor = tensor.detach()  # whose bytes stay when ours are given up again
            finally:
                log.quiet = False
        if handle.kept is not None:
            self.askers[number] = handle.kept.asked_by
        return tensor

    def _bring(self, entry: Entry, life: Life) -> None:
        if entry.where is Where.AWAY and not entry.reuse():
            entry.fetch(TIER)
            self._log.book.adopt(life, entry.storage)

    def refresh(self, lives: Iterable[Life]) -> None:
        """Send again what has been written into since it was sent, and autograd has not noticed:
        the noise of a random ReLU, or another chunk of a recurrent cell's gates."""
        for life in lives:
            for (number, _), entry in list(self._sent.items()):
                if number == life.number and entry.original is not None:
                    self._log.quiet = True
                    try:
                        entry.send_again(TIER)
                    finally:
                        self._log.quiet = False

    def settle(self) -> None:
        """Say of each life that was sent away when it ended: with what held it last."""
        for kept in self.kept:
            life = kept.life
            if life.dead >= 0:
                life.dead = -1 if kept.freed < 0 else max(life.dead, kept.freed)


TIER: Final = "host"
