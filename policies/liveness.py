"""Liveness analysis: free what nobody needs any more."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from ..schedules import Free
from .base import Component, Part, Wish

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Liveness(Component):
    """Free each tensor after the last operation that needs it (paper, section 3.2)."""

    name: ClassVar[str] = "liveness"

    def begin(self, walk: "Walk") -> Part:
        """Return the part for one walk."""
        return _Liveness(walk)


class _Liveness(Part):
    def __init__(self, walk: "Walk") -> None:
        self._walk = walk

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        return [Free(s) for s in self._walk.dead]
