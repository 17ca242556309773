"""What commands write: files they are asked for, and JSON on the terminal."""

from pathlib import Path

import click

from ..errors import InvalidInput


def new_file(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Refuse a file in a folder that is not there, before anything is made for it."""
    if name is not None and not Path(name).parent.is_dir():
        raise InvalidInput(f"{name}: there is no folder {str(Path(name).parent)!r}; make it first")
    return name


def new_trace(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """Refuse a trace file that could not be written, before anything is made for it."""
    from ..traces.file import SUFFIXES

    if not name.endswith(SUFFIXES):
        raise InvalidInput(
            f"{name}: a trace file ends in {', '.join(SUFFIXES)}; give -o such a name"
        )
    new_file(context, parameter, name)
    return name


def print_json(content: object) -> None:
    """Print anything that msgspec knows, indented."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
