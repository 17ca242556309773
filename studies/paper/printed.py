"""The figures that the paper prints: data, read from printed.yaml."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from ...notation.files import read_data

FORMAT: Final = "superneurons-printed/1"


@cache
def _all() -> dict[str, Any]:
    path = Path(str(files(__package__))) / "printed.yaml"
    return read_data(path, FORMAT, "file of printed figures")


def printed(exhibit: str, part: str = "values") -> Any:
    """Return a part of what is printed in a table or figure, the figures themselves by default."""
    return _all()[exhibit][part]


def unit(exhibit: str) -> str:
    """Return in what unit, and counting what, a table or figure is printed."""
    text: str = _all()[exhibit]["unit"]
    return text
