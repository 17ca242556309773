"""Figure 14: training speed by batch on a TITAN Xp."""

from collections.abc import Mapping
from functools import cache
from typing import Final

from ...reports import Report
from .calibration import NETWORK, POLICY, images_per_s, timed_network, titan_xp, told, with_room
from .exhibit import Exhibit, Panel, Row, Series, Table
from .networks import TITLES
from .printed import printed

_FALL: Final = 0.9
"""A curve bends where it has fallen below this part of its best."""


@cache
def report_of(name: str, batch: int) -> Report:
    """Return the report of a network on the calibrated TITAN Xp."""
    return with_room(timed_network(name, batch), titan_xp())


def speed(name: str, batch: int) -> float:
    """Return the speed of a network there."""
    return images_per_s(report_of(name, batch), batch)


def bend(curve: Mapping[int, float]) -> int | None:
    """Return the first batch at which a curve has fallen, None if it does not."""
    best = 0.0
    for batch, height in curve.items():
        if height < _FALL * best:
            return batch
        best = max(best, height)
    return None


def fig14() -> Exhibit:
    """Speed by batch of six networks, ours computed and all others as printed."""
    rows, bends, wins, panels = [], [], [], []
    for name, systems in printed("fig14").items():
        ours = systems["superneurons"]
        mine = {batch: speed(name, batch) for batch in ours}
        rows += [
            Row(f"{TITLES[name]}, batch {batch}", figure, mine[batch], _fixed(name, batch))
            for batch, figure in ours.items()
        ]
        bends.append(Row(TITLES[name], bend(ours), bend(mine)))
        rivals = {system: curve for system, curve in systems.items() if system != "superneurons"}
        wins.append(Row(TITLES[name], _won(ours, rivals), _won(mine, rivals)))
        series: Series = {"computed": _line(mine), "printed superneurons": _line(ours)}
        series |= {f"printed {system}": _line(curve) for system, curve in rivals.items()}
        panels.append(
            Panel(title=TITLES[name], across="batch", up="img/s", kind="lines", series=series)
        )
    return Exhibit(
        name="fig14",
        title="Figure 14: training speed by batch on a TITAN Xp",
        method=(
            f"`{POLICY}`, convolutions with `algorithms=cudnn`, 8 GB/s each way, a pool of 12 GiB: "
            "where fragments leave less than that, the policy gets so much less (`--budget`)."
        ),
        calibration=(
            f"The TITAN Xp does {told(titan_xp())}: the K40c's shares of the vendor's rates, as "
            "found from Table 2 and Figure 8a, times the factor that gives ResNet50 its 170 img/s "
            "at batch 16. Of the other points nothing was used."
        ),
        tables=(
            Table(
                title="Speed",
                unit="images a second",
                rule="batch over step time",
                rows=tuple(rows),
                digits=0,
            ),
            Table(
                title="Where the curve bends",
                unit="batch",
                rule=f"the first that is below {_FALL:.0%} of the best before it; - if none is",
                rows=tuple(bends),
                digits=0,
                compare="exact",
            ),
            Table(
                title="Who wins",
                unit="batches",
                rule="at which SuperNeurons is faster than every other system as printed there",
                rows=tuple(wins),
                digits=0,
                compare="exact",
            ),
        ),
        panels=tuple(panels),
        notes=(
            "Where the residual networks and InceptionV4 bend comes out to one step of the "
            "figure: there the checkpoints no longer fit beside one another, and the tensor "
            "cache begins to move them.",
            "AlexNet and VGG16 do not bend at all here. With recomputation they take less than "
            "12 GiB at all printed batches, workspaces included, so nothing is moved; what slowed "
            "the authors' runtime there, from batch 768 and 80 on, the model does not have.",
            "The print does not show SuperNeurons ahead everywhere: MXNet is at VGG16's batches "
            "16, 48 and 64, ResNet50's 64 and 80, and ResNet101's 48.",
        ),
        command=(
            "superneurons simulate resnet50:batch=144,algorithms=cudnn "
            f"--machine {titan_xp().name} --policy {POLICY} "
            f"--budget {report_of('resnet50', 144).limit_bytes}B"
        ),
    )


def _fixed(name: str, batch: int) -> bool:
    return name == NETWORK and batch == 16


def _won(ours: Mapping[int, float], rivals: Mapping[str, Mapping[int, float]]) -> int:
    return sum(
        all(height > curve[batch] for curve in rivals.values() if batch in curve)
        for batch, height in ours.items()
    )


def _line(curve: Mapping[int, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(float, curve)), tuple(map(float, curve.values()))
