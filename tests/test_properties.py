"""What holds for every policy on every step: random steps, random stacks, random budgets."""

from dataclasses import dataclass
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superneurons.errors import DoesNotFit
from superneurons.machines import find_machine
from superneurons.policies import (
    Component,
    Decision,
    Liveness,
    Part,
    Recompute,
    Stack,
    decide,
    find_policy,
)
from superneurons.schedules import Copy, Discard, Fetch, Free, Ledger, Rerun, Run, Timing
from superneurons.sim import play, simulate
from superneurons.traces import random_trace

MACHINE = find_machine("h200:host_memory=150B,device_to_host=30MB/s,host_to_device=70MB/s")
POLICIES = (
    "baseline",
    "liveness",
    "offload:release=immediate",
    "liveness+offload",
    "liveness+offload:lookahead=0,release=3",
    "liveness+offload:release=pressure,kinds=norm/conv",
    "liveness+cache",
    "cache:tier=peer",
    "liveness+recompute:strategy=speed",
    "recompute:strategy=memory,kinds=conv",
    "liveness+offload+recompute",
    "liveness+offload:tier=peer+cache+recompute:strategy=memory",
    "superneurons",
    "superneurons:strategy=speed",
)

randomness = st.randoms(use_true_random=False)
sizes = st.integers(1, 20)
places = st.sampled_from(("everywhere", "saves"))
fractions = st.none() | st.floats(0, 1)


def budget_between(trace, fraction):
    """Return no budget, or one between the floor and what liveness needs."""
    if fraction is None:
        return None
    peak = decide(find_policy("liveness"), trace, MACHINE).ledger.device_peak_nbytes
    floor = trace.facts.floor_nbytes
    return floor + int(fraction * max(0, peak - floor))


def replay(trace, schedule):
    """Yield a ledger after each instruction."""
    ledger = Ledger(trace.facts, schedule.limit_nbytes, schedule.tiers)
    for step in schedule.instructions:
        ledger.apply(step)
        yield ledger


@settings(deadline=None, max_examples=300)
@given(randomness, sizes, places, st.sampled_from(POLICIES), fractions)
def test_a_policy_passes_the_checker_and_fits_or_says_by_how_much_not(
    rng, ops, where, policy, fraction
):
    trace = random_trace(rng, ops, where)
    budget = budget_between(trace, fraction)
    decision = decide(find_policy(policy), trace, MACHINE, budget)
    schedule, ledger = decision
    runs = [step.op for step in schedule.instructions if isinstance(step, Run)]
    assert runs == list(range(len(trace.operations)))
    over = ledger.device_peak_nbytes - schedule.limit_nbytes
    assert schedule.short_nbytes == max(0, over)
    report = play(trace, decision, MACHINE)
    assert report.fits == (over <= 0)
    assert report.short_bytes == max(0, over)
    assert ledger.device_peak_nbytes >= trace.facts.floor_nbytes
    assert max(ledger.step_nbytes) >= trace.facts.scheduled_floor_nbytes
    assert max(ledger.step_nbytes) <= ledger.strict_peak_nbytes <= ledger.device_peak_nbytes


@settings(deadline=None, max_examples=300)
@given(randomness, sizes, places, st.sampled_from(POLICIES), fractions)
def test_what_is_copied_is_given_up_before_it_dies(rng, ops, where, policy, fraction):
    trace = random_trace(rng, ops, where)
    schedule = decide(find_policy(policy), trace, MACHINE, budget_between(trace, fraction)).schedule
    used, place = {}, 0
    for step in schedule.instructions:
        if isinstance(step, Run):
            place = step.op + 1
        elif isinstance(step, Copy):
            used[step.storage, step.tier] = False
        elif isinstance(step, Fetch) or (
            isinstance(step, Free) and place < trace.facts.death[step.storage]
        ):
            used |= {key: True for key in used if key[0] == step.storage}
        elif isinstance(step, Discard):
            assert used.pop((step.storage, step.tier))
    assert used == {}


@settings(deadline=None, max_examples=150)
@given(randomness, sizes, places, st.sampled_from(POLICIES), fractions)
def test_the_ledger_is_never_negative_and_ends_as_it_began(rng, ops, where, policy, fraction):
    trace = random_trace(rng, ops, where)
    schedule = decide(find_policy(policy), trace, MACHINE, budget_between(trace, fraction)).schedule
    begun = Ledger(trace.facts, 0, schedule.tiers).device_nbytes
    for ledger in replay(trace, schedule):
        assert ledger.device_nbytes >= ledger.scheduled_nbytes >= 0
        assert ledger.tensors >= 0
        assert all(nbytes >= 0 for nbytes in ledger.tier_nbytes.values())
    assert ledger.device_nbytes == begun
    assert (ledger.scheduled_nbytes, ledger.tensors) == (0, 0)


@settings(deadline=None, max_examples=150)
@given(randomness, sizes, places)
def test_liveness_needs_no_more_than_baseline(rng, ops, where):
    trace = random_trace(rng, ops, where)
    baseline, liveness = (
        simulate(trace, find_policy(name), MACHINE) for name in ("baseline", "liveness")
    )
    assert liveness.step_peak_bytes <= baseline.step_peak_bytes
    assert liveness.strict_peak_bytes <= baseline.strict_peak_bytes
    assert liveness.device_peak_bytes <= baseline.device_peak_bytes
    assert liveness.step_time_ns == baseline.step_time_ns


@settings(deadline=None, max_examples=100)
@given(randomness, sizes, places, st.sampled_from(POLICIES), fractions)
def test_a_step_is_never_shorter_than_what_its_lanes_do(rng, ops, where, policy, fraction):
    trace = random_trace(rng, ops, where)
    decision = decide(find_policy(policy), trace, MACHINE, budget_between(trace, fraction))
    report = play(trace, decision, MACHINE)
    timing = Timing(trace, MACHINE)
    runs = [step for step in decision.schedule.instructions if isinstance(step, Run)]
    original = sum(timing.run_ns(run.op, run.algorithm) for run in runs)
    assert report.step_time_ns >= report.compute_ns + report.stall_ns
    assert report.step_time_ns >= max(report.copy_out_ns, report.copy_in_ns)
    assert report.compute_ns - report.recomputed_ns == original
    assert report.stall_ns == sum(stall.ns for stall in report.stalls)


@settings(deadline=None, max_examples=60)
@given(randomness, sizes, places, st.floats(0, 1))
def test_components_stack_in_any_order(rng, ops, where, fraction):
    trace = random_trace(rng, ops, where)
    budget = budget_between(trace, fraction)
    parts = ("liveness", "offload:release=2", "cache:tier=peer", "recompute:strategy=memory")
    for order in permutations(parts):
        assert isinstance(decide(find_policy("+".join(order)), trace, MACHINE, budget), Decision)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("where", ["everywhere", "saves"])
def test_a_budget_below_the_floor_is_refused_before_anything_else(policy, where):
    trace = random_trace(Random(3), 9, where)
    with pytest.raises(DoesNotFit, match="no policy fits"):
        decide(find_policy(policy), trace, MACHINE, trace.facts.floor_nbytes - 1)


@settings(deadline=None, max_examples=100)
@given(randomness, sizes)
def test_a_cache_fits_wherever_a_layer_step_fits_at_all(rng, ops):
    # With room in the tier and a hand on everything. Recomputation cannot promise that: a value
    # rewritten in place is on the device, half rebuilt, while its next source is brought back.
    trace = random_trace(rng, ops, "everywhere")
    policy, machine = find_policy("liveness+cache"), find_machine("h200")
    assert simulate(trace, policy, machine, trace.facts.floor_nbytes).fits


@dataclass(frozen=True, repr=False)
class Chaos(Component):
    """Wishes for anything at any time, and chooses any algorithm."""

    name = "chaos"
    seed: int

    def begin(self, walk):
        return ChaosPart(walk, Random(self.seed))


class ChaosPart(Part):
    def __init__(self, walk, rng):
        self.walk, self.rng = walk, rng
        for s in range(walk.facts.storage_count):
            if rng.random() < 0.5:
                walk.claim(s, self)
                walk.hold(s)

    def wishes(self, most):
        facts, rng = self.walk.facts, self.rng
        for _ in range(rng.randint(0, most)):
            s, tier = rng.randrange(facts.storage_count), rng.choice(("host", "peer"))
            kind = rng.choice((Copy, Free, Free, Fetch, Discard, Rerun))
            if kind is Rerun:
                yield Rerun(rng.randrange(facts.op_count))
            else:
                yield kind(s) if kind is Free else kind(s, tier)

    def before(self, op):
        return self.wishes(3)

    def after(self, op, waiting):
        return self.wishes(4)

    def make_room(self, nbytes):
        return self.wishes(12)

    def choose(self, op, free_nbytes):
        count = len(self.walk.trace.operations[op].algorithms)
        return self.rng.choice((None, self.rng.randint(0, count)))


@settings(deadline=None, max_examples=400)
@given(randomness, sizes, places, st.integers(0, 2**16), fractions, st.booleans())
def test_no_wish_can_make_a_schedule_illegal(rng, ops, where, seed, fraction, recompute):
    trace = random_trace(rng, ops, where)
    others = (Liveness(), Recompute(strategy="memory")) if recompute else (Liveness(),)
    policy = Stack((*others, Chaos(seed)))
    assert isinstance(decide(policy, trace, MACHINE, budget_between(trace, fraction)), Decision)
