"""Timelines: what each lane did when, as a Chrome trace for Perfetto (https://ui.perfetto.dev)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..notation.files import write_bytes


class Span(Struct, frozen=True, gc=False):
    """A lane busy with, or waiting for, something from *start_ns* to *end_ns*."""

    lane: str
    name: str
    start_ns: int
    end_ns: int


class MemorySample(Struct, frozen=True, gc=False):
    """The bytes on the device from *at_ns* on."""

    at_ns: int
    device_nbytes: int
    scheduled_nbytes: int


class Timeline(Struct, frozen=True):
    """One step as it went by: spans of all lanes, and memory in order of time."""

    spans: Sequence[Span]
    memory: Sequence[MemorySample]


def write_timeline(timelines: Iterable[tuple[str, Timeline]], path: Path | str) -> None:
    """Write timelines, each with its label (a policy's, say), as one Chrome trace: a process for
    each, a row for each lane, and a counter of the bytes. Times are microseconds there."""
    events: list[dict[str, object]] = []
    for pid, (label, timeline) in enumerate(timelines, start=1):
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": label}})
        rows = {lane: row for row, lane in enumerate(dict.fromkeys(s.lane for s in timeline.spans))}
        for lane, row in rows.items():
            at = {"ph": "M", "pid": pid, "tid": row}
            events.append({**at, "name": "thread_name", "args": {"name": lane}})
            events.append({**at, "name": "thread_sort_index", "args": {"sort_index": row}})
        events.extend(
            {
                "ph": "X",
                "pid": pid,
                "tid": rows[span.lane],
                "name": span.name,
                "ts": span.start_ns / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
            }
            for span in timeline.spans
        )
        events.extend(
            {
                "ph": "C",
                "pid": pid,
                "name": "device memory",
                "ts": sample.at_ns / 1000,
                "args": {
                    "scheduled bytes": sample.scheduled_nbytes,
                    "other bytes": sample.device_nbytes - sample.scheduled_nbytes,
                },
            }
            for sample in timeline.memory
        )
    content = {"displayTimeUnit": "ms", "traceEvents": events}
    write_bytes(Path(path), msgspec.json.encode(content) + b"\n")
