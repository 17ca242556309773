"""One contract for all policies: the public one, over every built-in and many stacks."""

import pytest

from superneurons.policies import contract, find_policy
from superneurons.policies.registry import BUILTIN

STACKS = [
    "liveness+offload",
    "offload:release=immediate+liveness",
    "liveness+offload:release=2,lookahead=0",
    "liveness+offload:release=pressure",
    "liveness+offload:in_flight=16B",
    "liveness+offload:most=40B,lookahead=9",
    "liveness+offload:least=8B+recompute",
    "liveness+cache",
    "liveness+recompute:strategy=speed",
    "recompute:strategy=memory+liveness",
    "liveness+recompute:least=8B",
    "liveness+recompute:most=40B",
    "liveness+offload+recompute",
    "recompute+offload:kinds=conv/norm+liveness",
    "liveness+cache+recompute:strategy=memory,kinds=conv",
    "cache+recompute+offload:release=immediate+liveness",
]


@pytest.mark.parametrize("promise", contract.PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("policy", [*BUILTIN, *STACKS])
def test_policy_keeps_the_contract(policy, promise):
    promise(find_policy(policy))
