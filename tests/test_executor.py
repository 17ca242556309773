"""The executor when things are not as usual: other batches, modifications, exceptions, no room."""

import gc
import weakref
from contextlib import nullcontext
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch")

from programs import PROGRAMS, Training, training  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from training import Everything, different, executor, plain, state, trained, undisturbed  # noqa: E402

from superneurons.errors import (  # noqa: E402
    DoesNotFit,
    InvalidInput,
    UnknownName,
    Unsupported,
)
from superneurons.executor import Executor  # noqa: E402
from superneurons.executor.cpu_backend import EmulatedBackend  # noqa: E402
from superneurons.executor.entries import Entry, View  # noqa: E402
from superneurons.executor.links import _beside  # noqa: E402
from superneurons.executor.slabs import Slabs  # noqa: E402
from superneurons.schedules import Copy, Fetch, Free  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


def deep(width=12, depth=4):
    """A chain whose hidden layers nobody but autograd holds."""
    layers = [
        part for _ in range(depth) for part in (nn.Linear(width, width), nn.Sigmoid(), nn.Tanh())
    ]
    return nn.Sequential(*layers)


class Loop:
    """A training loop over batches of any size, under an executor or without."""

    def __init__(self, runs=None, width=12):
        torch.manual_seed(0)
        self.model = deep(width)
        self.width = width
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.runs = runs
        self.losses = []
        self.generator = torch.Generator().manual_seed(1)

    def body(self, x):
        self.optimizer.zero_grad()
        loss = self.model(x).pow(2).mean()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def __call__(self, rows, tell=False):
        x = torch.randn(rows, self.width, generator=self.generator)
        if self.runs is None:
            self.body(x)
        else:
            with self.runs.step(*([x] if tell else [])):
                self.body(x)

    def state(self):
        return [
            *self.model.state_dict().items(),
            *((name, p.grad) for name, p in self.model.named_parameters()),
            ("losses", self.losses),
        ]


def compare(rows, policy=None, tell=False, **options):
    ours, theirs = Loop(executor(policy or Everything(), **options)), Loop()
    modes = []
    for each in rows:
        ours(each, tell)
        theirs(each)
        modes.append(ours.runs.report.mode)
    assert different(ours.state(), theirs.state()) == []
    return modes, ours.runs


# -- the phases ------------------------------------------------------------------------------------


def test_two_steps_are_recorded_and_later_ones_executed():
    modes, runs = compare([4] * 5)
    assert modes == ["safe", "recorded", "executed", "executed", "executed"]
    done = runs.report.done
    assert done["copy"] >= done["drop"] == done["gone"] == done["fetch"] > 4


def test_what_is_executed_is_the_schedule():
    _, runs = compare([4] * 3)
    (plan,) = runs.plans
    names = plan.trace.facts.names
    for kind, what in ((Copy, "copy"), (Fetch, "fetch")):
        wanted = [names[i.storage] for i in plan.schedule.instructions if isinstance(i, kind)]
        done = [s.name for s in runs.report.storages for each in s.done if each == what]
        assert sorted(wanted) == sorted(done)
        assert wanted
    moved = plan.trace.facts.managed
    frees = [i.storage for i in plan.schedule.instructions if isinstance(i, Free)]
    twice = {names[s] for s in frees if moved[s] and frees.count(s) > 1}
    assert {s.name for s in runs.report.storages if s.freed} == twice


def test_what_is_not_freed_is_told_with_who_holds_it():
    model = deep(8, 3)
    model.feature = None
    keep = []

    def catch(module, inputs, output):
        if keep:
            model.feature = output

    model[1].register_forward_hook(catch)
    runs = executor(Everything())
    for i in range(4):
        if i == 3:
            keep.append(True)
            runs.audit = True
        with runs.step():
            model(torch.ones(2, 8)).sum().backward()
    (stuck,) = [each for each in runs.report.storages if "there" in each.done]
    assert (stuck.nbytes, stuck.copied, stuck.freed, stuck.holders) == (64, True, False, 1)
    assert runs.report.not_freed_nbytes == 64
    assert any("'feature', attribute of a Sequential" in each for each in stuck.held_by)
    assert runs.differences  # and the bytes show it


def test_small_storages_that_leave_together_are_copied_together():
    def build():
        models = [deep(6, 2) for _ in range(3)]
        x = torch.linspace(0, 1, 12).view(2, 6)
        together = nn.ModuleList(models)
        return training(together, lambda: sum(model(x).sin().sum() for model in models))

    runs = executor("liveness+offload:release=3,lookahead=9,kinds=matmul/activation/elementwise")
    assert different(plain(build, 4), trained(build, runs, 4)) == []
    sizes = [len(action.storages) for due in runs.plans[0].due for action in due]
    assert max(sizes) > 1
    assert runs.differences == []


def test_nothing_is_kept_when_safe():
    # The step that is recorded holds less than one that keeps its activations.
    _, runs = compare([4])
    assert runs.slabs["host"].peak_nbytes > 0
    assert runs.slabs["host"].used_nbytes == 0


def test_the_links_are_measured_if_no_machine_is_given():
    runs = Executor("baseline", device="cpu")
    assert {tier.name for tier in runs.machine.tiers} == {"host", "peer"}
    (notice,) = runs.notices
    assert "the links were measured: host" in notice
    link = runs.machine.tiers[0].link
    assert link.out_bytes_per_s > 10**6
    assert link.latency_ns > 0


# -- other batches ---------------------------------------------------------------------------------


def test_each_batch_that_is_told_has_a_schedule():
    modes, runs = compare([4, 4, 4, 3, 3, 4, 3, 4], tell=True)
    assert modes == ["safe", "recorded", "executed", "recorded", *["executed"] * 4]
    assert len(runs.plans) == 2
    # A tier's memory is not on the device, though here it is in the same one.
    assert runs.plans[1].trace.facts.start_nbytes < runs.slabs["host"].held_nbytes
    assert runs.notices == []


@pytest.mark.parametrize("rows", [[4, 3] * 4, [4, 3, 3] * 3, [4, 3, 2] * 3])
def test_batches_that_take_turns_from_the_first_step_on_are_recorded_too(rows):
    modes, runs = compare(rows, tell=True)
    kinds = len(set(rows))
    assert modes.count("safe") == 1
    assert modes.count("recorded") == len(runs.plans) == kinds
    assert modes[-kinds:] == ["executed"] * kinds
    assert runs.notices == []


class Keeping(Loop):
    """A loop that keeps something of every step."""

    def __init__(self, keep, runs=None):
        super().__init__(runs)
        self.keep = keep

    def body(self, x):
        self.optimizer.zero_grad()
        loss = self.model(x).pow(2).mean()
        loss.backward()
        self.optimizer.step()
        self.losses.append(self.keep(loss))

    def state(self):
        *others, (_, losses) = super().state()
        return [*others, *((f"loss {i}", each) for i, each in enumerate(losses))]


@pytest.mark.parametrize("tell", [False, True], ids=["untold", "told"])
@pytest.mark.parametrize("keep", [lambda loss: loss, torch.Tensor.detach], ids=["loss", "detached"])
def test_losses_may_be_kept_from_step_to_step(keep, tell):
    ours, theirs = Keeping(keep, executor(Everything(), audit=True)), Keeping(keep)
    modes = []
    for rows in (4, 4, 4, 3, 3, 4, 3):
        for loop in (ours, theirs):
            loop(rows, tell)
        modes.append(ours.runs.report.mode)
        assert ours.runs.differences == []
    assert different(ours.state(), theirs.state()) == []
    assert modes.count("executed") == (4 if tell else 3)


def test_what_is_kept_of_every_step_must_be_small():
    ours = Keeping(lambda loss: torch.zeros(1 << 19), executor(Everything()))
    for _ in range(6):
        ours(4)
    assert ours.runs.report.mode == "kept"
    assert "zeros (2097152 bytes)" in ours.runs.notices[-1]


def test_a_batch_that_is_not_told_keeps_everything_once_and_is_then_known():
    modes, runs = compare([4, 4, 4, 3, 3, 4, 3, 3])
    assert modes == [
        "safe",
        "recorded",
        "executed",
        "kept",
        "recorded",
        "executed",
        "executed",
        "executed",
    ]
    (notice,) = runs.notices
    assert "torch.float32 [3, 12]" in notice
    assert len(runs.plans) == 2


@pytest.mark.parametrize("rows", [[4, 3], [4, 3, 3], [4, 4, 4, 4, 3], [4, 3, 2]], ids=repr)
def test_batches_that_take_turns_untold_have_schedules_in_the_end(rows):
    modes, runs = compare(rows * 6)
    assert modes[-len(rows) :] == ["executed"] * len(rows)
    assert len(runs.plans) == len(set(rows))
    (notice,) = runs.notices
    assert "the step was not the one that was recorded" in notice


def test_losses_that_are_kept_do_not_make_another_kind_of_a_step():
    ours = Keeping(lambda loss: loss, executor(Everything()))
    for rows in [4, 3] * 5:
        ours(rows)
        last = ours.runs.report.mode
    assert last == "executed"
    assert len(ours.runs.plans) == 2


class Longer(Loop):
    """A loop whose steps begin alike, but go through the model twice when they are told to."""

    def __init__(self, runs=None):
        super().__init__(runs)
        self.twice = False

    def body(self, x):
        self.optimizer.zero_grad()
        y = self.model(x)
        if self.twice:
            y = self.model(y.tanh())
        y.pow(2).mean().backward()
        self.optimizer.step()


def lengthened(when):
    """Return the modes of steps that are twice as long or not, and their executor."""
    ours, theirs = Longer(executor(Everything())), Longer()
    modes = []
    for twice in when:
        for loop in (ours, theirs):
            loop.twice = twice
            loop(4)
        modes.append(ours.runs.report.mode)
    assert different(ours.state(), theirs.state()) == []
    return modes, ours.runs


def test_of_kinds_that_begin_alike_and_take_turns_one_keeps_its_schedule():
    modes, runs = lengthened([False, False, *[True, False] * 10])
    assert len(runs.plans) == 1
    assert modes.count("recorded") < 5
    assert modes.count("executed") >= 10  # the other kind, too, where no hook is left to notice it
    assert any("give step() the batch" in notice for notice in runs.notices)


def test_a_kind_that_is_given_up_on_is_recorded_when_only_it_comes_any_more():
    modes, runs = lengthened([False, False, *[True, False] * 10, *[True] * 24, *[False] * 24])
    assert any("give step() the batch" in notice for notice in runs.notices)
    assert modes[-1] == "executed"
    assert modes[45] == "executed"
    assert len(runs.plans) == 1


def test_a_step_that_does_more_than_recorded_is_right():
    ours, theirs = Loop(executor(Everything())), Loop()
    for loop in (ours, theirs):
        for i in range(6):
            if i == 3:
                loop.model.append(nn.Linear(12, 12))
                with torch.no_grad():
                    for p in loop.model[-1].parameters():
                        p.fill_(0.01)
            loop(4)
    assert different(ours.state(), theirs.state()) == []
    assert ours.runs.report.mode == "executed"


def test_a_step_that_does_less_than_recorded_is_right():
    ours, theirs = Loop(executor(Everything())), Loop()
    for loop in (ours, theirs):
        for i in range(7):
            if i == 3:
                del loop.model[-3:]
            loop(4)
    assert different(ours.state(), theirs.state()) == []
    assert ours.runs.report.mode == "executed"


@pytest.mark.parametrize("policy", [Everything(), "liveness+recompute:strategy=speed"], ids=repr)
def test_a_step_that_saves_conjugates_where_it_saved_the_numbers_is_right(policy):
    def run(weight, conjugate):
        look = torch.Tensor.conj if conjugate else lambda z: z
        (look(weight.exp()) @ weight.exp().sin()).imag.exp().sum().backward()

    torch.manual_seed(0)
    start = 0.3 * torch.randn(5, 5, dtype=torch.cfloat)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    runs = executor(policy)
    modes = []
    for step in range(8):
        for weight in (ours, theirs):
            weight.grad = None
            with runs.step() if weight is ours else nullcontext():
                run(weight, conjugate=step in (4, 6, 7))
        modes.append(runs.report.mode)
        assert torch.equal(ours.grad, theirs.grad)
    assert modes[3:5] == ["executed", "kept"]


def test_a_step_inside_a_step_is_refused():
    runs = executor("baseline")
    with runs.step(), pytest.raises(InvalidInput, match="inside another"), runs.step():
        pass


# -- modified after it was saved -------------------------------------------------------------------


@pytest.mark.parametrize("when", [1, 2, 3, 4])
@pytest.mark.parametrize("policy", [Everything(), "baseline"], ids=repr)
def test_a_modification_after_the_save_is_refused_as_autograd_does(policy, when):
    model = nn.Linear(6, 6)
    runs = executor(policy)

    def run(spoil):
        y = model(torch.ones(2, 6)).sigmoid()
        z = y.exp().sin()
        loss = z.sum()
        if spoil:
            with torch.no_grad():
                y.view(-1)[0] = 5.0  # sigmoid has saved it
        loss.backward()

    for _ in range(1, when):
        with runs.step():
            run(False)
    message = "modified by an inplace operation"
    with pytest.raises(RuntimeError, match=message):
        run(True)  # plain
    with pytest.raises(RuntimeError, match=message), runs.step():
        run(True)
    with runs.step():
        run(False)  # the next step works


def test_a_modification_is_noticed_though_the_bytes_are_away():
    model = deep(6, 3)
    runs = executor(Everything())
    spoil = []

    def catch(module, inputs, output):
        if spoil:
            spoil.append(output)

    model[1].register_forward_hook(catch)

    def run():
        loss = model(torch.ones(2, 6)).sum()
        for each in spoil[1:]:
            with torch.no_grad():
                each.add_(1.0)
        del spoil[1:]
        loss.backward()

    for _ in range(3):
        with runs.step():
            run()
    assert runs.report.done["gone"]
    spoil.append(True)
    with pytest.raises(RuntimeError, match="SigmoidBackward0"), runs.step():
        run()


# -- exceptions ------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class Raise(torch.autograd.Function):
    """Raises in backward while *armed*."""

    armed: ClassVar[list] = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if Raise.armed:
            raise Raise.armed.pop()
        return gradient


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = deep(8, 2), deep(8, 2)
        self.forward_error = None

    def forward(self, x):
        y = self.first(x)
        if self.forward_error is not None:
            error, self.forward_error = self.forward_error, None
            raise error
        return self.second(Raise.apply(y))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("where", "error"),
    [
        (where, error)
        for where in ("forward", "backward")
        for error in (Stop, KeyboardInterrupt, torch.OutOfMemoryError, MemoryError)
    ]
    + [("no backward", Stop)],
)
def test_after_an_exception_the_next_step_works(step, where, error):
    def train(runs):
        torch.manual_seed(0)
        model = Fragile()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def run(broken):
            optimizer.zero_grad()
            if broken and where == "forward":
                model.forward_error = error()
            if broken and where == "backward":
                Raise.armed.append(error())
            loss = model(torch.ones(3, 8)).sum()
            if broken and where == "no backward":
                return
            loss.backward()
            optimizer.step()

        for i in range(7):
            try:
                if runs is None:
                    run(i == step)
                else:
                    with runs.step():
                        run(i == step)
            except error:
                assert i == step
        return [*model.state_dict().items()]

    runs = executor(Everything())
    assert different(train(runs), train(None)) == []
    assert runs.report.mode == "executed"
    gc.collect()
    assert [slabs.used_nbytes for slabs in runs.slabs.values()] == [0, 0]
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    assert isinstance(y.grad_fn._saved_result, torch.Tensor)  # no hooks are left


def test_after_running_out_of_memory_the_next_schedule_leaves_more_free():
    model = deep()
    runs = executor("liveness", budget="100MB")
    limits, modes = [], []

    def step(broken):
        with runs.step():
            model(torch.ones(3, 12)).sum().backward()
            if broken:
                raise torch.OutOfMemoryError

    for i in range(8):
        if i in (3, 5):
            with pytest.raises(torch.OutOfMemoryError):
                step(broken=True)
            continue
        step(broken=False)
        modes.append(runs.report.mode)
        limits += [plan.schedule.limit_nbytes for plan in runs.plans]
    assert modes == ["safe", "recorded", "executed", "recorded", "recorded", "executed"]
    assert limits == [100_000_000, 96_000_000]
    assert sum("ran out of memory" in notice for notice in runs.notices) == 1


def test_a_graph_that_is_dropped_gives_everything_back():
    model = deep()
    runs = executor(Everything())
    for i in range(6):
        with runs.step():
            loss = model(torch.ones(3, 12)).sum()
            if i % 2 == 0:
                loss.backward()
        del loss
        assert runs.slabs["host"].used_nbytes == 0


@pytest.mark.parametrize("policy", [Everything(), "baseline"], ids=repr)
def test_a_graph_that_is_left_after_an_exception_keeps_only_its_own(policy):
    model = deep(8, 2)
    runs = executor(policy)
    seen = []
    model[1].register_forward_hook(
        lambda module, inputs, output: seen.append(weakref.ref(output.untyped_storage()))
    )

    def run(broken):
        seen.clear()
        one, two = model(torch.ones(2, 8)).exp(), model(torch.zeros(2, 8)).exp()
        if broken:
            raise Stop(seen[0], two)
        (one.sum() + two.sum()).backward()

    for _ in range(3):
        with runs.step():
            run(False)
    with pytest.raises(Stop) as caught, runs.step():
        run(True)
    gone, left = caught.value.args
    del caught
    assert gone() is None
    with runs.step():
        run(False)
    model.zero_grad()
    left.sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(torch.zeros(2, 8)).exp().sum().backward()
    assert all(map(torch.equal, found, [p.grad for p in model.parameters()]))


def test_saves_that_no_longer_share_a_storage_are_told_apart():
    def train(runs):
        torch.manual_seed(0)
        model = deep(8, 2)

        def loss(shared):
            y = model(torch.ones(2, 8))
            z = y.view_as(y) if shared else y * 2.0
            return y.sin().sum() + z.cos().sum()

        for i in range(4):
            with runs.step() if runs else nullcontext():
                model.zero_grad()
                loss(i < 3).backward()
        return [(name, p.grad) for name, p in model.named_parameters()]

    runs = executor(Everything())
    assert different(train(runs), train(None)) == []
    assert any("another storage" in notice for notice in runs.notices)


def test_a_graph_that_outlives_its_step_still_works():
    def train(runs):
        torch.manual_seed(0)
        model = deep()
        kept = []
        for i in range(5):
            if runs is None:
                kept.append(model(torch.full((3, 12), float(i))).sum())
            else:
                with runs.step():
                    kept.append(model(torch.full((3, 12), float(i))).sum())
        for loss in kept:
            loss.backward()
        return [(name, p.grad) for name, p in model.named_parameters()]

    assert different(train(executor(Everything())), train(None)) == []


# -- backward again --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Everything(), "baseline", "liveness"], ids=repr)
def test_a_retained_graph_and_a_gradient_of_a_gradient(policy):
    def build():
        model = deep(6, 2)

        def loss():
            x = torch.linspace(0, 1, 12).view(2, 6).requires_grad_()
            y = model(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            y.pow(2).sum().backward(retain_graph=True)
            y.sum().backward(retain_graph=True)
            return slope.pow(2).sum() + y.mean()

        return training(model, loss)

    runs = executor(policy)
    assert different(plain(build, 5), trained(build, runs, 5)) == []
    assert runs.report.mode == "executed"
    assert runs.differences == []


def test_hooks_of_the_users_own_win():
    def build():
        model = deep(6, 3)
        x = torch.linspace(0, 1, 12).view(2, 6)

        def loss():
            with torch.autograd.graph.save_on_cpu():
                y = model[:4](x)
            return model[4:](y).sum()

        return training(model, loss)

    runs = executor(Everything())
    assert different(plain(build, 5), trained(build, runs, 5)) == []
    assert runs.report.done["copy"] > 2


@pytest.mark.parametrize("peer", ["cuda:0", "cuda:64", "the attic"])
def test_a_peer_that_is_no_other_gpu_is_refused_by_name(monkeypatch, peer):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidInput, match=f"peer {peer} is no other GPU than cuda:0; there are: "):
        Executor("liveness", device="cuda:0", peer=peer)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"peer": "cuda:1"}, "peer cuda:1 was asked for, but this is a CPU, .* leave it out"),
        ({"device": "cuda:64"}, "device cuda:64 is not there; there are: "),
        ({"device": "meta"}, "device meta is not there; there are: "),
        ({"device": "the attic"}, "device 'the attic': "),
        ({"machine": "h200", "budget": "25TiB"}, "is more than 'h200' has, .*; give less, or none"),
        ({"machine": "h200:allocator=none"}, "no allocator 'none'; there are: "),
    ],
)
def test_what_is_not_there_is_told_before_anything_runs(options, told):
    with pytest.raises((InvalidInput, UnknownName), match=told):
        Executor("liveness", **{"device": "cpu"} | options)


def test_one_copy_that_was_held_up_does_not_make_a_link_of_it():
    assert _beside(100, 210) == 110
    assert _beside(100, 40) == 50
    assert _beside(0, 0) == 1


# -- the tests can fail ----------------------------------------------------------------------------


def spoiled(monkeypatch, name, change):
    """Return what comes out wrong if a part of an entry is changed."""
    runs = executor(Everything())
    torch.manual_seed(0)
    step = PROGRAMS["residual"]()
    for _ in range(2):
        with runs.step():
            step()
    monkeypatch.setattr(Entry, name, change)
    with runs.step():
        step()
    runs.backend.drain()
    return different(plain(PROGRAMS["residual"], 3), state(step)), runs.backend.lost


def test_without_the_fence_before_the_drop_gradients_are_wrong(monkeypatch):
    def no_fence(self):
        self._copying.clear()

    wrong, _ = spoiled(monkeypatch, "_fence", no_fence)
    assert any(name.endswith("grad") for name in wrong)


def test_without_waiting_for_a_fetch_gradients_are_wrong(monkeypatch):
    wrong, _ = spoiled(monkeypatch, "_arrive", lambda self: None)
    assert any(name.endswith("grad") for name in wrong)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("way", ["out", "back"])
def test_an_entry_that_goes_waits_for_its_copies(way, guarded, monkeypatch):
    """What comes back would end in somebody else's bytes. What leaves may have its own unmapped by
    the allocator: a copy that reads there ends the process on a GPU."""
    if not guarded:
        monkeypatch.setattr(Entry, "__del__", lambda self: None)
    backend = EmulatedBackend()
    slabs = Slabs(backend, "host", 1 << 12, 1 << 12)
    storage = torch.ones(64).untyped_storage()
    entry = Entry(backend, 0, storage, 0, 0)
    entry.copy(slabs.take(256), "host")
    if way == "back":
        entry.drop()
        entry.fetch("host")
    del entry, storage
    backend.drain()
    assert backend.lost == (0 if guarded else 1)


@pytest.mark.parametrize("guarded", [True, False])
def test_bytes_that_are_taken_before_their_copies_have_ended(guarded, monkeypatch):
    if not guarded:
        monkeypatch.setattr(Slabs, "_busy", lambda self, tickets: ())
    backend = EmulatedBackend()
    slabs = Slabs(backend, "host", 1 << 12, 1 << 12)
    entries = []
    for value in (1.0, 2.0):
        storage = torch.full((128,), value).untyped_storage()
        entry = Entry(backend, 0, storage, 0, 0)
        entry.copy(slabs.take(512), "host")
        entry.drop()
        entry.fetch("host")
        entries.append(entry)
    for entry in entries:
        entry.blocks.clear()  # discarded, with the fetch under way; the two join
    whole = torch.full((1024,), 3.0)
    third = Entry(backend, 0, whole.untyped_storage(), 0, 0)
    third.copy(slabs.take(4096), "host")
    for value, entry in zip((1.0, 2.0), entries, strict=True):
        alias = torch.empty(0)
        entry.show(alias, View(torch.float32, (128,), (1,), 0, False, False))
        assert torch.equal(alias, torch.full((128,), value)) == guarded


# -- no room ---------------------------------------------------------------------------------------


def test_a_host_without_room_keeps_what_it_cannot_take_and_says_so():
    modes, runs = compare([64] * 5, host_memory=6 * 1024)
    assert modes[-1] == "executed"
    done = runs.report.done
    assert done["kept"] + done.get("copy", 0) == runs.report.planned["copy"]
    assert done["kept"] > 0
    assert runs.slabs["host"].held_nbytes <= 6 * 1024
    assert any("no room" in notice for notice in runs.notices)
    assert any("too small to record" in notice for notice in runs.notices)


def test_a_schedule_that_does_not_fit_is_refused_before_the_step():
    _, roomy = compare([64] * 3, "liveness")
    need = roomy.plans[0].ledger.device_peak_nbytes
    runs = executor("liveness", budget=need - 1)
    loop = Loop(runs)
    loop(64)
    loop(64)
    before = state(Training(loop.model, lambda: None, loop.optimizer))
    for _ in range(2):
        with pytest.raises(DoesNotFit, match=r"1 bytes are missing at '.+'; give more"):
            loop(64)
    after = state(Training(loop.model, lambda: None, loop.optimizer))
    assert different(before, after) == []


def test_a_budget_that_no_policy_keeps_is_refused_with_the_operation():
    loop = Loop(executor("liveness+cache", budget="1KiB"))
    loop(64)
    loop(64)
    with pytest.raises(DoesNotFit, match=r"operation '.+' alone"):
        loop(64)


def test_a_tier_that_the_device_does_not_have_is_refused():
    loop = Loop(executor(Everything(tier="peer"), backend=EmulatedBackend(("host",))))
    loop(4)
    loop(4)
    with pytest.raises(InvalidInput, match=r"sends storages to 'peer'.* it has: host"):
        loop(4)


# -- nothing leaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Everything(), "baseline", "liveness+offload"], ids=repr)
def test_a_thousand_steps_leave_nothing(policy):
    torch.manual_seed(0)
    step = PROGRAMS["chain"]()
    runs = executor(policy)
    counts = []
    for i in range(1000):
        with runs.step():
            step()
        if i in (99, 999):
            gc.collect()
            counts.append(len(gc.get_objects()))
            used = [(slabs.used_nbytes, slabs.held_nbytes) for slabs in runs.slabs.values()]
            counts.append(used)
    assert runs.report.mode == "executed"
    assert counts[0] >= counts[2] - 2
    assert counts[1] == counts[3]


def test_a_step_needs_no_garbage_collector():
    model = deep()
    runs = executor(Everything())
    gc.disable()
    try:
        for _ in range(5):
            with runs.step():
                y = model(torch.ones(3, 12)).exp()
                there = weakref.ref(y.untyped_storage())
                y.sum().backward()
            del y
            assert there() is None
            assert runs.slabs["host"].used_nbytes == 0
    finally:
        gc.enable()


def test_an_executor_that_is_let_go_of_goes():
    runs = executor(Everything())
    Loop(runs)(4)
    gone = weakref.ref(runs.backend)
    del runs
    gc.collect()
    assert gone() is None


def test_a_step_that_computes_on_streams_of_its_own_is_refused():
    class Beside(EmulatedBackend):
        def computes_here(self):
            return False

    loop = Loop(executor(Everything(), backend=Beside()))
    with pytest.raises(Unsupported, match="on one stream"):
        loop(4)


def test_cross_entropy_under_autocast():
    def build():
        model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 5))

        def loss():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = model(torch.linspace(0, 1, 24).view(3, 8))
            return F.cross_entropy(y.float(), torch.tensor([0, 1, 2]))

        return training(model, loss)

    runs = executor(Everything())
    assert different(plain(build, 5), trained(build, runs, 5)) == []
