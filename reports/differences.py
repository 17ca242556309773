"""An explanation on the terminal: the largest differences, and their sums in a sentence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ..notation import format_bytes, format_ns
from .explanation import (
    PEAK_PERCENT,
    TIME_PERCENT,
    UNSTEADY,
    Difference,
    Explanation,
    PeakReading,
)

if TYPE_CHECKING:
    from rich.console import Console

ROWS: Final = 10

_CAUSES: Final = {
    "host": "waiting for the host",
    "hooks": "in the executor's hooks",
    "stall": "waiting for copies",
    "again": "computing again",
    "kernels": "in the operations",
    UNSTEADY: "now here, now there",
}


def print_explanation(explanation: Explanation, usual_ns: int | None = None) -> None:
    """Print the largest differences, the sums by cause and by phase, and what they say. *usual_ns*
    is what a step takes that is not clocked."""
    from rich.console import Console

    width = None if Console().is_terminal else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    _print_largest(console, explanation.largest(ROWS))
    for title, sums in (("by cause", explanation.by_cause), ("by phase", explanation.by_phase)):
        told = ", ".join(f"{_CAUSES.get(key, key)} {_signed(ns)}" for key, ns in sums.items())
        console.print(f"{title}: {told}", soft_wrap=True)
    for line in told_time(explanation, usual_ns):
        console.print(line, soft_wrap=True)
    if explanation.peak is not None:
        for line in told_peak(explanation.peak):
            console.print(line, soft_wrap=True)


def told_time(explanation: Explanation, usual_ns: int | None = None) -> list[str]:
    """Return in words how far the step time is off, and of what that is made."""
    difference, percent = explanation.difference_ns, abs(explanation.percent)
    way = "longer" if difference >= 0 else "shorter"
    off = f"the step took {format_ns(abs(difference))} ({percent:.1f} %) {way} than simulated"
    if percent <= TIME_PERCENT:
        lines = [f"{off}, within {TIME_PERCENT} %"]
        if explanation.peak is not None and abs(explanation.peak.percent) <= PEAK_PERCENT:
            lines[0] += f", and its bytes are within {PEAK_PERCENT} % of the plan"
    else:
        lines = [f"{off}: {_shares(explanation.by_cause)}"]
    if explanation.times != "measured":
        lines.append(
            "that was simulated by the machine's roofline, a rough guess of each operation; "
            "--times lends those of a recording that was measured on a GPU"
        )
    clocked = ", ".join(format_ns(ns) for ns in explanation.clocked_ns)
    usual = "" if usual_ns is None else f"; a step that nobody clocks took {format_ns(usual_ns)}"
    lines.append(f"clocked: {clocked}, explained: {format_ns(explanation.measured_ns)}{usual}")
    return lines


def told_peak(peak: PeakReading) -> list[str]:
    """Return in words how far the bytes are off, and where they are the most."""
    found = format_bytes(peak.found_nbytes)
    if not peak.different:
        lines = [
            f"bytes: as planned before each of {peak.places} operations, to the byte; the most is "
            f"{found}, before {peak.found_op}"
        ]
    else:
        off = (
            f"bytes: other than planned before {peak.different} of {peak.places} operations, "
            f"{peak.first_op} the first; "
        )
        if abs(peak.percent) <= PEAK_PERCENT:
            off += f"the most is within {PEAK_PERCENT} % of the plan ({peak.percent:+.1f} %)"
        else:
            off += (
                f"the most was to be {format_bytes(peak.planned_nbytes)} before {peak.planned_op}, "
                f"and was {found} ({peak.percent:+.1f} %) before {peak.found_op}"
            )
        lines = [off]
    if peak.planned_blocks_nbytes and peak.found_blocks_nbytes is not None:
        percent = 100 * (peak.found_blocks_nbytes / peak.planned_blocks_nbytes - 1)
        lines.append(
            f"the allocator's blocks for them: {format_bytes(peak.planned_blocks_nbytes)} "
            f"simulated, {format_bytes(peak.found_blocks_nbytes)} counted ({percent:+.1f} %)"
        )
    return lines


def _print_largest(console: "Console", differences: Sequence[Difference]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operations", overflow="fold")
    for column in ("simulated", "measured", "least to most", "difference"):
        table.add_column(f"{column}, ms", justify="right", no_wrap=True)
    table.add_column("most of it", no_wrap=True)
    for each in differences:
        table.add_row(
            _told(each.operations),
            f"{each.simulated_ns / 1e6:,.3f}",
            f"{each.measured_ns / 1e6:,.3f}",
            f"{each.least_ns / 1e6:,.3f} to {each.most_ns / 1e6:,.3f}",
            f"{each.difference_ns / 1e6:+,.3f}",
            _CAUSES[each.cause],
        )
    console.print(table)


def _told(operations: Sequence[str]) -> str:
    if not operations:
        return "the end of the step"
    if len(operations) <= 2:
        return ", ".join(operations)
    return f"{operations[0]} ... {operations[-1]} ({len(operations)})"


def _shares(by_cause: Mapping[str, int]) -> str:
    """Return the shares of a difference, the largest first, less what is nothing beside it."""
    largest = max(abs(ns) for ns in by_cause.values())
    order = sorted(by_cause, key=lambda cause: -abs(by_cause[cause]))
    return ", ".join(
        f"{_signed(by_cause[cause])} {_CAUSES[cause]}"
        for cause in order
        if abs(by_cause[cause]) * 100 >= largest
    )


def _signed(ns: int) -> str:
    return f"{ns / 1e6:+,.3f} ms"
