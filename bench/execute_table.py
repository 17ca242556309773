"""The table of docs/executor.md: what `bench/execute.py` measured beside what is simulated.

    python bench/execute_table.py bench/results/execute-h200.jsonl

Simulated is the shipped recording of the same model on `h200`, under the same policy and budget.
"""

import json
import sys
from pathlib import Path

from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace

MACHINE = find_machine("h200")


def main() -> None:
    print(
        "| model | policy | requested peak, measured | simulated | ms, measured | simulated | "
        "| places, equal |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for text in Path(sys.argv[1]).read_text().splitlines():
        line = json.loads(text)
        if "step_ns" not in line or line["policy"] == "plain":
            continue
        trace = find_trace(f"{line['model'].replace('_', '-')}-b{line['batch']}")
        policy, _, share = line["policy"].partition("@")
        report = simulate(trace, find_policy(policy), MACHINE, line["budget"])
        measured, simulated = line["step_ns"], report.step_time_ns
        peak = line["requested_peak"]
        equal = line["places"] - line["different_places"]
        print(
            f"| {line['model']}, batch {line['batch']} "
            f"| `{policy}`{f', {float(share):.0%} of the plain peak' if share else ''} "
            f"| {peak:,} | {report.device_peak_bytes - peak:+,} "
            f"| {measured / 1e6:,.1f} | {simulated / 1e6:,.1f} "
            f"| {(simulated / measured - 1) * 100:+.1f} % "
            f"| {line['places']:,}, {'all' if equal == line['places'] else equal} |"
        )


if __name__ == "__main__":
    main()
