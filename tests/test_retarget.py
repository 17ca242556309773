"""Measured times on another machine or at another size, and rooflines by precision."""

import json
from pathlib import Path
from random import Random

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from superneurons.cli import main
from superneurons.errors import InvalidInput, InvalidMachine
from superneurons.machines import Machine, find_machine, read_machine
from superneurons.policies import find_policy
from superneurons.sim import carry_times, retarget, simulate
from superneurons.sim.retarget import FIXED_NS
from superneurons.traces import (
    Algorithm,
    Operation,
    Storage,
    Trace,
    random_trace,
    read_trace,
    write_trace,
)

# Rates that make sums easy: 1 flop a ns and 1 byte a ns, and what is twice and four times as fast.
SLOW = {
    "device_memory": "1GiB",
    "compute_rate": "1GFLOP/s",
    "memory_rate": "1GB/s",
    "launch_time": "5us",
    "allocator": "exact",
    "host_memory": "4GiB",
    "device_to_host": "8GB/s",
    "host_to_device": "8GB/s",
    "host_latency": "0ns",
}
FAST = SLOW | {"compute_rate": "2GFLOP/s", "memory_rate": "4GB/s", "launch_time": "1us"}


def machine_file(folder: Path, name: str, figures: dict[str, str]) -> Path:
    lines = ["format: superneurons-machine/1", f"name: {name}", "description: a toy", "figures:"]
    lines += [f"  {key}: {{value: {value}, source: by hand}}" for key, value in figures.items()]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def slow(tmp_path):
    return read_machine(machine_file(tmp_path, "slow", SLOW))


@pytest.fixture
def fast(tmp_path):
    return read_machine(machine_file(tmp_path, "fast", FAST))


def operation(name: str, device_ns: int | None, **fields: object) -> Operation:
    return Operation(
        name=name,
        kind=fields.pop("kind", "conv"),
        phase="forward",
        writes=(name,),
        device_ns=device_ns,
        **fields,
    )


def step(*operations: Operation, **fields: object) -> Trace:
    return Trace(
        **{
            "name": "step",
            "places": "everywhere",
            "times": "measured",
            "machine": "slow",
            "storages": tuple(
                Storage(name=op.name, kind="activation", nbytes=8) for op in operations
            ),
            "operations": operations,
            "notes": {"made": "by hand", "torch": "2.0"},
        }
        | fields
    )


def device_ns(trace: Trace) -> list[int | None]:
    return [op.device_ns for op in trace.operations]


# -- another machine, by hand ----------------------------------------------------------------------


def test_a_time_is_scaled_by_the_ratio_of_the_rooflines(slow, fast):
    trace = step(
        operation("arithmetic", 11_500, flops=8_000),  # 8000 there, 4000 here: half
        operation("traffic", 11_500, moved_nbytes=8_000),  # 8000 there, 2000 here: a quarter
        operation("both", 11_500, flops=8_000, moved_nbytes=8_000),  # 8000 there, 4000 here
        operation("turned", 11_500, flops=2_000, moved_nbytes=8_000),  # 8000 there, 2000 here
    )
    scaled = retarget(trace, slow, fast)
    assert device_ns(scaled) == [6_500, 4_000, 6_500, 4_000]  # 1500 of each is not scaled
    assert scaled.times == "measured"


def test_what_a_kernel_takes_at_least_is_not_scaled(slow, fast):
    assert FIXED_NS == 1_500
    trace = step(
        operation("less", 900, flops=8_000),
        operation("just", 1_500, flops=8_000),
        operation("more", 1_600, flops=8_000),
        operation("none", 0, flops=8_000),
    )
    assert device_ns(retarget(trace, slow, fast)) == [900, 1_500, 1_550, 0]


def test_a_slower_machine_takes_longer(slow, fast):
    trace = step(operation("a", 11_500, flops=8_000), operation("b", 11_500, moved_nbytes=8_000))
    assert device_ns(retarget(trace, fast, slow)) == [21_500, 41_500]


def test_an_operation_without_work_keeps_its_time(slow, fast):
    trace = step(operation("empty", 5_000, kind="empty"))
    assert device_ns(retarget(trace, slow, fast)) == [5_000]


def test_host_times_stay_and_where_there_are_none_the_new_machines_launch_counts(slow, fast):
    trace = step(
        operation("a", 1_000, flops=8_000, host_ns=777), operation("b", 1_000, flops=8_000)
    )
    scaled = retarget(trace, slow, fast)
    assert [op.host_ns for op in scaled.operations] == [777, None]
    report = simulate(scaled, find_policy("baseline"), fast)
    # a is launched at 777 and runs until 1777; b is launched at 1777 (777 and 1 us), until 2777
    assert report.step_time_ns == 2_777


def test_flops_are_scaled_by_the_rate_of_their_precision(tmp_path):
    there = read_machine(
        machine_file(tmp_path, "there", SLOW | {"tf32_rate": "2GFLOP/s", "half_rate": "4GFLOP/s"})
    )
    here = read_machine(
        machine_file(tmp_path, "here", SLOW | {"tf32_rate": "2GFLOP/s", "half_rate": "16GFLOP/s"})
    )
    trace = step(
        operation("fp32", 9_500, flops=8_000),
        operation("tf32", 9_500, flops=8_000, precision="tf32"),
        operation("half", 9_500, flops=8_000, precision="half"),
    )
    assert device_ns(retarget(trace, there, here)) == [9_500, 9_500, 3_500]
    assert device_ns(retarget(trace, here, there)) == [9_500, 9_500, 33_500]


def test_a_machine_without_tensor_cores_does_all_of_it_at_its_usual_rate(tmp_path, slow):
    fast = read_machine(
        machine_file(tmp_path, "cores", SLOW | {"tf32_rate": "4GFLOP/s", "half_rate": "8GFLOP/s"})
    )
    trace = step(
        operation("tf32", 2_500, flops=8_000, precision="tf32"),
        operation("half", 2_500, flops=8_000, precision="half"),
    )
    assert device_ns(retarget(trace, fast, slow)) == [5_500, 9_500]


def test_what_is_scaled_to_the_machine_it_was_measured_on_has_the_same_times(slow):
    trace = step(
        operation("a", 12_345, flops=7, host_ns=3),
        operation("b", 3, moved_nbytes=11),
        operation("c", 999_999_999_937, flops=10**15, moved_nbytes=3),
    )
    same = retarget(trace, slow, slow)
    assert device_ns(same) == device_ns(trace)
    assert msgspec.structs.replace(same, name="", notes={}).operations == trace.operations


@settings(deadline=None)
@given(st.integers(0, 2**64), st.integers(1, 40), st.sampled_from(["h200", "k40c", "titan-xp"]))
def test_scaling_changes_device_times_alone(seed, ops, target):
    trace = random_trace(Random(seed), ops, "saves")
    if any(op.algorithms for op in trace.operations):
        trace = msgspec.structs.replace(
            trace,
            operations=tuple(msgspec.structs.replace(op, algorithms=()) for op in trace.operations),
        )
    scaled = retarget(trace, find_machine("h200"), find_machine(target))
    assert scaled.facts.digest == trace.facts.digest
    for before, after in zip(trace.operations, scaled.operations, strict=True):
        assert after.device_ns >= min(before.device_ns, FIXED_NS)
        assert msgspec.structs.replace(after, device_ns=before.device_ns) == before
    assert (scaled.storages, scaled.saves) == (trace.storages, trace.saves)
    assert (scaled.values, scaled.releases) == (trace.values, trace.releases)


def test_the_result_says_in_its_name_and_notes_what_was_done(slow, fast):
    trace = step(operation("a", 1_000, flops=8))
    scaled = retarget(trace, slow, fast)
    assert scaled.name == "step (slow -> fast)"
    note = scaled.notes["times"]
    assert "measured on slow, scaled to fast by the ratio of their rooflines" in note
    assert "1500 ns" in note
    assert scaled.notes["made"] == "by hand"
    assert scaled.notes["torch"] == "2.0"
    assert scaled.machine != "slow"
    assert "times" not in trace.notes


@pytest.mark.parametrize("times", ["roofline", "none"])
def test_a_trace_without_measured_times_is_refused(times, slow, fast):
    trace = step(operation("a", None, flops=8), times=times, machine="")
    with pytest.raises(InvalidInput) as caught:
        retarget(trace, slow, fast)
    assert str(caught.value) == ("trace 'step' has no measured times to scale to another machine")


def test_other_algorithms_are_not_left_with_times_of_the_old_machine(slow, fast):
    winograd = Algorithm(name="winograd", device_ns=6_500, workspace_nbytes=64)
    trace = step(operation("a", 11_500, flops=8_000, algorithms=(winograd,)))
    for each in retarget(trace, slow, fast).operations[0].algorithms:
        assert each.device_ns == 4_000


def test_a_schedule_for_the_scaled_step_is_one_for_the_step(slow, fast):
    # Sizes are those of the step: what was decided for one is legal for the other.
    winograd = Algorithm(name="winograd", device_ns=6_500, workspace_nbytes=64)
    trace = step(operation("a", 11_500, flops=8_000, algorithms=(winograd,)))
    assert retarget(trace, slow, fast).facts.digest == trace.facts.digest


# -- another size ----------------------------------------------------------------------------------


def test_carried_times_are_scaled_by_the_work_on_the_same_machine(slow):
    measured = step(
        operation("a", 11_500, flops=1_000, host_ns=30),
        operation("b", 11_500, moved_nbytes=1_000, host_ns=40),
    )
    larger = step(
        operation("a", None, flops=2_000),
        operation("b", None, moved_nbytes=500),
        name="larger",
        times="roofline",
        machine="",
        notes={"made": "estimated"},
    )
    carried = carry_times(measured, larger, slow)
    assert device_ns(carried) == [21_500, 6_500]
    assert [op.host_ns for op in carried.operations] == [30, 40]
    assert [(op.flops, op.moved_nbytes) for op in carried.operations] == [(2_000, 0), (0, 500)]
    assert carried.times == "measured"
    assert carried.storages == larger.storages


def test_carried_times_of_the_same_step_are_its_own(slow):
    measured = step(
        operation("a", 12_345, flops=1_001, host_ns=30),
        operation("b", 99, moved_nbytes=17, host_ns=40),
    )
    again = step(
        operation("a", None, flops=1_001),
        operation("b", None, moved_nbytes=17),
        times="roofline",
        machine="",
    )
    carried = carry_times(measured, again, slow)
    assert carried.operations == measured.operations


def test_carried_times_heed_a_change_of_precision(tmp_path):
    machine = read_machine(machine_file(tmp_path, "cores", SLOW | {"half_rate": "4GFLOP/s"}))
    measured = step(operation("a", 9_500, flops=8_000))
    half = step(operation("a", None, flops=8_000, precision="half"), times="roofline", machine="")
    assert device_ns(carry_times(measured, half, machine)) == [3_500]


def test_an_operation_that_had_no_work_keeps_its_time_at_another_size(slow):
    measured = step(operation("a", 9_500, kind="empty"))
    other = step(operation("a", None, kind="empty"), times="roofline", machine="")
    assert device_ns(carry_times(measured, other, slow)) == [9_500]


def test_carried_times_say_where_they_are_from(slow):
    measured = step(operation("a", 9_500, flops=8), name="small")
    other = step(operation("a", None, flops=16), name="large", times="roofline", machine="")
    carried = carry_times(measured, other, slow)
    assert carried.name == "large (times of small)"
    assert "carried over from small by the ratio of rooflines on slow" in carried.notes["times"]
    assert carried.notes["made"] == "by hand"


@pytest.mark.parametrize(
    ("others", "counts"),
    [
        ((operation("a", None, flops=8),), (2, 1)),
        ((operation("a", None, flops=8), operation("b", None, flops=8, kind="norm")), (2, 2)),
        ((operation("b", None, flops=8, kind="pool"), operation("a", None, flops=8)), (2, 2)),
    ],
    ids=["fewer", "another-kind", "another-order"],
)
def test_times_are_not_carried_to_other_operations(others, counts, slow):
    measured = step(
        operation("a", 9_500, flops=8), operation("b", 9, flops=8, kind="pool"), name="small"
    )
    structure = step(*others, name="large", times="roofline", machine="")
    with pytest.raises(InvalidInput) as caught:
        carry_times(measured, structure, slow)
    assert str(caught.value) == (
        f"'small' has {counts[0]} operations and 'large' {counts[1]}, not the same ones in the "
        "same order: times cannot be carried over"
    )


def test_times_that_were_not_measured_cannot_be_carried_over(slow):
    trace = step(operation("a", None, flops=8), times="roofline", machine="")
    with pytest.raises(InvalidInput) as caught:
        carry_times(trace, trace, slow)
    assert str(caught.value) == "trace 'step' has no measured times to carry over"


# -- the command line ------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def report(*arguments: str) -> dict:
    result = run("simulate", *arguments, "--policy", "baseline", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    (found,) = json.loads(result.stdout)
    return found


@pytest.fixture
def measured_on_h200(tmp_path):
    """A file of one operation: 41.6 MB moved in 101,500 ns on an H200, 10,000 by its roofline."""
    path = tmp_path / "step.json"
    write_trace(
        step(operation("a", 101_500, moved_nbytes=41_600_000, host_ns=0), machine="h200"), path
    )
    return str(path)


def test_a_step_is_scaled_to_the_machine_that_it_is_simulated_on(measured_on_h200):
    found = report(measured_on_h200, "--machine", "k40c")
    # 41.6 MB take 10,000 ns at 4160 GB/s and 144,445 at 288 GB/s
    assert found["step_time_ns"] == 1_500 + round(100_000 * 144_445 / 10_000)
    assert (found["trace"], found["machine"]) == ("step (h200 -> k40c)", "k40c")
    assert found["times"] == "measured"


def test_the_table_says_that_a_step_was_scaled(measured_on_h200):
    arguments = ("--machine", "titan-xp", "--policy", "baseline")
    out = run("simulate", measured_on_h200, *arguments).stdout
    assert out.startswith("step (h200 -> titan-xp) on titan-xp, ")


@pytest.mark.parametrize("machine", ["h200", "h200:host_latency=0ns", "h200:allocator=caching"])
def test_a_step_keeps_its_times_on_the_machine_it_was_measured_on(machine, measured_on_h200):
    found = report(measured_on_h200, "--machine", machine)
    assert (found["trace"], found["step_time_ns"]) == ("step", 101_500)


def test_overrides_of_another_machine_count_in_the_ratio(measured_on_h200):
    found = report(measured_on_h200, "--machine", "k40c:memory_rate=4160GB/s")
    assert found["trace"] == "step (h200 -> k40c:memory_rate=4160GB/s)"
    assert found["step_time_ns"] == 101_500


def test_a_machine_of_ones_own_is_another_machine(measured_on_h200, tmp_path):
    path = machine_file(tmp_path, "own", SLOW | {"memory_rate": "416GB/s"})
    found = report(measured_on_h200, "--machine", str(path))
    assert found["trace"] == "step (h200 -> own)"
    assert found["step_time_ns"] == 1_500 + 1_000_000


def test_a_step_without_a_machine_is_simulated_as_it_is(tmp_path):
    path = tmp_path / "step.json"
    write_trace(step(operation("a", 101_500, flops=8, host_ns=0), machine=""), path)
    found = report(str(path), "--machine", "k40c")
    assert (found["trace"], found["step_time_ns"]) == ("step", 101_500)


def test_a_step_of_a_machine_that_is_not_built_in_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "step.json"
    write_trace(step(operation("a", 101_500, flops=8), machine="a100"), path)
    result = run("simulate", str(path), "--machine", "k40c")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "'a100'" in line


def test_a_schedule_that_was_saved_for_a_scaled_step_is_proved_over_the_step(
    measured_on_h200, tmp_path
):
    saved = str(tmp_path / "schedule.json")
    arguments = ("--machine", "k40c", "--policy", "liveness", "--schedule", saved)
    assert run("simulate", measured_on_h200, *arguments).exit_code == 0
    result = run("check", measured_on_h200, saved)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_trace_file_keeps_its_machine_and_precisions(tmp_path):
    trace = step(operation("a", 5, flops=8, precision="half"), operation("b", 5, precision="tf32"))
    path = tmp_path / "step.yaml"
    write_trace(trace, path)
    again = read_trace(path)
    assert again.machine == "slow"
    assert [op.precision for op in again.operations] == ["half", "tf32"]


# -- rates by precision ----------------------------------------------------------------------------


def test_the_rates_of_tensor_cores_are_figures_of_a_machine():
    h200 = find_machine("h200")
    assert h200.tensor_flops_per_s == {"tf32": 494 * 10**12, "half": 989 * 10**12}
    assert h200.flops_per_s == 67 * 10**12
    for name in ("k40c", "titan-xp"):
        assert find_machine(name).tensor_flops_per_s == {}


@pytest.mark.parametrize(
    ("flops", "nbytes", "precision", "ns"),
    [
        (67_000, 0, "fp32", 1),
        (494_000, 0, "tf32", 1),
        (494_001, 0, "tf32", 2),
        (989_000, 0, "half", 1),
        (989_000, 0, "fp32", 15),  # 14.8: up to a whole one
        (0, 41_600, "half", 10),  # bytes are bytes
        (989_000, 41_600, "half", 10),
        (0, 0, "half", 0),
    ],
)
def test_a_roofline_has_the_rate_of_its_precision(flops, nbytes, precision, ns):
    assert find_machine("h200").roofline_ns(flops, nbytes, precision) == ns


@pytest.mark.parametrize("precision", ["fp32", "tf32", "half"])
def test_without_a_rate_of_its_own_a_precision_has_the_usual_one(precision):
    assert find_machine("k40c").roofline_ns(4_300_000, 0, precision) == 1_000


def test_a_rate_of_tensor_cores_may_be_given_where_there_was_none():
    machine = find_machine("k40c:half_rate=43TFLOP/s")
    assert machine.roofline_ns(4_300_000, 0, "half") == 100
    assert machine.roofline_ns(4_300_000, 0, "tf32") == 1_000
    assert machine.sources["half_rate"] == "given on the command line"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("half_rate=0TFLOP/s", "figure 'half_rate' is 0; it must be more"),
        ("tf32_rate=5GB/s", "figure 'tf32_rate': '5GB/s' is not a number of flop per second"),
    ],
)
def test_a_wrong_rate_of_tensor_cores_is_refused(override, sentence):
    with pytest.raises(InvalidMachine) as caught:
        find_machine(f"h200:{override}")
    assert sentence in str(caught.value)


def by_precision(machine: Machine) -> list[int]:
    """Return the times that a machine makes of the same flops in each precision."""
    times = []
    for precision in ("fp32", "tf32", "half"):
        op = operation("a", None, flops=10**9, precision=precision, host_ns=0)
        trace = step(op, times="roofline", machine="")
        times.append(simulate(trace, find_policy("baseline"), machine).step_time_ns)
    return times


def test_a_simulation_takes_the_rate_of_each_operations_precision():
    assert by_precision(find_machine("h200")) == [14_926, 2_025, 1_012]
    assert by_precision(find_machine("k40c")) == [232_559] * 3


def test_a_precision_that_nobody_knows_is_refused(tmp_path):
    path = tmp_path / "step.json"
    write_trace(step(operation("a", 5, flops=8)), path)
    content = json.loads(path.read_text())
    content["operations"][0]["precision"] = "fp8"
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=r"operations\[0\].precision: Invalid enum value 'fp8'"):
        read_trace(path)
