"""Ways to a silently wrong gradient: each right, or refused loudly."""

import gc
import warnings
from contextlib import nullcontext
from itertools import pairwise

import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch")

from programs import Training, training  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from training import Everything, different, executor, plain, state, undisturbed  # noqa: E402

from superneurons.allocators.standing import Standing  # noqa: E402
from superneurons.errors import DoesNotFit, Unsupported  # noqa: E402
from superneurons.executor import run_function, slabs  # noqa: E402
from superneurons.executor.backend import STREAMS  # noqa: E402
from superneurons.executor.course import Site  # noqa: E402
from superneurons.executor.cpu_backend import EmulatedBackend  # noqa: E402
from superneurons.executor.storages import Life  # noqa: E402
from superneurons.sim import foresee, simulate_schedule  # noqa: E402
from superneurons.traces.readers.snapshot_log import segments_of  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def quick():
    with undisturbed():
        yield


# -- a gradient of a gradient: autograd saves again what it was given back -------------------------

TWICE = {
    "layer_norm": lambda w: F.layer_norm(w * 2, [4]),
    "batch_norm": lambda w: F.batch_norm((w * 2).tanh(), None, None, training=True),
    "dropout": lambda w: F.dropout((w * 2).tanh(), 0.3).exp(),
    "max_pool": lambda w: F.max_pool2d((w * 2)[None], 2).exp(),
    "embedding": lambda w: F.embedding(torch.tensor([[0, 1], [2, 1]]) + 0, w * 2).exp(),
    "where": lambda w: torch.where(w > 0.3, w * 2, w.exp()).sin(),
    "cross_entropy": lambda w: F.cross_entropy(w * 2, torch.tensor([0, 1, 2, 3]) + 0),
}


@pytest.mark.parametrize("policy", ["everything", "liveness"])
@pytest.mark.parametrize("name", TWICE)
def test_a_gradient_of_a_gradient_is_that_of_plain_pytorch(name, policy):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.rand(4, 4) + 0.1)

    def penalty():
        torch.manual_seed(1)
        weight.grad = None
        loss = TWICE[name](weight).sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (gradient * gradient).sum().backward()
        return weight.grad.clone()

    expected = penalty()
    runs = executor(Everything() if policy == "everything" else policy)
    for _ in range(5):
        with runs.step():
            found = penalty()
        assert torch.equal(found, expected)
    assert runs.report.mode == "executed"


# -- what lives longer than its step ---------------------------------------------------------------


def test_a_loss_that_is_kept_once_keeps_what_its_graph_saved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid())
    other = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh())
    runs, kept = executor(Everything()), None
    for i in range(4):
        with runs.step():
            other.zero_grad()
            other(torch.ones(2, 6)).sum().backward()
            loss = model(torch.ones(2, 6)).sum()
            if i == 3:
                kept = loss
            del loss
    assert runs.report.mode == "executed"
    kept.backward()
    found = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    model(torch.ones(2, 6)).sum().backward()
    assert all(
        torch.equal(ours, each.grad) for ours, each in zip(found, model.parameters(), strict=True)
    )


# -- another step with the same look ---------------------------------------------------------------


def branching(noisy):
    """Return a program whose second save is a result, or noise that is not filled yet: both look
    the same when they are packed."""
    weight = nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4))

    def run():
        torch.manual_seed(1)
        weight.grad = None
        if noisy():
            F.rrelu(weight * 1.0, 0.1, 0.3, training=True).sum().backward()
        else:
            (weight * 1.0).exp().tanh().sum().backward()
        return weight.grad.clone()

    return run


def test_what_was_sent_for_another_operation_is_refused():
    late = False
    run = branching(lambda: late)
    runs = executor(Everything())
    for _ in range(3):
        with runs.step():
            expected = run()
    assert runs.report.mode == "executed"
    assert runs.report.copied_out_nbytes > 0
    late = True
    with pytest.raises(Unsupported, match="asks for it: the step is another one"), runs.step():
        run()
    late = False
    with runs.step():
        assert torch.equal(run(), expected)  # and goes on


def test_what_was_sent_after_its_operation_was_over_is_anybodys():
    """Two saves of another operation are right, whoever asks: they were whole when they left."""
    late = False
    weight = nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4))

    def run():
        weight.grad = None
        x, y = weight * 1.0, weight * 2.0
        (torch.maximum(x, y) if late else x * y).exp().sum().backward()
        return weight.grad.clone()

    plain = [run()]
    late = True
    plain.append(run())
    late = False
    runs = executor(Everything())
    for _ in range(3):
        with runs.step():
            assert torch.equal(run(), plain[0])
    late = True
    with runs.step():
        assert torch.equal(run(), plain[1])


# -- streams ---------------------------------------------------------------------------------------


class Aside(EmulatedBackend):
    """A device on which somebody computes on another stream when told so."""

    aside = False

    def computes_here(self):
        return not self.aside


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_later_step_on_another_stream_is_kept_or_refused(where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid())
    backend = Aside()
    runs = executor(Everything(), backend=backend)

    def step():
        model.zero_grad()
        backend.aside = where == "forward" and late
        loss = model(torch.ones(2, 6)).sum()
        backend.aside = where == "backward" and late
        loss.backward()
        backend.aside = False

    late = False
    for _ in range(3):
        with runs.step():
            step()
    expected = [each.grad.clone() for each in model.parameters()]
    late = True
    if where == "backward":
        with pytest.raises(Unsupported) as caught, runs.step():
            step()
        assert str(caught.value) == STREAMS
    else:
        with runs.step():
            step()
        assert "another stream" in runs.report.why
        found = [each.grad for each in model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    backend.aside = False


# -- slabs and the garbage collector ---------------------------------------------------------------


def test_blocks_never_overlap_wherever_the_collector_runs(monkeypatch):
    found = slabs.Slabs(EmulatedBackend(), "host", 1 << 16, 1 << 14)
    garbage = [found.take(512)]
    garbage.append(garbage)
    gc.disable()
    try:
        del garbage
        made = slabs._Range.__init__

        def collecting(self, *arguments):
            monkeypatch.setattr(slabs._Range, "__init__", made)
            gc.collect()
            made(self, *arguments)

        monkeypatch.setattr(slabs._Range, "__init__", collecting)
        blocks = [found.take(1024) for _ in range(3)]
    finally:
        gc.enable()
    ranges = sorted((block._taken.start, block._taken.stop) for block in blocks)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert found.used_nbytes == 3 * 1024


# -- steps that no schedule can help ---------------------------------------------------------------


def test_an_expert_without_tokens_is_recorded_like_the_others():
    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(2))
    chosen = torch.zeros(4, dtype=torch.bool)

    def step():
        experts.zero_grad()
        x = torch.ones(4, 8)
        (experts[0](x[~chosen]).sum() + experts[1](x[chosen]).sum()).backward()

    runs = executor(Everything())
    for _ in range(4):
        with runs.step():
            step()
    assert runs.report.mode == "executed"


def test_a_step_without_backward_is_kept_and_that_is_said():
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())
    runs = executor("liveness+offload")
    for _ in range(4):
        with runs.step():
            model(torch.ones(2, 6)).sum()
    assert runs.report.mode == "kept"
    assert "no backward pass" in " ".join(runs.notices)


def test_a_step_on_another_device_is_kept_and_that_is_said():
    model = nn.Linear(6, 6, device="meta")
    runs = executor("liveness")
    for _ in range(4):
        with runs.step():
            model(torch.ones(2, 6, device="meta")).sum().backward()
    assert runs.report.mode == "kept"
    assert len(runs.notices) == 1


def test_a_number_that_changes_is_no_other_kind_of_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())
    runs = executor("liveness")
    for i in range(4):
        with runs.step(torch.ones(2, 6), 0.1 * i):
            model(torch.ones(2, 6)).sum().backward()
            model.zero_grad()
    assert runs.report.mode == "executed"


def test_an_audit_follows_the_plan_that_the_step_follows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh())
    runs = executor(Everything())

    def step(rows):
        with runs.step():
            model.zero_grad()
            model(torch.ones(rows, 6)).sum().backward()

    for rows in (2, 2, 2, 3, 3, 2, 3, 2, 3):
        step(rows)
    runs.audit = True
    for rows in (2, 3, 2, 3):
        step(rows)
        assert runs.report.mode == "executed"
        assert runs.differences == []
        assert runs.readings


class Caching(EmulatedBackend):
    """A device whose memory PyTorch's caching allocator manages, in segments of 2 MiB at least."""

    allocator = "caching"


@pytest.mark.parametrize(("budget", "runs"), [("4MiB", True), ("1MiB", False)])
def test_what_the_allocator_reserves_has_to_fit(budget, runs):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh())
    executed = executor("liveness", budget=budget, backend=Caching())

    def step():
        with executed.step():
            model.zero_grad()
            model(torch.ones(2, 6)).sum().backward()

    step()
    step()
    if runs:
        step()
        assert executed.report.mode == "executed"
    else:
        with pytest.raises(DoesNotFit, match=r"torch's allocator \(caching\)"):
            step()


class Filled(Caching):
    """Such a device on which the process has segments already, which others fill."""

    def __init__(self, nbytes):
        super().__init__()
        self.nbytes = nbytes
        self.asked = []

    def standing(self, addresses):
        self.asked.append(addresses)
        block = {"size": self.nbytes, "requested_size": self.nbytes, "state": "active_allocated"}
        told = {"address": 0, "total_size": self.nbytes, "segment_type": "large", "blocks": [block]}
        return Standing(segments_of([told], 0), 0, False, addresses)


@pytest.mark.parametrize(("nbytes", "runs"), [(4 << 20, True), (6 << 20, False)])
def test_a_schedule_has_to_fit_beside_what_the_process_has(nbytes, runs):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh())
    backend = Filled(nbytes)
    executed = executor("liveness", budget="7MiB", backend=backend)
    refused = nullcontext() if runs else pytest.raises(DoesNotFit, match="would take")
    with refused:
        for _ in range(4):
            with executed.step():
                model(torch.ones(6)).sum().backward()
    [addresses] = backend.asked
    if runs:
        facts = executed.plans[0].trace.facts
        assert sorted(addresses) == [s for s, alive in enumerate(facts.alive_at_start) if alive]


def with_workspaces(site, trace):
    """Return a step as recorded on a device on which each convolution takes 60 MiB."""
    operations = (
        replace(op, workspace_nbytes=60 << 20 if op.kind == "conv" else 0)
        for op in trace.operations
    )
    return replace(trace, operations=tuple(operations))


@pytest.mark.parametrize("mib", [7, 70], ids=["no-room", "room"])
def test_convolutions_without_room_for_their_workspaces_run_and_that_is_said(monkeypatch, mib):
    monkeypatch.setattr(Site, "timed", with_workspaces)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sigmoid(), nn.Conv2d(2, 2, 3), nn.Tanh())
    runs = executor(Everything(), budget=f"{mib}MiB", backend=Filled(4 << 20), audit=True)
    for _ in range(6):
        with runs.step():
            model.zero_grad()
            model(torch.ones(2, 2, 8, 8)).sum().backward()
    assert runs.report.mode == "executed"
    assert runs.differences == []
    said = [notice for notice in runs.notices if "no room for the workspaces of 4 " in notice]
    assert len(said) == (mib == 7)
    [plan] = runs.plans
    assert (plan.proved is plan.trace) == (mib == 70)
    predicted = simulate_schedule(plan.proved, plan.schedule, runs.machine)
    assert predicted.fits
    assert predicted.device_peak_bytes == plan.ledger.device_peak_nbytes <= mib << 20


def test_a_run_without_room_for_workspaces_is_predicted_and_explained(monkeypatch):
    def stands(backend, addresses):
        return Standing([], 0, False, addresses)

    monkeypatch.setattr(Site, "timed", with_workspaces)
    monkeypatch.setattr(EmulatedBackend, "standing", stands)
    monkeypatch.setattr(EmulatedBackend, "allocator", "caching")
    report = run_function(
        "superneurons.zoo:small_cnn",
        "liveness",
        "50MiB",
        steps=4,
        predict=simulate_schedule,
        foresee=foresee,
    )
    assert any("no room for the workspaces" in notice for notice in report.notices)
    assert report.steps[-1].mode == "executed"
    assert report.predicted_peak_bytes <= 50 << 20
    assert report.explanation is not None


def test_what_a_step_leaves_is_where_the_next_one_finds_it(monkeypatch):
    plain = Life.__init__

    def located(life, number, storage, born):
        plain(life, number, storage, born)
        life.data = storage.data_ptr()

    monkeypatch.setattr(Life, "__init__", located)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh())
    backend = Filled(4 << 20)
    executed = executor("liveness", backend=backend)
    for _ in range(3):
        there = {p.data_ptr(): p.grad.data_ptr() for p in model.parameters() if p.grad is not None}
        with executed.step():
            model.zero_grad()  # so each step has gradients of its own
            model(torch.ones(2, 6)).sum().backward()
    [addresses] = backend.asked
    names = executed.plans[0].trace.facts.names
    found = {names[s]: address for s, address in addresses.items()}
    for name, parameter in model.named_parameters():
        assert found[name] == parameter.data_ptr()
        assert found[f"{name}.grad"] == there[parameter.data_ptr()]


class Counting(EmulatedBackend):
    """A device that says how many bytes it has given out."""

    there = 0

    def allocated_nbytes(self):
        return self.there


def test_a_step_that_finds_more_on_the_device_is_recorded_again():
    """An optimizer that skips its first steps has no states when the step is recorded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Tanh())
    optimizer = torch.optim.Adam(model.parameters())
    backend = Counting()
    runs = executor(Everything(), backend=backend)
    modes = []
    for i in range(8):
        with runs.step():
            optimizer.zero_grad()
            model(torch.ones(2, 64)).sum().backward()
            if i >= 4:
                optimizer.step()
        backend.there = 2 << 20 if i >= 4 else 0
        modes.append(runs.report.mode)
    assert modes[:4] == ["safe", "recorded", "executed", "executed"]
    assert "recorded" in modes[4:]
    assert modes[-1] == "executed"
    kinds = [storage.kind for storage in runs.plans[-1].trace.storages]
    assert "optimizer-state" in kinds
    assert sum("more on the device" in notice for notice in runs.notices) == 1


# -- what is in the process besides, and loops that begin late -------------------------------------


class Wrapper(torch.Tensor):
    """A tensor without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def trains(runs, rows, run, optimizer):
    """Return the modes of so many steps, each of a batch that is told."""
    modes = []
    for each in rows:
        x = torch.ones(each, 4)
        with runs.step(x):
            optimizer.zero_grad()
            run(x).sum().backward()
            optimizer.step()
        modes.append(runs.report.mode)
    return modes


@pytest.mark.parametrize("there", ["compiled", "fake", "wrapped"])
def test_tensors_without_memory_may_be_in_the_process(there):
    if there == "compiled":
        other = torch.compile(nn.Linear(4, 4), backend="eager")
        other(torch.ones(2, 4))
    elif there == "fake":
        with FakeTensorMode():
            other = nn.Linear(4, 4)
    else:
        other = Wrapper(torch.ones(3))
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modes = trains(executor(Everything()), [4, 4, 4, 3, 3], model, optimizer)
    assert modes == ["safe", "recorded", "executed", "recorded", "executed"]
    assert other is not None


# Torch warns of hooks on all modules, which name ours.
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_model_runs_where_the_user_has_it_run_as_it_is_written():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = torch.compile(model, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        modes = trains(executor(Everything()), [4, 4, 4], run, optimizer)
    assert modes == ["safe", "recorded", "executed"]

    def compiled_after_all(x):
        with torch.compiler.set_stance("default"):
            return run(x)

    with pytest.raises(Unsupported, match="force_eager"):
        trains(executor(Everything()), [4], compiled_after_all, optimizer)


def compiled_module():
    model = nn.Sequential(hidden(), hidden())
    run = torch.compile(model, backend="aot_eager")
    return training(model, lambda: run(torch.ones(4, 6)).exp().sum())


def compiled_in_place():
    model = nn.Sequential(hidden(), hidden())
    model[1].compile(backend="aot_eager")
    return training(model, lambda: model(torch.ones(4, 6)).exp().sum())


def compiled_function():
    model = nn.Sequential(hidden(), hidden())
    between = torch.compile(lambda y: (y.sin() * y).sigmoid() * y, backend="aot_eager")
    return training(model, lambda: model[1](between(model[0](torch.ones(4, 6)))).exp().sum())


def compiled_update():
    model = nn.Sequential(hidden(), hidden())
    optimizer = torch.optim.Adam(model.parameters())
    update = torch.compile(optimizer.step, backend="aot_eager")

    def step():
        optimizer.zero_grad()
        model(torch.ones(4, 6)).exp().sum().backward()
        update()

    return Training(model, step, optimizer)


@pytest.mark.filterwarnings("ignore")  # which torch gives while it compiles
@pytest.mark.parametrize("already", [False, True], ids=["new", "already compiled"])
@pytest.mark.parametrize(
    "build", [compiled_module, compiled_in_place, compiled_function, compiled_update]
)
def test_what_is_compiled_runs_as_it_is_written_and_that_is_said(build, already):
    step, other, runs = begun(build), begun(build), executor(Everything())
    if already:
        step()
        other()
    for _ in range(6):
        with torch.compiler.set_stance("force_eager"):
            other()
        with runs.step():
            step()
    assert runs.report.mode == "executed"
    assert different(state(step), state(other)) == []
    (notice,) = runs.notices
    assert "torch.compile" in notice


@pytest.mark.parametrize("late", [False, True])
def test_a_mode_that_torch_cannot_combine_with_looking_on_is_refused_by_name(late):
    model = hidden()
    runs = executor("liveness+recompute:strategy=speed,kinds=fork")
    # What torch 2.11 says of flex_attention's gradient on an H200.
    said = (
        'func != nullptr INTERNAL ASSERT FAILED at "/pytorch/torch/csrc/utils/python_dispatch.cpp"'
        ":1081, please report a bug to PyTorch. "
    )

    def step(odd):
        model.zero_grad()
        y = model(torch.ones(4, 6))
        if odd:
            raise RuntimeError(said)
        y.exp().sum().backward()

    for _ in range(3 if late else 0):
        with runs.step():
            step(odd=False)
    with pytest.raises(Unsupported, match="dispatch mode of its own"), runs.step():
        step(odd=True)
    with runs.step():
        step(odd=False)  # the next step works


# -- what no recording can hold --------------------------------------------------------------------


def hidden():
    return nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh(), nn.Linear(6, 6))


def sparse_gradients():
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), hidden())
    words = torch.tensor([1, 2, 3])
    return training(model, lambda: model(words).exp().sum())


def a_graph():
    model, edges, x = hidden(), torch.eye(4).to_sparse(), torch.randn(4, 6)
    return training(model, lambda: (edges @ model((edges @ model(x)).sigmoid())).exp().sum())


def a_graph_made_in_the_step():
    model, x = hidden(), torch.randn(4, 6)
    return training(model, lambda: (torch.eye(4).to_sparse_csr() @ model(x)).exp().sum())


def quantized_numbers():
    model, x = hidden(), torch.randn(4, 6)

    def loss():
        rough = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()
        return (model(x) * rough).exp().sum()

    return training(model, loss)


def noise_that_is_filled_after_it_was_kept():
    model, edges, x = hidden(), torch.eye(4).to_sparse(), torch.randn(4, 6)
    noisy = nn.RReLU()
    return training(
        model, lambda: (edges @ noisy(noisy(model(x) - 0.5) - 0.5)).exp().mul(noisy(model(x))).sum()
    )


def values_that_are_written_after_they_were_sent():
    model, edges, x = hidden(), torch.eye(4).to_sparse(), torch.randn(4, 6)

    def loss():
        y = model(x).exp()  # kept, and sent away
        spread = edges @ y
        y.data.mul_(0.5)  # autograd does not count it: backward takes half of the exponential
        return spread.sum()

    return training(model, loss)


def a_storage_of_another_size():
    model, x = hidden(), torch.randn(4, 6)

    def loss():
        y = model(x).sigmoid()
        scratch = (y * 2.0).detach()
        scratch.untyped_storage().resize_(0)
        scratch.untyped_storage().resize_(y.nbytes)
        scratch.copy_(y.detach())
        return (y.exp() * scratch).sum()

    return training(model, loss)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (sparse_gradients, "sparse"),
        (a_graph, "autograd keeps a sparse tensor"),
        (a_graph_made_in_the_step, "sparse"),
        (quantized_numbers, "quantized"),
        (noise_that_is_filled_after_it_was_kept, "sparse"),
        (values_that_are_written_after_they_were_sent, "sparse"),
        (a_storage_of_another_size, "resizes a storage"),
    ],
)
def test_a_step_that_no_recording_can_hold_is_kept_and_that_is_said(build, word):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us know that sparse tensors are in beta
        expected, step, runs = dense(plain(build, 6)), begun(build), executor(Everything())
        modes = []
        for _ in range(6):
            with runs.step():
                step()
            modes.append(runs.report.mode)
    assert different(dense(state(step)), expected) == []
    assert modes[0] == "safe"
    assert modes[-1] == "kept"
    (notice,) = runs.notices
    assert word in notice
    assert "everything is kept" in notice
    assert runs.slabs["host"].used_nbytes == 0


def begun(build):
    torch.manual_seed(0)
    return build()


def dense(found):
    """Return what training changes with its sparse gradients as others are."""
    return [
        (name, each.to_dense() if isinstance(each, torch.Tensor) and each.is_sparse else each)
        for name, each in found
    ]


def test_a_step_that_no_recording_can_hold_once_is_recorded_later():
    model, edges, x = hidden(), torch.eye(4).to_sparse(), torch.randn(4, 6)
    runs, modes = executor(Everything()), []
    for i in range(5):
        with runs.step():
            model.zero_grad()
            y = model(x).exp()
            (edges @ y if i == 0 else y).sum().backward()
        modes.append(runs.report.mode)
    assert modes == ["safe", "recorded", "executed", "executed", "executed"]
    assert runs.notices == []


@pytest.mark.parametrize("idle", ["nothing", "forward"])
def test_training_may_begin_after_a_while(idle):
    def train(runs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        modes = []
        for i in range(14):
            with nullcontext() if runs is None else runs.step():
                optimizer.zero_grad()
                if i >= 3:
                    model(torch.full((2, 4), 0.1 * i)).sum().backward()
                    optimizer.step()
                elif idle == "forward":
                    model(torch.ones(2, 4))
            if runs is not None:
                modes.append(runs.report.mode)
        return modes, [each.detach() for each in model.parameters()]

    runs = executor(Everything())
    modes, ours = train(runs)
    _, theirs = train(None)
    assert all(map(torch.equal, ours, theirs))
    assert modes[:3] == ["safe", "recorded", "kept"]
    assert modes[-4:] == ["executed"] * 4
    (notice,) = runs.notices
    assert notice.endswith("so everything is kept, and a later step is recorded")


def test_who_never_trains_in_a_step_is_recorded_less_and_less():
    model = nn.Linear(4, 4)
    runs = executor(Everything())
    modes = []
    for _ in range(64):
        with runs.step():
            model(torch.ones(2, 4))
        modes.append(runs.report.mode)
    at = [i for i, mode in enumerate(modes) if mode == "recorded"]
    assert at == [1, 6, 15, 32]
