"""What a schedule is made for is what it is asked for, and judged by."""

import json
import os
import threading
from dataclasses import dataclass

import msgspec
import pytest
from click.testing import CliRunner

from superneurons.cli import main
from superneurons.errors import InvalidInput, InvalidSchedule, PolicyFailed
from superneurons.machines import find_machine
from superneurons.notation.files import read_data, write_bytes
from superneurons.policies import Component, Liveness, Part, Stack, decide, find_policy
from superneurons.sim import simulate_schedule
from superneurons.traces import find_trace

K40C, H200 = find_machine("k40c"), find_machine("h200")


def test_a_schedule_for_a_larger_machine_does_not_fit_a_smaller_one():
    trace = find_trace("alexnet:batch=1200")
    schedule = decide(find_policy("baseline"), trace, H200).schedule
    assert simulate_schedule(trace, schedule, H200).fits
    report = simulate_schedule(trace, schedule, K40C)
    assert not report.fits
    assert report.limit_bytes == K40C.device_nbytes
    assert report.short_bytes == report.reserved_peak_bytes - K40C.device_nbytes


@pytest.mark.parametrize(
    ("policy", "machine"),
    [("liveness+offload", "k40c:host_memory=1MiB"), ("liveness+offload:tier=peer", "k40c")],
    ids=["too-small", "none"],
)
def test_a_schedule_that_needs_a_tier_is_refused_where_there_is_none(policy, machine):
    trace = find_trace("alexnet:batch=20")
    schedule = decide(find_policy(policy), trace, H200).schedule
    with pytest.raises(InvalidSchedule, match=r"into tier '(host|peer)'"):
        simulate_schedule(trace, schedule, find_machine(machine))


@dataclass(frozen=True)
class Changes:
    """Liveness, with some fields of its schedule changed."""

    fields: tuple[tuple[str, object], ...]

    def schedule(self, trace, machine, budget):
        schedule = Liveness().schedule(trace, machine, budget)
        return msgspec.structs.replace(schedule, **dict(self.fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"limit_nbytes": 10**15},
        {"budget_nbytes": 7},
        {"tiers": {"host": 10**15}},
        {"tiers": {**K40C.capacities, "moon": 5}},
        {"tiers": None},
        {"limit_nbytes": None},
        {"instructions": None},
        {"instructions": ["run"]},
        {"short_op": 1},
    ],
    ids=str,
)
def test_a_policy_that_makes_a_schedule_on_other_terms_is_blamed(fields):
    with pytest.raises(PolicyFailed, match=r"policy Changes\("):
        decide(Changes(tuple(fields.items())), find_trace("random:seed=1"), K40C)


@dataclass(frozen=True, kw_only=True, repr=False)
class Chooser(Component):
    name = "chooser"
    answer: object = 0

    def begin(self, walk):
        part = Part()
        chooser = type("ChooserPart", (Part,), {"choose": lambda *_: self.answer})
        return part if self.answer is None else chooser()


@pytest.mark.parametrize("answer", [9, -1, 1.0, True, "first"])
def test_a_choice_of_no_algorithm_is_blamed(answer):
    trace = next(
        trace
        for trace in (find_trace(f"random:seed={seed}") for seed in range(50))
        if trace.operations[0].algorithms
    )
    with pytest.raises(PolicyFailed, match=f"a part chose algorithm {answer!r} of "):
        decide(Stack((Liveness(), Chooser(answer=answer))), trace, K40C)


def test_policies_of_one_label_both_stand_in_the_timeline(tmp_path):
    path = tmp_path / "step.json"
    arguments = ["simulate", "random:seed=1", "--machine", "k40c", "--timeline", str(path)]
    result = CliRunner().invoke(main, [*arguments, "--policy", "liveness,liveness"])
    assert result.exit_code == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {1, 2}


@pytest.mark.parametrize(
    "text", ["notes: {yes: a, true: b}", "1: b\n0x1: c", "a: 1\na: 2"], ids=["yes", "one", "a"]
)
def test_keys_that_yaml_takes_for_the_same_are_refused(text, tmp_path):
    path = tmp_path / "step.yaml"
    path.write_text(f"format: x/1\n{text}\n")
    with pytest.raises(InvalidInput, match="is given twice in the mapping at line"):
        read_data(path, "x/1", "x file")


def test_a_merge_key_may_be_overridden(tmp_path):
    path = tmp_path / "step.yaml"
    path.write_text("format: x/1\nbase: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\n")
    assert read_data(path, "x/1", "x file")["mine"] == {"a": 1, "b": 3}


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"before")
    link.symlink_to(target)
    write_bytes(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"through")
    reader.join()
    assert read == [b"through"]
    assert pipe.is_fifo()
