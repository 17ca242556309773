"""The lines of a DTR operator log: one JSON object each, an instruction with its operands."""

from pathlib import Path
from typing import Annotated, Final, Never

import msgspec
from msgspec import Meta, Struct

from ...errors import InvalidInput
from .content import read_content

# Larger numbers fit into no trace file.
Number = Annotated[int, Meta(ge=0, le=2**62)]


class _Line(Struct, gc=False, tag_field="INSTRUCTION", rename="upper"):
    """One line; numbers are written as text there."""


class Constant(_Line, tag="CONSTANT"):
    """A tensor that no logged operation makes; its MEMORY is the next line."""

    name: str


class Memory(_Line, tag="MEMORY"):
    """The bytes of the tensor that a line before has defined."""

    name: str
    memory: Number


class Alias(_Line, tag="ALIAS"):
    """The argument that a result shares its storage with; -1 if it has one of its own."""

    name: str
    alias: Annotated[int, Meta(ge=-1)]


class Call(_Line, tag="CALL"):
    """An operation and its time in ns; a MEMORY and an ALIAS follow for each result."""

    name: str
    args: list[str]
    result: list[str]
    time: Number


class Mutate(_Line, tag="MUTATE"):
    """An operation that replaces the arguments at the indices *mutate*."""

    name: str
    args: list[str]
    mutate: list[Number]
    time: Number


class Copy(_Line, tag="COPY"):
    """One more name, *dst*, for the tensor *src*."""

    dst: str
    src: str


class CopyFrom(_Line, tag="COPY_FROM"):
    """The name *dst* stands for the tensor *src* from now on."""

    dst: str
    src: str


class Release(_Line, tag="RELEASE"):
    """The program has dropped a name."""

    name: str


class Annotate(_Line, tag="ANNOTATE"):
    """A mark: START, BACKWARD."""

    annotation: str


Instruction = Constant | Memory | Alias | Call | Mutate | Copy | CopyFrom | Release | Annotate
_NAMES: Final = (
    "CONSTANT, MEMORY, ALIAS, CALL, MUTATE, COPY, COPY_FROM, RELEASE, ANNOTATE"  # the format's
)
_DECODER: Final = msgspec.json.Decoder(Instruction, strict=False)


class Log:
    """The instructions of the log at *path*, in order.

    Raises InvalidInput, with the line, for what is no instruction.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._raw = read_content(path)
        try:
            self.instructions: Final[list[Instruction]] = _DECODER.decode_lines(self._raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._fault_line()
        if len(self.instructions) != len(self._lines()):  # several in one line
            self._fault_line()

    def fault(self, position: int, sentence: str) -> Never:
        """Raise InvalidInput with the line of the instruction at *position*."""
        self._fault(self._lines()[position][0], sentence)

    def line(self, position: int) -> int:
        """Return the number of the line, from 1 on, of the instruction at *position*."""
        return self._lines()[position][0]

    def _fault(self, line: int, sentence: str) -> Never:
        raise InvalidInput(f"{self.path}: line {line}: {sentence}")

    def _lines(self) -> list[tuple[int, bytes]]:
        """Return the lines that are not empty, with their numbers."""
        lines = enumerate(self._raw.split(b"\n"), start=1)
        return [(number, line) for number, line in lines if line.strip()]

    def _fault_line(self) -> Never:
        """Find the line that is no instruction, and say what is wrong with it."""
        lines = self._lines()
        for number, line in lines:
            try:
                _DECODER.decode(line)
            except msgspec.ValidationError as error:
                self._fault(number, _sentence(str(error)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if number == lines[-1][0] and not self._raw.endswith(b"\n"):
                    self._fault(number, "the log is cut off inside this line, its last")
                self._fault(number, f"this is no JSON: {' '.join(str(error).split())}")
        raise AssertionError(self.path)


def _sentence(error: str) -> str:
    """Return what is wrong with a line that is JSON but no instruction."""
    sentence, _, place = error.partition(" - at `$")
    field = place.rstrip("`").lstrip(".")
    if field == "INSTRUCTION" and sentence.startswith("Invalid value "):
        name = sentence.removeprefix("Invalid value ")
        return f"there is no instruction {name}; there are {_NAMES}"
    return f"{field}: {sentence}" if field else sentence
