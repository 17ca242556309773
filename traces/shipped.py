"""The steps that come with this package: files, and an index that says what each is."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from .file import read_trace
from .model import Trace

_FOLDER: Final = "recorded"


@cache
def shipped() -> dict[str, str]:
    """Return name and description of each step that is shipped, sorted by name."""
    index = files(__package__).joinpath(_FOLDER, "index.yaml")
    found = msgspec.yaml.decode(index.read_bytes(), type=dict[str, str])
    return dict(sorted(found.items()))


def read_shipped(name: str) -> Trace:
    """Return a step by the name that it is shipped under."""
    return read_trace(Path(str(files(__package__).joinpath(_FOLDER, f"{name}.json.gz"))))
