"""The table of docs/executor.md: steps by a schedule beside plain ones of the same seconds.

    python bench/turns_table.py bench/results/turns-h200.jsonl

A line for each policy, with what its steps take more than plain ones in each process that had them,
the least first, and their ms with those of the plain steps (medians). ALL stands for all kinds of
operations; a policy with ! does without looking at forward (`assume_constant`).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frontier_table import EVERYTHING

Line = dict[str, Any]


def main() -> None:
    found: dict[tuple[str, int, str], list[Line]] = {}
    for text in Path(sys.argv[1]).read_text().splitlines():
        line = json.loads(text)
        found.setdefault((line["model"], line["batch"], line["policy"]), []).append(line)
    print(
        "| model | policy | peak, planned | run again | beside plain, in each process "
        "| ms (plain) |\n| --- | --- | --- | --- | --- | --- |"
    )
    models = list(dict.fromkeys(model for model, _, _ in found))
    by_peak = sorted(found, key=lambda each: -int(found[each][0]["planned_peak"]))
    for model, batch, policy in sorted(by_peak, key=lambda each: models.index(each[0])):
        lines = sorted(found[model, batch, policy], key=lambda line: float(line["ratio"]))
        print(
            f"| {model}, batch {batch} | `{policy.replace(EVERYTHING, 'ALL')}` "
            f"| {lines[0]['planned_peak']:,} | {lines[0]['replays'] or ''} "
            f"| {', '.join(map(slower, lines))} | {', '.join(times(lines))} |"
        )


def slower(line: Line) -> str:
    return f"{(line['ratio'] - 1) * 100:+.1f} %"


def times(lines: list[Line]) -> Iterator[str]:
    for line in lines:
        yield f"{line['step_ns'] / 1e6:,.1f} ({line['plain_ns'] / 1e6:,.1f})"


if __name__ == "__main__":
    main()
