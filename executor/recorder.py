"""Record: watch training steps as they run, and make a trace of one.

On a GPU a recording takes some steps, each with one purpose, so that nothing disturbs what is
measured: a few to warm up; a few untouched, timed with a clock; two logged, of which the second
becomes the trace, for only then is it known what the first left behind; one profiled with marks,
which says whose kernel is whose; and a few profiled without, which give the kernels' times.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Final

import msgspec
import torch

from ..errors import InvalidInput, Unsupported
from ..traces import Trace
from .assemble import assemble
from .attribution import Attribution, attribute
from .findings import Measured, doubts, findings, usual_phases
from .history import History
from .layout import Layout
from .log import Log
from .meter import CudaMeter, counted
from .modules import Modules
from .phases import Stopwatch
from .private import Observer, compiled_frames, is_of_a_mode, observed
from .provenance import machine_of, provenance
from .saves import COMPILED, OWN_MODE, RefuseCompiled, Saves
from .stages import Stage, Stages
from .step import Step, phases_of
from .timeline import Marks, Timeline, profiled
from .watch import Watch, one_thread


class Recorder:
    """Records one training step of a model that knows nothing of it.

    Put each step, `zero_grad` to `optimizer.step()`, into `with recorder.step():` until
    `recorder.done`; then ask for the trace::

        recorder = Recorder("my model")
        for inputs, targets in loader:
            with recorder.step():
                ...
            if recorder.done:
                break
        trace = recorder.trace()

    *device* is where the step runs; its CUDA device unless given, or else the CPU. On a CPU (and
    under fake tensors) bytes are recorded and times are left to a machine's roofline. What a step
    raises goes through; the recording is then over. All steps must do the same.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str | None = None,
        log: Log | None = None,
        observing: Callable[[Observer], AbstractContextManager[None]] = observed,
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name: Final = name
        self.device: Final = _numbered(torch.device(device))
        cuda = self.device.type == "cuda"
        self.measured: list[Measured] = []
        self._observing = observing
        self._log = log or Log(self.device, CudaMeter(self.device) if cuda else None)
        self._modules = Modules(self._log)
        self._marked: list[Timeline] = []
        self._plain: list[Timeline] = []
        self._step: Step | None = None
        self._stages: Final = Stages(cuda)
        self._run: Final[dict[Stage, Callable[[], AbstractContextManager[None]]]] = {
            "warm": self._warm,
            "timed": self._timed,
            "untouched": nullcontext,
            "profiled": self._profiled,
            "logged": self._logged,
            "marked": self._marks,
        }
        self._marked_calls = 0
        self._broken = False
        self.logged_s = 0.0

    @property
    def done(self) -> bool:
        """Whether enough steps have been seen."""
        return not self._stages

    @contextmanager
    def step(self) -> Iterator[None]:
        """See one step. Steps after the last one that is needed run untouched."""
        if not self._stages:
            yield
            return
        stage = self._stages.take()
        begin = time.perf_counter_ns()
        try:
            with self._run[stage]():
                yield
            self._stages.passed(stage, time.perf_counter_ns() - begin)
        except BaseException as error:
            self._broken = True
            self._stages.clear()
            if is_of_a_mode(error):
                raise Unsupported(OWN_MODE) from error
            if type(error).__module__.startswith("torch._dynamo"):
                raise Unsupported(COMPILED) from error
            raise

    def trace(self) -> Trace:
        """Return the recorded step.

        Raises InvalidInput if steps are missing or one failed, if the step is not closed or if
        what was profiled is not what was logged.
        """
        if self._broken:
            raise InvalidInput(f"{self.name}: a step failed while it was recorded; record it again")
        if self._stages or self._step is None:
            left = len(self._stages)
            raise InvalidInput(f"{self.name}: a recording needs {left} more steps; run them first")
        notes = {"made": "recorded from a training step in PyTorch"} | provenance(self.device)
        if self._log.rules.caveats:
            nodes = ", ".join(sorted(self._log.rules.caveats))
            notes["caveat"] = (
                f"{nodes}: torch runs other formulas for these while a step is estimated; bytes "
                "around them may differ from a plain step's"
            )
        if self.device.type != "cuda":
            notes["times"] = "none measured: the roofline of the machine that it is simulated on"
            return assemble(Layout(self._step), self.name, notes)
        found = self._times()
        notes |= findings(self.measured, found, len(self._plain))
        trace = assemble(Layout(self._step), self.name, notes, found.times)
        notes |= doubts(trace, self.measured, found)
        return msgspec.structs.replace(trace, machine=machine_of(self.device), notes=notes)

    # -- stages ------------------------------------------------------------------------------------

    @contextmanager
    def _warm(self) -> Iterator[None]:
        """Let lazy state appear, and the GPU's clock and the host's caches settle."""
        before = compiled_frames()
        with self._modules, RefuseCompiled():
            yield
        if compiled_frames() > before:
            raise Unsupported(COMPILED)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        stopwatch = Stopwatch()
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        with stopwatch.watch():
            begin = stopwatch.start()
            yield
            phases = stopwatch.stop()
            torch.cuda.synchronize(self.device)
            end = stopwatch.now()
        stats = torch.cuda.memory_stats(self.device)
        self.measured.append(
            Measured(
                end - begin,
                phases,
                stats["requested_bytes.all.peak"],
                stats["allocated_bytes.all.peak"],
                stats["reserved_bytes.all.peak"],
            )
        )

    @contextmanager
    def _logged(self) -> Iterator[None]:
        log = self._log
        watch, saves = Watch(log, self._modules), Saves(log)
        log.dispatched = log.calls = 0
        last = "logged" not in self._stages
        history = History(self.device) if last and self.device.type == "cuda" else None
        with (
            nullcontext() if history is None else history.recorded(counted(self.device)),
            watch.around(saves, self._observing(log.observe), collect=True),
        ):
            begin = time.perf_counter()
            yield
            self.logged_s = time.perf_counter() - begin
        log.poll()
        if last:
            log.book.close()
        if history is not None:
            for op in log.operations[watch.start :]:
                history.settle(op)
        self._step = watch.step(saves)

    @contextmanager
    def _marks(self) -> Iterator[None]:
        marks = Marks()
        profiler = profiled(self._marked, self.device.index, host=True)
        with profiler, one_thread(), self._observing(marks.observe):
            yield
        self._marked_calls = marks.calls

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        with profiled(self._plain, self.device.index, host=False):
            yield

    # -- times -------------------------------------------------------------------------------------

    def _times(self) -> Attribution:
        assert self._step is not None
        operations = self._step.operations
        marked = self._marked[0]
        number_of = {op.dispatch: i for i, op in enumerate(operations)}
        if self._marked_calls != self._log.calls:
            raise InvalidInput(
                f"{self.name}: the logged step called {self._log.dispatched} operators and the "
                f"profiled one {len(marked.marks)}, or on other shapes; times can be measured only "
                "of a step that repeats"
            )
        unseen = usual_phases(self.measured)
        step_ns = round(median(each.step_ns for each in self.measured))
        return attribute(marked, self._plain, number_of, phases_of(operations), unseen, step_ns)


def record(step: Callable[[], object], name: str, device: torch.device | None = None) -> Trace:
    """Run *step* as often as a recording needs, and return its trace."""
    recorder = Recorder(name, device)
    while not recorder.done:
        with recorder.step():
            step()
    return recorder.trace()


def _numbered(device: torch.device) -> torch.device:
    """Return the device as tensors name it: with its number."""
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device
