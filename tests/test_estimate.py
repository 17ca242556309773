"""Estimates: a step followed under fake tensors, with CUDA's operators in the CPU's places."""

import copy
import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace

import msgspec
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from superneurons import zoo  # noqa: E402
from superneurons.errors import InvalidInput, Unsupported  # noqa: E402
from superneurons.executor import estimate, private, record  # noqa: E402
from superneurons.machines import find_machine  # noqa: E402
from superneurons.policies import find_policy  # noqa: E402
from superneurons.sim import simulate  # noqa: E402
from superneurons.traces import Operation, Trace  # noqa: E402


@pytest.fixture(autouse=True)
def _settled_heap():
    """Let the collections around logged steps look at the objects of one test alone."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _heap_as_before():
    yield
    gc.unfreeze()


Sgd = partial(torch.optim.SGD, lr=0.1, foreach=True)


def program(
    loss: Callable = lambda model, x: model(x).sum(),
    model: Callable = lambda: nn.Linear(8, 8),
    x: Callable = lambda: torch.randn(4, 8),
    optimizer: Callable = Sgd,
) -> Callable:
    """Return a function that builds the step of a model, a batch and an optimizer."""

    def build():
        torch.manual_seed(0)
        trained, batch = model(), x()
        chosen = optimizer(trained.parameters())

        def step():
            chosen.zero_grad()
            loss(trained, batch).backward()
            chosen.step()

        return step

    return build


def images(*shape: int) -> Callable:
    return lambda: torch.randn(shape or (2, 4, 8, 8))


def named(trace: Trace, name: str) -> list[Operation]:
    """Return the operations of a name, whatever module they are of."""
    return [op for op in trace.operations if name == op.name.split(".")[-1].partition("#")[0]]


def sizes(trace: Trace) -> dict[str, int]:
    return {storage.name: storage.nbytes for storage in trace.storages}


def written(trace: Trace, op: Operation) -> list[int]:
    return [sizes(trace)[value] for value in op.writes]


def kept(trace: Trace, node: str) -> list[int]:
    """Return the bytes that a node of autograd keeps: of each value once, by size."""
    storages = sizes(trace)
    views = {value.name: value.nbytes or storages[value.storage] for value in trace.values}
    both = views | storages
    return sorted(both[save.value] for save in trace.saves if node in save.node)


def held(trace: Trace, kind: str) -> int:
    return sum(s.nbytes for s in trace.storages if s.kind == kind and s.alive_at_start)


def nbytes(tensors) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


# -- at any size -----------------------------------------------------------------------------------


def test_a_model_of_gigabytes_takes_no_memory():
    resource = pytest.importorskip("resource")
    estimate(partial(zoo.gpt, batch=1, length=64, layers=1, width=64, heads=2), "small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace = estimate(partial(zoo.gpt, batch=4, length=2048, layers=2, width=8192, heads=64), "gpt")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = held(trace, "parameter")
    assert parameters > 4 * 10**9
    assert held(trace, "optimizer-state") == 2 * parameters
    unit = 1 if sys.platform == "darwin" else 1024
    assert (after - before) * unit < parameters / 20


def test_a_deep_model_has_as_many_operations_for_each_block():
    def count(n3: int) -> int:
        build = partial(zoo.resnet, 1, 1, n3, 1, batch=2, image=32, width=8, classes=10)
        return len(estimate(build, "resnet").operations)

    counts = [count(n3) for n3 in (1, 2, 5)]
    assert counts[2] - counts[1] == 3 * (counts[1] - counts[0])


TINY = {
    "bert": {"batch": 2, "length": 8, "layers": 1, "width": 16, "heads": 2, "vocabulary": 50},
    "gpt": {"batch": 2, "length": 8, "layers": 2, "width": 16, "heads": 2, "vocabulary": 50},
    "lstm": {"batch": 2, "length": 8, "hidden": 16, "vocabulary": 50},
    "small_cnn": {"batch": 2, "image": 8, "width": 8},
    "unet": {"batch": 2, "size": 16, "width": 4},
    "vit": {"batch": 2, "image": 32, "layers": 2, "width": 16, "heads": 2, "classes": 10},
}


@cache
def of_zoo(name: str) -> Trace:
    return estimate(partial(getattr(zoo, name), **TINY[name]), name)


@pytest.mark.parametrize("name", TINY)
def test_a_network_of_the_zoo_has_its_parameters_gradients_and_states_to_the_byte(name):
    trace = of_zoo(name)
    step = getattr(zoo, name)(**TINY[name])
    parameters = list(step.model.parameters())
    assert held(trace, "parameter") == nbytes({*parameters, *step.model.buffers()})
    assert held(trace, "parameter-gradient") == nbytes(parameters)
    step()
    states = [t for state in step.optimizer.state.values() for t in state.values()]
    # The step counters are numbers on the host.
    assert held(trace, "optimizer-state") == nbytes(
        t for t in states if isinstance(t, torch.Tensor) and t.dim() > 0
    )


@pytest.mark.parametrize("name", TINY)
def test_no_operation_of_the_cpus_own_is_left_in_a_network_of_the_zoo(name):
    trace = of_zoo(name)
    own = ("for_cpu", "mkldnn", "onednn", "bernoulli", "native_batch_norm")
    assert [op.name for op in trace.operations if any(each in op.name for each in own)] == []


@pytest.mark.parametrize("name", ["gpt", "small_cnn"])
def test_an_estimate_can_be_simulated(name):
    trace = of_zoo(name)
    h200 = find_machine("h200")
    baseline, liveness, both = (
        simulate(trace, find_policy(policy), h200)
        for policy in ("baseline", "liveness", "superneurons")
    )
    assert baseline.device_peak_bytes > liveness.device_peak_bytes >= both.device_peak_bytes
    assert liveness.step_time_ns > 0


# -- what it says of itself ------------------------------------------------------------------------


def test_an_estimate_says_that_it_is_one():
    trace = estimate(program(), "small")
    assert trace.name == "small"
    assert trace.notes["made"].startswith("estimated without a GPU: ")
    assert trace.notes["times"].startswith("none measured: ")
    assert trace.notes["torch"] == torch.__version__
    assert (trace.times, trace.machine, trace.places) == ("roofline", "", "saves")
    assert all(op.device_ns is None and op.host_ns is None for op in trace.operations)


def test_an_estimate_knows_no_workspaces():
    trace = of_zoo("small_cnn")
    assert {(op.workspace_nbytes, op.transient_nbytes) for op in trace.operations} == {(0, 0)}


def test_the_same_program_is_estimated_the_same_twice():
    again = estimate(partial(zoo.gpt, **TINY["gpt"]), "gpt")
    assert msgspec.to_builtins(again) == msgspec.to_builtins(of_zoo("gpt"))


def test_a_model_is_built_once_and_without_bytes():
    built = []

    def build():
        built.append(type(torch.ones(1)))
        return program()()

    estimate(build, "once")
    ((kind,),) = [built]
    assert issubclass(kind, torch.Tensor)
    assert kind is not torch.Tensor


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_dropouts_mask_takes_a_byte_for_each_number(dtype):
    build = program(
        lambda model, x: functional.dropout(model(x), 0.5).sum(),
        lambda: nn.Linear(8, 8, dtype=dtype),
        lambda: torch.randn(4, 8, dtype=dtype),
    )
    trace = estimate(build, "dropout")
    (op,) = named(trace, "native_dropout")
    assert written(trace, op) == [32 * dtype.itemsize, 32]
    assert (op.kind, op.recompute) == ("dropout", "random")
    assert kept(trace, "NativeDropout") == [32]
    assert len(named(trace, "native_dropout_backward")) == 1


def test_a_dropout_module_is_a_dropout():
    build = program(model=lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)))
    (op,) = named(estimate(build, "dropout"), "native_dropout")
    assert op.module == "1"


@pytest.mark.parametrize(
    "layer",
    [lambda: nn.Dropout(0.5).eval(), lambda: nn.Dropout(0.0), nn.Identity],
    ids=["evaluation", "nothing", "identity"],
)
def test_a_dropout_that_drops_nothing_is_no_operation(layer):
    trace = estimate(program(model=lambda: nn.Sequential(nn.Linear(8, 8), layer())), "dropout")
    plain = estimate(program(model=lambda: nn.Sequential(nn.Linear(8, 8))), "dropout")
    assert trace.operations == plain.operations


def test_a_dropout_of_what_has_no_gradient_has_a_mask_of_bytes_too():
    # The choice of CUDA's operator asks for device, share and size, not for a gradient.
    trace = estimate(program(lambda model, x: model(functional.dropout(x, 0.5)).sum()), "dropout")
    (op,) = named(trace, "native_dropout")
    assert written(trace, op) == [128, 32]


def test_a_dropout_inside_a_function_of_torch_is_one_too():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5)

        def forward(self, x):
            return self.attention(x, x, x)[0]  # with weights: not fused

    trace = estimate(program(model=Attends, x=lambda: torch.randn(6, 3, 8)), "attention")
    (op,) = named(trace, "native_dropout")
    assert written(trace, op) == [4 * 3 * 2 * 36, 3 * 2 * 36]


# -- attention -------------------------------------------------------------------------------------

BATCH, HEADS, LENGTH, WIDTH = 2, 2, 8, 8


class Attention(nn.Module):
    def __init__(self, dtype, mask=None, drop=0.0, causal=False):
        super().__init__()
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH, dtype=dtype)
        self.mask, self.drop, self.causal = mask, drop, causal

    def forward(self, x):
        q, k, v = (
            each.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2).contiguous()
            for each in self.qkv(x).split(HEADS * WIDTH, dim=2)
        )
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if self.mask is None else self.mask(),
            dropout_p=self.drop,
            is_causal=self.causal,
        )


def attends(dtype, **options) -> Callable:
    return program(
        lambda model, x: model(x).sum(),
        lambda: Attention(dtype, **options),
        lambda: torch.randn(BATCH, LENGTH, HEADS * WIDTH, dtype=dtype),
    )


NUMBERS = BATCH * HEADS * LENGTH * WIDTH
ROWS = BATCH * HEADS * LENGTH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"drop": 0.1}], ids=str)
def test_attention_of_16_bits_is_flash_attention(dtype, options):
    trace = estimate(attends(dtype, **options), "attention")
    (op,) = [op for op in trace.operations if op.kind == "attention" and op.phase == "forward"]
    (back,) = [op for op in trace.operations if op.kind == "attention" and op.phase == "backward"]
    assert op.name == "scaled_dot_product_flash_attention"
    assert back.name == "scaled_dot_product_flash_attention_backward"
    assert op.recompute == ("random" if "drop" in options else "pure")
    # Query, key, value and output, one number in fp32 for each row, and the generator's state.
    *small, rows, q, k, v, output = kept(trace, "FlashAttention")
    assert [q, k, v, output] == [2 * NUMBERS] * 4
    assert rows == 4 * ROWS
    assert sum(small) <= 24
    assert op.precision == back.precision == "half"
    assert op.flops == 2 * 2 * NUMBERS * LENGTH


@pytest.mark.parametrize(
    ("dtype", "mask"),
    [
        (torch.float32, None),
        (torch.float32, lambda: torch.zeros(LENGTH, LENGTH)),
        (torch.float32, lambda: torch.ones(LENGTH, LENGTH, dtype=torch.bool)),
        (torch.bfloat16, lambda: torch.zeros(BATCH, 1, 1, LENGTH, dtype=torch.bfloat16)),
        (torch.float16, lambda: torch.ones(LENGTH, LENGTH, dtype=torch.bool)),
    ],
    ids=["fp32", "fp32-mask", "fp32-bool-mask", "bf16-mask", "fp16-bool-mask"],
)
def test_attention_of_32_bits_or_with_a_mask_is_efficient_attention(dtype, mask):
    trace = estimate(attends(dtype, mask=mask), "attention")
    names = [op.name for op in trace.operations if op.kind == "attention"]
    assert names == [
        "scaled_dot_product_efficient_attention",
        "scaled_dot_product_efficient_attention_backward",
    ]
    all_kept = kept(trace, "EfficientAttention")
    assert [n for n in all_kept if n == NUMBERS * dtype.itemsize][:4] == [
        NUMBERS * dtype.itemsize
    ] * 4
    # Rows are padded to 32 in what is kept of each: one number in fp32.
    assert BATCH * HEADS * 32 * 4 in all_kept
    assert len(all_kept) == (7 if mask is None else 8)


def test_attention_in_fp32_keeps_its_row_sums_whichever_of_its_inputs_needs_a_gradient():
    class Frozen(Attention):
        def forward(self, x):
            q, k, v = (
                each.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2)
                for each in self.qkv(x).split(HEADS * WIDTH, dim=2)
            )
            return functional.scaled_dot_product_attention(q.detach(), k, v)

    build = program(
        model=lambda: Frozen(torch.float32),
        x=lambda: torch.randn(BATCH, LENGTH, HEADS * WIDTH),
    )
    assert BATCH * HEADS * 32 * 4 in kept(estimate(build, "attention"), "EfficientAttention")


def test_torchs_own_attention_module_attends_as_on_cuda():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    trace = estimate(program(model=Attends, x=lambda: torch.randn(2, 8, 16)), "attention")
    assert [op.name.split(".")[-1] for op in trace.operations if op.kind == "attention"] == [
        "scaled_dot_product_efficient_attention",
        "scaled_dot_product_efficient_attention_backward",
    ]


def test_grouped_queries_are_attention_too():
    def loss(model, x):
        q = model(x).view(2, 4, 2, 8).transpose(1, 2)
        k = v = x.view(2, 4, 1, 8).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).sum()

    build = program(loss, lambda: nn.Linear(8, 16), lambda: torch.randn(2, 4, 8))
    names = [op.name for op in estimate(build, "gqa").operations if op.kind == "attention"]
    assert len(names) == 2


# -- recurrent networks ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(8, 16, **options)

    def forward(self, x):
        return self.rnn(x)[0]


def recurs(kind=nn.LSTM, loss=lambda model, x: model(x).sum(), **options) -> Callable:
    return program(loss, lambda: Recurrent(kind, **options), lambda: torch.randn(5, 3, 8))


OUTPUT = 5 * 3 * 16 * 4


@pytest.mark.parametrize(
    ("kind", "options", "states", "factor"),
    [
        (nn.LSTM, {}, 2, 6),
        (nn.LSTM, {"num_layers": 2, "dropout": 0.5}, 2, 12),
        (nn.LSTM, {"bidirectional": True}, 2, 6),
        (nn.LSTM, {"batch_first": True}, 2, 6),
        (nn.GRU, {}, 1, 5),
        (nn.RNN, {}, 1, 2),
        (nn.RNN, {"nonlinearity": "relu", "num_layers": 3}, 1, 6),
    ],
    ids=["lstm", "lstm-2-layers", "lstm-2-ways", "lstm-batch-first", "gru", "rnn", "rnn-3-layers"],
)
def test_a_recurrent_network_is_one_operation_with_a_reserve(kind, options, states, factor):
    trace = estimate(recurs(kind, **options), "rnn")
    ops = [op for op in trace.operations if op.kind == "rnn"]
    assert [op.name for op in ops] == ["rnn.cudnn_rnn", "rnn.cudnn_rnn_backward"]
    ways = 2 if options.get("bidirectional") else 1
    output, reserve, *last = written(trace, ops[0])
    assert output == OUTPUT * ways
    assert reserve == output * factor
    batch = 5 if options.get("batch_first") else 3
    layers = options.get("num_layers", 1)
    assert last == [layers * ways * batch * 16 * 4] * states
    with torch.random.fork_rng():
        model = Recurrent(kind, **options)
    weights = [p.numel() * 4 for p in model.parameters()]
    back = kept(trace, "rnn")
    assert back == sorted([5 * 3 * 8 * 4, *last, *weights, output, reserve])
    made = written(trace, ops[1])
    assert made[-len(weights) :] == weights


def test_the_backward_of_a_recurrent_network_has_no_gradient_of_its_reserve():
    trace = estimate(recurs(), "rnn")
    (back,) = named(trace, "cudnn_rnn_backward")
    forward = [name for op in trace.operations if op.phase == "forward" for name in op.writes]
    reserve = 6 * OUTPUT
    assert max(sizes(trace)[name] for name in forward) == reserve
    backward = [s.nbytes for s in trace.storages if s.kind == "activation-gradient"]
    assert max(backward) < reserve
    assert not any("zeros" in value for value in back.reads if "backward" in value)


def test_a_recurrent_network_that_drops_between_its_layers_is_opaque():
    """cuDNN's dropout draws from a state of its own, that nobody can put back."""
    (op,) = named(estimate(recurs(num_layers=2, dropout=0.5), "rnn"), "cudnn_rnn")
    assert op.recompute == "opaque"
    (op,) = named(estimate(recurs(num_layers=2), "rnn"), "cudnn_rnn")
    assert op.recompute == "pure"


def test_the_work_of_a_recurrent_network_is_its_weights_for_each_step_of_each_sequence():
    forward, backward = (op for op in estimate(recurs(), "rnn").operations if op.kind == "rnn")
    weights = 4 * 16 * 8 + 4 * 16 * 16
    assert forward.flops == 2 * 5 * 3 * weights
    assert backward.flops == 2 * forward.flops


def test_packed_sequences_are_refused_in_a_sentence():
    lengths = [5, 4, 3]
    build = recurs(
        loss=lambda model, x: model.rnn(pack_padded_sequence(x, torch.tensor(lengths)))[
            0
        ].data.sum()
    )
    with pytest.raises(Unsupported) as caught:
        estimate(build, "packed")
    assert "pack" in str(caught.value)
    assert "record it on a GPU" in str(caught.value)


# -- normalization ---------------------------------------------------------------------------------


def test_batch_normalization_is_cudnns_and_updates_its_statistics_in_passing():
    build = program(model=lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), x=images())
    trace = estimate(build, "norm")
    (op,) = named(trace, "cudnn_batch_norm")
    assert op.updates == ("1.running_mean@1", "1.running_var@1")
    assert written(trace, op)[:3] == [2 * 4 * 6 * 6 * 4, 16, 16]
    assert len(named(trace, "cudnn_batch_norm_backward")) == 1


# -- optimizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_an_optimizer_that_may_choose_takes_all_parameters_at_once(optimizer):
    trace = estimate(program(optimizer=optimizer), "adam")
    updates = [op for op in trace.operations if op.phase == "optimizer"]
    assert {op.kind for op in updates} == {"foreach"}
    assert any({"weight@1", "bias@1"} <= set(op.writes) for op in updates)


def test_the_step_counters_of_an_optimizer_are_not_on_the_device():
    trace = estimate(program(optimizer=torch.optim.Adam), "adam")
    states = {s.name: s.nbytes for s in trace.storages if s.kind == "optimizer-state"}
    found = {name: n for name, n in states.items() if "exp_avg" in name}
    assert found == {
        "weight.exp_avg": 256,
        "weight.exp_avg_sq": 256,
        "bias.exp_avg": 32,
        "bias.exp_avg_sq": 32,
    }
    assert not any("step" in name for name in states)


def test_an_optimizer_that_is_told_to_go_one_by_one_does():
    build = program(optimizer=partial(torch.optim.Adam, foreach=False))
    updates = [op for op in estimate(build, "adam").operations if op.phase == "optimizer"]
    assert not any(op.kind == "foreach" for op in updates)
    assert len(updates) % 2 == 0  # as many for the weight as for the bias


def test_a_fused_optimizer_is_one_operation():
    build = program(optimizer=partial(torch.optim.Adam, fused=True))
    trace = estimate(build, "adam")
    *counters, op = [op for op in trace.operations if op.phase == "optimizer"]
    assert op.kind == "optimizer"
    assert {"weight@1", "bias@1"} <= set(op.writes)
    # It counts its steps on the device.
    assert [each.kind for each in counters] == ["foreach"]
    assert sizes(trace)["weight.step"] == sizes(trace)["bias.step"] == 4


def test_an_optimizer_whose_rate_is_a_tensor_goes_one_by_one_as_on_cuda():
    build = program(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1)))
    updates = [op for op in estimate(build, "adam").operations if op.phase == "optimizer"]
    assert updates
    assert not any(op.kind == "foreach" for op in updates)


def test_what_an_estimate_chose_for_optimizers_ends_with_it():
    estimate(program(optimizer=torch.optim.Adam), "adam")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["foreach"] is None


# -- values ----------------------------------------------------------------------------------------


def test_a_value_that_a_step_reads_is_nought():
    seen = []

    def loss(model, x):
        y = model(x)
        seen.append((y.sum().item(), x.argmax().item(), (x > 0).all().item()))
        return y.sum()

    trace = estimate(program(loss), "values")
    assert set(map(repr, seen)) == {"(0.0, 0, False)"}
    waits = [op for op in trace.operations if op.waits]
    assert [op.kind for op in waits] == ["wait"] * 3
    assert [op.recompute for op in waits] == ["opaque"] * 3


@pytest.mark.parametrize(
    "use",
    [
        lambda loss: float(loss.detach()),
        lambda loss: "large" if loss > 100 else "small",
        lambda loss: bool(torch.isnan(loss).any()),
        lambda loss: str(loss),
        lambda loss: f"{loss.item():.3f}",
        lambda loss: f"{loss:.3f}",
    ],
    ids=["float", "if", "any", "str", "format-of-item", "format"],
)
def test_a_step_may_look_at_its_loss(use):
    def loss(model, x):
        found = model(x).sum()
        use(found)
        return found

    trace = estimate(program(loss), "looks")
    assert named(trace, "addmm")


@pytest.mark.parametrize(
    ("use", "operator"),
    [
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x[torch.where(x > 0)], "nonzero"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.unique(), "unique"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: torch.allclose(x, x), "allclose"),
    ],
    ids=["nonzero", "boolean-index", "where", "masked_select", "unique", "equal", "allclose"],
)
def test_a_step_that_depends_on_values_is_refused_by_the_operators_name(use, operator):
    def loss(model, x):
        use(x)
        return model(x).sum()

    with pytest.raises(Unsupported) as caught:
        estimate(program(loss), "values")
    message = str(caught.value)
    assert operator in message
    assert "record it on a GPU" in message
    assert "\n" not in message


def test_a_number_that_a_step_makes_is_on_the_host_and_what_it_scales_on_the_device():
    trace = estimate(program(lambda model, x: (model(x) * torch.tensor(2.0)).sum()), "scaled")
    forward, backward = named(trace, "mul")[0], named(trace, "backward")
    assert written(trace, forward) == [128]
    assert backward
    assert not any(s.nbytes == 4 and "lift" in s.name for s in trace.storages)


# -- CUDA by name ----------------------------------------------------------------------------------


def autocasts(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        y = model(x)
    return y.float().sum()


def refusal(build: Callable) -> str:
    with pytest.raises(Unsupported) as caught:
        estimate(build, "refused")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_autocast_for_cuda_is_refused_in_a_sentence():
    message = refusal(program(autocasts))
    assert "CUDA" in message
    assert "torch.autocast(device_type=x.device.type, ...)" in message


def test_autocast_for_cuda_is_refused_where_there_is_a_gpu_as_well(monkeypatch):
    # An estimate may be asked for there too; its tensors are on the CPU all the same.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "CUDA" in refusal(program(autocasts))


def test_a_gradient_scaler_for_cuda_is_refused_in_a_sentence_that_says_so():
    def loss(model, x):
        return torch.amp.GradScaler("cuda").scale(model(x).sum())

    message = refusal(program(loss))
    assert "(torch)" not in message
    assert "CUDA" in message


def test_autocast_for_the_tensors_own_device_casts():
    def loss(model, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = model(x)
        return y.float().sum()

    trace = estimate(program(loss), "autocast")
    (op,) = named(trace, "addmm")
    assert written(trace, op) == [64]
    assert op.precision == "half"


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.cuda(),
        lambda model: model.to("cuda"),
        lambda model: model.to(torch.device("cuda", 0)),
    ],
    ids=["cuda", "to", "to-device"],
)
def test_a_model_that_is_moved_to_cuda_by_name_is_on_the_device_that_is_estimated(move):
    there = estimate(program(model=lambda: move(nn.Linear(8, 8))), "moved")
    here = estimate(program(model=lambda: nn.Linear(8, 8)), "moved")
    assert there.operations == here.operations
    assert there.storages == here.storages


def test_a_tensor_that_is_made_on_cuda_by_name_is_on_the_device_that_is_estimated(tmp_path):
    # In a process of its own: torch would end it.
    (tmp_path / "on_cuda.py").write_text(
        "import torch\n"
        "def build():\n"
        "    x = torch.ones(4, requires_grad=True)\n"
        "    def step():\n"
        "        x.grad = None\n"
        "        (x.sum() + torch.ones(1, device='cuda').sum()).backward()\n"
        "    return step\n"
    )
    command = [sys.executable, "-m", "superneurons", "record", "--estimate", "on_cuda:build"]
    done = subprocess.run(
        [*command, "-o", "step.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- programs as they are written ------------------------------------------------------------------


TORCH_WARNS_OF_COPIES = pytest.mark.filterwarnings(
    "ignore:Accessing the data pointer of FakeTensor"
)


@pytest.fixture
def _nothing_remembered():
    """Forget what fake tensors have seen: what was seen before may hide a failure."""
    private.FakeTensorMode.cache_clear()


@pytest.mark.usefixtures("_nothing_remembered")
@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda model: model.to("cpu"), torch.float32),
        (lambda model: model.to(torch.bfloat16), torch.bfloat16),
        (lambda model: model.half(), torch.float16),
        (lambda model: model.double(), torch.float64),
        (lambda model: model.to(memory_format=torch.channels_last), torch.float32),
        (lambda model: model.to_empty(device="cpu"), torch.float32),
    ],
    ids=["device", "dtype", "half", "double", "layout", "empty"],
)
def test_a_model_may_be_moved_after_it_was_made(move, dtype):
    build = program(
        lambda model, x: model(x).float().sum(),
        lambda: move(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
        lambda: torch.randn(4, 8, dtype=dtype),
    )
    trace = estimate(build, "moved")
    assert held(trace, "parameter") == 2 * 72 * dtype.itemsize


@TORCH_WARNS_OF_COPIES
def test_a_model_may_be_a_copy():
    trace = estimate(program(model=lambda: copy.deepcopy(nn.Linear(8, 8))), "copied")
    assert held(trace, "parameter") == 288


@TORCH_WARNS_OF_COPIES
def test_torchs_own_transformer_can_be_estimated():
    def transformer():
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    build = program(model=transformer, x=lambda: torch.randn(2, 8, 16))
    trace = estimate(build, "transformer")
    with torch.random.fork_rng():
        assert held(trace, "parameter") == nbytes(transformer().parameters())


@pytest.mark.parametrize("which", ["model", "batch"])
def test_what_was_made_before_the_estimate_is_refused_in_a_sentence(which):
    real = SimpleNamespace(model=nn.Linear(8, 8), batch=torch.randn(4, 8))
    build = program(
        model=lambda: real.model if which == "model" else nn.Linear(8, 8),
        x=lambda: real.batch if which == "batch" else torch.randn(4, 8),
    )
    with pytest.raises(InvalidInput) as caught:
        estimate(build, "real")
    assert "\n" not in str(caught.value)


def test_a_users_mistake_goes_through():
    def loss(model, x):
        raise KeyError("batch")

    with pytest.raises(KeyError, match="batch"):
        estimate(program(loss), "wrong")


def test_a_users_own_warning_is_not_taken_for_a_wish_for_cuda():
    # Where warnings are errors, as here.
    def loss(model, x):
        warnings.warn("the data are old", stacklevel=1)
        return model(x).sum()

    with pytest.raises(UserWarning, match="the data are old"):
        estimate(program(loss), "warns")


def test_after_an_estimate_that_failed_torch_is_as_before():
    def loss(model, x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        estimate(program(loss, optimizer=torch.optim.Adam), "fails")
    x = torch.ones(3)
    assert type(x) is torch.Tensor
    assert x.sum().item() == 3.0
    assert record(program()(), "fine").operations
    assert estimate(program(), "fine").operations


def test_a_step_that_keeps_a_tensor_for_ever_is_refused():
    kept = []

    def loss(model, x):
        y = model(x)
        kept.append(y.detach())
        return y.sum()

    with pytest.raises(InvalidInput, match="not closed"):
        estimate(program(loss), "leak")


# -- as recorded -----------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 4)

    def forward(self, x):
        return self.c(torch.cat([self.a(x), torch.relu(self.b(x))], dim=1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.output = nn.Linear(16, 50)

    def forward(self, x):
        return self.output(self.norm(self.embedding(x))).flatten(0, 1)


def labels(model, x):
    return functional.cross_entropy(model(x), torch.arange(x.shape[0]) % 4)


def convolutions(*layers: Callable) -> Callable:
    return lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *(layer() for layer in layers))


def accumulated(model, x):
    model(x).sum().backward()
    return model(x).mean()


def checkpointed(model, x):
    return checkpoint(lambda y: model(model(y)).relu(), x, use_reentrant=False).sum()


SAME = {
    "mlp": program(labels, lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))),
    "gelu": program(model=lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))),
    "momentum": program(optimizer=partial(Sgd, momentum=0.9, nesterov=True)),
    "conv-relu-pool": program(
        labels,
        convolutions(partial(nn.ReLU, inplace=True), partial(nn.MaxPool2d, 2), nn.Flatten),
        images(),
    ),
    "conv-tanh-mean": program(model=convolutions(nn.Tanh, partial(nn.AvgPool2d, 2)), x=images()),
    "transposed": program(model=lambda: nn.ConvTranspose2d(4, 4, 2, stride=2), x=images()),
    "depthwise": program(model=lambda: nn.Conv2d(4, 4, 3, groups=4), x=images()),
    "channels-last": program(
        model=convolutions(nn.SiLU),
        x=lambda: torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last),
    ),
    "group-norm": program(model=convolutions(partial(nn.GroupNorm, 2, 4)), x=images()),
    "layer-norm": program(model=lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))),
    "batch-norm": program(model=convolutions(partial(nn.BatchNorm2d, 4)), x=images()),
    "upsample": program(model=convolutions(partial(nn.Upsample, scale_factor=2)), x=images()),
    "embedding": program(
        lambda model, x: functional.cross_entropy(model(x), x.flatten()),
        Words,
        lambda: torch.randint(50, (4, 6)),
    ),
    "concat": program(labels, Branches),
    "bce": program(
        lambda model, x: functional.binary_cross_entropy_with_logits(model(x), torch.zeros(4, 8))
    ),
    "in-place": program(lambda model, x: model(x).add_(x).mul_(2).relu_().sum()),
    "views": program(lambda model, x: torch.cat(model(x).chunk(2, 1)[::-1], 1).t().sum()),
    "shared": program(lambda model, x: (model(x) + model(model(x)).sin()).sum()),
    "half": program(
        lambda model, x: model(x).float().sum(),
        lambda: nn.Linear(8, 8, dtype=torch.bfloat16),
        lambda: torch.randn(4, 8, dtype=torch.bfloat16),
    ),
    "frozen": program(
        model=lambda: nn.Sequential(
            nn.Linear(8, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 8)
        )
    ),
    "accumulated": program(accumulated),
    "checkpointed": program(checkpointed),
    "item": program(lambda model, x: (lambda y: (y.item(), y)[1])(model(x).sum())),
    "mse": program(lambda model, x: functional.mse_loss(model(x), x)),
    "smooth-l1": program(lambda model, x: functional.smooth_l1_loss(model(x), x)),
}


def plain(trace: Trace) -> dict:
    """Return all of a trace but its notes, with batch normalization under one name."""
    text = msgspec.json.encode(msgspec.structs.replace(trace, notes={}))
    text = text.replace(b"cudnn_batch_norm", b"batch_norm").replace(
        b"native_batch_norm", b"batch_norm"
    )
    return msgspec.json.decode(text)


@pytest.mark.parametrize("name", SAME)
def test_where_the_cpu_runs_what_cuda_runs_estimate_and_record_are_the_same(name):
    estimated = plain(estimate(SAME[name], name))
    recorded = plain(record(SAME[name](), name))
    for field in ("operations", "storages", "values", "releases", "saves"):
        for ours, theirs in zip(estimated[field], recorded[field], strict=True):
            assert ours == theirs
    assert estimated == recorded


def test_a_batch_twice_as_large_has_activations_twice_as_large():
    def of(batch):
        trace = estimate(program(labels, Branches, lambda: torch.randn(batch, 8)), "batch")
        return [s.nbytes for s in trace.storages if s.kind == "activation" and s.nbytes > 8]

    assert of(16) == [2 * n for n in of(8)]
