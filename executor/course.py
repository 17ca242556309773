"""The steps of one signature: recorded, planned, and recorded again if they turn out different."""

from collections.abc import Callable, Mapping
from typing import Final

from ..errors import DoesNotFit, InvalidInput
from ..machines import Machine
from ..notation import format_bytes
from ..policies import Policy, decide_reserved
from ..schedules import Schedule
from ..traces import Trace, with_times
from .backend import Backend
from .plan import Look, Plan
from .recording import KEPT_NBYTES, Recorded, Recording
from .slabs import Slabs
from .surprises import Surprises

TRIES: Final = 4
"""How many steps in a row may fail to be recorded before one gives up and keeps everything."""

GROWTHS: Final = 2
"""How often a step is recorded again for there being more on the device."""

GROWTH_NBYTES: Final = KEPT_NBYTES
"""How much more a step may find on the device than the one before, until it is recorded again: what
each may leave behind must not be too much for the next."""

SPARE_PERCENT: Final = 2
"""How much more of the budget a schedule leaves free each time that one has run out of memory."""

WATCHED: Final = 16
"""One of so many steps is watched to its end, though the schedule may have nothing to do there."""


class Site:
    """Where steps run: *backend* and *slabs*, by what *policy*, on which *machine*, in how many
    bytes; *times* are a recording's; *say* tells the user something, once."""

    def __init__(
        self,
        backend: Backend,
        slabs: Mapping[str, Slabs],
        policy: Policy,
        machine: Machine,
        budget: int | None,
        times: Trace | None,
        say: Callable[[str], None],
    ) -> None:
        self.backend: Final = backend
        self.slabs: Final = slabs
        self.policy: Final = policy
        self.machine: Final = machine
        self.budget: Final = budget
        self.times: Final = times
        self.say: Final = say

    @property
    def limit_nbytes(self) -> int:
        """What a schedule may take of the device."""
        return self.machine.device_nbytes if self.budget is None else self.budget

    def timed(self, trace: Trace) -> Trace:
        """Return a recorded step with the times of the recording, if it is of the same step."""
        if self.times is None:
            return trace
        try:
            return with_times(trace, self.times)
        except InvalidInput as error:
            self.say(f"{error}; the roofline of {self.machine.name} stands for its times")
            return trace

    def plan(self, recorded: Recorded, spare_nbytes: int) -> Plan:
        """Have the policy make a schedule of a recorded step that leaves *spare_nbytes* free, and
        return the plan of it. Raises as `Course.prepare` does."""
        allocator = self.backend.allocator
        standing = self.backend.standing(recorded.addresses)
        limit = self.limit_nbytes
        budget = limit - spare_nbytes if spare_nbytes else self.budget
        decision = decide_reserved(
            self.policy, recorded.trace, self.machine, budget, allocator, standing
        )
        if decision.schedule.limit_nbytes < limit:
            self.say(
                f"torch's allocator ({allocator}) takes more than is asked for: the schedule has "
                f"{format_bytes(decision.schedule.limit_nbytes)} of {format_bytes(limit)}"
            )
        if decision.leaner:
            name = recorded.trace.facts.op_names[decision.leaner[0]]
            self.say(
                f"there is no room for the workspaces of {len(decision.leaner)} convolutions "
                f"({name!r} is the first), so cuDNN takes other algorithms there: results may "
                "differ in the last bits, and take longer"
            )
        _refuse_short(decision.schedule, recorded.trace.facts.op_names)
        plan = Plan(recorded, decision)
        for tier, nbytes in decision.ledger.tier_peak_nbytes.items():
            if nbytes:
                self._slabs(tier, plan.schedule.policy).reserve(nbytes)
        return plan

    def _slabs(self, tier: str, policy: str) -> Slabs:
        if tier not in self.slabs:
            raise InvalidInput(
                f"{policy} sends storages to {tier!r}, which this device does "
                f"not have; it has: {', '.join(self.slabs)}"
            )
        return self.slabs[tier]


class Course:
    """What is known of the steps of one signature.

    *plans* are by their first save: without a batch to tell them apart, steps may differ. *usual*
    is the one that was right last. *recording* is under way, or was made and has no plan yet.
    *kept* says why everything is kept, for good or for a while.
    """

    def __init__(self, site: Site) -> None:
        self.plans: dict[Look, Plan] = {}
        self.usual: Plan | None = None
        self.recording: Recording | None = None
        self.kept = ""
        self._site = site
        self._tries = 0
        self._rest = 0  # steps to be kept until one is recorded again; below 0, all
        self._patience = 2
        self._surprises: Final = Surprises(site.say)
        self._growths = 0
        self._start_nbytes: int | None = None
        self._spare_nbytes = 0
        self._steady = 0  # steps in a row that were as recorded

    @property
    def doubtful(self) -> bool:
        """Whether the next step is to be watched to its end: it may not be the one that is known.
        What differs in a step that is not is right all the same, but plain PyTorch's, unplanned."""
        return self._steady % WATCHED == 0

    def as_recorded(self, plan: Plan) -> None:
        """A step was the one of *plan*."""
        self._surprises.none()
        self._steady = self._steady + 1 if plan is self.usual else 0
        self.usual = plan

    def record(self, *, first: bool) -> Recording:
        """Return the recording under way, a new one if there is none."""
        if self.recording is None:
            site = self._site
            name = f"step under {site.policy!r}"
            self.recording = Recording(name, site.backend, site.slabs, first=first)
        return self.recording

    def rested(self) -> None:
        """A step was kept whole. If that was for want of anything to do, one is recorded again in
        the end: training may have had to wait for its data."""
        self._rest -= 1
        if not self._rest:
            self.kept = ""
            self.record(first=False)

    def interrupted(self) -> None:
        """Steps of another signature have run since the last one: what a recording under way knows
        of the process is out of date, so it begins anew."""
        if self.recording is not None:
            self.recording = None
            self.record(first=False)

    def prepare(self) -> None:
        """Make the plan of what has been recorded, before the next step begins.

        Raises DoesNotFit if the policy has no schedule for it within the bytes, PolicyFailed and
        InvalidInput as `decide` does.
        """
        recording = self.recording
        if recording is None or recording.recorded is None:
            if recording is not None and recording.problem:
                self._tries += 1
                if self._tries >= TRIES:
                    problem = recording.problem
                    self._keep(f"the step cannot be recorded: {problem}; so everything is kept")
                elif recording.lost:
                    self.recording = None
                    self.record(first=False)
            return
        recorded, site = recording.recorded, self._site
        recorded = recorded.timed(site.timed(recorded.trace))
        why = _nothing_to_do(recorded)
        if why:
            self._patience *= 2
            self._keep(
                f"{why}; so everything is kept, and a later step is recorded", self._patience
            )
            return
        self._tries = 0
        known = self.plans.get((recorded.views[0].dtype, recorded.views[0].shape))
        again = known is not None and known.kind == recorded.kind
        if known is not None and not again and self._surprises.rivals(known.look):
            self.recording = None
            return
        if known is None or known.trace.facts.digest != recorded.trace.facts.digest:
            self._take(site.plan(recorded, self._spare_nbytes))
        elif not known.recipes.current:  # another model of the same kind
            self._take(Plan(recorded, known.decided))
        self.recording = None
        if known is None or not again:
            self._surprises.over()
        elif self._surprises.met(known.look):
            self.record(first=False)

    def _take(self, plan: Plan) -> None:
        self.plans[plan.look] = self.usual = plan
        self._steady = 0

    def begin(self, nbytes: int | None) -> None:
        """A step is about to begin with so many bytes on the device: if they have grown, a schedule
        that knows nothing of them may not fit any more, and the step is recorded again."""
        if nbytes is None or self.usual is None or self.recording is not None:
            return
        before, self._start_nbytes = self._start_nbytes, nbytes
        if before is None or nbytes <= before + GROWTH_NBYTES or self._growths >= GROWTHS:
            return
        self._growths += 1
        self._site.say(
            "there is more on the device than when the step was recorded (the states of an "
            "optimizer that had skipped its steps?), so it is recorded again"
        )
        self.record(first=False)

    def ran_out(self) -> None:
        """A step by a schedule ran out of memory: whatever took it, the next schedule leaves more
        of it free."""
        limit = self._site.limit_nbytes
        self._spare_nbytes = min(limit // 2, self._spare_nbytes + limit * SPARE_PERCENT // 100)
        self._site.say(
            "a step ran out of memory by its schedule, for torch's allocator took more than its "
            "model says, or the step does; the next one is recorded again, and its schedule leaves "
            f"{SPARE_PERCENT} % more free each time"
        )
        self.plans.clear()
        self.usual = None
        self.record(first=False)

    def surprised(self, why: str) -> None:
        """A step was none that is known: record the next one, unless that has been in vain."""
        self._steady = 0
        if self._surprises.another(why):
            self.record(first=False)

    def _keep(self, why: str, rest: int = 0) -> None:
        self.kept, self.recording, self._rest = why, None, rest
        self._site.say(why)


def _nothing_to_do(recorded: Recorded) -> str:
    """Return why no schedule can do anything for a step, "" if one can."""
    if not recorded.views:
        return "autograd keeps nothing in this step"
    if all(storage < 0 for storage in recorded.storages):
        return "nothing that autograd keeps in this step is on the executor's device"
    if all(op.phase != "backward" for op in recorded.trace.operations):
        return "the step has no backward pass"
    return ""


def _refuse_short(schedule: Schedule, op_names: list[str]) -> None:
    if schedule.short_nbytes:
        raise DoesNotFit(
            f"{schedule.policy} does not fit the step into {format_bytes(schedule.limit_nbytes)}: "
            f"{schedule.short_nbytes} bytes are missing at {op_names[schedule.short_op]!r}; give "
            "more, or take a smaller batch or another policy"
        )
