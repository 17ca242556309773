"""The log of training steps: every operation as it was dispatched, and the storages it touched.

A dispatch mode sees the operations below autograd, with composite functions resolved. What only
makes another view of the same bytes is no operation here.

One thing a mode changes: where autograd adds up the gradients of a value with several consumers,
it adds in place in a plain step, and makes a new sum while any mode is active (its rule for tensor
subclasses). The log marks such sums, and the trace says what a plain step does.
"""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Unsupported
from ..traces import Precision
from .operators import Operator, Overload, draws, operator
from .private import in_backward, running_node, sequence_number
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
    *sum_of* is the storage that a plain step would have added into.
    """

    __slots__ = (
        "backward",
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
        "sum_of",
        "updates",
        "waits",
    )

    def __init__(self, what: Operator) -> None:
        self.operator = what
        self.dispatch = 0
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
        self.sum_of: Life | None = None


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
        if what.name == "add" and logged.backward and not torch.is_grad_enabled():
            self._mark_sum(logged, args, result)
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

    def _place_in_graph(self, logged: Logged) -> None:
        """Note node and module: a backward operation's module is that of its forward."""
        if logged.backward:
            node = running_node()
            logged.node = -1 if node is None else node._sequence_nr()
            logged.module = self._modules.get(logged.node, "")
        else:
            logged.node = sequence_number() - 1
            logged.module = self._modules.setdefault(logged.node, self.module)
            logged.module = self.module

    def _mark_sum(self, logged: Logged, args: tuple[Any, ...], result: torch.Tensor) -> None:
        """Mark a sum of gradients that autograd would have put into the first one."""
        first, second = args[0], args[1]
        if not isinstance(second, torch.Tensor) or len(logged.fresh) != 1:
            return
        life = self.book.find(first)
        if (
            life is not None
            and first.shape == result.shape
            and first.dtype == result.dtype
            and first.stride() == result.stride()
            and _called_by_engine()
        ):
            logged.sum_of = life

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


def _called_by_engine() -> bool:
    """Return whether autograd's engine itself called, and no Python function inside a node."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


_WRAPPERS: Final = frozenset({"__torch_dispatch__", "inner", "_fn"})  # that dynamo puts around ours
