"""`MODULE:FUNCTION`: the user's function that builds a training step."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import InvalidInput
from ..notation import build, parse_call
from ..traces import Trace
from .estimate import estimate
from .recorder import record


def find_entry(text: str) -> tuple[str, Callable[[], Callable[[], object]]]:
    """Return a name and what builds the step that *text* tells of.

    *text* is `MODULE:FUNCTION` or `FILE.py:FUNCTION`, then perhaps `:key=value,...` for the
    function's parameters. The function builds model, inputs, loss and optimizer, and returns a
    function without arguments that runs one whole training step. Raises InvalidInput if there is
    no such module or function, or if it returns something else; what the function itself raises
    goes through.
    """
    where, _, rest = text.partition(":")
    if not where or not rest:
        raise InvalidInput(
            f"{text!r} names no function; write MODULE:FUNCTION or FILE.py:FUNCTION, where the "
            "function builds the model and returns one that runs a training step"
        )
    call = parse_call(rest)
    module = _module(where)
    function = getattr(module, call.name, None)
    if not callable(function):
        there = [n for n, each in vars(module).items() if callable(each) and not n.startswith("_")]
        raise InvalidInput(
            f"{where!r} has no function {call.name!r}; it has: {', '.join(there) or 'none'}"
        )

    def step() -> Callable[[], object]:
        found: Any = build(function, call, "function")
        if not callable(found):
            raise InvalidInput(
                f"{text!r} returned {type(found).__name__}; it must return a function without "
                "arguments that runs one training step"
            )
        run: Callable[[], object] = found
        return run

    suffix = "-".join(f"{key}{value}" for key, value in call.parameters.items())
    return f"{call.name}-{suffix}" if suffix else call.name, step


def record_function(
    text: str, name: str | None = None, *, guess: bool = False
) -> tuple[Trace, bool]:
    """Return the recorded step of `MODULE:FUNCTION`, and whether it is an estimate.

    It is one if there is no CUDA device, or if *guess* asks for it.
    """
    with _here_first():
        own_name, make = find_entry(text)
        if guess or not torch.cuda.is_available():
            return estimate(make, name or own_name), True
        with torch.device("cuda"):
            step = make()
        return record(step, name or own_name), False


def _module(where: str) -> ModuleType:
    with _here_first():
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise InvalidInput(f"there is no file {where}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            before = sys.modules.get(path.stem)
            sys.modules[path.stem] = module  # where pickles and dataclasses look for it
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[path.stem]
                if before is not None:
                    sys.modules[path.stem] = before
                raise
            return module
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not (
                where == error.name or where.startswith(f"{error.name}.")
            ):
                raise  # the user's module lacks something itself
            raise InvalidInput(
                f"there is no module {where!r} here or installed; give a module or a file: "
                "my/model.py:build"
            ) from None


@contextmanager
def _here_first() -> Iterator[None]:
    """Let modules of the present folder be found, as `python -m` does."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
