"""What a run cost: the type both worlds return, tables, plots, timelines."""

from .report import Report, StallReport
from .table import print_table
from .timeline import MemorySample, Span, Timeline, write_timeline

__all__ = [
    "MemorySample",
    "Report",
    "Span",
    "StallReport",
    "Timeline",
    "print_table",
    "write_timeline",
]
