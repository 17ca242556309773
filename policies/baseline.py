"""Baseline: nothing is freed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from .base import Component, Part

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Baseline(Component):
    """Every tensor has its own memory; nothing is freed until the step ends (paper, section 2)."""

    name: ClassVar[str] = "baseline"

    def begin(self, walk: "Walk") -> Part:
        """Return a part that wishes for nothing; the weaver frees everything at the end."""
        return Part()
