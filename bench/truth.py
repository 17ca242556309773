"""How true a recording is: record the zoo on this GPU, replay each trace, and compare with torch.

    python bench/truth.py recordings/ [MODEL ...] >> truth.jsonl

For each model one line of JSON at the batch of the zoo and one at half of it: requested bytes at
every place where a saved-tensor hook fires in a run of its own, peaks, reserved bytes and step
times, beside those of the trace under `liveness`. A third line has the time of half the batch,
not recorded, beside what the recording's times make of it. Each line comes from a process of its
own: what a profiler leaves behind makes every later launch slower.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch

import superneurons.zoo as zoo
from superneurons.executor import Recorder
from superneurons.executor.meter import requested
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.schedules import Free, Run
from superneurons.sim import carry_times, play
from superneurons.traces import Trace, read_trace, write_trace

BATCHES = {
    "resnet50": 128,
    "gpt": 8,
    "bert": 32,
    "vit": 64,
    "convnext": 64,
    "unet": 8,
    "densenet121": 64,
    "lstm": 64,
    "small_cnn": 4,
}


def main() -> None:
    folder, *rest = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    if rest and rest[0] in COMMANDS:
        command, name, batch = rest
        line = {"model": name, "batch": int(batch)}
        line |= COMMANDS[command](name, int(batch), Path(folder))
        print(json.dumps(line), flush=True)
        return
    for name in rest or BATCHES:
        batch = BATCHES[name]
        for command, size in (("record", batch), ("record", batch // 2), ("carry", batch)):
            call = [sys.executable, __file__, folder, command, name, str(size)]
            subprocess.run(call, check=False)  # one model must not cost the others


def make(name: str, batch: int) -> Any:
    with torch.device("cuda"):
        return getattr(zoo, name)(batch=batch)


def trace_name(name: str, batch: int) -> str:
    return f"{name.replace('_', '-')}-b{batch}"


def carry(name: str, batch: int, folder: Path) -> dict[str, Any]:
    """Time a step of both batches, record the larger, and carry its times over to the other."""
    half = batch // 2
    small, large = make(name, half), make(name, batch)
    # In turns, and the recording right after: a host's speed changes within seconds.
    times = [(usual_ns(large), usual_ns(small)) for _ in range(2)]
    plain = {
        size: round(median(each))
        for size, each in zip((batch, half), zip(*times, strict=True), strict=True)
    }
    del small
    recorder = Recorder(name)
    while not recorder.done:
        with recorder.step():
            large()
    trace = recorder.trace()
    carried = carry_times(trace, read_trace(folder / f"{trace_name(name, half)}.json.gz"), H200)
    return {
        "plain_step_ns": plain[batch],
        "simulated_step_ns": simulated(trace).step_time_ns,
        "half_plain_step_ns": plain[half],
        "half_carried_step_ns": simulated(carried).step_time_ns,
    }


def usual_ns(step: Any) -> int:
    """Return the median time of a step, from an idle GPU to an idle GPU, once it has settled."""
    times: list[int] = []
    began = time.perf_counter_ns()
    while time.perf_counter_ns() - began < 1_000_000_000 or len(times) < 10:
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter_ns() - begin)
    return round(median(times[len(times) // 3 :]))


H200 = find_machine("h200")


def simulated(trace: Trace, machine: Any = H200) -> Any:
    return play(trace, decide(find_policy("liveness"), trace, machine, None), machine)


def record(name: str, batch: int, folder: Path) -> dict[str, Any]:
    """Record a model and compare the trace with torch's own account."""
    step = make(name, batch)
    recorder = Recorder(trace_name(name, batch))
    began = time.perf_counter()
    steps = 0
    while not recorder.done:
        with recorder.step():
            step()
        steps += 1
    trace = recorder.trace()
    recording_s = time.perf_counter() - began
    write_trace(trace, folder / f"{trace.name}.json.gz")
    places = debug_run(step, recorder)
    line: dict[str, Any] = {
        "ops": len(trace.operations),
        "steps": steps,
        "recording_s": round(recording_s, 2),
        "logged_step_s": round(recorder.logged_s, 4),
        "measured": msgspec.to_builtins(recorder.measured[-1]),
        "notes": trace.notes,
    }
    line |= compare_places(trace, places)
    for allocator in ("exact", torch_allocator()):
        report = simulated(trace, find_machine(f"h200:allocator={allocator}"))
        line[allocator] = {
            "device_peak": report.device_peak_bytes,
            "allocated_peak": report.allocated_peak_bytes,
            "reserved_peak": report.reserved_peak_bytes,
            "step_ns": report.step_time_ns,
        }
    return line


def torch_allocator() -> str:
    """Return which of our models stands for the allocator that this process runs with."""
    segments = torch.cuda.memory_snapshot()
    return "caching-expandable" if segments[0].get("is_expandable") else "caching"


def debug_run(step: Any, recorder: Recorder) -> list[tuple[int, str, int]]:
    """Run a step with hooks that only look; return place, kind of hook and requested bytes."""
    device = recorder.device
    kept, start = recorder._step.kept, recorder._step.start
    found: list[tuple[int, str, int]] = []
    count = 0

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal count
        bytes_now = requested(device)["current"]
        if tensor.device == device:
            found.append((kept[count].packed - start, "pack", bytes_now))
            count += 1
            return tensor.detach(), count - 1
        return tensor.detach(), -1

    def unpack(handle: Any) -> torch.Tensor:
        tensor, number = handle
        if number >= 0:
            place = kept[number].unpacked - start
            found.append((place, "unpack", requested(device)["current"]))
        return tensor

    one_thread = torch.autograd.set_multithreading_enabled(False)
    with one_thread, torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step()
    return found


def compare_places(trace: Trace, places: list[tuple[int, str, int]]) -> dict[str, Any]:
    """Compare with the ledger's bytes at each place; between a result and what dies at its place
    a hook may fire in between, so both are accepted and told apart."""
    facts = trace.facts
    machine = find_machine("h200")
    schedule = decide(find_policy("liveness"), trace, machine, None).schedule
    now = facts.start_nbytes
    before = {0: now}
    after: dict[int, int] = {0: now}
    place = 0
    for each in schedule.instructions:
        if isinstance(each, Run):
            now += sum(facts.nbytes[s] for s in facts.fresh[each.op])
            place = each.op + 1
            before[place] = now
        elif isinstance(each, Free):
            now -= facts.nbytes[each.storage]
        after[place] = now
    exact = [bytes_now == after[p] for p, _, bytes_now in places]
    between = [after[p] < bytes_now <= before[p] for p, _, bytes_now in places]
    wrong = [
        (p, trace.operations[min(p, len(trace.operations) - 1)].name, kind, bytes_now - after[p])
        for (p, kind, bytes_now), same, near in zip(places, exact, between, strict=True)
        if not same and not near
    ]
    return {
        "hooks": len(places),
        "equal": sum(exact),
        "before_frees": sum(between),
        "wrong": len(wrong),
        "worst": sorted(wrong, key=lambda each: -abs(each[3]))[:5],
    }


COMMANDS = {"record": record, "carry": carry}

if __name__ == "__main__":
    main()
