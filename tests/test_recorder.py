"""What a recording says of a step, and how it fails."""

import contextlib
import gc
import re
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")

from plainstep import watch  # noqa: E402
from programs import PROGRAMS, Bag, training  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.nn.modules import module as torch_modules  # noqa: E402
from torch.optim import optimizer as torch_optimizers  # noqa: E402
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack  # noqa: E402

from superneurons.errors import InvalidInput, Unsupported  # noqa: E402
from superneurons.executor import Recorder, record  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def quick():
    """One thread, and nothing for the garbage collector to walk: steps are tiny here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record(PROGRAMS["chain"](), "step")  # what is imported late is there now
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def storages(trace, kind):
    return {each.name: each.nbytes for each in trace.storages if each.kind == kind}


def lasting(trace, kind):
    return {each.name for each in trace.storages if each.kind == kind and each.alive_at_start}


def operation(trace, kind, phase="forward"):
    (found,) = (op for op in trace.operations if op.kind == kind and op.phase == phase)
    return found


def storage_of(trace, value):
    values = {each.name: each.storage for each in trace.values}
    return values.get(value, value)


# -- storages --------------------------------------------------------------------------------------


def two_layers():
    return nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 5))


def adam_step():
    model = two_layers()
    x = torch.randn(3, 6)
    return training(model, lambda: model(x).sum(), torch.optim.Adam)


def test_storages_are_what_they_are_to_the_program():
    trace = record(adam_step(), "step")
    sizes = {"0.weight": 384, "0.bias": 64, "2.weight": 320, "2.bias": 20}
    assert storages(trace, "parameter") == sizes
    assert lasting(trace, "parameter-gradient") == {f"{name}.grad" for name in sizes}
    states = storages(trace, "optimizer-state")
    for name, nbytes in sizes.items():
        assert states[f"{name}.exp_avg"] == states[f"{name}.exp_avg_sq"] == nbytes
        assert states[f"{name}.step"] == 4
    assert list(storages(trace, "input").values()) == [72]
    assert set(storages(trace, "activation").values()) == {192, 60, 4}
    assert lasting(trace, "activation") == lasting(trace, "activation-gradient") == set()


def test_a_gradient_that_was_forgotten_becomes_the_next_one():
    trace = record(adam_step(), "step")
    after = {each.becomes: each for each in trace.storages if each.becomes is not None}
    assert after.keys() == lasting(trace, "parameter-gradient")
    assert {each.kind for each in after.values()} == {"parameter-gradient"}
    released = {release.storage: release.place for release in trace.releases}
    assert {released[name] for name in after} == {0}


def test_gradients_that_stay_are_written_in_place():
    trace = record(PROGRAMS["gradients_set_to_zero"](), "step")
    assert all(each.becomes is None for each in trace.storages)
    assert lasting(trace, "parameter-gradient") == {"weight.grad", "bias.grad"}
    writes = [storage_of(trace, v) for op in trace.operations for v in op.writes]
    assert writes.count("weight.grad") == 2  # zeroed, added to


def test_parameters_that_no_module_holds_are_named_by_their_optimizer():
    weights = [nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1)

    def step():
        optimizer.zero_grad()
        (weights[0] @ weights[1]).sum().backward()
        optimizer.step()

    trace = record(step, "step")
    assert len(lasting(trace, "parameter")) == len(lasting(trace, "parameter-gradient")) == 2
    assert storages(trace, "input") == {}


def test_parameters_that_nobody_holds_are_parameters_all_the_same():
    weight = nn.Parameter(torch.randn(4, 4))

    def step():
        weight.grad = None
        weight.exp().sum().backward()
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=0.1)

    trace = record(step, "step")
    assert list(storages(trace, "parameter").values()) == [64]
    assert len(lasting(trace, "parameter-gradient")) == 1


def test_tied_weights_are_one_storage():
    trace = record(PROGRAMS["tied_embedding"](), "step")
    assert list(storages(trace, "parameter").values()).count(11 * 6 * 4) == 1


def test_buffers_last():
    trace = record(PROGRAMS["convolutions"](), "step")
    assert {"1.running_mean", "1.running_var"} <= {
        each.name for each in trace.storages if each.alive_at_start and not each.becomes
    }


# -- operations ------------------------------------------------------------------------------------


def test_operations_carry_kind_phase_and_module():
    trace = record(adam_step(), "step")
    forward = [(op.module, op.kind) for op in trace.operations if op.phase == "forward"]
    assert forward[:3] == [("0", "matmul"), ("1", "activation"), ("2", "matmul")]
    phases = [op.phase for op in trace.operations]
    order = ["forward", "backward", "optimizer"]
    assert phases == sorted(phases, key=order.index)
    assert set(phases) == set(order)


def test_a_backward_operation_belongs_to_its_forwards_module():
    trace = record(adam_step(), "step")
    backward = [
        (op.module, op.kind)
        for op in trace.operations
        if op.phase == "backward" and op.kind in ("matmul", "activation")
    ]
    assert backward[:2] == [("2", "matmul")] * 2
    assert backward[2:] == [("1", "activation"), ("0", "matmul")]


def test_modules_are_named_by_their_path():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 6), nn.GELU())

        def forward(self, x):
            return x + self.inner(self.norm(x))

    model = nn.Sequential(nn.Linear(6, 6), Block())
    x = torch.randn(3, 6)
    trace = record(training(model, lambda: model(x).sum()), "step")
    forward = [(op.module, op.kind) for op in trace.operations if op.phase == "forward"]
    assert forward[:5] == [
        ("0", "matmul"),
        ("1.norm", "norm"),
        ("1.inner.0", "matmul"),
        ("1.inner.1", "activation"),
        ("1", "add"),
    ]
    assert {"1.norm.weight", "1.inner.0.bias"} <= lasting(trace, "parameter")


def test_a_module_called_twice_keeps_its_path():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(3, 6)
    trace = record(training(model, lambda: model(x).sum()), "step")
    assert {op.module for op in trace.operations if op.kind == "matmul"} == {"0"}


def test_work_is_counted():
    trace = record(adam_step(), "step")
    first = next(op for op in trace.operations if op.kind == "matmul")
    assert first.flops == 2 * 3 * 6 * 16
    assert first.moved_nbytes == 72 + 384 + 64 + 192  # input, weight, bias, result
    assert trace.times == "roofline"
    assert trace.places == "saves"
    assert all(op.device_ns is None and op.host_ns is None for op in trace.operations)
    assert trace.notes["torch"] == torch.__version__


def test_work_on_complex_numbers_is_counted():
    a, b = (nn.Parameter(torch.randn(n, n + 1, dtype=torch.cfloat)) for n in (3, 4))
    trace = record(lambda: (a @ b).abs().sum().backward(), "step")
    product = next(op for op in trace.operations if op.kind == "matmul")
    assert product.flops == 8 * 3 * 4 * 5  # of each complex product and sum 4 products and 4 sums
    assert product.moved_nbytes == 8 * (3 * 4 + 4 * 5 + 3 * 5)


def test_running_statistics_are_updated_in_passing():
    trace = record(PROGRAMS["convolutions"](), "step")
    norm = next(op for op in trace.operations if op.kind == "norm" and op.module == "1")
    updated = {storage_of(trace, value) for value in norm.updates}
    assert updated == {"1.running_mean", "1.running_var"}
    assert not updated & {storage_of(trace, value) for value in (*norm.writes, *norm.reads)}
    assert norm.recompute == "pure"


def test_frozen_statistics_are_read():
    trace = record(PROGRAMS["batch_norm_with_frozen_statistics"](), "step")
    norm = next(op for op in trace.operations if op.kind == "norm")
    assert norm.updates == ()
    assert {"1.running_mean", "1.running_var"} <= set(norm.reads)


def test_random_operations_are_random():
    def loss():
        y = F.dropout(model(x), 0.5) + torch.randn(3, 6)
        return F.rrelu(y.exp()).sum() + (torch.bernoulli(y.detach().sigmoid()) * y).sum()

    model = nn.Linear(6, 6)
    x = torch.randn(3, 6)
    trace = record(training(model, loss), "step")
    named = {op.name.partition("#")[0] for op in trace.operations if op.recompute == "random"}
    assert {"bernoulli", "randn"} <= {name.rpartition(".")[2] for name in named}
    pure = {op.kind for op in trace.operations if op.recompute == "pure"}
    assert {"matmul", "add"} <= pure


@pytest.mark.parametrize(("dropout", "recompute"), [(0.0, "pure"), (0.2, "random")])
def test_attention_is_random_if_it_drops(dropout, recompute):
    model = nn.Linear(4, 4)
    x = torch.randn(1, 2, 5, 4)

    def loss():
        q = model(x)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=dropout).sum()

    trace = record(training(model, loss), "step")
    forward = {op.recompute for op in trace.operations if op.phase == "forward"}
    assert recompute in forward
    assert ("random" in forward) == (recompute == "random")


@torch.library.custom_op("superneurons_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * 2.0


@torch.library.custom_op("superneurons_tests::shift_", mutates_args=("x",))
def shift_(x: torch.Tensor) -> None:
    x.add_(1.0)


scaled.register_autograd(lambda ctx, gradient: scaled(gradient))


def test_operators_of_other_libraries_are_opaque():
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)

    def loss():
        y = scaled(model(x))
        with torch.no_grad():
            shift_(scratch)
        return (y * scratch).sum()

    scratch = torch.zeros(3, 9)
    trace = record(training(model, loss), "step")
    opaque = [op for op in trace.operations if op.recompute == "opaque"]
    assert {op.phase for op in opaque if "scaled" in op.name} == {"forward", "backward"}
    (shift,) = (op for op in opaque if "shift" in op.name)
    assert len(shift.writes) == 1  # in place
    assert storage_of(trace, shift.writes[0]) in {s.name for s in trace.storages}


def test_what_an_unseen_kernel_fills_is_opaque():
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)

    def loss():
        scratch = torch.empty(3, 9)
        scratch.numpy()[:] = 2.0  # no operator of torch's
        return (model(x) * scratch).sum()

    trace = record(training(model, loss), "step")
    (made,) = (op for op in trace.operations if op.kind == "empty")
    assert made.recompute == "opaque"


def test_the_host_waits_for_what_it_reads():
    trace = record(PROGRAMS["the_loss_is_printed"](), "step")
    waits = [op for op in trace.operations if op.waits]
    assert [op.phase for op in waits] == ["forward", "optimizer", "optimizer"]
    assert all(op.writes == () for op in waits)


def test_a_chain_in_place_makes_versions_of_one_storage():
    trace = record(PROGRAMS["in_place_chain"](), "step")
    made = trace.operations[0]
    chain = [op for op in trace.operations[1:5] if op.writes]
    assert [storage_of(trace, op.writes[0]) for op in chain[:3]] == [made.writes[0]] * 3
    versions = {value.name: value.version for value in trace.values}
    assert [versions[op.writes[0]] for op in chain[:3]] == [1, 2, 3]


def test_a_view_is_a_part_of_its_storage():
    model = nn.Linear(6, 12)
    x = torch.randn(3, 6)

    def loss():
        a, b = model(x).chunk(2, 1)
        return (a * b).sum()

    trace = record(training(model, loss), "step")
    product = next(op for op in trace.operations if op.name == "mul")
    values = {value.name: value for value in trace.values}
    a, b = (values[name] for name in product.reads)
    assert a.storage == b.storage == trace.operations[0].writes[0]
    assert (a.offset, b.offset) == (0, 24)
    assert a.nbytes == b.nbytes == 2 * 48 + 24  # up to the last row's last number


# -- saves and releases ----------------------------------------------------------------------------


def test_a_saved_weight_is_the_parameter_itself():
    trace = record(adam_step(), "step")
    saved = {storage_of(trace, save.value) for save in trace.saves}
    assert "2.weight" in saved  # it comes as a transposed view, which is no Parameter
    assert saved & lasting(trace, "input")


@pytest.mark.parametrize("name", ["chain", "convolutions", "transformer", "checkpointed"])
def test_saves_are_packed_before_they_are_asked_for(name):
    trace = record(PROGRAMS[name](), "step")
    asked = [save for save in trace.saves if save.node]
    assert asked
    assert all(save.packed < save.unpacked for save in asked)
    assert all(save.freed is None or save.freed >= save.unpacked for save in asked)
    assert {save.node for save in asked} <= {hold.node for hold in watch(PROGRAMS[name]).holds}


def released(trace):
    return {release.storage: release.place for release in trace.releases}


def test_what_nobody_else_holds_is_released_after_its_last_use_in_forward():
    trace = record(adam_step(), "step")
    sigmoid, matmul = trace.operations[1:3]
    hidden = sigmoid.writes[0]
    assert matmul.reads.count(hidden) == 1
    assert released(trace)[hidden] == 3  # right after the second product
    asked = [save.unpacked for save in trace.saves if save.value == hidden]
    facts = trace.facts
    s = facts.storage_index[hidden]
    assert facts.managed[s]
    assert facts.absent_from[s] == 3
    assert len(asked) == 2  # by its own backward, and by the next layer's
    assert facts.absent_until[s] == min(asked) > 3


def test_what_the_program_keeps_to_the_end_of_forward_is_released_there():
    model = two_layers()
    x = torch.randn(3, 6)

    def loss():
        kept = [x]
        for layer in model:
            kept.append(layer(kept[-1]))
        y = kept[-1].sum()
        return y * 2.0

    trace = record(training(model, loss), "step")
    hidden = trace.operations[1].writes[0]
    last = next(i for i, op in enumerate(trace.operations) if op.name == "mul")
    assert released(trace)[hidden] == last + 1
    assert trace.facts.absent_from[trace.facts.storage_index[hidden]] == last + 1


def test_what_the_program_keeps_beyond_backward_is_not_managed():
    trace = record(PROGRAMS["activations_kept_beyond_backward"](), "step")
    hidden = next(op for op in trace.operations if op.kind == "activation").writes[0]
    s = trace.facts.storage_index[hidden]
    assert not trace.facts.managed[s]
    assert trace.facts.death[s] == len(trace.operations)


def test_what_the_program_drops_early_autograd_keeps():
    trace = record(PROGRAMS["activations_deleted_at_once"](), "step")
    exp = next(i for i, op in enumerate(trace.operations) if op.name == "exp")
    facts = trace.facts
    before = storage_of(trace, trace.operations[exp].reads[0])
    result = trace.operations[exp].writes[0]
    # exp saves its result, not what it was made of.
    assert released(trace)[before] == facts.death[facts.storage_index[before]] == exp + 1
    assert released(trace)[result] == exp + 2 < facts.death[facts.storage_index[result]]


def test_concatenations_hold_more_than_a_chain():
    def held(name):
        """Return the share of managed bytes times places that a driver may give up."""
        facts = record(PROGRAMS[name](), "step").facts
        kept = [
            s
            for s in range(facts.storage_count)
            if facts.managed[s] and not facts.alive_at_start[s]
        ]
        away = sum(facts.nbytes[s] * (facts.absent_until[s] - facts.absent_from[s]) for s in kept)
        there = sum(facts.nbytes[s] * (facts.death[s] - facts.writers[s][0]) for s in kept)
        return away / there

    assert held("dense_concat") < held("convolutions")


def test_a_save_of_a_custom_function_is_freed_when_it_was_read_twice():
    trace = record(PROGRAMS["custom_function"](), "step")
    saves = [save for save in trace.saves if "Twice" in save.node]
    assert len(saves) == 2
    last = max(i for i, op in enumerate(trace.operations) if op.phase == "backward")
    for save in saves:
        s = trace.facts.storage_index[storage_of(trace, save.value)]
        assert save.unpacked < trace.facts.death[s] <= last + 1


def test_a_retained_graph_keeps_its_saves_to_the_last_pass():
    trace = record(PROGRAMS["retained_graph"](), "step")
    passes = [i for i, op in enumerate(trace.operations) if op.name.startswith("ones_like")]
    assert len(passes) == 2
    hidden = next(op for op in trace.operations if op.kind == "activation").writes[0]
    save = next(save for save in trace.saves if save.value == hidden)
    assert (
        passes[0] < save.unpacked < passes[1] < trace.facts.death[trace.facts.storage_index[hidden]]
    )


# -- a recording -----------------------------------------------------------------------------------


def test_a_recording_says_when_it_is_done_and_leaves_later_steps_alone():
    step = adam_step()
    recorder = Recorder("step")
    while not recorder.done:
        with recorder.step():
            step()
    trace = recorder.trace()
    with recorder.step():
        assert _get_current_dispatch_mode_stack() == []
        step()
    assert recorder.done
    assert trace.facts.op_count > 0


def test_a_trace_may_be_asked_for_when_all_is_over():
    step = adam_step()
    recorder = Recorder("step")
    while not recorder.done:
        with recorder.step():
            step()
    digest = recorder.trace().facts.digest
    step()  # lets go of the recorded step's gradients
    assert recorder.trace().facts.digest == digest
    del step
    gc.collect()
    assert recorder.trace().facts.digest == digest


def test_two_recordings_are_the_same():
    traces = []
    for _ in range(2):
        torch.manual_seed(0)
        traces.append(record(PROGRAMS["transformer"](), "step"))
    one, two = traces
    assert one.facts.digest == two.facts.digest
    assert one.operations == two.operations
    assert one.saves == two.saves


@pytest.mark.parametrize("steps", [0, 1])
def test_a_trace_asked_for_too_early_is_refused(steps):
    recorder = Recorder("early")
    step = adam_step()
    for _ in range(steps):
        with recorder.step():
            step()
    with pytest.raises(InvalidInput, match="early"):
        recorder.trace()


def test_a_model_is_not_kept_alive():
    step = adam_step()
    recorder = Recorder("step")
    while not recorder.done:
        with recorder.step():
            step()
    trace = recorder.trace()
    gone = weakref.ref(step.model[0].weight)
    del step, recorder
    gc.collect()
    assert gone() is None
    assert trace.facts.op_count > 0


# -- failures --------------------------------------------------------------------------------------


def surroundings():
    """Return everything global that a recording touches."""
    return (
        torch.autograd.backward,
        torch.autograd.grad,
        torch.Tensor.backward,
        dict(torch_modules._global_forward_hooks),
        dict(torch_modules._global_forward_pre_hooks),
        dict(torch_modules._global_forward_hooks_always_called),
        dict(torch_modules._global_backward_hooks),
        dict(torch_optimizers._global_optimizer_pre_hooks),
        dict(torch_optimizers._global_optimizer_post_hooks),
        list(_get_current_dispatch_mode_stack()),
        str(torch._C._dispatch_tls_local_include_set()),
        str(torch._C._dispatch_tls_local_exclude_set()),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        torch._C._is_multithreading_enabled(),
        torch.is_grad_enabled(),
        gc.isenabled(),
    )


class Stop(Exception):
    """The user's own."""


def failing(where):
    """Return a step that raises at some point, its error, and its parameters."""
    error = Stop(where)
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(3, 6)

    def fail(*_):
        raise error

    def step(now):
        optimizer.zero_grad()
        y = model(x)
        if now and where == "forward":
            fail()
        if now and where == "module":
            handle = model[1].register_forward_pre_hook(fail)
            try:
                model(x)
            finally:
                handle.remove()
        if now and where == "backward":
            y.register_hook(fail)
        y.sum().backward()
        if now and where == "optimizer":
            fail()
        optimizer.step()

    return step, error, model


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("where", ["forward", "module", "backward", "optimizer"])
def test_the_users_error_arrives_and_nothing_is_left_behind(where, number):
    step, error, model = failing(where)
    before = surroundings()
    recorder = Recorder("broken")
    for _ in range(number):
        with recorder.step():
            step(False)
    with pytest.raises(Stop) as raised, recorder.step():
        step(True)
    assert raised.value is error
    assert surroundings() == before
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    with pytest.raises(InvalidInput, match="broken"):
        recorder.trace()
    step(False)
    assert surroundings() == before
    record(lambda: step(False), "again")


@pytest.mark.parametrize("collecting", [True, False])
def test_a_recording_leaves_everything_as_it_was(collecting):
    step = adam_step()
    try:
        if not collecting:
            gc.disable()
        with torch.autograd.set_multithreading_enabled(collecting):
            before = surroundings()
            record(step, "step")
            assert surroundings() == before
    finally:
        gc.enable()
    assert not any(p._post_accumulate_grad_hooks for p in step.model.parameters())


def test_nothing_is_collected_while_a_step_is_seen_but_afterwards():
    step = adam_step()
    seen = []

    def with_a_cycle():
        cycle = [torch.zeros(1000)]
        cycle.append(cycle)
        seen.append(gc.isenabled())
        step()

    trace = record(with_a_cycle, "step")
    assert seen[-1] is False
    assert 4000 in {each.nbytes for each in trace.storages}


def test_a_step_that_grows_is_refused_with_the_difference():
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    kept = []

    def loss():
        y = model(x)
        kept.append(y.detach())
        return y.sum()

    with pytest.raises(InvalidInput, match=r"not closed.*only at the end: \S*addmm \(108 bytes\)"):
        record(training(model, loss), "step")


def test_a_step_that_shrinks_is_refused_with_the_difference():
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    kept = [torch.randn(7, 7) for _ in range(9)]

    def loss():
        with torch.no_grad():
            kept[-1].add_(kept[-2])
        kept.pop()
        return model(x).sum()

    with pytest.raises(InvalidInput, match=r"not closed.*only at the start: .*\(196 bytes\)"):
        record(training(model, loss), "step")


def test_a_step_that_grows_by_a_graph_is_refused():
    """The usual leak: the losses are added up with their graphs."""
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    total = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = model(x).exp().sum()
        loss.backward(retain_graph=True)
        total.append(loss if not total else total.pop() + loss)
        optimizer.step()

    with pytest.raises(InvalidInput, match="not closed"):
        record(step, "step")


def sparse_loss():
    return torch.sparse.mm(torch.eye(4).to_sparse(), torch.randn(4, 3)).sum()


def sparse_and_kept_loss():
    table = nn.Parameter(torch.randn(4, 3))
    return torch.sparse.mm(torch.eye(4).to_sparse(), table).sum()


def sparse_gradient_loss():
    table = nn.Parameter(torch.randn(9, 4))
    F.embedding(torch.tensor([1, 2]), table, sparse=True).sum().backward()
    return torch.zeros(())


def quantized_loss():
    return torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.qint8).dequantize().sum()


@pytest.mark.parametrize(
    ("loss", "word", "operator"),
    [
        (sparse_loss, "sparse", "sparse"),
        (sparse_and_kept_loss, "sparse", "sparse"),
        (sparse_gradient_loss, "sparse", "sparse|coo|embedding"),
        (quantized_loss, "quantized", "quantize"),
    ],
)
def test_tensors_without_plain_bytes_are_refused_by_name(loss, word, operator):
    model = nn.Linear(6, 9)
    x = torch.randn(3, 6)
    before = surroundings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us call it otherwise
        with pytest.raises(Unsupported, match=word) as raised:
            record(training(model, lambda: model(x).sum() + loss()), "step")
    assert re.search(operator, str(raised.value))
    assert surroundings() == before


# -- in-place modification -------------------------------------------------------------------------


def _saved_result(model, x):
    y = model(x).sigmoid()
    loss = y.sum()
    y.add_(1.0)
    loss.backward()


def _saved_input(model, x):
    y = model(x)
    loss = y.pow(2).sum()
    y.zero_()
    loss.backward()


def _through_a_view(model, x):
    y = model(x)
    loss = y.pow(2).sum()
    y[0].zero_()
    loss.backward()


def _through_detach(model, x):
    y = model(x).exp()
    loss = y.sum()
    y.detach().zero_()
    loss.backward()


def _parameter(model, x):
    hidden = model(x)
    loss = model(hidden).sum()
    with torch.no_grad():
        model.weight.mul_(2.0)
    loss.backward()


def _optimizer_between_passes(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(model(x)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    loss.backward()


def _after_it_was_used(model, x):
    y = model(x)
    y.pow(2).sum().backward()
    y.detach().zero_()


def _not_needed(model, x):
    y = model(x)
    loss = y.sum()  # saves nothing
    y.zero_()
    loss.backward()


def _unseen(model, x):
    y = model(x).exp()
    loss = y.sum()
    y.data.zero_()  # no version is counted
    loss.backward()


def _saved_for_nothing(model, x):
    y = model(x)
    unused = y.pow(2)
    loss = y.sum()
    y.add_(1.0)
    del unused
    loss.backward()


def _input_in_place_before(model, x):
    y = model(x).mul_(2.0)
    y.sigmoid().sum().backward()


MODIFICATIONS = [
    _saved_result,
    _saved_input,
    _through_a_view,
    _through_detach,
    _parameter,
    _optimizer_between_passes,
    _after_it_was_used,
    _not_needed,
    _unseen,
    _saved_for_nothing,
    _input_in_place_before,
]


@pytest.mark.parametrize("body", MODIFICATIONS, ids=lambda body: body.__name__.strip("_"))
def test_a_modified_saved_tensor_is_noticed_as_in_plain_torch(body):
    model = nn.Linear(6, 6)
    x = torch.randn(3, 6)

    def step():
        model.zero_grad()
        body(model, x)

    plain = recorded = None
    try:
        step()
        step()
        step()
    except RuntimeError as error:
        plain = error
    before = surroundings()
    try:
        record(step, "step")
    except RuntimeError as error:
        recorded = error
    assert (plain is None) == (recorded is None)
    if plain is not None:
        assert "modified by an inplace operation" in str(plain)
        assert "modified by an inplace operation" in str(recorded)
    assert surroundings() == before


def test_more_than_half_of_the_modifications_are_errors_in_plain_torch():
    model = nn.Linear(6, 6)
    errors = 0
    for body in MODIFICATIONS:
        model.zero_grad()
        with contextlib.suppress(RuntimeError):
            body(model, torch.randn(3, 6))
            continue
        errors += 1
    assert errors == 6


# -- compiled regions ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("trained", [True, False])
def test_a_compiled_region_is_refused_by_name(trained):
    """What its kernels do, operators do not tell; under a mode it runs as operators instead."""
    compiled = torch.compile(nn.Sequential(nn.Linear(6, 9), nn.Sigmoid()), backend="aot_eager")
    head = nn.Linear(9, 2)
    x = torch.randn(3, 6)

    def loss():
        with torch.set_grad_enabled(trained):
            hidden = compiled(x)
        return head(hidden).sum()

    with pytest.raises(Unsupported, match="compile"):
        record(training(Bag(body=compiled, head=head), loss), "step")
