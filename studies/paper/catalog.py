"""The exhibits by name, in the order of the page."""

from collections.abc import Callable
from typing import Final

from ...errors import UnknownName
from .capacity import table4, table5
from .exhibit import Exhibit
from .headline import headline
from .memory import fig2, fig10, table1
from .speed import fig14
from .times import fig8, fig11, table2
from .traffic import table3
from .workspaces import fig12, fig13

EXHIBITS: Final[dict[str, Callable[[], Exhibit]]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "fig2": fig2,
    "fig8": fig8,
    "fig10": fig10,
    "fig11": fig11,
    "fig12": fig12,
    "fig13": fig13,
    "fig14": fig14,
    "headline": headline,
}


def exhibit_names(asked: tuple[str, ...]) -> list[str]:
    """Return the names that are asked for, all if none is, in the order of the page.

    Raises UnknownName.
    """
    for name in asked:
        if name not in EXHIBITS:
            raise UnknownName(f"no table or figure {name!r}; there are: {', '.join(EXHIBITS)}")
    return [name for name in EXHIBITS if name in asked or not asked]
