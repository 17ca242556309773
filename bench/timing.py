"""Times of steps from idle to idle, and what the host could do meanwhile.

The processor of a shared machine works at another speed when its neighbours do: on the one where
bench/results/ comes from a fixed loop takes 1 or 2 units of time, for seconds or minutes on end.
A step that its host holds up then takes twice as long, too. So the loop runs before and after each
step, and steps beside which it took long count only if there are too few others.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

CUDA = torch.cuda.is_available()
PEAKS = ("requested", "allocated", "reserved")
TIMED = 5
LEAST = 3  # however long they take
MOST = 50
LONG_S = 1.5
"""Steps are timed until there are so many and so long has passed."""
LATE = 1.3
"""A loop that takes so many times the shortest of its process says that the host is slow."""
ROUNDS = 20_000


class Host:
    """How fast the processor is, by a fixed loop."""

    def __init__(self) -> None:
        self.least_ns = 1 << 62
        for _ in range(100):
            self.now_ns()

    def now_ns(self) -> int:
        """Return the shortest of three loops, about 0.5 ms in all: one may be interrupted."""
        taken = []
        for _ in range(3):
            begin = time.perf_counter_ns()
            for _ in range(ROUNDS):
                pass
            taken.append(time.perf_counter_ns() - begin)
        self.least_ns = min(self.least_ns, *taken)
        return min(taken)

    def is_fast(self, loop_ns: int) -> bool:
        """Whether a loop of now says that the host is about as fast as it can be."""
        return loop_ns <= LATE * self.least_ns


HOST = Host()


def timed(
    step: Callable[[], object], deadline: float, warm: int, least: int = LEAST
) -> dict[str, Any]:
    """Return the median time of a step, and the peaks, as far as time allows, of *least* steps or
    more.

    "steps" are those that count, "spread" is theirs; "all" are the number, the median and the
    slowest of all, "host_ns" the shortest and the longest loop beside them.
    """
    began = time.perf_counter()
    for _ in range(warm):
        step()
    synchronize()
    first_s = time.perf_counter() - began
    times: list[tuple[int, int]] = []
    peaks = []
    began = time.perf_counter()
    while len(times) < least or not _enough(times, began, deadline):
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        before = HOST.now_ns()
        begin = time.perf_counter_ns()
        step()
        synchronize()
        taken = time.perf_counter_ns() - begin
        times.append((taken, max(before, HOST.now_ns())))
        if CUDA:
            stats = torch.cuda.memory_stats()
            peaks.append([stats[f"{kind}_bytes.all.peak"] for kind in PEAKS])
    everything = [taken for taken, _ in times]
    counted = _steady(times)
    if len(counted) < LEAST:
        counted = everything
    found: dict[str, Any] = {
        "step_ns": round(median(counted)),
        "spread": [min(counted), max(counted)],
        "steps": len(counted),
        "all": [len(times), round(median(everything)), max(everything)],
        "host_ns": [min(loop for _, loop in times), max(loop for _, loop in times)],
        "host_least_ns": HOST.least_ns,
        "first_steps_s": round(first_s, 2),
    }
    columns = list(zip(*peaks, strict=True)) if peaks else [(0,)] * 3
    for kind, column in zip(PEAKS, columns, strict=True):
        found[f"{kind}_peak"] = max(column)
        found[f"{kind}_peaks"] = sorted(set(column))[:5]
    return found


def _enough(times: list[tuple[int, int]], began: float, deadline: float) -> bool:
    now = time.perf_counter()
    if len(times) >= MOST or (len(times) >= LEAST and now > deadline):
        return True
    return len(_steady(times)) >= TIMED and now - began >= LONG_S


def _steady(times: list[tuple[int, int]]) -> list[int]:
    """Return the steps beside which the host was as fast as it is."""
    return [taken for taken, loop in times if HOST.is_fast(loop)]


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()
