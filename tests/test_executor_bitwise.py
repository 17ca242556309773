"""Under every policy training is that of plain PyTorch, bit for bit, and the bytes on the device
are those of the ledger at every place."""

import sys
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from programs import FORMULAS, PROGRAMS  # noqa: E402
from test_zoo import TINY  # noqa: E402
from training import Everything, different, executor, network, plain, trained, undisturbed  # noqa: E402

from superneurons.errors import DoesNotFit  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "plugin"))
STEPS = 5  # two to record, three by the schedule
DYNAMIC = {"masked_select"}  # which saves another number of elements in each step


SMALL = sorted(TINY.keys() - {"densenet121", "convnext", "resnet50", "resnet"})
NETWORKS = {name: network(name) for name in TINY}
BUILDS = PROGRAMS | FORMULAS | NETWORKS


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


@cache
def control(name):
    return plain(BUILDS[name], STEPS)


def prove(name, policy, **options):
    """Train by a policy, audited, and compare; return the executor."""
    runs = executor(policy, **options)
    assert different(control(name), trained(BUILDS[name], runs, STEPS)) == []
    runs.backend.drain()
    assert runs.backend.lost == 0
    if name not in DYNAMIC:
        assert runs.notices == []
        assert runs.report.mode == "executed"
        assert runs.differences == []
        assert len(runs.readings) == runs.plans[0].trace.facts.op_count
        assert runs.report.late_fetches == 0
        assert runs.report.late_replays == 0
        assert "unready" not in runs.report.done
        assert runs.report.not_freed_nbytes == 0
    return runs


@pytest.mark.parametrize("name", BUILDS)
def test_plain_training_repeats_itself(name):
    assert different(control(name), plain(BUILDS[name], STEPS)) == []


@pytest.mark.parametrize("name", BUILDS)
def test_everything_may_leave_for_the_host(name):
    prove(name, Everything())


@pytest.mark.parametrize("name", [*PROGRAMS, *SMALL])
@pytest.mark.parametrize(
    "policy",
    [
        "baseline",
        "liveness",
        "liveness+offload",
        "liveness+offload:tier=peer,release=1,kinds=conv/matmul/activation/norm/dropout/add/elementwise",
    ],
)
def test_training_by_a_policy_of_the_box(name, policy):
    prove(name, policy)


RECOMPUTE = [
    "liveness+recompute:strategy=speed",
    "liveness+recompute:strategy=memory",
    "liveness+recompute:strategy=cost",
    "superneurons",
    "liveness+offload+recompute",
]
AGAIN = [  # no operation makes a checkpoint, so all is computed again that can be
    "liveness+recompute:strategy=speed,kinds=fork",
    "liveness+recompute:strategy=memory,kinds=fork",
    "liveness+recompute:strategy=speed,kinds=fork,least=1KiB",
    "liveness+offload:kinds=norm/dropout+recompute:strategy=memory,kinds=fork",
]


@pytest.mark.parametrize("name", [*PROGRAMS, *SMALL])
@pytest.mark.parametrize("policy", RECOMPUTE)
def test_training_that_computes_values_again(name, policy):
    prove(name, policy)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("policy", AGAIN)
def test_everything_may_be_computed_again(name, policy):
    prove(name, policy)


@pytest.mark.parametrize("name", [*PROGRAMS, *SMALL])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_values_are_computed_again_in_few_bytes(name, share):
    facts = prove(name, "liveness").plans[0].trace.facts
    plain = prove(name, "liveness").plans[0].ledger.device_peak_nbytes
    budget = int(facts.floor_nbytes + share * (plain - facts.floor_nbytes))
    runs = executor("superneurons", budget=budget)
    try:
        found = trained(BUILDS[name], runs, STEPS)
    except DoesNotFit:
        return  # and says so
    assert different(control(name), found) == []
    if name not in DYNAMIC:
        assert runs.differences == []


def test_most_programs_have_something_to_compute_again():
    counts = {name: prove(name, AGAIN[1]).report.replays for name in [*PROGRAMS, *SMALL]}
    assert all(counts[name] > 5 for name in SMALL)
    assert sum(count > 0 for count in counts.values()) > 20  # most others start from a batch


@pytest.mark.parametrize("name", [*PROGRAMS, *SMALL])
@pytest.mark.parametrize("policy", ["liveness+cache", "liveness+big-first"])
def test_training_in_the_least_bytes_that_will_do(name, policy):
    if policy == "liveness+big-first":
        from big_first import BigFirst

        from superneurons.policies import Liveness, Stack

        policy = Stack((Liveness(), BigFirst()))
    facts = prove(name, "liveness").plans[0].trace.facts
    runs = prove(name, policy, budget=facts.floor_nbytes)
    assert runs.plans[0].ledger.device_peak_nbytes == facts.floor_nbytes


def test_most_programs_have_something_to_send():
    sent = [name for name in SMALL if prove(name, Everything()).report.copied_out_nbytes]
    assert sent == SMALL
