"""Which module runs, and what its parameters, buffers and optimizer state are called.

The model is not handed over: modules and optimizers tell by torch's global hooks that they run.
"""

import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import Unsupported
from .log import Log
from .private import runs_eagerly
from .saves import COMPILED


class Modules:
    """Sets `log.module` to the path of the module that runs, while it is entered."""

    def __init__(self, log: Log) -> None:
        self._roots: list[weakref.ref[torch.nn.Module]] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self._log = log
        self._paths: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._thread = 0
        self._stack: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "Modules":
        self._thread = threading.get_ident()
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._see_optimizer),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._stack.clear()
        self._log.module = ""

    def _enter_module(self, module: torch.nn.Module, inputs: object) -> None:
        if type(module).__name__ == "OptimizedModule" and not runs_eagerly():
            raise Unsupported(COMPILED)
        if threading.get_ident() != self._thread:
            raise Unsupported(
                "the step runs modules in several threads (nn.DataParallel), which a recording "
                "cannot follow; record one replica by itself"
            )
        if module not in self._paths:
            self._add_root(module)
        self._stack.append(self._paths[module])
        self._log.module = self._stack[-1]

    def _leave_module(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        if self._stack:
            self._stack.pop()
        self._log.module = self._stack[-1] if self._stack else ""

    def _add_root(self, module: torch.nn.Module) -> None:
        """Name a module that no other holds, and all that it holds. The first has no prefix."""
        prefix = type(module).__name__.lower() if self._roots else ""
        if prefix in {path for _, path in self._living()}:
            prefix += f"-{len(self._roots)}"
        self._roots.append(weakref.ref(module))
        for path, each in module.named_modules(prefix=prefix):
            self._paths.setdefault(each, path)

    def _living(self) -> list[tuple[torch.nn.Module, str]]:
        """Return the modules that no other holds, with their paths."""
        there = (ref() for ref in self._roots)
        return [(root, self._paths[root]) for root in there if root is not None]

    def _see_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not any(optimizer is each for each in self.optimizers):
            self.optimizers.append(optimizer)

    # -- names -----------------------------------------------------------------------------------

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield parameters by name: those of modules, then those that only optimizers or nobody
        but the step itself knows."""
        seen = set()
        for root, path in self._living():
            for name, parameter in root.named_parameters(prefix=path):
                seen.add(id(parameter))
                yield name, parameter
        others = [
            parameter
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        others += [each for ref in self._log.parameters if (each := ref()) is not None]
        number = 0
        for parameter in others:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"parameter.{number}", parameter
                number += 1

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield buffers by name."""
        for root, path in self._living():
            yield from root.named_buffers(prefix=path)

    def states(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the optimizers' state tensors by name: `fc.weight.exp_avg`."""
        names = {id(parameter): name for name, parameter in self.parameters()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, torch.Tensor):
                        yield f"{names.get(id(parameter), 'unnamed')}.{key}", value
