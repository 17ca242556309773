"""Offload and prefetch: the unified tensor pool."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from ..errors import InvalidInput
from ..notation import NBytes
from ..schedules import Copy, Fetch, Free
from ..traces import Facts
from .base import Component, Part, Wish
from .bound import claimed
from .kinds import CHECKPOINT_KINDS, checkpoints
from .turns import Turns

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Offload(Component):
    """Copy checkpoints to a tier after their last forward use; fetch them back ahead of backward.

    A checkpoint is the output of an operation of one of *kinds* (paper, section 3.3). It comes back
    *lookahead* operations before the first that needs it; the paper's Fig. 10b is exactly 3. Of
    several tiers (`tier=host/peer`) the first that has room is taken. *most* bounds the bytes that
    leave: those that idle for the most operations go, so that the way back is long enough to be
    hidden; what is smaller than *least* stays. When the device copy goes is *release*:

    immediate  right after the last forward use, as in Fig. 10b: the compute lane waits for the copy
    a number   that many operations later
    arrival    at the first place where the copy has ended by the walk's forecast, with at most
               *in_flight* bytes on their way (none: as many as fit); sooner when bytes are short
    pressure   only when bytes are short
    """

    name: ClassVar[str] = "offload"

    kinds: tuple[str, ...] = CHECKPOINT_KINDS
    lookahead: int = 3
    tier: tuple[str, ...] = ("host",)
    release: str = "arrival"
    in_flight: NBytes | None = None
    most: NBytes | None = None
    least: NBytes = 0

    def __post_init__(self) -> None:
        if self.lookahead < 0:
            raise InvalidInput(
                f"offload: a lookahead of {self.lookahead} is negative; 0 is on demand"
            )
        if (
            self.release not in ("immediate", "arrival", "pressure")
            and not self.release.isdecimal()
        ):
            raise InvalidInput(
                f"offload: release is {self.release!r}; "
                "it is immediate, arrival, pressure or a number"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Offload follows forward and backward; releasing on arrival follows time, too."""
        return frozenset({"phases", "times"} if self.release == "arrival" else {"phases"})

    def begin(self, walk: "Walk") -> Part:
        """Claim the checkpoints that are needed again after forward."""
        walk.require_tiers(self.tier, "offload")
        return _Offload(self, walk)


class _Offload(Part):
    """What of the claimed checkpoints is on its way out, and what is due back."""

    def __init__(self, policy: Offload, walk: "Walk") -> None:
        self._policy = policy
        self._walk = walk
        self._mine = claimed(walk, self, _wanted(policy, walk.facts), policy.most)
        self._leaving: dict[int, list[int]] = {}
        self._coming: dict[int, list[int]] = {}
        self._outgoing: deque[tuple[int, int]] = deque()  # (its last forward use, storage)
        self._outgoing_nbytes = 0
        self._due: deque[int] = deque()
        self._sent: set[int] = set()
        self._returned = Turns(walk)  # on the device, with a copy still in the tier
        self._forecast = walk.forecast() if policy.release == "arrival" else None
        self._delay = _delay(policy.release)  # in operations; None: not by counting them

    def start(self) -> None:
        walk = self._walk
        for s in self._mine:
            leave, back = walk.facts.leave[s], walk.back[s]
            fetch = back - self._policy.lookahead
            if fetch > leave + 1:  # else it would be due back before it has left
                self._leaving.setdefault(leave, []).append(s)
                self._coming.setdefault(fetch, []).append(s)

    def before(self, op: int) -> Iterable[Wish]:
        if op in self._coming:
            self._due.extend(self._coming.pop(op))
        while self._due:
            s = self._due[0]
            yield Fetch(s, self._walk.tier_of(s) or self._policy.tier[0])
            if self._walk.alive(s) and not self._walk.resident(s):
                return  # no room yet: those behind it wait as well
            self._due.popleft()

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        if waiting is not None:
            return
        for s in self._leaving.get(op, ()):
            yield Copy(s, self._walk.tier_for(s, self._policy.tier))
            self._sent.add(s)
            self._outgoing.append((op, s))
            self._outgoing_nbytes += self._walk.facts.nbytes[s]
        bound = self._policy.in_flight
        while self._outgoing and (
            self._may_go(*self._outgoing[0])
            or (bound is not None and self._outgoing_nbytes > bound)
        ):
            yield from self._let_go()

    def fetched(self, storage: int) -> None:
        if storage in self._sent:
            self._returned.last((storage,))

    def make_room(self, nbytes: int) -> Iterable[Wish]:
        while self._outgoing:
            yield from self._let_go()
        for s in self._returned.leaving():
            yield Free(s)

    def _may_go(self, left: int, s: int) -> bool:
        """Whether a device copy that nobody in forward has needed since operation *left* may go."""
        if self._forecast is None:
            return self._delay is not None and self._walk.done >= left + self._delay
        if s in self._forecast.copied_ns:
            return self._forecast.copied_ns[s] <= self._forecast.now_ns
        # Its copy waits for the next place, or was refused at one: it shall not hold up others.
        return any(self._walk.facts.is_place[left + 1 : self._walk.done + 1])

    def _let_go(self) -> Iterable[Wish]:
        """Free the oldest on its way out, unless it is needed again so soon that it may stay."""
        _, s = self._outgoing.popleft()
        self._outgoing_nbytes -= self._walk.facts.nbytes[s]
        if self._walk.back[s] - self._policy.lookahead > self._walk.done + 1:
            yield Free(s)
        if self._walk.resident(s):
            self._returned.last((s,))


def _wanted(policy: Offload, facts: Facts) -> list[int]:
    """Return the checkpoints that are to leave; the others are somebody else's to drop."""
    marked = checkpoints(facts, policy.kinds)
    return [
        s
        for s, leave in enumerate(facts.leave)
        if leave >= 0 and marked[s] and facts.nbytes[s] >= policy.least
    ]


def _delay(release: str) -> int | None:
    if release == "immediate":
        return 0
    return int(release) if release.isdecimal() else None
