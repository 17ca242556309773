"""The largest value of a parameter with which a step fits."""

import json

import pytest
from click.testing import CliRunner

from superneurons.cli import main
from superneurons.errors import InvalidInput, UnknownName
from superneurons.machines import find_machine
from superneurons.notation import Call, parse_call
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.studies import fit
from superneurons.traces import find_trace

POLICIES = ("baseline", "liveness", "liveness+offload", "superneurons")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("memory", ["2GiB", "3GB", "12GiB"])
def test_the_answer_fits_and_the_next_one_does_not(policy, memory):
    machine = find_machine(f"k40c:device_memory={memory}")
    found = fit(Call("alexnet", {}), "batch", machine, find_policy(policy))
    best = found.best.value
    assert found.too_large.value == best + 1
    for batch, fits in ((best, True), (best + 1, False)):
        report = simulate(find_trace(f"alexnet:batch={batch}"), find_policy(policy), machine)
        assert report.fits is fits


def test_a_linear_search_finds_the_same():
    machine, policy = find_machine("k40c:device_memory=900MiB"), find_policy("liveness")
    fits = [
        simulate(find_trace(f"alexnet:batch={batch}"), policy, machine).fits
        for batch in range(1, 60)
    ]
    largest = fits.index(False)
    assert fits == [True] * largest + [False] * (len(fits) - largest)
    assert fit(Call("alexnet", {}), "batch", machine, policy).best.value == largest


def test_each_policy_of_the_paper_goes_at_least_as_far_as_the_one_before():
    machine = find_machine("k40c")
    found = [
        fit(Call("alexnet", {}), "batch", machine, find_policy(policy)).best.value
        for policy in POLICIES[:3]
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_trials_are_told_and_few():
    tried = []
    found = fit(
        Call("alexnet", {}),
        "batch",
        find_machine("k40c"),
        find_policy("liveness"),
        None,
        tried.append,
    )
    assert len(tried) == found.trials <= 2 * found.best.value.bit_length() + 2
    assert [trial.value for trial in tried][:3] == [1, 2, 4]


@pytest.mark.parametrize(
    ("figures", "limit"),
    [
        ("device_memory=3GiB", "device"),
        ("device_memory=3GiB,host_memory=200MiB", "host"),
        ("device_memory=600MiB", "parameters"),
    ],
)
def test_it_says_what_the_limit_is(figures, limit):
    machine = find_machine(f"k40c:{figures}")
    found = fit(Call("alexnet", {}), "batch", machine, find_policy("liveness+offload"))
    assert found.limit == limit
    assert (found.best is None) == (limit == "parameters")


def test_a_budget_bounds_as_a_smaller_device_does():
    policy = find_policy("liveness")
    small = fit(Call("alexnet", {}), "batch", find_machine("k40c:device_memory=2GiB"), policy)
    bound = fit(Call("alexnet", {}), "batch", find_machine("k40c"), policy, 2 << 30)
    assert bound.best.value == small.best.value


@pytest.mark.parametrize(
    ("trace", "parameter", "error", "phrase"),
    [
        ("alexnet:batch=3", "batch", InvalidInput, "to be varied and given as well"),
        ("alexnet", "depth", InvalidInput, "has no parameter 'depth'"),
        ("alexnets", "batch", UnknownName, "no trace 'alexnets'"),
        ("random", "seed", InvalidInput, "takes no memory"),
    ],
)
def test_what_cannot_be_searched_is_refused(trace, parameter, error, phrase):
    with pytest.raises(error, match=phrase):
        fit(parse_call(trace), parameter, find_machine("k40c"), find_policy("liveness"))


def test_the_command_says_value_reason_and_progress():
    done = CliRunner().invoke(
        main,
        ["fit", "alexnet", "--vary", "batch", "--machine", "k40c", "--policy", "liveness"],
    )
    assert done.exit_code == 0
    best = fit(Call("alexnet", {}), "batch", find_machine("k40c"), find_policy("liveness")).best
    assert f"up to batch={best.value}:" in done.stdout
    assert "The limit is: device" in done.stdout
    assert "batch=1: it fits" in done.stderr


def test_the_command_prints_everything_as_json():
    done = CliRunner().invoke(
        main,
        ["fit", "alexnet", "--vary", "batch", "--machine", "k40c", "--budget", "3GiB", "--json"],
    )
    found = json.loads(done.stdout)
    assert found["best"]["fits"]
    assert not found["too_large"]["fits"]
    assert found["best"]["report"]["limit_bytes"] == 3 << 30
