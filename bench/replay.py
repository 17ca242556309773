"""What recomputation costs the host: `python bench/replay.py`, on the CPU with tiny tensors.

An operation that is run again beside its kernel, as that runs there; and an operator of forward
that the witness sees, beside the same step without one. The least of many steps.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from superneurons.executor import Executor
from superneurons.executor.replay import Replay

BLOCKS = 30
STEPS = 60
POLICY = "liveness+recompute:strategy=speed,kinds=conv/matmul"


def linear() -> nn.Module:
    """Return a network of operations so small that only the host's time counts."""
    blocks = [(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()) for _ in range(BLOCKS)]
    return nn.Sequential(*(part for block in blocks for part in block))


def convolutional() -> nn.Module:
    """Return the same with convolutions, batch normalization and ReLU in place."""
    blocks = [(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)) for _ in range(BLOCKS)]
    return nn.Sequential(*(part for block in blocks for part in block))


class Clock:
    """The time in a function, over all its calls since the last look."""

    def __init__(self) -> None:
        self.ns = 0
        self.calls = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time taken."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter_ns()
            result = function(*args, **kwargs)
            self.ns += time.perf_counter_ns() - begin
            self.calls += 1
            return result

        return timed

    def look(self) -> float:
        """Return the time so far in us, and start anew."""
        found, self.ns, self.calls = self.ns / 1e3, 0, 0
        return found


@contextmanager
def timed_replay(clock: Clock) -> Iterator[None]:
    """Take the time of all that is run again in the block."""
    plain = Replay.run
    Replay.run = clock.around(plain)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Replay.run = plain  # type: ignore[method-assign]


def steps(
    model: nn.Module, x: torch.Tensor, **options: bool
) -> tuple[Executor, Callable[[], None]]:
    """Return an executor, and a step that it has recorded."""
    runs = Executor(POLICY, machine="h200", device="cpu", **options)

    def step() -> None:
        with runs.step():
            model.zero_grad()
            model(x * 1.0).sum().backward()

    for _ in range(8):
        step()
    return runs, step


def least(function: Callable[[], None]) -> float:
    """Return the least time of a function in us."""
    clock = Clock()
    timed = clock.around(function)
    return min(timed() or clock.look() for _ in range(STEPS))


def measure(name: str, model: nn.Module, x: torch.Tensor) -> None:
    """Print what a network says."""
    runs, step = steps(model, x)
    kernels, replays = Clock(), Clock()
    with timed_replay(replays):
        whole = min(_spent(step, [replays])[0] for _ in range(STEPS))
        recipes = runs.plans[0].recipes
        for code in recipes.codes.values():
            code.kernel = kernels.around(code.kernel)
        inside = min(_spent(step, [kernels])[0] for _ in range(STEPS))
    count = runs.report.replays if runs.report is not None else 0
    print(
        f"{name}: {count} operations run again, {whole / count:.1f} us each, of that "
        f"{inside / count:.1f} us the kernel and {(whole - inside) / count:.1f} us beside it"
    )
    seen = max(recipes.watched) + 1
    looked, blind = (least(steps(model, x, assume_constant=each)[1]) for each in (False, True))
    print(
        f"    step with a witness {looked:.0f} us, without {blind:.0f} us: "
        f"{(looked - blind) / seen:.1f} us for each of {seen} operators of forward"
    )


def _spent(step: Callable[[], None], clocks: Sequence[Clock]) -> list[float]:
    for clock in clocks:
        clock.look()
    step()
    return [clock.look() for clock in clocks]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure("linear, layer norm, gelu", linear(), torch.rand(2, 4))
    measure("convolution, batch norm, relu in place", convolutional(), torch.rand(2, 2, 3, 3))
