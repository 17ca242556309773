"""The command that records or estimates a training step."""

import click

from .extras import require_torch
from .output import new_trace


@click.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "-o",
    "--output",
    callback=new_trace,
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
    from ..notation import format_bytes
    from ..traces import write_trace

    require_torch("recording")
    from ..executor import record_function

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
