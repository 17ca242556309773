"""Training under the executor beside plain training: what tests of the executor share."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from programs import PROGRAMS, Training
from test_zoo import TINY

from superneurons import zoo
from superneurons.executor import Executor
from superneurons.machines import find_machine
from superneurons.policies import Component, Part, Policy, Walk, Wish
from superneurons.schedules import Copy, Free


def network(name: str) -> Callable[[], Training]:
    """Return what builds the training of a tiny network of the zoo."""

    def build() -> Training:
        step = getattr(zoo, name)(**TINY[name])
        torch.manual_seed(1)
        return Training(step.model, step, step.optimizer)

    return build


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread, deterministic algorithms, and nothing for the garbage collector to walk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    trained(PROGRAMS["chain"], executor("baseline"), 3)  # what is imported late is there now
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


MACHINE = find_machine("h200")
SLAB_NBYTES = 1 << 20


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Everything(Component):
    """Send every saved storage to a *tier* as soon as it may leave; it comes back on demand."""

    name: ClassVar[str] = "everything"

    tier: str = "host"

    def begin(self, walk: Walk) -> Part:
        return _Everything(self.tier, walk)


class _Everything(Part):
    def __init__(self, tier: str, walk: Walk) -> None:
        self._tier = tier
        self._from: dict[int, list[int]] = {}
        for s, managed in enumerate(walk.facts.managed):
            if managed:
                self._from.setdefault(walk.facts.absent_from[s], []).append(s)

    def after(self, op: int, waiting: int | None) -> Iterable[Wish]:
        for s in self._from.get(op + 1, ()) if waiting is None else ():
            yield Copy(s, self._tier)
            yield Free(s)


def executor(policy: Policy | str, **options: object) -> Executor:
    """Return an executor on the emulated device, with small slabs."""
    return Executor(policy, machine=MACHINE, device="cpu", slab_nbytes=SLAB_NBYTES, **options)


def state(training: Training) -> list[tuple[str, object]]:
    """Return copies of all that training changes."""
    return [
        (name, each.clone() if isinstance(each, torch.Tensor) else each)
        for name, each in training.state()
    ]


def plain(build: Callable[[], Training], steps: int) -> list[tuple[str, object]]:
    """Return what plain PyTorch makes of so many steps."""
    torch.manual_seed(0)
    training = build()
    for _ in range(steps):
        training()
    return state(training)


def trained(
    build: Callable[[], Training], executor: Executor, steps: int
) -> list[tuple[str, object]]:
    """Return what so many steps make under an executor; the last is audited."""
    torch.manual_seed(0)
    training = build()
    for i in range(steps):
        executor.audit = i == steps - 1
        with executor.step():
            training()
    return state(training)


def different(
    ours: Iterable[tuple[str, object]], theirs: Iterable[tuple[str, object]]
) -> list[str]:
    """Return the names of what is not the same, bit for bit."""
    return [
        name
        for (name, mine), (other, yours) in zip(ours, theirs, strict=True)
        if name != other or not same(mine, yours)
    ]


def same(mine: object, yours: object) -> bool:
    """Return whether two values are the same; tensors in type, shape and every bit."""
    if not isinstance(mine, torch.Tensor) or not isinstance(yours, torch.Tensor):
        return mine == yours
    return (
        mine.dtype == yours.dtype
        and mine.shape == yours.shape
        and torch.equal(
            mine.contiguous().flatten().view(torch.uint8),
            yours.contiguous().flatten().view(torch.uint8),
        )
    )
