"""What autograd does not count, in a step that differs from the recorded one: right, or refused."""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from training import executor, undisturbed  # noqa: E402

POLICIES = [f"liveness+recompute:strategy={each},kinds=fork" for each in ("speed", "memory")]
X = torch.arange(24.0).reshape(3, 8) * 0.1


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


class Alike:
    """One step in two copies of a model: under an executor, and without. *loss* makes the loss in a
    frame of its own, so that nobody holds what it makes."""

    def __init__(self, policy, build, loss):
        self.runs = executor(policy)
        self.models = []
        for _ in range(2):
            torch.manual_seed(0)
            self.models.append(build())
        self.loss = loss

    def __call__(self, odd):
        found = []
        for model, around in zip(self.models, (nullcontext(), self.runs.step()), strict=True):
            torch.manual_seed(1)
            with around:
                model.zero_grad()
                self.loss(model, odd).backward()
            found.append([*(p.grad for p in model.parameters()), *model.buffers()])
        return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def deep():
    parts = [(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(3)]
    return nn.Sequential(*(part for block in parts for part in block))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_generator_of_the_users_own_makes_another_step(policy):
    generator = torch.Generator()

    def noise(own):
        generator.manual_seed(3)
        return torch.zeros(3, 8).bernoulli_(0.5, generator=generator if own else None)

    step = Alike(policy, deep, lambda m, own: (m(X * 1.0) * noise(own)).tanh().exp().sum())
    assert all(step(own) for own in (False, False, False, False, True))
    assert step.runs.report.mode == "kept"
    assert "other tensors" in step.runs.report.why
    assert all(step(own) for own in (True, False, True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tensor_where_none_was_given_makes_another_step(policy):
    """The last argument of an operator that was recorded without it."""

    def bounds(model, more):
        lowest = model[0].weight[:3] * 0.5
        highest = torch.full((3, 8), 0.1) * 1.0
        with torch.no_grad():
            between = torch.clamp(model[3].weight[:3], lowest, highest if more else None)
        return between, highest

    def loss(model, more):
        between, highest = bounds(model, more)
        found = (model(X * 1.0) * between).tanh().exp().sum()
        highest.fill_(7.0)
        return found

    step = Alike(policy, deep, loss)
    assert all(step(more) for more in (False, False, False, False, True, False))
