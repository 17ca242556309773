"""What is due at a hook, done: bytes sent away, dropped, brought back, or computed again."""

import weakref
from collections.abc import Mapping, Sequence

import torch

from ..errors import Unsupported
from .actions import COPY, DISCARD, DROP, FETCH, LOOK, RERUN, Action
from .backend import STREAMS, Backend
from .code import Code
from .entries import AWAY, HERE, Entry
from .journal import Journal
from .plan import Saved
from .private import address, holders, running_node, sequence_number
from .replay import Replay
from .slabs import Block, Slabs
from .witness import Witness


class Duties:
    """Does what is due, and keeps the journal of it. With *verify* what is to be computed again is
    compared with a copy of what it was."""

    journal: Journal
    _replay: Replay
    _codes: Mapping[int, Code]
    _places: Sequence[int]  # of the hooks
    _saved: Sequence[Saved]
    _looking: Witness | None  # who looks on, until it has seen all that is to be seen
    _lost: bool  # whether it is another step, so that nothing is due any more

    def __init__(self, backend: Backend, slabs: Mapping[str, Slabs], *, verify: bool) -> None:
        self._backend = backend
        self._slabs = slabs
        self._verify = verify
        self._at = 0  # how many hooks have fired
        self._entries: dict[int, weakref.ref[Entry]] = {}
        self._held: dict[int, Entry] = {}
        self._leaving: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def _entry_of(self, s: int) -> Entry | None:
        """Return a storage's entry, None if the graph is gone."""
        found = self._entries.get(s)
        return None if found is None else found()

    def _do_all(self, due: Sequence[Action]) -> None:
        looking = self._looking
        if looking is not None:
            looking.quiet = True
        try:
            for action in due:
                self._do(action)
        finally:
            if looking is not None:
                looking.quiet = False

    def _do(self, action: Action) -> None:
        what = action.what
        if what is DROP:
            for s in action.storages:
                self._drop(s)
        elif what is LOOK:
            for s in action.storages:
                self._look(s)
        elif what is RERUN:
            if self._backend.computes_here():  # else it comes when it is asked for, or is refused
                for op in self._replay.run(action.ops, self._places[self._at]):
                    self.journal.write(self._at, "rerun", self._codes[op].made[0].storage)
        elif what is COPY:
            self._copy(action.storages, action.tier)
        elif what is FETCH:
            self._fetch(action.storages, action.tier)
        elif what is DISCARD:
            for s in action.storages:
                self._discard(s, action.tier)
        else:
            for s in action.storages:
                if self._held.pop(s, None) is not None:
                    self._replay.let_go(s)
                    self.journal.write(self._at, "release", s)

    def _discard(self, s: int, tier: str) -> None:
        entry = self._there(s)
        if entry is None:
            self._replay.forget(s)
        elif (
            entry.where is not AWAY  # or it may be asked for yet: of a loss that is kept
            and entry.blocks.pop(tier, None) is not None
        ):
            self.journal.write(self._at, "discard", s)

    def _drop(self, s: int) -> None:
        self._replay.forget(s)  # half run again
        entry = self._there(s)
        if entry is None or entry.where is AWAY:
            return
        if not entry.blocks and not self._replay.prepared(entry):
            entry.kept = True
            self.journal.write(self._at, "unready", s)
            return
        if entry.where is HERE:
            self._leaving[s] = entry.watch
            if self._verify and not entry.blocks:
                entry.control = entry.source().clone()
        entry.drop()
        self.journal.write(self._at, "drop", s)

    def _there(self, s: int) -> Entry | None:
        """Return a storage's entry; None if the graph is gone, or if it had to stay."""
        entry = self._entry_of(s)
        return None if entry is None or entry.kept else entry

    def _copy(self, storages: Sequence[int], tier: str) -> None:
        taken: list[tuple[Entry, Block]] = []
        for s in storages:
            entry = self._there(s)
            if entry is None:
                continue
            block = self._slabs[tier].take(entry.nbytes)
            if block is None:
                entry.kept = True
                self.journal.write(self._at, "kept", s)
            else:
                entry.early = entry.sequence == sequence_number()
                taken.append((entry, block))
                self.journal.write(self._at, "copy", s)
        if taken:
            pairs = [(entry.source(), block.memory) for entry, block in taken]
            after = [ticket for _, block in taken for ticket in block.tickets]
            ticket = self._backend.copy_out(pairs, tier, after)
            for entry, block in taken:
                entry.sent(block, tier, ticket)

    def _fetch(self, storages: Sequence[int], tier: str) -> None:
        entries = [entry for entry in map(self._there, storages) if entry is not None]
        entries = [entry for entry in entries if entry.where is AWAY]
        if entries:
            blocks = [entry.blocks[tier] for entry in entries]
            after = [ticket for block in blocks for ticket in block.tickets]
            found, ticket = self._backend.fetch([block.memory for block in blocks], tier, after)
            for entry, back in zip(entries, found, strict=True):
                entry.came(back, tier, ticket)
                self.journal.write(self._at, "fetch", entry.number)

    def _look(self, s: int) -> None:
        """See whether what was dropped is gone by now, and who has it if it is not."""
        watch = self._leaving.pop(s, None)
        if watch is None:
            return
        storage = watch()
        if storage is None:
            self.journal.write(self._at, "gone", s)
        else:
            self.journal.holders[s] = holders(address(storage)) - 1
            self.journal.write(self._at, "there", s)

    def _prove_asker(self, entry: Entry, number: int) -> None:
        """Refuse what was sent away for another operation before that was over, and what is asked
        for on another stream."""
        if entry.early:
            node, recorded = running_node(), self._saved[number].asker
            if node is not None and recorded and node.name() != recorded:
                raise Unsupported(
                    f"save {number} was sent away as one of {recorded}, and {node.name()} asks for "
                    "it: the step is another one than was recorded, in a way that shows too late; "
                    "give step() the batch, or any label that tells the two kinds of steps apart"
                )
        if not self._backend.computes_here():
            raise Unsupported(STREAMS)

    def _show(self, entry: Entry, alias: torch.Tensor, number: int) -> None:
        """Let a handle's tensor look at its entry's bytes, wherever they were."""
        looking = self._looking
        if looking is not None:
            looking.quiet = True
        try:
            self._bring(entry)
            entry.show(alias, self._saved[number].view)
        finally:
            if looking is not None:
                looking.quiet = False

    def _bring(self, entry: Entry) -> None:
        """See to it that an entry's bytes are on the device, or on their way to it."""
        if entry.where is AWAY:
            what = "late" if entry.blocks else "rebuilt"
            if not entry.reuse():
                if entry.blocks:
                    entry.fetch(next(iter(entry.blocks)))
                else:
                    back = self._replay.rebuild(entry, self._bring)
                    if not self._lost:  # the schedule has them there later, or never
                        for each in back:
                            self._replay.let_go(each.number)
            self.journal.write(self._at, what, entry.number)
