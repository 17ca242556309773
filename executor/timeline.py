"""The profiler's timeline of one step: what ran on the GPU, when the host launched it.

Read from the Chrome trace that torch.profiler writes: its events are documented, the profiler's own
classes are not.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import InvalidInput
from .private import Overload
from .tensors import next_call


class Activity(NamedTuple):
    """A kernel, a copy or a fill on the GPU, and the call by which the host launched it, in ns."""

    name: str
    stream: int
    start_ns: int
    ns: int
    launch_ns: int
    launched_ns: int

    @property
    def end_ns(self) -> int:
        """When it ended."""
        return self.start_ns + self.ns


class Wait(NamedTuple):
    """A call in which the host waited for the GPU, in ns."""

    start_ns: int
    ns: int


class Timeline(NamedTuple):
    """One step: activities in the order of their launches, waits, and marked stretches."""

    activities: list[Activity]
    waits: list[Wait]
    marks: list[tuple[int, int, int]]  # of operations: number, begin and end in ns


_WAITS: Final = ("Synchronize", "cudaMemcpy")
_MARK: Final = "superneurons:"


class Marks:
    """Marks each observed operator in the profile with its number, in the order of the log."""

    def __init__(self) -> None:
        self.count = 0
        self.calls = 0  # the digest of all calls, as the log makes it

    def observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See an operator: run it, with a mark around it."""
        number, self.count = self.count, self.count + 1
        self.calls = next_call(self.calls, func, args, kwargs)
        with record_function(f"{_MARK}{number}"):
            return func(*args, **kwargs)


@contextmanager
def profiled(found: list[Timeline], device: int, *, host: bool) -> Iterator[None]:
    """Append the timeline of what runs on a GPU in the block to *found*; with marks if *host*.

    Raises InvalidInput if the profiler saw kernels but gave no time to any: torch 2.11 has done so.
    """
    torch.cuda.synchronize()  # what is still queued is another step's, and would hold this one up
    activities = [ProfilerActivity.CUDA, *([ProfilerActivity.CPU] if host else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        yield
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"
        profiler.export_chrome_trace(str(path))
        timeline = read_timeline(json.loads(path.read_bytes()), device)
    if timeline.activities and not any(activity.ns for activity in timeline.activities):
        raise InvalidInput(
            f"the profiler saw {len(timeline.activities)} kernels and gave no time to any of them; "
            "record in a process of its own, without another profiler"
        )
    found.append(timeline)


def read_timeline(trace: dict[str, Any], device: int = 0) -> Timeline:
    """Return what a Chrome trace says of one step on the GPU of that number."""
    launches: dict[int, tuple[int, int]] = {}
    running: list[dict[str, Any]] = []
    waits: list[Wait] = []
    marks: list[tuple[int, int, int]] = []
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if category in ("cuda_runtime", "cuda_driver"):
            start, ns = _ns(event["ts"]), _ns(event["dur"])
            launches.setdefault(event["args"].get("correlation", -1), (start, start + ns))
            name = event["name"]
            if _WAITS[0] in name or name == _WAITS[1]:
                waits.append(Wait(start, ns))
        elif category in ("kernel", "gpu_memcpy", "gpu_memset"):
            if event["args"].get("device", device) == device:
                running.append(event)
        elif category == "user_annotation" and event["name"].startswith(_MARK):
            number = int(event["name"].removeprefix(_MARK))
            marks.append((number, _ns(event["ts"]), _ns(event["ts"]) + _ns(event["dur"])))
    activities = []
    for event in running:
        launch = launches.get(event["args"].get("correlation", -2))
        start = _ns(event["ts"])
        begin, end = launch or (start, start)
        activities.append(
            Activity(event["name"], event["args"]["stream"], start, _ns(event["dur"]), begin, end)
        )
    activities.sort(key=lambda each: (each.launch_ns, each.start_ns))
    return Timeline(activities, sorted(waits), sorted(marks))


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
