"""Run a user's step under the executor, and say what it cost beside what was predicted."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import torch
from msgspec import Struct

from ..allocators.registry import LESS_WASTE
from ..allocators.standing import Taken
from ..errors import DoesNotFit, InvalidInput
from ..machines import Machine
from ..notation import format_bytes
from ..reports import Explanation, Foreseen, PeakReading, Report, explain
from ..schedules import Schedule
from ..traces import Trace
from .audit import Reading
from .clock import Clocked
from .entry import find_entry
from .executor import Executor
from .journal import StepReport
from .plan import Plan
from .provenance import provenance

Predict = Callable[[Trace, Schedule, Machine], Report]
"""A simulator: what a schedule is expected to cost."""

Foresee = Callable[[Trace, Schedule, Machine], Foreseen]
"""A simulator: where the time of a schedule is expected to go."""

CLOCKED: Final = 5
"""How many steps are clocked, of which the one in the middle is explained."""


class RunReport(Struct, frozen=True, kw_only=True):
    """A few steps of one model under one policy: what was predicted, and what was measured.

    Peaks are bytes on the device, None where a device does not count them; the measured ones are
    those of the executed steps alone. *predicted_peak_bytes* are what is asked for,
    *predicted_allocated_bytes* the blocks that the allocator gives for it, as
    *measured_peak_bytes* are (`torch.cuda.max_memory_allocated`). *times* says what the predicted
    step time is made of: "measured" times of a recording, or a "roofline". *steps* are all of them,
    in order. *readings* are the bytes before each operation of one more step, and *explanation* is
    of a few that were clocked, if they were asked for.
    """

    model: str
    policy: str
    budget_bytes: int | None
    machine: str
    predicted_peak_bytes: int | None
    predicted_allocated_bytes: int | None
    predicted_reserved_bytes: int | None
    predicted_step_time_ns: int | None
    times: str
    measured_peak_bytes: int | None
    reserved_peak_bytes: int | None
    copied_out_bytes: int
    copied_in_bytes: int
    step_time_ns: int | None
    steps: list[StepReport]
    times_ns: list[int]
    readings: list[Reading]
    explanation: Explanation | None
    notices: list[str]
    versions: dict[str, str]


def run_function(
    text: str,
    policy: str,
    budget: str | None = None,
    machine: str | None = None,
    steps: int = 5,
    host_memory: str | None = None,
    times: str | None = None,
    *,
    peer: str | None = None,
    predict: Predict,
    audit: bool = False,
    foresee: Foresee | None = None,
    tell: Callable[[StepReport, int], None] | None = None,
    assume_constant: bool = False,
    verify: bool = False,
) -> RunReport:
    """Run *steps* steps of `MODULE:FUNCTION` by a policy, and one more that is watched for *audit*.

    On a GPU torch's allocator is held to the budget, for the whole process. With *foresee* a few
    more are clocked and one is watched, and what comes of it is explained.
    *times* is a recording of the same step, or its file; *tell* hears of each step, with its time.
    The rest is as `Executor` takes it.
    """
    if steps < 3:
        raise InvalidInput(
            f"{steps} steps execute no schedule: the first two record, so run at least 3"
        )
    name, make = find_entry(text)
    runs = Executor(
        policy,
        budget,
        machine,
        peer=peer,
        host_memory=host_memory,
        times=times,
        assume_constant=assume_constant,
        verify=verify,
    )
    runs.backend.timing = True
    if runs.budget is not None:
        runs.backend.hold_to(runs.budget)
    with runs.backend.device, _shortage_told(name, runs):
        step = make()
    reports, took_ns = [], []
    measured = reserved = None
    for report, took in _run(runs, step, steps, name):
        reports.append(report)
        took_ns.append(took)
        if tell is not None:
            tell(report, took)
        if report.mode == "executed" and runs.backend.device.type == "cuda":
            measured = max(measured or 0, torch.cuda.max_memory_allocated(runs.backend.device))
            reserved = max(reserved or 0, torch.cuda.max_memory_reserved(runs.backend.device))
    clocked = []
    if foresee is not None:
        runs.clock = True
        clocked = [
            runs.clocked for _ in _run(runs, step, CLOCKED, name) if runs.clocked is not None
        ]
    if audit or foresee is not None:
        runs.audit = True
        list(_run(runs, step, 1, name))
    expected = _expected(runs, predict)
    taken = None if expected is None else taken_by(runs.plans[-1], expected)
    explanation = None
    if foresee is not None and clocked:
        peak = _peak(runs, clocked[-1].plan, taken, measured)
        explanation = _explained(runs, clocked, foresee, peak)
    done = [i for i, report in enumerate(reports) if report.mode == "executed"]
    last = reports[-1]
    return RunReport(
        model=name,
        policy=repr(runs.policy),
        budget_bytes=runs.budget,
        machine=runs.machine.name,
        predicted_peak_bytes=None if expected is None else expected.device_peak_bytes,
        predicted_allocated_bytes=None if taken is None else taken.allocated_nbytes,
        predicted_reserved_bytes=None if taken is None else taken.reserved_nbytes,
        predicted_step_time_ns=None if expected is None else expected.step_time_ns,
        times=runs.plans[-1].trace.times if runs.plans else "none",
        measured_peak_bytes=measured,
        reserved_peak_bytes=reserved,
        copied_out_bytes=last.copied_out_nbytes,
        copied_in_bytes=last.copied_in_nbytes,
        step_time_ns=round(median(took_ns[i] for i in done)) if done else None,
        steps=[msgspec.structs.replace(report, storages=[]) for report in reports],
        times_ns=took_ns,
        readings=runs.readings,
        explanation=explanation,
        notices=runs.notices,
        versions=provenance(runs.backend.device),
    )


def _expected(runs: Executor, predict: Predict) -> Report | None:
    """Return what the last schedule should cost on the machine, with the allocator that it has."""
    if not runs.plans:
        return None
    plan = runs.plans[-1]
    return predict(plan.proved, plan.schedule, _machine(runs))


def taken_by(plan: Plan, expected: Report) -> Taken:
    """Return what the allocator should take at most by a plan: in this process, if its model knows
    that, else in the one of the report, which begins with this schedule."""
    fresh = Taken(expected.allocated_peak_bytes, expected.reserved_peak_bytes)
    return plan.decided.peaks or fresh


def _machine(runs: Executor) -> Machine:
    return msgspec.structs.replace(runs.machine, allocator=runs.backend.allocator)


def _explained(
    runs: Executor, clocked: Sequence[Clocked], foresee: Foresee, peak: PeakReading | None
) -> Explanation:
    """Explain the steps that were clocked, those by the plan of the last."""
    plan = clocked[-1].plan
    foreseen = foresee(plan.proved, plan.schedule, _machine(runs))
    steps = [each.stretches for each in clocked if each.plan is plan]
    return explain(plan.trace, foreseen, steps, peak)


def _peak(
    runs: Executor, plan: Plan, taken: Taken | None, measured: int | None
) -> PeakReading | None:
    readings, differences = runs.readings, runs.differences
    if not readings:
        return None
    planned = max(readings, key=lambda each: each.planned_nbytes)
    found = max(readings, key=lambda each: each.found_nbytes)
    start_nbytes = plan.trace.facts.start_nbytes
    return PeakReading(
        planned_nbytes=start_nbytes + planned.planned_nbytes,
        planned_op=planned.op,
        found_nbytes=start_nbytes + found.found_nbytes,
        found_op=found.op,
        places=len(readings),
        different=len(differences),
        first_op=differences[0].op if differences else None,
        planned_blocks_nbytes=None if taken is None else taken.allocated_nbytes,
        found_blocks_nbytes=measured,
    )


def append_line(report: RunReport, path: str) -> None:
    """Append a run to a file, as one line of JSON."""
    with Path(path).open("ab") as file:
        file.write(msgspec.json.encode(report) + b"\n")


@contextmanager
def _shortage_told(name: str, runs: Executor, done: int | None = None) -> Iterator[None]:
    """Say in a sentence that there was too little memory, after *done* steps or before the first.

    Raises DoesNotFit in place of torch's OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        when = "while it was built" if done is None else f"in step {done}"
        within = "" if runs.budget is None else f" within {format_bytes(runs.budget)}"
        told = str(error).partition("\n")[0].split(". ")  # what follows is for those who tune torch
        raise DoesNotFit(
            f"{name} ran out of memory{within} {when}; give more, or take a smaller batch"
            f"{LESS_WASTE.get(runs.backend.allocator, '')} (torch: {'. '.join(told[:2])})"
        ) from error


def _run(
    runs: Executor, step: Callable[[], object], steps: int, name: str
) -> Iterator[tuple[StepReport, int]]:
    device = runs.backend.device
    for _ in range(steps):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter_ns()
        with _shortage_told(name, runs, runs.steps), runs.step():
            step()
        runs.backend.drain()
        took = time.perf_counter_ns() - begin
        assert runs.report is not None
        yield runs.report, took
