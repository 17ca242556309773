"""Where the host's time goes in a step that nobody looks at: forward, backward, optimizer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch


class PhaseTimes(NamedTuple):
    """What the host spent in each phase, in ns, as it issued one step.

    What comes after the last backward pass is the optimizer's; what comes before it and is in no
    backward pass is forward. It is the time to issue the step, unless something made the host wait.
    """

    forward_ns: int
    backward_ns: int
    optimizer_ns: int


class Stopwatch:
    """Times one step from `start` to `stop`, with the passes that `watch` sees in between; tells
    *ended* at the end of each."""

    def __init__(self, ended: Callable[[], None] | None = None) -> None:
        self._ended = ended
        self._passes: list[tuple[int, int]] = []
        self._start = 0
        self._inside = False

    def start(self) -> int:
        """Begin a step; return the time."""
        self._passes.clear()
        self._start = self.now()
        return self._start

    @staticmethod
    def now() -> int:
        """Return the time in ns, on a clock of its own."""
        return time.perf_counter_ns()

    def stop(self) -> PhaseTimes:
        """End the step."""
        end = self.now()
        if not self._passes:
            return PhaseTimes(end - self._start, 0, 0)
        inside = sum(last - first for first, last in self._passes)
        tail = end - self._passes[-1][1]
        return PhaseTimes(end - self._start - inside - tail, inside, tail)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """See the backward passes that begin inside the block.

        torch calls `torch.autograd.backward` by that name from `Tensor.backward` too, so putting
        ours there is enough, and costs one call a pass: a hook on every node would be in the way.
        """
        plain = {name: getattr(torch.autograd, name) for name in _PASSES}

        def timed(function: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                if self._inside:  # a checkpoint that runs its part again
                    return function(*args, **kwargs)
                self._inside, first = True, self.now()
                try:
                    return function(*args, **kwargs)
                finally:
                    self._inside = False
                    self._passes.append((first, self.now()))
                    if self._ended is not None:
                        self._ended()

            return run

        try:
            for name, function in plain.items():
                setattr(torch.autograd, name, timed(function))
            yield
        finally:
            for name, function in plain.items():
                setattr(torch.autograd, name, function)


_PASSES: Final = ("backward", "grad")
