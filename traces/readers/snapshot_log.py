"""PyTorch memory snapshots: what the CUDA caching allocator did, event by event.

`torch.cuda.memory._dump_snapshot(path)` pickles a dictionary; it may be gzipped. `device_traces`
holds the events of each device since `torch.cuda.memory._record_memory_history()`, `segments` the
state at the end, `allocator_settings` the options. A pickle is a program, so only one is read that
makes plain containers, texts and numbers.

The history is a ring: beyond `max_entries` new events overwrite the oldest, and what is left looks
like a history that was begun later. Only a torch that records `trace_alloc_overflowed`
(pytorch/pytorch#179276) tells the two apart.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ...errors import InvalidInput
from ...notation.files import decode
from ..collector import without_collector
from .content import read_content

Action = Literal[
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
    "snapshot",
    "user_defined",
]
History = Literal["whole", "begun late", "cut", "cut or begun late"]
_BROKEN: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""What damaged or hostile bytes make the unpickler raise."""


class Event(
    Struct,
    frozen=True,
    kw_only=True,
    rename={"nbytes": "size", "address": "addr", "pool": "pool_id"},
):
    """One thing that the allocator did: *nbytes* as asked for at *address*, on a stream.

    A block is asked for (`alloc`), let go of (`free_requested`), and free once no other stream uses
    it any more (`free_completed`). `segment_...` is between allocator and device. An `oom` has no
    address. *frames* is the stack where it was recorded, innermost first, as torch writes it.
    """

    action: Action
    nbytes: int
    address: int = 0
    stream: int = 0
    pool: tuple[int, int] = (0, 0)
    time_us: int = 0
    frames: list[Any] = []


class Block(Struct, frozen=True):
    """A block of a segment: its size, what was asked for in it, and whether it is in use."""

    address: int
    nbytes: int
    requested_nbytes: int
    used: bool


class Segment(Struct, frozen=True):
    """Memory that the allocator has of the device: one piece, cut into *blocks* without gaps."""

    address: int
    nbytes: int
    small: bool
    expandable: bool
    stream: int
    pool: tuple[int, int]
    blocks: tuple[Block, ...]


class Snapshot(Struct, frozen=True, kw_only=True):
    """One device's events, oldest first, and its segments after the last of them.

    *used_at_start* are the bytes asked for of each block that was in use before the first event, by
    address. *history* is "whole" if there was neither block nor segment then.
    """

    path: Path
    device: int
    events: tuple[Event, ...]
    segments: tuple[Segment, ...]
    settings: Mapping[str, Any]
    used_at_start: Mapping[int, int]
    history: History


class _Block(Struct):
    size: int
    state: str
    address: int | None = None
    requested_size: int | None = None


class _Segment(Struct):
    address: int
    total_size: int
    segment_type: Literal["small", "large"]
    blocks: list[_Block]
    device: int = 0
    stream: int = 0
    segment_pool_id: tuple[int, int] = (0, 0)
    is_expandable: bool = False


class _File(Struct):
    segments: list[_Segment]
    device_traces: list[list[Event]]
    allocator_settings: dict[str, Any] = {}
    trace_alloc_overflowed: Any = None


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, tuples, texts and numbers, and nothing that names code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse: a snapshot needs no global at all."""
        raise _NamesCodeError(f"{module}.{name}")


class _NamesCodeError(Exception):
    pass


def read_snapshot(path: Path | str, device: int | None = None) -> Snapshot:
    """Return what a memory snapshot tells of one device; which, must be said if it has several.

    Raises InvalidInput for a file that is missing, cut off, no snapshot, or without events.
    """
    path = Path(path)
    with without_collector():
        raw = _unpickle(path)
        if not isinstance(raw, dict) or "device_traces" not in raw or "segments" not in raw:
            raise InvalidInput(
                f"{path}: is no memory snapshot: it holds no 'device_traces' and 'segments'; "
                "write one with torch.cuda.memory._dump_snapshot"
            )
        content = decode(raw, _File, path)
    number = _device(content, path, device)
    events = tuple(content.device_traces[number])
    segments = tuple(_segment(each) for each in content.segments if each.device == number)
    used = _used_at_start(events, segments, path)
    return Snapshot(
        path=path,
        device=number,
        events=events,
        segments=segments,
        settings=content.allocator_settings,
        used_at_start=used,
        history=_history(content, number, older=bool(used) or _older_segments(events, segments)),
    )


def segments_of(raw: object, device: int) -> tuple[Segment, ...]:
    """Return a device's segments as `torch.cuda.memory_snapshot()` tells of them."""
    found = msgspec.convert(raw, list[_Segment])
    return tuple(_segment(each) for each in found if each.device == device)


def _unpickle(path: Path) -> object:
    raw = read_content(path)
    try:
        return _PlainUnpickler(io.BytesIO(raw)).load()
    except _NamesCodeError as error:
        raise InvalidInput(
            f"{path}: cannot be read as a memory snapshot: it asks for the global {error}, and "
            "only plain containers, texts and numbers are read"
        ) from None
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(
            f"{path}: cannot be read as a memory snapshot: it is cut off or no pickle: {reason}"
        ) from None


def _device(content: _File, path: Path, device: int | None) -> int:
    there = [number for number, events in enumerate(content.device_traces) if events]
    if not there:
        raise InvalidInput(
            f"{path}: holds no events; call torch.cuda.memory._record_memory_history() before what "
            "is to be seen"
        )
    if device is None and len(there) > 1:
        raise InvalidInput(f"{path}: has events of the devices {_listed(there)}; say which")
    if device is not None and device not in there:
        raise InvalidInput(f"{path}: has no events of device {device}, only of {_listed(there)}")
    return there[0] if device is None else device


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _segment(raw: _Segment) -> Segment:
    blocks, address = [], raw.address
    for block in raw.blocks:
        blocks.append(
            Block(
                address=address,
                nbytes=block.size,
                requested_nbytes=block.size
                if block.requested_size is None
                else block.requested_size,
                used=block.state != "inactive",
            )
        )
        address += block.size
    return Segment(
        address=raw.address,
        nbytes=raw.total_size,
        small=raw.segment_type == "small",
        expandable=raw.is_expandable,
        stream=raw.stream,
        pool=raw.segment_pool_id,
        blocks=tuple(blocks),
    )


def _used_at_start(
    events: tuple[Event, ...], segments: tuple[Segment, ...], path: Path
) -> dict[int, int]:
    """Undo the events, last first, from the blocks in use at the end. Raises InvalidInput."""
    used = {
        block.address: block.requested_nbytes
        for segment in segments
        for block in segment.blocks
        if block.used
    }
    for i in range(len(events) - 1, -1, -1):
        event = events[i]
        if event.action == "alloc":
            if used.pop(event.address, None) is None:
                raise InvalidInput(
                    f"{path}: event {i} allocates {event.nbytes} bytes at {event.address:#x}, "
                    "neither freed later nor in use at the end: events are missing in between"
                )
        elif event.action == "free_completed":
            if event.address in used:
                raise InvalidInput(
                    f"{path}: event {i} frees the block at {event.address:#x}, which is in use "
                    "again without having been allocated: events are missing in between"
                )
            used[event.address] = event.nbytes
    return dict(sorted(used.items()))


def _older_segments(events: tuple[Event, ...], segments: tuple[Segment, ...]) -> bool:
    """Whether anything was reserved before the first event."""
    change = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
    reserved = sum(change.get(event.action, 0) * event.nbytes for event in events)
    return reserved != sum(segment.nbytes for segment in segments)


def _history(content: _File, device: int, older: bool) -> History:
    flag = content.trace_alloc_overflowed
    if flag is None:
        flag = content.allocator_settings.get("trace_alloc_overflowed")
    if isinstance(flag, list | tuple):
        flag = flag[device] if device < len(flag) else None
    if isinstance(flag, dict):
        flag = flag.get(device, flag.get(str(device)))
    if flag:
        return "cut"
    if not older:
        return "whole"
    return "cut or begun late" if flag is None else "begun late"
