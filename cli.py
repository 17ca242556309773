"""The command line: thin. It finds things by name, asks for a report, and prints it."""

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

import click

from . import __version__
from .commands import ablate, paper
from .errors import IllegalSchedule, InvalidInput, MissingExtra, PolicyFailed, SuperneuronsError


class _Commands(click.Group):
    """Turns our errors into one sentence and exit status 2; a traceback is for our own mistakes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SuperneuronsError as error:
            click.echo(f"superneurons: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="superneurons")
def main() -> None:
    """Simulate GPU-memory schedules for DNN training: what a memory policy costs."""


main.add_command(ablate)
main.add_command(paper)


@main.command()
@click.argument("trace")
@click.option(
    "--machine", required=True, help="A name or file, with overrides: k40c:host_to_device=12GB/s"
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("baseline,liveness,liveness+offload,superneurons",),
    show_default=True,
    help="Policies to compare, with parameters: liveness+offload:lookahead=3",
)
@click.option("--budget", help="Bound the device memory: 6GiB")
@click.option("--json", "as_json", is_flag=True, help="Print everything, as a list of objects.")
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Draw memory over the step (PNG, SVG, PDF)."
)
@click.option(
    "--timeline", type=click.Path(dir_okay=False), help="Write a Chrome/Perfetto trace (JSON)."
)
@click.option(
    "--schedule", type=click.Path(dir_okay=False), help="Save the decisions of one policy (JSON)."
)
def simulate(
    trace: str,
    machine: str,
    policies: tuple[str, ...],
    budget: str | None,
    as_json: bool,
    plot: str | None,
    timeline: str | None,
    schedule: str | None,
) -> None:
    """Say what each policy costs on TRACE, a file or a name with parameters: alexnet:batch=200."""
    from .machines import find_machine
    from .notation import parse_bytes, parse_calls
    from .policies import decide, find_policy
    from .reports import Timeline, print_table, write_timeline
    from .schedules import write_schedule
    from .sim import Recorder, play, retarget
    from .traces import find_trace

    names = [name for text in policies for name in parse_calls(text)]
    if schedule and len(names) != 1:
        raise InvalidInput(f"--schedule saves the decisions of one policy; {len(names)} are given")
    asked = [find_policy(name) for name in names]
    on = find_machine(machine)
    limit = None if budget is None else parse_bytes(budget)
    step = find_trace(trace)
    if step.machine and step.machine != on.name.partition(":")[0]:
        step = retarget(step, find_machine(step.machine), on)
    reports = []
    timelines: list[tuple[str, Timeline]] = []
    for policy in asked:
        decision = decide(policy, step, on, limit)
        recorder = Recorder(step) if timeline else None
        report = play(step, decision, on, recorder)
        reports.append(report)
        if recorder is not None:
            timelines.append((report.policy, recorder.timeline(decision.schedule)))
        if schedule:
            write_schedule(decision.schedule, step, schedule)
    if plot:
        from .reports.plot import plot_memory

        plot_memory(reports, plot)
    if timeline:
        write_timeline(timelines, timeline)
    if as_json:
        _print_json(reports)
    else:
        print_table(reports)


@main.command()
@click.argument("trace")
@click.option("--vary", "parameter", required=True, help="The parameter to find: batch, n3")
@click.option("--machine", required=True, help="A name or file, with overrides.")
@click.option("--policy", default="superneurons", show_default=True, help="One policy.")
@click.option("--budget", help="Bound the device memory: 6GiB")
@click.option("--json", "as_json", is_flag=True, help="Print everything, as an object.")
def fit(
    trace: str, parameter: str, machine: str, policy: str, budget: str | None, as_json: bool
) -> None:
    """Find the largest value of a parameter with which TRACE fits, by bisection.

    superneurons fit alexnet --vary batch --machine k40c --policy liveness+offload
    """
    from .machines import find_machine
    from .notation import format_bytes, parse_bytes, parse_call
    from .policies import find_policy
    from .studies import Trial
    from .studies import fit as search

    def tell(trial: Trial) -> None:
        click.echo(f"{parameter}={trial.value}: {trial.why}", err=True)

    on, asked = find_machine(machine), find_policy(policy)
    limit = None if budget is None else parse_bytes(budget)
    found = search(parse_call(trace), parameter, on, asked, limit, tell)
    if as_json:
        _print_json(found)
        return
    if found.best is None:
        click.echo(f"{trace} does not fit {on.name} under {policy}, not even with {parameter}=1.")
    else:
        report = found.best.report
        assert report is not None
        click.echo(
            f"{trace} fits {on.name} under {policy} up to {parameter}={found.best.value}: "
            f"{format_bytes(report.reserved_peak_bytes)} reserved of "
            f"{format_bytes(report.limit_bytes)}, step time {report.step_time_ns / 1e6:.3f} ms."
        )
    click.echo(f"The limit is: {found.limit} ({found.too_large.why}).")


@main.command()
@click.argument("trace")
@click.argument("file", type=click.Path(dir_okay=False))
def check(trace: str, file: str) -> None:
    """Prove the schedule in FILE over TRACE, the one that it was made for."""
    from .notation import format_bytes
    from .schedules import check as prove
    from .schedules import read_schedule
    from .traces import find_trace

    step = find_trace(trace)
    schedule = read_schedule(file, step)
    try:
        ledger = prove(step, schedule)
    except IllegalSchedule as error:
        raise InvalidInput(f"{file}: {error}") from None
    click.echo(
        f"{file}: legal. {len(schedule.instructions)} instructions of {schedule.policy} over "
        f"{step.name}; step peak {format_bytes(max(ledger.step_nbytes, default=0))}, device peak "
        f"{format_bytes(ledger.device_peak_nbytes)} of {format_bytes(schedule.limit_nbytes)}."
    )
    if schedule.short_nbytes:
        click.echo(f"It says itself that it is {schedule.short_nbytes} bytes short.")


@main.command()
@click.argument("trace", required=False)
def traces(trace: str | None) -> None:
    """List the built-in traces, explain one by its name, or say what is in TRACE."""
    from .traces import find_trace, shipped, trace_maker, trace_names

    if trace is None:
        _list({name: trace_maker(name) for name in trace_names()} | shipped())
    elif trace in trace_names():
        _explain(trace, trace_maker(trace))
    else:
        from .reports.summary import summary

        click.echo(summary(find_trace(trace)))


def _new_trace(_: click.Context, __: click.Parameter, name: str) -> str:
    """Refuse a trace file that could not be written, before anything is made for it."""
    from .traces.file import SUFFIXES

    if not name.endswith(SUFFIXES):
        raise InvalidInput(
            f"{name}: a trace file ends in {', '.join(SUFFIXES)}; give -o such a name"
        )
    if not Path(name).parent.is_dir():
        raise InvalidInput(f"{name}: there is no folder {str(Path(name).parent)!r}; make it first")
    return name


@main.command()
@click.argument("foreign", type=click.Path())
@click.option(
    "-o",
    "--output",
    "trace",
    callback=_new_trace,
    required=True,
    help="The trace file to write: step.yaml, step.json.gz",
)
def convert(foreign: str, trace: str) -> None:
    """Make a trace file of FOREIGN: another tool's file, or a trace that is to be spelled anew."""
    from .traces import write_trace
    from .traces.readers import read_foreign

    found, step = read_foreign(foreign)
    write_trace(step, trace)
    lacks = step.notes.get("lacking", found.lacks)
    click.echo(
        f"{foreign}: {found.title}. {len(step.operations)} operations, {len(step.storages)} "
        f"storages, written to {trace}." + (f" It lacks: {lacks}." if lacks else "")
    )


@main.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "-o",
    "--output",
    callback=_new_trace,
    required=True,
    help="The trace file to write: step.json.gz",
)
@click.option("--name", help="The trace's name; the function's unless given.")
@click.option(
    "--estimate", "guess", is_flag=True, help="Use no GPU, even if there is one, and no memory."
)
def record(function: str, output: str, name: str | None, guess: bool) -> None:
    """Record one training step of a PyTorch model: MODULE:FUNCTION or FILE.py:FUNCTION.

    The function builds model, inputs, loss and optimizer, on torch's default device, and returns a
    function without arguments that runs one whole training step. Parameters may follow:
    superneurons.zoo:resnet50:batch=64. Without a GPU the step is estimated.
    """
    from .notation import format_bytes
    from .traces import write_trace

    _require_torch("recording")
    from .executor import record_function

    trace, estimated = record_function(function, name, guess=guess)
    facts = trace.facts
    write_trace(trace, output)
    what = "estimated" if estimated else "recorded"
    click.echo(
        f"{output}: {what} {trace.name}, {facts.op_count} operations, {len(trace.saves)} saves, "
        f"{format_bytes(facts.start_nbytes)} there at the start; times: {trace.times}"
    )
    if "caveat" in trace.notes:
        click.echo(f"Take care: {trace.notes['caveat']}.")
    if estimated:
        click.echo("An estimate: no GPU was asked, so times and workspaces are not measured.")


@main.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--policy", required=True, help="One policy: liveness+offload:lookahead=3")
@click.option("--budget", help="Bound the device memory: 12GiB")
@click.option("--machine", help="A name or file; without one the links are measured.")
@click.option("--host-memory", help="Bound the host memory that is taken: 64GiB")
@click.option("--steps", default=5, show_default=True, help="Two are recorded, the rest executed.")
@click.option(
    "--assume-constant",
    is_flag=True,
    help="Compute again as in the recorded step, unseen: no number may change between steps.",
)
@click.option("--verify", is_flag=True, help="Compare what is computed again with a copy.")
@click.option("--log", type=click.Path(dir_okay=False), help="Append the run as a line of JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print everything, as an object.")
def run(
    function: str,
    policy: str,
    budget: str | None,
    machine: str | None,
    host_memory: str | None,
    steps: int,
    assume_constant: bool,
    verify: bool,
    log: str | None,
    as_json: bool,
) -> None:
    """Train by a policy's schedule: MODULE:FUNCTION or FILE.py:FUNCTION, as `record` takes it."""
    _require_torch("running")
    from .executor import StepReport, append_line, run_function
    from .notation import format_bytes, format_ns

    logging.getLogger("superneurons").addHandler(logging.NullHandler())  # notices are printed

    def tell(step: StepReport, took_ns: int) -> None:
        why = f" ({step.why})" if step.why else ""
        moved = f"{step.copied_out_nbytes} bytes out, {step.copied_in_nbytes} back"
        late = f", {step.late_fetches} late" if step.late_fetches else ""
        again = f", {step.replays} operations run again" if step.replays else ""
        click.echo(
            f"step {step.step}: {step.mode}{why}, {format_ns(took_ns)}; {moved}{late}{again}"
        )

    report = run_function(
        function,
        policy,
        budget,
        machine,
        steps,
        host_memory,
        None if as_json else tell,
        assume_constant=assume_constant,
        verify=verify,
    )
    if log:
        append_line(report, log)
    if as_json:
        _print_json(report)
        return
    for notice in report.notices:
        click.echo(notice)
    predicted, found = report.predicted_peak_bytes, report.measured_peak_bytes
    if predicted is not None:
        measured = "not measured here" if found is None else f"measured {format_bytes(found)}"
        click.echo(
            f"{report.model} under {report.policy}: peak {format_bytes(predicted)} predicted, "
            f"{measured}"
        )


@main.command()
@click.argument("policy", required=False)
def policies(policy: str | None) -> None:
    """List the policies, built in and installed, or print the manual of POLICY or of its parts."""
    from .notation import parse_call
    from .policies import policy_maker, policy_names

    if policy is None:
        makers: dict[str, Any] = {}
        for name in policy_names():
            try:
                makers[name] = policy_maker(name)
            except PolicyFailed as error:  # one broken plugin is in nobody's way
                makers[name] = error
        _list(makers)
        return
    for part in policy.split("+"):
        name = parse_call(part).name
        _explain(name, policy_maker(name))


@main.command()
@click.argument("name", required=False)
def machines(name: str | None) -> None:
    """List the built-in machines, or show the figures of one with their sources."""
    from .machines import find_machine, machine_names

    if name is None:
        width = max(map(len, machine_names()))
        for each in machine_names():
            click.echo(f"{each:{width}}  {find_machine(each).description}")
        return
    machine = find_machine(name)
    click.echo(f"{machine.name}: {machine.description}\n")
    for key, source in machine.sources.items():
        click.echo(f"{key} = {machine.written[key]}\n    {source}")


def _require_torch(what: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(
            f"{what} needs PyTorch: pip install 'superneurons[torch]', or a build of it from "
            "pytorch.org"
        )


def _print_json(content: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


def _list(makers: dict[str, Any]) -> None:
    width = max(map(len, makers))
    for name, maker in makers.items():
        told = isinstance(maker, PolicyFailed | str)
        text = str(maker) if told else inspect.getdoc(maker) or ""
        click.echo(f"{name:{width}}  {text.partition(chr(10))[0]}")


def _explain(name: str, maker: Any) -> None:
    from .notation import describe

    parameters = describe(maker)
    click.echo(f"{name}{':' if parameters else ''}{parameters}\n\n{inspect.getdoc(maker) or ''}")
