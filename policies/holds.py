"""Holds: what must stay obtainable because somebody means to drop and recompute a value.

A dropped value comes back by running its producers again, so what they read must outlive it. This
file works out, for every hold, whether that can be promised at all, how much longer the sources
are needed, and how early.
"""

import heapq
from collections.abc import Iterable

from ..traces import Facts


class Holds:
    """The promises of one walk.

    *last* is, for each storage, the last operation that needs it, by reading it or by recomputing
    something from it; *back* the first that does so after its idle time has begun (-1: none);
    *version* the version at which a held storage can be recomputed.
    """

    def __init__(self, facts: Facts, wanted: Iterable[int]) -> None:
        self._facts = facts
        self.last = [place - 1 for place in facts.death]
        self.back = list(facts.back)
        self.version: dict[int, int] = {}
        # Consumers first: a storage's needs are known when all that is computed from it is done.
        queue = [(-self._last_producer(s), s) for s in wanted if facts.leave[s] >= 0]
        heapq.heapify(queue)
        while queue:
            _, s = heapq.heappop(queue)
            if s not in self.version:
                self._hold(s)

    def _last_producer(self, s: int) -> int:
        return self._facts.chain(s, self._leaving_version(s))[-1]

    def _leaving_version(self, s: int) -> int:
        leave = self._facts.leave[s]
        return sum(1 for op in self._facts.writers[s] if op <= leave) - 1

    def _hold(self, s: int) -> None:
        version = self._leaving_version(s)
        until = min(self.last[s], self._facts.overwriter(s, version))
        found = self._sources(s, version, until)
        if found is None:
            return
        self.version[s] = version
        sources, passing = found
        for source in sources:
            self.last[source] = max(self.last[source], until)
            if self.back[s] >= 0 and self._facts.leave[source] >= 0:
                first = self.back[source]
                self.back[source] = self.back[s] if first < 0 else min(first, self.back[s])
        for source, at in passing.items():
            self.last[source] = max(self.last[source], until)
            self.version[source] = at

    def _sources(self, s: int, version: int, until: int) -> tuple[set[int], dict[int, int]] | None:
        """Return what *s* is recomputed from and the program's own storages on the way.

        None if it cannot be promised that this works up to operation *until*.
        """
        facts = self._facts
        place = facts.absent_from[s]
        sources: set[int] = set()
        passing: dict[int, int] = {}
        todo = [(s, version)]
        while todo:
            target, at_version = todo.pop()
            for op in facts.chain(target, at_version):
                if facts.trace.operations[op].recompute == "opaque" or target in facts.updates[op]:
                    return None
                if not all(
                    sibling == target or self._comes_anew(sibling, place, until)
                    for sibling in facts.fresh[op]
                ):
                    return None
                for source, at in zip(facts.reads[op], facts.versions[op], strict=True):
                    if source == target:
                        continue
                    if facts.overwriter(source, at) < until:
                        return None
                    if facts.managed[source]:
                        if facts.packed[source] > place:
                            return None
                        sources.add(source)
                    elif facts.unreachable(source, place):
                        if facts.packed[source] >= 0 or facts.death[source] > place:
                            return None
                        if source not in passing:  # the program's own, gone by then
                            passing[source] = at
                            todo.append((source, at))
                    elif facts.death[source] <= until:
                        return None
        return sources, passing

    def _comes_anew(self, sibling: int, place: int, until: int) -> bool:
        """Whether a rerun may write *sibling* anew at any place from *place* to *until*."""
        facts = self._facts
        if len(facts.writers[sibling]) > 1:
            return False
        if facts.trace.places == "everywhere":
            return facts.managed[sibling]
        return facts.death[sibling] <= place or (
            facts.managed[sibling]
            and facts.absent_from[sibling] <= place
            and until < facts.absent_until[sibling]
        )
