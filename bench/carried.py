"""Times and workspaces of a recorded step, for another one of the same make: by names.

An estimate, or a step that the executor recorded, has no times. Its operations are called as those
of a recording are, by their modules; so it takes its times from there, also where it is deeper.
"""

import re

import msgspec

from superneurons.machines import Machine
from superneurons.traces import Operation, Trace

_BLOCK = re.compile(r"^stages\.(\d+)\.(\d+)\.")


def carried(recording: Trace, structure: Trace, machine: Machine, *, memory: bool = True) -> Trace:
    """Return *structure* with the times of a recorded network of the same kind, and its *memory*.

    An operation takes those of the one with its name; in a block that the recording has not, those
    of its last block but one, for the last one of its own last. They grow by the ratio of the two
    rooflines (of bytes moved, for workspaces, and for the optimizer's time on the host, which
    launches for every few parameters). With *memory* workspaces are taken as well, and what the
    libraries keep for themselves is there, too.
    """
    measured = {op.name: op for op in recording.operations}
    there, here = _numbers(recording), _numbers(structure)
    operations = []
    for op in structure.operations:
        match = _BLOCK.match(op.name)
        name = op.name
        if match:
            stage, block = match[1], int(match[2])
            last = here[stage] - 1
            like = there[stage] - 1 if block == last else min(block, max(0, there[stage] - 2))
            name = f"stages.{stage}.{like}." + op.name[match.end() :]
        timed = _timed(op, measured.get(name), machine)
        if not memory:
            timed = msgspec.structs.replace(timed, workspace_nbytes=op.workspace_nbytes)
        operations.append(timed)
    names = {storage.name for storage in structure.storages}
    kept = tuple(
        each
        for each in recording.storages
        if memory and each.alive_at_start and each.kind == "other" and each.name not in names
    )
    return msgspec.structs.replace(
        structure,
        times="measured",
        machine=machine.name.partition(":")[0],
        operations=tuple(operations),
        storages=structure.storages + kept,
        notes=structure.notes | {"times": f"of {recording.name}, by name of module and operation"},
    )


def _numbers(trace: Trace) -> dict[str, int]:
    """Return the number of blocks of each stage."""
    found: dict[str, int] = {}
    for op in trace.operations:
        match = _BLOCK.match(op.name)
        if match:
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _timed(op: Operation, source: Operation | None, machine: Machine) -> Operation:
    if source is None:  # what CUDA does inside of another, or what is not in the recording
        nothing = op.kind == "empty"
        return msgspec.structs.replace(
            op,
            device_ns=0
            if nothing
            else machine.roofline_ns(op.flops, op.moved_nbytes, op.precision),
            host_ns=0 if nothing else machine.launch_ns,
        )
    before = machine.roofline_ns(source.flops, source.moved_nbytes, source.precision)
    time = machine.roofline_ns(op.flops, op.moved_nbytes, op.precision) / max(1, before)
    moved = op.moved_nbytes / max(1, source.moved_nbytes)
    host = max(1.0, moved) if op.phase == "optimizer" else 1.0
    return msgspec.structs.replace(
        op,
        device_ns=round((source.device_ns or 0) * time),
        host_ns=round((source.host_ns or 0) * host),
        launches=source.launches,
        workspace_nbytes=round(source.workspace_nbytes * moved),
    )
