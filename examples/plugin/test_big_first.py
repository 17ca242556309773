"""What a plugin author runs: the public contract test, and the figure that the policy is for."""

import pytest

from superneurons.machines import find_machine
from superneurons.policies import contract, find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace


@pytest.mark.parametrize("promise", contract.PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize(
    "policy", ["big-first", "liveness+big-first", "big-first:least=16+liveness"]
)
def test_it_keeps_the_contract(policy, promise):
    promise(find_policy(policy))


def test_it_fits_alexnet_where_liveness_does_not():
    trace, machine, budget = find_trace("alexnet:batch=200"), find_machine("k40c"), 1600 * 2**20
    assert not simulate(trace, find_policy("liveness"), machine, budget).fits
    report = simulate(trace, find_policy("liveness+big-first"), machine, budget)
    assert report.fits
    assert report.copied_out_bytes > 0
