"""A memory snapshot as a trace: the allocations and releases of its window, bytes only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from ..model import Operation, Release, Storage, Trace
from .snapshot_log import Event, read_snapshot

_BEFORE: Final = "before-the-window"
_HISTORY: Final = {
    "whole": "the events go back to an empty allocator",
    "begun late": "recording began after the first allocations",
    "cut": "the ring of events was full: the oldest are lost (raise max_entries)",
    "cut or begun late": "there are blocks or segments older than the first event: recording began "
    "late, or the ring of events was full; this torch does not say which",
}


def snapshot_trace(path: Path | str, device: int | None = None) -> Trace:
    """Return the events of a memory snapshot as a trace: allocations and releases, bytes only.

    Each allocation is an operation that writes one storage, released where it was let go of. What
    is in use all the time is alive at the start. A snapshot knows no step: what was there before
    the window and is freed in it is written by a first operation, and what is still there at its
    end is released there. Raises InvalidInput.
    """
    snapshot = read_snapshot(path, device)
    asked = snapshot.used_at_start
    storages: list[Storage] = []
    operations: list[Operation] = []
    releases: list[Release] = []
    names = {address: f"older-{i}" for i, address in enumerate(asked)}
    freed = _first_frees(snapshot.events, names)
    if freed:
        operations.append(_operation(_BEFORE, *(names[address] for address in freed)))
    for address, name in names.items():
        stays = address not in freed
        kind: Literal["parameter", "activation"] = "parameter" if stays else "activation"
        storages.append(Storage(name=name, kind=kind, nbytes=asked[address], alive_at_start=stays))
    held, older = dict(names), set(names.values())
    ooms = 0
    for i, event in enumerate(snapshot.events):
        if event.action == "alloc":
            name = held[event.address] = f"block-{i}"
            storages.append(Storage(name=name, kind="activation", nbytes=event.nbytes))
            operations.append(_operation(f"alloc-{i}", name, module=_where(event.frames)))
        elif event.action in ("free_requested", "free_completed") and event.address in held:
            name = held.pop(event.address)
            releases.append(Release(storage=name, place=len(operations)))
        elif event.action == "oom":
            ooms += 1
    left = [name for name in held.values() if name not in older]
    releases += [Release(storage=name, place=len(operations)) for name in left]
    return Trace(
        name=Path(path).name.removesuffix(".gz").removesuffix(".pickle").removesuffix(".pkl"),
        places="saves",
        times="none",
        storages=tuple(storages),
        operations=tuple(operations),
        releases=tuple(releases),
        notes={
            "source": f"PyTorch memory snapshot, device {snapshot.device}, "
            f"{len(snapshot.events)} events",
            "history": _HISTORY[snapshot.history],
            "operations": "one for each allocation: a snapshot does not say who reads or writes "
            "what, how long it takes, or what is forward and backward",
            "kinds": "parameter is what is in use throughout, activation all else: a snapshot does "
            "not say what a block is for",
            "start": f"{len(freed)} blocks from before the window are freed in it",
            "end": f"{len(left)} blocks are still in use at the end of the window, and are "
            "released there: a snapshot does not know the step",
            "failures": f"{ooms} allocations failed for lack of memory and are left out",
        },
    )


def _first_frees(events: tuple[Event, ...], names: Mapping[int, str]) -> dict[int, None]:
    """Return the addresses of the blocks older than the window that are freed in it, in order."""
    seen: dict[int, bool] = {}
    for event in events:
        if event.action in ("alloc", "free_requested", "free_completed"):
            seen.setdefault(event.address, event.action != "alloc")
    return {address: None for address, first in seen.items() if first and address in names}


def _operation(name: str, *writes: str, module: str = "") -> Operation:
    return Operation(
        name=name, kind="alloc", phase="forward", writes=writes, recompute="opaque", module=module
    )


def _where(frames: list[Any]) -> str:
    """Return the innermost frame outside torch and C++, as `file:line function`."""
    for frame in frames:
        if isinstance(frame, dict):
            file = str(frame.get("filename", ""))
            if file.endswith(".py") and "/torch/" not in file:
                return f"{file}:{frame.get('line', 0)} {frame.get('name', '')}"
    return ""
