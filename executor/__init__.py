"""Execute and record: the folder that knows torch."""

from .entry import find_entry, record_function
from .estimate import estimate
from .executor import Executor
from .recorder import Recorder, record

__all__ = ["Executor", "Recorder", "estimate", "find_entry", "record", "record_function"]
