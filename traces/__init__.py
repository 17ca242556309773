"""What a training step is: the model, its files, the networks of the paper."""

from .facts import Facts
from .file import read_trace, write_trace
from .model import Algorithm, Operation, Release, Save, Storage, Trace, Value

__all__ = [
    "Algorithm",
    "Facts",
    "Operation",
    "Release",
    "Save",
    "Storage",
    "Trace",
    "Value",
    "read_trace",
    "write_trace",
]
