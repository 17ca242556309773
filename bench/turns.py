"""Steps by a schedule and plain ones in turns, where the host's speed changes by the second.

    python bench/turns.py MODEL BATCH POLICY... [--rounds N] >> turns.jsonl

In each round every policy has a few steps, and a few plain steps stand before and after them, all
of one model. `ratio` is the median, over rounds, of what a policy's steps take beside the mean of
the plain ones around them, each the median of its few, and `quartiles` are its spread. `rounds` are
those in which the host was as fast as it is (`timing.py`), and all: the former count, or all if
those are too few. A policy that sends to the peer has the next GPU for it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from execute import run
from frontier import executor_of, make, sizes_of
from timing import CUDA, HOST, LEAST, synchronize

from superneurons.executor import Executor

FEW = 3  # steps of one kind in a row
WARM = 4  # two are recorded, and two warm up

Taken = tuple[float, int]
"""What a step takes, in nanoseconds, and the longest loop of the host beside such steps."""


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("policies", nargs="+", metavar="POLICY")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="try it out with a small network")
    asked = parser.parse_intermixed_args()
    sizes = sizes_of(asked.model, asked.batch, small=asked.small)
    about = {
        "model": asked.model,
        "batch": asked.batch,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if CUDA else "none",
    }
    for line in turns(make(asked.model, **sizes), asked.policies, asked.rounds):
        print(json.dumps(about | line), flush=True)


def turns(
    step: Callable[[], None], policies: Sequence[str], rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield a line for each policy; what ends with ! is not looked at in forward."""
    runs = [(policy, by_schedule(step, policy)) for policy in policies]
    taken: dict[str, list[tuple[Taken, Taken, Taken]]] = {policy: [] for policy in policies}
    for _, (_, by_ours) in runs:  # what a plain step leaves on the device has a step recorded again
        few(step)
        few(by_ours)
    for _ in range(rounds):
        before = few(step)
        for policy, (_, by_ours) in runs:
            ours, after = few(by_ours), few(step)
            taken[policy].append((before, ours, after))
            before = after
    for policy, (executor, _) in runs:
        every = taken[policy]
        fast = [each for each in every if all(HOST.is_fast(loop) for _, loop in each)]
        counted = fast if len(fast) >= LEAST else every
        ratios = [ours[0] / ((a[0] + b[0]) / 2) for a, ours, b in counted]
        report = executor.report
        assert report is not None
        yield {
            "policy": policy,
            "ratio": round(median(ratios), 4),
            "quartiles": [round(each, 4) for each in quantiles(ratios, n=4)],
            "rounds": [len(fast), len(every)],
            "step_ns": round(median(ours[0] for _, ours, _ in counted)),
            "plain_ns": round(median(each[0] for a, _, b in counted for each in (a, b))),
            "planned_peak": executor.plans[0].ledger.device_peak_nbytes,
            "replays": report.replays,
            "mode": report.mode,
        }


def by_schedule(step: Callable[[], None], policy: str) -> tuple[Executor, Callable[[], None]]:
    executor = executor_of(policy)
    again = partial(run, step, executor)
    for _ in range(WARM):
        again()
    return executor, again


def few(once: Callable[[], None]) -> Taken:
    """Run a few steps; return the median of their times, and the longest loop beside them."""
    times, loops = [], [HOST.now_ns()]
    for _ in range(FEW):
        synchronize()
        begin = time.perf_counter_ns()
        once()
        synchronize()
        times.append(time.perf_counter_ns() - begin)
        loops.append(HOST.now_ns())
    return median(times), max(loops)


if __name__ == "__main__":
    main()
