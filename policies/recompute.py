"""Recomputation: drop what is cheap to compute again."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from ..notation import NBytes
from ..schedules import Free
from .base import Component, Part, Wish
from .bound import claimed
from .kinds import CHECKPOINT_KINDS, checkpoints
from .turns import Turns

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Recompute(Component):
    """Drop what lies between checkpoints after its last forward use; recompute it in backward.

    A segment is the run of values computed from one checkpoint (paper, section 3.4). *strategy*
    says what is kept when backward first asks for something of a segment:

    speed   everything: each value is computed again once
    memory  only what the waiting operation needs: the segment is computed again for each
    cost    speed where the segment, with the largest gradient that its backward makes, is no
            larger than what the most demanding single operation needs; memory elsewhere

    *rule* is how cost counts: as above (paper), or as the released code does, which adds up what
    each forward operation of the segment reads and writes, and counts a gradient that is written
    in place twice in what a backward one needs. In the paper's networks both choose alike.

    The outputs of operations of one of *kinds* are checkpoints and are never dropped here, nor is
    what is smaller than *least*: each value that runs again costs the host a launch, so where that
    is what a step waits for, a few large values are worth more than many small ones. *most* bounds
    the bytes that are dropped: those that idle for the most operations go, which forward makes
    first, so that an executor need not look on at the rest of it.
    """

    name: ClassVar[str] = "recompute"

    strategy: Literal["speed", "memory", "cost"] = "cost"
    rule: Literal["paper", "release"] = "paper"
    kinds: tuple[str, ...] = CHECKPOINT_KINDS
    least: NBytes = 0
    most: NBytes | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Recomputation follows forward and backward."""
        return frozenset({"phases"})

    def begin(self, walk: "Walk") -> Part:
        """Claim and hold what is no checkpoint; its sources then stay obtainable."""
        return _Recompute(self, walk)


class _Recompute(Part):
    def __init__(self, policy: Recompute, walk: "Walk") -> None:
        self._policy = policy
        self._walk = walk
        facts = walk.facts
        marked = checkpoints(facts, policy.kinds)
        cheap = [
            s
            for s, leave in enumerate(facts.leave)
            if leave >= 0
            and not marked[s]
            and facts.nbytes[s] >= policy.least
            and facts.back[s] != leave + 1
        ]
        self._mine = claimed(walk, self, cheap, policy.most)
        for s in self._mine:
            walk.hold(s)
        self._drops: dict[int, list[int]] = {}
        self._fleeting: set[int] = set()  # of memory-centric segments
        self._returned = Turns(walk)  # computed again, oldest first

    def start(self) -> None:
        walk = self._walk
        mine = [s for s in self._mine if walk.held(s)]
        for s in mine:
            leave = walk.facts.leave[s]
            if walk.back[s] > leave + 1:
                self._drops.setdefault(leave, []).append(s)
        if self._policy.strategy == "memory":
            self._fleeting = set(mine)
        elif self._policy.strategy == "cost":
            by_paper = self._policy.rule == "paper"
            choose = self._too_large if by_paper else self._too_large_for_release
            self._fleeting = choose(mine)

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        if waiting is None:
            return [Free(s) for s in self._drops.get(op, ())]
        facts, wanted = self._walk.facts, self._walk.facts.needs[waiting]
        self._returned.last(facts.fresh[op])
        if not self._fleeting:
            return ()
        return [
            Free(s)
            for s in facts.reads[op] + facts.fresh[op]
            if s in self._fleeting and s not in wanted
        ]

    def make_room(self, nbytes: int) -> Iterable[Wish]:
        walk = self._walk
        for s in self._returned.leaving():
            if walk.droppable(s):
                yield Free(s)

    def _too_large(self, mine: list[int]) -> set[int]:
        """Return the values of the segments that the cost-aware rule recomputes each time."""
        facts = self._walk.facts
        segment = self._segments(mine)
        nbytes: dict[int, int] = {}
        for s, number in segment.items():
            nbytes[number] = nbytes.get(number, 0) + facts.nbytes[s]
        gradient = dict.fromkeys(nbytes, 0)
        for op, operation in enumerate(facts.trace.operations):
            if operation.phase != "forward":
                for s in facts.reads[op]:
                    if s in segment:
                        number = segment[s]
                        gradient[number] = max(gradient[number], facts.fresh_scheduled_nbytes[op])
        peak = facts.scheduled_floor_nbytes
        return {s for s, number in segment.items() if nbytes[number] + gradient[number] > peak}

    def _too_large_for_release(self, mine: list[int]) -> set[int]:
        """Return the same by the released code's sums of dependency lists."""
        facts = self._walk.facts
        segment = self._segments(mine)
        cost, peak = dict.fromkeys(segment.values(), 0), 0
        for op, operation in enumerate(facts.trace.operations):
            data = [s for s in facts.needs[op] + facts.fresh[op] if facts.scheduled[s]]
            nbytes = sum(facts.nbytes[s] for s in data)
            if operation.phase == "forward":
                for number in {segment[s] for s in facts.fresh[op] if s in segment}:
                    cost[number] += nbytes
            else:  # a gradient that is written in place stands in the list twice
                again = sum(facts.nbytes[s] for s in facts.overwrites[op] if facts.scheduled[s])
                peak = max(peak, nbytes + again)
        return {s for s, number in segment.items() if cost[number] > peak}

    def _segments(self, mine: list[int]) -> dict[int, int]:
        """Number the segments: a value is in the segment of the first dropped value it reads."""
        facts = self._walk.facts
        segment: dict[int, int] = {}
        droppable = set(mine)
        for s in sorted(mine, key=lambda s: facts.writers[s][0]):
            sources = (r for op in facts.chain(s, 0) for r in facts.reads[op])
            number = next((segment[r] for r in sources if r in droppable and r in segment), s)
            segment[s] = number
        return segment
