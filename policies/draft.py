"""The draft of a schedule: instructions as they are placed, and what they do to the bytes.

The draft keeps ledger, forecast and the list of what is absent in step with the instructions. It
decides nothing.
"""

from collections.abc import Callable
from functools import cached_property

from ..machines import Machine
from ..schedules import (
    Copy,
    Discard,
    Fetch,
    Free,
    Instruction,
    Ledger,
    Rerun,
    Run,
    Timing,
)
from ..traces import Trace
from .forecast import Forecast


class Draft:
    """Instructions over *trace* so far, in *limit* bytes.

    *absent* are the storages that are alive but not on the device, or not whole, each with the
    version to bring back; *in_tiers* those with a copy in some tier.
    """

    def __init__(self, trace: Trace, machine: Machine, limit: int) -> None:
        self.facts = trace.facts
        self.limit = limit
        self.ledger = Ledger(trace.facts, limit, machine.capacities)
        self.instructions: list[Instruction] = []
        self.absent: dict[int, int] = {}
        self.in_tiers: set[int] = set()
        self.fetched: list[Callable[[int], None]] = []  # whoever wants to know of a fetch
        self._trace = trace
        self._machine = machine
        self._forecast: Forecast | None = None

    @cached_property
    def timing(self) -> Timing:
        """What operations and copies take."""
        return Timing(self._trace, self._machine)

    def forecast(self) -> Forecast:
        """Return the clock of this draft; it runs from the moment that somebody asks for it."""
        if self._forecast is None:
            self._forecast = Forecast(self.facts, self.timing)
        return self._forecast

    def resident(self, s: int) -> bool:
        """Whether a storage is on the device, whole."""
        return self.ledger.version[s] >= 0 and s not in self.absent

    def tier_of(self, s: int, version: int) -> str:
        """Return a tier that holds *version* of a storage; "" if none does."""
        if s in self.in_tiers:
            for tier, copies in self.ledger.copies.items():
                if copies[s] == version:
                    return tier
        return ""

    def tiers_of(self, s: int) -> list[str]:
        """Return the tiers that hold any version of a storage."""
        if s not in self.in_tiers:
            return []
        return [tier for tier, copies in self.ledger.copies.items() if copies[s] >= 0]

    def run(self, op: int, algorithm: int) -> None:
        """Place a Run."""
        self.instructions.append(Run(op, algorithm))
        self.ledger.run(op, algorithm)
        if self._forecast is not None:
            self._forecast.run(op, algorithm)

    def rerun(self, op: int, algorithm: int) -> None:
        """Place a Rerun."""
        self.instructions.append(Rerun(op, algorithm))
        self.ledger.rerun(op, algorithm)
        if self._forecast is not None:
            self._forecast.rerun(op, algorithm)

    def free(self, free: Free) -> None:
        """Place a Free."""
        self.instructions.append(free)
        self.ledger.free(free.storage)
        if self._forecast is not None:
            self._forecast.free(free.storage)

    def copy(self, copy: Copy) -> None:
        """Place a Copy."""
        self.instructions.append(copy)
        self.ledger.copy(copy.storage, copy.tier)
        self.in_tiers.add(copy.storage)
        if self._forecast is not None:
            self._forecast.copy(copy.storage, copy.tier)

    def fetch(self, fetch: Fetch) -> None:
        """Place a Fetch: what it brings is absent no more."""
        self.instructions.append(fetch)
        self.ledger.fetch(fetch.storage, fetch.tier)
        del self.absent[fetch.storage]
        if self._forecast is not None:
            self._forecast.fetch(fetch.storage, fetch.tier)
        for tell in self.fetched:
            tell(fetch.storage)

    def discard(self, discard: Discard) -> None:
        """Place a Discard."""
        s = discard.storage
        self.instructions.append(discard)
        self.ledger.discard(s, discard.tier)
        if self._forecast is not None:
            self._forecast.discard(s)
        if not self.tiers_of(s):
            self.in_tiers.discard(s)
