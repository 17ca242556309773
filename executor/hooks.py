"""The hooks of an executed step: they count, compare, and do what is due. Nothing else watches.

If a hook fires that the plan does not expect, or a tensor looks otherwise than it did when it was
recorded, the step is another one. Then everything that is still on the device stays there, what is
away comes back when it is asked for, and *why* says what was different. What was sent away for one
operation and is asked for by another is refused: that one may have filled it after it was sent.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .backend import Backend
from .duties import Duties
from .entries import AWAY, HERE, Entry
from .journal import Journal
from .lasting import Lasting, told_of_writes
from .plan import Hook, Look, Plan
from .private import (
    address,
    backward_pass,
    hooks_are_pushed,
    observed,
    pop_hooks,
    push_hooks,
    sequence_number,
    version_of,
)
from .replay import Replay
from .saves import fault_modified
from .slabs import Slabs

Handle = tuple[torch.Tensor, int, int, Entry | None]
"""What autograd holds in place of a tensor: one that shares its version counter, the version that
was saved, the number of the save, and the entry if the schedule moves or holds the storage."""


class ExecutedStep(Duties):
    """One step by *plan*. Autograd's graph may hold it for longer than the step lasts.

    With *constant* nobody looks whether what is computed again was called as when it was recorded,
    and with *verify* it is compared with a copy of what it was.
    """

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        slabs: Mapping[str, Slabs],
        others: Mapping[Look, Plan] | None = None,
        *,
        constant: bool = False,
        verify: bool = False,
    ) -> None:
        self.why = ""
        super().__init__(backend, slabs, verify=verify)
        self._constant = constant
        self._watching = ExitStack()
        self._others = others or {}
        self._lost = False
        self._hooked = False
        self._odd = ""  # why it is another step, as is known before the first hook
        self._hooks: Sequence[Hook] = ()
        self._follow(plan)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look on inside the block, as far as that is needed."""
        seen = self._told_of_writes()
        try:
            with self._looked_at():
                yield
        finally:
            for each in seen:
                each.remove()
            self._replay.lasting.see_update(None)

    @contextmanager
    def hooked(self, *, whole: bool) -> Iterator[None]:
        """Have autograd call the hooks inside the block: for all that it saves, or as long as the
        schedule has anything to do with what is saved. Around hooks of the user's own it is always
        all, for those would have the rest."""
        self._last = sys.maxsize if whole or hooks_are_pushed() else self.plan.reach.last
        self._hooked = True
        push_hooks(self.pack, self.unpack)
        try:
            yield
        finally:
            self._unhook()

    def _unhook(self) -> None:
        if self._hooked:
            self._hooked = False
            pop_hooks()

    def _told_of_writes(self) -> list[Any]:
        """Have what lasts told of what may write it without a count; return what ends that."""
        watch = weakref.ref(self)

        def lasting() -> Lasting | None:
            step = watch()
            return None if step is None else step._replay.lasting

        plans = (self.plan, *self._others.values())
        return told_of_writes(lasting, statistics=any(each.recipes.statistics for each in plans))

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        with self._watching:
            if self._replay.witness is not None:
                self._watching.enter_context(observed(self._replay.witness.observe))
            yield

    def pack(self, tensor: torch.Tensor) -> Handle:
        """Take a tensor for autograd to keep."""
        alias = tensor.detach()
        version = version_of(alias)
        if self._lost:
            return alias, version, -1, None
        at = self._at
        number, dtype, shape, storage, due, following = self._hooks[at]
        if number < 0 or shape != tensor.shape or dtype is not tensor.dtype or self._odd:
            if not self._follow_another(tensor):
                return alias, version, -1, None
            number, dtype, shape, storage, due, following = self._hooks[at]
        entry = None if storage < 0 else self._entry(alias, version, number)
        if due and not self._lost:
            self._do_all(due)
        self._at = following
        looking = self._looking
        # In backward autograd would bring back what looks on as it ends.
        if looking is not None and looking.done and backward_pass() < 0:
            self._watching.close()
            self._looking = looking = None
        if at >= self._last and looking is None and not self._lost and backward_pass() < 0:
            self._hooks = self.plan.hooks_until(at)
            self._at = self._hooks[at][5]
            self._unhook()
        return alias, version, number, entry

    def unpack(self, handle: Handle) -> torch.Tensor:
        """Give autograd back what it kept.

        Raises RuntimeError if it was modified meanwhile, Unsupported if it cannot be trusted.
        """
        alias, version, number, entry = handle
        if not self._lost:
            hook = self._hooks[self._at]
            if hook[0] != ~number:
                self._lose(f"hook {self._at} is an unpack of save {number}, which was not recorded")
            else:
                if hook[4]:
                    self._do_all(hook[4])
                self._at = hook[5]
        if version_of(alias) != version:
            # What is away has no shape of its own.
            shape = alias.shape if number < 0 else self._saved[number].shape
            fault_modified(shape, version_of(alias), version)
        if entry is None:
            return alias
        where = entry.where
        if where is not HERE or entry.early:
            self._prove_asker(entry, number)
        if where is not HERE:
            self._show(entry, alias, number)
        given = alias.detach()  # whose bytes stay when ours are given up again
        if where is AWAY and not self._lost and self.plan.unread(entry.number):
            self._replay.let_go(entry.number)
        return given

    def finish(self) -> None:
        """End the step: what is due then is done, and what was held is let go of."""
        count = len(self.plan.due)
        if not self._lost and self._at < count:
            self._lose(f"it ended after {self._at} of {count} hooks")
        if not self._lost:
            self._do_all(self.plan.at_end)
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything; what the graph still keeps comes back when it is asked for."""
        self._lost = True
        self._held.clear()
        waiting = [entry for s in self._entries if (entry := self._entry_of(s)) is not None]
        if all(entry.where is not AWAY or entry.blocks for entry in waiting):
            self._replay.end()
        else:  # a graph that is kept: what it starts from may be written after the step, too
            for each in self._told_of_writes():
                weakref.finalize(self, each.remove).atexit = False
        self._entries.clear()
        self._leaving.clear()
        self._replay.made.clear()

    def _follow(self, plan: Plan) -> None:
        """Follow a plan, from before its first hook."""
        self.plan = plan
        self._last = sys.maxsize  # the pack at which the hooks may end
        self.journal = Journal(plan)
        self._hooks = plan.hooks
        self._saved = plan.saved
        self._places = plan.places
        self._codes = plan.recipes.codes
        self._replay = Replay(
            plan.recipes, self._backend, self._entry_of, self._doubt, constant=self._constant
        )
        self._looking = self._replay.witness
        self._odd = "" if self._replay.lasting.whole else "a parameter or buffer of it is gone"

    def _follow_another(self, tensor: torch.Tensor) -> bool:
        """Follow the plan of another kind of step, if this is the first save of one that is known;
        else keep everything."""
        look = tensor.dtype, tensor.shape
        number, dtype, shape, *_ = self._hooks[self._at]
        if self._at == 0 and look in self._others and self._others[look] is not self.plan:
            self._follow(self._others[look])
            if self._replay.witness is not None:
                self._replay.witness.miss()
            return True
        if self._odd:
            self._lose(self._odd)
            return False
        if number < 0:
            self._lose(f"hook {self._at} is a pack, of {_told(*look)}; none was recorded there")
        else:
            self._lose(f"save {number} is {_told(*look)}; recorded was {_told(dtype, shape)}")
        return False

    # -- what is due -------------------------------------------------------------------------------

    def _entry(self, alias: torch.Tensor, version: int, number: int) -> Entry | None:
        """Return the entry of a save's storage, a new one at its first save."""
        saved = self._saved[number]
        s, view = saved.storage, saved.view
        if not self._backend.computes_here():
            self._lose(f"save {number} is made on another stream than the step's")
            return None
        if alias.stride() != view.stride or alias.storage_offset() != view.offset:
            self._lose(f"save {number} has other strides or another offset than recorded")
            return None
        if alias.is_conj() is not view.conj or alias.is_neg() is not view.neg:
            self._lose(f"save {number} looks otherwise at its complex numbers than recorded")
            return None
        storage = alias.untyped_storage()
        where = address(storage)
        entry = self._entry_of(s)
        if entry is None:
            entry = Entry(self._backend, s, storage, where, version)
            if entry.nbytes != saved.nbytes:
                self._lose(
                    f"save {number} is of {entry.nbytes} bytes; recorded were {saved.nbytes}"
                )
                return None
            self._entries[s] = weakref.ref(entry)
            if saved.held:
                self._held[s] = entry
        elif entry.address != where or entry.version != version:
            self._lose(f"save {number} is of another storage or version than recorded")
            return None
        if saved.counter >= 0 and not (saved.counter == version and self._replay.knows(s, storage)):
            self._lose(f"save {number} is not of what was seen to be made for it")
            return None
        entry.add(alias)
        entry.sequence = sequence_number()
        return entry

    def _doubt(self, why: str) -> None:
        """The witness says that it is another step; before the first hook it may be a known one."""
        if self._at:
            self._lose(why)
        else:
            self._odd = why

    def _lose(self, why: str) -> None:
        self._lost = True
        self.why = self.why or why
        self._held.clear()
        if self._replay.witness is not None:
            self._replay.witness.done = True


def _told(dtype: torch.dtype | None, shape: Sequence[int]) -> str:
    return f"{dtype} {list(shape)}"
