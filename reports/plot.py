"""Memory over a step, drawn."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingExtra
from ..notation.files import write_bytes
from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def memory_curve(report: Report) -> NDArray[np.float64]:
    """Return the scheduled bytes at each operation of the step, in MiB, shape (operations,)."""
    return np.asarray(report.step_bytes, dtype=np.float64) / 2**20


def plot_memory(reports: Sequence[Report], path: Path | str) -> None:
    """Draw the scheduled bytes over the step, one line a report, into the image file at *path*.

    Raises MissingExtra without matplotlib, InvalidInput if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(
            "a plot needs matplotlib; install it with: pip install 'superneurons[plot]'"
        ) from None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for report in reports:
        _draw(axes, report)
    first = reports[0]
    axes.set_title(f"{first.trace} on {first.machine}", loc="left", fontsize="medium")
    axes.set_xlabel("operation of the step (forward, then backward)")
    axes.set_ylabel("scheduled memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_xlim(1, max(2, first.ops))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    drawn = BytesIO()
    try:
        figure.savefig(drawn, format=Path(path).suffix[1:] or "png", dpi=150)
    except ValueError as error:
        raise InvalidInput(f"{path}: the plot cannot be written: {error}") from None
    write_bytes(Path(path), drawn.getvalue())


def _draw(axes: "Axes", report: Report) -> None:
    curve = memory_curve(report)
    label = f"{report.policy}: {report.step_peak_bytes / 2**20:,.1f} MiB"
    (line,) = axes.plot(np.arange(1, len(curve) + 1), curve, drawstyle="steps-mid", label=label)
    if len(curve):
        peak = int(curve.argmax())
        axes.plot([peak + 1], [curve[peak]], "o", markersize=4, color=line.get_color())
