"""What a training step is: the model, its files, the networks of the paper."""

from .catalog import find_trace, trace_maker, trace_names
from .collector import without_collector
from .facts import Facts
from .file import read_trace, write_trace
from .model import (
    Algorithm,
    Kind,
    Operation,
    Phase,
    Precision,
    Recompute,
    Release,
    Save,
    Storage,
    Trace,
    Value,
)
from .randomized import random_trace
from .shipped import shipped
from .timed import with_times

__all__ = [
    "Algorithm",
    "Facts",
    "Kind",
    "Operation",
    "Phase",
    "Precision",
    "Recompute",
    "Release",
    "Save",
    "Storage",
    "Trace",
    "Value",
    "find_trace",
    "random_trace",
    "read_trace",
    "shipped",
    "trace_maker",
    "trace_names",
    "with_times",
    "without_collector",
    "write_trace",
]
