"""Which step of a recording comes next, and what for."""

from typing import Final, Literal

Stage = Literal["warm", "timed", "untouched", "profiled", "logged", "marked"]

WARMUP_STEPS: Final = 3
TIMED_STEPS: Final = 7
PROFILED_STEPS: Final = 5

LEAST_NS: Final = 1_000_000_000
"""Short steps are warmed up and timed for as long as this, or MOST_STEPS."""
MOST_STEPS: Final = 100


class Stages:
    """The stages that are left, on a GPU or without one.

    A profiler makes every launch after it slower, so what is timed comes before. Ahead of each
    profiled step there is one untouched, for a GPU that has rested is faster.
    """

    def __init__(self, gpu: bool) -> None:
        self._gpu: Final = gpu
        self._left: list[Stage] = ["warm"] * (WARMUP_STEPS if gpu else 1)
        if gpu:
            self._left += ["timed"] * TIMED_STEPS
        self._left += ["logged"] * 2
        if gpu:
            self._left += ["marked"]
            self._left += ["untouched", "profiled"] * PROFILED_STEPS
        self._spent: dict[Stage, tuple[int, int]] = {}  # steps and ns

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, stage: Stage) -> bool:
        return stage in self._left

    def take(self) -> Stage:
        """Return the next stage: it is not left any more."""
        return self._left.pop(0)

    def passed(self, stage: Stage, ns: int) -> None:
        """Have a stage come again if it was the last of its kind and too little time was spent."""
        if not self._gpu or stage not in ("warm", "timed"):
            return
        steps, spent = self._spent.get(stage, (0, 0))
        steps, spent = self._spent[stage] = steps + 1, spent + ns
        if stage not in self._left and spent < LEAST_NS and steps < MOST_STEPS:
            self._left.insert(0, stage)

    def clear(self) -> None:
        """Leave none."""
        self._left.clear()
