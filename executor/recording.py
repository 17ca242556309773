"""Record a step for the executor: in safe mode, on any device, as it runs for real.

Two steps in a row are logged, and the second becomes the trace, for only then is it known what the
first left behind. A signature that turns up later has one step; what is there at its start is
looked up among all tensors of the process.
"""

import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from ..errors import InvalidInput, Unsupported
from ..traces import Phase, Trace
from .assemble import assemble
from .backend import Backend
from .calls import Call, call_of
from .entries import View
from .history import History
from .layout import Layout
from .log import Log
from .meter import CudaMeter, counted
from .modules import Modules
from .private import Overload, backward_pass, compiled_frames, is_fake, observed, version
from .provenance import provenance
from .repeatable import Lasting, Repeatable
from .safe import Fired, SafeSaves
from .saves import COMPILED
from .slabs import Slabs
from .step import Step
from .storages import Life
from .tensors import tensors_of
from .unseen import Unseen
from .watch import Watch

KEPT_NBYTES: Final = 1 << 20
"""How much more the program may hold after each step than before it: its losses, say."""


class Recorded(NamedTuple):
    """A recorded step: its trace, and what the hooks saw of it.

    *fired* are the hooks in order, at places of the trace; by number of the save, *views* is how
    it looked, *counters* its version as autograd counts it, *storages* the storage of the trace
    that it is of, -1 for what is elsewhere, and *askers* the node that asked for it, "" for none.

    *repeatable* is what is known of operations that may run again, and *sequence* all operators
    that were dispatched outside backward, in order. *addresses* say, for what is alive when a step
    starts, where it was when this one ended.
    """

    trace: Trace
    fired: list[Fired]
    views: list[View]
    counters: list[int]
    storages: list[int]
    askers: list[str]
    repeatable: Repeatable
    sequence: list[Overload]
    addresses: dict[int, int]

    @property
    def kind(self) -> int:
        """What tells it from another kind of step, and is the same in each of its own: the hooks,
        how saves look, and forward's operators. What lies around in the process is no part."""
        looks = tuple((view.dtype, tuple(view.shape)) for view in self.views)
        return hash((tuple(self.fired), looks, tuple(self.sequence)))

    def timed(self, trace: Trace) -> "Recorded":
        """Return the same step with a trace that has times."""
        return Recorded(trace, *self[1:])


class Recording:
    """Logs steps that run in safe mode. *first* says that no step has run yet: then two are needed,
    and lazy state may appear in the first.

    *missing* is how many steps are needed still; then *recorded* is there. *problem* says why the
    last one did not do; where the step did what no recording can hold, it kept everything from
    there on, and what was *lost* has to begin anew. *stayed_nbytes* did not find room in the host's
    memory.
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
        meter = CudaMeter(device) if device.type == "cuda" else None
        self._log = Log(device, meter, lenient=True)
        self._modules = Modules(self._log)
        self.recorded: Recorded | None = None
        self.problem = ""
        self.lost = False
        self._calls: dict[int, Call] = {}  # by place in the log
        self._sequence: list[Overload] = []
        self._touched: set[int] = set()  # lives that something unknown may have written
        self._unseen = Unseen(self._log, self._touched)
        self._counters: dict[int, int] = {}  # by life, autograd's count when it was first seen
        if not first:
            enter_all(self._log, slabs)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step in safe mode, and log it."""
        log = self._log
        self._calls.clear()
        self._sequence = []
        self._counters.clear()
        frames = compiled_frames()
        self._unseen = Unseen(log, self._touched)
        watch = Watch(log, self._modules)
        saves = SafeSaves(log, self._slabs, self._backend, self._unseen)
        last = self.missing <= 1 and log.device.type == "cuda"
        history = History(log.device) if last else None
        with (
            nullcontext() if history is None else history.recorded(counted(log.device)),
            watch.around(saves, observed(partial(self._observe, saves)), collect=False),
        ):
            yield
        if compiled_frames() > frames:
            raise Unsupported(COMPILED)
        if log.problem:
            self.lost, self.problem = True, log.problem
            return
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
        if log.quiet or func.namespace == "prim":
            return func(*args, **kwargs)
        place, position, forward = log.place(), len(self._sequence), backward_pass() < 0
        if forward and not log.problem:
            self._sequence.append(func)
            self._unseen.before(args, kwargs)
        result = log.observe(func, args, kwargs)
        what = log.describe(func)
        if log.problem:  # nothing is recorded any more, but what was sent must stay right
            written = what.written | what.passing
            saves.refresh(self._lives(t for key, t in tensors_of(args, kwargs) if key in written))
            return result
        if what.opaque and not what.waits:
            lives = self._lives(tensor for _, tensor in tensors_of(args, kwargs))
            self._touched |= {life.number for life in lives}
        if log.place() > place:
            logged = log.operations[-1]
            if not forward:
                self._unseen.forget(logged)
            else:
                self._unseen.after(logged, args, kwargs, result)
                call = call_of(log, logged, func, args, kwargs, result, position)
                self._calls[place] = call
                for argument in call.tensors:
                    self._counters.setdefault(argument.life.number, argument.version)
            saves.refresh(logged.overwrites + logged.updates)
        return result

    def _lives(self, tensors: Iterable[torch.Tensor]) -> list[Life]:
        """Return those of the tensors' storages that are known."""
        log = self._log
        found = (log.book.find(tensor) for tensor in tensors if log.here(tensor))
        return [life for life in found if life is not None]

    def _assemble(self, step: Step, saves: SafeSaves) -> None:
        """Make the trace now, before more dies; one that is not closed does not do."""
        notes = {"made": "recorded by the executor, in safe mode"} | provenance(self._log.device)
        try:
            layout = Layout(step, KEPT_NBYTES)
            trace = assemble(layout, self.name, notes)
            facts = trace.facts
        except (InvalidInput, Unsupported) as error:
            self.missing, self.problem = 1, str(error)
            return
        index = {number: facts.storage_index[s.name] for number, s in layout.by_life.items()}
        repeatable = Repeatable(
            trace,
            {place - step.start: call for place, call in self._calls.items()},
            index,
            *self._lasting(index, facts.writers, layout.phases),
            {index[number] for number in self._touched if number in index},
            [(index[kept.life.number], layout.version(kept)) for kept in step.kept],
            self._log.device,
        )
        self.recorded = Recorded(
            repeatable.trace,
            [Fired(pack, number, place - step.start) for pack, number, place in saves.fired],
            saves.views,
            saves.counters,
            [-1 if life is None else index[life.number] for life in saves.lives],
            saves.askers,
            repeatable,
            self._sequence,
            {facts.storage_index[name]: where for name, where in layout.addresses().items()},
        )

    def _lasting(
        self,
        index: Mapping[int, int],
        writers: Sequence[Sequence[int]],
        phases: Sequence[Phase],
    ) -> tuple[Lasting, set[int]]:
        """Return, by storage of the trace, the parameters and buffers on it, and those of them that
        an optimizer writes without a count of versions, as fused ones do. What else is written so
        is left out: running statistics, `.data` of a parameter without an optimizer."""
        found: dict[int, list[weakref.ref[torch.Tensor]]] = {}
        silent: set[int] = set()
        log = self._log
        for _, tensor in (*self._modules.parameters(), *self._modules.buffers()):
            life = log.book.find(tensor) if log.here(tensor) else None
            if life is not None and life.number in index:
                s = index[life.number]
                found.setdefault(s, []).append(weakref.ref(tensor))
                first = self._counters.get(life.number, -1)
                if writers[s] and not -1 < first < version(tensor):
                    silent.add(s)
        parameters = (
            each
            for optimizer in self._modules.optimizers
            for group in optimizer.param_groups
            for each in group["params"]
        )
        told = {
            life.number
            for each in parameters
            if log.here(each) and (life := log.book.find(each)) is not None
        }
        optimized = {index[number] for number in told if number in index}
        for s in list(silent):
            if s not in optimized or any(phases[op] != "optimizer" for op in writers[s]):
                silent.remove(s)
                del found[s]
        return found, silent


def enter_all(log: Log, slabs: Mapping[str, Slabs]) -> None:
    """Enter all tensors of the process that are on the log's device, but for those of tiers: where
    a CPU stands in for a device, they are in the same memory."""
    apart = {address for each in slabs.values() for address in each.addresses}
    for each in gc.get_objects():
        if not issubclass(type(each), torch.Tensor):  # asking the object may run its code
            continue
        leaf = each.grad_fn is None and each.grad is not None
        for tensor in (each, each.grad) if leaf else (each,):
            if not (log.here(tensor) and tensor.layout is torch.strided):
                continue
            where = _memory_of(tensor)
            if where is not None and where not in apart:
                _ = log.book.find(tensor) or log.book.enter(tensor, -1)


def _memory_of(tensor: torch.Tensor) -> int | None:
    """Return where a tensor's storage is; None if there are no bytes of its own behind it."""
    if is_fake(tensor):
        return None
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # it wraps others
        return None
