"""The builder that planners write schedules with."""

from random import Random

import pytest

from superneurons.errors import IllegalSchedule
from superneurons.machines import find_machine
from superneurons.schedules import Builder, check
from superneurons.traces import random_trace

MACHINE = find_machine("k40c")


@pytest.mark.parametrize("where", ["everywhere", "saves"])
def test_what_it_builds_is_legal_with_nothing_but_runs(where):
    for seed in range(60):
        trace = random_trace(Random(seed), 1 + seed % 15, where)
        builder = Builder(trace, MACHINE)
        while builder.next_op < len(trace.operations):
            builder.run()
        schedule = builder.schedule("nothing but runs")
        assert check(trace, schedule).device_peak_nbytes == builder.ledger.device_peak_nbytes
        assert (schedule.short_nbytes, schedule.policy) == (0, "nothing but runs")


def test_it_says_by_how_much_it_does_not_fit():
    trace = random_trace(Random(4), 8, "everywhere")
    whole = Builder(trace, MACHINE)
    for _ in trace.operations:
        whole.run()
    peak = whole.ledger.device_peak_nbytes
    tight = Builder(trace, MACHINE, peak - 5)
    for _ in trace.operations:
        tight.run()
    schedule = tight.schedule("tight")
    assert (schedule.budget_nbytes, schedule.short_nbytes) == (peak - 5, 5)
    check(trace, schedule)


def test_an_illegal_instruction_is_refused_at_once_and_leaves_the_builder_as_it_was():
    trace = random_trace(Random(4), 8, "everywhere")
    builder = Builder(trace, MACHINE)
    made = trace.facts.fresh[0][0]
    with pytest.raises(IllegalSchedule, match="absent"):
        builder.free(made)
    with pytest.raises(IllegalSchedule, match="has not run yet"):
        builder.rerun(0)
    with pytest.raises(IllegalSchedule, match="the program's own"):
        builder.copy(0)
    builder.run()
    with pytest.raises(IllegalSchedule, match="no tier 'moon'"):
        builder.copy(made, "moon")
    with pytest.raises(IllegalSchedule, match="it ends before"):
        builder.schedule("too soon")
