"""What is short of room, and convolutions that do with less."""

import pytest
from msgspec.structs import replace

from superneurons.errors import InvalidSchedule
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.policies.shortage import (
    NOBODY,
    short_alone,
    short_under,
    with_less_inside,
    with_smaller_workspaces,
)
from superneurons.schedules import check
from superneurons.traces import Operation, find_trace
from superneurons.traces.allocations import fault_in_order, with_less

H200 = find_machine("h200")
MIB = 1 << 20


def conv(inside, *order, transient=0):
    return Operation(
        name="conv",
        kind="conv",
        phase="backward",
        workspace_nbytes=inside - transient,
        transient_nbytes=transient,
        allocations=order,
    )


@pytest.mark.parametrize(
    ("op", "nbytes", "expected"),
    [
        pytest.param(conv(60), 25, conv(25), id="no-order"),
        pytest.param(conv(60, transient=40), 50, conv(50, transient=40), id="transients-stay"),
        pytest.param(conv(60, transient=40), 30, conv(40, transient=40), id="only-transients"),
        pytest.param(conv(55, 0, 60, -1, 0), 55, conv(55, 0, 60, -1, 0), id="enough"),
        pytest.param(
            conv(60, 0, 55, -1, 0, 60, -2),
            40,
            conv(40, 0, 45, -1, 0, 40, -2),
            id="each-where-it-is",
        ),
        pytest.param(conv(60, 0, 9, -1, 0, 60, -2), 0, conv(0, 0, 5, -1, 0), id="none-at-the-end"),
        pytest.param(conv(45, 60, -1, 0, 0), 0, conv(0, 15, -1, 0, 0), id="before-all-results"),
        pytest.param(
            conv(67, 0, 0, 60, -1, 7, 60, -3, -2),
            20,
            conv(20, 0, 0, 20, -1, 7, 13, -3, -2),
            id="held",
        ),
        pytest.param(
            conv(67, 0, 0, 60, -1, 7, 60, -3, -2), 7, conv(7, 0, 0, 7, -1, 7, -2), id="renumbered"
        ),
        pytest.param(
            conv(67, 0, 0, 60, -1, 7, 60, -3, -2), 0, conv(7, 0, 0, 7, -1), id="what-is-held-stays"
        ),
    ],
)
def test_an_operation_with_less(op, nbytes, expected):
    results = [10, 5]
    found = with_less(op, results, nbytes)
    assert found == expected
    if found.allocations:
        assert fault_in_order(op, results) is None
        assert fault_in_order(found, results) is None


def test_operations_that_are_too_large_by_themselves_are_known_before_a_policy_is_asked():
    trace = find_trace("resnet50-b128")
    facts = trace.facts
    assert short_alone(trace, facts.floor_nbytes) == {}
    limit = facts.floor_nbytes - 300 * MIB
    short = short_alone(trace, limit)
    assert short[facts.floor_op] == 300 * MIB
    assert {trace.operations[op].kind for op in short} == {"conv"}
    leaner = with_smaller_workspaces(trace, short)
    assert with_less_inside(leaner, trace) == set(short)
    assert limit - MIB < leaner.facts.floor_nbytes <= limit
    for op in short:
        found = leaner.operations[op]
        assert leaner.facts.inside_nbytes[op] % MIB == 0
        assert fault_in_order(found, [facts.nbytes[s] for s in facts.fresh[op]]) is None


def test_what_is_short_under_a_schedule_is_where_its_ledger_says_so():
    trace = find_trace("resnet50-b128")
    peak = decide(find_policy("liveness"), trace, H200).ledger.device_peak_nbytes
    for less in (0, 5 * MIB, 1 << 30):
        schedule = decide(find_policy("liveness"), trace, H200, peak - less).schedule
        short = short_under(trace, schedule)
        assert max(short.values(), default=0) == schedule.short_nbytes == less
        assert not less or short[schedule.short_op] == less


@pytest.mark.parametrize("kind", ["conv", "matmul"])
def test_only_convolutions_do_with_less(kind):
    trace = find_trace("resnet50-b128")
    op = trace.facts.floor_op
    operations = list(trace.operations)
    operations[op] = replace(operations[op], kind=kind)
    trace = replace(trace, operations=tuple(operations))
    assert (with_smaller_workspaces(trace, {op: MIB}) is None) == (kind != "conv")
    assert with_smaller_workspaces(trace, {op: MIB, NOBODY: 1}) is None


def test_a_workspace_becomes_nothing_at_last_and_then_nothing_helps():
    trace = find_trace("resnet50-b128")
    op = trace.facts.floor_op
    leaner = with_smaller_workspaces(trace, {op: 1 << 40})
    assert leaner.facts.inside_nbytes[op] == 0
    assert with_smaller_workspaces(leaner, {op: 1}) is None


def test_a_schedule_with_smaller_workspaces_is_none_of_the_recorded_step():
    trace = find_trace("resnet50-b128")
    leaner = with_smaller_workspaces(trace, {trace.facts.floor_op: MIB})
    schedule = decide(find_policy("liveness"), leaner, H200).schedule
    check(leaner, schedule)
    with pytest.raises(InvalidSchedule, match="make a new one"):
        check(trace, schedule)
