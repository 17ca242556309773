"""The tensor cache: transfers only when bytes are short, least recently used first."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from ..schedules import Copy, Free
from .base import Component, Part, Wish
from .turns import Turns

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Cache(Component):
    """Keep tensors on the device while they fit; evict the least recently used to a tier.

    Of several in *tier* it is the first that has room. The paper's Algorithm 2: what the operation
    at hand needs is locked, eviction goes from the back of the list until there is room. A tensor
    that would come back by recomputation is dropped instead of copied. Eviction waits for its copy;
    a value that is still in the tier leaves at once. When the tier is full, eviction ends.
    """

    name: ClassVar[str] = "cache"

    tier: tuple[str, ...] = ("host",)

    def begin(self, walk: "Walk") -> Part:
        """Return the list of one walk, empty."""
        walk.require_tiers(self.tier, "cache")
        return _Cache(self.tier, walk)


class _Cache(Part):
    def __init__(self, tiers: tuple[str, ...], walk: "Walk") -> None:
        self._tiers = tiers
        self._walk = walk
        self._used = Turns(walk)  # least recently used first
        self._later: dict[int, dict[int, None]] = {}  # by the place from which they may leave

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        facts, managed = self._walk.facts, self._walk.facts.managed
        if op + 1 in self._later:  # the program has let go of these
            self._used.last(self._later.pop(op + 1))
        for s in facts.reads[op] + facts.fresh[op]:
            if managed[s]:
                if facts.absent_from[s] <= op + 1:
                    self._used.last((s,))
                else:
                    self._later.setdefault(facts.absent_from[s], {})[s] = None
        return ()

    def fetched(self, storage: int) -> None:
        self._used.last((storage,))

    def make_room(self, nbytes: int) -> Iterable[Wish]:
        walk = self._walk
        for s in self._used.leaving():
            if walk.alive(s) and not walk.droppable(s) and not walk.stored(s):
                yield Copy(s, walk.tier_for(s, self._tiers))
            yield Free(s)
            if walk.resident(s):  # the tier is full: to try all others each time is quadratic
                return
