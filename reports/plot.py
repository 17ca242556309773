"""Memory over a step, drawn."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingExtra
from ..notation import format_bytes
from ..notation.files import write_bytes
from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def memory_curve(report: Report) -> NDArray[np.int64]:
    """Return the scheduled bytes at each operation of the step, shape (operations,)."""
    return np.asarray(report.step_bytes, dtype=np.int64)


def plot_memory(reports: Sequence[Report], path: Path | str) -> None:
    """Draw the scheduled bytes over the step, one line a report, into the image file at *path*.

    Raises MissingExtra without matplotlib, InvalidInput if the file cannot be written.
    """
    figure, axes = _empty()
    first = reports[0]
    large = any(report.step_peak_bytes >= 2**20 for report in reports)
    unit, scale = ("MiB", 2**20) if large else ("bytes", 1)
    for report in reports:
        _draw(axes, report, scale)
    axes.set_title(f"{first.trace} on {first.machine}", loc="left", fontsize="medium")
    axes.set_ylabel(f"scheduled memory, {unit}")
    _write(figure, axes, first.ops, path)


def plot_readings(
    title: str, planned_nbytes: Sequence[int], found_nbytes: Sequence[int], path: Path | str
) -> None:
    """Draw a device's bytes before each operation, beyond those at the start: as planned, as found.

    Raises as `plot_memory` does.
    """
    figure, axes = _empty()
    places = np.arange(1, len(planned_nbytes) + 1)
    for label, nbytes, width in (("planned", planned_nbytes, 4.0), ("found", found_nbytes, 1.2)):
        axes.plot(places, np.asarray(nbytes) / 2**20, drawstyle="steps-mid", lw=width, label=label)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_ylabel("memory beyond the start's, MiB")
    _write(figure, axes, len(places), path)


def _empty() -> "tuple[Figure, Axes]":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(
            "a plot needs matplotlib; install it with: pip install 'superneurons[plot]'"
        ) from None
    figure = Figure(figsize=(8, 4), layout="constrained")
    return figure, figure.add_subplot()


def _write(figure: "Figure", axes: "Axes", ops: int, path: Path | str) -> None:
    axes.set_xlabel("operation of the step (forward, then backward)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlim(0.5, ops + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    drawn = BytesIO()
    try:
        figure.savefig(drawn, format=Path(path).suffix[1:] or "png", dpi=150)
    except ValueError as error:
        raise InvalidInput(f"{path}: the plot cannot be written: {error}") from None
    write_bytes(Path(path), drawn.getvalue())


def _draw(axes: "Axes", report: Report, scale: int) -> None:
    curve = memory_curve(report) / scale
    label = f"{report.policy}: {format_bytes(report.step_peak_bytes)}"
    (line,) = axes.plot(np.arange(1, len(curve) + 1), curve, drawstyle="steps-mid", label=label)
    if len(curve):
        peak = int(curve.argmax())
        axes.plot([peak + 1], [curve[peak]], "o", markersize=4, color=line.get_color())
