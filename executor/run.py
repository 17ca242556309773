"""Run a user's step under the executor, and say what it cost beside what was predicted."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import msgspec
import torch
from msgspec import Struct

from ..errors import InvalidInput
from .entry import find_entry
from .executor import Executor
from .journal import StepReport
from .provenance import provenance


class RunReport(Struct, frozen=True, kw_only=True):
    """A few steps of one model under one policy: what was predicted, and what was measured.

    Peaks are bytes on the device, None where a device does not count them; the measured ones are
    those of the executed steps alone. *steps* are all of them, in order.
    """

    model: str
    policy: str
    budget_bytes: int | None
    machine: str
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None
    reserved_peak_bytes: int | None
    copied_out_bytes: int
    copied_in_bytes: int
    step_time_ns: int | None
    steps: list[StepReport]
    times_ns: list[int]
    notices: list[str]
    versions: dict[str, str]


def run_function(
    text: str,
    policy: str,
    budget: str | None = None,
    machine: str | None = None,
    steps: int = 5,
    host_memory: str | None = None,
    tell: Callable[[StepReport, int], None] | None = None,
    *,
    assume_constant: bool = False,
    verify: bool = False,
) -> RunReport:
    """Run *steps* steps of `MODULE:FUNCTION` by a policy; *tell* hears of each, with its time. The
    rest is as `Executor` takes it."""
    if steps < 1:
        raise InvalidInput(f"{steps} steps are none; the first two record, so run at least 3")
    name, make = find_entry(text)
    runs = Executor(
        policy,
        budget,
        machine,
        host_memory=host_memory,
        assume_constant=assume_constant,
        verify=verify,
    )
    runs.backend.timing = True
    with runs.backend.device:
        step = make()
    reports, times = [], []
    measured = reserved = None
    for report, took in _run(runs, step, steps):
        reports.append(report)
        times.append(took)
        if tell is not None:
            tell(report, took)
        if report.mode == "executed" and runs.backend.device.type == "cuda":
            measured = max(measured or 0, torch.cuda.max_memory_allocated(runs.backend.device))
            reserved = max(reserved or 0, torch.cuda.max_memory_reserved(runs.backend.device))
    done = [i for i, report in enumerate(reports) if report.mode == "executed"]
    last = reports[-1]
    return RunReport(
        model=name,
        policy=repr(runs.policy),
        budget_bytes=runs.budget,
        machine=runs.machine.name,
        predicted_peak_bytes=runs.plans[-1].ledger.device_peak_nbytes if runs.plans else None,
        measured_peak_bytes=measured,
        reserved_peak_bytes=reserved,
        copied_out_bytes=last.copied_out_nbytes,
        copied_in_bytes=last.copied_in_nbytes,
        step_time_ns=round(median(times[i] for i in done)) if done else None,
        steps=[msgspec.structs.replace(report, storages=[]) for report in reports],
        times_ns=times,
        notices=runs.notices,
        versions=provenance(runs.backend.device),
    )


def append_line(report: RunReport, path: str) -> None:
    """Append a run to a file, as one line of JSON."""
    with Path(path).open("ab") as file:
        file.write(msgspec.json.encode(report) + b"\n")


def _run(
    runs: Executor, step: Callable[[], object], steps: int
) -> Iterator[tuple[StepReport, int]]:
    device = runs.backend.device
    for _ in range(steps):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter_ns()
        with runs.step():
            step()
        runs.backend.drain()
        took = time.perf_counter_ns() - begin
        assert runs.report is not None
        yield runs.report, took
