"""The instructions that a schedule is made of: an assembly language for one training step.

They name operations and storages by their number in the trace; files and messages use names.
What each does to memory and to time is `docs/design.md`, section 2. They are plain structs
without garbage-collector tracking: a schedule has hundreds of thousands.
"""

from typing import final

from msgspec import Struct


@final
class Run(Struct, frozen=True, gc=False):
    """The operation itself, by the given algorithm: its outputs appear."""

    op: int
    algorithm: int = 0


@final
class Rerun(Struct, frozen=True, gc=False):
    """Compute an operation again, by the given algorithm: all its outputs appear anew, so none may
    be there."""

    op: int
    algorithm: int = 0


@final
class Copy(Struct, frozen=True, gc=False):
    """Start a copy of the present version to a tier: tier space is taken."""

    storage: int
    tier: str = "host"


@final
class Free(Struct, frozen=True, gc=False):
    """Give up the device copy; the compute lane waits for a copy or fetch in flight."""

    storage: int


@final
class Fetch(Struct, frozen=True, gc=False):
    """Allocate on the device and start copying back; the first operation that needs it waits."""

    storage: int
    tier: str = "host"


@final
class Discard(Struct, frozen=True, gc=False):
    """Give up a tier's copy; the compute lane waits for a fetch in flight from it."""

    storage: int
    tier: str = "host"


Instruction = Run | Rerun | Copy | Free | Fetch | Discard
