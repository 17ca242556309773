"""A synthetic chain of any length, for benchmarks."""

from typing import Final

from ..errors import InvalidInput
from .model import Operation, Storage, Trace

_CYCLE: Final = ("conv", "norm", "activation")
_NBYTES: Final = 2**20
_SKIP: Final = 9


def chain(ops: int = 1000) -> Trace:
    """A conv-norm-activation cycle with a skip every nine layers; a benchmark of *ops* operations.

    Each layer has one forward and two backward operations (gradient of the input, then of the
    weights), so the step has *ops* rounded down to a multiple of three. Every storage is 1 MiB,
    every operation takes 100 us on the device and 1 us to launch.
    """
    layers = ops // 3
    if layers < 1:
        raise InvalidInput(f"chain: {ops} operations are fewer than the 3 of one layer")
    storages = [
        Storage(name="x", kind="input", nbytes=_NBYTES, alive_at_start=True),
        Storage(name="w", kind="parameter", nbytes=_NBYTES, alive_at_start=True),
    ]
    operations = []
    for i in range(layers):
        reads = [f"y{i - 1}" if i else "x"]
        if i % _SKIP == 0 and i >= _SKIP:
            reads.append(f"y{i - _SKIP}")
        kind = _CYCLE[i % 3]
        if kind == "conv":
            reads.append("w")
        storages.append(Storage(name=f"y{i}", kind="activation", nbytes=_NBYTES))
        operations.append(
            Operation(
                name=f"f{i}",
                kind=kind,
                phase="forward",
                reads=tuple(reads),
                writes=(f"y{i}",),
                device_ns=100_000,
                host_ns=1_000,
            )
        )
    for i in reversed(range(layers)):
        above = f"g{i + 1}" if i + 1 < layers else f"y{i}"
        source = f"y{i - 1}" if i else "x"
        reads = [above, source] + ([f"y{i}"] if above != f"y{i}" else [])
        if i + _SKIP < layers and i % _SKIP == 0:
            reads.append(f"g{i + _SKIP}")
        storages.append(Storage(name=f"g{i}", kind="activation-gradient", nbytes=_NBYTES))
        storages.append(Storage(name=f"d{i}", kind="activation-gradient", nbytes=_NBYTES))
        for suffix, made, values in (
            ("data", f"g{i}", reads),
            ("weights", f"d{i}", [above, source]),
        ):
            operations.append(
                Operation(
                    name=f"b{i}.{suffix}",
                    kind=_CYCLE[i % 3],
                    phase="backward",
                    reads=tuple(values),
                    writes=(made,),
                    device_ns=100_000,
                    host_ns=1_000,
                )
            )
    return Trace(
        name=f"chain:ops={ops}",
        places="everywhere",
        times="measured",
        storages=tuple(storages),
        operations=tuple(operations),
        notes={"made": "synthetic: sizes and times are chosen, not measured"},
    )
