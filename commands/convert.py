"""The command that reads other tools' traces."""

import click

from .output import new_trace


@click.command()
@click.argument("foreign", type=click.Path())
@click.option(
    "-o",
    "--output",
    "trace",
    callback=new_trace,
    required=True,
    help="The trace file to write: step.yaml, step.json.gz",
)
def convert(foreign: str, trace: str) -> None:
    """Make a trace file of FOREIGN: another tool's file, or a trace that is to be spelled anew."""
    from ..traces import write_trace
    from ..traces.readers import read_foreign

    found, step = read_foreign(foreign)
    write_trace(step, trace)
    lacks = step.notes.get("lacking", found.lacks)
    click.echo(
        f"{foreign}: {found.title}. {len(step.operations)} operations, {len(step.storages)} "
        f"storages, written to {trace}." + (f" It lacks: {lacks}." if lacks else "")
    )
