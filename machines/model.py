"""A machine: the figures that a simulation needs of the hardware, each with its source."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Duplex = Literal["full", "half"]


class Link(Struct, frozen=True, kw_only=True):
    """The way to a tier and back.

    Rates are bytes per second each way; every transfer costs *latency_ns* before its first byte.
    A half-duplex link is shared by the two directions.
    """

    out_bytes_per_s: int
    in_bytes_per_s: int
    latency_ns: int
    duplex: Duplex

    def out_ns(self, nbytes: int) -> int:
        """Return the time of a copy of *nbytes* from the device to the tier, alone on the link."""
        return self.latency_ns + -(-nbytes * 10**9 // self.out_bytes_per_s)

    def in_ns(self, nbytes: int) -> int:
        """Return the time of a fetch of *nbytes* from the tier to the device, alone on the link."""
        return self.latency_ns + -(-nbytes * 10**9 // self.in_bytes_per_s)


class Tier(Struct, frozen=True, kw_only=True):
    """A place beside the device that can hold copies: its capacity and the way there."""

    name: str
    nbytes: int
    link: Link


class Machine(Struct, frozen=True, kw_only=True):
    """A device, its rates and its tiers.

    *flops_per_s* and *bytes_per_s* are the device's arithmetic and memory rate, for operations
    without a measured time, and *tensor_flops_per_s* the rates of its tensor cores by precision,
    where it has any; *gpu* is the name by which its driver knows it ("" if that is not stated);
    *launch_ns* what the host takes to issue one operation, *copy_issue_ns* what it takes to issue a
    copy out or a fetch, *malloc_ns* and *free_ns* what it takes for a cudaMalloc and a cudaFree.
    *written* and *sources* give each figure, by its name in the machine file, as written there and
    where it comes from.
    """

    name: str
    description: str
    device_nbytes: int
    flops_per_s: int
    bytes_per_s: int
    tensor_flops_per_s: Mapping[str, int]
    gpu: str
    launch_ns: int
    copy_issue_ns: int = 0
    malloc_ns: int = 0
    free_ns: int = 0
    tiers: tuple[Tier, ...]
    allocator: str
    written: Mapping[str, str]
    sources: Mapping[str, str]

    def tier(self, name: str) -> Tier | None:
        """Return the tier called *name*, None if the machine has none of that name."""
        return next((tier for tier in self.tiers if tier.name == name), None)

    @property
    def capacities(self) -> dict[str, int]:
        """The bytes that each tier holds."""
        return {tier.name: tier.nbytes for tier in self.tiers}

    def roofline_ns(self, flops: int, moved_nbytes: int, precision: str = "fp32") -> int:
        """Return the time of an operation: the longer of its arithmetic and its memory traffic.

        A device without tensor cores for *precision* ("tf32", "half") does it at its usual rate.
        """
        rate = self.tensor_flops_per_s.get(precision, self.flops_per_s)
        arithmetic = -(-flops * 10**9 // rate)
        traffic = -(-moved_nbytes * 10**9 // self.bytes_per_s)
        return max(arithmetic, traffic)
