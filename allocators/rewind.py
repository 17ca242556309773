"""The state of a caching allocator before a log, worked out from the state after it.

Every event is undone, last first. Free blocks side by side are always one, so which bytes are in
use tells all there is to know, but for one thing: a block that is freed in the log without having
been allocated in it is only known by the bytes that were asked for. What was left of the free block
it came from may be its own, up to 1 MiB of it in the large pool. A free block there is larger than
that, so a smaller gap behind such a block belongs to it; of a larger one none is taken to. And an
expandable segment is taken to begin where it is mapped first: what had been unmapped below is not
known.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from ..errors import InvalidInput
from ..traces.readers.snapshot_log import Snapshot
from .caching import Piece
from .segments import GRAIN_NBYTES, LARGE_SEGMENT_NBYTES, SMALL_NBYTES, SMALL_SEGMENT_NBYTES

_PAGE_NBYTES: Final = SMALL_SEGMENT_NBYTES
_RANGE_NBYTES: Final = 1 << 46  # what an expandable segment may grow to: the log does not say


class _Span(NamedTuple):
    """Reserved memory without gaps: a segment, or mapped pages of an expandable one."""

    address: int
    nbytes: int
    small: bool


class _Used(NamedTuple):
    """A block in use; its size is *sure* unless only the bytes asked for are known."""

    address: int
    nbytes: int
    sure: bool


def is_expandable(snapshot: Snapshot) -> bool:
    """Whether the log is of an allocator with expandable segments. Raises InvalidInput for both."""
    actions = {event.action for event in snapshot.events}
    kinds = {segment.expandable for segment in snapshot.segments}
    mapped = True in kinds or not actions.isdisjoint(("segment_map", "segment_unmap"))
    plain = False in kinds or not actions.isdisjoint(("segment_alloc", "segment_free"))
    if mapped and plain:
        raise InvalidInput(
            f"{snapshot.path}: has plain and expandable segments; the model knows either, not both"
        )
    return mapped


def state_before(snapshot: Snapshot) -> Iterator[tuple[bool, list[Piece]]]:
    """Yield the segments that were there before the first event: pool (small?) and pieces.

    A block in use is numbered by its address. Raises InvalidInput where log and state disagree.
    """
    used = _used_before(snapshot)
    if not is_expandable(snapshot):
        for span in _segments_before(snapshot):
            yield span.small, _pieces(snapshot, span, used, slack=not span.small)
    else:
        yield from ranges(
            (span.small, _pieces(snapshot, span, used, slack=False))
            for span in _pages_before(snapshot)
        )
    if used:
        raise InvalidInput(
            f"{snapshot.path}: the block at {used[0].address:#x} was in use before the first "
            "event, but no segment was there: events are missing"
        )


def ranges(stretches: Iterable[tuple[bool, list[Piece]]]) -> Iterator[tuple[bool, list[Piece]]]:
    """Yield the range of each pool (small?) with what is mapped of it, given by address, and
    unmapped addresses between and after that."""
    found: dict[bool, list[Piece]] = {}
    for small, mapped in stretches:
        pieces = found.setdefault(small, [])
        if pieces:
            end = pieces[-1].address + pieces[-1].nbytes
            if end < mapped[0].address:
                pieces.append(Piece(end, mapped[0].address - end, None, mapped=False))
        pieces += mapped
    for small, pieces in found.items():
        end = pieces[-1].address + pieces[-1].nbytes
        page = SMALL_SEGMENT_NBYTES if small else LARGE_SEGMENT_NBYTES
        pieces.append(Piece(end, _RANGE_NBYTES // page * page, None, mapped=False))
        yield small, pieces


def _used_before(snapshot: Snapshot) -> list[_Used]:
    sizes = {
        block.address: block.nbytes
        for segment in snapshot.segments
        for block in segment.blocks
        if block.used
    }
    freed = {event.address for event in snapshot.events if event.action == "free_completed"}
    return [
        _Used(address, -(-asked // GRAIN_NBYTES) * GRAIN_NBYTES, sure=False)
        if address in freed
        else _Used(address, sizes[address], sure=True)
        for address, asked in snapshot.used_at_start.items()
    ]


def _segments_before(snapshot: Snapshot) -> list[_Span]:
    spans = {
        each.address: _Span(each.address, each.nbytes, each.small) for each in snapshot.segments
    }
    for i in range(len(snapshot.events) - 1, -1, -1):
        event = snapshot.events[i]
        if event.action == "segment_free":
            small = event.nbytes <= SMALL_SEGMENT_NBYTES
            spans[event.address] = _Span(event.address, event.nbytes, small)
        elif event.action == "segment_alloc" and spans.pop(event.address, None) is None:
            _fault_missing(snapshot, i)
    return sorted(spans.values())


def _pages_before(snapshot: Snapshot) -> list[_Span]:
    pages = {
        each.address + i: each.small
        for each in snapshot.segments
        for i in range(0, each.nbytes, _PAGE_NBYTES)
    }
    hints = _pool_hints(snapshot, pages)
    for i in range(len(snapshot.events) - 1, -1, -1):
        event = snapshot.events[i]
        part = range(event.address, event.address + event.nbytes, _PAGE_NBYTES)
        if event.action == "segment_unmap":
            pages.update(dict.fromkeys(part, _nearest(hints, event.address)))
        elif event.action == "segment_map" and any(pages.pop(page, None) is None for page in part):
            _fault_missing(snapshot, i)
    spans: list[_Span] = []
    for page, small in sorted(pages.items()):
        last = spans[-1] if spans else None
        if last is not None and last.small == small and last.address + last.nbytes == page:
            spans[-1] = last._replace(nbytes=last.nbytes + _PAGE_NBYTES)
        else:
            spans.append(_Span(page, _PAGE_NBYTES, small))
    return spans


def _pool_hints(snapshot: Snapshot, pages: dict[int, bool]) -> list[tuple[int, bool]]:
    """Return addresses of which the pool is known (small?): an unmapping does not tell its own."""
    hints = dict(pages)
    for event in snapshot.events:
        if event.action in ("alloc", "free_completed"):
            hints[event.address] = event.nbytes <= SMALL_NBYTES
        elif event.action in ("segment_map", "segment_unmap"):
            hints.setdefault(event.address, event.nbytes % LARGE_SEGMENT_NBYTES != 0)
    return sorted(hints.items())


def _nearest(hints: list[tuple[int, bool]], address: int) -> bool:
    """Return what the nearest hint says: the ranges of the two pools are far apart."""
    i = bisect_left(hints, (address, False))
    near = hints[max(i - 1, 0) : i + 1]
    return min(near, key=lambda hint: abs(hint[0] - address))[1]


def _pieces(snapshot: Snapshot, span: _Span, used: list[_Used], slack: bool) -> list[Piece]:
    """Cut a span into its blocks, which are taken out of *used*."""
    end = span.address + span.nbytes
    first = bisect_left(used, span.address, key=lambda block: block.address)
    stop = bisect_left(used, end, key=lambda block: block.address)
    inside = used[first:stop]
    del used[first:stop]
    pieces: list[Piece] = []
    at = span.address
    for block, following in pairwise([*inside, _Used(end, 0, sure=True)]):
        if at < block.address:
            pieces.append(Piece(at, block.address - at, None))
        at = block.address + block.nbytes
        if slack and not block.sure and 0 < following.address - at <= SMALL_NBYTES:
            at = following.address
        if at > following.address or (block.nbytes <= SMALL_NBYTES) != span.small:
            raise InvalidInput(
                f"{snapshot.path}: the block of {block.nbytes} bytes at {block.address:#x} cannot "
                f"be in its segment, which goes from {span.address:#x} to {end:#x}"
            )
        pieces.append(Piece(block.address, at - block.address, block.address))
    if at < end:
        pieces.append(Piece(at, end - at, None))
    return pieces


def _fault_missing(snapshot: Snapshot, i: int) -> None:
    event = snapshot.events[i]
    raise InvalidInput(
        f"{snapshot.path}: event {i} is a {event.action} at {event.address:#x}, but nothing is "
        "given back there later, and nothing is there at the end: events are missing"
    )
