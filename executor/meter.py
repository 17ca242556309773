"""Bytes on the device as torch counts them."""

from typing import Any

import torch


class CudaMeter:
    """Measures the bytes that an operation asks for inside itself, on a CUDA device.

    *Requested* bytes are what the program asked for; *allocated* ones are the blocks that it got,
    rounded to 512 bytes and sometimes larger. The trace holds requested bytes, for rounding is the
    allocator's affair.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0

    def before(self) -> None:
        """Begin: right before an operation runs."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._start = requested(self._device)["current"]

    def after(self, fresh_nbytes: int) -> int:
        """Return the most bytes asked for meanwhile beyond *fresh_nbytes*."""
        return max(0, requested(self._device)["peak"] - self._start - fresh_nbytes)


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
    stats: Any = torch.cuda.memory_stats_as_nested_dict(device)
    found: dict[str, int] = stats["requested_bytes"]["all"]
    return found
