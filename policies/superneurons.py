"""The paper's whole stack under one name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from .base import Component, Part
from .cache import Cache
from .liveness import Liveness
from .recompute import Recompute
from .workspace import Workspace

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class SuperNeurons(Component):
    """Liveness, tensor cache and cost-aware recomputation together (paper, Fig. 10c).

    Of an operation's algorithms the fastest that fits is taken. Checkpoints stay on the device
    while they fit, so there are no transfers until bytes are short. Eager offload in place of the
    cache is `liveness+offload+recompute`. On a small network it may need more than liveness alone:
    a value computed again needs its checkpoint beside it, which liveness would have freed.
    """

    name: ClassVar[str] = "superneurons"

    strategy: Literal["speed", "memory", "cost"] = "cost"
    tier: tuple[str, ...] = ("host",)

    @property
    def needs(self) -> frozenset[str]:
        """What its components need."""
        return Recompute().needs

    def begin(self, walk: "Walk") -> tuple[Part, ...]:
        """Return the parts of the three components."""
        components: tuple[Component, ...] = (
            Liveness(),
            Cache(tier=self.tier),
            Recompute(strategy=self.strategy),
            Workspace(),
        )
        parts = (component.begin(walk) for component in components)
        return tuple(part for part in parts if isinstance(part, Part))
