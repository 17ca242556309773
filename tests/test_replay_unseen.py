"""What nobody counts or tells of, and steps that differ in that: right, or refused."""

import gc
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.modules.module import _global_forward_pre_hooks  # noqa: E402
from torch.optim.optimizer import _global_optimizer_pre_hooks  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from training import executor, undisturbed  # noqa: E402

from superneurons.errors import Unsupported  # noqa: E402

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


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_operator_that_is_looked_at_may_fail(policy):
    """As an allocation may; the program catches that, and goes on without it."""

    def rows(weight, failing):
        try:
            return functional.embedding(torch.arange(3) + (9 if failing else 1), weight)
        except IndexError:
            return weight[:3] * 2.0

    step = Alike(
        policy, deep, lambda m, failing: (m(X * 1.0) * rows(m[0].weight, failing)).exp().sum()
    )
    assert all(step(failing) for failing in (False, False, False, False))
    assert step.runs.report.mode == "executed"
    assert step(True)
    assert step.runs.report.mode == "kept"
    assert "has failed" in step.runs.report.why
    assert all(step(failing) for failing in (False, True, False))


def test_what_comes_back_is_saved_again_by_a_graph_inside_backward():
    """So it goes away and comes back once more, while the graph still has what came first."""

    def loss(model, _):
        found = (X * 1.0).requires_grad_()
        for k in range(3):
            found = checkpoint(model[3 * k : 3 * k + 3], found, use_reentrant=True) * 1.5
        return (found * 0.1).exp().sum()

    for _ in range(12):  # for it is chance which address is given again
        step = Alike(POLICIES[0], deep, loss)
        assert all(step(False) for _ in range(4))
        assert step.runs.report.mode == "executed"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_optimizer_that_has_become_a_fused_one_is_seen(policy):
    """Plain PyTorch does not notice it either; but its gradients are other ones."""
    torch.manual_seed(0)
    model, runs = deep(), executor(policy)

    def step(fused, early):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        with runs.step():
            loss = model(X * 1.0).exp().sum()
            if early:
                optimizer.step()
            loss.backward()
            optimizer.step()
            del loss

    for _ in range(4):
        step(False, False)
    step(True, False)
    assert runs.report.mode == "executed"
    assert runs.report.replays > 0
    with pytest.raises(Unsupported, match="an optimizer has run since"):
        step(True, True)


@pytest.mark.parametrize("policy", POLICIES)
def test_parameters_that_are_written_by_hand_are_no_source(policy):
    """Nobody tells when: so what starts from them stays, and an early write is right, too."""
    runs, found = executor(policy), []
    for around in (runs.step, nullcontext):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        for i in range(6):
            with around():
                model.zero_grad()
                loss = model(X * 1.0).tanh().exp().sin().sum()
                for each in model.parameters() if i == 4 else ():
                    each.data.clamp_(-0.01, 0.01)
                loss.backward()
                del loss
                for each in model.parameters():
                    each.data.add_(each.grad, alpha=-0.1)
            found.append([each.clone() for each in model.parameters()])
    for ours, theirs in zip(found[:6], found[6:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def normalized():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("late", [False, True])
def test_statistics_that_are_updated_once_after_they_were_computed_from_are_refused(policy, late):
    """No version tells of it; a module does."""

    def loss(model, odd):
        model.eval()
        found = model[2](model[1](model[0](X)).tanh()).exp().sin()
        found = (found * 1.0).sum() if late else found
        model.train(odd)
        if late and odd:
            with torch.no_grad():
                model[1](X + 1.0)
        return found if late else (found * model[1](model[0](X + 1.0)).tanh()).sum()

    step = Alike(policy, normalized, loss)
    assert all(step(False) for _ in range(4))
    assert step.runs.report.replays > 0
    with pytest.raises(Unsupported, match="a module has updated it since"):
        step(True)


# -- what no operator tells of ---------------------------------------------------------------------


def filled(model, i):
    """Zeros that a kernel of somebody's own fills."""
    found = torch.zeros(3, 8)
    found.numpy()[:] = X.numpy() * (i + 1)
    return (model(X * 1.0) * found).tanh().sum()


class Doubled(torch.autograd.Function):
    """What it is given is written in place, and saved: nothing reads it in between."""

    @staticmethod
    def forward(ctx, x):
        x.detach().numpy()[:] *= 2
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x


def doubled(model, _):
    return Doubled.apply(model(X * 1.0).sin()).tanh().sum()


@pytest.mark.parametrize("policy", [*POLICIES, "liveness+offload+recompute"])
@pytest.mark.parametrize("loss", [filled, doubled])
def test_what_is_written_by_no_operator_is_never_computed_again(loss, policy):
    step = Alike(policy, deep, loss)
    assert all(step(i) for i in range(5))
    assert step.runs.report.mode == "executed"
    assert step.runs.report.replays > 0


# -- a loss that is kept for after the step --------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["fused", "statistics"])
def test_what_is_written_after_the_step_is_seen_while_a_graph_is_kept(policy, how):
    torch.manual_seed(0)
    model, other, runs, kept = normalized().eval(), deep(), executor(policy), None
    for i in range(4):
        with runs.step():
            other.zero_grad()
            loss = (model(X * 1.0).exp().sin() * 1.0).sum()
            other(X * 1.0).sum().backward()
            kept = loss if i == 3 else None
            del loss
    assert runs.report.mode == "executed"
    hooks = len(_global_optimizer_pre_hooks), len(_global_forward_pre_hooks)
    assert hooks == (1, 1)  # of the kept graph
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    if how == "fused":
        torch.optim.SGD(model.parameters(), lr=0.1, fused=True).step()
    else:
        model.train()(X * 1.0)
    with pytest.raises(Unsupported, match=r"(run|updated it) since"):
        kept.backward()
    del kept
    gc.collect()
    assert (len(_global_optimizer_pre_hooks), len(_global_forward_pre_hooks)) == (0, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # of torch.func itself
def test_zeros_of_forward_mode_have_no_bytes_to_look_at():
    def make():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)

        def step():
            x = torch.randn(2, 4)
            one = torch.ones_like(layer.weight)
            _, slope = torch.func.jvp(
                lambda w: torch.tanh(x @ w).sum(), (layer.weight.detach(),), (one,)
            )
            layer.zero_grad()
            (torch.sigmoid(layer(x)).sum() * slope.detach()).backward()

        return layer, step

    expected, step = make()
    for _ in range(4):
        step()
    found, step = make()
    runs = executor("liveness+recompute:strategy=speed,kinds=matmul")
    for _ in range(4):
        with runs.step():
            step()
    assert torch.equal(found.weight.grad, expected.weight.grad)
