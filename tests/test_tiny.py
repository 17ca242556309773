"""Read this first: one step small enough to add up by hand, through the whole package.

examples/tiny.yaml: conv makes a (100 bytes) from x (10) and w (5), pool makes b (40) from a, relu
works on b in place; backward, loss makes gb (40), pool.backward makes ga (100), update writes w.
"""

from pathlib import Path

import pytest

from superneurons.errors import UnknownName
from superneurons.machines import find_machine
from superneurons.policies import Decision, decide, find_policy
from superneurons.schedules import Copy, Discard, Fetch, Free, Run, check
from superneurons.schedules.file import spell
from superneurons.sim import play, simulate
from superneurons.traces import find_trace

TINY = str(Path(__file__).parent.parent / "examples" / "tiny.yaml")


@pytest.fixture
def tiny():
    return find_trace(TINY)


@pytest.fixture
def machine():
    # One byte a nanosecond to the host and back, and no latency: times can be read off sizes.
    return find_machine("k40c:device_to_host=1GB/s,host_to_device=1GB/s,host_latency=0ns")


def spelled(trace, decision):
    return [" ".join(map(str, spell(step, trace.facts))) for step in decision.schedule.instructions]


def test_a_policy_may_be_given_by_its_name(tiny, machine):
    for name in ("baseline", "liveness+recompute:kinds=conv"):
        assert simulate(tiny, name, machine) == simulate(tiny, find_policy(name), machine)
    with pytest.raises(UnknownName, match="basline"):
        simulate(tiny, "basline", machine)


def test_baseline_keeps_everything_to_the_end(tiny, machine):
    report = simulate(tiny, find_policy("baseline"), machine)
    assert report.step_bytes == [100, 140, 140, 180, 280, 280]
    assert report.device_peak_bytes == 280 + 10 + 5


def test_liveness_frees_what_nobody_needs_any_more(tiny, machine):
    decision = decide(find_policy("liveness"), tiny, machine)
    assert spelled(tiny, decision) == [
        "run conv",
        "run pool",
        "run relu",
        "run loss",
        "free b",
        "run pool.backward",
        "free a",
        "free gb",
        "run update",
        "free ga",
    ]
    report = play(tiny, decision, machine)
    assert report.step_bytes == [100, 140, 140, 180, 240, 100]
    assert report.step_live_tensors == [1, 2, 2, 3, 3, 1]


def test_offload_moves_the_checkpoint_out_of_the_way(tiny, machine):
    policy = find_policy("liveness+offload:release=immediate,lookahead=1")
    decision = decide(policy, tiny, machine)
    assert spelled(tiny, decision) == [
        "run conv",
        "run pool",
        "copy a host",
        "free a",
        "run relu",
        "fetch a host",
        "run loss",
        "free b",
        "run pool.backward",
        "free a",
        "free gb",
        "discard a host",
        "run update",
        "free ga",
    ]
    report = play(tiny, decision, machine)
    # launch 10, conv 1000, pool 500; the copy of 100 bytes takes 100 and the free waits for it;
    # relu 100; the fetch of 100 hides behind loss (200); then 800 and 900.
    assert report.stall_ns == 100
    assert report.step_time_ns == 10 + 1000 + 500 + 100 + 100 + 200 + 800 + 900


def test_recompute_runs_the_producers_again_in_place_ones_included(tiny, machine):
    decision = decide(find_policy("liveness+recompute:kinds=conv"), tiny, machine)
    # b is wanted again right after relu, so dropping it would win nothing: it stays.
    assert "rerun pool" not in spelled(tiny, decision)
    decision = decide(find_policy("liveness+recompute:kinds=norm"), tiny, machine)
    # Now a is no checkpoint either. It is dropped after pool and computed again for its backward.
    assert spelled(tiny, decision)[:6] == [
        "run conv",
        "run pool",
        "free a",
        "run relu",
        "run loss",
        "free b",
    ]
    assert "rerun conv" in spelled(tiny, decision)


def test_a_schedule_can_be_written_by_hand_and_is_proved(tiny, machine):
    made = decide(find_policy("liveness"), tiny, machine).schedule
    a, b, gb, ga = (tiny.facts.storage_index[name] for name in ("a", "b", "gb", "ga"))
    by_hand = type(made)(
        trace=tiny.name,
        digest=tiny.facts.digest,
        policy="by hand",
        limit_nbytes=made.limit_nbytes,
        budget_nbytes=None,
        tiers={"host": 1000},
        instructions=[
            *(Run(0), Run(1), Copy(a), Run(2), Free(a), Run(3), Free(b), Fetch(a)),
            *(Run(4), Discard(a), Free(a), Free(gb), Run(5), Free(ga)),
        ],
    )
    report = play(tiny, Decision(by_hand, check(tiny, by_hand)), machine)
    # The copy (100) ends with relu (100): the free does not wait. The fetch (100) has nothing to
    # hide behind: pool.backward waits for all of it.
    assert [(stall.op, stall.storage, stall.reason, stall.ns) for stall in report.stalls] == [
        ("pool.backward", "a", "fetch", 100)
    ]
