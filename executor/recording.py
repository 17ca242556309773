"""Record a step for the executor: in safe mode, on any device, as it runs for real.

Two steps in a row are logged, and the second becomes the trace, for only then is it known what the
first left behind. A signature that turns up later has one step; what is there at its start is
looked up among all tensors of the process.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from ..errors import InvalidInput, Unsupported
from ..traces import Trace
from .assemble import assemble
from .backend import Backend
from .entries import View
from .history import History
from .layout import Layout
from .log import Log
from .meter import CudaMeter, counted
from .modules import Modules
from .private import Overload, compiled_frames, observed
from .provenance import provenance
from .safe import Fired, SafeSaves
from .saves import COMPILED
from .slabs import Slabs
from .step import Step
from .watch import Watch


class Recorded(NamedTuple):
    """A recorded step: its trace, and what the hooks saw of it.

    *fired* are the hooks in order, at places of the trace; by number of the save, *views* is how
    it looked, *storages* the storage of the trace that it is of, -1 for what is elsewhere, and
    *askers* the node that asked for it, "" for none. *addresses* say, for what is alive when a step
    starts, where it was when this one ended.
    """

    trace: Trace
    fired: list[Fired]
    views: list[View]
    storages: list[int]
    askers: list[str]
    addresses: dict[int, int]


class Recording:
    """Logs steps that run in safe mode. *first* says that no step has run yet: then two are needed,
    and lazy state may appear in the first.

    *missing* is how many steps are needed still; then *recorded* is there. *problem* says why the
    last one did not do. *stayed_nbytes* did not find room in the host's memory.
    """

    def __init__(
        self, name: str, backend: Backend, slabs: Mapping[str, Slabs], *, first: bool
    ) -> None:
        device = backend.device
        self.name = name
        self.missing = 2 if first else 1
        self.stayed_nbytes = 0
        self._backend = backend
        self._slabs = slabs
        self._log = Log(device, CudaMeter(device) if device.type == "cuda" else None)
        self._modules = Modules(self._log)
        self.recorded: Recorded | None = None
        self.problem = ""
        if not first:
            enter_all(self._log)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step in safe mode, and log it."""
        log = self._log
        frames = compiled_frames()
        watch, saves = Watch(log, self._modules), SafeSaves(log, self._slabs, self._backend)
        last = self.missing <= 1 and log.device.type == "cuda"
        history = History(log.device) if last else None
        with (
            nullcontext() if history is None else history.recorded(counted(log.device)),
            watch.around(saves, observed(partial(self._observe, saves)), collect=False),
        ):
            yield
        if compiled_frames() > frames:
            raise Unsupported(COMPILED)
        log.poll()
        saves.settle()
        if history is not None:
            for op in log.operations[watch.start :]:
                history.settle(op)
        self.missing = max(0, self.missing - 1)
        self.stayed_nbytes = saves.stayed_nbytes
        step = watch.step(saves)
        if not self.missing:
            self._assemble(step, saves)

    def _observe(
        self, saves: SafeSaves, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        log = self._log
        place = log.place()
        result = log.observe(func, args, kwargs)
        if log.place() > place and (log.operations[-1].overwrites or log.operations[-1].updates):
            saves.refresh(log.operations[-1])
        return result

    def _assemble(self, step: Step, saves: SafeSaves) -> None:
        """Make the trace now, before more dies; one that is not closed does not do."""
        notes = {"made": "recorded by the executor, in safe mode"} | provenance(self._log.device)
        try:
            trace = assemble(step, self.name, notes)
            index = trace.facts.storage_index
        except (InvalidInput, Unsupported) as error:
            self.missing, self.problem = 1, str(error)
            return
        layout = Layout(step)  # names what the trace names, in the same way
        self.recorded = Recorded(
            trace,
            [Fired(pack, number, place - step.start) for pack, number, place in saves.fired],
            saves.views,
            [-1 if life is None else index[layout.of(life).name] for life in saves.lives],
            saves.askers,
            {index[name]: address for name, address in layout.addresses().items()},
        )


def enter_all(log: Log) -> None:
    """Enter all tensors of the process that are on the log's device."""
    for each in gc.get_objects():
        if not issubclass(type(each), torch.Tensor):  # asking the object may run its code
            continue
        leaf = each.grad_fn is None and each.grad is not None
        for tensor in (each, each.grad) if leaf else (each,):
            if log.here(tensor) and tensor.layout is torch.strided:
                _ = log.book.find(tensor) or log.book.enter(tensor, -1)
