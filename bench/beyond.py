"""Beyond the card: the deepest and the widest network that trains in 12 GiB.

    python bench/beyond.py run resnet DEPTH [POLICY] >> beyond.jsonl
    python bench/beyond.py run resnet50 BATCH [POLICY] >> beyond.jsonl
    python bench/beyond.py record resnet DEPTH FILE.json.gz
    python bench/beyond.py find resnet [POLICY] [--recording FILE.json.gz|NAME]

`resnet` is resnet(6, 32, n3, 6) at batch 16 with plain SGD, its size DEPTH in layers; `resnet50` is
the zoo's, its size the batch. `run` trains one on a GPU that is capped with
`set_per_process_memory_fraction`, and prints a line: it fits, or why it does not. POLICY may also
be a method of `bench/frontier.py`. Segments are expandable unless PYTORCH_CUDA_ALLOC_CONF says
otherwise.

`find` needs no GPU: it estimates candidates, gives their operations the times and workspaces of a
recorded smaller one, and bisects. `record` makes such a recording. Without one times are those of
the roofline, and there are no workspaces.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import msgspec
import torch
from carried import carried
from frontier import (
    CUDA,
    DEVICE,
    RIVALS,
    WARM,
    blocks_of,
    pinned_nbytes,
    predicted,
    rival,
    timed,
    without_states,
)

import superneurons.zoo as zoo
from superneurons.errors import DoesNotFit
from superneurons.executor import Executor, Recorder, estimate
from superneurons.machines import Machine, find_machine
from superneurons.notation import parse_bytes
from superneurons.policies import Decision, find_policy
from superneurons.policies.reserve import decide_reserved
from superneurons.sim import play
from superneurons.traces import Trace, find_trace, write_trace
from superneurons.zoo.step import Step

# What a block ends with leaves, and all between runs again: a third of the copies, and two thirds
# of the bytes, that leave where each normalization's result goes, and each costs the host's time.
KINDS = "pool/add/loss"
POLICY = f"liveness+offload:kinds={KINDS},least=1MiB+recompute:kinds={KINDS},strategy=speed"
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("command", choices=("run", "record", "find"))
    parser.add_argument("model", choices=("resnet", "resnet50"))
    parser.add_argument("rest", nargs="*", metavar="SIZE POLICY")
    parser.add_argument("--memory", default="12GiB", help="what the card is to have")
    parser.add_argument("--budget", help="what the policy is given of it; all of it")
    parser.add_argument("--host-memory", default="100GiB")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--recording", help="a file, or what is shipped: resnet50-b128")
    parser.add_argument("--launch", default="36us", help="of the host, where nothing is recorded")
    parser.add_argument("--small", action="store_true", help="of few channels, to try it out")
    parser.add_argument("--within", type=int, default=1, help="blocks, or images")
    asked = parser.parse_intermixed_args()
    if asked.command == "find":
        found = find(asked, asked.rest[0] if asked.rest else POLICY)
        print(json.dumps(found), flush=True)
        return
    size = int(asked.rest[0])
    if asked.command == "record":
        record(asked.model, size, Path(asked.rest[1]))
        return
    policy = asked.rest[1] if len(asked.rest) > 1 else POLICY
    line = {"model": asked.model, "method": policy} | sizes(asked.model, size)
    began = time.perf_counter()
    try:
        line |= run(asked, size, policy) | {"fits": True}
    except Exception as error:  # the refusal is the result
        line |= {"fits": False, "error": f"{type(error).__name__}: {error}"[:1000]}
    if CUDA:
        stats = torch.cuda.memory_stats()
        line |= {
            "num_alloc_retries": stats["num_alloc_retries"],
            "all_reserved_peak": stats["reserved_bytes.all.peak"],
            "gpu": torch.cuda.get_device_name(),
        }
    line |= {
        "seconds": round(time.perf_counter() - began, 1),
        "memory": asked.memory,
        "allocator": os.environ["PYTORCH_CUDA_ALLOC_CONF"],
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(line), flush=True)


def sizes(model: str, size: int) -> dict[str, int]:
    if model == "resnet50":
        return {"depth": 50, "batch": size}
    return {"depth": 3 * (44 + blocks_of(size)) + 2, "batch": BATCH}


def build(model: str, size: int, **smaller: int) -> Step:
    """Build it on the default device."""
    if model == "resnet50":
        return zoo.resnet50(size, **smaller)
    # States as large as the parameters would halve the depth.
    return without_states(zoo.resnet(6, 32, blocks_of(size), 6, BATCH, **smaller))


# -- on a GPU --------------------------------------------------------------------------------------


def run(asked: Any, size: int, policy: str) -> dict[str, Any]:
    """Train some steps in the given memory; return what they take."""
    memory = parse_bytes(asked.memory)
    if CUDA:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory / total)
    deadline = time.perf_counter() + asked.seconds
    with torch.device(DEVICE):
        step = build(asked.model, size, **({"image": 32, "width": 4} if asked.small else {}))
    if policy in (*RIVALS, "plain"):
        return timed(rival(policy, step), deadline, WARM) | {"pinned_nbytes": pinned_nbytes()}
    executor = Executor(
        policy, budget=asked.budget or asked.memory, device=DEVICE, host_memory=asked.host_memory
    )

    def once() -> None:
        begin = time.perf_counter()
        with executor.step():
            step()
        if executor.steps <= 3:
            print(f"step {executor.steps}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)

    found = timed(once, deadline, 3)
    report = executor.report
    assert report is not None
    slabs = executor.slabs["host"]
    found |= {
        "mode": report.mode,
        "why": report.why,
        "copied_out": report.copied_out_nbytes,
        "copied_in": report.copied_in_nbytes,
        "late": report.late_fetches,
        "stall_ns": report.stall_ns,
        "pinned_nbytes": slabs.held_nbytes,
        "pinned_used_nbytes": slabs.peak_nbytes,
        "notices": executor.notices,
    }
    return found | ({"predicted": predicted(executor, "resnet50-b128")} if executor.plans else {})


def record(model: str, size: int, path: Path) -> None:
    """Record one that fits, for `find`."""
    with torch.device(DEVICE):
        step = build(model, size)
    recorder = Recorder(f"{model}-{size}")
    while not recorder.done:
        with recorder.step():
            step()
    write_trace(recorder.trace(), path)


# -- without one -----------------------------------------------------------------------------------


def find(asked: Any, policy: str) -> dict[str, Any]:
    """Return the largest size that fits by the simulator, by bisection of estimates.

    That what fits at some size fits at all smaller ones is taken for granted. The first guess is
    where what no policy can avoid reaches the limit, by two small estimates: it is linear in size.
    """
    memory = asked.budget or asked.memory
    machine = find_machine(
        f"h200:device_memory={memory},launch_time={asked.launch},host_memory={asked.host_memory}"
    )
    recording = None if asked.recording is None else find_trace(asked.recording)
    limit, unit = machine.device_nbytes, 3 if asked.model == "resnet" else 1

    def size_of(number: int) -> int:  # of blocks beyond the other 44, or of images
        return 3 * (44 + number) + 2 if unit == 3 else number

    def attempt(number: int) -> _Trial:
        trial = _attempt(asked.model, size_of(number), policy, machine, recording)
        print(f"{asked.model} {size_of(number)}: {trial.why}", file=sys.stderr, flush=True)
        return trial

    a, b = 16, 32
    floors = [structure(asked.model, size_of(n)).facts.floor_nbytes for n in (a, b)]
    high = a + (limit - floors[0]) * (b - a) // max(1, floors[1] - floors[0]) + 1
    low, best = 0, None
    number = low + (high - low) * 15 // 16
    while high - low > asked.within:
        trial = attempt(number)
        if trial.fits:
            low, best = number, trial
        else:
            high = number
        number = (low + high) // 2 if best else low + (high - low) * 3 // 4
    return {
        "model": asked.model,
        "method": policy,
        "memory": memory,
        "largest": size_of(low) if best else None,
        "too_large": size_of(high),
        "times": "roofline" if recording is None else recording.name,
        **(best.found if best else {}),
    }


class _Trial(NamedTuple):
    fits: bool
    why: str
    found: dict[str, Any]


def _attempt(
    model: str, size: int, policy: str, machine: Machine, recording: Trace | None
) -> _Trial:
    begin = time.perf_counter()
    trace = structure(model, size)
    if recording is not None:
        trace = carried(recording, trace, machine)
    middle = time.perf_counter()
    try:
        # As the executor does: the policy is asked again with less until torch's allocator serves.
        decision = decide_reserved(
            find_policy(policy), trace, machine, machine.device_nbytes, "caching-expandable"
        )
    except DoesNotFit as error:
        return _Trial(False, str(error), {})
    expandable = msgspec.structs.replace(machine, allocator="caching-expandable")
    report = play(trace, Decision(decision.schedule, decision.ledger), expandable)
    found = {
        "step_ns": report.step_time_ns,
        "requested_peak": report.device_peak_bytes,
        "reserved_peak": report.reserved_peak_bytes,
        "host_nbytes": report.tier_peak_bytes.get("host", 0),
        "copied_out": report.copied_out_bytes,
        "copied_in": report.copied_in_bytes,
        "replays": report.recomputed_ops,
        "stall_ns": report.stall_ns,
        "estimate_s": round(middle - begin, 1),
        "decide_s": round(time.perf_counter() - middle, 1),
    }
    fits = not decision.schedule.short_nbytes
    told = f"{found['step_ns'] / 1e6:,.0f} ms, {found['reserved_peak'] / 2**30:.2f} GiB reserved"
    return _Trial(fits, f"fits: {told}" if fits else report.why, found)


def structure(model: str, size: int) -> Trace:
    """Return the step as estimated: no memory is needed for it, nor a GPU."""
    try:
        return estimate(partial(build, model, size), f"{model}-{size}")
    finally:
        gc.collect()


if __name__ == "__main__":
    main()
