"""A step with memory decisions in it: instructions, ledger, checker, files."""

from .builder import Builder
from .checker import check
from .file import read_schedule, write_schedule
from .instructions import Copy, Discard, Fetch, Free, Instruction, Rerun, Run
from .ledger import Ledger
from .schedule import Schedule
from .timing import Timing

__all__ = [
    "Builder",
    "Copy",
    "Discard",
    "Fetch",
    "Free",
    "Instruction",
    "Ledger",
    "Rerun",
    "Run",
    "Schedule",
    "Timing",
    "check",
    "read_schedule",
    "write_schedule",
]
