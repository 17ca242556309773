"""The table of docs/executor.md: what `bench/execute.py` measured beside what is simulated.

    python bench/execute_table.py bench/results/execute-h200.jsonl

Planned is the schedule that ran. Simulated is the shipped recording of the same model on `h200`,
under the same policy and budget; nothing, where that gives another schedule than the one that ran,
for it depends on the links as they were measured, or on what torch's allocator left of the budget.
ALL stands for all kinds of operations.
"""

import json
import sys
from pathlib import Path
from typing import Any

from frontier_table import EVERYTHING

from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace, shipped

MACHINE = find_machine("h200")


def main() -> None:
    print(
        "| model | policy | requested peak, measured | planned | ms, measured | beside plain | "
        "simulated | | places, equal |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for text in Path(sys.argv[1]).read_text().splitlines():
        line = json.loads(text)
        if "places" in line:
            print(row(line))


def row(line: dict[str, Any]) -> str:
    policy, _, share = line["policy"].partition("@")
    budget = f", {float(share):.0%} of the plain peak" if share else ""
    measured, peak = line["step_ns"], line["requested_peak"]
    equal = line["places"] - line["different_places"]
    time = time_off = ""
    shown = policy.replace(EVERYTHING, "ALL")
    name = f"{line['model'].replace('_', '-')}-b{line['batch']}"
    if name in shipped():
        report = simulate(find_trace(name), find_policy(policy), MACHINE, line["budget"])
        if report.device_peak_bytes == line["predicted_peak"]:  # else it is another schedule
            time = f"{report.step_time_ns / 1e6:,.1f}"
            time_off = f"{(report.step_time_ns / measured - 1) * 100:+.1f} %"
    return (
        f"| {line['model']}, batch {line['batch']} | `{shown}`{budget} | {peak:,} "
        f"| {line['predicted_peak'] - peak:+,} | {measured / 1e6:,.1f} "
        f"| {line['slower'] * 100:+.1f} % | {time} | {time_off} "
        f"| {line['places']:,}, {'all' if equal == line['places'] else equal} |"
    )


if __name__ == "__main__":
    main()
