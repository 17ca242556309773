"""The golden tables and their printer: `python tests/golden.py` prints what the code says now,
`python tests/golden.py --write` puts it into tests/golden/, so that an intended change of numbers
is a visible diff with a reason.

fig10.txt was not written by this code: its figures are those of the paper's Fig. 10 (AlexNet, batch
200), worked out from the network's tensor sizes elsewhere. It is never rewritten.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.reports import Report
from superneurons.sim import simulate
from superneurons.traces import find_trace

FOLDER = Path(__file__).parent / "golden"
CURVES = ("liveness", "liveness+offload:release=immediate", "superneurons")
TABLE1 = tuple(
    f"liveness+recompute:strategy={strategy}" for strategy in ("speed", "memory", "cost")
)
STACKS = (
    "baseline",
    "liveness",
    "liveness+offload:release=immediate",
    "liveness+offload:release=4",
    "liveness+offload",
    "liveness+offload:release=pressure",
    "liveness+cache",
    *TABLE1,
    "liveness+offload+recompute",
    "superneurons",
)


def mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.3f}"


def report(policy: str, budget: int | None = None) -> Report:
    return simulate(
        find_trace("alexnet:batch=200"), find_policy(policy), find_machine("k40c"), budget
    )


def fig10() -> Iterator[str]:
    """All 46 steps of the three curves: scheduled MiB and live tensors."""
    yield "step dir layer      liveness_MiB tensors  utp_MiB tensors  all_MiB tensors"
    curves = [report(policy) for policy in CURVES]
    for i, op in enumerate(curves[0].op_names):
        layer, _, backward = op.partition(".")
        shown = " ".join(
            f"{mib(curve.step_bytes[i]):>8} {curve.step_live_tensors[i]:>7}" for curve in curves
        )
        yield f"{i + 1:>4} {'B' if backward else 'F'}   {layer:<8}      {shown}"


def table1() -> Iterator[str]:
    """AlexNet's row of Table 1: recomputed operations and step peak of each strategy."""
    yield f"{'policy':36} recomputed  step_peak_MiB  strict_peak_MiB"
    for policy in TABLE1:
        found = report(policy)
        yield (
            f"{policy:36} {found.recomputed_ops:>10} {mib(found.step_peak_bytes):>14} "
            f"{mib(found.strict_peak_bytes):>16}"
        )


def alexnet() -> Iterator[str]:
    """Bytes and times of every stack on the K40c, with and without a tight budget."""
    yield f"{'policy':36} budget_MiB fits  step_MiB strict_MiB device_MiB     time_ns    stall_ns"
    for budget in (None, 1700 * 2**20):
        for policy in STACKS:
            found = report(policy, budget)
            yield (
                f"{policy:36} {'-' if budget is None else budget >> 20:>10} "
                f"{'yes' if found.fits else 'no':>4} {mib(found.step_peak_bytes):>9} "
                f"{mib(found.strict_peak_bytes):>10} {mib(found.device_peak_bytes):>10} "
                f"{found.step_time_ns:>11} {found.stall_ns:>11}"
            )


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "fig10": fig10,
    "table1": table1,
    "alexnet": alexnet,
}


def printed(name: str) -> str:
    return "\n".join(TABLES[name]()) + "\n"


if __name__ == "__main__":
    for table in TABLES:
        sys.stdout.write(f"--- {table}\n{printed(table)}")
        if "--write" in sys.argv and table != "fig10":
            (FOLDER / f"{table}.txt").write_text(printed(table))
