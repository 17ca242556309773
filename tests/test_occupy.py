"""A training process on an allocator: what it is shown, in which order, step after step."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superneurons.allocators.caching import CachingAllocator
from superneurons.allocators.occupy import occupy
from superneurons.errors import InvalidTrace
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.sim import play
from superneurons.traces import Operation, Release, Storage, Trace, random_trace

MIB = 1 << 20
MACHINE = find_machine("h200")


class Shown(CachingAllocator):
    """A caching allocator that writes down what it is asked, in bytes: freed ones are negative."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def allocate(self, block, nbytes):
        self.seen.append(nbytes)
        super().allocate(block, nbytes)

    def free(self, block, nbytes):
        self.seen.append(-nbytes)
        super().free(block, nbytes)


def step(**first: object) -> Trace:
    """Return a step of two operations; *first* are fields of the first one, which makes 3 and 5."""
    return Trace(
        name="ordered",
        places="everywhere",
        times="none",
        storages=(
            Storage(name="w", kind="parameter", nbytes=7, alive_at_start=True),
            Storage(name="a", kind="activation", nbytes=3),
            Storage(name="b", kind="activation", nbytes=5),
            Storage(name="c", kind="activation", nbytes=1),
        ),
        operations=(
            Operation(
                name="f", kind="conv", phase="forward", reads=("w",), writes=("a", "b"), **first
            ),
            Operation(name="g", kind="conv", phase="forward", reads=("a", "b"), writes=("c",)),
        ),
    )


def shown(trace: Trace, policy: str = "liveness") -> list[int]:
    allocator = Shown()
    occupy(trace, decide(find_policy(policy), trace, MACHINE, None).schedule, allocator)
    return allocator.seen


def test_without_an_order_results_come_first_and_what_is_inside_at_once():
    seen = shown(step(workspace_nbytes=20, transient_nbytes=2))
    assert seen[:5] == [7, 3, 5, 22, -22]


def test_an_operation_asks_in_the_order_that_it_has():
    order = (20, 0, 4, -1, 0, -2)
    seen = shown(step(workspace_nbytes=19, allocations=order))
    assert seen[:7] == [7, 20, 3, 4, -20, 5, -4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allocations": (0,)}, "asks for 1 fewer results than it makes"),
        ({"allocations": (0, 0, 0)}, "asks for more results than the 2 that it makes"),
        ({"allocations": (0, 0, 9), "workspace_nbytes": 9}, "does not give back all"),
        ({"allocations": (0, 0, -1)}, "gives back its temporary 1, which is not there"),
        ({"allocations": (9, -1, -1, 0, 0)}, "gives back its temporary 1, which is not there"),
        ({"allocations": (0, 0, 9, -1)}, "takes 9 bytes inside in that order, but says 0"),
        ({"allocations": (9, -1, 0, 0), "transient_nbytes": 9}, "takes 1 bytes inside"),
    ],
)
def test_an_order_that_cannot_be_is_refused(fields, message):
    with pytest.raises(InvalidTrace, match=message) as caught:
        _ = step(**fields).facts
    assert "operations[0].allocations: 'f' " in str(caught.value)


def test_the_order_changes_no_bytes_that_are_counted():
    plain, ordered = (
        step(workspace_nbytes=19, **fields)
        for fields in ({}, {"allocations": (20, 0, 4, -1, 0, -2)})
    )
    assert plain.facts.digest == ordered.facts.digest
    reports = [
        play(trace, decide(find_policy("liveness"), trace, MACHINE, None), MACHINE)
        for trace in (plain, ordered)
    ]
    assert reports[0].device_peak_bytes == reports[1].device_peak_bytes


# -- step after step -------------------------------------------------------------------------------


@pytest.fixture
def trained() -> Trace:
    """A parameter of 4 MiB with gradient and state; the gradient of the last step goes first."""

    def stored(name: str, kind: str, nbytes: int, **fields: object) -> Storage:
        return Storage(name=name, kind=kind, nbytes=nbytes * MIB, **fields)

    return Trace(
        name="training",
        places="saves",
        times="none",
        storages=(
            stored("w", "parameter", 4, alive_at_start=True),
            stored("state", "optimizer-state", 8, alive_at_start=True),
            stored("old", "parameter-gradient", 5, alive_at_start=True),
            stored("a", "activation", 30),
            stored("g", "parameter-gradient", 5, becomes="old"),
        ),
        operations=(
            Operation(name="f", kind="conv", phase="forward", reads=("w",), writes=("a",)),
            Operation(name="b", kind="conv", phase="backward", reads=("a",), writes=("g",)),
            Operation(name="u", kind="foreach", phase="optimizer", reads=("g", "state")),
        ),
        releases=(Release(storage="old", place=0), Release(storage="a", place=2)),
    )


def test_the_first_step_finds_neither_gradients_nor_states(trained):
    seen = [n // MIB for n in shown(trained)]
    assert seen[:5] == [4, 30, 5, -30, 8]


def test_later_steps_find_what_the_last_one_left(trained):
    seen = [n // MIB for n in shown(trained)]
    assert seen[5:9] == [-5, 30, 5, -30]  # the old gradient goes before anything is asked for


def test_steps_are_shown_until_one_takes_nothing_more_but_three_at_least(trained):
    assert shown(trained).count(30 * MIB) == 3


def test_the_allocated_peak_is_that_of_the_last_step(trained):
    allocator = CachingAllocator()
    schedule = decide(find_policy("liveness"), trained, MACHINE, None).schedule
    occupy(trained, schedule, allocator)
    assert allocator.allocated_peak_nbytes == (4 + 8 + 30 + 5) * MIB


@given(st.integers(0, 2**32), st.sampled_from(["everywhere", "saves"]))
@settings(max_examples=60, deadline=None)
def test_a_process_never_asks_twice_and_gives_back_only_what_is_there(seed, places):
    rng = Random(seed)
    trace = random_trace(rng, rng.randint(1, 25), places)
    machine = find_machine("h200:host_memory=100GB")
    for policy in ("baseline", "liveness", "superneurons", "liveness+offload"):
        decision = decide(find_policy(policy), trace, machine, None)
        allocator = CachingAllocator()
        occupy(trace, decision.schedule, allocator)  # its blocks would not be found otherwise
        facts = trace.facts
        there = sum(
            1 for s in range(facts.storage_count) if facts.alive_at_end[s] and facts.nbytes[s]
        )
        assert len([piece for piece in allocator.pieces() if piece.block is not None]) == there
