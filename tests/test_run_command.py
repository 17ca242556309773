"""`superneurons run`: a user's step under a policy, from the shell."""

import json

import pytest

pytest.importorskip("torch")

from commandline import refuse, run, succeed

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
    assert "run at least 3" in refuse("run", MODEL, "--policy", "liveness", "--steps", "0")
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
