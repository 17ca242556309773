"""A bound on what leaves the device: at most so many bytes, of what idles for longest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import Part

if TYPE_CHECKING:
    from .walk import Walk


def claimed(walk: "Walk", part: Part, storages: Sequence[int], most: int | None) -> list[int]:
    """Claim those of *storages* that nobody else sees to; of these, with a bound, the ones that
    idle for the most operations between forward and backward, as many as have no more than *most*
    bytes together. Return them, in order."""
    facts, mine = walk.facts, set()
    left = sum(facts.nbytes[s] for s in storages) if most is None else most
    for s in sorted(storages, key=lambda s: facts.leave[s] - facts.back[s]):
        if facts.nbytes[s] <= left and walk.claim(s, part):
            left -= facts.nbytes[s]
            mine.add(s)
    return [s for s in storages if s in mine]
