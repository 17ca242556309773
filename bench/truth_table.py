"""The tables of docs/recordings.md, from what `bench/truth.py` wrote and what is shipped.

python bench/truth_table.py bench/results/truth-h200.jsonl
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace

MACHINE = find_machine("h200")


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print("\n".join(bytes_table([line for line in lines if "hooks" in line])), end="\n\n")
    print("\n".join(times_table(lines)), end="\n\n")
    models = {line["model"]: line["batch"] for line in lines if "plain_step_ns" in line}
    print("\n".join(estimates_table(models)))


def share(ours: float, theirs: float) -> str:
    return f"{(ours / theirs - 1) * 100:+.2f} %"


def ms(ns: float) -> str:
    return f"{ns / 1e6:,.2f}"


def bytes_table(lines: list[dict[str, Any]]) -> list[str]:
    """Bytes: requested at hooks and at most, allocated and reserved beside torch's peaks."""
    rows = [
        "| model | hooks, equal | requested peak | trace | `max_memory_allocated` | simulated "
        "| `max_memory_reserved` | simulated |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        _, _, requested, allocated, reserved = line["measured"]
        model = "caching" if "caching" in line else "caching-expandable"
        equal = line["equal"] + line["before_frees"]
        rows.append(
            f"| {line['model']}, batch {line['batch']} | {line['hooks']:,}, "
            f"{'all' if equal == line['hooks'] else equal} "
            f"| {requested:,} | {line['exact']['device_peak'] - requested:+,} "
            f"| {allocated:,} | {share(line[model]['allocated_peak'], allocated)} "
            f"| {reserved:,} | {share(line[model]['reserved_peak'], reserved)} |"
        )
    return rows


def times_table(lines: list[dict[str, Any]]) -> list[str]:
    """Step times in ms: of the recording's own process, then of one that also timed half of it."""
    recorded = {(line["model"], line["batch"]): line for line in lines if "hooks" in line}
    rows = [
        "| model | step | spread | simulated | | again | simulated | | half the batch "
        "| carried over | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        if "plain_step_ns" not in line:
            continue
        full = recorded[line["model"], line["batch"]]
        step, simulated = int(full["notes"]["step_time_ns"]), full["exact"]["step_ns"]
        spread = re.findall(r"\d+", full["notes"]["step_time_spread"])
        again, of_again = line["plain_step_ns"], line["simulated_step_ns"]
        half, carried = line["half_plain_step_ns"], line["half_carried_step_ns"]
        rows.append(
            f"| {line['model']}, batch {line['batch']} | {ms(step)} "
            f"| {ms(int(spread[0]))} to {ms(int(spread[1]))} | {ms(simulated)} "
            f"| {share(simulated, step)} | {ms(again)} | {ms(of_again)} | {share(of_again, again)} "
            f"| {ms(half)} | {ms(carried)} | {share(carried, half)} |"
        )
    return rows


def estimates_table(models: dict[str, int]) -> list[str]:
    """The estimates that are shipped beside the recordings."""
    rows = [
        "| model | operations, estimated | recorded | peak, estimated | recorded | "
        "| step in ms, roofline | recorded | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, batch in models.items():
        name = f"{model.replace('_', '-')}-b{batch}"
        ours, theirs = (
            simulate(find_trace(each), find_policy("liveness"), MACHINE)
            for each in (f"{name}-estimate", name)
        )
        peaks = ours.device_peak_bytes, theirs.device_peak_bytes
        times = ours.step_time_ns, theirs.step_time_ns
        rows.append(
            f"| {model}, batch {batch} | {ours.ops:,} | {theirs.ops:,} "
            f"| {peaks[0]:,} | {peaks[1]:,} | {share(*peaks)} "
            f"| {ms(times[0])} | {ms(times[1])} | {share(*times)} |"
        )
    return rows


if __name__ == "__main__":
    main()
