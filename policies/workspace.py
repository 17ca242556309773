"""Workspaces: which algorithm an operation runs by."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from ..schedules import Timing
from .base import Component, Part

if TYPE_CHECKING:
    from .walk import Walk


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Workspace(Component):
    """Run each operation by the fastest algorithm whose workspace fits in what is left.

    Section 3.5 of the paper: tensors come first, so a workspace drives nobody out; at each step the
    free bytes are measured, and of the algorithms that fit the fastest is taken, of two that are
    alike the leaner one. Without this the first algorithm is taken wherever it fits.
    """

    name: ClassVar[str] = "workspace"

    @property
    def needs(self) -> frozenset[str]:
        """Alternatives to choose from."""
        return frozenset({"workspaces"})

    def begin(self, walk: "Walk") -> Part:
        """Return the chooser of one walk."""
        return _Workspace(walk)


class _Workspace(Part):
    def __init__(self, walk: "Walk") -> None:
        self._operations = walk.trace.operations
        self._timing = Timing(walk.trace, walk.machine)
        self._order: dict[int, list[tuple[int, int]]] = {}  # fastest first: (workspace, algorithm)

    def choose(self, op: int, free_nbytes: int) -> int | None:
        if op not in self._order:
            self._order[op] = self._fastest_first(op)
        return next((k for nbytes, k in self._order[op] if nbytes <= free_nbytes), None)

    def _fastest_first(self, op: int) -> list[tuple[int, int]]:
        operation = self._operations[op]
        workspaces = [operation.workspace_nbytes]
        workspaces += [other.workspace_nbytes for other in operation.algorithms]
        return sorted(
            ((nbytes, k) for k, nbytes in enumerate(workspaces)),
            key=lambda way: (self._timing.run_ns(op, way[1]), *way),
        )
