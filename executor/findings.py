"""What a recording on a GPU measured beside the operations, told as notes of its trace."""

from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

from ..traces import Trace
from .assemble import replayed_peak_nbytes
from .attribution import PHASES, Attribution
from .phases import PhaseTimes

PEAK_TOLERANCE: Final = 0.005
"""How far the replayed peak may be off a plain step's before the trace says so by a caveat."""


class Measured(NamedTuple):
    """One step that nobody looked into: from an idle GPU to an idle GPU again, and its peaks."""

    step_ns: int
    phases: PhaseTimes
    requested_peak_nbytes: int
    allocated_peak_nbytes: int
    reserved_peak_nbytes: int


def usual_phases(measured: Sequence[Measured]) -> PhaseTimes:
    """Return the medians of the host's times by phase."""
    columns = zip(*(each.phases for each in measured), strict=True)
    return PhaseTimes(*(round(median(column)) for column in columns))


def findings(measured: Sequence[Measured], found: Attribution, profiled: int) -> dict[str, str]:
    """Return times, peaks and how times were come by, of so many *profiled* steps."""
    steps = sorted(each.step_ns for each in measured)
    last = measured[-1]
    phases = zip(PHASES, usual_phases(measured), strict=True)
    return {
        "step_time_ns": f"{round(median(steps))}",
        "step_time_spread": f"{steps[0]} to {steps[-1]} ns in {len(steps)} steps, each from an "
        "idle GPU to an idle GPU",
        "host_time_ns": ", ".join(f"{phase} {ns}" for phase, ns in phases),
        "requested_peak_nbytes": str(last.requested_peak_nbytes),
        "allocated_peak_nbytes": str(last.allocated_peak_nbytes),
        "reserved_peak_nbytes": str(last.reserved_peak_nbytes),
        "device_times": f"medians of kernel records of {profiled} steps"
        + ("" if found.same_kernels else " (marked ones: their kernels differed)")
        + f"; their sum varied by {found.spread:.2%}; {found.gap_ns} ns between two kernels "
        "that follow at once count with the first"
        + ("" if found.gap_scale == 1 else f", x {found.gap_scale:.3f}: a step takes no longer"),
        "host_times": "from one launch to the next in the same steps, scaled to unprofiled "
        "steps: "
        + ", ".join(f"{phase} x {scale:.3f}" for phase, scale in found.scales.items())
        + f"; {found.blocked_ns} ns that the host waited are left out",
    }


def doubts(trace: Trace, measured: Sequence[Measured], found: Attribution) -> dict[str, str]:
    """Return how the trace's peak and kernels compare with a plain step's: with a caveat if they
    differ, joined to the one that it has."""
    there = max(each.requested_peak_nbytes for each in measured)
    off = replayed_peak_nbytes(trace) - there
    notes = {"peak_beside_torch": f"{off:+} bytes when replayed, of {there} in a plain step"}
    reasons = [trace.notes["caveat"]] if "caveat" in trace.notes else []
    if abs(off) > PEAK_TOLERANCE * there:
        reasons.append(f"the replayed peak is {off:+} bytes off a plain step's")
    if not found.same_kernels:
        reasons.append("a plain step ran other kernels than the logged one")
    return notes | ({"caveat": "; ".join(reasons)} if reasons else {})
