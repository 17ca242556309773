"""How fast a step is decided, checked and simulated: run by hand, one process, one core.

    python bench/speed.py [operations ...]          (default: 100000 and 1000000)

The trace is the built-in `chain` (conv-norm-activation cycle, two backward operations each, a skip
every nine). For each stack the best of three runs counts, in processor time, from a loaded trace;
the loading itself (validation and compilation to integers, once a trace, whatever is asked of it
then) is a line of its own. The last column puts the rate in relation to the plain Python rate of
this machine in the same run: a loop of additions, so that two machines can be compared.
"""

import gc
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TypeVar

from superneurons.machines import Machine, find_machine
from superneurons.policies import Decision, Policy, decide, find_policy
from superneurons.schedules import check
from superneurons.sim import play
from superneurons.traces import Facts, Trace, find_trace, without_collector

STACKS = {  # name: device limit as a share of the liveness peak
    "liveness": None,
    "liveness+cache": 0.5,
    "liveness+recompute": None,
    "liveness+offload+recompute": None,
    "superneurons": 0.5,
}
REPEATS = 3

T = TypeVar("T")


def main(sizes: list[int]) -> None:
    additions = additions_per_second()
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, one core")
    print(f"plain loop: {additions / 1e6:.1f} million additions a second\n")
    print("operations  what                           ops/s  decide   check     sim  additions/op")
    machine = find_machine("h200:device_memory=16TiB,host_memory=16TiB")
    for ops in sizes:
        trace = find_trace(f"chain:ops={ops}")
        gc.collect()
        gc.freeze()  # the trace itself is no garbage: do not look at it again and again
        row(ops, "(loading: validate, compile)", best(partial(load, trace)), additions)
        _ = trace.facts.digest
        peak = 0
        for name, share in STACKS.items():
            policy = find_policy(name)
            budget = None if share is None else int(peak * share)

            row(ops, name, best(partial(once, trace, policy, machine, budget)), additions)
            if name == "liveness":
                peak = decide(policy, trace, machine).ledger.device_peak_nbytes
        gc.unfreeze()


def load(trace: Trace) -> tuple[float, ...]:
    return (timed(lambda: Facts(trace).digest)[0],)


def once(trace: Trace, policy: Policy, machine: Machine, budget: int | None) -> tuple[float, ...]:
    """Return the seconds that deciding, checking and simulating took."""
    with without_collector():
        deciding, schedule = timed(lambda: policy.schedule(trace, machine, budget))
        checking, ledger = timed(lambda: check(trace, schedule))
    playing, report = timed(lambda: play(trace, Decision(schedule, ledger), machine))
    assert report.fits, report.why
    return deciding, checking, playing


def best(run: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    return min((run() for _ in range(REPEATS)), key=sum)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def row(ops: int, name: str, seconds: tuple[float, ...], additions: float) -> None:
    total = sum(seconds)
    parts = "".join(f"{part:8.3f}" for part in seconds) if len(seconds) > 1 else " " * 24
    print(f"{ops:>10}  {name:28} {ops / total:>9,.0f}{parts} {total * additions / ops:>13.0f}")


def additions_per_second() -> float:
    count = 2_000_000

    def add() -> None:
        total = 0
        for number in range(count):
            total += number

    return count / min(timed(add)[0] for _ in range(5))


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [100_000, 1_000_000])
