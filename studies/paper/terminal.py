"""Exhibits on the terminal."""

from .exhibit import Exhibit


def print_exhibit(exhibit: Exhibit) -> None:
    """Print an exhibit's tables, with what was done and what to think of it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    width = None if Console().is_terminal else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(exhibit.title, style="bold")
    console.print(exhibit.method)
    if exhibit.calibration:
        console.print(f"Calibration: {exhibit.calibration}")
    for each in exhibit.tables:
        table = Table(box=SIMPLE_HEAD, title=each.title, title_justify="left", pad_edge=False)
        table.add_column(each.unit, overflow="fold")
        for column in ("printed", "computed", "difference"):
            table.add_column(column, justify="right", no_wrap=True)
        for cells in each.cells():
            table.add_row(*cells)
        console.print(table)
        console.print(f"Counted: {each.rule}. {each.summary()}".rstrip())
    for note in exhibit.notes:
        console.print(f"- {note}")
    console.print()
