"""How true a recording is: record the zoo on this GPU, replay each trace, and compare with torch.

    python bench/truth.py recordings/ [MODEL ...] >> truth.jsonl

For each model, at the batch of the zoo and at half of it: requested bytes at every place where a
saved-tensor hook fires in a run of its own, peaks, reserved bytes and step times, beside those of
the trace under `liveness`. One line of JSON each.
"""

import gc
import json
import sys
import time
import traceback
from pathlib import Path
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
from superneurons.traces import Trace, write_trace

MODELS = {
    "resnet50": (zoo.resnet50, 128),
    "gpt": (zoo.gpt, 8),
    "bert": (zoo.bert, 32),
    "vit": (zoo.vit, 64),
    "convnext": (zoo.convnext, 64),
    "unet": (zoo.unet, 8),
    "densenet121": (zoo.densenet121, 64),
    "lstm": (zoo.lstm, 64),
    "small_cnn": (zoo.small_cnn, 4),
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name in sys.argv[2:] or MODELS:
        maker, batch = MODELS[name]
        measured: dict[int, Trace] = {}
        for size in (batch, batch // 2):
            line: dict[str, Any] = {"model": name, "batch": size}
            step = None
            try:
                with torch.device("cuda"):
                    step = maker(batch=size)
                measured[size], found = truth(step, f"{name}-b{size}", folder)
                line |= found
                if size != batch and batch in measured:
                    line["carried_step_ns"] = carried(measured[batch], measured[size])
            except Exception as error:  # one model must not cost the others
                traceback.print_exc()
                line["error"] = str(error)
            print(json.dumps(line), flush=True)
            del step
            gc.collect()  # a model and its recorder hold one another
            torch.cuda.empty_cache()


def truth(step: Any, name: str, folder: Path) -> tuple[Trace, dict[str, Any]]:
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    recorder = Recorder(name)
    while not recorder.done:
        with recorder.step():
            step()
    trace = recorder.trace()
    recording_s = time.perf_counter() - began
    write_trace(trace, folder / f"{name}.json.gz")
    places = debug_run(step, recorder)
    line: dict[str, Any] = {
        "ops": len(trace.operations),
        "recording_s": round(recording_s, 2),
        "logged_step_s": recorder.logged_s,
        "measured": msgspec.to_builtins(recorder.measured[-1]),
        "step_ns": int(trace.notes["step_time_ns"]),
        "host_ns": trace.notes["host_time_ns"],
        "notes": {k: v for k, v in trace.notes.items() if "times" in k or "spread" in k},
    }
    line |= compare_places(trace, places)
    for allocator in ("exact", "caching"):
        machine = find_machine(f"h200:allocator={allocator}")
        report = play(trace, decide(find_policy("liveness"), trace, machine, None), machine)
        line[allocator] = {
            "device_peak": report.device_peak_bytes,
            "allocated_peak": report.allocated_peak_bytes,
            "reserved_peak": report.reserved_peak_bytes,
            "step_ns": report.step_time_ns,
        }
    return trace, line


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


def carried(measured: Trace, half: Trace) -> Any:
    machine = find_machine("h200")
    try:
        trace = carry_times(measured, half, machine)
    except Exception as error:
        return str(error)
    return play(trace, decide(find_policy("liveness"), trace, machine, None), machine).step_time_ns


if __name__ == "__main__":
    main()
