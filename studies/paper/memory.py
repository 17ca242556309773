"""Tables and figures of memory alone, which need no time: Table 1, Figures 2, 8b and 10."""

from typing import Final

from ...machines import find_machine
from ...policies import decide, find_policy
from ...reports import Report
from ...sim import simulate
from .exhibit import Exhibit, Panel, Row, Table, bars
from .networks import TITLES, network, network_nbytes
from .printed import printed, unit
from .times import rates_told
from .workspaces import fig2_with

MIB: Final = 2**20
STRATEGIES: Final = ("speed", "memory", "cost")
CURVES: Final = {
    "liveness": "liveness",
    "utp": "liveness+offload:release=immediate",
    "all": "superneurons",
}
"""The policies of Figure 10's three curves."""

_RESIDUAL: Final = "liveness+offload:release=immediate,lookahead=0+"


def table1() -> Exhibit:
    """Recomputed operations and step peak of three networks under three strategies."""
    counts, peaks = [], []
    for name, by_strategy in printed("table1").items():
        trace = network(name, 200 if name == "alexnet" else 32)
        for strategy in STRATEGIES:
            eager = "liveness+" if name == "alexnet" else _RESIDUAL
            policy = find_policy(f"{eager}recompute:strategy={strategy}")
            ledger = decide(policy, trace, find_machine("k40c")).ledger
            label = f"{TITLES[name]}, {strategy}"
            count, peak = by_strategy[strategy]
            counts.append(Row(label, count, ledger.rerun_ops))
            peaks.append(Row(label, peak, round(max(ledger.step_nbytes) / MIB, 3)))
    return Exhibit(
        name="table1",
        title="Table 1: recomputation by strategy",
        method=(
            "AlexNet, batch 200, under `liveness+recompute:strategy=...`; the residual networks, "
            f"batch 32, under `{_RESIDUAL}recompute:strategy=...`, on the release's graph, in "
            "which a fork copies and a join makes a tensor of its own."
        ),
        tables=(
            Table(
                title="Operations that are computed again",
                unit="operations",
                rule="reruns in the schedule",
                rows=tuple(counts),
                digits=0,
                compare="exact",
                tolerance=0,
            ),
            Table(
                title="Peak memory",
                unit="MiB of 2^20 bytes",
                rule="step peak of scheduled bytes: outputs and gradients",
                rows=tuple(peaks),
                compare="exact",
                tolerance=0,
            ),
        ),
        notes=(
            "The paper prints 401 four times where the sizes give 406.125: four tensors of 101.531 "
            "MiB at the backward of the first ReLU. No sum of the network's tensors gives 401; it "
            "is taken for a slip.",
            "These rows need what the text says of recomputation, that only the nearest "
            "checkpoint is on the device. With checkpoints kept there, as `superneurons` does "
            "while they fit, ResNet50's peak is 2876.656.",
            "The paper prints AlexNet's peaks to two decimals: 886.23 is 886.230.",
        ),
        command=f"superneurons simulate resnet50 --machine k40c --policy {_RESIDUAL}recompute",
    )


def fig2() -> Exhibit:
    """The memory of whole networks, without workspaces and with."""
    added, faster = fig2_with()
    without = [
        Row(TITLES[name], figures["without"], round(_megabytes(name), 1))
        for name, figures in printed("fig2").items()
    ]
    return Exhibit(
        name="fig2",
        title="Figure 2: memory of whole networks",
        method=(
            "Sums over traces with `graph=paper`: a fork's first output is its input and a join "
            "adds in place; InceptionV4 has a normalization after every convolution "
            "(`norm=everywhere`). Batch 32, AlexNet 200."
        ),
        tables=(
            Table(
                title="Without workspaces",
                unit=unit("fig2"),
                rule=(
                    "outputs and gradients of all layers; parameters, their gradients and momenta; "
                    "and, as in the release, two running statistics for each normalized channel "
                    "and an unused bias for the convolution before it, each three times"
                ),
                rows=tuple(without),
                digits=1,
                tolerance=0.1,
            ),
            added,
            faster,
        ),
        panels=(
            bars("Without workspaces", "network", "MB", without),
            bars("What workspaces add", "network", "MB", list(added.rows)),
            bars("Speed with workspaces", "network", "times", list(faster.rows)),
        ),
        calibration="None for memory. Which algorithm is the fastest, and by how much, is said by "
        f"the K40c's rates: {rates_told()}",
        notes=(
            "What workspaces add is not met. In print the residual networks take next to nothing "
            "and are 10 to 18 % faster for it, InceptionV4 26 GB: no single rule of which "
            "algorithm is the fastest gives both, and the paper does not say which were chosen.",
        ),
    )


def _megabytes(name: str) -> float:
    return network_nbytes(network(name, 200 if name == "alexnet" else 32, graph="paper")) / 1e6


def curve(name: str) -> Report:
    """Return the report behind one of Figure 10's curves."""
    return simulate(network("alexnet", 200), find_policy(CURVES[name]), find_machine("k40c"))


def fig10() -> Exhibit:
    """All 46 steps of three curves."""
    peaks, agreement, panels = [], [], []
    baseline = simulate(network("alexnet", 200), find_policy("baseline"), find_machine("k40c"))
    nbytes, tensors = printed("fig10", "baseline")
    peaks.append(Row("baseline", nbytes, round(baseline.step_peak_bytes / MIB, 3)))
    for name, figures in printed("fig10").items():
        report = curve(name)
        mib = [round(step / MIB, 3) for step in report.step_bytes]
        same = sum(a == b for a, b in zip(mib, figures["mib"], strict=True))
        counted = sum(
            a == b for a, b in zip(report.step_live_tensors, figures["tensors"], strict=True)
        )
        peaks.append(
            Row(f"{name}, at {report.step_peak_op}", max(figures["mib"]), max(mib)),
        )
        agreement.append(Row(f"{name}: steps with the same memory", 46, same))
        agreement.append(Row(f"{name}: steps with as many tensors", 46, counted))
        steps = tuple(float(step) for step in range(1, 47))
        panels.append(
            Panel(
                title=f"{name}: {CURVES[name]}",
                across="step (forward, then backward)",
                up="MiB",
                kind="lines",
                series={
                    "printed": (steps, tuple(figures["mib"])),
                    "computed": (steps, tuple(mib)),
                },
            )
        )
    return Exhibit(
        name="fig10",
        title="Figure 10: AlexNet step by step",
        method="Batch 200 on the K40c, under "
        + ", ".join(f"`{policy}` ({name})" for name, policy in CURVES.items())
        + ".",
        tables=(
            Table(
                title="Peaks",
                unit="MiB of 2^20 bytes",
                rule=(
                    "step peak of scheduled bytes: 23 outputs and 13 gradients, "
                    f"{tensors} tensors in all, right after an operation's outputs are added"
                ),
                rows=tuple(peaks),
                compare="exact",
                tolerance=0,
            ),
            Table(
                title="Steps",
                unit="steps of 46",
                rule="memory to 0.001 MiB, live tensors exactly",
                rows=tuple(agreement),
                digits=0,
                compare="exact",
                tolerance=0,
            ),
        ),
        panels=tuple(panels),
        notes=(
            "Curve (b) comes out only with a look-ahead of exactly three operations, and with the "
            "outputs of fully connected layers offloaded as well as those of convolutions.",
            "Curve (c) has no transfers: the checkpoints stay, and the tensor cache has nothing to "
            "evict on a card of 12 GB.",
            "The text prints 1132.155 for 1132.056 and 886.385 for 886.230; the drawing, Table 1 "
            "and the tensor sizes have the latter.",
        ),
        command="superneurons simulate alexnet:batch=200 --machine k40c --policy "
        + ",".join(["baseline", *CURVES.values()]),
    )
