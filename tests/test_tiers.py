"""Tiers in order, host memory that runs out, and pinned against pageable transfers."""

import pytest

from superneurons.errors import InvalidInput, InvalidMachine
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.policies.kinds import CHECKPOINT_KINDS
from superneurons.schedules import Copy, Fetch, check, read_schedule, write_schedule
from superneurons.sim import simulate
from superneurons.traces import find_trace

CLUSTER = "host/peer/remote_gpu/remote_host"
MIB = 2**20
ALEXNET = find_trace("alexnet:batch=200")


def copies(policy, machine, budget=None):
    """Return the tiers that a policy's copies go to, in order, each once, and the ledger."""
    schedule, ledger = decide(find_policy(policy), ALEXNET, find_machine(machine), budget)
    steps = schedule.instructions
    tiers = dict.fromkeys(step.tier for step in steps if isinstance(step, Copy))
    fetched = {step.tier for step in steps if isinstance(step, Fetch)}
    assert fetched == set(tiers)
    return list(tiers), ledger


def test_the_cluster_has_the_papers_four_tiers_in_its_order():
    tiers = find_machine("k40c-cluster").tiers
    assert [tier.name for tier in tiers] == CLUSTER.split("/")
    rates = [tier.link.out_bytes_per_s / 1e9 for tier in tiers]
    assert rates == [8, 10, 6, 6]


@pytest.mark.parametrize("policy", ["liveness+offload:tier={}", "liveness+cache:tier={}"])
def test_the_first_tier_with_room_is_taken(policy):
    budget = 1700 * MIB if "cache" in policy else None
    policy = policy.format(CLUSTER)
    assert copies(policy, "k40c-cluster", budget)[0] == ["host"]
    small = "k40c-cluster:host_memory=230MiB"
    tiers, ledger = copies(policy, small, budget)
    assert tiers == ["host", "peer"]
    assert 0 < ledger.tier_peak_nbytes["host"] <= 230 * MIB
    full = "k40c-cluster:host_memory=0B,peer_memory=0B,remote_gpu_memory=0B"
    assert copies(policy, full, budget)[0] == ["remote_host"]


@pytest.mark.parametrize("policy", ["liveness+offload:tier={}+recompute", "superneurons:tier={}"])
def test_a_tier_without_room_is_as_good_as_none(policy):
    budget = 1600 * MIB
    none, empty = (
        simulate(ALEXNET, find_policy(policy.format(tiers)), find_machine(machine), budget)
        for tiers, machine in (
            ("host", "k40c-cluster"),
            ("peer/host", "k40c-cluster:peer_memory=0B"),
        )
    )
    assert none.step_time_ns == empty.step_time_ns
    assert none.step_bytes == empty.step_bytes
    assert empty.copied_out_bytes > 0


def test_a_host_that_is_full_is_a_verdict_of_its_own():
    policy, budget = find_policy("liveness+cache"), 1700 * MIB
    small = simulate(ALEXNET, policy, find_machine("k40c:host_memory=100MiB"), budget)
    assert not small.fits
    assert small.full_tiers == ("host",)
    assert small.why.endswith("; no room was left in: host")
    roomy = simulate(ALEXNET, policy, find_machine("k40c"), budget)
    assert roomy.fits
    assert roomy.full_tiers == ()


def test_a_device_that_is_too_small_is_not_blamed_on_the_host():
    trace = find_trace("alexnet:batch=3000")
    report = simulate(trace, find_policy("superneurons"), find_machine("k40c"))
    assert not report.fits
    assert report.full_tiers == ()
    assert "no room was left" not in report.why


def test_full_tiers_are_kept_in_schedule_files(tmp_path):
    machine = find_machine("k40c:host_memory=100MiB")
    schedule, _ = decide(find_policy("liveness+cache"), ALEXNET, machine, 1700 * MIB)
    write_schedule(schedule, ALEXNET, tmp_path / "s.json")
    again = read_schedule(tmp_path / "s.json", ALEXNET)
    assert again.full_tiers == schedule.full_tiers == ("host",)
    check(ALEXNET, again)


def test_an_infinite_link_makes_no_stall():
    fast = "k40c:device_to_host=1000000TB/s,host_to_device=1000000TB/s,host_latency=0ns"
    policy = find_policy("liveness+offload:release=immediate")
    slow, quick = (simulate(ALEXNET, policy, find_machine(name)) for name in ("k40c", fast))
    assert slow.stall_ns > 0
    assert quick.stall_ns <= 2 * 8 * 2  # a nanosecond for each copy and fetch
    assert quick.step_peak_bytes == slow.step_peak_bytes


# -- pinned against pageable -----------------------------------------------------------------------


def test_pageable_copies_take_twice_as_long_on_the_k40c():
    pinned, pageable = (
        find_machine(f"k40c{pages}").tier("host").link for pages in ("", ":host_pages=pageable")
    )
    assert pageable.out_bytes_per_s * 2 == pinned.out_bytes_per_s
    assert pageable.in_bytes_per_s * 2 == pinned.in_bytes_per_s
    policy = find_policy("liveness+offload:release=immediate")
    fast, slow = (
        simulate(ALEXNET, policy, find_machine(f"k40c{pages}"))
        for pages in ("", ":host_pages=pageable")
    )
    assert fast.stall_ns < slow.stall_ns
    assert fast.copied_out_bytes == slow.copied_out_bytes


def test_pageable_memory_does_not_speed_up_a_slow_link():
    link = find_machine("k40c:host_pages=pageable,device_to_host=1GB/s").tier("host").link
    assert (link.out_bytes_per_s, link.in_bytes_per_s) == (10**9, 4 * 10**9)


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ("k40c:host_pages=paged", "host_pages is 'paged'; it is one of: pinned, pageable"),
        ("h200:host_pages=pageable", "the figure 'host_pageable_rate' is missing"),
        ("k40c:moon_pages=pinned", "the figure 'moon_memory' is missing"),
    ],
)
def test_pages_that_make_no_sense_are_refused(machine, sentence):
    with pytest.raises(InvalidMachine, match=sentence):
        find_machine(machine)


def test_a_tier_that_is_not_there_is_refused_by_name():
    with pytest.raises(InvalidInput, match="has no tier 'peer'; it has: host"):
        decide(find_policy("offload:tier=host/peer"), ALEXNET, find_machine("k40c"))


@pytest.mark.parametrize("most", [0, 2_000_000_000, 4_000_000_000])
def test_no_more_leaves_than_asked_for_and_what_idles_longest_first(most):
    trace = find_trace("gpt-b8")
    policy = find_policy(f"liveness+offload:most={most},lookahead=200")
    schedule = decide(policy, trace, find_machine("h200"), None).schedule
    sent = [each.storage for each in schedule.instructions if isinstance(each, Copy)]
    facts = trace.facts
    assert most - 100_000_000 < sum(facts.nbytes[s] for s in sent) <= most  # storages of 67 MB
    idle = [back - leave for back, leave in zip(facts.back, facts.leave, strict=True)]
    for s in sent:
        alike = [
            other
            for other in range(facts.storage_count)
            if facts.managed[other]
            and facts.nbytes[other] == facts.nbytes[s]
            and trace.operations[facts.writers[other][0]].kind in CHECKPOINT_KINDS
        ]
        assert all(idle[s] >= idle[other] for other in alike if other not in sent)


def test_what_fits_beside_forward_is_free_on_the_gpt():
    """4 of the 27 GB that a step keeps, out and back at 55 GB/s, beside kernels of an H200."""
    trace, machine = find_trace("gpt-b8"), find_machine("h200")
    plain = simulate(trace, find_policy("liveness"), machine)
    found = simulate(trace, find_policy("liveness+offload:most=4GB,lookahead=200"), machine)
    assert found.step_time_ns <= plain.step_time_ns * 1.005
    assert found.device_peak_bytes <= plain.device_peak_bytes - 3_500_000_000


def test_what_is_small_stays():
    trace = find_trace("resnet50-b128")
    policy = "liveness+offload:kinds=norm,most=900MB,lookahead=60{}+recompute:strategy=speed"
    every, large = (
        simulate(trace, find_policy(policy.format(least)), find_machine("h200"))
        for least in ("", ",least=1MiB")
    )
    sent = decide(
        find_policy(policy.format(",least=1MiB")), trace, find_machine("h200"), None
    ).schedule.instructions
    assert min(trace.facts.nbytes[s.storage] for s in sent if isinstance(s, Copy)) >= MIB
    assert large.step_time_ns <= every.step_time_ns


def test_a_tier_that_idle_copies_alone_had_filled_is_not_called_full():
    """Without a bound pressure sends copies away that are never needed: none is made, all fit."""
    machine = find_machine("k40c:host_memory=300MiB")
    schedule = decide("liveness+offload:release=pressure", ALEXNET, machine).schedule
    assert [step for step in schedule.instructions if isinstance(step, Copy)] == []
    assert schedule.full_tiers == ()
