"""The executor: runs a policy's schedule on a real device, under unmodified PyTorch."""

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import torch
from torch.autograd.graph import saved_tensors_hooks

from ..errors import DoesNotFit, InvalidInput, Unsupported
from ..machines import Machine, find_machine
from ..notation import format_bytes, parse_bytes
from ..policies import Policy, decide, find_policy
from ..policies.recompute import Recompute
from ..policies.stack import Stack
from ..policies.superneurons import SuperNeurons
from ..schedules import Schedule
from .audit import AuditedStep, Difference
from .backend import Backend
from .cpu_backend import EmulatedBackend
from .cuda_backend import CudaBackend
from .entries import View
from .hooks import ExecutedStep
from .journal import StepReport
from .links import measured, told
from .plan import Plan
from .recording import Recording
from .signature import signature
from .slabs import SLAB_NBYTES, Slabs

TRIES: Final = 4
"""How many steps in a row may fail to be recorded before one gives up and keeps everything."""

FRUITLESS: Final = 2
"""How often a step is recorded again after a surprise, to find only what is known already."""

_log = logging.getLogger("superneurons")


class _Course:
    """What is known of the steps of one signature: plans by their first save, or why there is
    none."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.plans: dict[View, Plan] = {}
        self.usual: Plan | None = None
        self.kept = ""  # why everything is kept, for good
        self.tries = 0
        self.fruitless = 0


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
    bounds what is taken of the host. *report* tells of the last step, *notices* are what was said.
    With *audit* each executed step is watched, slowly: *differences* are the places, of those
    *looked* at, where the device's bytes were not the ledger's.
    """

    def __init__(
        self,
        policy: Policy | str,
        budget: str | int | None = None,
        machine: Machine | str | None = None,
        *,
        device: torch.device | str | None = None,
        host_memory: str | int | None = None,
        backend: Backend | None = None,
        slab_nbytes: int = SLAB_NBYTES,
        audit: bool = False,
    ) -> None:
        self.policy: Final = find_policy(policy) if isinstance(policy, str) else policy
        _refuse_recomputation(self.policy)
        self.budget: Final = _nbytes(budget)
        self.backend: Final = backend or _backend(device)
        self.notices: list[str] = []
        self.report: StepReport | None = None
        self.steps = 0
        self.audit: Final = audit
        self.differences: list[Difference] = []
        self.looked = 0
        host_nbytes = _nbytes(host_memory)
        if machine is None:
            self.machine = measured(self.backend, host_nbytes)
            self._say(told(self.machine))
        else:
            self.machine = find_machine(machine) if isinstance(machine, str) else machine
        self.slabs: Final = {
            tier.name: Slabs(
                self.backend,
                tier.name,
                tier.nbytes if host_nbytes is None or tier.name != "host" else host_nbytes,
                slab_nbytes,
            )
            for tier in self.machine.tiers
            if tier.name in self.backend.tiers
        }
        self._courses: dict[Hashable, _Course] = {}
        self._said: set[str] = set()
        self._inside = False

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules so far, one for each kind of step."""
        return [plan.schedule for course in self._courses.values() for plan in course.plans.values()]

    @property
    def plans(self) -> list[Plan]:
        """What the hooks do by each schedule."""
        return [plan for course in self._courses.values() for plan in course.plans.values()]

    @contextmanager
    def step(self, *batch: object) -> Iterator[None]:
        """Run one step, which is of the same kind as all those with such a *batch*.

        Raises DoesNotFit or PolicyFailed before the step if there is no schedule for it.
        """
        if self._inside:
            raise InvalidInput("a step has begun inside another one; end the first before")
        course = self._courses.setdefault(signature(batch), _Course())
        self._make_plan(course)
        self._inside = True
        try:
            if course.kept:
                yield
                self._end("kept", course.kept)
            elif course.recording is not None or course.usual is None:
                yield from self._record(course)
            else:
                yield from self._execute(course, course.usual)
        finally:
            self._inside = False

    def _record(self, course: _Course) -> Iterator[None]:
        if course.recording is None:
            name = f"step of {self.policy!r}"
            first = self.steps == 0
            course.recording = Recording(name, self.backend, self.slabs, first=first)
        recording = course.recording
        try:
            with recording.step():
                yield
        except BaseException:
            course.recording = None  # what it has seen is no step
            self.backend.drain()
            raise
        if recording.stayed_nbytes:
            self._say(
                "the host's memory is too small to record the step with nothing kept; "
                f"{format_bytes(recording.stayed_nbytes)} stayed on the device"
            )
        self._end("safe" if recording.missing else "recorded", recording.problem)

    def _execute(self, course: _Course, plan: Plan) -> Iterator[None]:
        kind = AuditedStep if self.audit else ExecutedStep
        step = kind(plan, self.backend, self.slabs, course.plans)
        try:
            with (
                torch.autograd.set_multithreading_enabled(False),
                saved_tensors_hooks(step.pack, step.unpack),
                step.watched() if isinstance(step, AuditedStep) else nullcontext(),
            ):
                yield
        except BaseException:
            step.abandon()
            self.backend.drain()
            raise
        step.finish()
        self.report = step.journal.report(
            self.steps, "kept" if step.why else "executed", step.why, self.backend.waited_ns()
        )
        self.steps += 1
        if isinstance(step, AuditedStep):
            self.differences, self.looked = step.differences, step.looked
        if step.why:
            self._surprised(course, step.why)
        else:
            course.usual = step.plan
        if self.report.done.get("kept"):
            self._say(
                f"a tier had no room for {self.report.done['kept']} storages, which stay on the "
                "device: the step takes more of it than planned"
            )

    def _surprised(self, course: _Course, why: str) -> None:
        """The step was none that is known: record the next one, unless that has been in vain."""
        self._say(f"the step was not the one that was recorded ({why}): everything was kept")
        if course.fruitless < FRUITLESS:
            course.recording = Recording(
                f"step of {self.policy!r}", self.backend, self.slabs, first=False
            )
        else:
            self._say(
                "steps of several kinds come in turns; give step() the batch, so that each kind "
                "gets a schedule of its own"
            )

    def _make_plan(self, course: _Course) -> None:
        """Make the plan of a recorded step, before the next one begins."""
        recording = course.recording
        if recording is None or recording.recorded is None:
            if recording is not None and recording.problem:
                course.tries += 1
                if course.tries >= TRIES:
                    course.kept, course.recording = recording.problem, None
                    self._say(f"the step cannot be recorded, so everything is kept: {course.kept}")
            return
        recorded = recording.recorded
        if not recorded.views:
            course.kept, course.recording = "autograd keeps nothing in it", None
            return
        known = course.plans.get(recorded.views[0])
        if known is not None and known.trace.facts.digest == recorded.trace.facts.digest:
            course.fruitless += 1
            course.recording = None
            return
        decision = decide(self.policy, recorded.trace, self.machine, self.budget)
        _refuse_short(decision.schedule, recorded.trace.facts.op_names)
        plan = Plan(recorded, decision.schedule, decision.ledger)
        self._refuse_tiers(plan)
        for tier, nbytes in decision.ledger.tier_peak_nbytes.items():
            if nbytes:
                self.slabs[tier].reserve(nbytes)
        course.plans[recorded.views[0]] = course.usual = plan
        course.recording = None

    def _refuse_tiers(self, plan: Plan) -> None:
        for tier, nbytes in plan.ledger.tier_peak_nbytes.items():
            if nbytes and tier not in self.slabs:
                raise InvalidInput(
                    f"{plan.schedule.policy} sends storages to {tier!r}, which this device does "
                    f"not have; it has: {', '.join(self.slabs)}"
                )

    def _end(self, mode: str, why: str) -> None:
        self.report = StepReport(step=self.steps, mode=mode, why=why)
        self.steps += 1

    def _say(self, what: str) -> None:
        """Say something once."""
        if what not in self.notices:
            self.notices.append(what)
            _log.warning(what)


def _refuse_recomputation(policy: Policy) -> None:
    parts = policy.components if isinstance(policy, Stack) else (policy,)
    if any(isinstance(part, Recompute | SuperNeurons) for part in parts):
        raise Unsupported(
            f"policy {policy!r} computes values again, which the executor cannot do yet; take one "
            "that keeps or offloads: liveness+offload, liveness+cache"
        )


def _refuse_short(schedule: Schedule, op_names: list[str]) -> None:
    if schedule.short_nbytes:
        raise DoesNotFit(
            f"{schedule.policy} does not fit the step into {format_bytes(schedule.limit_nbytes)}: "
            f"{schedule.short_nbytes} bytes are missing at {op_names[schedule.short_op]!r}; give "
            "more, or take a smaller batch or another policy"
        )


def _backend(device: torch.device | str | None) -> Backend:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type == "cpu":
        return EmulatedBackend()
    if found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    others = [i for i in range(torch.cuda.device_count()) if i != found.index]
    near = [i for i in others if torch.cuda.can_device_access_peer(found.index, i)]
    return CudaBackend(found, torch.device("cuda", near[0]) if near else None)


def _nbytes(quantity: str | int | None) -> int | None:
    return parse_bytes(quantity) if isinstance(quantity, str) else quantity


