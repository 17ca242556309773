"""The times of a measured step, put on another trace of the same step."""

import msgspec

from ..errors import InvalidInput
from .model import Trace


def with_times(trace: Trace, measured: Trace) -> Trace:
    """Return *trace* with the device and host times of *measured*, operation by operation.

    Raises InvalidInput unless both are the same operations at the same size: as many, of the same
    kinds, with the same arithmetic.
    """
    if measured.times != "measured":
        raise InvalidInput(f"{measured.name!r} has no measured times; record the step on a GPU")
    ours, theirs = ([(op.kind, op.flops) for op in each.operations] for each in (trace, measured))
    if ours != theirs:
        where = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours)
        )
        raise InvalidInput(
            f"{measured.name!r} is not this step: they differ at operation {where} "
            f"({len(theirs)} operations there, {len(ours)} here); record the same step"
        )
    operations = tuple(
        msgspec.structs.replace(
            op, device_ns=source.device_ns, host_ns=source.host_ns, launches=source.launches
        )
        for op, source in zip(trace.operations, measured.operations, strict=True)
    )
    return msgspec.structs.replace(
        trace,
        times="measured",
        machine=measured.machine,
        operations=operations,
        notes=trace.notes | {"times": f"those of {measured.name}"},
    )
