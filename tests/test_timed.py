"""The times of a recording, on another trace of the same step."""

import msgspec
import pytest

from superneurons.errors import InvalidInput
from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import Trace, find_trace, with_times

RECORDING = find_trace("small-cnn-b4")


def bare(trace: Trace) -> Trace:
    """Return a trace as the executor records it: without times."""
    operations = tuple(
        msgspec.structs.replace(op, device_ns=None, host_ns=None, launches=1)
        for op in trace.operations
    )
    return msgspec.structs.replace(
        trace, name="again", times="roofline", machine="", operations=operations
    )


def test_the_same_step_takes_as_long():
    found = with_times(bare(RECORDING), RECORDING)
    policy, machine = find_policy("liveness+offload"), find_machine("h200")
    theirs = simulate(RECORDING, policy, machine).step_time_ns
    assert simulate(found, policy, machine).step_time_ns == theirs
    assert simulate(bare(RECORDING), policy, machine).step_time_ns != theirs
    assert found.facts.digest == bare(RECORDING).facts.digest  # a schedule stays valid


def test_another_step_is_refused_with_the_place_where_it_differs():
    with pytest.raises(InvalidInput, match="differ at operation 0"):
        with_times(bare(find_trace("bert-b32")), RECORDING)
    short = msgspec.structs.replace(bare(RECORDING), operations=RECORDING.operations[:-1])
    with pytest.raises(InvalidInput, match=f"operation {len(short.operations)} "):
        with_times(short, RECORDING)


def test_times_that_were_not_measured_are_refused():
    with pytest.raises(InvalidInput, match="no measured times"):
        with_times(RECORDING, bare(RECORDING))
