"""The private names of torch: each is there, does what it is used for, and stands in one file."""

import ast
import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import superneurons  # noqa: E402
from superneurons.executor import private  # noqa: E402

PACKAGE = Path(superneurons.__file__).parent
ONE_PLACE = PACKAGE / "executor" / "private.py"
FILES = sorted(
    path
    for folder in ("executor", "zoo")
    for path in (PACKAGE / folder).rglob("*.py")
    if path != ONE_PLACE
)

ALLOWED = frozenset(
    {
        # Private by its module's name alone: "Extending PyTorch" tells users to import it so.
        "torch.utils._python_dispatch.TorchDispatchMode",
    }
)


def leaf(*shape):
    return torch.ones(shape or (4,), requires_grad=True)


class Seen(TorchDispatchMode):
    """Calls *look* with each operator, after it has run."""

    def __init__(self, look):
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.look(func, args, result)
        return result


# -- sequence numbers ------------------------------------------------------------------------------


def test_the_sequence_number_is_that_of_the_next_node():
    x = leaf()
    for _ in range(3):
        number = private.sequence_number()
        y = x * 2
        assert y.grad_fn._sequence_nr() == number
        assert private.sequence_number() == number + 1


def test_what_autograd_does_not_follow_takes_no_sequence_number():
    x = leaf()
    number = private.sequence_number()
    with torch.no_grad():
        _ = x * 2
    _ = torch.ones(4) * 2
    _ = x.detach()
    assert private.sequence_number() == number


def test_each_thread_counts_its_own_sequence_numbers():
    x = leaf()
    number = private.sequence_number()
    made = []

    def work():
        first = private.sequence_number()
        node = (x * 2 * 3).grad_fn
        made.append((first, private.sequence_number(), node._sequence_nr()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((first, after, last),) = made
    assert (after, last) == (first + 2, first + 1)
    assert private.sequence_number() == number


def test_a_node_keeps_its_number_into_backward():
    x = leaf()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor,
        lambda tensor: (seen.append(private.running_node()._sequence_nr()), tensor)[1],
    ):
        y = x * x
        z = y.exp()
    z.sum().backward()
    # exp keeps its result; the product keeps both of its factors.
    assert seen == [z.grad_fn._sequence_nr(), *[y.grad_fn._sequence_nr()] * 2]


# -- what runs in backward -------------------------------------------------------------------------


def test_outside_backward_no_node_runs():
    assert private.running_node() is None
    assert (private.backward_pass() >= 0) is False
    leaf().sum().backward()
    assert private.running_node() is None
    assert (private.backward_pass() >= 0) is False


def test_the_running_node_is_the_one_whose_backward_runs():
    x = leaf()
    y = x.exp()
    z = y.sin()
    seen = []

    def look(func, args, result):
        node = private.running_node()
        seen.append(
            (func.overloadpacket.__name__, node and node.name(), private.backward_pass() >= 0)
        )

    total = z.sum()
    with Seen(look):
        total.backward()
    first, *rest = seen
    assert first == ("ones_like", None, False)  # the first gradient is made before the pass
    assert [name for name, _, _ in rest][:2] == ["expand", "cos"]
    assert {(name, node) for name, node, _ in rest} >= {
        ("expand", "SumBackward0"),
        ("cos", "SinBackward0"),
    }
    assert [node for name, node, _ in rest if name == "mul"] == ["SinBackward0", "ExpBackward0"]
    assert all(inside for _, _, inside in rest)


def test_a_python_function_is_the_running_node_in_its_own_backward():
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append((private.running_node(), private.backward_pass() >= 0))
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            seen.append((private.running_node().name(), private.backward_pass() >= 0))
            return gradient * 2

    Double.apply(leaf()).sum().backward()
    assert seen == [(None, False), ("DoubleBackward", True)]


def test_between_two_nodes_a_pass_is_still_a_backward():
    # The gradients of y are summed when both are there, by the engine and for no node's sake.
    x = leaf()
    y = x.exp()
    total = (y.sin() + y.cos()).sum()
    sums = []

    def look(func, args, result):
        if func is torch.ops.aten.add.Tensor:
            sums.append(private.backward_pass() >= 0)

    with Seen(look):
        total.backward()
    assert sums == [True]


def test_an_exception_in_backward_ends_the_pass():
    def fail(gradient):
        assert private.backward_pass() >= 0
        raise RuntimeError("on purpose")

    x = leaf()
    y = x.exp()
    y.register_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        y.sum().backward()
    assert private.running_node() is None
    assert (private.backward_pass() >= 0) is False


@pytest.mark.parametrize("before", ["default", "fail_on_recompile"])
def test_what_is_compiled_runs_eagerly_and_is_told_of_only_inside_the_block(before):
    told, traced = [], []

    @torch.compile(backend="eager")
    def compiled(x):
        traced.append(torch.compiler.is_compiling())
        return x + 1

    @torch.compiler.disable
    def never(x):
        return x + 1

    with torch.compiler.set_stance(before):
        with private.compiled_run_eagerly(lambda: told.append(1)):
            compiled(torch.ones(3))
            assert private.runs_eagerly()
            never(torch.ones(3))
        assert len(told) == 1
        assert traced == [False]
        assert not private.runs_eagerly()
    with pytest.raises(ZeroDivisionError), private.compiled_run_eagerly(lambda: told.append(1)):
        raise ZeroDivisionError
    assert not private.runs_eagerly()
    compiled(torch.ones(3))
    assert len(told) == 1


def test_negatives_are_on_the_same_bytes():
    x = torch.tensor([1.0, -2.0])
    other = private.negatives(x)
    assert other.is_neg()
    assert torch.equal(other, torch.tensor([-1.0, 2.0]))
    assert other.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert not private.negatives(other).is_neg()


def test_a_pass_inside_a_pass_returns_to_the_outer_one():
    seen = []

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            with torch.enable_grad():
                leaf().exp().sum().backward()
            seen.append((private.running_node().name(), private.backward_pass() >= 0))
            return gradient * 2

    Inner.apply(leaf()).sum().backward()
    assert seen == [("InnerBackward", True)]


# -- who holds a storage ---------------------------------------------------------------------------


def test_holders_are_the_tensor_and_the_storages_python_object():
    x = torch.ones(4)
    assert private.holders(private.address(x.untyped_storage())) == 2


def test_each_view_is_a_holder_while_it_lives():
    x = torch.ones(4)
    where = private.address(x.untyped_storage())
    views = [x[1:], x.view(2, 2), x.detach()]
    assert private.holders(where) == 5
    views.pop()
    assert private.holders(where) == 4
    del views
    assert private.holders(where) == 2


def test_the_python_object_of_a_storage_is_one_holder_for_good():
    x = torch.ones(4)
    storage = x.untyped_storage()
    where = private.address(storage)
    assert x.untyped_storage() is storage
    assert private.holders(where) == 2
    del storage
    gc.collect()
    assert private.holders(where) == 2  # torch keeps it as long as the bytes are there
    storage = x.untyped_storage()
    assert private.holders(where) == 2
    del x
    assert private.holders(where) == 1
    assert storage.nbytes() == 16


def test_what_autograd_saves_is_a_holder():
    y = leaf().exp()  # saves its result
    where = private.address(y.untyped_storage())
    assert private.holders(where) == 3
    graph = y.grad_fn
    del y
    assert private.holders(where) == 2
    assert graph.name() == "ExpBackward0"


# -- addresses and deaths --------------------------------------------------------------------------


def test_an_address_is_the_same_for_all_views_and_another_for_each_storage():
    tensors = [torch.ones(4) for _ in range(50)]
    where = [private.address(t.untyped_storage()) for t in tensors]
    assert len(set(where)) == 50
    assert [private.address(t[1:].untyped_storage()) for t in tensors] == where
    assert private.address(tensors[0].clone().untyped_storage()) not in where


def test_a_storage_dies_with_the_last_that_holds_its_bytes():
    x = leaf()
    y = x.exp()
    died = []
    watch = weakref.ref(y.untyped_storage(), lambda _: died.append("y"))
    gc.collect()
    assert watch() is not None  # no Python variable holds it
    view = y[1:].detach()
    total = y.sum()
    del y
    assert died == []  # the graph and a view have it
    total.backward()
    assert died == []
    del view
    assert died == ["y"]
    assert watch() is None


def test_an_address_is_given_again_only_after_a_death():
    alive: set[int] = set()
    seen: set[int] = set()
    kept = []
    again = 0
    for i in range(300):
        x = torch.ones(64)
        where = private.address(x.untyped_storage())
        assert where not in alive
        again += where in seen
        alive.add(where)
        seen.add(where)
        weakref.finalize(x.untyped_storage(), alive.discard, where)
        if i % 3 == 0:
            kept.append(x)
        del x
        assert (where in alive) == (i % 3 == 0)
    assert again > 0  # it does happen, so that an address alone names nobody
    assert len(alive) == len(kept) == 100


def test_a_fake_storage_is_told_by_its_address_and_its_death_too():
    with private.FakeTensorMode():
        tensors = [torch.ones(2**40) for _ in range(3)]
        where = [private.address(t.untyped_storage()) for t in tensors]
        assert len(set(where)) == 3
        assert private.address(tensors[1][5:].untyped_storage()) == where[1]
        died = []
        weakref.finalize(tensors[1].untyped_storage(), died.append, 1)
        before = private.holders(where[1])
        view = tensors[1][5:]
        assert private.holders(where[1]) == before + 1
        del tensors[1]
        gc.collect()
        assert died == []
        del view
        gc.collect()
        assert died == [1]


# -- fake tensors ----------------------------------------------------------------------------------


def test_a_fake_tensor_has_shape_and_device_and_no_bytes():
    with private.FakeTensorMode():
        x = torch.randn(2**30, 2**20)
        y = (x @ x.t()).sum(dim=1)
    assert (x.shape, x.dtype, x.device.type) == ((2**30, 2**20), torch.float32, "cpu")
    assert y.shape == (2**30,)
    assert x.untyped_storage().nbytes() == 2**52
    assert type(torch.ones(1)) is torch.Tensor


def test_autograd_goes_through_fake_tensors():
    with private.FakeTensorMode():
        model = torch.nn.Linear(2**20, 2**16)
        model(torch.randn(8, 2**20)).sum().backward()
        assert model.weight.grad.shape == (2**16, 2**20)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
    ],
    ids=["item", "bool", "equal", "allclose"],
)
def test_a_value_of_a_fake_tensor_depends_on_data(ask):
    with private.FakeTensorMode():
        x = torch.ones(4)
        with pytest.raises(private.DataDependentOutputException):
            ask(x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
    ],
    ids=["nonzero", "index", "masked_select", "unique"],
)
def test_a_shape_that_depends_on_data_is_another_exception_that_names_the_operator(ask):
    with private.FakeTensorMode():
        x = torch.ones(4)
        with pytest.raises(RuntimeError, match=r"^aten\.\w+") as caught:
            ask(x)
    assert type(caught.value).__name__ == "DynamicOutputShapeException"
    assert not isinstance(caught.value, private.DataDependentOutputException)


# -- what is relied on without a name of its own ---------------------------------------------------


def test_a_write_in_place_makes_the_next_version_of_a_tensor_and_its_views():
    x = torch.ones(4)
    view = x[1:]
    assert (x._version, view._version) == (0, 0)
    x.mul_(2)
    assert (x._version, view._version) == (1, 1)
    view.zero_()
    assert (x._version, view._version) == (2, 2)
    assert x.detach()._version == 2
    assert x.clone()._version == 0


def test_an_operators_schema_says_what_it_writes():
    def written(overload):
        return [
            argument.name
            for argument in overload._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]

    aten = torch.ops.aten
    assert written(aten.add.Tensor) == []
    assert written(aten.add_.Tensor) == ["self"]
    assert written(aten.add.out) == ["out"]
    assert written(aten._foreach_add_.List) == ["self"]
    assert written(aten.view.default) == []


def test_a_batch_normalization_hides_that_it_writes_its_statistics():
    # That is why the package has a table of those that do.
    schema = torch.ops.aten.native_batch_norm.default._schema
    writes = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert writes == []
    mean, var = torch.zeros(3), torch.ones(3)
    x = torch.randn(8, 3)
    torch.ops.aten.native_batch_norm.default(x, None, None, mean, var, True, 0.1, 1e-5)
    assert mean.abs().sum() > 0


def test_what_a_mode_is_given_is_an_overload():
    seen = []
    with Seen(lambda func, args, result: seen.append(func)):
        torch.ones(4).add(1)
    assert all(isinstance(func, torch._ops.OpOverload) for func in seen)
    assert [func.overloadpacket.__name__ for func in seen] == ["ones", "add"]
    assert {func.namespace for func in seen} == {"aten"}


def test_tags_say_which_operators_draw_random_numbers():
    tag = torch.Tag.nondeterministic_seeded
    aten = torch.ops.aten
    assert tag in aten.native_dropout.default.tags
    assert tag in aten.bernoulli_.float.tags
    assert tag in aten._scaled_dot_product_flash_attention.default.tags
    assert tag not in aten.mul.Tensor.tags


def test_the_flop_registry_counts_a_multiplication_and_an_addition_as_two():
    from torch.utils.flop_counter import flop_registry

    a, b = torch.ones(3, 4), torch.ones(4, 5)
    count = flop_registry[torch.ops.aten.mm]
    assert count(a, b, out_val=a @ b) == 2 * 3 * 4 * 5


def test_gradients_are_added_up_in_place_without_a_mode_and_into_a_new_one_with():
    def addresses(mode):
        x = leaf()
        y = x.exp()
        first = []
        # The first of two gradients of y, by the function that gives it.
        a, b = y.sin(), y.cos()
        b.grad_fn.register_hook(lambda into, _: first.append(into[0].data_ptr()))
        last = []
        y.register_hook(lambda gradient: last.append(gradient.data_ptr()))
        total = (a + b).sum()
        with mode:
            total.backward()
        return first, last

    first, last = addresses(contextlib.nullcontext())
    assert first == last
    first, last = addresses(Seen(lambda func, args, result: None))
    assert first != last


def test_the_engines_own_sums_are_called_from_its_python_entry():
    x = leaf()
    y = x.exp()
    total = (y.sin() + y.cos()).sum()
    callers = []

    def look(func, args, result):
        if func is torch.ops.aten.add.Tensor:
            frame = sys._getframe(2)
            while frame is not None and frame.f_code.co_name in ("inner", "_fn"):
                frame = frame.f_back
            callers.append(frame.f_code.co_name)

    with Seen(look):
        total.backward()
    assert callers == ["_engine_run_backward"]


# -- one place -------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


class PrivateUses:
    """The private names of torch in one file, with what stands before them where that is known.

    A name that begins with an underscore is torch's if it stands below the module torch, or if it
    is asked of another object than self and nothing in this file is called so.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._ours = own_names(tree)
        self._bound: dict[str, str] = {}  # names that are modules or members of torch
        self._modules: set[str] = set()  # other modules: their privates are not torch's
        self.found: set[str] = set()
        self._imports(tree)
        self._attributes(tree)

    def _imports(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    if top != "torch":
                        self._modules.add(alias.asname or top)
                        continue
                    self._bound[alias.asname or top] = alias.name if alias.asname else top
                    self._see(alias.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                assert node.level == 0
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    self._bound[alias.asname or alias.name] = name
                    self._see(name)
        for node in ast.walk(tree):  # aten = torch.ops.aten
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                root, chain = self._chain(node.value)
                if root in self._bound:
                    self._bound[node.targets[0].id] = ".".join([self._bound[root], *chain])

    @staticmethod
    def _chain(node: ast.expr) -> tuple[str, list[str]]:
        """Return `a` and `[b, c]` of `a.b.c`; no name where it begins with a call, say."""
        chain = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        return node.id if isinstance(node, ast.Name) else "", chain[::-1]

    def _attributes(self, tree: ast.Module) -> None:
        inner = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)
        }  # of longer chains
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node not in inner:
                self._see_chain(*self._chain(node))
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr", "setattr")
            ):
                name = node.args[1]
                if isinstance(name, ast.Constant) and is_private(str(name.value)):
                    self._object(str(name.value))

    def _see_chain(self, root: str, chain: list[str]) -> None:
        if root in self._modules:
            return
        if root in self._bound:
            self._see(".".join([self._bound[root], *chain]))
            return
        for name in chain[1:] if root == "self" else chain:
            if is_private(name):
                self._object(name)

    def _object(self, name: str) -> None:
        if name not in self._ours:
            self.found.add(f"._{name.removeprefix('_')}")

    def _see(self, name: str) -> None:
        parts = name.split(".")
        if parts[:2] == ["torch", "ops"]:  # operators are called as their schema calls them
            parts = parts[:2]
        if any(map(is_private, parts)):
            self.found.add(name)


def own_names(tree: ast.Module) -> set[str]:
    """Return what a file itself gives names to: functions, classes and attributes."""
    ours: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            ours.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            ours.add(node.attr)
    return ours


def uses() -> Iterator[tuple[str, str]]:
    """Yield file and name for each private name of torch outside its one place."""
    for path in FILES:
        for name in sorted(PrivateUses(ast.parse(path.read_text())).found - ALLOWED):
            yield path.relative_to(PACKAGE).as_posix(), name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch._C._x()", {"torch._C._x"}),
        ("import torch._dynamo", {"torch._dynamo"}),
        ("import torch._dynamo as d\nd.reset()", {"torch._dynamo", "torch._dynamo.reset"}),
        ("from torch._subclasses import FakeTensor", {"torch._subclasses.FakeTensor"}),
        ("from torch.nn import _x as y\ny.z", {"torch.nn._x", "torch.nn._x.z"}),
        ("from torch import nn\nnn.Linear._x", {"torch.nn.Linear._x"}),
        ("import torch\ntorch.ops.aten._foreach_add_.List", set()),
        ("import torch\naten = torch.ops.aten\naten._foreach_add_.List", set()),
        ("import torch\nc = torch._C\nc.f()", {"torch._C", "torch._C.f"}),
        ("import torch.utils as u\nu._pytree.tree_map", {"torch.utils._pytree.tree_map"}),
        ("def f(t): return t._version", {"._version"}),
        ("def f(t): return getattr(t, '_version')", {"._version"}),
        ("def f(t): return g(t).untyped_storage()._cdata", {"._cdata"}),
        ("class A:\n def __init__(self): self._x = 1\n def f(self): return self._x", set()),
        ("import sys\nsys._getframe(1)", set()),
        ("import torch\ntorch.__version__", set()),
        ("import torch\ntorch.nn.Module", set()),
    ],
)
def test_the_search_for_private_names_finds(text, found):
    assert PrivateUses(ast.parse(text)).found == found


def test_private_names_of_torch_stand_in_one_file():
    assert list(uses()) == []


def test_the_one_file_holds_nothing_that_nobody_uses():
    there = {
        node.name
        for node in ast.parse(ONE_PLACE.read_text()).body
        if hasattr(node, "name") and not node.name.startswith("_")
    } | {"DataDependentOutputException", "DynamicOutputShapeException"}
    asked = {
        alias.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "private"
        for alias in node.names
    }
    assert there - asked == set()


# -- modules ---------------------------------------------------------------------------------------


class Elsewhere(torch.nn.Module):
    """Has one in its class, and finds another where a module usually does not look."""

    running_mean = torch.ones(2)
    other = torch.ones(3)

    def __getattr__(self, name):
        return self.other if name == "running_var" else super().__getattr__(name)


class Computed(torch.nn.Module):
    @property
    def running_var(self):
        return self.weight


def modules():
    plain, parameter, computed = torch.nn.Linear(2, 2), torch.nn.Module(), Computed()
    plain.running_mean, plain.running_var = torch.ones(2), "no tensor"
    parameter.running_var, computed.weight = torch.nn.Parameter(torch.ones(2)), leaf()
    inner = torch.nn.Module()
    inner.running_mean = torch.nn.BatchNorm2d(2)
    usual = torch.nn.ReLU(), torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2, affine=False)
    none = torch.nn.BatchNorm2d(2, track_running_stats=False)
    return (*usual, none, plain, parameter, inner, computed, Elsewhere())


def test_tensors_of_a_module_are_those_that_its_attributes_are():
    for module in modules():
        names = "running_mean", "running_var"
        attributes = [getattr(module, name, None) for name in names]
        expected = [each for each in attributes if isinstance(each, torch.Tensor)]
        found = private.tensors_of(module, names)
        assert [each.data_ptr() for each in found] == [each.data_ptr() for each in expected]


# -- running operators again -----------------------------------------------------------------------


def test_below_autograd_an_operator_is_as_an_observer_calls_it():
    x, weight = torch.rand(3, 3), leaf(3, 3)
    product = private.kernel_of(torch.ops.aten.mm.default)
    seen = []

    def observe(func, args, kwargs):
        seen.append(func)
        return func(*args, **kwargs)

    packed = []
    hooks = torch.autograd.graph.saved_tensors_hooks(packed.append, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), private.observed(observe), hooks:
        with private.BelowAutograd():
            result = product(x, weight)
            enabled = torch.is_grad_enabled()
        assert (result.dtype, result.requires_grad, seen, packed) == (torch.float32, False, [], [])
        assert enabled
        assert torch.mm(x, weight).dtype is torch.bfloat16
    assert seen
    assert packed
    with torch.no_grad(), private.BelowAutograd():
        pass
    assert torch.is_grad_enabled()


def test_a_number_stays_a_number_when_an_operator_is_called_again():
    calls = []

    def observe(func, args, kwargs):
        calls.append((func, args, kwargs))
        return func(*args, **kwargs)

    x = torch.rand(3).half()
    with private.observed(observe):
        expected = x * 2.5
    ((func, args, kwargs),) = calls
    assert args[1] == 2.5
    again = private.kernel_of(func)(*args, **kwargs)
    assert again.dtype is expected.dtype is torch.float16
    assert torch.equal(again, expected)


@pytest.mark.parametrize("name", private._BOUND)
def test_what_is_bound_is_called_as_the_operator_is(name):
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    func = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    x, weight, line = torch.rand(2, 3, 4, 4) - 0.5, torch.rand(3, 3, 1, 1), torch.rand(3)
    calls = {
        "add_": [((x, 2), {}), ((x, x + 1), {"alpha": 3}), ((torch.ones(2, dtype=int), 1), {})],
        "convolution": [((x, weight, None, [2, 1], [0, 1], [1, 1], False, [0, 0], 1), {})],
        "native_batch_norm": [((x, line, None, line * 0, line * 1, True, 0.3, 0.01), {})],
        "relu_": [((x,), {})],
    }
    for args, kwargs in calls.get(packet, ()):
        again = [each.clone() if isinstance(each, torch.Tensor) else each for each in args]
        expected, found = func(*args, **kwargs), private.kernel_of(func)(*again, **kwargs)
        assert type(found) is type(expected)
        pairs = zip(
            [expected] if isinstance(expected, torch.Tensor) else expected,
            [found] if isinstance(found, torch.Tensor) else found,
            strict=True,
        )
        assert all(torch.equal(*pair) for pair in (*pairs, *tensors(args, again)))


def tensors(*several):
    """Pairs of the tensors that are at the same places."""
    return [pair for pair in zip(*several, strict=True) if isinstance(pair[0], torch.Tensor)]


def test_below_autograd_hides_as_much_as_torch_does_and_observers():
    with torch._C._AutoDispatchBelowAutograd():
        below = torch._C._dispatch_tls_local_exclude_set()
    with private.BelowAutograd():
        found = torch._C._dispatch_tls_local_exclude_set()
    assert (found | below) == found


def test_which_operators_are_kernels_of_their_own():
    assert private.has_kernel(torch.ops.aten.mm.default, "cpu")
    assert private.has_kernel(torch.ops.aten.add.Tensor, "cpu")
    assert not private.has_kernel(torch.ops.aten._trilinear.default, "cpu")
    assert not private.has_kernel(torch.ops.aten.mm.default, "nothing")


def test_an_observer_may_go_while_an_operator_is_on_its_way():
    seen = []

    def observe(func, args, kwargs):
        seen.append(func)
        return func(*args, **kwargs)

    with contextlib.ExitStack() as watching:
        watching.enter_context(private.observed(observe))

        def pack(tensor):
            watching.close()
            return tensor

        x = leaf()
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = (x * x).exp().sum()
    assert seen == []
    y.backward()
    assert torch.allclose(x.grad, 2 * x * (x * x).exp())
