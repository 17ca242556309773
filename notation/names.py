"""Names with parameters, as written on the command line: `offload:lookahead=3,tier=host`."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ..errors import InvalidInput
from .quantities import NBytes, parse_bytes

T = TypeVar("T")


class Call(NamedTuple):
    """A name and its parameters, still as text."""

    name: str
    parameters: dict[str, str]


def parse_call(text: str) -> Call:
    """Split `name:key=value,key=value`. Raises InvalidInput, with the part that is not so."""
    name, colon, rest = text.strip().partition(":")
    parameters: dict[str, str] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise InvalidInput(f"{item!r} in {text!r} is not of the form key=value")
        if key in parameters:
            raise InvalidInput(f"{key!r} is given twice in {text!r}")
        parameters[key] = value
    return Call(name, parameters)


def parse_calls(text: str) -> list[str]:
    """Split a list of names with parameters at its commas.

    A comma also stands between parameters: what follows it belongs to the name before if it
    is a bare `key=value`, and is a name of its own otherwise.
    """
    calls: list[str] = []
    for item in text.split(","):
        head = item.partition("=")[0]
        if calls and "=" in item and ":" not in head and "+" not in head:
            calls[-1] += "," + item
        else:
            calls.append(item.strip())
    return calls


def build(target: Callable[..., T], call: Call, what: str) -> T:
    """Call *target* with the call's parameters, each converted to its annotated type.

    *what* says in messages what is being built ("policy", "trace"). A tuple is written with
    slashes, `kinds=conv/matmul`; a number of bytes may have a unit. Raises InvalidInput for
    a parameter that does not exist, that is missing or that has a wrong value.
    """
    known = inspect.signature(target).parameters
    hints = _hints(target, known)
    for key in call.parameters:
        if key not in known:
            there = ", ".join(known) or "none"
            raise InvalidInput(f"{what} {call.name!r} has no parameter {key!r}; it has: {there}")
    for key, parameter in known.items():
        collects = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not collects and key not in call.parameters:
            raise InvalidInput(f"{what} {call.name!r} needs the parameter {key!r}")
    arguments = {
        key: _convert(value, hints[key], f"{what} {call.name!r}, parameter {key!r}")
        for key, value in call.parameters.items()
    }
    return target(**arguments)


def describe(target: Callable[..., object]) -> str:
    """Return the parameters of *target* with their defaults, as they would be written."""
    shown = []
    for key, parameter in inspect.signature(target).parameters.items():
        if parameter.default is parameter.empty:
            shown.append(f"{key}=...")
        elif isinstance(parameter.default, tuple):
            shown.append(f"{key}={'/'.join(map(str, parameter.default))}")
        else:
            shown.append(f"{key}={parameter.default}")
    return ",".join(shown)


def _hints(target: Callable[..., object], known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the types of the parameters; one without annotation has its default's."""
    owner: Any = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009
    found = get_type_hints(owner, include_extras=True)
    for key, parameter in known.items():
        if key not in found:
            untyped = parameter.default in (None, parameter.empty)
            found[key] = str if untyped else type(parameter.default)
    return found


def _convert(text: str, hint: Any, where: str) -> object:
    options = get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if types.NoneType in options and text.lower() == "none":
        return None
    hint = next(option for option in options if option is not types.NoneType)
    try:
        if hint == NBytes:
            return parse_bytes(text)
        if get_origin(hint) is tuple:
            return msgspec.convert(text.split("/"), hint, strict=False)
        return msgspec.convert(text, hint, strict=False)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from None
    except msgspec.ValidationError as error:
        allowed = get_args(hint) if get_origin(hint) is typing.Literal else ()
        hope = f"; it is one of: {', '.join(map(str, allowed))}" if allowed else f": {error}"
        raise InvalidInput(f"{where}: {text!r} cannot be used{hope}") from None
