"""Values computed again: right, or refused loudly; and nothing is left of it."""

import gc
import random
import sys
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from programs import PROGRAMS, Training  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from training import different, executor, state, undisturbed  # noqa: E402

from superneurons.errors import Unsupported  # noqa: E402
from superneurons.executor.cpu_backend import EmulatedBackend  # noqa: E402

EVERYTHING = "liveness+recompute:strategy=speed,kinds=fork"  # no operation makes a checkpoint
EACH_TIME = "liveness+recompute:strategy=memory,kinds=fork"


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


def gradients(model):
    return [each.grad.clone() for each in model.parameters() if each.grad is not None]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def deep(width=8, depth=3):
    parts = [(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in range(depth)]
    return nn.Sequential(*(part for block in parts for part in block))


class Alike:
    """One step in two copies of a model: under an executor, and without."""

    def __init__(self, model, body, runs=None, seed=0):
        torch.manual_seed(seed)
        self.ours, self.theirs = model(), model()
        self.theirs.load_state_dict(self.ours.state_dict())
        self.body = body
        self.runs = runs or executor(EVERYTHING)

    def __call__(self, *arguments):
        found = []
        for model in (self.theirs, self.ours):
            torch.manual_seed(1)
            with self.runs.step() if model is self.ours else nullcontext():
                model.zero_grad()
                self.body(model, *arguments)
            found.append([*gradients(model), *(b.clone() for b in model.buffers())])
        return same(*found)


# -- what changes between steps --------------------------------------------------------------------


def scaled(model, scale):
    (model(torch.ones(3, 8)) * scale).tanh().exp().sum().backward()


@pytest.mark.parametrize("policy", [EVERYTHING, EACH_TIME])
def test_a_number_that_changes_is_that_of_this_step(policy):
    step = Alike(deep, scaled, executor(policy))
    assert all(step(scale) for scale in (1.0, 1.0, 1.0, 0.3, 0.7, 1.0))
    assert step.runs.report.mode == "executed"
    assert step.runs.report.replays > 0


def test_without_looking_the_number_of_the_recorded_step_is_taken():
    """The control: what the test above proves is not so by chance."""
    step = Alike(deep, scaled, executor(EVERYTHING, assume_constant=True))
    assert all(step(1.0) for _ in range(4))
    assert step.runs.report.replays > 0
    assert not step(0.3)


def test_random_numbers_are_looked_at_in_any_case():
    def body(model, shift):
        torch.manual_seed(shift)
        F.dropout(model(torch.ones(3, 8)).tanh(), 0.4).exp().sum().backward()

    step = Alike(deep, body, executor(EVERYTHING, assume_constant=True))
    assert all(step(shift) for shift in range(6))
    assert step.runs.report.replays > 0


class Branches(nn.Module):
    """Two branches that look the same; which is taken where is decided outside."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x, swapped):
        x = x * 1.0
        one, two = (self.right, self.left) if swapped else (self.left, self.right)
        a, b = one(x).tanh(), two(x).tanh()
        c = (b - a) if swapped else (a - b)
        return (self.norm(c.exp()) * a).sigmoid()


@pytest.mark.parametrize("policy", [EVERYTHING, EACH_TIME])
def test_operations_on_other_tensors_of_the_same_look_make_another_step(policy):
    step = Alike(Branches, lambda m, s: m(torch.ones(3, 8), s).sum().backward(), executor(policy))
    assert all(step(False) for _ in range(4))
    assert step.runs.report.replays > 0
    assert step(True)
    assert step.runs.report.mode == "kept"
    assert "other tensors" in step.runs.report.why
    assert all(step(swapped) for swapped in (False, True, False, True))


def test_what_is_saved_in_another_order_makes_another_step():
    """The product does not run again, so nobody sees its arguments; but that they change places."""

    def body(model, swapped):
        a, b = (model(torch.ones(3, 8) * number) for number in (1.0, 2.0))
        product = b * a if swapped else a * b
        (a.tanh() * 1.0).exp().sin().sum().add(product.sum()).backward()

    step = Alike(lambda: nn.Linear(8, 8), body, executor("liveness+recompute:strategy=speed"))
    assert all(step(False) for _ in range(4))
    assert step.runs.report.replays > 0
    assert step(True)
    assert step.runs.report.mode == "kept"
    assert all(step(swapped) for swapped in (True, False, True))


def test_an_operation_more_makes_another_step():
    def body(model, more):
        y = model(torch.ones(3, 8)).tanh()
        with torch.no_grad():
            y.clone() if more else None
        model[1](y * 1.0).exp().sum().backward()

    step = Alike(deep, body)
    assert all(step(False) for _ in range(3))
    assert step(True)
    assert "recorded was" in step.runs.report.why


def test_what_is_dropped_already_when_the_step_turns_out_another_comes_all_the_same():
    def body(model, odd):
        hidden = model(torch.ones(3, 8)).tanh()
        hidden = hidden.sin().cos() if not odd else hidden.cos().sin()
        hidden.exp().sum().backward()

    step = Alike(lambda: deep(depth=6), body)
    assert all(step(False) for _ in range(3))
    dropped = step.runs.report.done["drop"]
    assert step(True)
    assert step.runs.report.mode == "kept"
    assert 0 < step.runs.report.done["drop"] <= dropped
    assert step.runs.report.late_replays > 0


def test_steps_of_two_kinds_in_turns():
    def body(model, rows):
        model(torch.ones(rows, 8) * 1.0).sum().backward()

    step = Alike(deep, body)
    assert all(step(rows) for rows in (2, 2, 2, 3, 3, 2, 3, 3, 2, 2, 3))


def test_a_batch_is_never_computed_from():
    def body(model, batches):
        x = batches.pop(0)
        y = model(x).exp().sum()
        x.fill_(7.0)  # autograd saves it nowhere
        y.backward()

    def build():
        return nn.Sequential(nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh())

    step = Alike(build, body)
    for i in range(5):
        batches = [torch.full((2, 8), 0.1 * i) for _ in range(2)]
        assert step(batches[:])
    operations = {op.name: op for op in step.runs.plans[0].trace.operations}
    assert operations["0.sigmoid"].recompute == "opaque"
    assert operations["1.addmm"].recompute == "pure"
    assert step.runs.report.replays > 0


# -- parameters and buffers ------------------------------------------------------------------------


def modified(model):
    model[1].weight.data = model[1].weight.data.clone()


def counted(model):
    with torch.no_grad():
        model[1].weight.add_(1.0)


@pytest.mark.parametrize("change", [modified, counted])
def test_a_parameter_that_changes_before_it_is_computed_from_is_refused(change):
    # Its own backward does not ask for the weight of a normalization without bias: ours does.
    torch.manual_seed(0)
    model = deep()
    runs = executor(EVERYTHING)

    def step(late):
        with runs.step():
            model.zero_grad()
            loss = model(torch.ones(3, 8) * 1.0).exp().sum()
            if late:
                change(model)
            loss.backward()
            del loss

    for _ in range(4):
        step(False)
    assert runs.report.replays > 0
    with pytest.raises((Unsupported, RuntimeError), match=r"modified|replaced"):
        step(True)
    step(False)


def test_a_bias_that_changes_before_it_is_computed_from_is_refused():
    """Autograd does not ask for it, so plain PyTorch is right; the sum it is in cannot be made."""
    torch.manual_seed(0)
    bias, runs = nn.Parameter(torch.rand(8)), executor(EVERYTHING)

    def step(late):
        with runs.step():
            bias.grad = None
            loss = (torch.ones(3, 8) + bias).tanh().mul(2.0).exp().sin().sum()
            if late:
                with torch.no_grad():
                    bias.add_(1.0)
            loss.backward()
            del loss

    for _ in range(4):
        step(False)
    assert runs.report.replays > 0
    with pytest.raises(Unsupported, match="must be as in forward, but it was modified"):
        step(True)
    step(False)


def test_a_fused_optimizer_leaves_no_trace_in_versions_and_is_seen_all_the_same():
    torch.manual_seed(0)
    model = deep()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    runs = executor(EVERYTHING)

    def step(early, keep):
        with runs.step():
            optimizer.zero_grad()
            loss = model(torch.ones(3, 8) * 1.0).exp().sum()
            if early:
                optimizer.step()
            loss.backward(retain_graph=keep)
            optimizer.step()
            found = [loss] if keep else []
            del loss
        return found

    step(False, False)
    for _ in range(4):
        step(False, False)
    assert runs.report.mode == "executed"
    assert runs.report.replays > 8
    with pytest.raises(Unsupported, match="an optimizer has run since"):
        step(True, False)  # a second optimizer step, between forward and backward
    step(False, False)
    (kept,) = step(False, True)
    kept.backward()  # all of it has been computed again in the step
    assert runs.report.mode == "executed"


def test_two_fused_optimizers_in_one_step_mind_their_own_parameters():
    def body(model):
        one, two = model[:9], model[9:]
        for optimizer, part in zip(model.optimizers, (one, two), strict=True):
            optimizer.zero_grad()
            part(torch.ones(3, 8) * 1.0).exp().sum().backward()
            optimizer.step()

    def build():
        model = deep(depth=6)
        model.optimizers = [
            torch.optim.SGD(part.parameters(), lr=0.01, fused=True)
            for part in (model[:9], model[9:])
        ]
        return model

    step = Alike(build, body)
    assert all(step() for _ in range(5))
    assert step.runs.report.mode == "executed"
    assert step.runs.report.replays > 0


def test_nothing_is_cast_when_backward_runs_under_autocast():
    def body(model):
        with torch.autocast("cpu", torch.bfloat16):
            y = model[0](torch.ones(3, 8)).sin()
        z = model[1](y.float()).tanh().exp()
        with torch.autocast("cpu", torch.bfloat16):
            z.sum().backward()

    step = Alike(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), body)
    assert all(step() for _ in range(5))
    names = [step.runs.plans[0].trace.facts.op_names[op] for op in reruns(step.runs)]
    assert any("addmm" in name for name in names)


def test_another_model_of_the_same_kind_gets_the_schedule_and_its_own_parameters():
    runs = executor(EVERYTHING)
    for seed in range(2):
        step = Alike(deep, lambda m: m(torch.ones(3, 8) * 1.0).sum().backward(), runs, seed)
        assert all(step() for _ in range(5))
        assert runs.report.mode == "executed"
        assert runs.report.replays > 0
        del step
        gc.collect()


def test_running_statistics_are_updated_once():
    def build():
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.BatchNorm2d(3),
            nn.Tanh(),
        )  # fmt: skip

    step = Alike(build, lambda m: m(torch.ones(2, 2, 6, 6) * 2.0).exp().sum().backward())
    assert all(step() for _ in range(5))
    assert step.runs.report.replays > 0
    names = [step.runs.plans[0].trace.facts.op_names[op] for op in reruns(step.runs)]
    assert any("batch_norm" in name for name in names)


def reruns(runs):
    return [op for due in runs.plans[-1].due for a in due for op in a.ops if op >= 0]


def test_statistics_that_are_read_and_updated_in_one_step_are_no_source():
    def body(model):
        norm, x = model[1], torch.ones(4, 8) * torch.arange(4.0)[:, None]
        norm.eval()
        first = norm(model[0](x)).tanh()
        norm.train()
        (first * norm(model[0](x)).tanh()).exp().sum().backward()

    step = Alike(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), body)
    assert all(step() for _ in range(5))


# -- asked for again -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [EVERYTHING, EACH_TIME])
def test_a_loss_that_is_kept_for_after_the_step(policy):
    torch.manual_seed(0)
    model, other = deep(depth=4), deep()
    runs, kept = executor(policy), None
    for i in range(4):
        with runs.step():
            other.zero_grad()
            torch.manual_seed(3)
            loss = F.dropout(model(torch.ones(3, 8) * 1.0), 0.5).exp().sum()
            other(torch.ones(3, 8) * 1.0).sum().backward()
            if i == 3:
                kept = loss
            del loss
    assert runs.report.mode == "executed"
    present = torch.get_rng_state()
    kept.backward(retain_graph=True)
    kept.backward()
    assert torch.equal(present, torch.get_rng_state())
    found = gradients(model)
    model.zero_grad()
    for _ in range(2):
        torch.manual_seed(3)
        F.dropout(model(torch.ones(3, 8) * 1.0), 0.5).exp().sum().backward()
    assert same(found, gradients(model))


def test_a_loss_that_is_kept_beyond_an_update_is_refused_where_it_would_be_wrong():
    torch.manual_seed(0)
    model = deep(depth=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runs, kept = executor(EVERYTHING), None
    for i in range(4):
        with runs.step():
            optimizer.zero_grad()
            loss = model(torch.ones(3, 8) * 1.0)
            loss.sum().backward()
            optimizer.step()
            second = model(torch.ones(3, 8) * 1.0).exp().sum()
            if i == 3:
                kept = second
            del loss, second
    for each in model.parameters():
        each.data.mul_(1.0)
    with torch.no_grad():
        model[1].weight.mul_(2.0)
    with pytest.raises((Unsupported, RuntimeError), match="modified"):
        kept.backward()


def test_a_backward_pass_more_than_was_recorded():
    def body(model, passes):
        loss = model(torch.ones(3, 8) * 1.0).tanh().exp().sum()
        for i in range(passes):
            loss.backward(retain_graph=i < passes - 1)

    for policy in (EVERYTHING, EACH_TIME):
        step = Alike(deep, body, executor(policy))
        assert all(step(1) for _ in range(4))
        assert step.runs.report.replays > 0
        assert step(2)
        assert step(3)


def test_a_chain_of_thousands_is_no_recursion():
    depth = 3 * sys.getrecursionlimit()
    weight = nn.Parameter(torch.full((2,), 0.5))

    def body(odd):
        weight.grad = None
        x = weight * 1.0
        for _ in range(depth):
            x = x.sin()
        (x.cos().exp() if odd else x.exp()).sum().backward()
        return weight.grad.clone()

    expected = [body(False), body(True)]
    runs = executor("liveness+recompute:strategy=speed,kinds=fork")
    for odd in (False, False, True):
        with runs.step():
            assert torch.equal(body(odd), expected[odd])
    assert runs.report.done["drop"] > sys.getrecursionlimit()
    assert runs.report.late_replays == 1  # and all others on its way


# -- errors, leaks ---------------------------------------------------------------------------------


class Oops(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_leaves_nothing_and_training_goes_on(where):
    def body(model, fails):
        y = model(torch.ones(3, 8) * 1.0)
        if fails and where == "forward":
            raise Oops
        if fails:

            def fail(gradient):
                raise Oops

            y.register_hook(fail)
        y.exp().sum().backward()

    step = Alike(deep, body)
    assert all(step(False) for _ in range(4))
    for _ in range(2):
        with pytest.raises(Oops), step.runs.step():
            step.ours.zero_grad(), body(step.ours, True)
        assert step(False)
        assert step.runs.report.mode == "executed"
        assert step.runs.report.replays > 0


@pytest.mark.parametrize(
    "policy", [EVERYTHING, EACH_TIME, "superneurons", "liveness+offload+recompute"]
)
def test_many_steps_leave_nothing(policy):
    torch.manual_seed(0)
    step = PROGRAMS["convolutions"]()
    runs = executor(policy)
    counts = []
    for i in range(400):
        with runs.step():
            step()
        if i in (99, 399):
            gc.collect()
            tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
            nbytes = sum(each.nbytes for each in tensors)
            used = sum(slabs.used_nbytes for slabs in runs.slabs.values())
            counts.append((len(tensors), nbytes, used, len(gc.get_objects())))
            del tensors
    assert runs.report.replays > 0
    assert counts[0][:3] == counts[1][:3]
    assert abs(counts[0][3] - counts[1][3]) < 20


# -- verified --------------------------------------------------------------------------------------


def test_what_is_verified_runs_as_it_does_otherwise():
    for policy in (EVERYTHING, EACH_TIME):
        step = Alike(deep, scaled, executor(policy, verify=True))
        assert all(step(scale) for scale in (1.0, 1.0, 1.0, 0.3))
        assert step.runs.report.replays > 0


def test_the_first_operation_that_does_not_repeat_is_named():
    step = Alike(deep, scaled, executor(EVERYTHING, verify=True, assume_constant=True))
    assert all(step(1.0) for _ in range(3))
    with pytest.raises(Unsupported, match=r"'tanh', run again, does not make what it made"):
        step(0.3)


# -- streams, regions, any program -----------------------------------------------------------------


class Aside(EmulatedBackend):
    aside = False

    def computes_here(self):
        return not self.aside


def test_nothing_is_computed_again_on_another_stream():
    backend = Aside()

    def body(model, late=False):
        loss = model(torch.ones(3, 8) * 1.0).sum()
        backend.aside = late
        loss.backward()

    step = Alike(deep, body, executor(EVERYTHING, backend=backend))
    assert all(step() for _ in range(4))
    with pytest.raises(Unsupported, match="stream"), step.runs.step():
        body(step.ours, True)
    backend.aside = False


def through_complex_numbers(one, two, pick):
    """Return real numbers of the same shape, by way of conjugates and parts, computed late."""
    z = torch.complex(one, two)
    return (
        lambda: (z.exp() * z.conj()).imag,
        lambda: z.conj().imag.sin(),
        lambda: torch.fft.irfft(torch.fft.rfft(one) * torch.fft.rfft(two).conj(), n=6),
        lambda: (z.conj() @ (z.mH @ z)).real,
        lambda: torch.view_as_real(z.exp())[..., pick % 2] * z.abs(),
        lambda: (z.mul(1j).conj().mul_(2.0) + one).angle(),
    )[pick % 6]()


def randomly(seed, *kinds):
    """Return a random program: values of one shape, operations on some of them, some in place."""
    choice = random.Random(seed)
    pointwise = [torch.sin, torch.tanh, torch.exp, torch.sigmoid, F.silu, F.gelu, torch.relu]
    binary = [torch.add, torch.mul, torch.sub, torch.maximum, torch.hypot]
    plan = []
    for _ in range(choice.randrange(6, 40)):
        kind = choice.choice(["one", "one", "two", "two", "layer", "norm", "drop", "place", "view",
                              "forget", "scale", *kinds])  # fmt: skip
        plan.append((kind, choice.random(), choice.random(), choice.randrange(1000)))

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
            self.norms = nn.ModuleList([nn.LayerNorm(6), nn.BatchNorm1d(6)])

        def forward(self, x, numbers):
            values = [self.layers[0](x) if kinds else x * 1.0]
            for kind, a, b, pick in plan:
                one, two = (values[int(each * len(values))] for each in (a, b))
                if kind == "one":
                    new = pointwise[pick % len(pointwise)](one)
                elif kind == "two":
                    new = binary[pick % len(binary)](one, two)
                elif kind == "layer":
                    new = self.layers[pick % 3](one)
                elif kind == "norm":
                    new = self.norms[pick % 2](one)
                elif kind == "drop":
                    new = F.dropout(one, 0.3)
                elif kind == "place":
                    new = (one * 0.5).add_(two, alpha=numbers[pick % 3]).relu_()
                elif kind == "view":
                    new = torch.cat([one[:, 3:], two[:, :3].t().t()], 1)
                elif kind == "complex":
                    new = through_complex_numbers(one, two, pick)
                elif kind == "scale":
                    new = one * numbers[pick % 3]
                else:
                    values.pop(0) if len(values) > 1 else None
                    continue
                values.append(new.clamp(-3, 3))
                values = values[-4:]
            return sum(values[1:], values[0]).tanh()

    return Program


any_program = pytest.mark.parametrize("policy", [EVERYTHING, EACH_TIME, "superneurons",
                                                 "liveness+offload+recompute"])  # fmt: skip
any_kinds = pytest.mark.parametrize("kinds", [(), ("complex",) * 3], ids=["real", "complex"])


def run_any(seed, kinds, policy, *, verify):
    """Run a random program, which is plain PyTorch's in each step; the fifth is audited, but not
    where copies are kept."""

    def body(model, numbers):
        loss = model(torch.linspace(-1, 1, 24).reshape(4, 6), numbers).sum()
        loss.backward()

    step = Alike(randomly(seed, *kinds), body, executor(policy, verify=verify), seed)
    numbers = random.Random(seed)
    for i in range(6):
        step.runs.audit = i == 4 and not verify
        assert step([numbers.random() for _ in range(3)])
    assert step.runs.notices == []
    assert step.runs.report.mode == "executed"
    assert kinds or step.runs.report.late_replays == 0
    return step


@any_program
@any_kinds
@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_any_program_verified(seed, kinds, policy):
    run_any(seed, kinds, policy, verify=True)


@any_program
@any_kinds
@pytest.mark.parametrize("seed", range(12))
def test_any_program(seed, kinds, policy):
    step = run_any(seed, kinds, policy, verify=False)
    facts = step.runs.plans[0].trace.facts
    late = {each.name for each in step.runs.report.storages if "rebuilt" in each.done}
    # Autograd asks for what it made complex numbers of, and looks at its type alone: no schedule
    # has it there for that.
    assert all(facts.absent_until[s] == facts.death[s] for s in map(facts.storage_index.get, late))
    # Where no hook fires a free comes one hook sooner: bytes are fewer from there to its place, and
    # no other hook fires between the two.
    differences = {each.place: each for each in step.runs.differences}
    assert all(each.found_nbytes <= each.planned_nbytes for each in differences.values())
    hooks = set(step.runs.plans[0].places)
    begins = [place for place in differences if place - 1 not in differences]
    assert len(begins) < 3
    assert hooks.isdisjoint(differences.keys() - begins)


def test_training_state_is_that_of_plain_pytorch():
    """All of it, through the optimizer, with both of them going on from step to step."""
    for name in ("convolutions", "transformer", "mixed_precision", "recurrent"):
        found = []
        for policy in (None, EVERYTHING, "liveness+offload+recompute:strategy=memory"):
            torch.manual_seed(0)
            step: Training = PROGRAMS[name]()
            runs = executor(policy) if policy else None
            for _ in range(6):
                if runs is None:
                    step()
                else:
                    with runs.step():
                        step()
            assert runs is None or runs.report.replays > 0
            found.append(state(step))
        assert different(found[0], found[1]) == different(found[0], found[2]) == []
