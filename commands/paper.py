"""The command that regenerates the paper's tables and figures."""

from pathlib import Path

import click


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Write paper.md and paper/*.png into this folder: docs",
)
def paper(names: tuple[str, ...], out: str | None) -> None:
    """Compute the paper's tables and figures anew, all or by name: table1 fig10.

    Each is printed beside what the paper has, with unit and counting rule. The page and its plots
    are written with --out alone; sections that are not asked for stay as they are in it.
    """
    from rich.console import Console

    from ..studies.paper import EXHIBITS, exhibit_names, prepare, print_exhibit, write_page

    asked, made = exhibit_names(names), []
    if out is not None:
        prepare(Path(out))
    for name in asked:
        with Console(stderr=True).status(f"computing {name}"):
            made.append(EXHIBITS[name]())
        print_exhibit(made[-1])
    if out is not None:
        for path in write_page(made, Path(out)):
            click.echo(f"{path} is written.")
