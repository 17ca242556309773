"""What a trace's operations and copies take on a machine."""

from ..machines import Machine
from ..traces.model import Trace


class Timing:
    """Integer nanoseconds for every operation of *trace* on *machine*.

    Measured times stand as they are; where there are none, the machine's roofline and launch cost
    do. *device_ns* and *host_ns* are indexed by operation; *launches* has those of several kernels.
    """

    def __init__(self, trace: Trace, machine: Machine) -> None:
        self.machine = machine
        self._operations = trace.operations
        launch = machine.launch_ns
        self.device_ns = [
            op.device_ns
            if op.device_ns is not None
            else machine.roofline_ns(op.flops, op.moved_nbytes, op.precision)
            for op in trace.operations
        ]
        self.host_ns = [launch if op.host_ns is None else op.host_ns for op in trace.operations]
        self.launches = {i: op.launches for i, op in enumerate(trace.operations) if op.launches > 1}

    def run_ns(self, op: int, algorithm: int = 0) -> int:
        """Return the device time of an operation by the given algorithm."""
        if algorithm:
            return self._operations[op].algorithms[algorithm - 1].device_ns
        return self.device_ns[op]

    def copy_ns(self, nbytes: int, tier: str) -> int:
        """Return the time of a copy to a tier, alone on its link."""
        found = self.machine.tier(tier)
        assert found is not None
        return found.link.out_ns(nbytes)

    def fetch_ns(self, nbytes: int, tier: str) -> int:
        """Return the time of a fetch from a tier, alone on its link."""
        found = self.machine.tier(tier)
        assert found is not None
        return found.link.in_ns(nbytes)
