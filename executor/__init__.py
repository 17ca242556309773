"""Execute and record: the folder that knows torch."""

from .entry import find_entry, record_function
from .estimate import estimate
from .recorder import Recorder, record

__all__ = ["Recorder", "estimate", "find_entry", "record", "record_function"]
