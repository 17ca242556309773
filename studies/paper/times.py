"""Tables and figures of time: Table 2, Figures 8 and 11."""

from typing import Final

from ...policies import find_policy
from ...sim import simulate
from .calibration import (
    NETWORK,
    POLICY,
    batch_of,
    call_us,
    images_per_s,
    k40c,
    time_shares,
    timed_network,
    told,
)
from .exhibit import Exhibit, Row, Table, bars
from .networks import LAYER_TYPES, TITLES, memory_shares, network
from .printed import printed, unit

EAGER: Final = "liveness+offload:release=immediate+recompute+workspace"
"""The same without the tensor cache: checkpoints leave and come back in every iteration."""


def rates_told() -> str:
    """Return how the K40c's rates were found."""
    return (
        f"The K40c does {told(k40c())}: so ResNet50 comes to its 32.9 img/s with the pool "
        "(Table 2) and to its 48.8 % of time in convolutions (Fig. 8a). The vendor's figures are "
        "4.3 TFLOP/s and 288 GB/s."
    )


def table2() -> Exhibit:
    """Speed with the pool and with cudaMalloc."""
    pool, cuda, speedup = [], [], []
    for name, figures in printed("table2").items():
        batch = batch_of(name, 16)
        fast, slow = (
            images_per_s(
                simulate(timed_network(name, batch), find_policy(POLICY), k40c(allocator)), batch
            )
            for allocator in ("pool", "cudamalloc")
        )
        title, fixed = f"{TITLES[name]}, batch {batch}", name == NETWORK
        pool.append(Row(title, figures["pool"], fast, fixed))
        cuda.append(Row(title, figures["cuda"], slow, fixed))
        speedup.append(Row(title, figures["speedup"], fast / slow, fixed))
    return Exhibit(
        name="table2",
        title="Table 2: memory pool against cudaMalloc",
        method=(
            f"`{POLICY}` on the K40c with `allocator=pool` and `allocator=cudamalloc`, "
            "convolutions with `algorithms=cudnn`. Table 2 does not say which optimizations were "
            "on; these are all."
        ),
        calibration=(
            f"{rates_told()} A cudaMalloc and a cudaFree take {call_us():.0f} us each: so ResNet50 "
            "comes to 21.5 img/s without the pool."
        ),
        tables=tuple(
            Table(title=title, unit=of, rule=rule, rows=tuple(rows), digits=digits)
            for title, of, rule, rows, digits in (
                ("With the pool", "images a second", "batch over step time", pool, 2),
                (
                    "With cudaMalloc and cudaFree",
                    "images a second",
                    "batch over step time; every free waits until the device is idle",
                    cuda,
                    2,
                ),
                ("Speed-up by the pool", "times", "first over second", speedup, 2),
            )
        ),
        notes=(
            "The shape holds: networks of many small layers gain most, the deeper the more.",
            "VGG16's speed is too high by far, and that is not explained. By counts its "
            "convolutions gain most from Winograd's algorithms, which the authors' library may "
            "not have had, or not as fast.",
        ),
        command=(
            "superneurons simulate resnet101:batch=16,algorithms=cudnn "
            f"--machine {k40c('cudamalloc').name} --policy {POLICY}"
        ),
    )


def fig8() -> Exhibit:
    """Shares of time and memory by layer type."""
    rows, panels = [], []
    for name, by_type in printed("fig8a").items():
        shares = time_shares(timed_network(name, 200 if name == "alexnet" else 32), k40c())
        part = [
            Row(f"{TITLES[name]}, {kind}", by_type[kind], shares[kind], _fixed(name, kind))
            for kind in LAYER_TYPES
            if kind in shares  # of types that a network does not have there is nothing to compare
        ]
        rows += part
        panels.append(bars(f"(a) {TITLES[name]}", "layer type", "% of time", part))
    memory = _memory()
    for name in printed("fig8b"):
        part = [row for row in memory.rows if row.label.startswith(f"{TITLES[name]},")]
        panels.append(bars(f"(b) {TITLES[name]}", "layer type", "% of memory", part))
    return Exhibit(
        name="fig8",
        title="Figure 8: time and memory by layer type",
        method=(
            "(a) forward and backward of each network with `algorithms=cudnn`, the fastest "
            "everywhere; (b) sums over dependency lists. Batch 32, AlexNet 200."
        ),
        calibration=rates_told(),
        tables=(
            Table(
                title="(a) Time",
                unit=unit("fig8a"),
                rule="device time of the operations; forks, joins and concatenations in the whole",
                rows=tuple(rows),
                digits=1,
                compare="points",
            ),
            memory,
        ),
        panels=tuple(panels),
        notes=(
            "The shares of fully connected, dropout and softmax layers in AlexNet and VGG are "
            "5 to 9 points in print; by their bytes and operations they are next to nothing, so "
            "they must have been bound by something else, launches of many small kernels perhaps.",
        ),
    )


def _memory() -> Table:
    """The shares of memory by layer type."""
    rows = []
    for name, by_type in printed("fig8b").items():
        shares = memory_shares(network(name, 200 if name == "alexnet" else 32))
        rows += [
            Row(f"{TITLES[name]}, {kind}", by_type[kind], round(shares[kind], 3))
            for kind in LAYER_TYPES
            if kind in shares
        ]
    return Table(
        title="(b) Memory",
        unit=unit("fig8b"),
        rule=(
            "a storage counts once in each dependency list that it is on, LRN's gradient twice; "
            "forks, joins and concatenations are left out"
        ),
        rows=tuple(rows),
        digits=2,
        compare="points",
        tolerance=0.05,
    )


def _fixed(name: str, kind: str) -> bool:
    return name == NETWORK and kind == "conv"


def fig11() -> Exhibit:
    """Speed with the tensor cache over speed without."""
    rows = []
    for name, figure in printed("fig11").items():
        trace = timed_network(name, batch_of(name, 32))
        cached, eager = (
            simulate(trace, find_policy(policy), k40c()).step_time_ns for policy in (POLICY, EAGER)
        )
        rows.append(Row(TITLES[name], figure, eager / cached))
    return Exhibit(
        name="fig11",
        title="Figure 11: what the tensor cache gains",
        method=(
            f"`{POLICY}` over `{EAGER}` on the K40c, 8 GB/s each way, convolutions with "
            "`algorithms=cudnn`. Batch 32, AlexNet 128."
        ),
        calibration=f"{rates_told()} Of Figure 11 itself nothing was used.",
        tables=(
            Table(
                title="Speed with the tensor cache",
                unit="times the speed without",
                rule="step time without over step time with",
                rows=tuple(rows),
            ),
        ),
        panels=(bars("Tensor cache", "", "speed over speed without", rows),),
        notes=(
            "The order of the print comes out, but for AlexNet and VGG16, the last two, which "
            "change places: these two compute longest for each byte that they offload.",
        ),
        command=(
            "superneurons simulate resnet50:batch=32,algorithms=cudnn "
            f"--machine {k40c().name} --policy {POLICY},{EAGER}"
        ),
    )
