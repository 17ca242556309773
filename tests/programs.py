"""Small training programs, each with one thing that a recorder can get wrong.

Each function builds a `Training`; sizes are chosen so that storages can be told apart.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

PROGRAMS: Final[dict[str, Callable[[], "Training"]]] = {}


class Training:
    """A step, with what it trains. *run* is the whole of it."""

    def __init__(
        self, model: nn.Module, run: Callable[[], object], *optimizers: torch.optim.Optimizer
    ) -> None:
        self.model = model
        self.run = run
        self.optimizers = optimizers

    def __call__(self) -> None:
        self.run()

    def state(self) -> Iterator[tuple[str, object]]:
        """Yield all that training changes: parameters, gradients, buffers, states, randomness."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor
        for name, parameter in self.model.named_parameters():
            yield f"{name}.grad", parameter.grad
        for i, optimizer in enumerate(self.optimizers):
            for number, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    yield f"{i}.{number}.{key}", value
        yield "random", torch.get_rng_state()


def program(build: Callable[[], Training]) -> Callable[[], Training]:
    PROGRAMS[build.__name__] = build
    return build


def training(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **options: Any,
) -> Training:
    """Return the usual step: forget the gradients, forward, backward, update."""
    trained = optimizer(model.parameters(), **{"lr": 0.01, **options})

    def run() -> None:
        trained.zero_grad()
        loss().backward()
        trained.step()

    return Training(model, run, trained)


class Bag(nn.Module):
    """Parameters and modules by name, for programs that are no module."""

    def __init__(self, **parts: Tensor | nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)


# -- networks --------------------------------------------------------------------------------------


@program
def chain() -> Training:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5), nn.Tanh())
    x = torch.randn(3, 6)
    return training(model, lambda: model(x).sum())


@program
def residual() -> Training:
    layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
    x = torch.randn(3, 12)

    def loss() -> Tensor:
        y = x
        for layer in layers:
            y = y + torch.sigmoid(layer(y))
        return y.sum()

    return training(layers, loss)


@program
def residual_in_place() -> Training:
    layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
    x = torch.randn(3, 12)

    def loss() -> Tensor:
        y = layers[0](x)
        for layer in layers:
            z = layer(y)
            z += y
            y = z
        return y.pow(2).sum()

    return training(layers, loss)


@program
def fan_out() -> Training:
    """A value with five consumers: four sums of gradients."""
    model = nn.Linear(7, 9)
    x = torch.randn(4, 7)

    def loss() -> Tensor:
        y = model(x)
        return (y.sin() + y.cos() + y.tanh() + y.sigmoid() * y).sum()

    return training(model, loss)


@program
def fan_out_of_different_layouts() -> Training:
    """Gradients that meet transposed, contiguous and expanded."""
    model = Bag(weight=torch.randn(6, 9))
    x = torch.randn(4, 6)

    def loss() -> Tensor:
        v = model.weight.exp()
        first = (x @ v).sum()
        second = (v.t() * 2.0).sin().sum()
        return first + second + v.sum() + (v * v.cos()).sum()

    return training(model, loss)


@program
def a_gradient_inside_a_larger_storage() -> Training:
    """The first gradient that arrives is a slice of a larger one that nobody else holds."""
    model = Bag(weight=torch.randn(6, 9))
    x = torch.randn(4, 9)

    def loss() -> Tensor:
        v = model.weight.exp()
        other = v.sin().sum()
        return torch.cat([v, x]).pow(2).sum() + other

    return training(model, loss)


@program
def dense_concat() -> Training:
    layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(4))
    x = torch.randn(2, 3, 5, 5)

    def loss() -> Tensor:
        features = [x]
        for layer in layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1).mean()

    return training(layers, loss)


@program
def skips() -> Training:
    down = nn.ModuleList([nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)])
    up = nn.ModuleList([nn.Conv2d(7, 3, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)])
    x = torch.randn(2, 2, 8, 8)

    def loss() -> Tensor:
        y, kept = x, []
        for layer in down:
            kept.append(y)
            y = F.max_pool2d(F.relu(layer(y)), 2)
        for layer in up:
            y = F.interpolate(y, scale_factor=2)
            y = F.relu(layer(torch.cat([y, kept.pop()], 1)))
        return y.mean()

    return training(nn.ModuleList([down, up]), loss)


@program
def shared_weights() -> Training:
    layer = nn.Linear(10, 10)
    x = torch.randn(4, 10)
    return training(layer, lambda: layer(layer(layer(x)).tanh()).sum())


@program
def tied_embedding() -> Training:
    embedding = nn.Embedding(11, 6)
    head = nn.Linear(6, 11, bias=False)
    head.weight = embedding.weight
    tokens, labels = torch.randint(11, (2, 5)), torch.randint(11, (10,))
    model = nn.Sequential(embedding, nn.Linear(6, 6), head)
    return training(model, lambda: F.cross_entropy(model(tokens).flatten(0, 1), labels))


@program
def convolutions() -> Training:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.GroupNorm(2, 6),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(6, 5),
    )
    x, labels = torch.randn(3, 3, 10, 10), torch.randint(5, (3,))
    return training(model, lambda: F.cross_entropy(model(x), labels), momentum=0.9)


@program
def batch_norm_with_frozen_statistics() -> Training:
    norm = nn.BatchNorm1d(7)
    model = nn.Sequential(nn.Linear(5, 7), norm, nn.ReLU())
    norm.eval()
    x = torch.randn(4, 5)
    return training(model, lambda: model(x).sum())


@program
def batch_norm_twice() -> Training:
    """One layer called twice: its statistics are updated twice."""
    norm = nn.BatchNorm1d(7, momentum=None)
    x = torch.randn(4, 7)
    return training(norm, lambda: norm(norm(x).exp()).pow(2).sum())


@program
def dropouts() -> Training:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Dropout(0.2, inplace=True))
    x = torch.randn(3, 6)
    return training(model, lambda: F.alpha_dropout(model(x), 0.1, True).pow(2).sum())


@program
def recurrent() -> Training:
    lstm, gru = nn.LSTM(5, 7, num_layers=2, dropout=0.2), nn.GRU(7, 4, bidirectional=True)
    x = torch.randn(3, 2, 5)
    return training(nn.ModuleList([lstm, gru]), lambda: gru(lstm(x)[0])[0].sum())


@program
def recurrent_by_hand() -> Training:
    cell = nn.LSTMCell(5, 7)
    x = torch.randn(4, 2, 5)

    def loss() -> Tensor:
        state, outputs = None, []
        for now in x:
            state = cell(now, state)
            outputs.append(state[0])
        return torch.stack(outputs).pow(2).mean()

    return training(cell, loss)


@program
def transformer() -> Training:
    layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.1, batch_first=True, norm_first=True)
    x = torch.randn(2, 5, 12)
    return training(layer, lambda: layer(x).pow(2).sum(), torch.optim.AdamW)


@program
def attention_by_hand() -> Training:
    model = Bag(qkv=nn.Linear(8, 24), out=nn.Linear(8, 8))
    x, mask = torch.randn(2, 5, 8), torch.ones(5, 5).tril().bool()

    def loss() -> Tensor:
        q, k, v = model.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(~mask, float("-inf"))
        return model.out(F.dropout(scores.softmax(-1), 0.1) @ v).pow(2).sum()

    return training(model, loss)


# -- gradients and optimizers ----------------------------------------------------------------------


@program
def gradient_accumulation() -> Training:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    batches = torch.randn(2, 3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        for x in batches:
            model(x).sum().backward()
        optimizer.step()

    return Training(model, run, optimizer)


@program
def gradients_set_to_zero() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).sum().backward()
        optimizer.step()

    return Training(model, run, optimizer)


@program
def gradients_forgotten_at_the_end() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def run() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Training(model, run, optimizer)


@program
def gradients_set_to_zero_at_the_end() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def run() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return Training(model, run, optimizer)


@program
def retained_graph() -> Training:
    model = nn.Sequential(nn.Linear(6, 9), nn.Sigmoid(), nn.Linear(9, 2))
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        y = model(x)
        y.sum().backward(retain_graph=True)
        y.pow(2).sum().backward()
        optimizer.step()

    return Training(model, run, optimizer)


@program
def gradient_penalty() -> Training:
    """A gradient of a gradient: backward operations save tensors of their own."""
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.randn(3, 6)

    def run() -> None:
        optimizer.zero_grad()
        x = data.clone().requires_grad_()
        y = model(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (y.mean() + slope.pow(2).mean()).backward()
        optimizer.step()

    return Training(model, run, optimizer)


@program
def gradients_by_hand() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)

    def run() -> None:
        found = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), found, strict=True):
                parameter.sub_(gradient, alpha=0.1)

    return Training(model, run)


@program
def two_losses() -> Training:
    model = Bag(body=nn.Linear(6, 9), one=nn.Linear(9, 2), two=nn.Linear(9, 3))
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        y = model.body(x).relu()
        return model.one(y).sum() + model.two(y).pow(2).sum()

    return training(model, loss)


@program
def two_networks_that_compete() -> Training:
    """The first's loss goes through the second; what it leaves there is thrown away."""
    maker, judge = nn.Linear(4, 6), nn.Linear(6, 1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (maker, judge)]
    noise, real = torch.randn(3, 4), torch.randn(3, 6)

    def run() -> None:
        optimizers[1].zero_grad()
        fake = maker(noise)
        (judge(fake.detach()).mean() - judge(real).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (-judge(fake).mean()).backward()
        optimizers[0].step()

    return Training(nn.ModuleList([maker, judge]), run, *optimizers)


@program
def frozen_layers() -> Training:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2))
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    x = torch.randn(3, 6)
    return training(model, lambda: model(x).sum())


@program
def saved_for_nothing() -> Training:
    """A branch dies with forward: what it saved is never asked for."""
    model = Bag(one=nn.Linear(6, 8), two=nn.Linear(6, 5))
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        unused = model.two(x).sigmoid().exp()
        unused = unused * 2.0 + unused.mean()
        return model.one(x).exp().sum()

    return training(model, loss)


@program
def overwritten_after_it_was_saved_for_nothing() -> Training:
    """Autograd allows it: no backward asks for what was overwritten."""
    model = nn.Linear(6, 8)
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        scratch = torch.ones(3, 8)
        y = model(x)
        unused = y * scratch
        scratch.zero_()
        del unused
        unused = y.exp()
        unused.zero_()
        return y.sin().sum()

    return training(model, loss)


@program
def a_branch_without_gradient() -> Training:
    """A value is saved for a branch that no loss reaches."""
    model = Bag(one=nn.Linear(6, 8), two=nn.Linear(6, 5))
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        unused = model.two(x).exp()
        used = model.one(x).exp().sum()
        del unused
        return used

    return training(model, loss)


@program
def clipped_gradients() -> Training:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def run() -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return Training(model, run, optimizer)


@program
def many_optimizers() -> Training:
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
    makers = (
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Adam(p, foreach=True),
        lambda p: torch.optim.Adam(p, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    )
    pairs = zip(makers, layers, strict=True)
    optimizers = [make(layer.parameters()) for make, layer in pairs]
    x = torch.randn(3, 6)

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        y = x
        for layer in layers:
            y = layer(y).tanh()
        y.sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    return Training(layers, run, *optimizers)


@program
def scheduled_learning_rate() -> Training:
    model = nn.Linear(6, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    x = torch.randn(3, 6)

    def run() -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        schedule.step()

    return Training(model, run, optimizer)


@program
def averaged_weights() -> Training:
    model, average = nn.Linear(6, 9), nn.Linear(6, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(3, 6)

    def run() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            target = average(x)
        F.mse_loss(model(x), target).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 0.1)

    return Training(nn.ModuleList([model, average]), run, optimizer)


@program
def parameters_replaced_by_data() -> Training:
    """An update that gives each parameter another storage."""
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)

    def run() -> None:
        model.zero_grad()
        model(x).sum().backward()
        for parameter in model.parameters():
            parameter.data = parameter.data - 0.1 * parameter.grad

    return Training(model, run)


# -- what the program holds ------------------------------------------------------------------------


@program
def activations_kept_to_the_end_of_forward() -> Training:
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        kept = [x]
        for layer in layers:
            kept.append(layer(kept[-1]).sigmoid())
        return kept[-1].sum()

    return training(layers, loss)


@program
def activations_kept_beyond_backward() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        hidden = model.one(x).sigmoid()
        loss = model.two(hidden).sum()
        loss.backward()
        optimizer.step()
        assert hidden.shape == (3, 7)

    return Training(model, run, optimizer)


@program
def activations_deleted_at_once() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = model.one(x)
        z = y.exp()
        del y
        z = z * 3.0
        return model.two(z).sum()

    return training(model, loss)


@program
def a_loss_kept_for_the_next_step() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    kept = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        loss = model(x).exp().sum()
        loss.backward()
        optimizer.step()
        kept["loss"] = loss

    return Training(model, run, optimizer)


@program
def an_output_kept_for_the_next_step() -> Training:
    """Truncated backpropagation through time: the state goes on, its graph does not."""
    cell = nn.GRUCell(5, 7)
    x = torch.randn(2, 5)
    kept = {"state": torch.zeros(2, 7)}
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        state = cell(x, kept["state"])
        state.pow(2).sum().backward()
        optimizer.step()
        kept["state"] = state.detach()

    return Training(cell, run, optimizer)


@program
def a_feature_kept_on_the_module() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)
    model.feature = None

    def loss() -> Tensor:
        model.feature = model.one(x).sigmoid()
        return model.two(model.feature).sum()

    return training(model, loss)


@program
def a_running_total() -> Training:
    model = Bag(layer=nn.Linear(6, 9))
    model.register_buffer("total", torch.zeros(()))
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        loss = model.layer(x).sum()
        loss.backward()
        optimizer.step()
        model.total += loss.detach()

    return Training(model, run, optimizer)


@program
def retained_gradients_and_hooks() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = model.one(x)
        y.retain_grad()
        z = y.sigmoid()
        z.register_hook(lambda gradient: gradient * 0.5)
        return model.two(z + y).sum()

    return training(model, loss)


@program
def retained_gradients_of_two_passes() -> Training:
    """The second is added to the first out of place: it is no sum of the engine's."""
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        y = model.one(x).exp()
        y.retain_grad()
        loss = model.two(y).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()

    return Training(model, run, optimizer)


@program
def a_gradient_that_a_hook_keeps() -> Training:
    """The first of two gradients is held elsewhere: no sum may be put into it."""
    model = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    kept = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        kept.clear()
        y = model(x)
        a, b = y.sin(), y.cos()
        y.exp().sum().backward(retain_graph=True)
        z = a * b
        a.register_hook(kept.append)
        z.sum().backward()
        optimizer.step()
        kept.clear()

    return Training(model, run, optimizer)


# -- autograd's corners ----------------------------------------------------------------------------


class Twice(torch.autograd.Function):
    """Reads its saved tensors twice, and keeps one more tensor that no hook sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(x, y)
        ctx.scale = scale * 2.0
        return y * ctx.scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _, y = ctx.saved_tensors
        first = gradient * y
        x, _ = ctx.saved_tensors
        return first * ctx.scale + 0.0 * x, None


@program
def custom_function() -> Training:
    model = nn.Linear(6, 9)
    x, scale = torch.randn(3, 6), torch.rand(9)
    return training(model, lambda: Twice.apply(model(x), scale).sum())


class _Swallow(torch.autograd.Function):
    """Saves what backward never asks for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2.0


@program
def saved_but_never_asked_for() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    return training(model, lambda: _Swallow.apply(model(x).exp()).sin().sum())


@program
def checkpointed() -> Training:
    blocks = nn.ModuleList(
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
    )
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=False, preserve_rng_state=False)
        return y.sum()

    return training(blocks, loss)


@program
def checkpointed_with_dropout() -> Training:
    block = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.4), nn.ReLU(), nn.Linear(12, 8))
    x = torch.randn(3, 8)
    return training(block, lambda: checkpoint(block, x, use_reentrant=False).sum())


@program
def hooks_of_the_users_own() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = model.one(x).sigmoid()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t + 0.0, lambda t: t):
            z = y.exp()
        return model.two(z).sum()

    return training(model, loss)


@program
def detached_values() -> Training:
    model = Bag(one=nn.Linear(8, 7), two=nn.Linear(7, 5))
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = model.one(x).sigmoid()
        return model.two(y * y.detach()).sum() + (y.detach() * y).exp().sum()

    return training(model, loss)


@program
def straight_through() -> Training:
    model = nn.Linear(8, 7)
    x = torch.randn(3, 8)

    def loss() -> Tensor:
        y = model(x)
        return (y + (y.round() - y).detach()).pow(2).sum()

    return training(model, loss)


@program
def views_of_all_kinds() -> Training:
    model = nn.Linear(6, 12)
    x = torch.randn(4, 6)

    def loss() -> Tensor:
        y = model(x)
        a = y.view(4, 3, 4).transpose(1, 2)[:, 1:, ::2]
        b = y[1].expand(5, 12)
        c = y.unfold(1, 3, 2).permute(2, 0, 1)
        d = y.diagonal() * y.t()[2]
        return (a.sin() * a).sum() + (b * b.exp()).sum() + c.cos().sum() + d.sum()

    return training(model, loss)


@program
def tensors_set_to_other_storages() -> Training:
    """As recurrent networks on a GPU do with their buffer of weights."""
    layer = nn.Linear(6, 8)
    x = torch.randn(5, 6)

    def loss() -> Tensor:
        y = layer(x).relu()
        with torch.no_grad():
            part = torch.empty(0).set_(y.untyped_storage(), 2, (3,))  # type: ignore[call-overload]
            whole = torch.empty(7).set_(y.detach())  # whose own storage dies there
            scale = part.sum() + whole.sum()
        return y.sum() * scale.item()

    return training(layer, loss)


@program
def in_place_on_views() -> Training:
    model = nn.Linear(6, 12)
    x = torch.randn(4, 6)

    def loss() -> Tensor:
        y = model(x).sigmoid() + 1.0
        y[:, :4] *= 2.0
        y[1].neg_()
        z = y.view(2, 24)
        z[:, 3].add_(1.0)
        return (z.pow(2)).sum() + y.sin().sum()

    return training(model, loss)


@program
def in_place_chain() -> Training:
    model = nn.Conv2d(2, 3, 3, bias=False)
    x = torch.randn(2, 2, 6, 6)
    return training(model, lambda: model(x).mul_(2.0).add_(1.0).sigmoid_().sum())


@program
def a_buffer_filled_by_slices() -> Training:
    model = nn.Linear(6, 4)
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        out = torch.empty(3, 12)
        for i in range(3):
            out[:, 4 * i : 4 * i + 4] = model(x * float(i))
        return out.exp().sum()

    return training(model, loss)


def results_into_an_empty_tensor() -> Training:
    """`out=` grows a tensor that was empty."""
    model = nn.Linear(6, 4)
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        grown = torch.empty(0)
        with torch.no_grad():
            torch.exp(x, out=grown)
        return model(grown).exp().sum()

    return training(model, loss)


def a_storage_that_shrinks_and_grows() -> Training:
    model = nn.Linear(6, 4)
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        y = x * 2.0
        scratch = y * 3.0
        scratch.untyped_storage().resize_(0)
        z = model(y)
        scratch.untyped_storage().resize_(y.nbytes)
        with torch.no_grad():
            scratch.copy_(y)
        return (z.exp() * scratch[:, :4]).sum()

    return training(model, loss)


@program
def fourier_layers() -> Training:
    model = nn.Sequential(FourierLayer(4, 5), FourierLayer(4, 5), nn.Linear(16, 2))
    x = torch.randn(3, 4, 16)
    return training(model, lambda: model(x).pow(2).mean(), torch.optim.Adam)


@program
def complex_features() -> Training:
    """Conjugates and parts of complex parameters, lazy as torch makes them, are kept."""
    model = Bag(
        a=torch.randn(5, 7, dtype=torch.cfloat),
        b=torch.randn(7, 5, dtype=torch.cfloat),
    )

    def loss() -> Tensor:
        a, b = (each * each for each in model.parameters())
        product = a.conj() @ b.mH.conj().mT
        parts = (a.conj().imag * b.mT.real).sin().exp()
        return (
            product.abs().sum()
            + parts.sum()
            + torch.view_as_real((a @ b).conj().resolve_conj()).sin().sum()
        )

    return training(model, loss)


@program
def mixed_precision() -> Training:
    model = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 5))
    x, labels = torch.randn(4, 8), torch.randint(5, (4,))

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(x), labels)

    return training(model, loss)


@program
def weight_norm() -> Training:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9))
    x = torch.randn(3, 6)
    return training(model, lambda: model(x).sum())


@program
def results_into_given_tensors() -> Training:
    model = nn.Linear(6, 4)
    x = torch.randn(3, 6)

    def loss() -> Tensor:
        there = torch.empty(3, 6)
        with torch.no_grad():
            torch.mul(x, 2.0, out=there)
        return model(there).exp().sum()

    return training(model, loss)


@program
def a_gradient_that_is_never_summed_up() -> Training:
    """Gradients go to the parameter one by one, as each backward pass ends."""
    model = Bag(weight=torch.randn(6, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 6)

    def run() -> None:
        optimizer.zero_grad()
        for scale in (1.0, 2.0, 3.0):
            (x @ model.weight * scale).sin().sum().backward()
        optimizer.step()

    return Training(model, run, optimizer)


# -- Python ----------------------------------------------------------------------------------------


@program
def the_loss_is_printed() -> Training:
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history: list[float] = []

    def run() -> None:
        optimizer.zero_grad()
        loss = model(x).exp().sum()
        history.append(loss.item())
        loss.backward()
        if (loss.detach() > 0).all():
            optimizer.step()
        history.append(model.weight.grad.norm().item())

    return Training(model, run, optimizer)


@program
def a_branch_on_data() -> Training:
    model = Bag(one=nn.Linear(6, 9), two=nn.Linear(6, 7))
    x = torch.rand(3, 6)

    def loss() -> Tensor:
        layer = model.one if x.sum() > 0 else model.two
        return layer(x).exp().sum()

    return training(model, loss)


@program
def batches_made_in_the_step() -> Training:
    model = nn.Linear(6, 9)

    def loss() -> Tensor:
        x = torch.randn(3, 6)
        weights = torch.arange(9, dtype=torch.float32)
        return (model(x) * weights).sum()

    return training(model, loss)


@program
def constants_made_in_the_step() -> Training:
    """Tensors of Python numbers, which appear without an operator."""
    model = nn.Linear(6, 9)

    def loss() -> Tensor:
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
        scale = torch.as_tensor([0.5] * 9)
        return (model(x) * scale).exp().sum()

    return training(model, loss)


@program
def evaluation_inside_the_step() -> Training:
    model = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 2))
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        model.eval()
        with torch.inference_mode():
            model(x).argmax(-1)
        model.train()

    return Training(model, run, optimizer)


# -- formulas --------------------------------------------------------------------------------------

INDEX = torch.tensor([0, 1, 1])
COLUMNS = torch.zeros(5, 2, dtype=torch.long)
LABELS = torch.arange(5)
TARGET = torch.linspace(0.1, 0.9, 35).view(5, 7)
MASK = torch.zeros(4, 4)


class OwnSum(torch.autograd.Function):
    """Adds in its backward, and then lets go of what it added: a new sum all the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x + gradient * x


class OwnIndex(torch.autograd.Function):
    """Does in its backward what torch's own formula does in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x[INDEX]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_zeros(5, 7).index_put((INDEX,), gradient, True)


def formula(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], Training]:
    """Return a program that is one formula of parameters."""

    def build() -> Training:
        weights = [torch.rand(*shape) for shape in shapes or ((5, 7),)]
        model = Bag(**{f"w{i}": weight for i, weight in enumerate(weights)})
        return training(model, lambda: function(*model.parameters()).sum())

    return build


FORMULAS: Final[dict[str, Callable[[], Training]]] = {
    "index": formula(lambda w: (w * w)[INDEX] * w[:3]),
    "index with a new tensor": formula(lambda w: (w * w)[torch.tensor([0, 1, 1])].exp()),
    "index_select": formula(lambda w: (w * w).index_select(0, INDEX).exp()),
    "index_add": formula(lambda w: (w * w).index_add(0, INDEX, w[:3].exp()).sin()),
    "gather": formula(lambda w: (w * w).gather(1, COLUMNS) * w[:, :2]),
    "scatter": formula(lambda w: (w * w).scatter(1, COLUMNS, w[:, :2].exp()).sin()),
    "masked_fill": formula(lambda w: (w * w).masked_fill(w > 0.5, 1.0).exp()),
    "masked_select": formula(lambda w: (w * w).masked_select(w > 0.5).exp()),
    "where": formula(lambda w: torch.where(w > 0.5, w * w, w).exp()),
    "slice and select": formula(lambda w: (w * w)[1:3].exp().sum() + (w * w)[0].exp().sum()),
    "maximum of all": formula(lambda w: (w * w).max() * 2.0),
    "maximum of rows": formula(lambda w: (w * w).amax(1) + (w * w).max(dim=1).values),
    "median": formula(lambda w: (w * w).median(1).values.exp()),
    "sort": formula(lambda w: (w * w).sort(1).values.exp()),
    "topk": formula(lambda w: (w * w).topk(2).values.exp()),
    "prod": formula(lambda w: (w * w).prod()),
    "cumsum": formula(lambda w: (w * w).cumsum(0).exp()),
    "cumprod": formula(lambda w: (w * w).cumprod(0)),
    "norms": formula(lambda w: (w * w).norm() + (w * w).norm(dim=0) + (w * w).norm(p=1)),
    "variance": formula(lambda w: (w * w).std() + (w * w).var(1).sum() + (w * w).logsumexp(1)),
    "powers": formula(lambda w: (w * w).pow(2.5).sqrt() + (w * w).pow(w) + w.abs().log1p()),
    "normalize": formula(lambda w: F.normalize(w * w) + F.cosine_similarity(w * w, w)[:, None]),
    "distances": formula(lambda w: torch.cdist(w * w, w)),
    "softmax": formula(lambda w: (w * w).softmax(0) * (w * w).log_softmax(1)),
    "einsum": formula(lambda a, b: torch.einsum("bij,bkj->bk", a * a, b * b), (2, 3, 4), (2, 5, 4)),
    "matmul broadcast": formula(lambda a, b: torch.matmul(a * a, b * b), (2, 1, 3, 4), (5, 4, 2)),
    "linear on a batch": formula(
        lambda a, w, b: F.linear(a * a, w, b).exp(), (2, 3, 4), (5, 4), (5,)
    ),
    "linear on a transposed batch": formula(
        lambda a, w, b: F.linear((a * a).transpose(0, 1), w, b).exp(), (2, 3, 4), (5, 4), (5,)
    ),
    "bilinear": formula(lambda a, b, w: F.bilinear(a * a, b, w).exp(), (3, 4), (3, 5), (2, 4, 5)),
    "attention": formula(
        lambda q, k: F.scaled_dot_product_attention(q * q, k * k, k, is_causal=True),
        (1, 2, 4, 4),
        (1, 2, 4, 4),
    ),
    "attention with a mask": formula(
        lambda q: F.scaled_dot_product_attention(q * q, q, q, attn_mask=MASK), (1, 2, 4, 4)
    ),
    "attention with dropout": formula(
        lambda q: F.scaled_dot_product_attention(q * q, q, q, dropout_p=0.2), (1, 2, 4, 4)
    ),
    "cross entropy": formula(lambda w: F.cross_entropy(w * w, LABELS, label_smoothing=0.1)),
    "cross entropy of shares": formula(lambda w: F.cross_entropy(w * w, TARGET)),
    "binary cross entropy": formula(lambda w: F.binary_cross_entropy_with_logits(w * w, TARGET)),
    "binary cross entropy of shares": formula(lambda w: F.binary_cross_entropy(w * 0.9, TARGET)),
    "divergence": formula(lambda w: F.kl_div(w.log_softmax(1), TARGET, reduction="sum")),
    "distances as losses": formula(
        lambda w: F.mse_loss(w, TARGET) + F.l1_loss(w, TARGET) + F.smooth_l1_loss(w, TARGET)
    ),
    "triplets": formula(lambda w: F.triplet_margin_loss(w, w * w, w.exp())),
    "group_norm": formula(lambda w: F.group_norm(w * w, 2).exp(), (2, 4, 3, 3)),
    "instance_norm": formula(lambda w: F.instance_norm(w * w).exp(), (2, 4, 3, 3)),
    "rms_norm": formula(lambda a, w: F.rms_norm(a * a, (5,), w).exp(), (4, 5), (5,)),
    "local_response_norm": formula(lambda w: F.local_response_norm(w * w, 2), (2, 4, 3, 3)),
    "pooling": formula(
        lambda w: F.avg_pool2d(w * w, 2) + F.max_pool2d(w * w, 2) + F.lp_pool2d(w * w, 2.0, 2),
        (2, 4, 4, 4),
    ),
    "upsampling": formula(
        lambda w: F.interpolate(w * w, scale_factor=2.0, mode="bilinear").exp(), (2, 4, 3, 3)
    ),
    "padding": formula(lambda w: F.pad(w * w, (1, 1), mode="reflect").exp(), (2, 4, 4)),
    "unfold": formula(lambda w: F.unfold(w * w, 2).exp(), (2, 3, 4, 4)),
    "grid_sample": formula(
        lambda w, g: F.grid_sample(w * w, g, align_corners=False).exp(), (1, 2, 4, 4), (1, 3, 3, 2)
    ),
    "pixel_shuffle": formula(lambda w: F.pixel_shuffle(w * w, 2).exp(), (1, 8, 3, 3)),
    "transposed convolution": formula(
        lambda x, w: F.conv_transpose2d(x * x, w, stride=2).exp(), (2, 3, 4, 4), (3, 5, 2, 2)
    ),
    "grouped convolution": formula(
        lambda x, w: F.conv1d(x * x, w, groups=2, padding=1).exp(), (2, 4, 6), (6, 2, 3)
    ),
    "activations": formula(
        lambda w: F.gelu(w * w) + F.silu(w) + F.softplus(w) + F.elu(w) + F.leaky_relu(w) + F.mish(w)
    ),
    "more activations": formula(
        lambda w: F.hardswish(w * w) + F.logsigmoid(w) + F.relu6(w) + F.softsign(w) + F.celu(w)
    ),
    "glu": formula(lambda w: F.glu(w[:, :6] * w[:, :6]).exp()),
    "prelu": formula(lambda a, w: F.prelu(a * a, w).exp(), (4, 5), (5,)),
    "maxout": formula(lambda w: (w * w).view(5, 7).unfold(1, 2, 2).amax(-1).exp()),
    "embedding twice": formula(lambda w: (F.embedding(INDEX, w) + F.embedding(INDEX, w)).exp()),
    "embedding_bag": formula(lambda w: F.embedding_bag(INDEX[None], w).exp()),
    "transposed twice": formula(lambda w: TARGET @ w.t() + TARGET @ w.exp().t() + w.t()[:5]),
    "transposed in two places": formula(
        lambda w: (TARGET @ w.t()).exp().sum() + (TARGET[:2] @ w.t()).sum()
    ),
    "chunks": formula(lambda w: (w * w).chunk(5)[1] * (w * w).chunk(5)[3]),
    "unbind": formula(lambda w: torch.stack([row.exp() for row in (w * w).unbind(0)]).sin()),
    "split of a gate": formula(lambda w: _gate(*(w * w)[:, :6].tensor_split(2, 1))),
    "repetition": formula(lambda w: (w * w).repeat(2, 1).exp() + w.repeat_interleave(2, 0)),
    "roll and flip": formula(lambda w: (w * w).roll(1, 0).exp() + (w * w).flip(0)),
    "tril": formula(lambda w: (w * w).tril().exp() + (w * w).diag().diag_embed().sum()),
    "fft": formula(lambda w: torch.fft.fft(w * w).abs()),
    "rfft and back": formula(lambda w: torch.fft.irfft(torch.fft.rfft(w * w).exp()).sin()),
    "fft in two dimensions": formula(lambda w: torch.fft.fft2((w * w)[None]).angle().sin()),
    "complex product": formula(lambda w: (_complex(w) * _complex(w).exp()).abs()),
    "complex parts": formula(lambda w: _complex(w).exp().real * _complex(w).exp().imag),
    "complex conjugate": formula(lambda w: (_complex(w) * _complex(w).exp().conj()).imag.exp()),
    "conjugates that are saved": formula(
        lambda w: (_complex(w).exp().conj().t() @ _complex(w).conj()).abs()
    ),
    "negatives that are saved": formula(lambda w: _complex(w).exp().conj().imag.sin().exp()),
    "complex and real on the same bytes": formula(
        lambda w: torch.view_as_real(_complex(w).exp()).exp()[..., 0] * (w * w)[..., :3].exp()
    ),
    "polar": formula(lambda w: torch.polar((w * w), w.exp()).log().abs()),
    "stft": formula(lambda w: _spectrum((w * w).view(-1)).abs()),
    "complex solve": formula(
        lambda w: torch.linalg.solve(_complex(w) @ _complex(w).mH + torch.eye(5), _complex(w)).abs()
    ),
    "complex product by hand": formula(lambda w: (w[..., 0] * w[..., 1]).exp(), (3, 4, 2)),
    "svd": formula(lambda w: sum(part.exp().sum() for part in torch.linalg.svd(w * w, False))),
    "qr": formula(lambda w: sum(part.exp().sum() for part in torch.linalg.qr((w * w).t()))),
    "matrix_exp": formula(lambda w: torch.linalg.matrix_exp(w @ w.t())),
    "pinv": formula(lambda w: torch.linalg.pinv(w * w)),
    "atan2": formula(lambda w: torch.atan2(w * w, w.exp())),
    "std_mean": formula(lambda w: sum(torch.std_mean(w * w, 1))),
    "quantile": formula(lambda w: (w * w).quantile(0.3)),
    "cummax": formula(lambda w: (w * w).cummax(0).values),
    "kthvalue": formula(lambda w: (w * w).kthvalue(2).values),
    "take": formula(lambda w: (w * w).take(INDEX)),
    "corrcoef": formula(lambda w: torch.corrcoef(w * w)),
    "clamp by tensors": formula(lambda w: (w * w).clamp(w * 0.5, w.exp()).sin()),
    "setitem": formula(lambda w: _with_rows(w * w, w[:2].exp()).exp()),
    "half precision": formula(lambda w: ((w * w).bfloat16() @ w.t().bfloat16()).float()),
    "dropout of channels": formula(lambda w: F.dropout1d(w[None] * w).exp()),
    "random relu": formula(lambda w: F.rrelu(w - 0.5, training=True).exp()),
    # By hand, these make new tensors, where torch's own functions and formulas write in place.
    "linear by hand": formula(lambda w: (TARGET @ w.t() + w[:, 0]).exp()),
    "linear on a transposed batch by hand": formula(
        lambda a, w, b: ((a * a).transpose(0, 1) @ w.t() + b).exp(), (2, 3, 4), (5, 4), (5,)
    ),
    "attention by hand": formula(
        lambda q: (q @ q.transpose(-2, -1)).add(MASK).softmax(-1) @ q, (1, 2, 4, 4)
    ),
    "index_put by hand": formula(lambda w: torch.zeros(5, 7).index_put((INDEX,), w[:3].exp())),
    "scatter by hand": formula(lambda w: torch.zeros(5, 7).scatter(1, COLUMNS, w[:, :2]).exp()),
    "masked_scatter by hand": formula(lambda w: torch.zeros(5, 7).masked_scatter(w > 0.5, w)),
    "sigmoid minus target by hand": formula(lambda w: (w * w).sigmoid().sub(TARGET).mul(w)),
    "a sum in a backward by hand": formula(lambda w: OwnSum.apply(w * 2.0)),
    "an index in a backward by hand": formula(lambda w: OwnIndex.apply(w * 2.0).exp()),
    "solve": formula(lambda a, b: torch.linalg.solve(a @ a.t() + torch.eye(4), b), (4, 4), (4, 2)),
    "cholesky": formula(lambda a: torch.linalg.cholesky(a @ a.t() + torch.eye(4)), (4, 4)),
    "determinant": formula(lambda a: torch.logdet(a @ a.t() + torch.eye(4)), (4, 4)),
}


def _with_rows(a: Tensor, rows: Tensor) -> Tensor:
    a[1:3] = rows
    return a


def _complex(w: Tensor) -> Tensor:
    """Return complex numbers on the bytes of a new tensor."""
    return torch.view_as_complex((w * w)[:, :6].contiguous().view(5, 3, 2))


def _spectrum(signal: Tensor) -> Tensor:
    return torch.stft(signal, 8, 4, window=torch.hann_window(8), return_complex=True)


class FourierLayer(nn.Module):
    """A layer as in Fourier neural operators: its weights are complex numbers."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(0.3 * torch.randn(width, width, modes, dtype=torch.cfloat))
        self.beside = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(x)
        mixed = torch.zeros_like(found)
        low = found[..., : self.modes]
        mixed[..., : self.modes] = torch.einsum("bix,iox->box", low, self.weight)
        return F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.beside(x))


def _gate(a: Tensor, b: Tensor) -> Tensor:
    return a.sigmoid() * b.tanh()
