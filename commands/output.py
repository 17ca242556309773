"""Files that commands are asked to write."""

from pathlib import Path

import click

from ..errors import InvalidInput


def new_trace(_: click.Context, __: click.Parameter, name: str) -> str:
    """Refuse a trace file that could not be written, before anything is made for it."""
    from ..traces.file import SUFFIXES

    if not name.endswith(SUFFIXES):
        raise InvalidInput(
            f"{name}: a trace file ends in {', '.join(SUFFIXES)}; give -o such a name"
        )
    if not Path(name).parent.is_dir():
        raise InvalidInput(f"{name}: there is no folder {str(Path(name).parent)!r}; make it first")
    return name
