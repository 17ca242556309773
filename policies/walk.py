"""The walk as parts see it: what is where, who needs it when, and what they may claim."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InvalidInput, PolicyFailed
from ..machines import Machine
from ..schedules import Ledger
from ..traces import Trace
from .draft import Draft
from .forecast import Forecast
from .holds import Holds
from .restores import Pins

if TYPE_CHECKING:
    from .base import Part


class Walk:
    """One walk over *trace* on *machine*, by the numbers of the trace.

    *facts* are the trace's; *done* is the operation that has run last, -1 before the first; *dead*
    lists what nobody needs any more since then. Only the weaver (`policies/weaver.py`) moves them.
    """

    def __init__(self, trace: Trace, machine: Machine, draft: Draft, pins: Pins) -> None:
        self.trace = trace
        self.machine = machine
        self.facts = trace.facts
        self.done = -1
        self.dead: Iterable[int] = ()
        self._draft = draft
        self._pins = pins
        self._owner: dict[int, Part] = {}
        self._wanted: list[int] = []
        self._holds: Holds | None = None

    # -- while parts begin ---------------------------------------------------------------------

    def require_tier(self, tier: str, who: str) -> None:
        """Refuse a tier that the machine does not have. Raises InvalidInput."""
        if self.machine.tier(tier) is None:
            there = ", ".join(self.machine.capacities)
            raise InvalidInput(
                f"{who}: machine {self.machine.name!r} has no tier {tier!r}; it has: {there}"
            )

    def require_tiers(self, tiers: tuple[str, ...], who: str) -> None:
        """Refuse tiers of which the machine lacks one, or none at all. Raises InvalidInput."""
        if not tiers:
            raise InvalidInput(f"{who}: no tier is given; name one or more, tier=host/peer")
        for tier in tiers:
            self.require_tier(tier, who)

    def claim(self, storage: int, part: "Part") -> bool:
        """Ask to see to a managed storage during its idle time; the first who asks gets it."""
        return self.facts.managed[storage] and self._owner.setdefault(storage, part) is part

    def hold(self, storage: int) -> None:
        """Announce a drop: what *storage* is computed from stays obtainable until it dies."""
        self._wanted.append(storage)

    def forecast(self) -> Forecast:
        """Return the clock of this walk; it runs from the moment that somebody asks for it."""
        return self._draft.forecast()

    # -- from their start on -------------------------------------------------------------------

    @property
    def holds(self) -> Holds:
        """The promises of this walk, made when all parts have begun."""
        if self._holds is None:
            raise PolicyFailed(
                "what is alive, held or back is known from start() on, not in begin()"
            )
        return self._holds

    def begun(self) -> None:
        """All parts have begun: make the promises."""
        self._holds = Holds(self.facts, self._wanted)

    @property
    def ledger(self) -> Ledger:
        """What is where, and how many bytes."""
        return self._draft.ledger

    @property
    def back(self) -> list[int]:
        """For each storage the first operation that needs it after its idle time; -1 if none."""
        return self.holds.back

    def resident(self, storage: int) -> bool:
        """Whether a storage is on the device, whole."""
        return self._draft.resident(storage)

    def alive(self, storage: int) -> bool:
        """Whether some operation to come needs a storage."""
        return self.holds.last[storage] > self.done

    def held(self, storage: int) -> bool:
        """Whether the hold of a storage could be promised: it may be dropped in its idle time."""
        return storage in self.holds.version

    def droppable(self, storage: int) -> bool:
        """Whether a storage, as it is now, would come back by recomputation."""
        version = self._draft.absent.get(storage, self.ledger.version[storage])
        return self.holds.version.get(storage, -2) == version

    def stored(self, storage: int) -> bool:
        """Whether some tier holds a storage as it is now on the device."""
        return self._draft.tier_of(storage, self.ledger.version[storage]) != ""

    def tier_of(self, storage: int) -> str:
        """Return a tier that holds an absent storage as it is to come back; "" if none does."""
        return self._draft.tier_of(storage, self._draft.absent.get(storage, -1))

    def tier_for(self, storage: int, tiers: tuple[str, ...]) -> str:
        """Return the first of *tiers* that has room for a storage; the last if none has."""
        ledger, nbytes = self.ledger, self.facts.nbytes[storage]
        for tier in tiers[:-1]:
            if ledger.tier_nbytes[tier] + nbytes <= ledger.capacity[tier]:
                return tier
        return tiers[-1]

    def pinned(self, storage: int) -> bool:
        """Whether the instruction at hand, or an operation that waits, needs a storage here."""
        return self._pins.pinned(storage)

    def may_leave(self, storage: int) -> bool:
        """Whether the device copy of a storage may be given up here, if it can come back."""
        facts, place = self.facts, self.done + 1
        idle = facts.absent_from[storage] <= place < facts.absent_until[storage]
        return (idle or place >= facts.death[storage]) and not self.pinned(storage)

    def free_nbytes(self) -> int:
        """Return how many bytes are free on the device."""
        return self._draft.limit - self.ledger.device_nbytes
