"""Parameters and buffers in one step: operations that run again start from them as they were.

Most of what writes them counts versions. Fused optimizers and batch normalization do not, but say
when they run.
"""

import weakref
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import Unsupported
from .private import address, tensors_of, version
from .recipes import Recipes

Kept = tuple[weakref.ref[torch.Tensor], int, int]
"""A parameter or buffer, the address of its storage and its version, when the step began."""


class Lasting:
    """The parameters and buffers that *recipes* start from, as a step begins with them.

    *storages* are theirs by number; *whole* says that all are there that were recorded.
    """

    def __init__(self, recipes: Recipes) -> None:
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.whole = True
        self._facts = recipes.facts
        self._silent = recipes.repeatable.silent
        self._updated: dict[int, str] = {}  # by storage, what has written it
        self._proved: dict[int, torch.Tensor] = {}
        self._kept: dict[int, list[Kept]] = {}
        self._on: dict[int, int] = {}  # storages of those by address
        for s, references in recipes.lasting.items():
            kept: list[Kept] = []
            self._kept[s] = kept
            for reference in references:
                tensor = reference()
                if tensor is None:
                    self.whole = False
                    continue
                storage = tensor.untyped_storage()
                where = address(storage)
                if not kept:
                    self.storages[s] = weakref.ref(storage)
                    self._on[where] = s
                kept.append((reference, where, version(tensor)))

    def see_update(self, optimizer: torch.optim.Optimizer | None) -> None:
        """An optimizer is about to run, or, without one, any may: what it writes without a count of
        versions is no source any more."""
        silent = self._silent & self._kept.keys()
        if optimizer is None:
            self._updated.update(dict.fromkeys(silent, RUN))
            return
        ours = type(optimizer).__module__.startswith("torch.optim")
        for group in optimizer.param_groups:
            counts = ours and not group.get("fused")
            for each in group["params"] if silent or not counts else ():
                s = self._on.get(address(each.untyped_storage()), -1)
                if s in silent or not (counts or each.grad is None):
                    self._updated[s] = RUN

    def see_module(self, module: torch.nn.Module) -> None:
        """A module is about to run: in training it may update statistics without a count."""
        for found in tensors_of(module, STATISTICS) if module.training else ():
            s = self._on.get(address(found.untyped_storage()), -1)
            self._updated[s] = "a module has updated it"

    def doubt(self) -> None:
        """Prove each anew: the program may have run since."""
        self._proved.clear()

    def tensor(self, s: int) -> torch.Tensor:
        """Return a parameter or buffer, proved to be as it was in forward."""
        found = self._proved.get(s)
        if found is not None:
            return found
        if s in self._updated:
            raise changed(self._facts.names[s], f"{self._updated[s]} since")
        nbytes = self._facts.nbytes[s]
        for reference, where, count in self._kept[s]:
            found = reference()
            if (
                found is None
                or version(found) != count
                or address(storage := found.untyped_storage()) != where
                or storage.nbytes() != nbytes
            ):
                raise changed(
                    self._facts.names[s],
                    "it was modified, replaced or emptied since the step began",
                )
        if found is None:
            raise changed(self._facts.names[s], "it is gone")
        self._proved[s] = found
        return found


def told_of_writes(lasting: Callable[[], Lasting | None], *, statistics: bool) -> list[Any]:
    """Have what *lasting* returns, while it does, told of optimizers that run, and of modules if it
    has *statistics*; return the hooks, to be removed."""

    def see_optimizer(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if (each := lasting()) is not None:
            each.see_update(optimizer)

    def see_module(module: torch.nn.Module, _: object) -> None:
        if (each := lasting()) is not None:
            each.see_module(module)

    seen: list[Any] = [register_optimizer_step_pre_hook(see_optimizer)]
    if statistics:
        seen.append(register_module_forward_pre_hook(see_module))
    return seen


def changed(name: str, why: str) -> Unsupported:
    """Return the error for something that is not as it was in forward."""
    return Unsupported(
        f"a value that was dropped cannot be computed again: {name!r} must be as in forward, but "
        f"{why}; take a policy that does not drop what starts from it"
    )


STATISTICS: Final = "running_mean", "running_var"
RUN: Final = "an optimizer has run"
