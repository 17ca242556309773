"""Figures of workspaces: 12, and what they add to whole networks in 2 and 13."""

from functools import cache
from typing import Final

from ...machines import Machine
from ...notation import parse_bytes
from ...policies import decide, find_policy
from ...schedules import Run, Timing
from ...traces import Trace
from .calibration import POLICY, images_per_s, k40c, timed_network, with_room
from .exhibit import Exhibit, Row, Table, bars
from .networks import TITLES, data_nbytes, network
from .printed import printed, unit
from .times import rates_told

MIB: Final = 2**20
INFERRED_BATCH: Final = 500
"""The batch of panels c and d, which the paper does not state: see the note."""


def fastest(trace: Trace, machine: Machine) -> dict[int, int]:
    """Return, for each operation with alternatives, its fastest algorithm, the leaner of equals."""
    timing, facts = Timing(trace, machine), trace.facts
    return {
        i: min(
            range(len(op.algorithms) + 1),
            key=lambda k, i=i: (timing.run_ns(i, k), facts.inside(i, k)),  # type: ignore[misc]
        )
        for i, op in enumerate(trace.operations)
        if op.algorithms
    }


@cache
def workspaces_nbytes(name: str, batch: int) -> int:
    """Return the sum of all workspaces of a network by its fastest algorithms."""
    trace = timed_network(name, batch)
    return sum(trace.facts.inside(op, k) for op, k in fastest(trace, k40c()).items())


def speedup(name: str, batch: int) -> float:
    """Return the time of a network without workspaces over that by its fastest algorithms."""
    trace, machine = timed_network(name, batch), k40c()
    timing, found = Timing(trace, machine), fastest(trace, machine)
    plain = sum(timing.device_ns)
    return plain / sum(timing.run_ns(op, found.get(op, 0)) for op in range(len(trace.operations)))


def fig12() -> Exhibit:
    """What each convolution of AlexNet gets and wants."""
    assigned: list[Row] = []
    wanted: list[Row] = []
    speeds, panels = [], []
    steps = printed("fig12", "steps")
    for panel, figures in printed("fig12").items():
        batch, pool = figures.get("batch", INFERRED_BATCH), figures["pool"]
        trace, budget = timed_network("alexnet", batch), parse_bytes(pool)
        report = with_room(trace, k40c("exact"), budget)
        taken, best = _taken(trace, report.limit_bytes), fastest(trace, k40c("exact"))
        first = len(assigned)
        for step, (got, top) in zip(steps, figures["workspace"], strict=True):
            op = trace.facts.op_index[f"conv{step[0]}" + (".backward" if step[1] == "b" else "")]
            label = f"{panel}: batch {batch}, {pool}, {step}"
            assigned.append(Row(label, got, trace.facts.inside(op, taken[op]) / MIB))
            wanted.append(Row(label, top, trace.facts.inside(op, best[op]) / MIB))
        panels += [
            bars(f"{panel}: batch {batch}, {pool}: {what}", "convolution", "MiB", rows[first:])
            for what, rows in (("assigned", assigned), ("wanted", wanted))
        ]
        if panel in printed("fig12", "speeds"):
            figure = printed("fig12", "speeds")[panel]
            speeds.append(
                Row(f"{panel}: batch {batch}, {pool}", figure, images_per_s(report, batch))
            )
    return Exhibit(
        name="fig12",
        title="Figure 12: workspaces of AlexNet's convolutions",
        method=(
            f"`{POLICY}` with `algorithms=cudnn` in a budget of 3 or 5 GB: at each step the "
            "fastest algorithm whose workspace fits in what is left. Wanted is that of the "
            "fastest. Bytes are exact: fragments of a pool are not counted."
        ),
        calibration=f"{rates_told()} Of Figure 12 nothing was used but one batch, see below.",
        tables=(
            Table(
                title="Assigned",
                unit="MiB of 2^20 bytes",
                rule="workspace of the algorithm that the schedule runs",
                rows=tuple(assigned),
                digits=0,
                compare="exact",
            ),
            Table(
                title="Wanted for top speed",
                unit="MiB of 2^20 bytes",
                rule="workspace of the fastest algorithm",
                rows=tuple(wanted),
                digits=0,
                compare="exact",
            ),
            Table(
                title="Speed",
                unit="images a second",
                rule="batch over step time",
                rows=tuple(speeds),
                digits=0,
            ),
        ),
        panels=tuple(panels),
        notes=(
            "The batch of panels c and d is not stated. What 2b wants grows by 576 from a to b, "
            f"200 images, and by 576 again from b to c: so {INFERRED_BATCH} is taken for both.",
            "The figure's 1208 and 1573 for the forward of conv3, conv5 and conv4 are, to 0.3 %, "
            "what FFTs of 32 x 32 take at a batch of 300, 1204.9 and 1568.2 MiB. That speaks for "
            "the formula and against the batch; the two cannot be brought together.",
            "The shape holds in part: batch 100 gets all that it wants in 3 GB, a larger batch "
            "goes without, backward first, and with 5 GB the step is faster. It differs in where "
            "that begins: at 300 the model has more left than the authors' runtime had. And by "
            "counts Winograd's algorithms are the fastest where the figure's forward wanted none.",
        ),
        command=(
            "superneurons simulate alexnet:batch=500,algorithms=cudnn --budget 3GB "
            f"--machine {k40c('exact').name} --policy {POLICY} --schedule choices.json"
        ),
    )


def _taken(trace: Trace, budget: int) -> dict[int, int]:
    schedule = decide(find_policy(POLICY), trace, k40c("exact"), budget).schedule
    return {step.op: step.algorithm for step in schedule.instructions if isinstance(step, Run)}


def fig2_with() -> tuple[Table, Table]:
    """Return what workspaces add to whole networks, and the speed that they bring."""
    total, faster = [], []
    for name, figures in printed("fig2").items():
        batch = 200 if name == "alexnet" else 32
        added = workspaces_nbytes(name, batch) / 1e6
        total.append(Row(TITLES[name], figures["with"] - figures["without"], added))
        faster.append(Row(TITLES[name], figures["speedup"], speedup(name, batch)))
    return (
        Table(
            title="What workspaces add",
            unit="MB of 10^6 bytes",
            rule=(
                "sum of the workspaces of the fastest algorithm of every convolution, forward and "
                "backward, by the counts of `algorithms=cudnn`"
            ),
            rows=tuple(total),
            digits=0,
        ),
        Table(
            title="Speed with workspaces",
            unit="times the speed without",
            rule="device time of implicit GEMMs over that of the fastest algorithms",
            rows=tuple(faster),
            digits=2,
        ),
    )


def fig13() -> Exhibit:
    """The memory that whole networks demand at the batches of Table 5."""
    bare: list[Row] = []
    full: list[Row] = []
    panels = []
    for name, by_system in printed("fig13").items():
        first = len(bare)
        each = data_nbytes(network(name, 1, graph="paper"))
        for system, figure in by_system.items():
            batch = printed("table5")[name][system]
            label = f"{TITLES[name]} at {batch}, {system}"
            bare.append(Row(label, figure, batch * each / 1e9))
            with_all = batch * each + workspaces_nbytes(name, batch)
            full.append(Row(label, figure, with_all / 1e9))
        panels.append(bars(f"{TITLES[name]}, data alone", "", "GB", bare[first:]))
    return Exhibit(
        name="fig13",
        title="Figure 13: memory demand at the largest batches",
        method="Outputs and gradients of all layers, on the paper's graph, at Table 5's batches.",
        calibration=(
            "None for data alone. For workspaces the K40c's rates say which algorithm is the "
            "fastest."
        ),
        tables=(
            Table(
                title="Data alone",
                unit=unit("fig13"),
                rule="outputs and gradients of all layers",
                rows=tuple(bare),
                digits=1,
            ),
            Table(
                title="Data and workspaces",
                unit=unit("fig13"),
                rule="and the workspace of every convolution's fastest algorithm",
                rows=tuple(full),
                digits=1,
            ),
        ),
        panels=tuple(panels),
        notes=(
            "At one batch, AlexNet's 768, the figure has 8.6 for Caffe and 11.5 for MXNet: it "
            "depends on the framework, and which tensors each of them makes is not told.",
        ),
    )
