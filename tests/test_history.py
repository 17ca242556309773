"""In which order an operation asks for memory: from allocator events to the entries of a trace."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from superneurons.executor import history  # noqa: E402
from superneurons.executor.history import Asked, History, allocation_order  # noqa: E402
from superneurons.executor.logged import Logged  # noqa: E402
from superneurons.executor.operators import operator  # noqa: E402

DEVICE = SimpleNamespace(index=0)


def take(address: int, nbytes: int) -> Asked:
    return Asked(True, address, nbytes)


def back(address: int) -> Asked:
    return Asked(False, address, 0)


def test_a_result_alone():
    assert allocation_order([take(16, 5)], {16: 0}) == ((0,), [0])


def test_temporaries_around_results():
    events = [take(1, 9), take(2, 5), take(3, 7), back(1), take(4, 6), back(3)]
    assert allocation_order(events, {4: 0, 2: 1}) == ((9, 0, 7, -1, 0, -2), [1, 0])


def test_an_address_that_is_used_again():
    events = [take(1, 9), back(1), take(1, 8), back(1), take(1, 5)]
    assert allocation_order(events, {1: 0}) == ((9, -1, 8, -2, 0), [0])


def test_what_was_there_before_may_go():
    assert allocation_order([back(7), take(1, 5)], {1: 0}) == ((0,), [0])


@pytest.mark.parametrize(
    ("events", "results"),
    [
        ([take(1, 5), take(2, 6)], {1: 0}),  # something is kept that is no result
        ([take(1, 5)], {1: 0, 2: 1}),  # a result was not asked for
        ([take(1, 5), back(1)], {1: 0}),
        ([], {1: 0}),
    ],
)
def test_other_peoples_memory_makes_no_order(events, results):
    assert allocation_order(events, results) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 99)), max_size=40))
def test_an_order_keeps_every_byte(steps):
    there: dict[int, int] = {}
    events, sizes = [], []
    for taking, address, nbytes in steps:
        if taking and address not in there:
            there[address] = nbytes
            events.append(take(address, nbytes))
        elif not taking and address in there:
            del there[address]
            events.append(back(address))
    order = allocation_order(events, {address: k for k, address in enumerate(there)})
    assert order is not None
    entries, results = order
    assert entries.count(0) == len(results) == len(there)
    temporaries = [entry for entry in entries if entry > 0]
    given_back = [-entry for entry in entries if entry < 0]
    assert sorted(given_back) == list(range(1, len(temporaries) + 1))
    sizes = [event.nbytes for event in events if event.taken]
    assert sum(temporaries) + sum(there.values()) == sum(sizes)


# -- a recorded step -------------------------------------------------------------------------------


def logged(counted: tuple[int, int], inside: int, *fresh: tuple[int, int]) -> Logged:
    """Return an operation with results at addresses, with sizes."""
    op = Logged(operator(torch.ops.aten.mm.default))
    op.counted, op.inside_nbytes = counted, inside
    op.fresh = [SimpleNamespace(data=data, nbytes=nbytes) for data, nbytes in fresh]
    return op


def settled(monkeypatch, events, op, counted=100, before=()):
    """Settle an operation of a step in which the allocator says that it did *events*."""
    told = list(before)
    monkeypatch.setattr(history, "memory_history_runs", lambda: False)
    monkeypatch.setattr(history, "record_memory_history", lambda on: None)
    monkeypatch.setattr(history, "memory_history", lambda device: list(told))
    found = History(DEVICE)
    with found.recorded(counted):
        told += events
    found.settle(op)
    return op


def event(action: str, addr: int, size: int) -> dict:
    return {"action": action, "addr": addr, "size": size}


def test_an_operation_gets_its_own_events(monkeypatch):
    events = [
        event("alloc", 1, 50),
        event("segment_alloc", 0, 99),  # the allocator's own counters know nothing of these
        event("alloc", 2, 8),
        event("free_requested", 2, 8),
        event("alloc", 3, 4),
        event("free_completed", 2, 8),
        event("alloc", 4, 60),
    ]
    op = settled(monkeypatch, events, logged((101, 104), 8, (3, 4)), before=[event("alloc", 9, 9)])
    assert op.allocations == (8, 0, -1)


def test_results_are_put_into_the_order_in_which_they_were_asked_for(monkeypatch):
    events = [event("alloc", 1, 5), event("alloc", 2, 6)]
    op = settled(monkeypatch, events, logged((100, 102), 0, (2, 6), (7, 0), (1, 5)))
    assert [life.nbytes for life in op.fresh] == [5, 6, 0]
    assert op.allocations == ()  # the usual order


def test_results_first_and_the_rest_at_once_needs_no_telling(monkeypatch):
    events = [event("alloc", 1, 5), event("alloc", 2, 6), event("free_completed", 2, 6)]
    assert settled(monkeypatch, events, logged((100, 103), 6, (1, 5))).allocations == ()


@pytest.mark.parametrize(
    ("counted", "inside"),
    [
        ((100, 103), 99),  # takes less inside than it was measured to take: an argument went
        ((90, 93), 8),  # before the history began
        ((101, 109), 8),  # beyond its end
    ],
)
def test_an_order_that_is_not_sure_is_left_out(monkeypatch, counted, inside):
    events = [event("alloc", 2, 8), event("alloc", 3, 4), event("free_completed", 2, 8)]
    assert settled(monkeypatch, events, logged(counted, inside, (3, 4))).allocations == ()


def test_a_history_that_the_program_records_is_left_alone(monkeypatch):
    monkeypatch.setattr(history, "memory_history_runs", lambda: True)
    monkeypatch.setattr(history, "record_memory_history", lambda on: pytest.fail("touched"))
    found = History(DEVICE)
    with found.recorded(0):
        pass
    op = logged((0, 0), 0, (3, 4))
    found.settle(op)
    assert op.allocations == ()


def test_the_history_ends_when_the_step_fails(monkeypatch):
    calls = []
    monkeypatch.setattr(history, "memory_history_runs", lambda: False)
    monkeypatch.setattr(history, "record_memory_history", calls.append)
    monkeypatch.setattr(history, "memory_history", lambda device: [])
    with pytest.raises(KeyError), History(DEVICE).recorded(0):
        raise KeyError
    assert calls == [True, False]
