"""Audit an executed step: are the device's bytes those of the ledger, at every place?

For doubts and for tests: an audited step is watched as a recorded one is, and slow. On a GPU the
bytes are those that its allocator has given out; elsewhere they are those of all storages seen.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ..schedules import Ledger, Run
from .actions import Action, What
from .backend import Backend
from .entries import Entry, Where
from .holders import held_by
from .hooks import ExecutedStep, Handle
from .log import Log
from .meter import requested
from .plan import Look, Plan
from .private import Overload, observed
from .recording import enter_all
from .slabs import Slabs


class Reading(NamedTuple):
    """What the device held before operation *place*, *op*, beyond what was there at the start, and
    what it was to hold."""

    place: int
    op: str
    planned_nbytes: int
    found_nbytes: int


class AuditedStep(ExecutedStep):
    """An executed step that is watched. *readings* are what was found, before each operation."""

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
        super().__init__(plan, backend, slabs, others, constant=constant, verify=verify)
        self.readings: list[Reading] = []
        self._log = Log(backend.device)
        self._bytes = self._on_gpu if backend.device.type == "cuda" else self._in_book
        if backend.device.type != "cuda":
            enter_all(self._log, slabs)
        self._seen = len(self._log.book.lives)
        self._unseen_nbytes = 0
        self._start_nbytes = self._bytes()

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        """Look at the bytes before each operation inside the block; the witness is told."""
        with observed(self._observe):
            yield

    def _follow(self, plan: Plan) -> None:
        super()._follow(plan)
        self._planned = planned_nbytes(plan)

    def pack(self, tensor: torch.Tensor) -> Handle:
        """As in a step that nobody watches."""
        with self._quietly():
            return super().pack(tensor)

    def unpack(self, handle: Handle) -> torch.Tensor:
        """As in a step that nobody watches."""
        with self._quietly():
            return super().unpack(handle)

    def _do(self, action: Action) -> None:
        super()._do(action)
        for s in action.storages:
            self._see(self._there(s))
        if action.what is What.RERUN:
            for op in action.ops:
                for made in self.plan.recipes.codes[op].made if op >= 0 else ():
                    self._see(self._there(made.storage))
            for tensor, _ in self._replay.made.values():
                self._enter(tensor)

    def _bring(self, entry: Entry) -> None:
        super()._bring(entry)
        self._see(entry)

    def _look(self, s: int) -> None:
        watch = self._leaving.get(s)
        storage = None if watch is None else watch()
        if storage is not None:
            self.journal.held_by[s] = held_by(storage)
        del storage
        super()._look(s)

    def _see(self, entry: Entry | None) -> None:
        if entry is not None and entry.where is Where.BACK:
            self._enter(torch.empty(0, device=self._log.device).set_(entry.storage))

    def _enter(self, tensor: torch.Tensor) -> None:
        if self._log.book.find(tensor) is None:
            self._log.book.enter(tensor, self._log.place())

    def _observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = self._log.place()
        before = 0 if self._log.quiet else self._bytes() - self._lifted_nbytes(func, args)
        witness = None if self._log.quiet else self._replay.witness
        seen = witness is not None and witness.before(func, args, kwargs)
        result = self._log.observe(func, args, kwargs)
        if witness is not None and seen:
            witness.after(result)
        if self._log.place() > place and not self.why and place < len(self._planned):
            name = self.plan.trace.operations[place].name
            found = before - self._start_nbytes
            self.readings.append(Reading(place, name, self._planned[place], found))
        return result

    def _lifted_nbytes(self, func: Overload, args: tuple[Any, ...]) -> int:
        """Return what is on a GPU already of the result of an operation to come: no operator makes
        the tensor of Python numbers that `lift_fresh` brings."""
        if func.name() != "aten::lift_fresh" or self._bytes != self._on_gpu:
            return 0
        unseen = self._log.here(args[0]) and self._log.book.find(args[0]) is None
        return int(args[0].untyped_storage().nbytes()) if unseen else 0

    def _on_gpu(self) -> int:
        return requested(self._log.device)["current"]

    def _in_book(self) -> int:
        """Return the bytes of what lives, less those that were there at the start unseen."""
        lives = self._log.book.lives
        self._unseen_nbytes += sum(each.nbytes for each in lives[self._seen :] if each.born < 0)
        self._seen = len(lives)
        return self._log.book.alive_nbytes - self._unseen_nbytes

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._log.quiet = True
        try:
            yield
        finally:
            self._log.quiet = False


def planned_nbytes(plan: Plan) -> list[int]:
    """Return for each place the bytes that the schedule has on the device, less those at the
    start."""
    facts, schedule = plan.trace.facts, plan.schedule
    ledger = Ledger(facts, schedule.limit_nbytes, schedule.tiers)
    found: list[int] = []
    for step in schedule.instructions:
        if isinstance(step, Run):
            found.append(ledger.device_nbytes - facts.start_nbytes)
        ledger.apply(step)
    return found
