"""Execute and record: the folder that knows torch."""

from .entry import find_entry, record_function
from .estimate import estimate
from .executor import Executor
from .journal import StepReport
from .recorder import Recorder, record
from .run import RunReport, append_line, run_function

__all__ = [
    "Executor",
    "Recorder",
    "RunReport",
    "StepReport",
    "append_line",
    "estimate",
    "find_entry",
    "record",
    "record_function",
    "run_function",
]
