"""What a run cost: the type both worlds return, tables, plots, timelines."""

from .report import Report, StallReport

__all__ = ["Report", "StallReport"]
