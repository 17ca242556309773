"""What the storages of a log are to the program: parameters, gradients, buffers, states."""

import torch

from ..traces import Kind
from .log import Log
from .modules import Modules
from .step import Known


def known(modules: Modules, log: Log) -> dict[int, Known]:
    """Return name and kind of each storage that belongs to a parameter, buffer or optimizer.

    Where several share a storage (tied weights, flattened recurrent ones), the first names it.
    """
    found: dict[int, Known] = {}

    def see(name: str, tensor: torch.Tensor | None, kind: Kind) -> None:
        if tensor is not None and log.here(tensor):
            life = log.book.find(tensor)
            if life is not None:
                found.setdefault(life.number, Known(name, kind))

    for name, parameter in modules.parameters():
        see(name, parameter, "parameter")
        see(f"{name}.grad", parameter.grad, "parameter-gradient")
    for name, buffer in modules.buffers():
        see(name, buffer, "parameter")
    for name, state in modules.states():
        see(name, state, "optimizer-state")
    return found
