"""An exhibit: one table or figure of the paper, printed beside computed."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Compare = Literal["exact", "percent", "points"]
"""How a computed figure is set against a printed one: by difference, in percent of the print, or,
where both are shares in percent, in points."""


class Row(Struct, frozen=True):
    """One printed figure beside the computed one; None where there is none.

    A *calibrated* figure was used to fix a parameter of the model: of it there is no error.
    """

    label: str
    printed: float | None
    computed: float | None
    calibrated: bool = False

    def difference(self, compare: Compare) -> float | None:
        """Return computed less printed, in percent of the print for "percent"; None if no error
        can be told."""
        if self.printed is None or self.computed is None or self.calibrated:
            return None
        gap = self.computed - self.printed
        if compare == "percent":
            return 100 * gap / self.printed if self.printed else None
        return gap


class Table(Struct, frozen=True, kw_only=True):
    """Rows of one unit and one counting *rule*, shown with so many *digits*.

    *tolerance* is the largest difference that counts as agreement, where agreement is expected.
    """

    title: str
    unit: str
    rule: str
    rows: tuple[Row, ...]
    digits: int = 3
    compare: Compare = "percent"
    tolerance: float | None = None

    def cells(self) -> list[tuple[str, str, str, str]]:
        """Return the rows as text: label, printed, computed, difference."""
        return [
            (
                row.label,
                self._figure(row.printed),
                self._figure(row.computed),
                self._difference(row),
            )
            for row in self.rows
        ]

    def summary(self) -> str:
        """Return in a sentence or two how far the figures are apart, calibrated ones left out."""
        missing = sum(row.printed is not None and row.computed is None for row in self.rows)
        lacking = f" {missing} more are printed and have no counterpart." if missing else ""
        return f"{self._distance()}{lacking}".strip()

    def _distance(self) -> str:
        found = [row.difference(self.compare) for row in self.rows]
        gaps = [abs(gap) for gap in found if gap is not None]
        if not gaps:
            return ""
        unit = {"exact": "", "percent": " %", "points": " points"}[self.compare]
        worst = f"{max(gaps):.3f}" if self.tolerance is not None else f"{max(gaps):.1f}"
        if max(gaps) == 0:
            return f"All {len(gaps)} agree exactly."
        if self.tolerance is not None:
            good = sum(gap <= self.tolerance for gap in gaps)
            bound = f"within {self.tolerance:g}{unit}" if self.tolerance else "exactly"
            return f"{good} of {len(gaps)} agree {bound}; the largest difference is {worst}{unit}."
        mean = sum(gaps) / len(gaps)
        return f"{len(gaps)} compared: {mean:.1f}{unit} off on average, {worst}{unit} at worst."

    def _figure(self, value: float | None) -> str:
        return "-" if value is None else f"{value:.{self.digits}f}"

    def _difference(self, row: Row) -> str:
        if row.calibrated:
            return "calibrated"
        gap = row.difference(self.compare)
        if gap is None:
            return "-"
        if gap == 0:
            return "0"
        digits, unit = self.digits, ""
        if self.compare == "percent":
            digits, unit = (1, " %") if self.tolerance is None else (3, " %")
        shown = round(gap, digits) + 0.0  # no negative zero
        return f"{shown:{'+' if shown else ''}.{digits}f}{unit}"


Series = dict[str, tuple[tuple[float, ...] | tuple[str, ...], tuple[float, ...]]]
"""Curves or groups of bars by label: where they stand, and how high."""


class Panel(Struct, frozen=True, kw_only=True):
    """One pair of axes of a plot; a label that begins with "printed" is drawn as the paper's."""

    title: str
    across: str
    up: str
    series: Series
    kind: Literal["bars", "lines"] = "bars"


class Exhibit(Struct, frozen=True, kw_only=True):
    """A table or figure of the paper: what was computed, how, and what to think of it.

    *method* says what was simulated, *calibration* what was fixed by which printed figures ("" if
    nothing), *notes* what is not reproduced and why, *command* how to get at a figure by hand.
    """

    name: str
    title: str
    method: str
    tables: tuple[Table, ...]
    panels: tuple[Panel, ...] = ()
    calibration: str = ""
    notes: tuple[str, ...] = ()
    command: str = ""


def bars(title: str, across: str, up: str, rows: Sequence[Row]) -> Panel:
    """Return rows as bars, printed beside computed; a row's label is what follows its last comma
    where all have the same before it."""
    heads = {row.label.rpartition(", ")[0] for row in rows}
    one = len(heads) == 1
    labels = tuple(row.label.rpartition(", ")[2] if one else row.label for row in rows)
    return Panel(
        title=title,
        across=across,
        up=up,
        series={
            "printed": (labels, tuple(row.printed or 0.0 for row in rows)),
            "computed": (labels, tuple(row.computed or 0.0 for row in rows)),
        },
    )
