"""What autograd keeps: when a tensor is packed, when it is asked for, and when it is let go of."""

import weakref
from collections.abc import Sequence
from typing import Any, Final, Never

import torch

from ..errors import Unsupported
from .log import Log
from .private import running_node, version
from .storages import Life
from .tensors import extent

COMPILED: Final = (
    "the step has a region of torch.compile, which is not recorded: what it runs is not what "
    "PyTorch's operators tell; record the step with torch.compiler.set_stance('force_eager'), or "
    "without torch.compile"
)

OWN_MODE: Final = (
    "the step enters a dispatch mode of its own (selective checkpointing, a flop counter, the "
    "gradient of flex_attention), which this torch cannot combine with being looked at; take torch "
    "2.13, where most can be, or run the step without it"
)


class Kept:
    """One saved tensor. *packed*, *unpacked* and *freed* are places, -1 if that did not happen.

    *asked_by* is the name of the node that first asked for it.
    """

    __slots__ = (
        "asked_by",
        "freed",
        "life",
        "nbytes",
        "offset",
        "packed",
        "unpacked",
        "version",
    )

    def __init__(self, life: Life, packed: int, offset: int, nbytes: int) -> None:
        self.life = life
        self.version = life.version
        self.offset = offset
        self.nbytes = nbytes
        self.packed = packed
        self.unpacked = -1
        self.freed = -1
        self.asked_by = ""


class _Handle:
    """What autograd holds in place of a tensor: another tensor on the same bytes."""

    __slots__ = ("__weakref__", "kept", "tensor", "version")

    def __init__(self, tensor: torch.Tensor, kept: Kept | None) -> None:
        self.tensor = tensor
        self.kept = kept
        self.version = version(tensor)


class RefuseCompiled(torch.autograd.graph.saved_tensors_hooks):
    """Saved-tensor hooks that change nothing, and raise Unsupported if a compiled region asks.

    What such a region runs, no operator tells, so that its recording would be of another step.
    """

    def __init__(self) -> None:
        super().__init__(torch.Tensor.detach, self._unpack)

    @staticmethod
    def _unpack(tensor: torch.Tensor) -> torch.Tensor:
        node = running_node()
        if node is not None and "CompiledFunction" in node.name():
            raise Unsupported(COMPILED)
        return tensor


class Saves(torch.autograd.graph.saved_tensors_hooks):
    """Saved-tensor hooks that keep everything and write down when, beside *log*.

    With hooks installed autograd no longer notices that a saved tensor was modified in place; these
    notice it and raise RuntimeError, as autograd does.
    """

    def __init__(self, log: Log) -> None:
        self.kept: list[Kept] = []
        self._log = log
        self._start = log.place()  # what was there before is the program's
        self._watches: dict[int, weakref.ref[_Handle]] = {}
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> _Handle:
        log = self._log
        log.quiet = True  # a detached tensor would be logged
        try:
            handle = _Handle(tensor.detach(), None)
        finally:
            log.quiet = False
        if log.here(tensor) and not log.problem and not log.lacks_bytes(tensor):
            life = log.book.find(tensor) or log.book.enter(tensor, -1)
            handle.kept = kept = Kept(life, log.place(), *extent(tensor))
            self.kept.append(kept)
            self._watch(handle, kept)
            if life.keeps == 0 and life.released < 0 and life.born >= self._start:
                log.unreleased.append(life)
            life.keeps += 1
        return handle

    def _watch(self, handle: _Handle, kept: Kept) -> None:
        number = len(self.kept)
        log = self._log

        def freed(_: object) -> None:
            kept.freed = log.place()
            kept.life.keeps -= 1
            self._watches.pop(number, None)

        self._watches[number] = weakref.ref(handle, freed)

    def _unpack(self, handle: Any) -> torch.Tensor:
        tensor: torch.Tensor = handle.tensor
        kept: Kept | None = handle.kept
        if version(tensor) != handle.version:
            fault_modified(tensor.shape, version(tensor), handle.version)
        if kept is not None and kept.unpacked < 0:
            self._log.poll()
            kept.unpacked = self._log.place()
            node = running_node()
            kept.asked_by = "" if node is None else node.name()
        return tensor


def fault_modified(shape: Sequence[int], present: int, saved: int) -> Never:
    """Raise what autograd itself raises of a saved tensor that was written to since."""
    node = running_node()
    raise RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace "
        f"operation: a saved tensor of shape {list(shape)}"
        f"{f', asked for by {node.name()},' if node is not None else ''} is at version {present}; "
        f"it was saved at version {saved}"
    )
