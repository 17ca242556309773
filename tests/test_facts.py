"""The facts of a trace, worked out by hand: the paper's test vectors and small steps."""

from math import prod

import pytest

from superneurons.errors import InvalidInput, InvalidTrace
from superneurons.traces import (
    Algorithm,
    Facts,
    Operation,
    Release,
    Save,
    Storage,
    Trace,
    Value,
    find_trace,
)
from superneurons.traces.layers import Network
from superneurons.traces.route import execution_route
from superneurons.traces.step import training_step


def names(facts: Facts, storages) -> set[str]:
    return {facts.names[s] for s in storages}


def activation(name: str, nbytes: int = 1) -> Storage:
    return Storage(name=name, kind="activation", nbytes=nbytes)


def lasting(name: str, kind: str = "parameter", nbytes: int = 1) -> Storage:
    return Storage(name=name, kind=kind, nbytes=nbytes, alive_at_start=True)


def operation(name: str, reads: str = "", writes: str = "", phase: str = "forward", **other):
    """Return an operation; values are separated by spaces."""
    return Operation(
        name=name,
        kind="norm",
        phase=phase,
        reads=tuple(reads.split()),
        writes=tuple(writes.split()),
        **other,
    )


def step(storages, operations, places: str = "everywhere", **other) -> Trace:
    fields = {"name": "step", "places": places, "times": "none"}
    return Trace(storages=tuple(storages), operations=tuple(operations), **(fields | other))


# -- the execution route (paper, Algorithm 1 and Fig. 6) -------------------------------------------


def reverse(successors):
    """Return the same graph with its edges turned round, last layer first."""
    turned = {layer: [] for layer in reversed(successors)}
    for layer, following in successors.items():
        for successor in following:
            turned[successor].append(layer)
    return turned


FIG_6 = {
    "a": ["b"],
    "b": ["c", "d"],
    "c": ["e"],
    "d": ["f"],
    "e": ["i"],
    "f": ["g", "h"],
    "g": ["i"],
    "h": ["i"],
    "i": ["j"],
    "j": [],
}
FORWARD = {"a": 1, "b": 2, "c": 3, "e": 4, "d": 5, "f": 6, "g": 7, "h": 8, "i": 9, "j": 10}
BACKWARD = {
    "j": 11, "i": 12, "e": 13, "c": 14, "g": 15, "h": 16, "f": 17, "d": 18, "b": 19, "a": 20,
}  # fmt: skip


def test_the_route_of_fig_6_is_the_papers():
    route = execution_route(FIG_6)
    assert {layer: step for step, layer in enumerate(route, 1)} == FORWARD
    back = execution_route(reverse(FIG_6))
    assert {layer: step for step, layer in enumerate(back, 11)} == BACKWARD


def test_a_network_with_forks_and_a_join_runs_along_the_route_of_fig_6():
    net = Network("fig6", 2, (3, 8, 8))
    fork = net.fork(net.relu("data", "a"), "b")
    left = net.relu(net.relu(fork, "c"), "e")
    right = net.fork(net.relu(fork, "d"), "f")
    join = net.join((left, net.relu(right, "g"), net.relu(right, "h")), "i")
    net.softmax(join, "j")
    steps = {name: i for i, name in enumerate(training_step(net, "fig6").facts.op_names, 1)}
    assert steps == FORWARD | {f"{layer}.backward": i for layer, i in BACKWARD.items()}


def test_a_join_is_visited_when_its_last_branch_has_been():
    # A branch that ends at a join before its sibling has begun is left waiting there.
    assert execution_route({"a": ["b", "c", "d"], "b": ["d"], "c": ["d"], "d": []}) == list("abcd")


def test_two_sources_are_both_visited():
    assert execution_route({"a": ["c"], "b": ["c"], "c": []}) == list("abc")


def test_a_reversed_graph_has_every_edge_turned_round():
    edges = {(layer, follower) for layer, followers in FIG_6.items() for follower in followers}
    turned = reverse(FIG_6)
    assert {(b, a) for a, followers in turned.items() for b in followers} == edges
    assert list(turned) == list(reversed(FIG_6))


# -- in and out sets (paper, Fig. 3c and 4) --------------------------------------------------------

FIG_4 = [  # operation, what it needs, what it makes, the out set after it
    ("DATA0", "", "t0", "t0"),
    ("CONV1", "t0", "t1", "t0 t1"),
    ("POOL2", "t1", "t3", "t0 t1 t3"),
    ("CONV3", "t0", "t2", "t0 t1 t3 t2"),
    ("FC4", "t3 t2", "t4", "t0 t1 t3 t2 t4"),
    ("SOFTMAX5", "t4", "prob", "t0 t1 t3 t2 prob"),
    ("SOFTMAX6", "prob", "t5", "t0 t1 t3 t2 t5"),
    ("FC7", "t5 t2 t3", "t6", "t0 t1 t3 t6"),
    ("POOL8", "t1 t3 t6", "t7", "t0 t7 t6"),
    ("CONV9", "t7 t0", "t8", "t0 t6 t8"),
    ("CONV10", "t6 t0", "t9", "t8 t9"),
    ("DATA11", "t8 t9", "", ""),
]


def out_sets(facts: Facts) -> list[set[str]]:
    """Return what is live after each operation: made by then and not dead by then."""
    return [
        {
            name
            for s, name in enumerate(facts.names)
            if facts.writers[s][0] <= op and facts.death[s] > op + 1
        }
        for op in range(facts.op_count)
    ]


def test_in_and_out_sets_of_fig_4_are_the_papers():
    facts = step(
        [activation(made) for _, _, made, _ in FIG_4 if made],
        [operation(name, needs, made) for name, needs, made, _ in FIG_4],
    ).facts
    found = out_sets(facts)
    assert found == [set(out.split()) for *_, out in FIG_4]
    for op, needed in enumerate(facts.needs):  # in(k) = out(k - 1), and it has what op k needs
        assert names(facts, needed) <= (found[op - 1] if op else set())


# -- AlexNet (paper, section 2.1 and footnote on the network) --------------------------------------

ALEXNET_SHAPES = {
    "conv1": (96, 55, 55),
    "relu1": (96, 55, 55),
    "lrn1": (96, 55, 55),
    "pool1": (96, 27, 27),
    "conv2": (256, 27, 27),
    "relu2": (256, 27, 27),
    "lrn2": (256, 27, 27),
    "pool2": (256, 13, 13),
    "conv3": (384, 13, 13),
    "relu3": (384, 13, 13),
    "conv4": (384, 13, 13),
    "relu4": (384, 13, 13),
    "conv5": (256, 13, 13),
    "relu5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc6": (4096,),
    "relu6": (4096,),
    "drop6": (4096,),
    "fc7": (4096,),
    "relu7": (4096,),
    "drop7": (4096,),
    "fc8": (1000,),
    "softmax": (1000,),
}


def test_alexnet_has_the_layers_of_the_paper_in_their_shapes():
    facts = find_trace("alexnet:batch=200").facts
    assert facts.op_names[:23] == list(ALEXNET_SHAPES)
    assert facts.op_names[23:] == [f"{layer}.backward" for layer in reversed(ALEXNET_SHAPES)]
    nbytes = dict(zip(facts.names, facts.nbytes, strict=True))
    assert nbytes["data"] == 200 * 3 * 227 * 227 * 4
    for layer, shape in ALEXNET_SHAPES.items():
        assert nbytes[f"{layer}.out"] == 200 * prod(shape) * 4, layer


def test_alexnet_has_62378344_parameters_each_three_times():
    storages = find_trace("alexnet").storages
    for kind in ("parameter", "parameter-gradient", "optimizer-state"):
        assert sum(s.nbytes for s in storages if s.kind == kind) == 62_378_344 * 4
    weights = {s.name: s.nbytes // 4 for s in storages if s.kind == "parameter"}
    assert weights == {
        "conv1.weights": 96 * 3 * 11 * 11 + 96,
        "conv2.weights": 256 * 96 * 5 * 5 + 256,
        "conv3.weights": 384 * 256 * 3 * 3 + 384,
        "conv4.weights": 384 * 384 * 3 * 3 + 384,
        "conv5.weights": 256 * 384 * 3 * 3 + 256,
        "fc6.weights": (256 * 6 * 6 + 1) * 4096,
        "fc7.weights": (4096 + 1) * 4096,
        "fc8.weights": (4096 + 1) * 1000,
    }


def test_alexnet_has_the_36_tensors_of_the_paper():
    facts = find_trace("alexnet:batch=200").facts
    tensors = [facts.nbytes[s] for s, scheduled in enumerate(facts.scheduled) if scheduled]
    assert len(tensors) == 36
    # 2189.4371 MiB: the image batch, the parameters and what is beside them do not count.
    assert round(sum(tensors) / 2**20, 4) == 2189.4371
    gradients = {
        name: nbytes
        for name, nbytes in zip(facts.names, facts.nbytes, strict=True)
        if facts.scheduled[facts.storage_index[name]] and name.endswith(".grad")
    }
    assert len(gradients) == 13  # those of activations, dropouts' and normalizations' are in place
    assert gradients["conv1.grad"] == 200 * 3 * 227 * 227 * 4  # even of the image batch


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 0, 8), (3, 1, 1, 10), (3, 2, 0, 4), (2, 2, 0, 5), (4, 3, 0, 3), (5, 2, 2, 5)],
)
def test_a_window_that_does_not_fit_once_more_is_left_out(kernel, stride, padding, size):
    net = Network("net", 2, (3, 10, 10))  # floor((in + 2p - k) / s) + 1, as cuDNN does it
    assert net.shape(net.conv("data", "conv", 4, kernel, stride, padding)) == (2, 4, size, size)
    assert net.shape(net.pool("data", "pool", kernel, stride, padding)) == (2, 3, size, size)


def test_a_window_larger_than_its_image_is_refused():
    with pytest.raises(InvalidInput) as caught:
        Network("net", 2, (3, 10, 10)).conv("data", "conv", 4, 13, padding=1)
    assert str(caught.value) == "layer 'conv': a window of 13 does not fit into 10"


# -- dependency lists, layer kind by layer kind (the release; paper.md 1.8) -----------------------


def layers(net: Network, op: str) -> tuple[set[str], set[str], set[str]]:
    """Return what an operation of the network's step reads, makes, and overwrites: no weights."""
    facts = training_step(net, "net").facts
    i = facts.op_index[op]
    found = (facts.reads[i], facts.fresh[i], facts.overwrites[i])
    return tuple(
        {name for name in names(facts, storages) if ".weights" not in name} for storages in found
    )


def between(kind: str, *arguments: object) -> Network:
    """Return a network with a layer `it` of some kind between two that keep out of its way."""
    net = Network("net", 2, (3, 8, 8))
    below = net.conv("data", "below", 4, 3)
    it = getattr(net, kind)(below, "it", *arguments)
    net.softmax(net.fc(it, "above", 5), "end")
    return net


@pytest.mark.parametrize(
    ("net", "backward_reads", "in_place"),
    [
        pytest.param(between("conv", 6, 3), {"below.out"}, False, id="conv"),
        pytest.param(between("fc", 7), {"below.out"}, False, id="fc"),
        pytest.param(between("pool", 2, 2), {"it.out", "below.out"}, False, id="pool"),
        pytest.param(between("relu"), {"it.out", "below.out"}, True, id="relu"),
        pytest.param(between("lrn"), {"it.out", "below.out"}, True, id="lrn"),
        pytest.param(between("bn"), {"below.out"}, False, id="bn"),
        pytest.param(between("dropout"), set(), False, id="dropout"),
    ],
)
def test_a_layer_depends_on_what_its_kind_needs(net, backward_reads, in_place):
    assert layers(net, "it") == ({"below.out"}, {"it.out"}, set())
    made, over = (set(), {"above.grad"}) if in_place else ({"it.grad"}, set())
    assert layers(net, "it.backward") == ({"above.grad"} | backward_reads, made, over)
    # The next gradient is the input's, under whichever name: the layer below goes on from it.
    below = layers(net, "below.backward")
    assert below == ({*(over or made), "data"}, {"below.grad"}, set())
    facts = training_step(net, "net").facts
    size = {name: facts.nbytes[s] for s, name in enumerate(facts.names)}
    assert size["below.grad"] == size["data"]
    if made:
        assert size["it.grad"] == size["below.out"]


@pytest.mark.parametrize(
    ("kind", "arguments", "weights"),
    [("conv", (6, 3), True), ("fc", (7,), True), ("bn", (), True), ("relu", (), False)],
    ids=["conv", "fc", "bn", "relu"],
)
def test_only_a_layer_with_weights_writes_their_gradient(kind, arguments, weights):
    facts = training_step(between(kind, *arguments), "net").facts
    forward, backward = facts.op_index["it"], facts.op_index["it.backward"]
    expected = {"it.weights"} if weights else set()
    assert {n for n in names(facts, facts.reads[forward]) if n.startswith("it.")} == expected
    over = names(facts, facts.overwrites[backward])
    assert ("it.weights.grad" in over) == weights
    assert ("it.weights.momentum" in facts.names) == weights


def test_softmax_needs_input_and_output_and_makes_no_gradient_of_its_own():
    net = between("relu")
    assert layers(net, "end") == ({"above.out"}, {"end.out"}, set())
    assert layers(net, "end.backward") == ({"end.out", "above.out"}, set(), {"end.out"})


def branches(kind: str) -> Network:
    """Return a network that forks and comes together again, in unequal branches if it can."""
    net = Network("net", 2, (3, 8, 8))
    fork = net.fork(net.conv("data", "below", 4, 3), "fork")
    left = net.conv(fork, "left", 6, 3)
    right = net.conv(fork, "right", 6 if kind == "join" else 8, 3)
    net.softmax(net.fc(getattr(net, kind)((left, right), "it"), "above", 5), "end")
    return net


def test_a_fork_copies_its_input_for_each_branch_and_sums_gradients_in_the_first():
    net = branches("join")
    assert layers(net, "fork") == ({"below.out"}, {"fork.out.0", "fork.out.1"}, set())
    assert layers(net, "left")[0] == {"fork.out.0"}
    assert layers(net, "right")[0] == {"fork.out.1"}
    assert layers(net, "fork.backward") == ({"left.grad", "right.grad"}, set(), {"left.grad"})
    assert layers(net, "below.backward")[0] == {"left.grad", "data"}


def test_a_join_passes_the_gradient_to_its_first_branch_and_copies_it_for_the_others():
    net = branches("join")
    assert layers(net, "it") == ({"left.out", "right.out"}, {"it.out"}, set())
    assert layers(net, "it.backward") == ({"above.grad"}, {"it.grad.1"}, {"above.grad"})
    assert layers(net, "left.backward")[0] == {"above.grad", "fork.out.0"}
    assert layers(net, "right.backward")[0] == {"it.grad.1", "fork.out.1"}


def test_a_concat_makes_a_gradient_for_each_branch():
    net = branches("concat")
    assert net.shape("it") == (2, 14, 4, 4)
    assert layers(net, "it") == ({"left.out", "right.out"}, {"it.out"}, set())
    assert layers(net, "it.backward") == ({"above.grad"}, {"it.grad.0", "it.grad.1"}, set())
    assert layers(net, "left.backward")[0] == {"it.grad.0", "fork.out.0"}
    assert layers(net, "right.backward")[0] == {"it.grad.1", "fork.out.1"}
    facts = training_step(net, "net").facts
    size = {name: facts.nbytes[s] for s, name in enumerate(facts.names)}
    assert size["it.grad.0"] == size["left.out"]
    assert size["it.grad.1"] == size["right.out"]


def test_the_image_batch_has_no_operations_of_its_own():
    facts = training_step(between("relu"), "net").facts
    assert [name for name in facts.op_names if name.startswith("data")] == []
    assert not facts.scheduled[facts.storage_index["data"]]


# -- reads, needs, versions ------------------------------------------------------------------------


def test_an_in_place_target_is_read_at_the_version_before():
    facts = step(
        [lasting("w"), activation("a")],
        [
            operation("make", "w", "a"),
            operation("twice", "", "a@1"),  # does not say that it reads what it writes over
            operation("read", "a@1", "w@1"),
        ],
        values=(
            Value(name="a@1", storage="a", version=1),
            Value(name="w@1", storage="w", version=1),
        ),
    ).facts
    assert facts.reads == [(0,), (1,), (1, 0)]
    assert facts.versions == [(0,), (0,), (1, 0)]
    assert facts.fresh == [(1,), (), ()]
    assert facts.overwrites == [(), (1,), (0,)]
    assert facts.writers == [[2], [0, 1]]
    assert facts.chain(1, 1) == [0, 1]  # made, then overwritten
    assert facts.chain(0, 0) == []  # there from the start
    assert facts.overwriter(1, 0) == 1
    assert facts.overwriter(0, 0) == 2
    assert facts.overwriter(1, 1) == facts.op_count + 1  # nobody does


def test_views_of_one_storage_are_one_read_of_it():
    facts = step(
        [activation("a", 16)],
        [operation("make", "", "a"), operation("read", "a left right", "")],
        values=(
            Value(name="left", storage="a", nbytes=8),
            Value(name="right", storage="a", offset=8, nbytes=8),
        ),
    ).facts
    assert facts.reads[1] == (0,)
    assert facts.last_use == [1]


def test_what_is_updated_in_passing_is_needed_by_the_run_and_not_by_a_rerun():
    facts = step(
        [lasting("mean", "optimizer-state"), lasting("x", "input"), activation("a")],
        [
            operation("norm", "x", "a", updates=("mean@1",)),
            operation("again", "a", "", updates=("mean@2",)),
        ],
        values=(
            Value(name="mean@1", storage="mean", version=1),
            Value(name="mean@2", storage="mean", version=2),
        ),
    ).facts
    assert facts.updates == [(0,), (0,)]
    assert names(facts, facts.needs[0]) == {"mean", "x"}
    assert names(facts, facts.reads[0]) == {"x"}
    assert names(facts, facts.reads[1]) == {"a"}
    assert facts.writers[0] == [0, 1]
    assert facts.overwrites == [(), ()]


# -- lifetimes in a layer trace --------------------------------------------------------------------


def test_the_idle_time_of_a_tensor_is_between_its_last_forward_and_first_backward_use():
    facts = find_trace("alexnet:batch=2").facts
    expected = {
        "conv1.out": ("relu1", "relu1.backward"),
        "relu1.out": ("lrn1", "lrn1.backward"),
        "pool2.out": ("conv3", "pool2.backward"),
        "pool5.out": ("fc6", "fc6.backward"),
        "drop6.out": ("fc7", "fc7.backward"),
        "fc6.out": ("relu6", "relu6.backward"),
        "relu7.out": ("drop7", "relu7.backward"),
        "fc8.out": ("softmax", "softmax.backward"),
        "softmax.out": ("softmax", "softmax.backward"),
    }
    expected["pool2.out"] = ("conv3", "conv3.backward")  # conv3 comes first on the way back
    for name, (leave, back) in expected.items():
        s = facts.storage_index[name]
        found = (facts.op_names[facts.leave[s]], facts.op_names[facts.back[s]])
        assert found == (leave, back), name


def test_what_is_made_in_backward_or_lasts_has_no_idle_time():
    facts = find_trace("alexnet:batch=2").facts
    idle = {s for s in range(facts.storage_count) if facts.leave[s] >= 0}
    assert names(facts, idle) == {f"{layer}.out" for layer in ALEXNET_SHAPES}
    assert all(facts.back[s] < 0 for s in range(facts.storage_count) if s not in idle)


def test_what_backward_does_not_need_never_comes_back():
    facts = step(
        [activation("a"), activation("b"), activation("g")],
        [
            operation("f1", "", "a"),
            operation("f2", "a", "b"),
            operation("b2", "b", "g", phase="backward"),
        ],
    ).facts
    assert facts.leave == [1, 1, -1]
    assert facts.back == [-1, 2, -1]


def test_a_tensor_dies_after_its_last_use_or_where_the_program_lets_go_of_it():
    facts = step(
        [activation("a"), activation("b"), activation("unread"), lasting("w")],
        [
            operation("f1", "w", "a unread"),
            operation("f2", "a", "b"),
            operation("b2", "b", "", phase="backward"),
        ],
        releases=(Release(storage="a", place=3),),
    ).facts
    assert facts.death == [3, 3, 1, 4]  # w: beyond the last place, it outlives the step
    assert facts.managed == [True, True, True, False]
    assert facts.last_use == [1, 2, 0, 0]
    assert facts.program_frees == {}
    assert facts.is_place == [True] * 4
    assert facts.packed == [0, 0, 0, 0]


def test_the_program_frees_what_was_there_from_the_start_where_it_lets_go_of_it():
    facts = step(
        [
            lasting("old", "input", 40),
            Storage(name="new", kind="input", nbytes=40, becomes="old"),
            activation("a", 8),
        ],
        [
            operation("f1", "old", "a"),
            operation("load", "", "new"),
            operation("b1", "a", "", phase="backward"),
        ],
        releases=(Release(storage="old", place=2),),
    ).facts
    assert facts.alive_at_start == [True, False, False]
    assert facts.alive_at_end == [False, True, False]
    assert facts.program_frees == {2: [0]}
    assert facts.death == [2, 4, 3]
    assert facts.managed == [False, False, True]
    assert facts.scheduled == [False, False, True]


# -- lower bounds ----------------------------------------------------------------------------------


def test_floors_are_the_most_demanding_single_operation():
    facts = step(
        [
            lasting("w", nbytes=100),
            activation("a", 10),
            activation("b", 20),
            Storage(name="g", kind="activation-gradient", nbytes=5),
        ],
        [
            operation(
                "f1",
                "w",
                "a",
                workspace_nbytes=50,
                transient_nbytes=7,
                algorithms=(Algorithm(name="lean", device_ns=9, workspace_nbytes=30),),
            ),
            operation("f2", "a", "b"),
            operation("b2", "a b", "g", phase="backward"),
        ],
    ).facts
    # f1: 100 + 10 + 30 (by the leaner algorithm) + 7; f2: 100 + 30; b2: 100 + 35.
    assert (facts.floor_nbytes, facts.floor_op) == (147, 0)
    assert facts.scheduled_floor_nbytes == 35
    assert facts.fresh_nbytes == [10, 20, 5]
    assert facts.fresh_scheduled_nbytes == [10, 20, 5]
    assert facts.fresh_tensors == [1, 1, 1]


def test_what_the_step_replaces_is_in_the_floor_only_where_it_is_needed():
    facts = step(
        [
            lasting("w", nbytes=1),
            lasting("old", "input", 40),
            Storage(name="new", kind="input", nbytes=40, becomes="old"),
            activation("a", 8),
            activation("b", 35),
        ],
        [
            operation("f1", "old", "a"),
            operation("f2", "a", "b"),
            operation("load", "", "new", phase="optimizer"),
        ],
        releases=(Release(storage="old", place=1),),
    ).facts
    # f1: 1 + 40 + 8; f2: 1 + 8 + 35; load: 1 + 40, and nothing of it is scheduled.
    assert (facts.floor_nbytes, facts.floor_op) == (49, 0)
    assert facts.scheduled_floor_nbytes == 43
    assert facts.fresh_nbytes == [8, 35, 40]
    assert facts.fresh_scheduled_nbytes == [8, 35, 0]
    assert facts.fresh_tensors == [1, 1, 0]


def test_the_floor_of_an_empty_step_is_what_is_always_there():
    facts = step([lasting("w", nbytes=100)], []).facts
    assert (facts.floor_nbytes, facts.floor_op) == (100, -1)
    assert facts.scheduled_floor_nbytes == 0


def test_the_scheduled_floor_of_alexnet_is_the_first_normalization():
    facts = find_trace("alexnet:batch=200").facts
    # Distinct tensors: input, output and the gradient that is written in place (paper.md 2.1).
    assert facts.scheduled_floor_nbytes == 3 * 200 * 96 * 55 * 55 * 4
    assert facts.op_names[facts.floor_op] == "lrn1.backward"


# -- lifetimes in a recorded trace -----------------------------------------------------------------


def recorded(**other) -> Trace:
    """Return a step with saves: f1 makes a, f2 a temporary t, f3 b, f4 the loss."""
    content = {
        "saves": (
            Save(value="a", packed=2, unpacked=5),
            Save(value="b", packed=4, unpacked=4),
        ),
        "releases": (
            Release(storage="t", place=3),
            Release(storage="a", place=3),
            Release(storage="b", place=4),
            Release(storage="loss", place=5),
            Release(storage="g", place=6),
        ),
    } | other
    return step(
        [
            lasting("w", nbytes=8),
            lasting("w.grad", "parameter-gradient", 8),
            activation("a", 16),
            activation("t", 4),
            activation("b", 32),
            activation("loss", 2),
            Storage(name="g", kind="activation-gradient", nbytes=32),
        ],
        [
            operation("f1", "w", "a"),
            operation("f2", "a", "t"),
            operation("f3", "t", "b"),
            operation("f4", "b", "loss"),
            operation("b4", "b loss", "g", phase="backward"),
            operation("b1", "g a", "w.grad@1", phase="backward"),
        ],
        places="saves",
        values=(Value(name="w.grad@1", storage="w.grad", version=1),),
        **content,
    )


def facts_of(facts: Facts, attribute: str) -> dict[str, object]:
    return dict(zip(facts.names, getattr(facts, attribute), strict=True))


def test_a_saved_tensor_is_managed_from_release_or_last_pack_to_the_first_unpack():
    facts = recorded().facts
    a = facts.storage_index["a"]
    assert facts.packed[a] == 2
    assert (facts.absent_from[a], facts.absent_until[a]) == (3, 5)  # the program holds it longer
    assert (facts.leave[a], facts.back[a]) == (2, 5)
    assert facts.death[a] == 6  # right after its consumer
    late = recorded(
        saves=(Save(value="a", packed=4, unpacked=5), Save(value="b", packed=4, unpacked=4))
    ).facts
    assert (late.absent_from[a], late.absent_until[a]) == (4, 5)  # now autograd's pack is later


def test_only_saved_tensors_with_time_between_pack_and_unpack_are_managed():
    facts = recorded().facts
    managed = facts_of(facts, "managed")
    assert {name for name, may in managed.items() if may} == {"a"}
    packed = facts_of(facts, "packed")
    assert packed == {"w": -1, "w.grad": -1, "a": 2, "t": -1, "b": 4, "loss": -1, "g": -1}
    for name in ("w", "t", "b", "g"):  # b is unpacked at once, the others are not saved
        s = facts.storage_index[name]
        assert (facts.leave[s], facts.back[s]) == (-1, -1)
        assert not any(facts.absent_from[s] <= p < facts.absent_until[s] for p in range(7))


def test_what_is_not_managed_lives_as_recorded():
    facts = recorded().facts
    named = {
        place: names(facts, storages) for place, storages in sorted(facts.program_frees.items())
    }
    assert named == {3: {"t"}, 5: {"b", "loss"}, 6: {"g"}}
    assert facts_of(facts, "death") == {
        "w": 7, "w.grad": 7, "a": 6, "t": 3, "b": 5, "loss": 5, "g": 6,
    }  # fmt: skip


def test_places_are_the_ends_and_where_hooks_fire():
    assert [p for p, allowed in enumerate(recorded().facts.is_place) if allowed] == [0, 2, 4, 5, 6]


def test_several_saves_of_a_storage_count_from_the_last_pack_to_the_first_unpack():
    facts = recorded(
        saves=(
            Save(value="a", packed=1, unpacked=5),
            Save(value="a", packed=3, unpacked=5, freed=6),
            Save(value="b", packed=3, unpacked=4, freed=6),
            Save(value="b", packed=4, unpacked=6),
        ),
    ).facts
    a, b = facts.storage_index["a"], facts.storage_index["b"]
    assert facts.packed[a] == 3
    assert (facts.absent_from[a], facts.absent_until[a]) == (3, 5)
    assert facts.packed[b] == 4
    assert not facts.managed[b]
    assert facts.death[b] == 6  # the last that lets go


def test_a_save_may_be_let_go_of_later_than_its_consumer():
    saves = (
        Save(value="a", packed=2, unpacked=5),
        Save(value="b", packed=4, unpacked=4, freed=6),
    )
    facts = recorded(saves=saves).facts
    b = facts.storage_index["b"]
    assert facts.death[b] == 6
    assert b in facts.program_frees[6]


def test_what_is_unpacked_is_needed_even_if_the_operation_does_not_read_it():
    saves = (
        Save(value="a", packed=2, unpacked=4, freed=6),
        Save(value="b", packed=4, unpacked=4),
    )
    facts = recorded(saves=saves).facts
    a, b4 = facts.storage_index["a"], facts.op_index["b4"]
    assert a in facts.needs[b4]
    assert a not in facts.reads[b4]
    assert facts.absent_until[a] == 4


def test_a_driver_has_no_hold_of_what_is_not_packed_yet():
    facts = recorded().facts
    a, t, w = (facts.storage_index[name] for name in ("a", "t", "w"))
    assert [facts.unreachable(a, place) for place in (1, 2, 5)] == [True, False, False]
    assert facts.unreachable(t, 5)  # only ever in the program's hands
    assert not facts.unreachable(w, 0)  # a parameter is always at hand


def test_the_sources_of_a_value_are_what_is_packed_on_the_way_to_it():
    # b comes from t, which is not saved, which comes from a, which is packed at place 2 or 4.
    b = recorded().facts.storage_index["b"]
    assert recorded().facts.unpacked_source(b, 0, 3) == -1
    late = recorded(
        saves=(Save(value="a", packed=4, unpacked=5), Save(value="b", packed=4, unpacked=4))
    ).facts
    assert late.unpacked_source(b, 0, 3) == late.storage_index["a"]
    assert late.unpacked_source(b, 0, 4) == -1


# -- the digest ------------------------------------------------------------------------------------


def test_times_and_notes_are_not_in_the_digest():
    plain = step([activation("a")], [operation("f1", "", "a")])
    timed = step(
        [activation("a")],
        [operation("f1", "", "a", device_ns=5, host_ns=6, flops=7, moved_nbytes=8, module="m")],
        times="measured",
        notes={"made": "by hand"},
    )
    assert timed.facts.digest == plain.facts.digest


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(step([activation("a", 2)], [operation("f1", "", "a")]), id="size"),
        pytest.param(step([activation("b")], [operation("f1", "", "b")]), id="storage-name"),
        pytest.param(step([activation("a")], [operation("f2", "", "a")]), id="operation-name"),
        pytest.param(
            step([activation("a")], [operation("f1", "", "a", workspace_nbytes=1)]), id="workspace"
        ),
        pytest.param(
            step([activation("a")], [operation("f1", "", "a", recompute="opaque")]), id="recompute"
        ),
        pytest.param(step([activation("a")], [operation("f1", "", "a"), operation("f2")]), id="op"),
    ],
)
def test_whatever_a_schedule_depends_on_is_in_the_digest(changed):
    plain = step([activation("a")], [operation("f1", "", "a")])
    assert changed.facts.digest != plain.facts.digest


def with_algorithms(*workspaces: tuple[int, int, int | None]) -> Trace:
    """Return a step of one operation for each (workspace, transient, other algorithm's or None)."""
    return step(
        [activation("a")],
        [
            operation(
                f"f{i}",
                "",
                "" if i else "a",
                workspace_nbytes=workspace,
                transient_nbytes=transient,
                algorithms=()
                if other is None
                else (Algorithm(name="other", device_ns=1, workspace_nbytes=other),),
            )
            for i, (workspace, transient, other) in enumerate(workspaces)
        ],
    )


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(
            with_algorithms((0, 0, 4), (0, 0, None)),
            with_algorithms((0, 0, None), (0, 0, 4)),
            id="whose-algorithm-it-is",
        ),
        pytest.param(
            with_algorithms((8, 0, 4)), with_algorithms((0, 8, 4)), id="workspace-or-transient"
        ),
        pytest.param(with_algorithms((8, 0, 4)), with_algorithms((8, 0, 5)), id="its-workspace"),
    ],
)
def test_other_algorithms_are_in_the_digest_with_their_operation(one, two):
    # By its second algorithm the same Run is illegal in the other step, or takes other bytes.
    assert one.facts.digest != two.facts.digest


def test_where_a_driver_can_act_is_in_the_digest():
    steps = [
        step([lasting("w")], [operation("f1", "w")], places=places)
        for places in ("everywhere", "saves")
    ]
    assert steps[0].facts.digest != steps[1].facts.digest


def test_a_graph_that_cannot_be_trained_as_drawn_is_refused():
    branching = Network("branching", 1, (3, 8, 8))
    first = branching.conv("data", "first", 4, 3)
    branching.softmax(branching.join((branching.relu(first, "r1"), first), "sum"), "softmax")
    with pytest.raises(InvalidInput, match="'first' has several readers, r1, sum; put a fork"):
        training_step(branching, "branching")
    twice = Network("twice", 1, (3, 8, 8))
    fork = twice.fork(twice.conv("data", "first", 4, 3), "fork")
    twice.softmax(twice.join((fork, fork), "sum"), "softmax")
    with pytest.raises(InvalidInput, match="'sum' reads one layer twice"):
        training_step(twice, "twice")
    endless = Network("endless", 1, (3, 8, 8))
    endless.conv("data", "first", 4, 3)
    with pytest.raises(InvalidInput, match="it ends in 'first'; end it in a softmax"):
        training_step(endless, "endless")


@pytest.mark.parametrize(
    ("times", "fields", "sentence"),
    [
        ("measured", {}, "times are measured, but 'f' has no device_ns"),
        ("roofline", {"device_ns": 1}, "'f' has a device_ns, but the trace says times: roofline"),
        ("none", {"device_ns": 1}, "'f' has a device_ns, but the trace says times: none"),
        ("roofline", {}, "'f' has neither flops nor moved_nbytes"),
    ],
)
def test_every_operation_has_the_times_that_the_trace_says(times, fields, sentence):
    trace = step([activation("a")], [operation("f", "", "a", **fields)], times=times)
    with pytest.raises(InvalidTrace, match=r"operations\[0\]: " + sentence):
        _ = trace.facts


def test_a_later_release_is_in_the_digest_and_one_that_changes_nothing_is_not():
    def released(*places):
        return step(
            [activation("a"), activation("b")],
            [operation("f1", "", "a"), operation("f2", "", "b")],
            releases=tuple(Release(storage="a", place=place) for place in places),
        ).facts.digest

    assert released(2) != released()
    assert released(1) == released()


def test_a_storage_that_is_read_and_updated_by_one_operation_counts_once():
    a, b = activation("a", 10), activation("b", 10)
    trace = step(
        [a, b],
        [
            operation("f1", "", "a"),
            Operation(
                name="f2", kind="x", phase="forward", reads=("a",), writes=("b",), updates=("a.1",)
            ),
        ],
        values=(Value(name="a.1", storage="a", version=1),),
    )
    assert trace.facts.floor_nbytes == trace.facts.scheduled_floor_nbytes == 20


def test_what_a_save_is_of_is_in_the_digest():
    def saved(storage):
        return step(
            [activation("a"), activation("b")],
            [operation("f1", "", "a b"), operation("f2", "", ""), operation("b1", "", "")],
            "saves",
            values=(Value(name="v", storage=storage),),
            releases=(Release(storage="a", place=1), Release(storage="b", place=1)),
            saves=(Save(value="v", packed=1, unpacked=2),),
        ).facts.digest

    assert saved("a") != saved("b")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda net: net.conv("nowhere", "c", 4, 3), "there is no layer 'nowhere' to read"),
        (lambda net: net.conv("data", "c", 0, 3), "'c' would have the empty shape"),
        (lambda net: net.conv("data", "c", 4, 3, stride=0), "stride 0 and padding 0 make no sense"),
        (lambda net: net.join(("data",), "j"), "'j' brings together 1 layers"),
        (
            lambda net: net.join(("data", net.conv("data", "c", 4, 3)), "j"),
            "'j' cannot bring together the shapes",
        ),
    ],
)
def test_an_impossible_layer_is_refused(build, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        build(Network("net", 2, (3, 8, 8)))
