"""What every policy promises, as a test that its author runs.

Each promise is a function that takes a policy and raises AssertionError with a sentence if it is
broken. With pytest:

    from superneurons.policies import contract

    @pytest.mark.parametrize("promise", contract.PROMISES, ids=lambda promise: promise.__name__)
    def test_my_policy(promise):
        promise(MyPolicy())

The steps that policies are tried on are small, random and the same every time; half of them look
like recorded ones, with saves and few places. `decide` proves each schedule with the checker, so a
schedule that breaks a rule fails every promise. A policy may refuse steps that lack what it needs.
"""

from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from random import Random
from typing import Final

from msgspec import structs

from ..errors import DoesNotFit
from ..machines import Machine, find_machine
from ..schedules import Run
from ..traces import Facts, Trace, random_trace
from .base import Policy
from .decide import Decision, decide, needs_of

_SEEDS: Final = 40
_FRACTIONS: Final = (0.0, 0.25, 0.6)


def steps(policy: Policy) -> Iterator[Trace]:
    """Yield the random steps that a policy is tried on, those that have what it needs."""
    needs, tried = needs_of(policy), 0
    for seed in range(_SEEDS):
        trace = random_trace(
            Random(seed), 1 + seed % 16, "saves" if seed % 2 else "everywhere", f"contract:{seed}"
        )
        if needs <= trace.has:
            tried += 1
            yield trace
    assert tried, f"no step here has what {policy!r} needs: {', '.join(sorted(needs))}"


def decisions(policy: Policy) -> Iterator[tuple[Trace, int | None, Decision]]:
    """Yield a decision for each step without a budget, and for several between floor and peak."""
    machine = find_machine("k40c")
    for trace in steps(policy):
        free = decide(policy, trace, machine)
        yield trace, None, free
        floor = trace.facts.floor_nbytes
        spare = free.ledger.device_peak_nbytes - floor
        for fraction in _FRACTIONS:
            budget = floor + int(fraction * spare)
            yield trace, budget, decide(policy, trace, machine, budget)


def runs_every_operation_once_in_order(policy: Policy) -> None:
    """The schedule is the original step with memory decisions in it, no other."""
    for trace, _, (schedule, _) in decisions(policy):
        runs = [step.op for step in schedule.instructions if type(step) is Run]
        assert runs == list(range(len(trace.operations))), f"{policy!r} on {trace.name}: {runs}"


def keeps_to_the_budget_or_says_so(policy: Policy) -> None:
    """Either the device peak is within the limit, or the schedule says how much it is short."""
    for trace, budget, (schedule, ledger) in decisions(policy):
        over = max(0, ledger.device_peak_nbytes - schedule.limit_nbytes)
        assert over == schedule.short_nbytes, f"{policy!r} on {trace.name} in {budget}: {over} over"
        assert schedule.budget_nbytes == budget, f"{policy!r} forgets the budget {budget}"


def keeps_to_the_tiers(policy: Policy) -> None:
    """A tier without room is as good as none: the schedule is legal with tiny tiers, too."""
    machine = find_machine("k40c:host_memory=24B")
    for trace in steps(policy):
        ledger = decide(policy, trace, machine, trace.facts.floor_nbytes).ledger
        for tier, nbytes in ledger.tier_peak_nbytes.items():
            assert nbytes <= machine.capacities[tier], (
                f"{policy!r} on {trace.name}: {tier} overflows"
            )


def never_undercuts_the_floor(policy: Policy) -> None:
    """No schedule needs less than the most demanding operation; a budget below that is refused."""
    machine = find_machine("k40c")
    for trace, _, (_, ledger) in decisions(policy):
        facts = trace.facts
        assert ledger.device_peak_nbytes >= facts.floor_nbytes, f"{policy!r} on {trace.name}"
        assert max(ledger.step_nbytes) >= facts.scheduled_floor_nbytes, f"{policy!r}: {trace.name}"
        if facts.floor_nbytes:
            try:
                decide(policy, trace, machine, facts.floor_nbytes - 1)
            except DoesNotFit:
                continue
            raise AssertionError(f"{policy!r} on {trace.name}: a budget below the floor is taken")


def decides_the_same_every_time(policy: Policy) -> None:
    """The same step, machine and budget give the same instructions; nothing is remembered."""
    for trace, budget, (schedule, _) in decisions(policy):
        again = decide(policy, trace, find_machine("k40c"), budget).schedule
        same = list(again.instructions) == list(schedule.instructions)
        assert same, f"{policy!r} on {trace.name} in {budget}: another schedule the second time"


def leaves_trace_and_machine_alone(policy: Policy) -> None:
    """What a policy is given it does not change: others are asked about it next."""
    machine: Machine = find_machine("k40c")
    before = structs.asdict(machine)
    for trace in steps(policy):
        decide(policy, trace, machine)
        kept, fresh = vars(trace.facts), vars(Facts(trace))
        changed = [name for name in fresh if name != "trace" and fresh[name] != kept[name]]
        assert not changed, f"{policy!r} changes the facts of {trace.name}: {', '.join(changed)}"
    assert structs.asdict(machine) == before, f"{policy!r} changes the machine"


def is_frozen_and_has_a_label(policy: Policy) -> None:
    """A policy is parameters only; its repr stands in every table and plot."""
    assert repr(policy), "a policy needs a repr"
    assert " at 0x" not in repr(policy), f"{policy!r} is no label: give it a __repr__"
    try:
        policy.label = "changed"  # type: ignore[attr-defined]
    except (FrozenInstanceError, AttributeError):
        return
    raise AssertionError(f"{policy!r} can be changed; make it a frozen dataclass")


PROMISES: Final[tuple[Callable[[Policy], None], ...]] = (
    runs_every_operation_once_in_order,
    keeps_to_the_budget_or_says_so,
    keeps_to_the_tiers,
    never_undercuts_the_floor,
    decides_the_same_every_time,
    leaves_trace_and_machine_alone,
    is_frozen_and_has_a_label,
)
