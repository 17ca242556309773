"""A bound on what leaves the device: at most so many bytes, of what idles for longest."""

from collections.abc import Sequence

from ..traces import Facts


def longest_idle(facts: Facts, storages: Sequence[int], most: int | None) -> list[int]:
    """Return those of *storages* that idle for the most operations between forward and backward, as
    many as have no more than *most* bytes together; all of them without a bound."""
    if most is None:
        return list(storages)
    left, chosen = most, set()
    for s in sorted(storages, key=lambda s: facts.leave[s] - facts.back[s]):
        if facts.nbytes[s] <= left:
            left -= facts.nbytes[s]
            chosen.add(s)
    return [s for s in storages if s in chosen]
