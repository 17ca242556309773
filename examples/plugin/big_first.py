"""A whole policy plugin: when bytes are short, send the largest tensor away.

Stack it on liveness: `superneurons simulate alexnet --machine k40c --policy liveness+big-first`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from superneurons.notation import NBytes
from superneurons.policies import Component, Part, Walk, Wish
from superneurons.schedules import Copy, Free


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class BigFirst(Component):
    """When bytes are short, offload the largest tensor that nobody needs right now.

    It comes back when an operation needs it. *tier* is where tensors go; those below *least*
    bytes stay.
    """

    name: ClassVar[str] = "big-first"

    tier: str = "host"
    least: NBytes = 0

    def begin(self, walk: Walk) -> Part:
        """Return the part for one walk."""
        return _BigFirst(self, walk)


class _BigFirst(Part):
    def __init__(self, policy: BigFirst, walk: Walk) -> None:
        self._policy = policy
        self._walk = walk
        facts = walk.facts
        large = [s for s in range(facts.storage_count) if facts.nbytes[s] >= policy.least]
        self._largest_first = sorted(large, key=lambda s: -facts.nbytes[s])

    def make_room(self, nbytes: int) -> Iterable[Wish]:
        for s in self._largest_first:
            if self._walk.resident(s) and not self._walk.pinned(s):
                yield Copy(s, self._policy.tier)
                yield Free(s)
