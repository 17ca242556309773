"""The executor: runs a policy's schedule on a real device, under unmodified PyTorch."""

import gc
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

from ..allocators import new_allocator
from ..errors import InvalidInput, Unsupported
from ..machines import Machine, Tier, find_machine
from ..notation import format_bytes, parse_bytes
from ..policies import Policy, find_policy
from ..traces import Trace, find_trace
from .audit import AuditedStep, Reading
from .backend import Backend
from .clock import Clocked, ClockedStep
from .course import Course, Site
from .device import backend_of
from .hooks import ExecutedStep
from .journal import Journal, StepReport
from .links import measured, told
from .plan import Plan
from .private import compiled_run_eagerly, is_of_a_mode
from .saves import OWN_MODE
from .signature import signature
from .slabs import SLAB_NBYTES, Slabs

_log = logging.getLogger("superneurons")


class Executor:
    """Runs training steps by a policy's schedule. Put each whole step into it::

        executor = Executor("liveness+offload", budget="12GiB")
        for inputs, targets in loader:
            with executor.step(inputs, targets):
                optimizer.zero_grad()
                criterion(model(inputs), targets).backward()
                optimizer.step()

    All micro-batches, the optimizer and zero_grad belong to the step. The first two steps run in
    safe mode: all that autograd keeps goes to the host and comes back on demand. The second is
    recorded, the policy makes the schedule, and later steps run by it. A step with another batch
    than those before, by the shapes given to `step`, has a schedule of its own.

    *policy* is a policy or its name, *budget* what of the device it may use (all of it unless
    given), *machine* a machine, its name or file; without one the links are measured. *host_memory*
    bounds what is taken of the host, *peer* names another GPU for schedules that send there.
    *times*, a recording of the same step on this GPU or its file, gives policies and forecasts the
    operations' times, in place of a roofline. *report* tells of the last step, *notices* are what
    was said. With *audit* each executed step is watched, slowly: *readings* are the device's bytes
    beside the ledger's before each operation. With *clock* each is clocked: *clocked* says where
    the time of the last one went.

    What a policy drops is computed again as forward did in that step, so forward is looked at where
    something is to be computed again. With *assume_constant* it is not: then the step must pass the
    same numbers to the same operations on the same values each time, or its gradients are wrong.
    With *verify* a copy is kept of all that is dropped, and what comes of it is compared.
    """

    def __init__(
        self,
        policy: Policy | str,
        budget: str | int | None = None,
        machine: Machine | str | None = None,
        *,
        device: torch.device | str | None = None,
        peer: torch.device | str | None = None,
        host_memory: str | int | None = None,
        times: Trace | str | None = None,
        backend: Backend | None = None,
        slab_nbytes: int = SLAB_NBYTES,
        audit: bool = False,
        clock: bool = False,
        assume_constant: bool = False,
        verify: bool = False,
    ) -> None:
        self.policy: Final = find_policy(policy) if isinstance(policy, str) else policy
        self.budget: Final = _nbytes(budget)
        self.backend: Final = backend or backend_of(device, peer)
        self.notices: Final = Notices()
        self._last: Journal | StepReport | None = None
        self.steps = 0
        self.audit = audit
        self.clock = clock
        self.assume_constant: Final = assume_constant
        self.verify: Final = verify
        self.readings: list[Reading] = []
        self.clocked: Clocked | None = None
        host_nbytes = _nbytes(host_memory)
        if machine is None:
            self.machine = measured(self.backend, host_nbytes)
            self.notices.say(told(self.machine))
        else:
            self.machine = find_machine(machine) if isinstance(machine, str) else machine
            new_allocator(self.machine.allocator)  # or say that there is none of that name
        if self.budget is not None and self.budget > self.machine.device_nbytes:
            raise InvalidInput(
                f"a budget of {format_bytes(self.budget)} is more than {self.machine.name!r} has, "
                f"{format_bytes(self.machine.device_nbytes)}; give less, or none"
            )
        self.slabs: Final = {
            tier.name: Slabs(
                self.backend,
                tier.name,
                _bound(self.backend, tier, host_nbytes),
                slab_nbytes,
            )
            for tier in self.machine.tiers
            if tier.name in self.backend.tiers
        }
        self._site: Final = Site(
            self.backend,
            self.slabs,
            self.policy,
            self.machine,
            self.budget,
            find_trace(times) if isinstance(times, str) else times,
            self.notices.say,
        )
        self._courses: dict[Hashable, Course] = {}
        self._course: Course | None = None  # of the last step
        self._inside = False

    @property
    def report(self) -> StepReport | None:
        """What the last step did beside what it was to do; None before the first."""
        return self._last.report() if isinstance(self._last, Journal) else self._last

    @property
    def plans(self) -> list[Plan]:
        """What the hooks do in each kind of step so far; each plan has its schedule."""
        return [plan for course in self._courses.values() for plan in course.plans.values()]

    @property
    def differences(self) -> list[Reading]:
        """Where an audited step had other bytes than the ledger."""
        return [each for each in self.readings if each.found_nbytes != each.planned_nbytes]

    @contextmanager
    def step(self, *batch: object) -> Iterator[None]:
        """Run one step, which is of the same kind as all those with such a *batch*.

        Raises DoesNotFit or PolicyFailed before the step if there is no schedule for it.
        """
        if self._inside:
            raise InvalidInput("a step has begun inside another one; end the first before")
        key = signature(batch)
        if key not in self._courses:
            self._courses[key] = Course(self._site)
        course = self._courses[key]
        course.prepare()
        if course is not self._course:
            course.interrupted()
        self._course = course
        course.begin(self.backend.allocated_nbytes())
        self._inside = True
        self.clocked = None
        self.backend.begin()
        try:
            if course.kept:
                yield
                self._end("kept", course.kept)
                course.rested()
            else:
                with compiled_run_eagerly(self._tell_compiled):
                    if course.recording is not None or course.usual is None:
                        yield from self._record(course)
                    else:
                        yield from self._execute(course, course.usual)
        finally:
            self._inside = False

    def _record(self, course: Course) -> Iterator[None]:
        recording = course.record(first=self.steps == 0)
        try:
            with recording.step():
                yield
        except BaseException as error:
            course.recording = None  # what it has seen is no step
            self.backend.drain()
            if is_of_a_mode(error):
                raise Unsupported(OWN_MODE) from error
            raise
        if recording.stayed_nbytes:
            self.notices.say(
                "the host's memory is too small to record the step with nothing kept; "
                f"{format_bytes(recording.stayed_nbytes)} stayed on the device"
            )
        self._end("safe" if recording.missing else "recorded", recording.problem)

    def _execute(self, course: Course, plan: Plan) -> Iterator[None]:
        self.backend.waits_ns()  # what steps before have waited is not this one's
        self.backend.copied_ns()
        kind = AuditedStep if self.audit else ClockedStep if self.clock else ExecutedStep
        step = kind(
            plan,
            self.backend,
            self.slabs,
            course.plans,
            constant=self.assume_constant,
            verify=self.verify,
        )
        try:
            with (
                _no_collection(),
                torch.autograd.set_multithreading_enabled(False),
                step.hooked(whole=course.doubtful or kind is not ExecutedStep),
                step.watched(),
            ):
                yield
        except BaseException as error:
            step.abandon()
            self.backend.drain()
            if isinstance(error, torch.OutOfMemoryError):
                course.ran_out()
            if is_of_a_mode(error):
                raise Unsupported(OWN_MODE) from error
            raise
        step.finish()
        waits_ns = self.backend.waits_ns()
        step.journal.end(self.steps, step.why, sum(waits_ns), self.backend.copied_ns())
        self._last = step.journal
        self.steps += 1
        if isinstance(step, AuditedStep):
            self.readings = step.readings
        if isinstance(step, ClockedStep) and not step.why:
            self.clocked = step.clocked(waits_ns)
        if step.why:
            course.surprised(step.why)
        else:
            course.as_recorded(step.plan)
        if step.journal.kept:
            self.notices.say(
                f"a tier had no room for {step.journal.kept} storages, which stay on the device: "
                "the step takes more of it than planned"
            )

    def _tell_compiled(self) -> None:
        self.notices.say(
            "the step has a region of torch.compile, which runs as it is written: what compiled "
            "code keeps and allocates, nobody is told"
        )

    def _end(self, mode: str, why: str) -> None:
        self._last = StepReport(step=self.steps, mode=mode, why=why)
        self.steps += 1


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector off: what it would free it would free at no place of the ledger's,
    and handles that come and go by the thousand would have it search the whole process."""
    runs = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if runs:
            gc.enable()


class Notices(list[str]):
    """What was said, each thing once."""

    def say(self, what: str) -> None:
        """Say something, unless it was said before."""
        if what not in self:
            self.append(what)
            _log.warning(what)


def _bound(backend: Backend, tier: Tier, host_nbytes: int | None) -> int:
    """Return what may be taken of a tier: as the user says, or the machine, if that is there."""
    if host_nbytes is not None and tier.name == "host":
        return host_nbytes
    return min(tier.nbytes, backend.room(tier.name))


def _nbytes(quantity: str | int | None) -> int | None:
    return parse_bytes(quantity) if isinstance(quantity, str) else quantity
