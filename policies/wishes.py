"""Wishes granted: what parts would like, placed, kept for later, skipped if moot, or refused."""

from typing import Never

from ..errors import PolicyFailed
from ..schedules import Copy, Discard, Fetch, Free, Rerun
from .base import Wish
from .draft import Draft
from .restores import Restores
from .walk import Walk


class Wishes:
    """Grants wishes into a draft.

    *deferred* are those that wait for the next place. While *making_room* is set, nothing comes
    back at a part's wish.
    """

    def __init__(self, walk: Walk, draft: Draft, restores: Restores) -> None:
        self.deferred: list[Wish] = []
        self.making_room = False
        self._walk = walk
        self._draft = draft
        self._restores = restores
        self._facts = walk.facts

    def grant(self, wish: Wish) -> None:
        """Place a wish, or skip it if it is moot or would do harm; between places it waits."""
        if type(wish) is Free:
            if type(wish.storage) is not int or not 0 <= wish.storage < self._facts.storage_count:
                self._refuse(wish)
            self._free(wish)
        elif not self._makes_sense(wish):
            self._refuse(wish)
        elif not self._facts.is_place[self._walk.done + 1]:
            self.deferred.append(wish)
        elif type(wish) is Copy:
            self._copy(wish)
        elif type(wish) is Fetch:
            self._fetch(wish)
        elif type(wish) is Discard:
            self._discard(wish)
        elif type(wish) is Rerun:
            self._rerun(wish.op)

    def _makes_sense(self, wish: object) -> bool:
        """Whether a wish is an instruction about something that exists."""
        if isinstance(wish, Copy | Fetch | Discard):
            number, count = wish.storage, self._facts.storage_count
            if wish.tier not in self._draft.ledger.copies:
                return False
        elif isinstance(wish, Rerun):
            number, count = wish.op, self._facts.op_count
        else:
            return False
        return type(number) is int and 0 <= number < count

    def _refuse(self, wish: object) -> Never:
        facts, tiers = self._facts, ", ".join(self._draft.ledger.copies) or "none"
        raise PolicyFailed(
            f"a part wished for {wish!r}; a wish is a Free, Copy, Fetch, Discard or Rerun; "
            f"storages are numbers below {facts.storage_count}, operations below "
            f"{facts.op_count}, tiers are: {tiers}"
        )

    def _free(self, wish: Free) -> None:
        s, facts, place = wish.storage, self._facts, self._walk.done + 1
        version = self._draft.ledger.version[s]
        if version < 0 or s in self._draft.absent:  # not here, or half computed again
            return
        if self._walk.holds.last[s] <= self._walk.done:
            if not facts.managed[s] and place < facts.death[s]:  # the program's own
                return
            if not facts.is_place[place] and place != facts.death[s]:
                self.deferred.append(wish)
                return
        elif not facts.is_place[place]:
            self.deferred.append(wish)
            return
        elif not self._walk.may_leave(s) or not (
            self._walk.droppable(s) or self._draft.tier_of(s, version)
        ):
            return
        else:
            self._draft.absent[s] = version
        self._draft.free(wish)

    def _copy(self, wish: Copy) -> None:
        s, tier = wish.storage, wish.tier
        facts, ledger = self._facts, self._draft.ledger
        if (
            facts.managed[s]
            and self._draft.resident(s)
            and self._walk.alive(s)
            and facts.packed[s] <= self._walk.done + 1
            and ledger.copies[tier][s] != ledger.version[s]
        ):
            if ledger.tier_nbytes[tier] + facts.nbytes[s] <= ledger.capacity[tier]:
                self._draft.copy(wish)
            else:
                ledger.full.add(tier)

    def _fetch(self, wish: Fetch) -> None:
        s, ahead = wish.storage, self._walk.done + 1
        version = self._draft.absent.get(s, -1)
        if (
            version < 0
            or self.making_room
            or ahead == self._facts.op_count
            or self._draft.ledger.version[s] >= 0  # half computed again
            or self._draft.ledger.copies[wish.tier][s] != version
        ):
            return
        surge = self._facts.fresh_nbytes[ahead] + self._facts.least_inside_nbytes[ahead]
        if self._facts.nbytes[s] + surge <= self._walk.free_nbytes():  # it drives nobody out
            self._draft.fetch(wish)

    def _discard(self, wish: Discard) -> None:
        s, tier = wish.storage, wish.tier
        tiers = self._draft.tiers_of(s)
        if tier not in tiers:
            return
        wanted = self._draft.absent.get(s, -1)
        last = all(self._draft.ledger.copies[t][s] != wanted for t in tiers if t != tier)
        if self._draft.ledger.copies[tier][s] != wanted or not last:
            self._draft.discard(wish)

    def _rerun(self, op: int) -> None:
        if self.making_room or self._restores.busy:
            return
        absent, managed = self._draft.absent, self._facts.managed
        wanted = tuple(  # the program's own are computed again only on the way to others
            s
            for s in self._facts.fresh[op]
            if s in absent and managed[s] and self._walk.droppable(s)
        )
        if wanted and self._facts.fresh_nbytes[op] <= self._walk.free_nbytes():
            self._restores.bring(wanted, self._walk.done + 1)
