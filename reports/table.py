"""Reports as a table on the terminal."""

from collections.abc import Sequence

from ..notation import format_bytes, format_ns
from .report import Report


def print_table(reports: Sequence[Report], variants: Sequence[str] | None = None) -> None:
    """Print one row a report, and below it in words what does not fit.

    Reports of one step are told apart by their policies, or by the names of *variants*.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    width = None if Console().is_terminal else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    title = _title(reports[0]) if variants is None else None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("policy" if variants is None else "variant", overflow="fold")
    for column in ("step peak", "device peak", "reserved", "fits", "step time", "stall"):
        table.add_column(column, justify="right", no_wrap=True)
    names = [report.policy for report in reports] if variants is None else variants
    for name, report in zip(names, reports, strict=True):
        table.add_row(
            name,
            format_bytes(report.step_peak_bytes),
            format_bytes(report.device_peak_bytes),
            format_bytes(report.reserved_peak_bytes),
            "yes" if report.fits else "no",
            *(
                "-" if report.times == "none" else format_ns(ns)
                for ns in (report.step_time_ns, report.stall_ns)
            ),
        )
    console.print(table)
    for name, report in zip(names, reports, strict=True):
        if not report.fits:
            whose = "" if variants is None else f"{name}, "
            console.print(f"{whose}{report.why}", soft_wrap=True)


def _title(report: Report) -> str:
    limit = "budget" if report.budget_bytes is not None else "memory"
    return (
        f"{report.trace} on {report.machine}, {limit} {format_bytes(report.limit_bytes)}, "
        f"{report.ops} operations, times: {report.times}"
    )
