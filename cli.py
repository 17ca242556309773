"""The command line: thin. It finds things by name, asks for a report, and prints it."""

import inspect
from typing import Any

import click

from . import __version__
from .commands import ablate, convert, paper, record, run
from .commands.output import print_json
from .errors import IllegalSchedule, InvalidInput, PolicyFailed, SuperneuronsError


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
main.add_command(convert)
main.add_command(paper)
main.add_command(record)
main.add_command(run)


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
        print_json(reports)
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
        print_json(found)
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
