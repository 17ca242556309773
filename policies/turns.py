"""Whose turn it is to give way: an ordered set of storages, the front first."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .walk import Walk


class Turns:
    """Storages in the order in which they would leave the device.

    An OrderedDict inside: a plain dict that loses its first entries is quadratic.
    """

    def __init__(self, walk: "Walk") -> None:
        self._walk = walk
        self._order: OrderedDict[int, None] = OrderedDict()

    def last(self, storages: Iterable[int]) -> None:
        """Put storages at the end, where they are or are not in the order yet."""
        for s in storages:
            self._order[s] = None
            self._order.move_to_end(s)

    def leaving(self) -> Iterator[int]:
        """Yield who may leave here, one after another; whoever is still there then keeps its turn.

        Those that are pinned or not theirs to take are passed over and keep their turn as well.
        """
        walk, order = self._walk, self._order
        kept: list[int] = []
        asked = -1
        try:
            while order:
                s, _ = order.popitem(last=False)
                if walk.resident(s):
                    if walk.may_leave(s):
                        asked = s
                        yield s
                        asked = -1
                    if walk.resident(s):
                        kept.append(s)
        finally:  # the weaver stops asking as soon as there is room
            if asked >= 0 and walk.resident(asked):
                kept.append(asked)
            for s in reversed(kept):
                order[s] = None
                order.move_to_end(s, last=False)
