"""The paper's tables and figures, computed anew and set beside the print."""

from .catalog import EXHIBITS, exhibit_names
from .exhibit import Exhibit, Panel, Row, Table
from .page import prepare, write_page
from .printed import printed
from .terminal import print_exhibit

__all__ = [
    "EXHIBITS",
    "Exhibit",
    "Panel",
    "Row",
    "Table",
    "exhibit_names",
    "prepare",
    "print_exhibit",
    "printed",
    "write_page",
]
