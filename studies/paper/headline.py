"""The abstract's headline: a residual network of some ten thousand layers on one card of 12 GB."""

from typing import Final

from ...machines import find_machine
from ...policies import find_policy
from ...sim import simulate
from ...traces import find_trace
from .exhibit import Exhibit, Row, Table

TRACE: Final = "resnet:n1=6,n2=32,n3=788,n4=6,batch=1"
"""The release's file for what the paper calls ResNet2500: depth 2498, 9,168 layers."""
_GIB: Final = 2**30
_POLICIES: Final = (
    "baseline",
    "liveness",
    "liveness+offload:release=immediate",
    "liveness+offload:release=immediate+recompute",
)


def headline() -> Exhibit:
    """What ResNet2500 needs, policy by policy."""
    trace, card = find_trace(TRACE), find_machine("k40c")
    roomy = find_machine("k40c:device_memory=64GiB")
    parameters = sum(s.nbytes for s in trace.storages if s.alive_at_start) / _GIB
    needs = [Row("parameters, gradients, momenta and the image", None, parameters)]
    for name in _POLICIES:
        report = simulate(trace, find_policy(name), roomy)
        fits = "fits" if report.device_peak_bytes <= card.device_nbytes else "does not fit"
        needs.append(Row(f"{name}: {fits}", None, report.device_peak_bytes / _GIB))
    report = simulate(trace, find_policy("superneurons"), card)
    verdict = "fits" if report.fits else "does not fit"
    spilled = report.tier_peak_bytes["host"] / _GIB
    needs.append(
        Row(
            f"superneurons: {verdict}, with {spilled:.2f} GiB in the host",
            None,
            report.device_peak_bytes / _GIB,
        )
    )
    layers = 1 + sum(op.phase == "forward" for op in trace.operations)
    return Exhibit(
        name="headline",
        title="The abstract's headline: ResNet2500 on 12 GB",
        method=(
            f"`{TRACE}`, the release's file for it, on the K40c: 12 GiB, without ECC. All but the "
            "last row are what the policy needs where there is more; `superneurons` keeps on the "
            "device what it can."
        ),
        tables=(
            Table(
                title="Layers",
                unit="layers",
                rule="all of them, `data` included; the paper says ten to the fourth",
                rows=(Row("ResNet2500", 10_000, layers),),
                digits=0,
            ),
            Table(
                title="Memory",
                unit="GiB of 2^30 bytes",
                rule="device bytes: outputs, gradients, parameters with what is beside them, image",
                rows=tuple(needs),
                digits=2,
                compare="exact",
            ),
        ),
        notes=(
            "Most of it are parameters, which nothing in the paper moves: what the policies can "
            "save is what is above the first row.",
        ),
        command=f"superneurons simulate {TRACE} --machine k40c",
    )
