"""DTR's operator logs, the input of its simulator simrd, become traces.

A log knows what the program lets go of, and nothing of autograd: everything may be moved
everywhere, as DTR does it.
"""

from pathlib import Path
from typing import Final

from ..collector import without_collector
from ..model import Kind, Operation, Release, Storage, Trace
from .dtr_log import Log
from .dtr_walk import Held, Walk
from .kinds import kind_of, recompute_of

_TAKEN: Final = (
    "a mutation is a copy, as in DTR's simulator; a constant that stands before the first "
    "operation and is never released is a parameter, any other an input, made by an operation "
    "that takes no time; what is never released is needed by the last operation, 'end', and "
    "what backward made of it is the gradient of a parameter"
)


def dtr_trace(path: Path) -> Trace:
    """Return the step in the log at *path*: times in ns as logged, lifetimes as released.

    Raises InvalidInput, with the line, for a log that cannot be followed.
    """
    with without_collector():
        walk = Walk(Log(path))
        operations, places = _operations(walk)
        return Trace(
            name=path.name.removesuffix(".gz").removesuffix(".log"),
            places="everywhere",
            times="measured",
            storages=tuple(
                [
                    Storage(
                        name=held.name,
                        kind=_storage_kind(held),
                        nbytes=held.nbytes,
                        alive_at_start=held.lasting,
                    )
                    for held in walk.storages
                ]
            ),
            operations=tuple(operations),
            releases=tuple(
                [
                    Release(storage=held.name, place=places[held.gone])
                    for held in walk.storages
                    if held.gone >= 0
                ]
            ),
            notes=_notes(path, walk),
        )


def _operations(walk: Walk) -> tuple[list[Operation], list[int]]:
    """Return the operations, and for each place of the walk how many of them are before it.

    Constants that last are no operations: they are there from the start.
    """
    names = [held.name for held in walk.storages]
    operations: list[Operation] = []
    places = []
    kinds: dict[str, str] = {}
    for step in walk.steps:
        places.append(len(operations))
        if step.constant and walk.storages[step.writes[0]].lasting:
            continue
        if step.name not in kinds:
            kinds[step.name] = kind_of(step.name)
        kind = "input" if step.constant else kinds[step.name]
        operations.append(
            Operation(
                name=f"{step.name}.{len(operations)}",
                kind=kind,
                phase="backward" if step.backward else "forward",
                reads=tuple(dict.fromkeys([names[s] for s in step.reads])),
                writes=tuple([names[s] for s in step.writes]),
                device_ns=step.ns,
                host_ns=0,
                recompute="opaque" if step.constant else recompute_of(kind),
            )
        )
    places.append(len(operations))
    left = [held.name for held in walk.storages if held.gone < 0 and not held.lasting]
    if left:  # nobody may drop what the step is for
        operations.append(
            Operation(
                name="end",
                kind="end",
                phase="backward" if walk.backward else "forward",
                reads=tuple(left),
                device_ns=0,
                host_ns=0,
                recompute="opaque",
            )
        )
    return operations, places


def _storage_kind(held: Held) -> Kind:
    if held.constant:
        return "parameter" if held.lasting else "input"
    if not held.backward:
        return "activation"
    return "activation-gradient" if held.gone >= 0 else "parameter-gradient"


def _notes(path: Path, walk: Walk) -> dict[str, str]:
    lacking = ["what autograd saves", "workspaces", "the optimizer"]
    if not walk.started:
        lacking.append("a mark where the step starts (all lines are taken)")
    if not walk.backward:
        lacking.append("a backward phase")
    elif not walk.marked:
        lacking.append("a mark where backward starts (the operations' names tell)")
    notes = {
        "made": f"from {path.name}, a DTR operator log",
        "lacking": ", ".join(lacking),
        "taken": _TAKEN,
        "times": "by the host's clock around each call, the launch included",
    }
    if walk.unknown:
        notes["ignored"] = f"{walk.unknown} releases of names from before the start"
    return notes
