"""Measured times on another machine, or at another batch size: scaled by the roofline's ratio."""

from collections.abc import Callable
from typing import Final

import msgspec

from ..errors import InvalidInput
from ..machines import Machine
from ..traces import Operation, Trace

FIXED_NS: Final = 1_500
"""What a kernel takes whatever its size (starting, draining): this much of a time is not scaled.
An assumption, in keeping with the shortest kernels of the shipped recordings."""


def retarget(trace: Trace, measured_on: Machine, target: Machine) -> Trace:
    """Return *trace*, measured on one machine, as it is expected on another.

    Each device time is multiplied by the ratio of the two rooflines of that operation, what a
    kernel takes at least excepted; host times stay. The trace's name and notes say so. Raises
    InvalidInput for a trace without measured times.
    """
    if trace.times != "measured":
        raise InvalidInput(
            f"trace {trace.name!r} has no measured times to scale to another machine"
        )

    def ratio(i: int, op: Operation) -> float:
        there = measured_on.roofline_ns(op.flops, op.moved_nbytes, op.precision)
        here = target.roofline_ns(op.flops, op.moved_nbytes, op.precision)
        return here / there if there else 1.0

    return _scaled(
        trace,
        trace,
        ratio,
        f"{trace.name} ({measured_on.name} -> {target.name})",
        f"measured on {measured_on.name}, scaled to {target.name} by the ratio of their rooflines, "
        f"operation by operation, beyond {FIXED_NS} ns of each; host times as measured",
        target.name.partition(":")[0],
    )


def carry_times(measured: Trace, structure: Trace, machine: Machine) -> Trace:
    """Return *structure*, the same step at another size, with the times of *measured*.

    Each device time is multiplied by the ratio of the operation's two rooflines on *machine*;
    host times are taken as they are. Raises InvalidInput if the two are not the same operations.
    """
    if measured.times != "measured":
        raise InvalidInput(f"trace {measured.name!r} has no measured times to carry over")
    if [op.kind for op in measured.operations] != [op.kind for op in structure.operations]:
        raise InvalidInput(
            f"{measured.name!r} has {len(measured.operations)} operations and {structure.name!r} "
            f"{len(structure.operations)}, not the same ones in the same order: times cannot be "
            "carried over"
        )

    def ratio(i: int, op: Operation) -> float:
        source = measured.operations[i]
        before = machine.roofline_ns(source.flops, source.moved_nbytes, source.precision)
        after = machine.roofline_ns(op.flops, op.moved_nbytes, op.precision)
        return after / before if before else 1.0

    return _scaled(
        measured,
        structure,
        ratio,
        f"{structure.name} (times of {measured.name})",
        f"carried over from {measured.name} by the ratio of rooflines on {machine.name}, operation "
        f"by operation, beyond {FIXED_NS} ns of each; host times as measured there",
        measured.machine,
    )


def _scaled_ns(ns: int, factor: float) -> int:
    fixed = min(ns, FIXED_NS)
    return fixed + round((ns - fixed) * factor)


def _scaled(
    times: Trace,
    structure: Trace,
    ratio: Callable[[int, Operation], float],
    name: str,
    note: str,
    machine: str,
) -> Trace:
    operations = []
    for i, op in enumerate(structure.operations):
        source = times.operations[i]
        factor = ratio(i, op)
        operations.append(
            msgspec.structs.replace(
                op,
                device_ns=_scaled_ns(source.device_ns or 0, factor),
                host_ns=source.host_ns,
                launches=source.launches,
                algorithms=tuple(
                    msgspec.structs.replace(each, device_ns=_scaled_ns(each.device_ns, factor))
                    for each in op.algorithms
                ),
            )
        )
    return msgspec.structs.replace(
        structure,
        name=name,
        times="measured",
        machine=machine,
        operations=tuple(operations),
        notes=structure.notes | {"times": note},
    )
