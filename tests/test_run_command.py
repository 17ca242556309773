"""`superneurons run`: a user's step under a policy, from the shell."""

import json
from types import SimpleNamespace

import msgspec
import pytest

pytest.importorskip("torch")

import torch
from commandline import refuse, run, succeed

from superneurons.allocators.standing import Taken
from superneurons.commands.run import _conclude as print_conclusion
from superneurons.errors import DoesNotFit
from superneurons.executor.cuda_backend import CudaBackend
from superneurons.executor.run import RunReport, taken_by
from superneurons.executor.run import _shortage_told as shortage_told

MODEL = "superneurons.zoo:small_cnn:batch=1,image=16,stages=1"


def test_it_records_executes_and_says_what_it_cost():
    lines = succeed("run", MODEL, "--policy", "liveness+offload:release=immediate").splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [
        "step 0: safe",
        "step 1: recorded",
        "step 2: executed",
        "step 3: executed",
        "step 4: executed",
    ]
    assert "the links were measured" in lines[5]
    assert lines[6].startswith("small_cnn-batch1-image16-stages1 under liveness+offload:release")
    assert lines[6].endswith("predicted, not measured here")


def test_each_run_is_a_line_of_json(tmp_path):
    log = tmp_path / "runs.jsonl"
    for _ in range(2):
        succeed(
            "run", MODEL, "--policy", "liveness", "--machine", "h200", "--steps", "3",
            "--budget", "64MiB", "--log", str(log),
        )  # fmt: skip
    first, second = [json.loads(line) for line in log.read_text().splitlines()]
    assert first["predicted_peak_bytes"] == second["predicted_peak_bytes"] > 0
    assert (first["policy"], first["budget_bytes"], first["machine"]) == (
        "liveness",
        64 << 20,
        "h200",
    )
    assert {"date", "torch", "python"} <= first["versions"].keys()
    assert [step["mode"] for step in first["steps"]] == ["safe", "recorded", "executed"]


def test_what_torch_took_stands_beside_what_the_model_of_its_allocator_says(tmp_path, capsys):
    log = tmp_path / "run.jsonl"
    succeed("run", MODEL, "--policy", "liveness", "--machine", "h200", "--log", str(log))
    found = msgspec.json.decode(log.read_bytes(), type=RunReport)
    # A CPU's bytes are counted exactly, and nobody counts them.
    assert found.predicted_allocated_bytes == found.predicted_peak_bytes
    assert found.predicted_reserved_bytes == found.predicted_peak_bytes
    mib = 1 << 20
    print_conclusion(
        msgspec.structs.replace(
            found,
            predicted_peak_bytes=50 * mib,
            predicted_allocated_bytes=60 * mib,
            predicted_reserved_bytes=70 * mib,
            measured_peak_bytes=61 * mib,
            reserved_peak_bytes=72 * mib,
        )
    )
    peak, took, _ = capsys.readouterr().out.splitlines()
    assert peak.endswith("under liveness: peak 50.000 MiB predicted")
    assert took == (
        "torch's allocator: 60.000 MiB in blocks and 70.000 MiB reserved by its model, "
        "61.000 MiB and 72.000 MiB measured"
    )


@pytest.mark.parametrize("known", [Taken(3, 4), None], ids=["known", "unknown"])
def test_what_is_predicted_is_of_the_process_if_its_allocator_is_known(known):
    plan = SimpleNamespace(decided=SimpleNamespace(peaks=known))
    report = SimpleNamespace(allocated_peak_bytes=1, reserved_peak_bytes=2)
    assert taken_by(plan, report) == (known or (1, 2))


def test_json_is_all_that_is_printed():
    printed = succeed("run", MODEL, "--policy", "baseline", "--steps", "3", "--json")
    assert json.loads(printed)["steps"][2]["mode"] == "executed"


@pytest.mark.parametrize("options", [(), ("--verify",), ("--assume-constant",)])
def test_values_are_computed_again(options):
    lines = succeed(
        "run",
        MODEL,
        "--policy",
        "liveness+recompute:strategy=memory",
        "--machine",
        "h200",
        *options,
    ).splitlines()
    assert lines[2].startswith("step 2: executed")
    assert "operations run again" in lines[2]
    assert "operations run again" not in lines[1]


def test_what_cannot_be_run_is_refused_in_one_sentence():
    for steps in ("0", "2"):
        assert "run at least 3" in refuse("run", MODEL, "--policy", "liveness", "--steps", steps)
    log = "/no/such/folder/runs.jsonl"
    assert "there is no folder '/no/such/folder'" in refuse(
        "run", MODEL, "--policy", "liveness", "--log", log
    )
    assert "no policy" in refuse("run", MODEL, "--policy", "nonsense")
    assert "names no function" in refuse("run", "small_cnn", "--policy", "liveness")


def test_a_budget_that_is_too_small_is_told_with_operation_and_bytes():
    result = run("run", MODEL, "--policy", "liveness", "--machine", "h200", "--budget", "64KiB")
    assert result.exit_code == 2
    assert result.stdout.splitlines()[-1].startswith("step 1: recorded")
    (line,) = result.stderr.splitlines()
    assert "bytes more" in line
    assert "operation '" in line


SHORT = """
import torch
from superneurons.zoo import small_cnn

def build():
    step, done = small_cnn(batch=1, image=16, stages=1), []
    def run():
        done.append(step())
        if len(done) > {steps}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has")
    if {steps} < 0:
        run()
    return run
"""


@pytest.mark.parametrize(("steps", "when"), [(2, "in step 2"), (-1, "while it was built")])
def test_a_step_that_runs_out_of_memory_is_told_in_one_sentence(tmp_path, steps, when):
    model = tmp_path / "short.py"
    model.write_text(SHORT.format(steps=steps))
    result = run("run", f"{model}:build", "--policy", "liveness", "--budget", "1GiB")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"ran out of memory within 1,024.000 MiB {when}; give more" in line
    assert line.endswith("(torch: CUDA out of memory. Tried to allocate 2 MiB)")


@pytest.mark.parametrize("allocator", ["caching", "caching-expandable", "exact"])
def test_who_runs_out_of_memory_is_told_to_set_what_is_not_set(allocator):
    runs = SimpleNamespace(budget=None, backend=SimpleNamespace(allocator=allocator))
    with pytest.raises(DoesNotFit) as told, shortage_told("m", runs, 3):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has")
    sets = ", or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    assert str(told.value) == (
        "m ran out of memory in step 3; give more, or take a smaller batch"
        f"{sets if allocator == 'caching' else ''} "
        "(torch: CUDA out of memory. Tried to allocate 2 MiB)"
    )


@pytest.mark.parametrize(
    ("segments", "setting", "expected"),
    [
        ([], "", "caching"),
        ([], "expandable_segments:True", "caching-expandable"),
        ([{"is_expandable": False}], "expandable_segments:True", "caching"),
        ([{"is_expandable": True}], "", "caching-expandable"),
    ],
)
def test_how_the_allocator_is_set_shows_in_its_segments(monkeypatch, segments, setting, expected):
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", setting)
    assert CudaBackend.allocator.fget(None) == expected


def test_the_memory_of_one_more_step_is_drawn_beside_the_plan(tmp_path):
    pytest.importorskip("matplotlib")
    plot, log = tmp_path / "memory.png", tmp_path / "run.jsonl"
    succeed(
        "run", MODEL, "--policy", "liveness+offload:release=immediate", "--steps", "3",
        "--plot", str(plot), "--log", str(log),
    )  # fmt: skip
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(log.read_text())
    readings = found["readings"]
    assert len(readings) > 50
    assert all(found == planned for _, _, planned, found in readings)
    assert len({planned for _, _, planned, _ in readings}) > 20  # and not all of nothing
    assert len(found["steps"]) == 3


def test_a_recording_lends_its_times():
    args = ("run", MODEL, "--policy", "liveness", "--steps", "3", "--machine", "h200")
    assert "predicted by the machine's roofline" in succeed(*args)
    lines = succeed(*args, "--times", "resnet50-b128")
    assert "is not this step" in lines
    assert "roofline of h200 stands for its times" in lines
