"""An operation of several kernels runs while the host still launches it."""

import pytest

from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import Operation, Storage, Trace

MACHINE = find_machine("h200")


def step_ns(*pieces: tuple[int, int, int]) -> int:
    """Return the time of a step of operations: device time, host time, kernels."""
    operations = [
        Operation(
            name=f"op{i}",
            kind="rnn",
            phase="forward",
            writes=(f"out{i}",),
            device_ns=device,
            host_ns=host,
            launches=launches,
        )
        for i, (device, host, launches) in enumerate(pieces)
    ]
    storages = [
        Storage(name=f"out{i}", kind="activation", nbytes=1) for i in range(len(operations))
    ]
    trace = Trace(
        name="pieces",
        places="everywhere",
        times="measured",
        storages=tuple(storages),
        operations=tuple(operations),
    )
    return simulate(trace, find_policy("baseline"), MACHINE).step_time_ns


@pytest.mark.parametrize("launches", [0, 1])
def test_an_operation_of_one_kernel_starts_when_it_is_launched(launches):
    assert step_ns((200, 1_000, launches)) == 1_200


def test_the_device_begins_with_the_first_kernel_and_ends_with_the_last():
    # Launched from 0 to 1000, one kernel every 100: the last of 20 ns ends at 1020.
    assert step_ns((200, 1_000, 10)) == 1_020


def test_a_device_that_is_slower_than_the_host_only_waits_for_the_first_kernel():
    assert step_ns((5_000, 1_000, 10)) == 100 + 5_000


def test_what_comes_before_holds_the_first_kernel_up_and_not_the_host():
    # The first operation ends at 710, when all but the last launches of the second are through.
    assert step_ns((700, 10, 1), (200, 1_000, 10)) == 1_010 + 20
    assert step_ns((2_000, 10, 1), (200, 1_000, 10)) == 2_010 + 200


def test_what_comes_after_is_launched_after_the_last_kernel():
    assert step_ns((200, 1_000, 10), (50, 30, 1)) == 1_030 + 50


def test_launches_do_not_change_what_a_step_computes():
    assert step_ns((200, 1_000, 1), (50, 30, 1)) > step_ns((200, 1_000, 10), (50, 30, 1))
