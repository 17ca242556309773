"""Decide within what an allocator reserves."""

import pytest

from superneurons.allocators import new_allocator, occupy
from superneurons.errors import DoesNotFit
from superneurons.machines import find_machine
from superneurons.policies import decide, decide_reserved, find_policy
from superneurons.traces import find_trace

H200 = find_machine("h200")
GIB = 1 << 30


def failures(trace, schedule, allocator, limit):
    model = new_allocator(allocator, limit)
    occupy(trace, schedule, model)
    return model.failures


@pytest.mark.parametrize("allocator", ["caching", "caching-expandable"])
@pytest.mark.parametrize(
    ("name", "gib", "policy"),
    [
        ("resnet50-b128", 8, "liveness+cache"),
        ("unet-b8", 9, "liveness+cache"),
        ("gpt-b8", 30, "liveness+cache"),
        ("resnet50-b128", 12, "liveness+offload:release=pressure"),
    ],
)
def test_the_schedule_runs_where_torch_may_reserve_no_more(name, gib, policy, allocator):
    trace, budget = find_trace(name), gib * GIB
    found = decide_reserved(find_policy(policy), trace, H200, budget, allocator)
    assert failures(trace, found.schedule, allocator, budget) == 0
    assert found.ledger.device_peak_nbytes <= found.schedule.limit_nbytes <= budget


def test_byte_by_byte_it_would_have_run_out_of_memory():
    trace, budget = find_trace("resnet50-b128"), 8 * GIB
    exact = decide(find_policy("liveness+cache"), trace, H200, budget)
    assert exact.schedule.short_nbytes == 0
    assert failures(trace, exact.schedule, "caching", budget) > 0


def test_with_exact_bytes_it_is_what_decide_says():
    trace, policy = find_trace("resnet50-b128"), find_policy("liveness+cache")
    found = decide_reserved(policy, trace, H200, 8 * GIB, "exact")
    expected = decide(policy, trace, H200, 8 * GIB).schedule
    assert found.schedule.limit_nbytes == expected.limit_nbytes
    assert list(found.schedule.instructions) == list(expected.instructions)


def test_what_no_schedule_of_the_policy_can_do_is_refused_with_the_bytes():
    trace = find_trace("resnet50-b128")
    peak = decide(find_policy("liveness"), trace, H200).ledger.device_peak_nbytes
    told = r"torch's allocator \(caching\) would take .* MiB more .*; give more, or set PYTORCH"
    with pytest.raises(DoesNotFit, match=told):
        decide_reserved(find_policy("liveness"), trace, H200, peak, "caching")


def test_nobody_is_told_to_set_what_is_set():
    trace = find_trace("resnet50-b128")
    peak = decide(find_policy("liveness"), trace, H200).ledger.device_peak_nbytes
    with pytest.raises(DoesNotFit, match=r"would take .* MiB more .*; give more$"):
        decide_reserved(find_policy("liveness"), trace, H200, peak, "caching-expandable")


def test_a_schedule_that_is_short_in_exact_bytes_says_so_itself():
    trace = find_trace("resnet50-b128")
    found = decide_reserved(find_policy("liveness"), trace, H200, 8 * GIB, "caching")
    assert found.schedule.short_nbytes > 0
