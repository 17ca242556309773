"""Bytes on the device as torch counts them."""

from typing import Any

import torch


class CudaMeter:
    """Measures the bytes that an operation asks for inside itself, on a CUDA device.

    *Requested* bytes are what the program asked for; *allocated* ones are the blocks that it got,
    rounded to 512 bytes and sometimes larger. The trace holds requested bytes, for rounding is the
    allocator's affair. *counted* is the number of allocations and frees there had been by the last
    look.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0
        self.counted = 0

    def before(self) -> None:
        """Begin: right before an operation runs."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._start = self._look()["current"]

    def after(self, fresh_nbytes: int) -> int:
        """Return the most bytes asked for meanwhile beyond *fresh_nbytes*."""
        return max(0, self._look()["peak"] - self._start - fresh_nbytes)

    def _look(self) -> dict[str, int]:
        stats = _stats(self._device)
        self.counted = _count(stats)
        found: dict[str, int] = stats["requested_bytes"]["all"]
        return found


def blocks(device: torch.device) -> dict[int, int]:
    """Return what a CUDA device's allocator has given out: requested bytes by address."""
    return {
        block["address"]: block["requested_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == device.index
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def requested(device: torch.device) -> dict[str, int]:
    """Return the requested bytes of a CUDA device: "current" and "peak"."""
    found: dict[str, int] = _stats(device)["requested_bytes"]["all"]
    return found


def counted(device: torch.device) -> int:
    """Return the number of allocations and frees on a CUDA device so far."""
    return _count(_stats(device))


def _stats(device: torch.device) -> Any:
    return torch.cuda.memory_stats_as_nested_dict(device)


def _count(stats: Any) -> int:
    found = stats["allocation"]["all"]
    return int(found["allocated"] + found["freed"])
