"""Hooks end where a schedule has no use for what is saved; training stays plain PyTorch's."""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from test_zoo import TINY  # noqa: E402
from torch import nn  # noqa: E402
from training import different, executor, network, plain, state, undisturbed  # noqa: E402

from superneurons.executor.course import WATCHED  # noqa: E402
from superneurons.executor.hooks import ExecutedStep  # noqa: E402
from superneurons.executor.reach import Reach  # noqa: E402

FIRST = "liveness+recompute:strategy=speed,kinds=fork,most={}"


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


def test_hooks_end_after_the_last_save_that_is_asked_for():
    # saves 0 to 3, then all of them come back; something is done with save 1, and when 2 comes back
    sequence = [0, 1, 2, 3, ~3, ~2, ~1, ~0]
    busy = [False, True, False, False, False, True, True, False]
    reach = Reach(sequence, busy)
    assert reach.last == 2  # 2 must come back through its hook
    assert reach.following(2) == [1, 2, 5, 5, 5, 6, 7, 8]
    assert reach.following(3) == list(range(1, 9))  # they may end later


def test_a_schedule_that_does_nothing_needs_one_hook():
    reach = Reach([0, 1, ~1, ~0], [False] * 4)
    assert reach.last == 0
    assert reach.following(0) == [3, 3, 3, 4]


@pytest.fixture
def hooks(monkeypatch):
    """Count the hooks that fire, in *calls*."""
    calls = []
    for name in ("pack", "unpack"):
        hook = getattr(ExecutedStep, name)

        def counted(self, given, hook=hook, name=name):
            calls.append(name)
            return hook(self, given)

        monkeypatch.setattr(ExecutedStep, name, counted)
    return calls


def counts(calls, build, runs, steps):
    """Return how many hooks fired in each step, and the training."""
    torch.manual_seed(0)
    training, found = build(), []
    for _ in range(steps):
        calls.clear()
        with runs.step():
            training()
        found.append((calls.count("pack"), calls.count("unpack")))
    return found, training


def test_keeping_everything_asks_for_one_save_but_in_every_sixteenth_step(hooks):
    build, steps = network("vit"), 2 * WATCHED + 3
    found, training = counts(hooks, build, executor("liveness"), steps)
    whole = found[2]
    assert min(whole) > 20
    assert found[:2] == [(0, 0)] * 2  # recorded, by other hooks
    assert [i for i in range(2, steps) if found[i] == whole] == [2, 2 + WATCHED, 2 + 2 * WATCHED]
    assert {each for each in found[2:] if each != whole} == {(1, 1)}
    assert different(plain(build, steps), state(training)) == []


@pytest.mark.parametrize("name", sorted(TINY.keys() - {"lstm"}))
def test_what_forward_makes_first_needs_hooks_for_the_first_saves_alone(name, hooks):
    build, runs = network(name), executor(FIRST.format("0B"))
    _, _ = counts(hooks, build, runs, 3)
    facts = runs.plans[0].trace.facts
    kept = [n for n, leave in zip(facts.nbytes, facts.leave, strict=True) if leave >= 0]
    # What is small, at the end, would fill the bound to the last byte.
    runs = executor(FIRST.format(f"{sum(kept) // 4}B,least={max(kept) // 8}B"))
    found, training = counts(hooks, build, runs, 5)
    assert runs.report.mode == "executed"
    assert runs.report.replays > 0
    assert runs.report.late_replays == 0
    assert runs.notices == []
    assert found[4][0] < found[2][0]
    assert found[4][1] < found[2][1]
    assert different(plain(build, 5), state(training)) == []


class Tail(nn.Module):
    """A network whose end can be changed from step to step."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, end):
        return end(self.last(self.first(x).tanh().exp())).sum()


def trained(ends, runs):
    """Train with one end after the other; return the gradients of each step."""
    torch.manual_seed(0)
    model, found = Tail(), []
    x = torch.randn(4, 6)
    for end in ends:
        with nullcontext() if runs is None else runs.step():
            model.zero_grad()
            model(x, end).backward()
        found.append([each.grad.clone() for each in model.parameters()])
    return found


def usual(y):
    return y.sigmoid()


def odd(y):
    return (y.sin() * y).exp()


@pytest.mark.parametrize("policy", ["liveness", FIRST.format("96B")])
def test_a_step_that_ends_otherwise_is_right_and_is_noticed_when_it_is_watched(policy):
    ends = [usual] * 5 + [odd] * (WATCHED - 2) + [usual]
    runs = executor(policy)
    for mine, yours in zip(trained(ends, runs), trained(ends, None), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))
    assert [each for each in runs.notices if "not the one that was recorded" in each]


@pytest.mark.parametrize("policy", ["liveness", FIRST.format("96B")])
def test_where_no_hook_is_autograd_itself_sees_what_is_modified_in_place(policy):
    runs = executor(policy)
    trained([usual] * 4, runs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trained([lambda y: y.exp().mul_(2)], runs)


def test_hooks_of_the_user_around_a_step_see_nothing_of_it_however_often_it_runs():
    ends = [usual] * (WATCHED + 4)
    seen = []

    def pack(tensor):
        seen.append(tuple(tensor.shape))
        return tensor.bfloat16()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.float()):
        found = trained(ends, runs := executor("liveness"))
        assert seen == []
        torch.ones(3, requires_grad=True).exp()
    torch.ones(4, requires_grad=True).exp()
    assert seen == [(3,)]
    assert runs.report.mode == "executed"
    for mine, yours in zip(found, trained(ends, None), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def test_hooks_of_the_user_inside_a_step_are_the_users():
    runs, seen = executor("liveness"), []

    def end(y):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: seen.append(1) or tensor, lambda tensor: tensor
        ):
            return y.sigmoid()

    ends, counts = [end] * 6, []
    torch.manual_seed(0)
    for _ in ends:
        before = len(seen)
        trained([end], runs)
        counts.append(len(seen) - before)
    assert counts == [1] * 6
    torch.ones(3, requires_grad=True).exp()
    assert len(seen) == 6
