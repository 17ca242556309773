"""What a recording keeps of an operation so that it can be run again: its call, without tensors.

A tensor is kept as the storage that it is of and how it looks at it. To hold it would change when
it dies, and what a recording tells is when things die.
"""

from typing import Any, Final, NamedTuple

import torch

from .entries import View, view_of
from .log import Log
from .logged import Logged
from .operators import EMPTY
from .private import Overload, arguments, has_kernel, version
from .storages import Life

Place = tuple[int | str, int]
"""Where a tensor stands among arguments: position or name, and position in a list there or -1."""


class Argument(NamedTuple):
    """A tensor among the arguments: of which life, seen how, at which version as autograd counts
    them."""

    place: Place
    life: Life
    view: View
    version: int


class Result(NamedTuple):
    """A storage that an operation made: where it is among the results, -1 if it is the result."""

    inner: int
    life: Life
    view: View


class Call:
    """One call of an operator. *args* and *kwargs* have None in place of tensors.

    *scratch* are the places of what it updates in passing, which another run must not touch, each
    with a view, or None where the operator takes None. *trains* tells that it does update them.
    *position* is its number among what was dispatched outside backward. *why* says why it cannot
    be run again, "" if it can.
    """

    __slots__ = (
        "args",
        "func",
        "kwargs",
        "overwrites",
        "position",
        "random",
        "results",
        "scratch",
        "tensors",
        "trains",
        "why",
    )

    def __init__(self, func: Overload, logged: Logged, position: int) -> None:
        self.func = func
        self.position = position
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        self.tensors: list[Argument] = []
        self.scratch: list[tuple[Place, View | None]] = []
        self.results: list[Result] = []
        self.overwrites: list[Life] = list(logged.overwrites)
        self.random: bool = logged.operator.random
        self.trains = bool(logged.updates)
        self.why = ""


def call_of(
    log: Log,
    logged: Logged,
    func: Overload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    position: int,
) -> Call:
    """Return the call of an operation that has just been logged."""
    call = Call(func, logged, position)
    reader = _Reader(log, logged, call)
    call.args = [reader.read(i, each) for i, each in enumerate(args)]
    call.kwargs = {name: reader.read(name, each) for name, each in kwargs.items()}
    if logged.operator.name in EMPTY:
        call.tensors.clear()  # only their shapes count, which the result has
    elif logged.operator.shapes_only and call.tensors:
        call.why = "it takes another tensor's shape"
    if logged.operator.rebinds or torch.Tag.inplace_view in func.tags:
        call.why = "it gives a tensor another storage, or lets it look otherwise at its own"
    _find_results(log, logged, call, result)
    if torch.is_autocast_enabled(log.device.type) and not (
        logged.operator.name in PLAIN_COMPOSITES or has_kernel(func, log.device.type)
    ):
        call.why = "it is made of operations that autocast may change"
    return call


class _Reader:
    def __init__(self, log: Log, logged: Logged, call: Call) -> None:
        self._log = log
        self._logged = logged
        self._call = call

    def read(self, key: int | str, value: Any) -> Any:
        """Return an argument without its tensors, which the call gets."""
        if isinstance(value, torch.Tensor):
            return self._tensor((key, -1), value)
        if isinstance(value, list | tuple):
            return [self._element(key, i, each) for i, each in enumerate(value)]
        return self._plain(value)

    def _element(self, key: int | str, i: int, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor((key, i), value)
        return self._plain(value)

    def _plain(self, value: Any) -> Any:
        if value is not None and not isinstance(value, PLAIN):
            self._call.why = f"it takes a {type(value).__name__}"
            return None
        return value

    def _tensor(self, place: Place, tensor: torch.Tensor) -> None:
        log, call = self._log, self._call
        life = log.book.find(tensor) if log.here(tensor) else None
        if self._call.trains and place[0] in self._logged.operator.passing:
            call.scratch.append((place, None if _optional(call.func, place) else view_of(tensor)))
        elif life is None or tensor.is_neg() or tensor.is_conj():
            call.why = "it takes a tensor of another device or kind"
        else:
            call.tensors.append(Argument(place, life, view_of(tensor), version(tensor)))


def _optional(func: Overload, place: Place) -> bool:
    """Return whether an operator takes None there."""
    for i, argument in enumerate(arguments(func)):
        if place[0] in (i, argument.name):
            return "Optional" in str(argument.type) or str(argument.type).endswith("?")
    return False


def _find_results(log: Log, logged: Logged, call: Call, result: Any) -> None:
    """Find each new storage among the results: it must be there once, and no argument's."""
    given = {argument.life.number for argument in call.tensors}
    wanted = {life.number: life for life in logged.fresh}
    alone = isinstance(result, torch.Tensor)
    several = result if isinstance(result, list | tuple) else ()
    for inner, tensor in enumerate([result] if alone else several):
        if not isinstance(tensor, torch.Tensor):
            continue
        life = log.book.find(tensor) if log.here(tensor) else None
        if life is not None and wanted.pop(life.number, None) is not None:
            call.results.append(Result(-1 if alone else inner, life, view_of(tensor)))
            if tensor.untyped_storage().nbytes() != life.nbytes:
                call.why = "its result has changed its size"
            if life.number in given:
                call.why = "its result is an argument"
    if wanted:
        call.why = "not all that it makes is among its results"


PLAIN: Final = (
    int,
    float,
    bool,
    str,
    complex,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
"""The types of arguments that stay what they are."""

PLAIN_COMPOSITES: Final = frozenset(
    {"_to_copy", "clone", "copy_", "embedding", "stack", "fill_", "zero_"} | EMPTY
)
"""Operators without a kernel for each device inside which there is nothing that autocast casts."""
