"""Record: from training steps as they run to a trace."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..traces import Trace
from .assemble import Known, Step, assemble
from .log import Log
from .modules import Modules
from .saves import Saves


class Recorder:
    """Skeleton."""

    def __init__(self, device: torch.device, name: str = "recorded") -> None:
        self.device = device
        self.name = name
        self.log = Log(device)
        self.modules = Modules(self.log)

    def record(self, step: Callable[[], object], warmup: int = 1) -> Trace:
        for _ in range(warmup):
            step()
        with torch.autograd.set_multithreading_enabled(False):
            with self.modules:
                for _ in range(2):
                    self._begin()
                    saves = Saves(self.log)
                    gc.collect()
                    enabled = gc.isenabled()
                    gc.disable()
                    try:
                        with self._gradients(), saves, self.log:
                            step()
                    finally:
                        if enabled: gc.enable()
                        gc.collect()
                    self.log.poll()
        return assemble(self._end(saves), self.name, {})

    def _begin(self) -> None:
        log = self.log
        self._start = log.place()
        self._first = len(log.book.lives)
        log.unreleased.clear()
        self._versions = {life.number: life.version for life in log.book.alive()}
        self._before = self._known()
        self._gradient_of: dict[int, str] = {}

    def _end(self, saves: Saves) -> Step:
        return Step(
            start=self._start, first=self._first, operations=self.log.operations[self._start:], lives=self.log.book.lives,
            kept=saves.kept, versions=self._versions, known_before=self._before, known_after=self._known(),
            gradients=self._gradient_of,
        )

    @contextmanager
    def _gradients(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, parameter in self.modules.parameters():
                if parameter.requires_grad and parameter.is_leaf:
                    def note(p, name=name):
                        life = self.log.book.find(p.grad)
                        if life is not None:
                            self._gradient_of[life.number] = name
                    h = parameter.register_post_accumulate_grad_hook(note)
                    stack.callback(h.remove)
            yield

    def _known(self) -> dict[int, Known]:
        known: dict[int, Known] = {}
        def see(name, tensor, kind):
            if tensor is not None and tensor.device == self.device:
                life = self.log.book.find(tensor)
                if life is not None:
                    known.setdefault(life.number, Known(name, kind))
        for name, p in self.modules.parameters():
            see(name, p, "parameter")
            see(name + ".grad", p.grad, "parameter-gradient")
        for name, b in self.modules.buffers():
            see(name, b, "parameter")
        for name, st in self.modules.states():
            see(name, st, "optimizer-state")
        return known
