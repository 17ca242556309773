"""All stages of a recording on a GPU, with a GPU that is played.

The steps run on the CPU; a device that says it is a CUDA one and equals the CPU's, counters that
say what a test puts there, and a profiler that writes the timeline of a GPU on which each operator
is one kernel of 10 microseconds.
"""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from superneurons import zoo  # noqa: E402
from superneurons.errors import InvalidInput  # noqa: E402
from superneurons.executor import (  # noqa: E402
    Recorder,
    history,
    private,
    recorder,
    stages,
    timeline,
)
from superneurons.executor.assemble import replayed_peak_nbytes  # noqa: E402
from superneurons.machines import find_machine  # noqa: E402
from superneurons.policies import find_policy  # noqa: E402
from superneurons.sim import simulate  # noqa: E402

KERNEL_NS = 10_000
STEPS = stages.WARMUP_STEPS + stages.TIMED_STEPS + 2 * stages.PROFILED_STEPS + 2 + 1


class PlayedDevice:
    """Says that it is a CUDA device, and is equal to the CPU's."""

    type = "cuda"
    index = 0

    def __eq__(self, other):
        return other is self or other == torch.device("cpu")

    def __hash__(self):
        return hash(torch.device("cpu"))


class PlayedProfiler:
    """Writes a kernel, and the call that launched it, for each operator that is observed."""

    current = None

    def __init__(self, activities, acc_events):
        self.events = []
        self.free_ns = 0

    def __enter__(self):
        self.around = private.observed(self.observe)
        self.around.__enter__()
        PlayedProfiler.current = self
        return self

    def __exit__(self, *error):
        self.around.__exit__(*error)
        PlayedProfiler.current = None

    def observe(self, func, args, kwargs):
        result = func(*args, **kwargs)
        self.launch()
        return result

    def launch(self):
        now, number = time.perf_counter_ns(), len(self.events)
        start = max(self.free_ns + 1_000, now + 5_000)
        self.free_ns = start + KERNEL_NS
        for category, begin, ns in (("cuda_runtime", now, 2_000), ("kernel", start, KERNEL_NS)):
            self.events.append(
                {
                    "cat": category,
                    "name": "kernel",
                    "ts": begin / 1000,
                    "dur": ns / 1000,
                    "args": {"stream": 7, "device": 0, "correlation": number},
                }
            )

    def export_chrome_trace(self, path):
        Path(path).write_text(json.dumps({"traceEvents": self.events}))


@contextmanager
def played_mark(name):
    profiler = PlayedProfiler.current
    begin = time.perf_counter_ns()
    profiler.launch()
    yield
    ns = time.perf_counter_ns() - begin
    mark = {"cat": "user_annotation", "name": name, "ts": begin / 1000, "dur": ns / 1000}
    profiler.events.append(mark | {"args": {}})


@pytest.fixture
def gpu(monkeypatch):
    """Play a GPU; what it says of its memory can be set."""
    said = SimpleNamespace(requested=0, blocks=[])
    peaks = ("requested_bytes.all.peak", "allocated_bytes.all.peak", "reserved_bytes.all.peak")
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 10**9)
    nothing = {
        "requested_bytes": {"all": {"current": 0, "peak": 0}},
        "allocation": {"all": {"allocated": 0, "freed": 0}},
    }
    for name, function in {
        "synchronize": lambda device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: dict.fromkeys(peaks, said.requested),
        "memory_stats_as_nested_dict": lambda device=None: nothing,
        "memory_snapshot": lambda: [{"device": 0, "blocks": said.blocks}],
        "get_device_properties": lambda device=None: properties,
        "get_allocator_backend": lambda: "native",
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(stages, "LEAST_NS", 0)
    monkeypatch.setattr(history, "memory_history_runs", lambda: True)  # somebody else's
    device = PlayedDevice()
    monkeypatch.setattr(recorder, "_numbered", lambda _: device)
    monkeypatch.setattr(timeline, "profile", PlayedProfiler)
    monkeypatch.setattr(timeline, "record_function", played_mark)
    monkeypatch.setattr("superneurons.executor.provenance._driver", lambda: "played")
    return said


def recorded(step, name="played"):
    recording = Recorder(name, "cpu")
    steps = 0
    while not recording.done:
        with recording.step():
            step()
        steps += 1
    assert steps == STEPS
    return recording.trace()


TINY = {
    "small_cnn": {"batch": 2, "image": 8, "width": 8},
    "bert": {"batch": 2, "length": 8, "layers": 1, "width": 16, "heads": 2, "vocabulary": 50},
    "lstm": {"batch": 2, "length": 8, "hidden": 16, "vocabulary": 50},
}


@pytest.mark.parametrize("model", TINY)
def test_all_stages_make_one_measured_trace(gpu, model):
    trace = recorded(getattr(zoo, model)(**TINY[model]))
    assert trace.times == "measured"
    assert trace.machine == "h200"
    kernels = [op for op in trace.operations if op.device_ns]
    assert all(op.device_ns >= KERNEL_NS for op in kernels)
    assert len(kernels) > len(trace.operations) / 2
    assert {"gpu", "driver", "step_time_ns", "host_times", "device_times"} <= trace.notes.keys()
    report = simulate(trace, find_policy("liveness"), find_machine("h200"))
    assert report.compute_ns == sum(op.device_ns for op in trace.operations)
    assert report.step_time_ns >= report.compute_ns


def test_host_times_add_up_to_those_of_unprofiled_steps(gpu):
    trace = recorded(zoo.small_cnn(**TINY["small_cnn"]))
    told = dict(each.split() for each in trace.notes["host_time_ns"].split(", "))
    for phase, ns in told.items():
        spent = sum(op.host_ns for op in trace.operations if op.phase == phase)
        assert spent == pytest.approx(int(ns), rel=0.01)


def test_blocks_of_nobody_are_elsewhere_on_the_device(gpu):
    gpu.blocks = [
        {"address": 4096, "requested_size": 32 << 20, "state": "active_allocated"},
        {"address": 8192, "requested_size": 99, "state": "inactive"},
    ]
    trace = recorded(zoo.small_cnn(**TINY["small_cnn"]))
    others = [storage for storage in trace.storages if storage.kind == "other"]
    assert [storage.nbytes for storage in others] == [32 << 20]
    assert all(storage.alive_at_start for storage in others)


def test_a_peak_that_is_not_torchs_is_a_caveat(gpu):
    step = zoo.small_cnn(**TINY["small_cnn"])
    peak = replayed_peak_nbytes(recorded(step))
    gpu.requested = peak
    assert "caveat" not in recorded(zoo.small_cnn(**TINY["small_cnn"])).notes
    gpu.requested = peak * 2
    assert "off a plain step's" in recorded(zoo.small_cnn(**TINY["small_cnn"])).notes["caveat"]


def test_a_step_that_does_other_things_when_it_is_profiled_is_refused(gpu):
    weight = torch.nn.Parameter(torch.rand(4, 4))
    count = 0

    def step():
        nonlocal count
        count += 1
        weight.grad = None
        rows = 2 if count <= STEPS - 2 * stages.PROFILED_STEPS - 1 else 4
        (torch.ones(rows, 4) @ weight).sum().backward()

    with pytest.raises(InvalidInput, match="of a step that repeats"):
        recorded(step)


def test_a_failure_in_any_stage_leaves_nothing_behind(gpu):
    backward = torch.autograd.backward
    for stage in range(STEPS):
        recording = Recorder("fails", "cpu")
        step = zoo.small_cnn(**TINY["small_cnn"])

        def fail():
            raise KeyError("the user's own")

        for k in range(stage + 1):
            try:
                with recording.step():
                    step() if k < stage else fail()
            except KeyError:
                assert k == stage
        assert recording.done
        assert torch.autograd.backward is backward
        assert torch.autograd.is_multithreading_enabled()
        assert not torch.nn.modules.module._has_any_global_hook()
        with pytest.raises(InvalidInput, match="a step failed"):
            recording.trace()
