"""The page: docs/paper.md, written from exhibits between words that stand in page.md."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from ...errors import InvalidInput
from ...notation.files import write_bytes
from .exhibit import Exhibit, Table
from .plots import draw, require_matplotlib

PAGE: Final = "paper.md"
PLOTS: Final = "paper"
_SECTION: Final = re.compile(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->\n", re.DOTALL)


def prepare(folder: Path) -> None:
    """Make the folders that a page is written into.

    Raises MissingExtra without matplotlib, InvalidInput if they cannot be made.
    """
    require_matplotlib()
    try:
        (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be written into: {error.strerror}") from None


def write_page(exhibits: Sequence[Exhibit], folder: Path) -> list[Path]:
    """Write the page and the plots of *exhibits* into a folder; return what was written.

    Sections of exhibits that are not given stay as they are in the page that is there. Raises
    MissingExtra without matplotlib, InvalidInput if a file cannot be written.
    """
    prepare(folder)
    drawn = {exhibit.name: draw(exhibit) for exhibit in exhibits if exhibit.panels}
    written = []
    for name, image in drawn.items():
        written.append(folder / PLOTS / f"{name}.png")
        write_bytes(written[-1], image)
    page = folder / PAGE
    before = _sections(page.read_text(encoding="utf-8")) if page.exists() else {}
    now = before | {exhibit.name: section(exhibit) for exhibit in exhibits}
    template = (files(__package__) / "page.md").read_text(encoding="utf-8")
    text = _SECTION.sub(lambda match: _marked(match[1], now.get(match[1], "")), template)
    write_bytes(page, text.encode())
    return [page, *written]


def section(exhibit: Exhibit) -> str:
    """Return an exhibit as a section in Markdown."""
    parts = [f"## {exhibit.title}", exhibit.method]
    if exhibit.calibration:
        parts.append(f"*Calibration.* {exhibit.calibration}")
    for table in exhibit.tables:
        parts.append(_table(table))
    if exhibit.panels:
        parts.append(f"![{exhibit.title}]({PLOTS}/{exhibit.name}.png)")
    if exhibit.notes:
        parts.append("\n".join(f"- {note}" for note in exhibit.notes))
    if exhibit.command:
        parts.append(f"By hand: `{exhibit.command}`")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head = [
        f"**{table.title}**, {table.unit}. Counted: {table.rule}. {table.summary()}".rstrip(),
        "",
        "| | printed | computed | difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    return "\n".join(head + [f"| {' | '.join(cells)} |" for cells in table.cells()])


def _marked(name: str, text: str) -> str:
    return f"<!-- begin {name} -->\n{text}<!-- end {name} -->\n"


def _sections(page: str) -> dict[str, str]:
    """Return the sections of a page by name, without their marks."""
    found = {}
    for match in _SECTION.finditer(page):
        found[match[1]] = match[0].partition("\n")[2].rpartition(f"<!-- end {match[1]} -->")[0]
    return found
