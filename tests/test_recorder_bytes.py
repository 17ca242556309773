"""The bytes of a recorded trace are those of the plain step: every allocation, every free."""

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from msgspec.structs import replace  # noqa: E402
from plainstep import (  # noqa: E402
    Watched,
    difference,
    hold_differences,
    holds_of,
    peak,
    replay,
    swings,
    watch,
)
from programs import (  # noqa: E402
    FORMULAS,
    PROGRAMS,
    Training,
    Twice,
    a_storage_that_shrinks_and_grows,
    chain,
    results_into_an_empty_tensor,
)
from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from superneurons.errors import Unsupported  # noqa: E402
from superneurons.executor import record  # noqa: E402
from superneurons.traces import Release, Trace  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def quick():
    """One thread, and nothing for the garbage collector to walk: steps are tiny here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watch(chain)  # what is imported late is there now
    recorded(chain)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def recorded(build) -> Trace:
    torch.manual_seed(0)
    return record(build(), "step")


# Whose storages are written over, in another part, after a part of them was saved: such a save is
# left out of a trace, and so the storage is left alone by policies.
PARTLY_WRITTEN = {
    "recurrent",
    "recurrent_by_hand",
    "an_output_kept_for_the_next_step",
    "random relu",
}


def assert_same_bytes(plain: Watched, trace: Trace, *, partly: bool = False) -> None:
    replayed = replay(trace)
    faults = [
        difference(plain.bare, plain.hooked),  # or hooks change what is watched
        difference(plain.bare, replayed),
        *hold_differences(plain.holds, holds_of(trace), partly=partly),
    ]
    if any(faults):
        raise AssertionError("\n".join(filter(None, faults)))
    assert peak(replayed) == peak(plain.bare)


# -- the oracle ------------------------------------------------------------------------------------


def test_the_oracle_agrees_with_a_sum_by_hand():
    weight = nn.Parameter(torch.rand(3, 4))

    def step() -> None:
        weight.grad = None
        y = weight * weight  # 48, saves weight twice
        z = y.exp()  # 48, saves itself
        del y
        loss = z.sum()  # 4
        del z
        loss.backward()  # 4 for its own gradient, 48 for exp, 48 for each factor; one is left

    def build() -> Any:
        weight.data = torch.rand(3, 4)  # so that it is seen to be allocated
        return step

    plain = watch(build)
    assert plain.temporaries == 0
    assert [(swing.what, swing.sizes) for swing in swings(plain.bare)] == [
        ("-", (48,)),
        ("+", (48, 48)),
        ("-", (48,)),
        ("+", (4, 4, 48)),
        ("-", (48,)),
        ("+", (48, 48)),
        ("-", (4, 4, 48, 48)),
    ]
    assert [hold[:5] for hold in plain.holds] == [
        (0, 48, 0, 5, "MulBackward0"),
        (0, 48, 0, 5, "MulBackward0"),
        (0, 48, 2, 4, "ExpBackward0"),
    ]
    assert_same_bytes(plain, recorded(build))


def test_the_oracle_tells_a_wrong_release():
    plain, trace = watch(chain), recorded(chain)
    assert_same_bytes(plain, trace)
    saved = {save.value for save in trace.saves}
    wrong = 0
    for i, release in enumerate(trace.releases):
        if release.storage in saved or release.place == len(trace.operations):
            continue
        later = Release(storage=release.storage, place=release.place + 1)
        releases = (*trace.releases[:i], later, *trace.releases[i + 1 :])
        wrong += difference(plain.bare, replay(replace(trace, releases=releases))) != ""
    assert wrong > 0


# -- whole steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_takes_the_bytes_of_the_plain_one(name):
    partly = name in PARTLY_WRITTEN
    assert_same_bytes(watch(PROGRAMS[name]), recorded(PROGRAMS[name]), partly=partly)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_takes_the_bytes_of_the_plain_one(name):
    # torch has other formulas, of other sizes, for what it takes for a subclass of tensor; it may
    # not take a recorded step for one.
    partly = name in PARTLY_WRITTEN
    assert_same_bytes(watch(FORMULAS[name]), recorded(FORMULAS[name]), partly=partly)


@pytest.mark.parametrize("build", [results_into_an_empty_tensor, a_storage_that_shrinks_and_grows])
def test_a_storage_that_changes_its_size_is_followed_or_refused(build):
    plain = watch(build)
    try:
        trace = recorded(build)
    except Unsupported:
        return
    assert_same_bytes(plain, trace)


def test_the_peak_of_a_step_without_temporaries_is_the_allocators_own():
    plain, trace = watch(PROGRAMS["residual"]), recorded(PROGRAMS["residual"])
    assert plain.temporaries == 0
    lasting = sum(storage.nbytes for storage in trace.storages if storage.alive_at_start)
    held = 0
    most = 0
    for event in replay(trace):
        held += {"+": event.nbytes, "-": -event.nbytes}.get(event.what, 0)
        most = max(most, held)
    assert lasting + most == lasting + peak(plain.bare)
    assert trace.facts.floor_nbytes <= lasting + most


# -- random programs -------------------------------------------------------------------------------

UNARY = {
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "double": lambda a: a * 2.0,
    "clone": torch.clone,
    "square": lambda a: a * a,
    "detach": torch.detach,
    "transposed": lambda a: a.t(),
    "reshaped": lambda a: a.reshape(2, 8).view(4, 4),
    "row": lambda a: a[1].expand(4, 4),
    "rows": lambda a: a[1:3],
    "columns": lambda a: a[:, ::2],
    "relu_": lambda a: a.relu_(),
    "double_": lambda a: a.mul_(2.0),
    "rows_": lambda a: a[:1].add_(1.0),
    "row_sums": lambda a: a.sum(1, keepdim=True).expand(4, 4),
    "softmax": lambda a: a.softmax(-1),
    "checkpointed": lambda a: checkpoint(
        lambda b: (b.sin() * b).exp(), a, use_reentrant=False, preserve_rng_state=False
    ),
    "custom": lambda a: Twice.apply(a, a.detach()[:1]),
}
BINARY = {
    "add": lambda a, b: a + b[:1],
    "mul": lambda a, b: a * b[:, :1],
    "product": lambda a, b: a @ b.t() if a.shape[1] == b.shape[1] else a + 1.0,
    "cat": lambda a, b: torch.cat([a, b[:, :1].expand(-1, a.shape[1])]),
    "add_": lambda a, b: a.add_(b[:1, :1]),
    "swish": lambda a, b: a * torch.sigmoid(a) + b.mean(),
    "where": lambda a, b: torch.where(a > 0, a, b[:1, :1]),
}
number = st.integers(0, 30)
instructions = st.one_of(
    st.tuples(st.just("unary"), st.sampled_from(sorted(UNARY)), number, number),
    st.tuples(st.just("binary"), st.sampled_from(sorted(BINARY)), number, number),
    st.tuples(st.sampled_from(["drop", "hold", "hook", "retain"]), st.just(""), number, number),
)


def build_random(code, uses, passes):
    """Return the builder of a step that interprets *code*; its loss is made of *uses*.

    Backward goes over the graph in so many *passes*.
    """

    def build() -> Training:
        torch.manual_seed(1)
        model = nn.ParameterList([torch.rand(4, 4), torch.rand(4, 4)])
        data = torch.rand(4, 4)

        def run() -> None:
            model.zero_grad()
            held: list[Tensor] = []
            loss = total(*model, data + 0.0, held)
            for i in reversed(range(passes)):
                loss.backward(retain_graph=i > 0)
            held.clear()
            with torch.no_grad():
                for parameter in model:
                    parameter.sub_(parameter.grad, alpha=1e-3)

        return Training(model, run)

    def total(p: Tensor, q: Tensor, data: Tensor, held: list[Tensor]) -> Tensor:
        values = [p, q, data]
        for what, name, i, j in code:
            a, b = values[i % len(values)], values[j % len(values)]
            if what == "unary":
                values.append(UNARY[name](a))
            elif what == "binary":
                values.append(BINARY[name](a, b))
            elif what == "drop" and len(values) > 1:
                del values[i % len(values)]
            elif what == "hold":
                held.append(a)
            elif what == "hook" and a.requires_grad and not a.is_leaf:
                a.register_hook(held.append)
            elif what == "retain" and a.requires_grad:
                a.retain_grad()  # dropped, it would live on in autograd only without hooks
                held.append(a)
            del a, b
        loss = (p * q).sum()
        for i in uses:
            loss = loss + values[i % len(values)].sum()
        return loss

    return build


@settings(max_examples=150, deadline=None)
@given(
    st.lists(instructions, max_size=12),
    st.lists(number, min_size=1, max_size=3),
    st.sampled_from([1, 1, 2]),
)
def test_a_random_program_takes_the_bytes_of_the_plain_one(code, uses, passes):
    gc.freeze()  # what the last example left need not be walked
    build = build_random(code, uses, passes)
    try:
        step = build()
        step()
        step()
    except RuntimeError:  # it modifies what autograd has saved, or a leaf
        with pytest.raises(RuntimeError):
            recorded(build)
        return
    plain = watch(build)
    assume(not difference(plain.bare, plain.hooked))  # or hooks themselves change what torch does
    assert_same_bytes(plain, recorded(build), partly=True)
