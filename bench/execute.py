"""What executed schedules cost and take on this GPU, beside plain PyTorch and the ledger.

    python bench/execute.py bitwise >> execute.jsonl
    python bench/execute.py MODEL BATCH [POLICY ...] >> execute.jsonl

`bitwise` trains small networks of the zoo by several policies with deterministic algorithms, and
compares all that training changes with plain training, bit by bit. A model is timed plain and by
each policy, in one process; bytes are those requested, at most and (in a watched step) before each
operation. A policy that sends to the peer has the next GPU for it.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from typing import Any

import msgspec
import torch
from frontier import executor_of, make
from timing import timed

import superneurons.zoo as zoo
from superneurons.executor import Executor
from superneurons.executor.run import taken_by
from superneurons.sim import simulate_schedule
from superneurons.traces import find_trace, shipped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL: dict[str, dict[str, int]] = {
    "small_cnn": {"batch": 4},
    "resnet50": {"batch": 4, "image": 64},
    "densenet121": {"batch": 2, "image": 64},
    "unet": {"batch": 1, "size": 64},
    "bert": {"batch": 2, "length": 32, "layers": 2},
    "vit": {"batch": 2, "layers": 2},
    "convnext": {"batch": 2, "image": 64},
    "lstm": {"batch": 4, "length": 8, "hidden": 64, "vocabulary": 100},
    "gpt": {"batch": 1, "length": 64, "layers": 2, "width": 128, "heads": 4, "vocabulary": 100},
}
ALL = "conv/matmul/attention/norm/activation/dropout/add/elementwise/pool/embedding/concat/loss"
BITWISE = ("baseline", "liveness", f"liveness+offload:release=immediate,kinds={ALL}")
POLICIES = (
    "liveness",
    "baseline",
    "liveness+offload:release=immediate",
    "liveness+offload",
    "liveness+offload:release=pressure@0.7",
    "liveness+cache@0.5",  # of the plain peak
)
STEPS = 4
SECONDS = 12.0  # of each method, at most, if its host is slow
REPEATS = 20  # steps by a schedule whose peaks are compared, however long they take


def main() -> None:
    what, *rest = sys.argv[1:]
    lines = bitwise() if what == "bitwise" else measure(what, int(rest[0]), rest[1:] or POLICIES)
    about = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else "none",
    }
    for line in lines:
        print(json.dumps(line | about), flush=True)


# -- bit for bit -----------------------------------------------------------------------------------


def bitwise() -> Iterator[dict[str, Any]]:
    """Yield for each network and policy whether training is that of plain PyTorch."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # plain is compared with itself, too
    torch.backends.cudnn.benchmark = False
    for name, sizes in SMALL.items():
        control = trained(name, sizes, None)
        again = trained(name, sizes, None)
        line: dict[str, Any] = {"model": name, "sizes": sizes}
        yield line | {"policy": "plain again", "differ": different(control, again)}
        for policy in BITWISE:
            try:
                executor = Executor(policy, device=DEVICE, audit=True)
                found = trained(name, sizes, executor)
                yield (
                    line | {"policy": policy, "differ": different(control, found)} | told(executor)
                )
            except Exception as error:  # one must not cost the others
                yield line | {"policy": policy, "error": f"{type(error).__name__}: {error}"}


def trained(name: str, sizes: dict[str, int], executor: Executor | None) -> dict[str, Any]:
    """Train for some steps, plain or by an executor; return all that training changed."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        step = getattr(zoo, name)(**sizes)
    torch.manual_seed(1)
    for _ in range(STEPS):
        run(step, executor)
    found = dict(step.model.state_dict())
    found |= {f"{n}.grad": p.grad for n, p in step.model.named_parameters()}
    for number, state in step.optimizer.state_dict()["state"].items():
        found |= {f"{number}.{key}": value for key, value in state.items()}
    if DEVICE == "cuda":
        found["random"] = torch.cuda.get_rng_state()
    return {
        key: value.clone() if hasattr(value, "clone") else value for key, value in found.items()
    }


def different(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return [key for key in ours if not same(ours[key], theirs.get(key))][:5]


def told(executor: Executor) -> dict[str, Any]:
    report = executor.report
    assert report is not None
    return {
        "mode": report.mode,
        "why": report.why,
        "places": len(executor.readings),
        "differences": [list(each) for each in executor.differences[:5]],
        "different_places": len(executor.differences),
        "copied_out": report.copied_out_nbytes,
        "copied_in": report.copied_in_nbytes,
        "late": report.late_fetches,
        "not_freed": report.not_freed_nbytes,
        "notices": executor.notices,
    }


# -- times and bytes -------------------------------------------------------------------------------


def measure(name: str, batch: int, policies: Any) -> Iterator[dict[str, Any]]:
    """Yield a line for plain steps, and one for each policy."""
    step = make(name, batch=batch)
    plain = timed(step, time.perf_counter() + SECONDS, 3)
    yield {"model": name, "batch": batch, "policy": "plain"} | plain
    with torch.autograd.set_multithreading_enabled(False):
        one_thread = timed(step, time.perf_counter() + SECONDS, 1)
    slower = round(one_thread["step_ns"] / plain["step_ns"] - 1, 4)
    yield (
        {"model": name, "batch": batch, "policy": "plain, one thread"}
        | one_thread
        | {"slower": slower}
    )
    recording = f"{name.replace('_', '-')}-b{batch}"
    times = find_trace(recording) if recording in shipped() else None
    for each in policies:
        policy, _, share = each.partition("@")
        budget = int(plain["requested_peak"] * float(share)) if share else None
        line: dict[str, Any] = {"model": name, "batch": batch, "policy": each, "budget": budget}
        try:
            executor = executor_of(policy, budget, times)
            again = partial(run, step, executor)  # two are recorded, and two warm up
            found = timed(again, time.perf_counter() + SECONDS, 4, REPEATS)
            line |= found | {"slower": round(found["step_ns"] / plain["step_ns"] - 1, 4)}
            line |= predicted(executor) | rates(executor, step)
            executor.audit = True
            run(step, executor)
            line |= told(executor)
            yield line
        except Exception as error:
            yield line | {"error": f"{type(error).__name__}: {error}"}
        executor = None  # type: ignore[assignment]
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def predicted(executor: Executor) -> dict[str, Any]:
    """Return what the schedule should cost: of its own trace, with the recording's times."""
    plan = executor.plans[0]
    machine = msgspec.structs.replace(executor.machine, allocator=executor.backend.allocator)
    report = simulate_schedule(plan.proved, plan.schedule, machine)
    taken = taken_by(plan, report)
    return {
        "predicted_peak": report.device_peak_bytes,
        "predicted_allocated": taken.allocated_nbytes,
        "predicted_reserved": taken.reserved_nbytes,
        "predicted_step_ns": report.step_time_ns,
        "predicted_stall_ns": report.stall_ns,
        "times": plan.trace.times,
        "machine": executor.machine.name,
    }


def rates(executor: Executor, step: Callable[[], object]) -> dict[str, Any]:
    """Return what copies took in one more step, in which they are timed."""
    executor.backend.timing = True
    run(step, executor)
    executor.backend.timing = False
    report = executor.report
    assert report is not None
    to = max(executor.slabs, key=lambda tier: executor.slabs[tier].peak_nbytes)
    tier = next(each.link for each in executor.machine.tiers if each.name == to)
    return {
        "stall_ns": report.stall_ns,
        "out_ns": report.out_ns,
        "in_ns": report.in_ns,
        "copies": report.done.get("copy", 0),
        "tier": to,
        "link": [tier.out_bytes_per_s, tier.in_bytes_per_s],
    }


def run(step: Callable[[], object], executor: Executor | None) -> None:
    if executor is None:
        step()
        return
    with executor.step():
        step()


if __name__ == "__main__":
    main()
