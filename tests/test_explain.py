"""Why a step took another time than simulated: clocked, compared, said."""

import time
from itertools import pairwise

import msgspec
import pytest

torch = pytest.importorskip("torch")

from commandline import refuse, succeed  # noqa: E402
from programs import PROGRAMS, Training, training  # noqa: E402
from torch import nn  # noqa: E402
from training import Everything, different, executor, plain, state, undisturbed  # noqa: E402

from superneurons.executor import RunReport  # noqa: E402
from superneurons.executor.cpu_backend import EmulatedBackend  # noqa: E402
from superneurons.executor.cuda_backend import CudaBackend  # noqa: E402
from superneurons.machines import find_machine  # noqa: E402
from superneurons.policies import decide, find_policy  # noqa: E402
from superneurons.reports import PeakReading, Stretch, explain  # noqa: E402
from superneurons.reports.differences import told_peak, told_time  # noqa: E402
from superneurons.sim import Passage, foresee, play  # noqa: E402
from superneurons.traces import find_trace  # noqa: E402

H200 = find_machine("h200")
MODEL = "superneurons.zoo:small_cnn:batch=1,image=16,stages=1"
AGAIN = "liveness+recompute:strategy=memory"
SLOW_S = 0.05


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


class Late(nn.Module):
    """A layer that keeps the host, or does whatever *work* is, before it computes."""

    def __init__(self, work=None):
        super().__init__()
        self.work = work

    def forward(self, x):
        if self.work is not None:
            self.work()
        return torch.sigmoid(x)


def chain(work=None):
    """Layers of which the one in the middle is slow."""
    torch.manual_seed(0)
    parts = [nn.Linear(8, 8), Late(), nn.Linear(8, 8), Late(work), nn.Linear(8, 8), nn.Tanh()]
    model = nn.Sequential(*parts)
    x = torch.randn(4, 8)
    return training(model, lambda: model(x).pow(2).mean(), torch.optim.Adam)


def slow():
    """A chain whose slow layer keeps the host."""
    return chain(lambda: time.sleep(SLOW_S))


def clocked(build, runs, steps=1):
    """Run a training until it is executed, and clock some more steps; return those and it."""
    torch.manual_seed(0)
    step = build()
    found = []
    for i in range(3 + steps):
        runs.clock = i >= 3
        with runs.step():
            step()
        if runs.clock:
            found.append(runs.clocked)
    return found, step


def explained(build, runs, steps=1):
    found, _ = clocked(build, runs, steps)
    plan = found[-1].plan
    foreseen = foresee(plan.trace, plan.schedule, runs.machine)
    return explain(plan.trace, foreseen, [each.stretches for each in found]), plan.trace


# -- what is clocked -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chain", *sorted(PROGRAMS.keys() - {"chain"})[:12]])
@pytest.mark.parametrize("policy", [Everything(), AGAIN], ids=["away", "again"])
def test_stretches_cover_the_step_and_the_step_is_the_plain_one(name, policy):
    runs = executor(policy)
    ((found,), step) = clocked(PROGRAMS[name], runs)
    assert different(state(step), plain(PROGRAMS[name], 4)) == []
    if found is None:  # a program of several kinds of steps
        assert runs.report.why
        return
    stretches = found.stretches
    assert stretches[0].begin == 0
    assert all(here.end == there.begin for here, there in pairwise(stretches))
    assert stretches[-1].end == len(found.plan.trace.operations)
    assert {each.begin for each in stretches} >= {0, *found.plan.places}
    assert all(min(each.ns, each.host_ns, each.stall_ns, each.hooks_ns) >= 0 for each in stretches)
    assert all(each.stall_ns + each.again_ns + each.hooks_ns <= each.ns for each in stretches)


def test_the_whole_step_is_clocked():
    runs = executor("liveness")
    torch.manual_seed(0)
    step = slow()
    for i in range(4):
        runs.clock = i == 3
        begin = time.perf_counter_ns()
        with runs.step():
            step()
        took = time.perf_counter_ns() - begin
    assert SLOW_S * 1e9 < runs.clocked.ns <= took


def test_what_is_computed_again_and_waited_for_is_clocked():
    again = clocked(chain, executor(AGAIN))[0][0]
    away = clocked(chain, executor(Everything()))[0][0]
    assert sum(each.again_ns for each in again.stretches) > 0
    assert sum(each.again_ns for each in away.stretches) == 0
    assert sum(each.stall_ns for each in away.stretches) > 0


def test_each_pass_and_the_optimizer_have_stretches_of_their_own():
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
        optimizer = torch.optim.Adam(model.parameters())
        x = torch.randn(4, 8)

        def run():
            optimizer.zero_grad()
            for _ in range(2):
                model(x).sum().backward()
            optimizer.step()

        return Training(model, run, optimizer)

    ((found,), _) = clocked(build, executor("liveness"))
    phases = [op.phase for op in found.plan.trace.operations]
    ends = [i for i, (one, two) in enumerate(pairwise(phases), 1) if one == "backward" != two]
    assert len(ends) == 2
    assert {each.begin for each in found.stretches} >= set(ends)
    assert found.stretches[-1].begin == ends[-1]
    assert set(phases[ends[-1] :]) == {"optimizer"}


def test_nothing_is_clocked_in_ordinary_steps():
    class Stamped(EmulatedBackend):
        stamps = 0

        def stamp(self):
            self.stamps += 1
            return super().stamp()

    backend = Stamped()
    runs = executor(Everything(), backend=backend)
    torch.manual_seed(0)
    step = chain()
    for clock, stamped in ((False, False),) * 4 + ((True, True), (False, False)):
        runs.clock, backend.stamps = clock, 0
        with runs.step():
            step()
        assert (backend.stamps > 0, runs.clocked is not None) == (stamped, stamped)
        assert not backend.timing
    assert runs.report.mode == "executed"


def test_a_step_that_is_another_one_is_not_clocked():
    runs, rows = executor("liveness", clock=True), [4, 4, 4, 4, 3]
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
    for count in rows:
        with runs.step():
            model(torch.randn(count, 8)).sum().backward()
        assert (runs.clocked is not None) == (runs.report.mode == "executed")
    assert runs.report.mode == "kept"


# -- what is made of it ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["liveness", Everything(), AGAIN])
def test_sums_by_cause_and_phase_are_the_whole_difference(policy):
    found, _ = explained(chain, executor(policy), steps=3)
    steady = sum(each.measured_ns for each in found.differences)
    assert found.measured_ns == steady + found.by_cause["unsteady"]
    assert found.measured_ns == sorted(found.clocked_ns)[1]
    difference = found.measured_ns - found.simulated_ns
    assert sum(found.by_cause.values()) == sum(found.by_phase.values()) == difference
    for each in found.differences:
        assert sum(each.causes.values()) == each.difference_ns
        assert each.least_ns <= each.measured_ns <= each.most_ns


def test_a_slow_operation_is_named_first():
    found, trace = explained(slow, executor(AGAIN))
    first = found.largest(1)[0]
    assert any(name.startswith("3.sigmoid") for name in first.operations)
    assert (first.phase, first.cause) == ("forward", "kernels")  # of a CPU the host is part
    assert first.difference_ns > SLOW_S * 0.9e9
    assert set(first.operations) < {op.name for op in trace.operations}


class Apart(EmulatedBackend):
    """A device that works for so long as it is told, behind the host."""

    lags = True

    def __init__(self):
        super().__init__()
        self.idle_ns = 0

    def work(self):
        self.idle_ns = max(self.idle_ns, time.perf_counter_ns()) + int(SLOW_S * 1e9)

    def stamp(self):
        return max(self.idle_ns, time.perf_counter_ns())

    def drain(self):
        super().drain()
        time.sleep(max(0, self.idle_ns - time.perf_counter_ns()) / 1e9)


def test_a_device_that_waits_for_its_host_is_told_from_one_that_works():
    waits, _ = explained(slow, executor("liveness", backend=Apart()))
    assert waits.largest(1)[0].cause == "host"
    assert waits.by_cause["host"] > SLOW_S * 0.9e9
    backend = Apart()
    works, _ = explained(lambda: chain(backend.work), executor("liveness", backend=backend))
    (first,) = works.largest(1)
    assert any(name.startswith("3.sigmoid") for name in first.operations)
    assert first.cause == "kernels"
    assert works.by_cause["kernels"] > SLOW_S * 0.9e9
    behind = [each.behind_ns for each in works.differences]
    assert max(behind) > SLOW_S * 0.5e9
    assert abs(behind[0]) < SLOW_S * 0.1e9


class Shared(Apart):
    """Such a device that works for somebody else when a clocked step begins."""

    def drain(self):
        super().drain()
        self.work()


def test_a_device_that_others_use_as_the_step_begins_is_behind_from_there_on():
    found, _ = explained(slow, executor("liveness", backend=Shared()))
    behind = [each.behind_ns for each in found.differences]
    assert min(behind) >= 0
    assert behind[0] > SLOW_S * 0.5e9
    assert behind[-1] < SLOW_S * 0.1e9  # it has caught up while the host was slow


# -- what was simulated ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small-cnn-b4", "resnet50-b128", "lstm-b64"])
@pytest.mark.parametrize(
    "policy", ["liveness", "liveness+offload:release=immediate", AGAIN, "superneurons"]
)
def test_what_is_foreseen_is_the_simulated_step(name, policy):
    trace = find_trace(name)
    decision = decide(find_policy(policy), trace, H200, None)
    passage = Passage(trace, H200)
    report = play(trace, decision, H200, passage)
    found = passage.foreseen(decision.schedule, report.step_time_ns)
    columns = found.work_ns, found.again_ns, found.stall_ns, found.host_ns
    assert sum(map(sum, columns)) == report.step_time_ns
    assert min(map(min, columns)) >= 0
    assert {len(column) for column in columns} == {len(trace.operations) + 1}
    assert sum(found.work_ns) == report.compute_ns - report.recomputed_ns
    assert sum(found.again_ns) == report.recomputed_ns
    assert sum(found.stall_ns) >= report.stall_ns


def shipped(policy="liveness"):
    """Return a recording, what is foreseen of it, and stretches of one operation that take that."""
    trace = find_trace("small-cnn-b4")
    decision = decide(find_policy(policy), trace, H200, None)
    found = foresee(trace, decision.schedule, H200)
    columns = found.work_ns, found.again_ns, found.stall_ns, found.host_ns
    whole = [sum(each) for each in zip(*columns, strict=True)]
    whole[-2:] = [sum(whole[-2:])]
    return (
        trace,
        found,
        [
            Stretch(i, i + 1, ns, ns, 0, found.stall_ns[i], found.again_ns[i], 0)
            for i, ns in enumerate(whole)
        ],
    )


def altered(stretches, i, **values):
    """Return the stretches with one that takes 5 ms more, and other *values*."""
    more = msgspec.structs.replace(stretches[i], ns=stretches[i].ns + 5_000_000, **values)
    return [*stretches[:i], more, *stretches[i + 1 :]]


def test_a_step_as_simulated_has_nothing_to_explain():
    trace, foreseen, stretches = shipped()
    found = explain(trace, foreseen, [stretches])
    assert found.difference_ns == 0
    assert {each.difference_ns for each in found.differences} == {0}
    assert told_time(found)[0].endswith("(0.0 %) longer than simulated, within 10 %")


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"host_ns": 10_000_000}, "host"),
        ({"host_ns": 10_000_000, "hooks_ns": 6_000_000}, "hooks"),
        ({"host_ns": 1000}, "kernels"),
        ({"host_ns": 10_000_000, "behind_ns": 20_000_000}, "kernels"),
        ({"stall_ns": 5_000_000}, "stall"),
        ({"again_ns": 5_000_000}, "again"),
        ({"behind_ns": None, "host_ns": 10_000_000}, "kernels"),
    ],
)
def test_the_operation_whose_time_is_altered_is_named_with_its_cause(values, cause):
    trace, foreseen, stretches = shipped()
    at = next(i for i, op in enumerate(trace.operations) if op.kind == "conv" and not op.waits)
    found = explain(trace, foreseen, [altered(stretches, at, **values)])
    (first,) = found.largest(1)
    assert first.operations == [trace.operations[at].name]
    assert (first.difference_ns, first.cause) == (5_000_000, cause)
    # Of an operation that was to wait for its host a little: that is gone, or more beside it.
    assert found.by_cause[cause] == pytest.approx(5_000_000, abs=foreseen.host_ns[at])
    assert found.by_phase == {
        "forward": 5_000_000,
        "backward": 0,
        "optimizer": 0,
        "unsteady": 0,
    }
    longer = f"the step took 5.000 ms ({found.percent:.1f} %) longer than simulated: +5.00"
    assert told_time(found)[0].startswith(longer)


@pytest.mark.parametrize(("host_ns", "cause"), [(20_000_000, "host"), (1_000_000, "kernels")])
def test_a_device_that_is_behind_at_the_end_had_enough_to_do(host_ns, cause):
    trace, foreseen, stretches = shipped()
    first = next(i for i, op in enumerate(trace.operations) if op.phase == "optimizer")
    fields = "ns", "stall_ns", "again_ns"
    rest = {name: sum(getattr(each, name) for each in stretches[first:]) for name in fields}
    optimizer = Stretch(
        begin=first,
        end=len(trace.operations),
        host_ns=host_ns,
        behind_ns=0,
        hooks_ns=0,
        **rest | {"ns": 20_000_000},
    )
    found = explain(trace, foreseen, [[*stretches[:first], optimizer]])
    (largest,) = found.largest(1)
    assert len(largest.operations) == len(trace.operations) - first > 5
    assert (largest.phase, largest.cause) == ("optimizer", cause)
    assert found.by_phase["optimizer"] == found.difference_ns


def test_the_step_in_the_middle_is_explained_by_the_middle_of_each_stretch():
    trace, foreseen, stretches = shipped()
    late = altered(stretches, 3)
    later = altered(late, 3)
    found = explain(trace, foreseen, [later, stretches, late])
    assert found.difference_ns == 5_000_000
    assert found.by_cause["unsteady"] == 0
    (first,) = found.largest(1)
    assert (first.difference_ns, first.least_ns, first.most_ns) == (
        5_000_000,
        stretches[3].ns,
        later[3].ns,
    )
    # Each step has a hitch somewhere else: no operation is to blame.
    found = explain(trace, foreseen, [altered(stretches, i) for i in (3, 5, 7)])
    assert found.difference_ns == found.by_cause["unsteady"] == found.by_phase["unsteady"]
    assert found.largest(1)[0].difference_ns == 0
    assert "+5.000 ms now here, now there" in told_time(found)[0]


def test_bytes_are_told_with_the_operations_of_both_peaks():
    peak = PeakReading(
        planned_nbytes=100 << 20,
        planned_op="a",
        found_nbytes=100 << 20,
        found_op="a",
        places=7,
        different=0,
    )
    assert told_peak(peak) == [
        "bytes: as planned before each of 7 operations, to the byte; the most is 100.000 MiB, "
        "before a"
    ]
    more = msgspec.structs.replace(
        peak, found_nbytes=103 << 20, found_op="b", different=2, first_op="c"
    )
    assert told_peak(more) == [
        "bytes: other than planned before 2 of 7 operations, c the first; the most was to be "
        "100.000 MiB before a, and was 103.000 MiB (+3.0 %) before b"
    ]
    little = msgspec.structs.replace(more, found_nbytes=101 << 20)
    assert told_peak(little)[0].endswith("the most is within 2 % of the plan (+1.0 %)")


# -- a GPU's events, played ------------------------------------------------------------------------


class Event:
    """As torch's: it is reached some time after it was recorded."""

    clock_ms = 0.0

    def __init__(self, enable_timing=False):
        assert enable_timing
        self.at_ms = None

    def synchronize(self):
        assert self.at_ms is not None

    def elapsed_time(self, later):
        return later.at_ms - self.at_ms


class Stream:
    def record_event(self, event):
        Event.clock_ms += 0.5
        event.at_ms = Event.clock_ms
        return event

    def wait_event(self, ticket):
        Event.clock_ms += ticket


def test_a_gpu_is_clocked_by_events_of_its_compute_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    backend = object.__new__(CudaBackend)
    backend._compute, backend._waits, backend.timing = Stream(), [], True
    begin = backend.stamp()
    backend.wait(2.0)
    backend.wait(0.25)
    end = backend.stamp()
    assert backend.lags
    assert backend.between_ns(begin, end) == 4_750_000
    assert backend.timed_waits == 2
    assert backend.waits_ns() == [2_500_000, 750_000]
    assert (backend.timed_waits, backend.waits_ns()) == (0, [])
    backend.timing = False
    backend.wait(1.0)
    assert backend.timed_waits == 0


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_the_largest_differences_their_sums_and_a_sentence():
    args = ("run", MODEL, "--policy", AGAIN, "--machine", "h200", "--steps", "3")
    printed = succeed(*args, "--explain")
    assert "simulated, ms" in printed
    assert "by cause: waiting for the host +0.000 ms, in the executor's hooks +" in printed
    assert "by phase: forward " in printed
    lines = printed.splitlines()
    assert any(line.startswith("the step took ") and "than simulated" in line for line in lines)
    assert "the machine's roofline, a rough guess" in printed
    assert "bytes: as planned before each of" in lines[-1]
    assert "simulated, ms" not in succeed(*args)


def test_json_has_all_stretches():
    printed = succeed(
        "run", MODEL, "--policy", AGAIN, "--machine", "h200", "--steps", "3", "--explain", "--json"
    )
    report = msgspec.json.decode(printed, type=RunReport)
    found = report.explanation
    assert len(found.differences) > 20
    assert sum(found.by_cause.values()) == sum(found.by_phase.values()) == found.difference_ns
    assert found.simulated_ns == report.predicted_step_time_ns
    assert (len(found.clocked_ns), len(report.steps)) == (5, 3)
    assert found.peak.different == 0
    names = [name for each in found.differences for name in each.operations]
    assert len(names) == len(set(names)) == found.peak.places


def test_what_cannot_be_explained_is_said():
    refused = refuse("run", MODEL, "--policy", "liveness", "--steps", "2", "--explain")
    assert "run at least 3" in refused


def test_a_step_that_keeps_everything_has_no_explanation(tmp_path):
    (tmp_path / "forward.py").write_text(
        "import torch\n"
        "def build():\n"
        "    model = torch.nn.Linear(3, 3)\n"
        "    return lambda: model(torch.ones(2, 3)).tanh().shape\n"
    )
    args = ("--policy", "liveness", "--machine", "h200", "--explain")
    lines = succeed("run", f"{tmp_path / 'forward.py'}:build", *args).splitlines()
    assert lines[-1].startswith("nothing is explained, for no step ran by a schedule to its end")
    assert "no backward pass" in lines[-1]
