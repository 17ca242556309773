"""G10's kernel lists: every kernel of a step with its time, its tensors and their sizes.

Two files belong together, `kernels.config` and `tensors.config`. The times in them are cycles: G10
multiplies the measured milliseconds by the clock of its configuration, which is 1.2 GHz in all that
it ships, and rounds down. A tensor is there from the first kernel that writes it to the last one
that uses it. (analysis.cc and configs/ of platformxlab/G10.)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Never

from msgspec import Struct

from ...errors import InvalidInput
from ..model import Kind, Operation, Phase, Storage, Trace, Value
from .content import read_content
from .kinds import kind_of, recompute_of

KERNELS: Final = "kernels.config"
TENSORS: Final = "tensors.config"
_CLOCK_HZ: Final = 1_200_000_000

_KERNEL: Final = re.compile(r"Kernel ID: (\d{1,18}), Name: (\S+)")
_TIME: Final = re.compile(r"Execution Time: (\d{1,18})")
_TENSOR: Final = re.compile(
    r"(tensor\d+) Is weight \(global\)\?: ([01]), Size in byte: (\d{1,18})(?:, Range:\d+--\d+)?"
)
_BESIDE: Final = re.compile(r"Parent (?:Layer|OP) ID:.*|\(\d+(?:,\d+)*\)")
_RULE: Final = re.compile(r"_{20,}")
_HEADINGS: Final = ("Input Tensors:", "Output Tensors:")


def g10_trace(path: Path) -> Trace:
    """Return the step in the folder at *path*, or in the file there and the one beside it.

    Raises InvalidInput for a file that is missing or, with the line, cannot be followed.
    """
    folder = path if path.is_dir() else path.parent
    for name in (KERNELS, TENSORS):
        if not (folder / name).is_file():
            raise InvalidInput(
                f"{folder / name}: there is no such file; G10's {KERNELS} and {TENSORS} belong "
                "together, put both into one folder"
            )
    tensors = _read_tensors(folder / TENSORS)
    kernels = _read_kernels(folder / KERNELS, tensors)
    return _Step(folder, tensors, kernels).trace()


class _Tensor(Struct, frozen=True):
    """A tensor: *lasting*, whether it outlives the step (G10: a global weight)."""

    nbytes: int
    lasting: bool


class _Kernel(Struct):
    """A kernel under construction: its tensors by name."""

    number: int
    name: str
    cycles: int = -1
    tensors: dict[str, list[str]] = {}

    @property
    def whole(self) -> bool:
        """Whether all that belongs to it has been read."""
        return self.cycles >= 0 and self.tensors.keys() == set(_HEADINGS)


def _read_tensors(path: Path) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    for number, line in _lines(path):
        name, tensor = _tensor(path, number, line)
        if name in tensors:
            _fault(path, number, f"{name!r} is listed already")
        tensors[name] = tensor
    return tensors


def _read_kernels(path: Path, tensors: dict[str, _Tensor]) -> list[_Kernel]:
    kernels: list[_Kernel] = []
    kernel: _Kernel | None = None  # the one that is open
    side: list[str] | None = None
    number = 0
    for number, line in _lines(path):
        if match := _KERNEL.fullmatch(line):
            if kernel is not None:
                _fault(path, number, f"kernel {kernel.number} has not ended here")
            kernel, side = _Kernel(int(match[1]), match[2]), None
        elif _RULE.fullmatch(line):
            if kernel is not None:
                if not kernel.whole:
                    _fault(path, number, f"kernel {kernel.number} ends without time or tensors")
                kernels.append(kernel)
            kernel = None
        elif kernel is None:
            _fault(path, number, "here a line 'Kernel ID: ..., Name: ...' is due")
        elif match := _TIME.fullmatch(line):
            kernel.cycles = int(match[1])
        elif line in _HEADINGS:
            side = kernel.tensors.setdefault(line, [])
        elif side is not None:
            name, tensor = _tensor(path, number, line)
            if tensors.get(name) != tensor:
                what = f"{name!r} is not in {TENSORS}, or has another size there"
                _fault(path, number, f"{what}: are the two of one run?")
            if name not in side:
                side.append(name)
        elif not _BESIDE.fullmatch(line):
            _fault(path, number, f"this is not understood: {line[:60]!r}")
    if kernel is not None:
        _fault(path, number, f"the file is cut off inside kernel {kernel.number}")
    if not kernels:
        raise InvalidInput(f"{path}: there is no kernel in it, so nothing to simulate")
    return kernels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    try:
        text = read_content(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: cannot be read as text: {error.reason}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _tensor(path: Path, number: int, line: str) -> tuple[str, _Tensor]:
    match = _TENSOR.fullmatch(line)
    if match is None:
        _fault(path, number, f"here a tensor with its size is due, not {line[:60]!r}")
    return match[1], _Tensor(int(match[3]), match[2] == "1")


def _fault(path: Path, line: int, sentence: str) -> Never:
    raise InvalidInput(f"{path}: line {line}: {sentence}")


class _Step:
    """The trace under construction."""

    def __init__(self, folder: Path, tensors: dict[str, _Tensor], kernels: list[_Kernel]) -> None:
        self._folder = folder
        self._tensors = tensors
        self._kernels = kernels
        self._kinds: dict[str, Kind] = {}  # of the tensors of the step, in order of appearance
        self._lasting: set[str] = set()
        # The version of each tensor that is there: its number and its name as a value.
        self._present: dict[str, tuple[int, str]] = {}
        self._values: list[Value] = []
        self._backward = False

    def trace(self) -> Trace:
        """Return the step, kernel by kernel."""
        for name, tensor in self._tensors.items():
            if tensor.lasting:
                self._begin_with(name, "parameter")
        operations = [self._operation(kernel) for kernel in self._kernels]
        folder = self._folder.resolve().name
        return Trace(
            name=folder,
            places="everywhere",
            times="measured",
            storages=tuple(
                Storage(
                    name=name,
                    kind=kind,
                    nbytes=self._tensors[name].nbytes,
                    alive_at_start=name in self._lasting,
                )
                for name, kind in self._kinds.items()
            ),
            values=tuple(self._values),
            operations=tuple(operations),
            notes={
                "made": f"from {folder}/{KERNELS} and {TENSORS} of G10",
                "lacking": "when the program lets go of a tensor (its last use is taken), "
                "launch times, the clock (1.2 GHz is taken, as in G10's configurations)",
                "taken": "phases are told by the kernels' names; what is read before anything "
                "writes it is an input that stays; an output that no kernel reads, a workspace, "
                "goes right after its kernel",
            },
        )

    def _operation(self, kernel: _Kernel) -> Operation:
        phase = self._phase(kernel.name)
        inputs, outputs = (kernel.tensors[heading] for heading in _HEADINGS)
        for name in inputs:
            if name not in self._present:
                self._begin_with(name, "input")
            elif phase == "optimizer" and self._kinds[name] == "activation-gradient":
                self._kinds[name] = "parameter-gradient"
        reads = tuple([self._present[name][1] for name in inputs])
        made: Kind = "activation" if phase == "forward" else "activation-gradient"
        if kernel.name.startswith("LoadData"):
            made = "input"
        for name in outputs:
            if name in self._present:
                self._next_version(name)
            else:
                self._appear(name, made)
        kind = "update" if phase == "optimizer" else kind_of(kernel.name)
        return Operation(
            name=f"{kernel.name}.{kernel.number}",
            kind=kind,
            phase=phase,
            reads=reads,
            writes=tuple([self._present[name][1] for name in outputs]),
            device_ns=(kernel.cycles * 10**9 + _CLOCK_HZ // 2) // _CLOCK_HZ,
            recompute=recompute_of(kind),
        )

    def _phase(self, kernel: str) -> Phase:
        """Return the phase of a kernel: by its name, else the one that is under way."""
        if "Apply_Grad" in kernel:
            return "optimizer"
        self._backward |= "Backward" in kernel or kernel == "Add_MultiGredient"
        return "backward" if self._backward else "forward"

    def _begin_with(self, name: str, kind: Kind) -> None:
        self._appear(name, kind)
        self._lasting.add(name)

    def _appear(self, name: str, kind: Kind) -> None:
        self._present[name] = (0, name)
        self._kinds[name] = kind

    def _next_version(self, name: str) -> None:
        version = self._present[name][0] + 1
        value = f"{name}@{version}"
        self._values.append(Value(name=value, storage=name, version=version))
        self._present[name] = (version, value)
