"""Finding traces: a file, a shipped step, or a built-in name with parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import InvalidInput, UnknownName
from ..notation import build, parse_call
from .alexnet import alexnet
from .chain import chain
from .file import SUFFIXES, read_trace
from .inception import inceptionv4
from .model import Trace
from .randomized import randomized
from .resnet import resnet, resnet50, resnet101, resnet152
from .shipped import read_shipped, shipped
from .vgg import vgg16, vgg19

BUILTIN: Final[dict[str, Callable[..., Trace]]] = {
    "alexnet": alexnet,
    "chain": chain,
    "inceptionv4": inceptionv4,
    "random": randomized,
    "resnet": resnet,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "vgg16": vgg16,
    "vgg19": vgg19,
}


def find_trace(text: str) -> Trace:
    """Return a trace by file name, by the name of a shipped step, or by built-in name with
    parameters: `alexnet:batch=200`.

    Raises UnknownName, InvalidInput for a wrong parameter or file, InvalidTrace.
    """
    if text.endswith(SUFFIXES):
        return read_trace(Path(text))
    call = parse_call(text)
    if call.name not in BUILTIN and call.name in shipped():
        if call.parameters:
            raise InvalidInput(f"{call.name!r} is a recorded step: it has no parameters")
        return read_shipped(call.name)
    return build(trace_maker(call.name), call, "trace")


def trace_names() -> list[str]:
    """Return the names of the built-in traces that have parameters."""
    return sorted(BUILTIN)


def trace_maker(name: str) -> Callable[..., Trace]:
    """Return what makes the built-in traces called *name*.

    Raises UnknownName, InvalidInput for a recording.
    """
    if name not in BUILTIN:
        if name in shipped() or name.endswith(SUFFIXES):
            raise InvalidInput(
                f"{name!r} is a recorded step, which has no parameters; those that have: "
                f"{', '.join(trace_names())}"
            )
        raise UnknownName(
            f"no trace {name!r}; there are: {', '.join([*trace_names(), *shipped()])}, "
            f"or give a file that ends in {', '.join(SUFFIXES)}"
        )
    return BUILTIN[name]
