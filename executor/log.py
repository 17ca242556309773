"""The log of training steps: every operation as it was dispatched, and the storages it touched.

The log is shown the operations below autograd, with composite functions resolved. What only makes
another view of the same bytes is no operation here.
"""

import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any, Final, Protocol

import torch

from ..errors import Unsupported
from ..traces import Precision
from .in_place import PlainRules
from .operators import Operator, draws, operator
from .private import Overload, backward_pass, number_of, running_node, sequence_number
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
        "backward_pass",
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
        self.backward_pass = backward_pass()
        self.backward = self.backward_pass >= 0
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


class Log:
    """Logs what it is shown of *device*, one step after the other."""

    def __init__(
        self,
        device: torch.device,
        meter: Meter | None = None,
        rules: "PlainRules | None" = None,
    ) -> None:
        self.device: Final = device
        self.operations: list[Logged] = []
        self.book: Final = Book(self.place)
        self.quiet = False  # what the recorder itself does is not logged
        self.module = ""  # the path of the module that runs in forward
        self.parameters: list[weakref.ref[torch.Tensor]] = []  # as they are come upon
        self.unreleased: list[Life] = []  # saved storages that the program still holds
        self._modules: dict[int, str] = {}  # by sequence number
        self._meter = meter
        self.rules = rules or PlainRules()
        self.dispatched = 0
        self.calls = 0  # a digest of all calls so far

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

    def observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See an operator: run it, and log what it did."""
        if self.quiet or func.namespace == "prim":  # asking a fake tensor for its device is one
            return func(*args, **kwargs)
        self.poll()
        what = self.describe(func)
        logged = Logged(what)
        logged.dispatch = self.dispatched
        self.dispatched += 1
        self.calls = next_call(self.calls, func, args, kwargs)
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
        self.rules.mark(self, logged, args, result)
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
            if key not in what.written and self._is_number(tensor):
                continue
            if what.name == "lift_fresh" and self.book.find(tensor) is None:
                continue  # torch.tensor(...): it is made here
            life = self.book.find(tensor) or self._enter_found(tensor)
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
            logged.module = self._modules.get(logged.node, "")
        else:
            logged.node = sequence_number() - 1
            logged.module = self._modules.setdefault(logged.node, self.module)
            logged.module = self.module

    def maker(self, tensor: torch.Tensor) -> Logged | None:
        """Return the operation that made a tensor's storage, None if it was there before."""
        life = self.book.find(tensor)
        if life is None or not 0 <= life.born < len(self.operations):
            return None
        return self.operations[life.born]

    def _enter_found(self, tensor: torch.Tensor) -> Life:
        """Enter a storage that was there before; remember a parameter, for nobody else may."""
        if isinstance(tensor, torch.nn.Parameter):
            self.parameters.append(weakref.ref(tensor))
        return self.book.enter(tensor, -1)

    def _is_number(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is a Python number on its way into an operator."""
        return (
            tensor.dim() == 0
            and tensor.device.type == "cpu"
            and tensor.dtype in (torch.float64, torch.int64, torch.bool)
            and self.book.find(tensor) is None
        )

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


def next_call(calls: int, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the digest of calls with one more: its operator and the shapes of its tensors.

    A sum of gradients is the same whether it is made in place or not: only a logged step minds.
    """
    name = func.overloadpacket.__name__.rstrip("_")
    return hash((calls, name, *(tensor.shape for _, tensor in tensors_of(args, kwargs))))


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
    return "tf32" if allows_tf32(what.kind) else "fp32"


def allows_tf32(kind: str) -> bool:
    """Return whether torch lets operations of a kind run in TF32, by its new or its old switch."""
    backends: Any = torch.backends
    settings = backends.cudnn if kind in ("conv", "rnn") else backends.cuda.matmul
    precision = getattr(getattr(settings, kind, settings), "fp32_precision", "none")
    if precision in ("tf32", "ieee"):
        return bool(precision == "tf32")
    try:
        return bool(settings.allow_tf32)
    except RuntimeError:  # both switches were used, and they differ
        return False


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
