"""Replaying a device's log: does the caching allocator's model do what the real one did?

Each allocation and free of a memory snapshot is put to `CachingAllocator`. What that asks of the
device must be what the log has next: segments of the same size at that point, the same ones given
back in the same order. Where it puts each block must be where the device put it. The first
difference ends the replay. The addresses of new segments are the log's: only a driver decides them.
"""

from collections import deque
from typing import Final

from msgspec import Struct

from ..errors import InvalidInput
from ..notation import format_bytes
from ..traces.readers.snapshot_log import Event, Segment, Snapshot
from .caching import CachingAllocator
from .rewind import is_expandable, state_before

_TAKES: Final = ("segment_alloc", "segment_map")
_GIVES: Final = ("segment_free", "segment_unmap")


class Replay(Struct, frozen=True, kw_only=True):
    """How far the model did what the log says: all the way, unless there is a *difference* at the
    event of that *position* (the number of events: in the state after them).

    The peaks are the model's, since before the first event; *releases* says how often memory was
    given back, *failures* how many requests failed on the device.
    """

    events: int
    allocations: int
    releases: int
    failures: int
    allocated_peak_nbytes: int
    reserved_peak_nbytes: int
    position: int | None = None
    difference: str | None = None


def replay(snapshot: Snapshot) -> Replay:
    """Put the events of a snapshot to the model and compare.

    Raises InvalidInput for a log with holes, or of an allocator that the model does not know: with
    other settings, several streams, or pools of its own (CUDA graphs).
    """
    _prove_known(snapshot)
    run = _Run(snapshot)
    difference = None
    try:
        run.go()
    except _DifferenceError as error:
        difference = str(error)
    return Replay(
        events=len(snapshot.events),
        allocations=run.allocations,
        releases=run.releases,
        failures=run.failures,
        allocated_peak_nbytes=run.model.allocated_peak_nbytes,
        reserved_peak_nbytes=run.model.reserved_peak_nbytes,
        position=None if difference is None else run.position,
        difference=difference,
    )


def _prove_known(snapshot: Snapshot) -> None:
    settings = snapshot.settings
    conf = str(settings.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    divisions = settings.get("roundup_power2_divisions") or {}
    changed = {
        "max_split_size_mb": settings.get("max_split_size", -1) != -1,
        "garbage_collection_threshold": bool(settings.get("garbage_collection_threshold")),
        "roundup_power2_divisions": any(divisions.values()),
        "large_segment_size_mb": "large_segment_size_mb" in conf,
        "backend": "cudaMallocAsync" in conf,
    }
    if any(changed.values()):
        which = ", ".join(name for name, is_so in changed.items() if is_so)
        raise InvalidInput(
            f"{snapshot.path}: was recorded with {which}; the model knows the default settings, "
            "with and without expandable_segments"
        )
    events = [each for each in snapshot.events if each.action not in ("snapshot", "user_defined")]
    both: list[Event | Segment] = [*events, *snapshot.segments]
    streams = sorted({each.stream for each in both})
    if len(streams) > 1:
        listed = ", ".join(map(str, streams))
        raise InvalidInput(f"{snapshot.path}: has the streams {listed}; the model knows one")
    if any(each.pool != (0, 0) for each in both):
        raise InvalidInput(f"{snapshot.path}: has private pools, which the model does not know")
    if any(each.nbytes <= 0 for each in both):
        raise InvalidInput(
            f"{snapshot.path}: has events or segments of no bytes, as torch has none"
        )


class _DifferenceError(Exception):
    """What the model does and the log does not, or the other way round."""


class _Log:
    """The log as the driver below the model: gives it what comes next, if that is what it asks."""

    def __init__(self) -> None:
        self.pending: deque[Event] = deque()
        self._refused = False

    def segment(self, nbytes: int) -> int:
        """Return the address of the log's next segment."""
        return self._next("segment_alloc", nbytes).address

    def range(self, nbytes: int) -> int:
        """Return where the log maps next: a new range is mapped from its start."""
        if self.pending:
            return self.pending[0].address
        raise _DifferenceError("the model opens a new range of addresses, the log does nothing")

    def map(self, address: int, nbytes: int) -> bool:
        """Take the log's next mapping; false, once, if the log gives memory back before it.

        A request may map several parts, and run out of memory after the first.
        """
        if self.gives_back and not self._refused:
            self._refused = True
            return False
        self._next("segment_map", nbytes, address)
        return True

    def release(self, address: int, nbytes: int) -> None:
        """Take what the log gives back next."""
        self._refused = False
        unmaps = self.pending and self.pending[0].action == "segment_unmap"
        self._next("segment_unmap" if unmaps else "segment_free", nbytes, address)

    @property
    def gives_back(self) -> bool:
        """Whether the log's next event gives memory back."""
        return bool(self.pending) and self.pending[0].action in _GIVES

    def _next(self, action: str, nbytes: int, address: int | None = None) -> Event:
        model = f"a {action} of {format_bytes(nbytes)}"
        if address is not None:
            model += f" at {address:#x}"
        if not self.pending:
            raise _DifferenceError(f"the model does {model}, the log nothing")
        event = self.pending.popleft()
        there = address in (None, event.address)
        if (event.action, event.nbytes) != (action, nbytes) or not there:
            raise _DifferenceError(f"the model does {model}, the log a {_told(event)}")
        return event


def _told(event: Event) -> str:
    return f"{event.action} of {format_bytes(event.nbytes)} at {event.address:#x}"


class _Run:
    """The model beside the log. A block's number is its address in the log."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._log = _Log()
        self.position = 0
        self.allocations = 0
        self.releases = 0
        self.failures = 0
        self.model = CachingAllocator(expandable=is_expandable(snapshot), addresses=self._log)
        for small, pieces in state_before(snapshot):
            self.model.adopt(pieces, small)
        self._reserved = self.model.reserved_nbytes

    def go(self) -> None:
        """Go through the log. Raises _DifferenceError."""
        for position, event in enumerate(self._snapshot.events):
            self.position, action = position, event.action
            if action in _TAKES or action in _GIVES:
                self._reserved += event.nbytes if action in _TAKES else -event.nbytes
                self._log.pending.append(event)
            elif action == "alloc":
                # Whether a request failed first or the program emptied the cache: what is left is
                # the same.
                self._release()
                self.model.allocate(event.address, event.nbytes)
                self.allocations += 1
                self._compare_place(event)
                self._compare_reserved()
            elif action == "free_completed":
                self._release()
                self.model.free(event.address, event.nbytes)
                self._compare_reserved()
            elif action == "oom":
                self._release()
                self.failures += 1
                self._compare_reserved()
        self.position = len(self._snapshot.events)
        self._release()
        self._compare_reserved()
        self._compare_state()

    def _release(self) -> None:
        if self._log.gives_back:
            self.releases += 1
            self.model.release_cached()
        if self._log.gives_back:
            raise _DifferenceError(
                f"the log does a {_told(self._log.pending[0])}, the model gives nothing back there"
            )

    def _compare_place(self, event: Event) -> None:
        place = self.model.address(event.address)
        if place != event.address:
            raise _DifferenceError(
                f"the model puts {format_bytes(event.nbytes)} at {place:#x}, the log at "
                f"{event.address:#x}"
            )

    def _compare_reserved(self) -> None:
        if self._log.pending:
            raise _DifferenceError(
                f"the log does a {_told(self._log.pending[0])}, the model does not"
            )
        if self.model.reserved_nbytes != self._reserved:
            raise _DifferenceError(
                f"the model has {self.model.reserved_nbytes} bytes reserved, the log "
                f"{self._reserved}"
            )

    def _compare_state(self) -> None:
        """Compare all blocks, with their sizes, with those of the snapshot."""
        model = [
            (piece.address, piece.nbytes, piece.block is not None)
            for piece in self.model.pieces()
            if piece.mapped
        ]
        device = [
            (block.address, block.nbytes, block.used)
            for segment in sorted(self._snapshot.segments, key=lambda each: each.address)
            for block in segment.blocks
        ]
        for ours, theirs in zip(model, device, strict=False):
            if ours != theirs:
                raise _DifferenceError(
                    f"the model ends with {_block(ours)}, the log {_block(theirs)}"
                )
        if len(model) != len(device):
            raise _DifferenceError(
                f"the model ends with {len(model)} blocks, the log with {len(device)}"
            )


def _block(block: tuple[int, int, bool]) -> str:
    address, nbytes, used = block
    return f"a {'used' if used else 'free'} block of {nbytes} bytes at {address:#x}"
