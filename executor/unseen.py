"""What no operator tells of while a step is recorded: kernels that are launched past torch's
dispatcher, numpy on a tensor's memory.

To run again what made a storage would not bring that back. So while a step is recorded the bytes of
what forward makes are summed after each operator that writes them, and before each that reads them.
"""

from typing import Any

import torch

from .backend import flat
from .log import Log
from .logged import Logged
from .storages import Life
from .tensors import tensors_of


class Unseen:
    """Tells which lives were written unseen: their numbers are added to *touched*."""

    def __init__(self, log: Log, touched: set[int]) -> None:
        self._log = log
        self._touched = touched
        self._sums: dict[int, int] = {}  # by life

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator is about to take tensors."""
        for _, tensor in tensors_of(args, kwargs):
            if self._log.here(tensor):
                self.look(tensor)

    def look(self, tensor: torch.Tensor) -> None:
        """See whether a tensor's bytes are those that its last operator left."""
        life = self._log.book.find(tensor)
        if life is None or life.number not in self._sums:
            return
        if life.number not in self._touched and self._sum(tensor) != self._sums[life.number]:
            self._touched.add(life.number)

    def after(
        self, logged: Logged, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """An operator has run: what it has made or written is as it should be."""
        made: set[Life] = set(logged.fresh)
        written = logged.overwrites + logged.updates
        made |= {each for each in written if each.number in self._sums}
        results = [result] if isinstance(result, torch.Tensor) else result
        several = results if isinstance(results, list | tuple) else ()
        found = [each for _, each in tensors_of(args, kwargs)]
        for tensor in (*found, *(each for each in several if isinstance(each, torch.Tensor))):
            life = self._log.book.find(tensor) if self._log.here(tensor) else None
            if life in made:
                made.discard(life)
                self._sums[life.number] = self._sum(tensor)

    def forget(self, logged: Logged) -> None:
        """An operator of backward has run: what it has written is nobody's concern."""
        for life in logged.overwrites + logged.updates:
            self._sums.pop(life.number, None)

    def _sum(self, tensor: torch.Tensor) -> int:
        if tensor.numel() and not tensor.data_ptr():  # forward mode has zeros that are nowhere
            return 0
        quiet, self._log.quiet = self._log.quiet, True
        try:
            whole = flat(tensor.untyped_storage(), tensor.device)
            aligned = len(whole) // 8 * 8
            return int(whole[:aligned].view(torch.int64).sum()) + int(whole[aligned:].sum())
        finally:
            self._log.quiet = quiet
