"""A step that is logged: what is known when it begins, what stands around it, what comes of it."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

import torch

from ..traces import without_collector
from .log import Log
from .meter import blocks
from .modules import Modules
from .names import known
from .saves import Saves
from .step import Step
from .storages import resizing_told


class Watch:
    """One step by *log*, about to begin."""

    def __init__(self, log: Log, modules: Modules) -> None:
        gc.collect()
        log.unreleased.clear()
        self.start: Final = log.place()
        self._log: Final = log
        self._modules: Final = modules
        self._first: Final = len(log.book.lives)
        self._versions: Final = {life.number: life.version for life in log.book.alive()}
        self._before: Final = known(modules, log)
        self._blocks: Final = blocks(log.device) if log.device.type == "cuda" else {}
        self._gradients: Final[dict[int, str]] = {}

    @contextmanager
    def around(
        self, saves: Saves, observing: AbstractContextManager[None], *, collect: bool
    ) -> Iterator[None]:
        """Log what runs in the block; collect garbage after it, if so told, so that what is left in
        cycles dies with the step."""
        with ExitStack() as around:
            if collect:
                around.callback(gc.collect)
            for each in (
                without_collector(),  # so that what dies does so at its place
                one_thread(),
                self._modules,
                resizing_told(self._log.cannot),
                self._naming(),
                saves,
                observing,
            ):
                around.enter_context(each)
            yield

    def step(self, saves: Saves) -> Step:
        """Return the step, when it is over."""
        log = self._log
        return Step(
            start=self.start,
            first=self._first,
            operations=log.operations[self.start :],
            lives=log.book.lives,
            kept=saves.kept,
            versions=self._versions,
            known_before=self._before,
            known_after=known(self._modules, log),
            gradients=self._gradients,
            blocks=self._blocks,
        )

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Note which storages become gradients of which parameters."""
        with ExitStack() as hooks:
            for name, parameter in self._modules.parameters():
                if not (parameter.requires_grad and parameter.is_leaf):
                    continue

                def note(leaf: torch.Tensor, name: str = name) -> None:
                    life = self._log.book.find(leaf.grad) if leaf.grad is not None else None
                    if life is not None:
                        self._gradients[life.number] = name

                hooks.callback(parameter.register_post_accumulate_grad_hook(note).remove)
            yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let backward run in this thread: one total order."""
    with torch.autograd.set_multithreading_enabled(False):
        yield
