"""Finding the format of a foreign file: by looking into it, not at its name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ...errors import InvalidInput, InvalidTrace
from ..file import read_trace
from ..model import Trace
from .content import read_content, read_head
from .dtr import dtr_trace
from .g10 import KERNELS, TENSORS, g10_trace


class Format(NamedTuple):
    """A format that can be read: its name in messages, what makes a trace of a file in it, and what
    all its files lack; a reader that knows better says so in the trace's note `lacking`."""

    title: str
    read: Callable[[Path], Trace]
    lacks: str = ""


def _snapshot_trace(path: Path) -> Trace:
    from .snapshot import snapshot_trace

    return snapshot_trace(path)


_DTR: Final = Format("a DTR operator log", dtr_trace)
_G10: Final = Format("a G10 kernel list", g10_trace)
_SNAPSHOT: Final = Format(
    "a PyTorch memory snapshot",
    _snapshot_trace,
    "operations other than allocations, times, phases, and what a block is for",
)
_OURS: Final = Format("a trace of this package", read_trace)
FORMATS: Final = (_DTR, _G10, _SNAPSHOT, _OURS)

_OUR_HEADER: Final = re.compile(rb"""^[{"'\s]*format["']?\s*:\s*["']?superneurons-(\w+)""", re.M)
_DTR_LINE: Final = re.compile(rb'\s*\{[^\n]*"INSTRUCTION"')
_G10_LINE: Final = re.compile(rb"^(Kernel ID: \d+, Name: |tensor\d+ Is weight \(global\))", re.M)
# The first message of a Chakra file tells the schema: its length, then a field called so.
_CHAKRA: Final = re.compile(rb".{1,8}schema", re.S)


def read_foreign(path: Path | str) -> tuple[Format, Trace]:
    """Return what format the file at *path* has, and its trace, proved consistent.

    Raises InvalidInput or InvalidTrace, with the file and the place in it.
    """
    path = Path(path)
    found = find_format(path)
    trace = found.read(path)
    try:
        _ = trace.facts
    except InvalidTrace as error:
        raise InvalidTrace(f"{path}: {error}") from None
    return found, trace


def find_format(path: Path) -> Format:
    """Return the format of the file or folder at *path*. Raises InvalidInput for none of ours."""
    if path.is_dir():
        if (path / KERNELS).is_file() or (path / TENSORS).is_file():
            return _G10
        raise _refusal(path, f"is a folder with neither {KERNELS} nor {TENSORS} in it")
    head = read_head(path)
    if not head.strip():
        raise InvalidInput(f"{path}: is empty")
    if ours := _OUR_HEADER.search(head):
        if ours[1] == b"trace":
            return _OURS
        raise _refusal(path, f"is a {ours[1].decode()} of this package, not a trace")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return _SNAPSHOT
    if _DTR_LINE.match(head):
        return _DTR
    if _G10_LINE.search(head):
        return _G10
    raise _refusal(path, _why_not(path, head))


def _why_not(path: Path, head: bytes) -> str:
    """Return what a file is that cannot be read, as far as that can be seen."""
    if head[:2] == b"PK" or head[257:262] == b"ustar":
        return "is an archive; unpack it and give a file that was in it"
    if head.lstrip()[:1] in (b"{", b"["):
        content = read_content(path)
        if b'"traceEvents"' in content:
            return "is a Kineto timeline; it has no sizes, so it cannot be simulated"
        if b"chakra" in head or b'"workload_graph"' in head or b'"nodes"' in content:
            return "is a Chakra execution trace, which this version does not read"
    elif _CHAKRA.match(head):
        return "is a Chakra execution trace, which this version does not read"
    return "is of no known format"


def _refusal(path: Path, sentence: str) -> InvalidInput:
    titles = ", ".join(each.title for each in FORMATS)
    return InvalidInput(f"{path}: {sentence}; what can be read: {titles}")
