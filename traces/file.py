"""Trace files: YAML for a trace short enough to be read, JSON (gzipped) for a recorded one."""

from pathlib import Path

import msgspec

from ..errors import InvalidTrace
from ..notation.files import read_as, write_data
from .collector import without_collector
from .model import FORMAT, Trace

SUFFIXES = (".yaml", ".yml", ".json", ".yaml.gz", ".yml.gz", ".json.gz")


def read_trace(path: Path | str) -> Trace:
    """Return the trace in the file at *path*, proved consistent.

    Raises InvalidInput or InvalidTrace with the file and the path to the fault.
    """
    path = Path(path)
    with without_collector():
        trace = read_as(path, FORMAT, "trace file", Trace)
    try:
        _ = trace.facts
    except InvalidTrace as error:
        raise InvalidTrace(f"{path}: {error}") from None
    return trace


def write_trace(trace: Trace, path: Path | str) -> None:
    """Write *trace* to the file at *path*, whole or not at all; its ending says how."""
    write_data(Path(path), FORMAT, msgspec.to_builtins(trace))
