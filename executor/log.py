"""The log of training steps: every operation as it was dispatched, and the storages it touched.

A dispatch mode sees the operations below autograd, with composite functions resolved. What only
makes another view of the same bytes is no operation here.

One thing a mode changes: where autograd adds up the gradients of a value with several consumers,
or scatters a gradient into zeros, it works in place in a plain step, and makes a new tensor while
any mode is active (its rule for tensor subclasses). The log marks these operations, and the trace
says what a plain step does.
"""

import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Unsupported
from ..traces import Precision
from .operators import Operator, draws, operator
from .private import Overload, holders, in_backward, number_of, running_node, sequence_number
from .storages import Book, Life


class Access:
    """A view that an operation reads: a storage, its version, first byte and size in bytes."""

    __slots__ = ("life", "nbytes", "offset", "version")

    def __init__(self, life: Life, version: int, offset: int, nbytes: int) -> None:
        self.life = life
        self.version = version
        self.offset = offset
        self.nbytes = nbytes


class Logged:
    """One operation: what it read, made, wrote over and updated in passing, bytes and flops.

    *dispatch* is its number among all that was dispatched, views included. *node* is the sequence
    number of its autograd node: the one it makes in forward, the one that runs it in backward.
    *call* tells one call of the program from another: one may run several operations. *result_in*
    is the storage that a plain step would have put the result into.
    """

    __slots__ = (
        "backward",
        "call",
        "dispatch",
        "flops",
        "fresh",
        "inside_nbytes",
        "module",
        "moved_nbytes",
        "node",
        "operator",
        "overwrites",
        "precision",
        "random",
        "reads",
        "result_in",
        "updates",
        "waits",
    )

    def __init__(self, what: Operator) -> None:
        self.operator = what
        self.dispatch = 0
        self.call: tuple[int, CodeType | None, int] = (0, None, 0)
        self.backward = in_backward()
        self.node = -1
        self.module = ""
        self.reads: list[Access] = []
        self.fresh: list[Life] = []
        self.overwrites: list[Life] = []
        self.updates: list[Life] = []
        self.waits = False
        self.random = False
        self.flops = 0
        self.precision: Precision = "fp32"
        self.moved_nbytes = 0
        self.inside_nbytes = 0
        self.result_in: Life | None = None


class Meter(Protocol):
    """Measures the bytes that an operation takes inside itself."""

    def before(self) -> None:
        """Begin: right before an operation runs."""
        ...

    def after(self, fresh_nbytes: int) -> int:
        """Return the most bytes taken meanwhile beyond *fresh_nbytes*, those of its results."""
        ...


class Log(TorchDispatchMode):
    """Logs what is dispatched on *device* while it is active, one step after the other."""

    def __init__(self, device: torch.device, meter: Meter | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device: Final = device
        self.operations: list[Logged] = []
        self.book: Final = Book(self.place)
        self.quiet = False  # what the recorder itself does is not logged
        self.module = ""  # the path of the module that runs in forward
        self.caveats: set[str] = set()
        self.unreleased: list[Life] = []  # saved storages that the program still holds
        self._modules: dict[int, str] = {}  # by sequence number
        self._meter = meter
        self.dispatched = 0

    def place(self) -> int:
        """Return the present place: how many operations have been logged."""
        return len(self.operations)

    def here(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is on the device whose bytes are recorded."""
        return tensor.device == self.device

    def describe(self, func: Overload) -> Operator:
        """Return what is known of an operator."""
        return operator(func)

    def poll(self) -> None:
        """Note for each saved storage whether the program has let go of it by this place."""
        still = []
        for life in self.unreleased:
            if life.held:
                still.append(life)
            elif life.released < 0:
                life.released = len(self.operations)
        self.unreleased = still

    def __torch_dispatch__(
        self,
        func: Overload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.quiet or func.namespace == "prim":  # asking a fake tensor for its device is one
            return func(*args, **kwargs)
        self.poll()
        what = self.describe(func)
        logged = Logged(what)
        logged.dispatch = self.dispatched
        self.dispatched += 1
        touched: dict[int, int] = {}
        writes = self._arguments(logged, args, kwargs, touched)
        if self._meter is not None:
            self._meter.before()
        result = func(*args, **kwargs)
        fresh_nbytes = self._results(logged, result, touched)
        logged.waits = bool(logged.reads) and (
            what.waits or self._leaves(what, args, kwargs, result)
        )
        if not (logged.fresh or writes or logged.waits):
            return result  # a view, or nothing on this device
        if self._meter is not None:
            logged.inside_nbytes = self._meter.after(fresh_nbytes)
        self._place_in_graph(logged)
        logged.random = draws(what, args, kwargs)
        logged.moved_nbytes += sum(touched.values())
        if what.flops is not None:
            logged.flops = int(what.flops(*args, **kwargs, out_val=result))
            logged.precision = precision_of(what, args)
        caller = _caller()
        logged.call = (id(caller), caller.f_code, caller.f_lasti)  # a frame would keep its tensors
        if len(logged.fresh) == 1 and self._plainly_in_place(logged, args, caller):
            self._mark_in_place(logged, args[0], result)
        self._follow_sizes(logged)
        for life in logged.overwrites:
            life.version += 1
        for life in logged.updates:
            life.version += 1
        self.operations.append(logged)
        return result

    def _arguments(
        self,
        logged: Logged,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        touched: dict[int, int],
    ) -> bool:
        """Note what the operation reads and writes; return whether it writes anything here."""
        what, writes = logged.operator, False
        training = bool(what.passing) and _trains(args, kwargs)
        for key, tensor in tensors_of(args, kwargs):
            if not self.here(tensor):
                continue
            self._refuse_unsupported(tensor, what)
            if what.name == "lift_fresh" and self.book.find(tensor) is None:
                continue  # torch.tensor(...): it is made here
            life = self.book.find(tensor) or self.book.enter(tensor, -1)
            if what.shapes_only:
                continue
            offset, nbytes = extent(tensor)
            touched[life.number] = max(touched.get(life.number, 0), nbytes)
            if key in what.written:
                if life not in logged.overwrites:
                    logged.overwrites.append(life)
                if not what.fills:
                    logged.moved_nbytes += nbytes  # read before it is written
                writes = True
            elif key in what.passing:
                if training:
                    logged.updates.append(life)
                    writes = True
                else:
                    logged.reads.append(Access(life, life.version, offset, nbytes))
            else:
                logged.reads.append(Access(life, life.version, offset, nbytes))
        return writes

    def _results(self, logged: Logged, result: Any, touched: dict[int, int]) -> int:
        """Note the storages that the operation made; return their bytes."""
        total = 0
        place = len(self.operations)
        for tensor in _each(result):
            if not self.here(tensor):
                continue
            self._refuse_unsupported(tensor, logged.operator)
            if self.book.find(tensor) is None:
                life = self.book.enter(tensor, place)
                logged.fresh.append(life)
                touched[life.number] = life.nbytes
                total += life.nbytes
        return total

    def _leaves(
        self, what: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> bool:
        """Return whether bytes go to the host, which waits for them."""
        if what.kind != "copy" or kwargs.get("non_blocking") or True in args[2:]:
            return False
        return any(tensor.device.type == "cpu" != self.device.type for tensor in _each(result))

    def _follow_sizes(self, logged: Logged) -> None:
        """Take an empty storage that an operation has filled for a new one; refuse other sizes."""
        for life in list(logged.overwrites):
            nbytes = self.book.nbytes(life)
            if nbytes == life.nbytes:
                continue
            if life.nbytes:
                raise Unsupported(
                    f"{logged.operator.name} changes a storage of {life.nbytes} bytes to {nbytes}, "
                    "which a trace cannot say; make a new tensor instead"
                )
            logged.overwrites.remove(life)
            logged.fresh.append(self.book.renew(life, len(self.operations)))

    def _place_in_graph(self, logged: Logged) -> None:
        """Note node and module: a backward operation's module is that of its forward."""
        if logged.backward:
            node = running_node()
            logged.node = -1 if node is None else number_of(node)
            if node is not None and node.name() in OTHER_FORMULAS:
                self.caveats.add(node.name())
            logged.module = self._modules.get(logged.node, "")
        else:
            logged.node = sequence_number() - 1
            logged.module = self._modules.setdefault(logged.node, self.module)
            logged.module = self.module

    def _plainly_in_place(self, logged: Logged, args: tuple[Any, ...], caller: FrameType) -> bool:
        """Return whether torch would run the operation in place if no mode were active.

        That holds for what autograd's engine and some of its formulas do, called from no Python
        function inside a node, and for the bias that a linear function adds to its product.
        """
        first, name = args[0] if args else None, logged.operator.name
        if not isinstance(first, torch.Tensor) or not self.here(first):
            return False
        if logged.backward:
            if torch.is_grad_enabled() or caller.f_code.co_name != "_engine_run_backward":
                return False
            if name in PLAINLY_IN_PLACE:
                return True
            node = running_node()
            if node is None or name not in FORMULAS_IN_PLACE.get(node.name(), ()):
                return False
            maker = self._maker(first)
            return maker is not None and maker.backward and maker.node == logged.node
        if name != "add":
            return False
        bias, maker = args[1], self._maker(first)
        return (
            isinstance(bias, torch.Tensor)
            and bias.dim() == 1
            and maker is self.operations[-1]
            and maker.operator.kind == "matmul"
            and maker.call == logged.call
        )

    def _maker(self, tensor: torch.Tensor) -> Logged | None:
        """Return the operation that made a tensor's storage, None if it was there before."""
        life = self.book.find(tensor)
        if life is None or not 0 <= life.born < len(self.operations):
            return None
        return self.operations[life.born]

    def _mark_in_place(self, logged: Logged, first: torch.Tensor, result: torch.Tensor) -> None:
        life = self.book.find(first)
        if (
            life is not None
            and holders(life.address) == 2  # *first* itself, and the storage's Python object
            and first.shape == result.shape
            and first.dtype == result.dtype
            and first.stride() == result.stride()
        ):
            logged.result_in = life

    def _refuse_unsupported(self, tensor: torch.Tensor, what: Operator) -> None:
        why = ""
        if tensor.is_complex():
            why = f"a complex tensor ({tensor.dtype})"
        elif tensor.is_quantized:
            why = f"a quantized tensor ({tensor.dtype})"
        elif tensor.layout is not torch.strided:
            why = f"a sparse tensor ({tensor.layout})"
        if why:
            where = f" in module {self.module!r}" if self.module else ""
            raise Unsupported(
                f"{what.name}{where} works on {why}, which a recording cannot tell apart into "
                "bytes yet; record a step without it"
            )


PLAINLY_IN_PLACE: Final = frozenset(
    {"add", "index_put", "scatter", "scatter_add", "index_add", "masked_scatter", "index_fill"}
)
"""What autograd's engine and formulas run in place unless a mode is active."""

FORMULAS_IN_PLACE: Final = {
    "BinaryCrossEntropyWithLogitsBackward0": frozenset({"sub", "mul", "div"}),
}
"""The same for single formulas, by their node's name."""

OTHER_FORMULAS: Final = frozenset(
    {"MaxBackward1", "MinBackward1", "AmaxBackward0", "AminBackward0", "ProdBackward0"}
    | {"ProdBackward1", "CumprodBackward0"}
)
"""Formulas of which torch runs another one while a mode is active: what a plain step does is not
seen. A trace with one of them says so."""


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return a tensor's first byte in its storage, and how many bytes it spans from there."""
    item, offset = tensor.element_size(), int(tensor.storage_offset())
    if tensor.numel() == 0:
        return offset * item, 0
    span = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return offset * item, int(span) * item


def precision_of(what: Operator, args: tuple[Any, ...]) -> Precision:
    """Return which units do an operation's arithmetic: by its first tensor and torch's settings."""
    dtype = next((tensor.dtype for _, tensor in tensors_of(args, {})), torch.float32)
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    if dtype != torch.float32:
        return "fp32"
    through_cudnn = what.kind in ("conv", "rnn")
    settings = torch.backends.cudnn if through_cudnn else torch.backends.cuda.matmul
    return "tf32" if settings.allow_tf32 else "fp32"


def tensors_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[int | str, torch.Tensor]]:
    """Yield the tensors among the arguments, those in lists too, with position or name."""
    for i, argument in enumerate(args):
        if isinstance(argument, torch.Tensor):
            yield i, argument
        elif isinstance(argument, list | tuple):
            for each in argument:
                if isinstance(each, torch.Tensor):
                    yield i, each
    for name, argument in kwargs.items():
        for each in _each(argument):
            yield name, each


def _each(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _each(item)


def _trains(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a normalization is called in training: its one true or false argument."""
    return any(argument is True for argument in (*args, *kwargs.values()))


def _caller() -> FrameType:
    """Return the Python frame that called torch."""
    frame = sys._getframe(2)
    while frame.f_code.co_name in _WRAPPERS and frame.f_back is not None:
        frame = frame.f_back
    return frame


_WRAPPERS: Final = frozenset({"__torch_dispatch__", "inner", "_fn"})  # that dynamo puts around ours
