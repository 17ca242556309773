"""What a run cost: the type both worlds return, tables, plots, timelines."""

from .explanation import Difference, Explanation, PeakReading, explain
from .passage import Foreseen, Stretch
from .report import Report, StallReport
from .table import print_table
from .timeline import MemorySample, Span, Timeline, write_timeline

__all__ = [
    "Difference",
    "Explanation",
    "Foreseen",
    "MemorySample",
    "PeakReading",
    "Report",
    "Span",
    "StallReport",
    "Stretch",
    "Timeline",
    "explain",
    "print_table",
    "write_timeline",
]
