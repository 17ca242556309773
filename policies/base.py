"""What a policy is.

The protocol is one method: `schedule(trace, machine, budget)`. A planner implements it directly.
Most policies think step by step: they are *components*, frozen dataclasses whose fields are their
parameters, and `begin(walk)` returns the *part* that holds the state of one walk over a trace. A
part answers questions with wishes, instructions that it would like at this point; the weaver alone
places them, completes them, skips moot ones and refuses harmful ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from ..machines import Machine
from ..schedules import Copy, Discard, Fetch, Free, Rerun, Schedule
from ..traces import Trace

if TYPE_CHECKING:
    from .walk import Walk

Wish = Copy | Discard | Fetch | Free | Rerun


@runtime_checkable
class Policy(Protocol):
    """Anything that turns a trace into a schedule.

    A policy may also say what it *needs* of a trace, a set of the facts that `Trace.has` lists; its
    `repr` is its label in tables and plots, its docstring its manual.
    """

    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
        """Return a schedule of *trace* for *machine* in *budget* bytes (None: all its memory)."""
        ...


class Part:
    """The state of one component during one walk. Override only the hooks that you need.

    Operations and storages are given as numbers: `walk.facts` says what they are.
    """

    def start(self) -> None:
        """All parts have begun and made their claims; `walk.back` is known from now on."""

    def before(self, op: int) -> Iterable[Wish]:
        """Wishes before an operation of the step: prefetches, above all."""
        return ()

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        """Wishes after an operation; *waiting* is None after a run and, after a rerun, the
        operation of the step that it was rerun for."""
        return ()

    def fetched(self, storage: int) -> None:
        """A storage has been fetched back to the device."""

    def make_room(self, nbytes: int) -> Iterable[Wish]:
        """Wishes that give up *nbytes* on the device; it stops asking when there is room."""
        return ()

    def choose(self, op: int, free_nbytes: int) -> int | None:
        """Return which of the operation's algorithms to run in *free_nbytes*; None: no opinion."""
        return None


class Component(ABC):
    """A policy that thinks step by step, alone or as one part of a stack.

    Subclasses are frozen dataclasses, final, with a *name* as on the command line.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """What it asks of a trace: some of the facts that `Trace.has` lists."""
        return frozenset()

    @abstractmethod
    def begin(self, walk: "Walk") -> Part | tuple[Part, ...]:
        """Return the part for one walk; make claims and holds here."""

    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
        """Return the schedule of this component alone: see `Policy.schedule`."""
        from .stack import Stack

        return Stack((self,)).schedule(trace, machine, budget)

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={_written(getattr(self, field.name))}"
            for field in fields(self)  # type: ignore[arg-type]
            if field.default is MISSING or getattr(self, field.name) != field.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")


def _written(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
