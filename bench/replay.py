"""What recomputation costs the host: `python bench/replay.py`, on the CPU with tiny tensors.

An operation that is run again against the same one called directly, and the forward of a step with
somebody looking on against one without.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

from superneurons.executor import Executor
from superneurons.executor.hooks import ExecutedStep
from superneurons.executor.plan import Action
from superneurons.executor.private import observed

BLOCKS = 30
STEPS = 60


def chain() -> nn.Module:
    """Return a network of operations so small that only the host's time counts."""
    torch.manual_seed(0)
    blocks = [(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()) for _ in range(BLOCKS)]
    return nn.Sequential(*(part for block in blocks for part in block))


def convolutions() -> nn.Module:
    """Return the same with convolutions, batch normalization and ReLU in place."""
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)) for _ in range(BLOCKS)]
    return nn.Sequential(*(part for block in blocks for part in block))


class Timed(ExecutedStep):
    """A step that takes the time of what it runs again."""

    spent_ns = 0

    def _do_all(self, due: tuple[Action, ...]) -> None:
        begin = time.perf_counter_ns()
        super()._do_all(due)
        if any(action.ops for action in due):
            Timed.spent_ns += time.perf_counter_ns() - begin


def least(function: Callable[[], object], times: int = STEPS) -> float:
    """Return the least time of a function in us."""
    found = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        function()
        found.append(time.perf_counter_ns() - begin)
    return min(found) / 1e3


def measure(name: str, model: nn.Module, x: torch.Tensor) -> None:
    """Print what a step of a model says."""
    import superneurons.executor.executor as place

    place.ExecutedStep = Timed  # type: ignore[misc]
    policy = "liveness+recompute:strategy=speed,kinds=conv/matmul"
    runs = Executor(policy, machine="h200", device="cpu")

    def step() -> None:
        with runs.step():
            model.zero_grad()
            model(x * 1.0).sum().backward()

    for _ in range(5):
        step()
    spent = []
    for _ in range(STEPS):
        Timed.spent_ns = 0
        step()
        spent.append(Timed.spent_ns)
    assert runs.report is not None
    count = runs.report.replays
    each = min(spent) / 1e3 / count
    (plan,) = runs.plans
    ran = [op for due in plan.due for action in due for op in action.ops if op >= 0]
    direct = sum(called(runs, op) for op in ran) / len(ran)
    forward = least(lambda: model(x * 1.0))

    def seen(func, args, kwargs):  # type: ignore[no-untyped-def]
        return func(*args, **kwargs)

    def watched() -> None:
        with observed(seen):
            model(x * 1.0)

    steps = plan.recipes
    ops = max(steps.watched) + 1
    print(
        f"{name}: {count} operations run again, {each:.2f} us each, {direct:.2f} us if called "
        f"directly, so {each - direct:.2f} us on top; forward of {ops} operators {forward:.0f} us, "
        f"seen by nobody's function {(least(watched) - forward) / ops:.2f} us more each"
    )
    looked = []
    for constant in (False, True):
        runs = Executor(policy, machine="h200", device="cpu", assume_constant=constant)
        for _ in range(5):
            step()
        looked.append(least(step))
    print(
        f"    step with a witness {looked[0]:.0f} us, without {looked[1]:.0f} us: "
        f"{(looked[0] - looked[1]) / ops:.2f} us an operator of forward"
    )


def called(runs: Executor, op: int) -> float:
    """Return what one operation takes if it is called by hand, on tensors of the same look."""
    code = runs.plans[0].recipes.codes[op]
    args, kwargs = list(code.recorded.args), dict(code.recorded.kwargs)
    for key in code.lists:
        args[key] = list(args[key])
    for source in code.sources:
        view = source.view
        tensor = torch.rand(view.shape).to(view.dtype)
        if source.inner < 0:
            args[source.key] = tensor
        else:
            args[source.key][source.inner] = tensor
    with torch.no_grad():
        return least(lambda: code.kernel(*args, **kwargs), 200)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure("linear, layer norm, gelu", chain(), torch.rand(2, 4))
    measure("convolution, batch norm, relu in place", convolutions(), torch.rand(2, 2, 3, 3))
