"""The machine that a step runs on: from a file, or measured in a second or two."""

import time
from collections.abc import Callable
from typing import Final

import msgspec
import torch

from ..machines import Link, Machine, Tier, find_machine
from ..notation import format_bytes
from .backend import Backend, host_nbytes
from .provenance import machine_of

REPEATS: Final = 5
LARGE: Final = 64 << 20
SMALL: Final = 4 << 10
BLOCKS: Final = 4
QUEUED: Final = 8


def measured(backend: Backend, host: int | None) -> Machine:
    """Return the machine under *backend*, with the ways to its tiers as they are now.

    *host* bounds the bytes that may be taken of the host's memory. Rates of
    arithmetic come from the machine file that knows this GPU, or are measured too.
    """
    known = machine_of(backend.device)
    machine = find_machine(known) if known else _unknown(backend)
    tiers = tuple(
        Tier(
            name=tier,
            nbytes=backend.room(tier) if host is None or tier != "host" else host,
            link=_link(backend, tier),
        )
        for tier in backend.tiers
    )
    return msgspec.structs.replace(machine, name=f"{machine.name} (links measured)", tiers=tiers)


def told(machine: Machine) -> str:
    """Return what was measured of a machine, as one sentence."""
    ways = [
        f"{tier.name} {tier.link.out_bytes_per_s / 1e9:.1f} GB/s out, "
        f"{tier.link.in_bytes_per_s / 1e9:.1f} GB/s in, {tier.link.latency_ns / 1e3:.0f} us "
        f"latency, {format_bytes(tier.nbytes)}"
        for tier in machine.tiers
    ]
    if not machine.gpu:
        ways.append(
            f"and of this device {machine.flops_per_s / 1e9:,.1f} GFLOP/s and "
            f"{machine.bytes_per_s / 1e9:,.1f} GB/s, roughly"
        )
    return f"no machine was given; the links were measured: {'; '.join(ways)}"


def _link(backend: Backend, tier: str) -> Link:
    """Measure both ways to a tier.

    The best of several blocks counts: one may lie with the processor that is farther from the GPU.
    The latency is what a small copy takes that waits in line behind a large one, for copies of a
    schedule do: one from an idle host to an idle host takes the host's own time as well.
    """
    large = LARGE if backend.device.type == "cuda" else LARGE >> 4
    blocks = [backend.memory(tier, large) for _ in range(BLOCKS)]
    there = torch.zeros(large, dtype=torch.uint8, device=backend.device)
    best: dict[tuple[str, str], int] = {}
    for block in blocks * REPEATS:
        lines = {"one": [block], "two": [block] * 2, "small": [block, *[block[:SMALL]] * QUEUED]}
        for line, parts in lines.items():
            begin = _idle(backend)
            for part in parts:
                backend.copy_out([(there[: len(part)], part)], tier, ())
            middle = _idle(backend)
            back = [backend.fetch([part], tier, ()) for part in parts]
            end = _idle(backend)
            for way, ns in (("out", middle - begin), ("in", end - middle)):
                best[way, line] = min(ns, best.get((way, line), ns))
            del back
    rates = [large * 10**9 // _beside(best[way, "one"], best[way, "two"]) for way in ("out", "in")]
    latency = min((best[way, "small"] - best[way, "one"]) // QUEUED for way in ("out", "in"))
    return Link(
        out_bytes_per_s=max(1, rates[0]),
        in_bytes_per_s=max(1, rates[1]),
        latency_ns=max(1, latency),
        duplex="full",
    )


def _beside(one_ns: int, two_ns: int) -> int:
    """Return what the second of two copies takes: not less than half of what one takes alone, or
    something else has held that one up."""
    return max(two_ns - one_ns, one_ns // 2, 1)


def _idle(backend: Backend) -> int:
    """Wait until nothing is under way; return the time."""
    backend.drain()
    return time.perf_counter_ns()


def _unknown(backend: Backend) -> Machine:
    """Return a machine that no file describes, by two rough measurements."""
    device = backend.device
    cuda = device.type == "cuda"
    n = 4096 if cuda else 256
    a = torch.ones(n, n, device=device)
    flops = 2 * n**3 * 10**9 // _best(backend, lambda: a @ a)
    moved = 2 * a.nbytes * 10**9 // _best(backend, a.clone)
    total = torch.cuda.get_device_properties(device).total_memory if cuda else host_nbytes()
    return Machine(
        name=str(device),
        description="as found; arithmetic and memory rates measured roughly",
        device_nbytes=total,
        flops_per_s=max(1, flops),
        bytes_per_s=max(1, moved),
        tensor_flops_per_s={},
        gpu="",
        launch_ns=5_000,
        tiers=(),
        allocator="exact",
        written={},
        sources={},
    )


def _best(backend: Backend, run: Callable[[], object]) -> int:
    found = []
    for _ in range(REPEATS):
        backend.drain()
        begin = time.perf_counter_ns()
        run()
        backend.drain()
        found.append(time.perf_counter_ns() - begin)
    return max(1, min(found))
