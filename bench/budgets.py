"""Do budgets hold? Steps under `torch.cuda.set_per_process_memory_fraction`, accepted or refused.

    python bench/budgets.py [JOBS] >> budgets.jsonl

Each case has a process of its own, JOBS at a time (nothing is timed): a model is trained by a
policy in a budget that torch's allocator enforces, with its default segments and with expandable
ones. A step that is accepted and runs out of memory is a failure. So is one that is refused and
would have run: what is refused is run all the same, by the schedule that the policy makes.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any
from unittest.mock import patch

import torch

import superneurons.executor.course as course
import superneurons.zoo as zoo
from superneurons.errors import DoesNotFit
from superneurons.executor import Executor
from superneurons.notation import parse_bytes
from superneurons.policies import decide
from superneurons.policies.reserve import Reserved

OFFLOAD = "liveness+offload:release=pressure,lookahead=20"
CASES = [
    ("resnet50", 128, "12GiB", "liveness"),
    *(("resnet50", 128, budget, "liveness+cache") for budget in ("10GiB", "8GiB", "6GiB")),
    ("unet", 8, "12GiB", "liveness"),
    *(("unet", 8, budget, "liveness+cache") for budget in ("12GiB", "9GiB", "7GiB")),
    ("unet", 8, "12GiB", OFFLOAD),
    ("densenet121", 64, "8GiB", "liveness+cache"),
    ("bert", 32, "12GiB", "liveness"),
    ("bert", 32, "4GiB", "liveness+cache"),
]
SEGMENTS = {"default": "", "expandable": "expandable_segments:True"}
STEPS = 5


def main() -> None:
    if len(sys.argv) > 2:
        model, batch, budget, policy = sys.argv[1:]
        print(json.dumps(case(model, int(batch), budget, policy)), flush=True)
        return
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    calls = [(segments, each) for each in CASES for segments in SEGMENTS]
    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(lambda call: in_a_process(*call), calls):
            print(json.dumps(line), flush=True)


def in_a_process(segments: str, what: tuple[str, int, str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, what)]
    env = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": SEGMENTS[segments]}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        found = dict(zip(("model", "batch", "budget", "policy"), what, strict=True))
        found["outcome"] = f"failed: {done.stderr[-300:]}"
    return found | {"segments": segments}


def case(model: str, batch: int, budget: str, policy: str) -> dict[str, Any]:
    """Run one case in this process; *outcome* says how it ended."""
    nbytes = parse_bytes(budget)
    cuda = torch.cuda.is_available()
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(nbytes / total)
    line: dict[str, Any] = {
        "model": model,
        "batch": batch,
        "policy": policy,
        "budget": nbytes,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if cuda else "none",
    }
    with torch.device("cuda" if cuda else "cpu"):
        step = getattr(zoo, model)(batch=batch)
    runs = Executor(policy, budget, "h200", device="cuda" if cuda else "cpu")
    try:
        for _ in range(STEPS):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            with runs.step():
                step()
    except DoesNotFit as error:
        with (
            patch.object(course, "decide_reserved", unjudged),
            patch.object(course, "_refuse_short", lambda *_: None),
        ):
            ran = goes_on(runs, step)
        return line | {
            "outcome": "FAILURE: refused, and ran" if ran else "refused, rightly",
            "told": str(error),
        } | measured(runs)  # fmt: skip
    except torch.OutOfMemoryError as error:
        accepted = bool(runs.plans)
        outcome = "FAILURE: accepted, and ran out" if accepted else "out of memory in safe mode"
        return line | {"outcome": outcome, "told": str(error)[:200]} | measured(runs)
    return line | {"outcome": "accepted, and ran"} | measured(runs)


def unjudged(policy: Any, trace: Any, machine: Any, budget: int | None, *_: Any) -> Any:
    """Return the policy's schedule, however much it takes."""
    try:
        return Reserved(*decide(policy, trace, machine, budget), trace)
    except DoesNotFit:
        return Reserved(*decide(policy, trace, machine, None), trace)


def goes_on(runs: Executor, step: Any) -> bool:
    """Whether three steps run by a schedule that was refused."""
    try:
        for _ in range(3):
            with runs.step():
                step()
    except torch.OutOfMemoryError:
        return False
    return runs.report is not None and runs.report.mode == "executed"


def measured(runs: Executor) -> dict[str, Any]:
    stats = torch.cuda.memory_stats() if torch.cuda.is_available() else {}
    plan = runs.plans[0] if runs.plans else None
    return {
        "planned_peak": plan.ledger.device_peak_nbytes if plan else None,
        "requested_peak": stats.get("requested_bytes.all.peak"),
        "reserved_peak": stats.get("reserved_bytes.all.peak"),
        "retries": stats.get("num_alloc_retries"),
        "copied": runs.report.copied_out_nbytes if runs.report else 0,
        "notices": runs.notices,
    }


if __name__ == "__main__":
    main()
