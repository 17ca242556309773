"""Exhibits drawn: one image each, a panel for each part."""

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Final

from ...errors import MissingExtra
from .exhibit import Exhibit, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABREAST: Final = 3
"""So many panels stand side by side."""

_COLOURS: Final = {
    "computed": "C0",
    "printed": "C1",
    "printed superneurons": "C1",
    "printed caffe": "C2",
    "printed mxnet": "C3",
    "printed tensorflow": "C4",
    "printed torch": "C5",
}


def require_matplotlib() -> None:
    """Refuse to begin what will be drawn in the end. Raises MissingExtra without matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingExtra(
            "a plot needs matplotlib; install it with: pip install 'superneurons[plot]'"
        )


def draw(exhibit: Exhibit) -> bytes:
    """Return an exhibit's panels as a PNG. Raises MissingExtra without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    count = len(exhibit.panels)
    columns = min(count, _ABREAST)
    rows = -(-count // columns)
    width = 4.5 * columns if columns > 1 else 8
    figure = Figure(figsize=(width, 3.2 * rows), layout="constrained")
    for i, panel in enumerate(exhibit.panels, 1):
        _draw(figure.add_subplot(rows, columns, i), panel)
    figure.suptitle(exhibit.title, fontsize="medium")
    drawn = BytesIO()
    # Without its version and date, so that the same figures make the same file.
    figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
    return drawn.getvalue()


def _draw(axes: "Axes", panel: Panel) -> None:
    if panel.kind == "lines":
        for label, (x, y) in panel.series.items():
            line = "--" if label.startswith("printed ") else "-"
            marker = "o" if len(x) < 20 else ""
            axes.plot(
                x,
                y,
                line,
                label=label,
                color=_COLOURS.get(label),
                linewidth=4 if label == "printed" else 1.2,  # else what agrees would hide it
                alpha=0.5 if label == "printed" else 1,
                marker=marker,
                markersize=3,
            )
    else:
        _bars(axes, panel)
    axes.set_title(panel.title, fontsize="small")
    axes.set_xlabel(panel.across, fontsize="small")
    axes.set_ylabel(panel.up, fontsize="small")
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, fontsize="x-small")


def _bars(axes: "Axes", panel: Panel) -> None:
    width = 0.8 / len(panel.series)
    places: list[str] = []
    for labels, _ in panel.series.values():
        places += [str(label) for label in labels if str(label) not in places]
    for i, (label, (x, y)) in enumerate(panel.series.items()):
        at = [places.index(str(place)) + (i - (len(panel.series) - 1) / 2) * width for place in x]
        axes.bar(at, y, width=width, label=label, color=_COLOURS.get(label))
    axes.set_xticks(range(len(places)), places, rotation=30, ha="right")
