"""Readers of other people's files: operator logs, kernel lists, memory snapshots become traces."""

from .format import Format, find_format, read_foreign

__all__ = [
    "Format",
    "find_format",
    "read_foreign",
]
