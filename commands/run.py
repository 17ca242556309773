"""The command that trains a user's step by a policy's schedule."""

import logging
from typing import TYPE_CHECKING

import click

from .extras import require_torch
from .output import new_file, print_json

if TYPE_CHECKING:
    from ..executor import RunReport, StepReport


@click.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--policy", required=True, help="One policy: liveness+offload:lookahead=3")
@click.option("--budget", help="Bound the device memory: 12GiB")
@click.option("--machine", help="A name or file; without one the links are measured.")
@click.option("--host-memory", help="Bound the host memory that is taken: 64GiB")
@click.option("--peer", help="Another GPU, for policies that send there: cuda:1")
@click.option("--times", metavar="TRACE", help="A recording of this step, for its times.")
@click.option("--steps", default=5, show_default=True, help="Two are recorded, the rest executed.")
@click.option(
    "--assume-constant",
    is_flag=True,
    help="Compute again as in the recorded step, unseen: no number may change between steps.",
)
@click.option("--verify", is_flag=True, help="Compare what is computed again with a copy.")
@click.option(
    "--log",
    type=click.Path(dir_okay=False),
    callback=new_file,
    help="Append the run as a line of JSON.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    callback=new_file,
    help="Draw memory over one more step (PNG, SVG, PDF)",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Clock a few more steps, and say where their time is not the simulated one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything, as an object.")
def run(
    function: str,
    policy: str,
    budget: str | None,
    machine: str | None,
    host_memory: str | None,
    peer: str | None,
    times: str | None,
    steps: int,
    assume_constant: bool,
    verify: bool,
    log: str | None,
    plot: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Train by a policy's schedule: MODULE:FUNCTION or FILE.py:FUNCTION, as `record` takes it."""
    require_torch("running")
    from ..executor import append_line, run_function
    from ..sim import foresee, simulate_schedule

    logging.getLogger("superneurons").addHandler(logging.NullHandler())  # notices are printed
    report = run_function(
        function,
        policy,
        budget,
        machine,
        steps,
        host_memory,
        times,
        peer=peer,
        predict=simulate_schedule,
        audit=plot is not None,
        foresee=foresee if explain else None,
        tell=None if as_json else _tell,
        assume_constant=assume_constant,
        verify=verify,
    )
    if log:
        append_line(report, log)
    if plot and not report.readings:
        click.echo("nothing is drawn, for no step ran by a schedule to its end", err=True)
    elif plot:
        from ..reports.plot import plot_readings

        plot_readings(
            f"{report.model} under {report.policy}",
            [each.planned_nbytes for each in report.readings],
            [each.found_nbytes for each in report.readings],
            plot,
        )
    if as_json:
        print_json(report)
    else:
        _conclude(report)
        if explain:
            _explain(report)


def _tell(step: "StepReport", took_ns: int) -> None:
    from ..notation import format_ns

    why = f" ({step.why})" if step.why else ""
    moved = f"{step.copied_out_nbytes} bytes out, {step.copied_in_nbytes} back"
    if step.mode in ("safe", "recorded"):
        moved = "all that autograd keeps out, and back on demand"
    late = f", {step.late_fetches} late" if step.late_fetches else ""
    again = f", {step.replays} operations run again" if step.replays else ""
    click.echo(f"step {step.step}: {step.mode}{why}, {format_ns(took_ns)}; {moved}{late}{again}")


def _conclude(report: "RunReport") -> None:
    from ..notation import format_bytes, format_ns

    for notice in report.notices:
        click.echo(notice)
    predicted, found = report.predicted_peak_bytes, report.measured_peak_bytes
    if predicted is None:
        return
    measured = ", not measured here" if found is None else ""
    click.echo(
        f"{report.model} under {report.policy}: peak {format_bytes(predicted)} predicted{measured}"
    )
    blocks, reserved = report.predicted_allocated_bytes, report.predicted_reserved_bytes
    there = report.reserved_peak_bytes
    if blocks and reserved and found and there:
        click.echo(
            f"torch's allocator: {format_bytes(blocks)} in blocks and {format_bytes(reserved)} "
            f"reserved by its model, {format_bytes(found)} and {format_bytes(there)} measured"
        )
    if report.predicted_step_time_ns is not None and report.step_time_ns is not None:
        by = "a recording's times" if report.times == "measured" else "the machine's roofline"
        click.echo(
            f"step time: {format_ns(report.predicted_step_time_ns)} predicted by {by}, "
            f"measured {format_ns(report.step_time_ns)}"
        )


def _explain(report: "RunReport") -> None:
    if report.explanation is None:
        last = report.steps[-1]
        why = f": {last.why}" if last.why else ""
        click.echo(f"nothing is explained, for no step ran by a schedule to its end{why}")
        return
    from ..reports.differences import print_explanation

    print_explanation(report.explanation, report.step_time_ns)
