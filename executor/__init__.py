"""Execute and record: the folder that knows torch."""

from .recorder import Recorder, record

__all__ = ["Recorder", "record"]
